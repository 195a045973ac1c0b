"""What the demo tells, read from the repository alone: releases, verdicts, QC, lineage, cost."""

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from lake.digests import json_digest
from lake.repository import Repository
from lake.snapshot import Snapshot
from lake.tables import collect
from lake.wording import counted
from releases.history import find, history
from releases.manifest import read_manifest

if TYPE_CHECKING:
    from releases.app.demo import Demo

GOOD, FAST = "r1", "r2"
# Supervoxels lie in one block each, so a damaged box is found to the block; metrics that show splits and merges.
_METRICS = ("vi_split", "vi_merge")
# A region that the damage covers by half shows about half the rise; unharmed ones stay under a tenth of it.
_SHARE = 0.4


def damage(repo: Repository) -> dict[str, Any]:
    """Find where the newer release is worse, by SQL over QC, and what its model touched there, by SQL over lineage.

    A region counts as damaged if its VI (split + merge) rose by more than `_SHARE` of the largest rise of any region.
    Nothing here knows where the sample is odd.
    """
    with repo.snapshot(GOOD) as old, repo.snapshot(FAST, ops="ops") as new:
        rise: dict[str, float] = {}
        boxes: dict[str, tuple[float, ...]] = {}
        for metric in _METRICS:
            rows = new.sql("regressions_by_region", {"metric": metric}, attach={"old": old}).polars()
            for row in rows.to_dicts():
                rise[row["region"]] = rise.get(row["region"], 0.0) + (row["change"] or 0.0)
                boxes[row["region"]] = tuple(row[f"{end}_{axis}"] for end in ("min", "max") for axis in "xyz")
        worst = max(rise.values(), default=0.0)
        regions = sorted(region for region, change in rise.items() if worst > 0 and change > worst * _SHARE)
        digest = model_of(new)
        touched = new.sql("impact_of_model", {"model_digest": digest}).polars()
    there = touched.filter(pl.col("region").is_in(regions))
    columns = ("blocks", "supervoxels", "segments", "synapses")
    return {
        "regions": regions,
        "boxes_nm": {region: boxes[region] for region in regions},
        "rise_bits": {region: rise[region] for region in regions},
        "model": digest,
        "impact": {column: int(there[column].sum()) for column in columns},
        "impact_everywhere": {column: int(touched[column].sum()) for column in columns},
    }


def model_of(snapshot: Snapshot, stage: str = "affinity") -> str:
    """Give the digest of the model that a stage of this snapshot's runs used."""
    rows = snapshot.sql(
        "SELECT r.model_digest FROM ops.runs AS r JOIN snapshot_runs AS s USING (run_id) "
        "WHERE r.stage = ? AND r.model_digest IS NOT NULL ORDER BY r.started DESC LIMIT 1",
        [stage],
    ).rows()
    return str(rows[0][0])


