"""The manifest of a release: canonical JSON whose digest identifies it, and the notes rendered from it."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import polars as pl

from lake.digests import bytes_digest, canonical_json
from lake.errors import NotFound, ObjectNotFound
from lake.repository import CommitId, Repository
from lake.tables import collect, content_digest, table_exists
from lake.tables import version as table_version
from releases.diff import release_diff
from releases.history import Release, current
from releases.objects import artifact_roots, list_objects, objects_of, to_parquet
from releases.policy import GRID_KEY
from releases.verdict import Verdict

_KINDS = {
    "tables": "table",
    "volumes": "volume",
    "meshes": "meshes",
    "skeletons": "skeletons",
    "models": "model",
    "_runs": "run",
    "params": "parameters",
    "_policy": "policy",
    "_lakefs_actions": "gate",
}


def build_release_files(repo: Repository, name: str, verdict: Verdict) -> dict[str, bytes]:
    """Make what `_releases/<name>/` holds: manifest.json, notes.md, objects.parquet; keyed by object key."""
    q = verdict.commit
    parent = current(repo)
    known = objects_of(repo, parent.merge, parent.name) if parent else None
    objects = list_objects(repo, q, known)
    parquet = to_parquet(objects)
    manifest = _manifest(repo, name, verdict, parent, objects)
    notes = render_notes(manifest).encode()
    manifest["files"] = {"objects.parquet": bytes_digest(parquet), "notes.md": bytes_digest(notes)}
    folder = f"_releases/{name}/"
    return {
        folder + "objects.parquet": parquet,
        folder + "notes.md": notes,
        folder + "manifest.json": canonical_json(manifest),
    }


def manifest_digest(text: bytes) -> str:
    """Digest a manifest: sha256 of its canonical JSON without `signature`."""
    data = json.loads(text)
    data.pop("signature", None)
    return bytes_digest(canonical_json(data))


def read_manifest(repo: Repository, name: str, commit: CommitId) -> dict[str, Any]:
    """Read the manifest of release `name` at its commit, or raise `NotFound`."""
    try:
        data: dict[str, Any] = json.loads(repo.get(commit, f"_releases/{name}/manifest.json"))
    except ObjectNotFound as error:
        raise NotFound(
            f"{name!r} has no manifest at {commit[:12]}", fix="`emlake release list` shows releases"
        ) from error
    return data


def _manifest(
    repo: Repository, name: str, verdict: Verdict, parent: Release | None, objects: pl.DataFrame
) -> dict[str, Any]:
    q = verdict.commit
    record = json.loads(repo.get(q, f"_releases/{name}/candidate.json"))
    return {
        "format": 1,
        "identity": {
            "name": name,
            "qc_commit": q,
            "data_commit": verdict.data_commit,
            "archive_commit": record["archive_commit"],
            "ops_commit": repo.resolve("ops"),
            "parent_release": parent.name if parent else None,
            "again": record["again"],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "operations": 0,
        },
        "frame": _frame(repo, q),
        "artifacts": [_artifact(repo, q, root) for root in artifact_roots(objects)],
        "lineage": _lineage(repo, q, objects),
        "qc": verdict.to_json(),
        "diff": release_diff(repo, parent.merge if parent else None, q).to_json(),
        "scope": {"quarantined": []},
        "known_issues": [r.sentence for r in verdict.results if r.outcome in {"waived", "warn"}],
        "access": {"licence": record.get("licence"), "citation": record.get("citation")},
        "rollback": {
            "target": parent.name if parent else None,
            "command": f"emlake release rollback {name}",
            "criteria": "a blocking gate fails on this data, or lineage shows a bad input",
        },
        "written_by": f"emlake {version('emlake')}",
    }


def _frame(repo: Repository, q: CommitId) -> dict[str, Any]:
    grid = json.loads(repo.get(q, GRID_KEY))
    frame = {"axis_order": "zyx", "resolution_nm": grid["voxel_nm_zyx"], "region_voxels": grid["block_zyx"]}
    with repo.snapshot(q) as snapshot:
        try:
            box = snapshot.volume("em").box
        except NotFound:
            return {**frame, "bounds": None}
    return {**frame, "bounds": {"start": list(box.start), "stop": list(box.stop)}}


def _artifact(repo: Repository, q: CommitId, root: dict[str, Any]) -> dict[str, Any]:
    prefix = root["prefix"]
    parts = prefix.strip("/").split("/")
    entry = {"name": parts[-1], "kind": _KINDS.get(parts[0], "object"), "format": "files", **root}
    if entry["kind"] == "table" and prefix.endswith("/"):
        location = repo.location_of(q, prefix)
        if table_exists(location):
            with repo.snapshot(q) as snapshot:
                frame = snapshot.table(parts[1])
                rows = int(frame.select(pl.len()).pipe(collect).item())
                schema = {column: str(kind) for column, kind in frame.collect_schema().items()}
            entry |= {
                "format": "delta",
                "delta_version": table_version(location),
                "rows": rows,
                "schema": schema,
                "content_digest": content_digest(location, parts[1]),
            }
    elif entry["kind"] == "volume":
        files = {s.key.removeprefix(prefix) for s in repo.list(q, prefix, limit=1000)}
        entry["format"] = "precomputed" if "info" in files else "zarr3" if "zarr.json" in files else "files"
    elif entry["kind"] == "model":
        entry["format"] = "safetensors"
    elif entry["kind"] in {"meshes", "skeletons"}:
        entry["format"] = "precomputed"
    return entry


def _lineage(repo: Repository, q: CommitId, objects: pl.DataFrame) -> dict[str, Any]:
    paths = objects["path"].to_list()
    runs = sorted({p.split("/")[1] for p in paths if p.startswith("_runs/")})
    return {
        "runs": [_run(repo, q, run) for run in runs],
        "models": sorted({p.split("/")[1] for p in paths if p.startswith("models/")}),
        "parameter_sets": sorted(
            p.removeprefix("params/").removesuffix(".json") for p in paths if p.startswith("params/")
        ),
        "edits": {"first": None, "last": None},
    }


def _run(repo: Repository, q: CommitId, run: str) -> dict[str, Any]:
    try:
        data = json.loads(repo.get(q, f"_runs/{run}/run.json"))
    except ObjectNotFound:
        return {"run_id": run}
    keep = ("run_id", "pipeline", "merkle_root", "input_commit", "archive_commit", "code_commit")
    return {key: data.get(key) for key in keep}


def render_notes(manifest: dict[str, Any]) -> str:
    """Render release notes from a manifest."""
    identity, qc, diff = manifest["identity"], manifest["qc"], manifest["diff"]
    lines = [
        f"# Release {identity['name']}",
        "",
        f"- made: {identity['created']}",
        f"- parent: {identity['parent_release'] or 'none (first release)'}",
        f"- judged commit: `{identity['qc_commit']}`",
        f"- archive commit: `{identity['archive_commit']}`",
        f"- verdict: **{qc['status']}** against {qc['baseline'] or 'no baseline'}",
        "",
        "## What changed",
        "",
        f"- segments: {diff['roots_created']} created, {diff['roots_retired']} retired, {diff['roots_kept']} kept",
        f"- synapses: {diff['synapses_added']} added, {diff['synapses_removed']} removed, "
        f"{diff['synapses_rebound']} re-bound",
        "",
        "## What it holds",
        "",
        "| artifact | kind | objects | bytes | rows |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{a['prefix']}` | {a['kind']} | {a['objects']} | {a['bytes']} | {a.get('rows', '')} |"
        for a in manifest["artifacts"]
    ]
    issues = manifest["known_issues"]
    lines += ["", "## Known issues", "", *([f"- {issue}" for issue in issues] or ["none"])]
    waived = sorted({r["waiver"] for r in qc["results"] if r["waiver"]})
    if waived:
        lines += ["", "## Waivers", "", *[f"- {waiver}" for waiver in waived]]
    lines += ["", "## How to undo it", "", f"`{manifest['rollback']['command']}`", ""]
    return "\n".join(lines)