def read_story(repo: Repository, demo: "Demo") -> dict[str, Any]:
    """Read everything the story and the report tell."""
    releases = {release.name: release for release in history(repo)}
    manifests = {name: read_manifest(repo, name, releases[name].merge) for name in (GOOD, FAST)}
    with repo.snapshot("main", ops="ops") as snapshot:
        tiles = snapshot.sql(
            "SELECT status, count(*) AS n, string_agg(DISTINCT reason, '; ' ORDER BY reason) AS reasons "
            "FROM archive.tiles GROUP BY ALL ORDER BY 1"
        ).rows()
        runs = snapshot.sql(
            "SELECT run_id, branch, stage, model_digest, cpu_s, wall_s, accepted_voxels, cost, blocks, merkle_root "
            "FROM ops.runs WHERE state = 'complete' ORDER BY started, stage"
        ).polars()
        decisions = snapshot.sql("SELECT kind, release, target, reason, ts FROM ops.decisions ORDER BY ts").polars()
    reader = repo.snapshot(FAST)
    main_is_good = not list(repo.diff(releases[GOOD].merge, "main"))
    return {
        "seed": demo.seed,
        "repository": repo.location,
        "voxels": demo.shape[0] * demo.shape[1] * demo.shape[2],
        "tiles": [{"status": s, "tiles": n, "reasons": r or ""} for s, n, r in tiles],
        "metrics": {name: _metrics(repo, releases[name].merge) for name in (GOOD, FAST)},
        "regions": {name: _regions(repo, releases[name].merge) for name in (GOOD, FAST)},
        "baseline": baseline(repo, demo),
        "verdicts": {name: _verdict(manifest) for name, manifest in manifests.items()},
        "refused": [r for r in manifests[FAST]["qc"]["results"] if r["outcome"] == "waived"],
        "diff": {key: value for key, value in manifests[FAST]["diff"].items() if key not in {"regions", "tables"}},
        "damage": damage(repo),
        "runs": runs.to_dicts(),
        "cpu_s": {name: _cpu(runs, f"cand-{name}") for name in (GOOD, FAST)},
        "affinity_cpu_s": {name: _cpu(runs, f"cand-{name}", "affinity") for name in (GOOD, FAST)},
        "decisions": decisions.to_dicts(),
        "main_holds": GOOD if main_is_good else "something else",
        "reader": {"release": FAST, "segments": reader.table("segments").select(pl.len()).pipe(collect).item()},
        "releases": [
            {"name": r.name, "commit": r.merge, "manifest_digest": r.manifest_digest, "undone_by": r.undone_by or ""}
            for r in history(repo)
        ],
        "digests": digests(manifests, runs),
    }


def _metrics(repo: Repository, commit: str) -> dict[str, float | None]:
    with repo.snapshot(commit) as snapshot:
        rows = snapshot.sql("SELECT metric, value FROM qc_metrics WHERE scope = 'global' ORDER BY metric").rows()
    return dict(rows)


def _regions(repo: Repository, commit: str) -> dict[str, float]:
    """Give VI (split + merge) by region."""
    with repo.snapshot(commit) as snapshot:
        query = (
            "SELECT scope_id, sum(value) FROM qc_metrics WHERE scope = 'region' "
            "AND metric IN ('vi_split', 'vi_merge') GROUP BY scope_id ORDER BY scope_id"
        )
        return dict(snapshot.sql(query).rows())


def _verdict(manifest: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for result in manifest["qc"]["results"]:
        counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
    return {"status": manifest["qc"]["status"], "outcomes": counts}


def _cpu(runs: pl.DataFrame, branch: str, stage: str | None = None) -> float:
    chosen = runs.filter(pl.col("branch") == branch)
    if stage:
        chosen = chosen.filter(pl.col("stage") == stage)
    return float(chosen["cpu_s"].sum())


def digests(manifests: dict[str, dict[str, Any]], runs: pl.DataFrame) -> dict[str, Any]:
    """Give what must be equal for one seed on every engine: models, Merkle roots, table contents, verdicts."""
    found: dict[str, Any] = {}
    for name, manifest in manifests.items():
        found[name] = {
            "models": manifest["lineage"]["models"],
            "merkle_roots": dict(
                runs.filter(pl.col("branch") == f"cand-{name}").select("stage", "merkle_root").sort("stage").iter_rows()
            ),
            "tables": {a["name"]: a["content_digest"] for a in manifest["artifacts"] if a["format"] == "delta"},
            "verdict": [
                {k: r[k] for k in ("gate", "metric", "scope", "scope_id", "value", "baseline", "bound", "outcome")}
                for r in manifest["qc"]["results"]
            ],
        }
    return {**found, "all": json_digest(found)}


def baseline(repo: Repository, demo: "Demo") -> dict[str, float]:
    """Score a watershed on plain brightness in the demo's own volume, against the truth; kept beside the sample."""
    kept = demo.sample / "baseline.json"
    if kept.exists():
        stored: dict[str, float] = json.loads(kept.read_text())
        return stored
    from lake.measures import contingency, score
    from transforms.kernels.watershed import intensity_fragments

    with repo.snapshot(GOOD) as snapshot:
        em, truth = snapshot.volume("em"), snapshot.volume("ground_truth")
        # The whole volume at once: cut into blocks, the baseline would be worse than it is.
        labels = intensity_fragments(em.read(truth.box), voxel_nm=em.spec.voxel_nm_zyx)
        result = score(contingency(labels, truth.read(truth.box)))
    found = {"vi_split": result.vi_split, "vi_merge": result.vi_merge}
    demo.sample.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    return found


def tell(story: dict[str, Any]) -> str:
    """Put the story into words."""
    m1, m2 = story["metrics"][GOOD], story["metrics"][FAST]
    cpu, d, base = story["affinity_cpu_s"], story["damage"], story["baseline"]
    tiles = ", ".join(f"{t['tiles']} {t['status']}" for t in story["tiles"])
    worst = max(story["refused"], key=lambda r: r["value"] - (r["baseline"] or 0.0), default=None)

    def vi(metrics: dict[str, float]) -> str:
        total = metrics["vi_split"] + metrics["vi_merge"]
        return f"{total:.3f} bits ({metrics['vi_split']:.3f} split, {metrics['vi_merge']:.3f} merge)"

    lines = [
        f"Sample {story['seed']}: {story['voxels'] / 1e6:.1f} million voxels; tiles: {tiles}.",
        *[f"  {t['status']}: {t['reasons']}" for t in story["tiles"] if t["reasons"]],
        f"Stitched: worst residual {m1['stitch_residual_p95']:.2f} px; aligned: {m1['alignment_residual']:.2f} px.",
        f"{GOOD} ({story['verdicts'][GOOD]['status']}): VI {vi(m1)}; plain intensity: {vi(base)}; "
        f"synapse F1 {m1['synapse_f1']:.3f}.",
        f"{FAST}, a faster model: {cpu[FAST]:.1f} instead of {cpu[GOOD]:.1f} CPU s for affinities; VI {vi(m2)}.",
    ]
    if worst:
        lines.append(
            f"The gate refused {FAST}: {worst['metric']} in region {worst['scope_id']} went from "
            f"{worst['baseline']:.2f} to {worst['value']:.2f} {worst['unit']} (limit {worst['bound']:.2f}), "
            f"with {counted(len(story['refused']), 'gate result')} failing in all. "
            f"It was published with a waiver: {worst['waiver']}."
        )
    impact = d["impact"]
    lines += [
        f"SQL over QC found {counted(len(d['regions']), 'damaged region')}: {', '.join(d['regions'])}.",
        f"SQL over lineage: model {d['model'][:12]} made {counted(impact['blocks'], 'block')}, "
        f"{counted(impact['supervoxels'], 'supervoxel')}, {counted(impact['segments'], 'segment')} and "
        f"{counted(impact['synapses'], 'synapse')} there.",
        f"{FAST} was rolled back: main holds {story['main_holds']}'s tree; "
        f"a reader pinned to {FAST} still reads its {counted(story['reader']['segments'], 'segment')}.",
    ]
    return "\n".join(lines)


def next_commands(repo: Repository, demo: "Demo") -> list[str]:
    """Give commands to try next."""
    root = find(repo, GOOD)
    regions = "SELECT * FROM v_qc_regions WHERE metric = 'vi_split' ORDER BY value DESC LIMIT 5"
    with repo.snapshot(root.merge) as snapshot:
        rows = snapshot.sql("SELECT root_id FROM segments ORDER BY voxels DESC LIMIT 1").rows()
    at = f"--repo {demo.location}"
    return [
        f"emlake release list {at}",
        f"emlake release diff {GOOD} {FAST} {at}",
        f"emlake release verify {GOOD} {at}",
        f'emlake sql "{regions}" --at {FAST} {at}',
        f'emlake sql "SELECT * FROM v_segment_tiles WHERE root_id = {rows[0][0]}" --at {GOOD} {at}',
        f"emlake qc report cand-{FAST} {at}",
    ]
