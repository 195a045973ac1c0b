"""A repository ready for releases, and candidates with small true-to-form data whose quality a test chooses."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lake.box import Box
from lake.ids import region_name, root_ids, supervoxel_id, voxel_hashes
from lake.repository import CommitId, Repository
from lake.tables import overwrite
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume
from releases.candidates import candidate
from releases.policy import read_policy
from releases.publish import publish
from releases.setup import init

GOOD = {
    "tile_integrity": 1.0,
    "stitch_residual_p95": 0.5,
    "coverage_min": 1.0,
    "alignment_folds": 0.0,
    "vi_split": 0.3,
    "vi_merge": 0.1,
    "synapse_f1": 0.9,
    "synapse_binding": 1.0,
    "graph_violations": 0.0,
    "missing_blocks": 0.0,
}
REGIONS = ("0_0_0", "0_0_1")


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return init(str(tmp_path / "repo"), block_zyx=(4, 4, 4))


def segment_graph(session, merge: bool) -> None:
    """Two blocks of two supervoxels; the two in the middle are one root, and with `merge` all four."""
    frames = []
    for x in (0, 1):
        labels = np.ones((4, 4, 4), np.int64)
        labels[:, 2:] = 2
        box = Box((0, 0, 4 * x), (4, 4, 4 * x + 4))
        ids = supervoxel_id((0, 0, x), np.arange(1, 3))
        for n, sv in enumerate(ids.tolist()):
            frames.append(
                {
                    "supervoxel_id": sv,
                    "region": region_name((0, 0, x)),
                    "block": f"watershed/0_0_{x}",
                    "voxels": 32,
                    "voxel_hash": int(voxel_hashes(labels, box, 2)[n + 1]),
                    "centroid_x": 0.0,
                    "centroid_y": 0.0,
                    "centroid_z": 0.0,
                    "min_x": 0.0,
                    "min_y": 0.0,
                    "min_z": 0.0,
                    "max_x": 1.0,
                    "max_y": 1.0,
                    "max_z": 1.0,
                    "run_id": "run",
                }
            )
    supervoxels = pl.DataFrame(frames)
    clusters = np.array([0, 0, 0, 0] if merge else [0, 1, 0, 1])
    hashes = supervoxels["voxel_hash"].to_numpy()
    roots = root_ids(supervoxels["supervoxel_id"].to_numpy(), clusters, hashes)
    agglomeration = supervoxels.select("supervoxel_id").with_columns(root_id=pl.Series(roots), run_id=pl.lit("run"))
    segments = (
        supervoxels.with_columns(root_id=pl.Series(roots))
        .group_by("root_id")
        .agg(
            pl.col("voxels").sum(),
            supervoxels=pl.len().cast(pl.Int64),
            **{c: pl.col(c).min() for c in ("centroid_x", "centroid_y", "centroid_z", "min_x", "min_y", "min_z")},
            **{c: pl.col(c).max() for c in ("max_x", "max_y", "max_z")},
        )
        .with_columns(run_id=pl.lit("run"))
        .sort("root_id")
    )
    for name, rows in (("supervoxels", supervoxels), ("agglomeration", agglomeration), ("segments", segments)):
        overwrite(session.workspace(f"tables/{name}/"), name, rows)


def em_volume(session, name: str) -> None:
    """A real 4 x 4 x 8 image, another one for every name."""
    spec = VolumeSpec("em", "image", "uint8", (4, 4, 8), (16.0, 8.0, 8.0), chunk_zyx=(4, 4, 8))
    volume = create_volume(session.workspace("volumes/em/"), spec)
    grey = np.full((4, 4, 8), sum(name.encode()) % 256, np.uint8)
    volume.write(volume.box, grey)


def qc_rows(
    repo: Repository, data_commit: str, values: Mapping[str, float | None]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows for every gate of the policy: `values` by metric, or by `metric@region`."""
    metrics = []
    for gate in {(g.metric, g.scope): g for g in read_policy(repo, "main").gate}.values():
        for place in REGIONS if gate.scope == "region" else ("",):
            value = values.get(f"{gate.metric}@{place}", values.get(gate.metric, GOOD[gate.metric]))
            metrics.append(
                {
                    "metric": gate.metric,
                    "scope": gate.scope,
                    "scope_id": place,
                    "value": value,
                    "unit": gate.unit,
                    "definition": "given by the test",
                    "status": "unknown" if value is None else "ok",
                    "reason": "it could not be computed" if value is None else None,
                    "data_commit": data_commit,
                    "run_id": "qc",
                }
            )
    results = [
        {
            "suite": suite,
            "expectation": "all is well",
            "scope": "global",
            "scope_id": "",
            "table_name": "none",
            "observed": "1",
            "expected": "1",
            "passed": True,
            "severity": "critical",
            "data_commit": data_commit,
            "run_id": "qc",
        }
        for suite in read_policy(repo, "main").suites.required
    ]
    return pl.DataFrame(metrics), pl.DataFrame(results)


@pytest.fixture
def judge_with(repo: Repository) -> Callable[..., CommitId]:
    """Commit QC tables with chosen values on top of a candidate's data, as `emlake qc run` does."""

    def run(name: str, on: Repository = repo, **values: float | None) -> CommitId:
        branch = f"cand-{name}"
        head = on.resolve(branch)
        metrics, results = qc_rows(on, head, {k.replace("__", "@"): v for k, v in values.items()})
        with on.session(branch, owner="qc") as session:
            overwrite(session.workspace("tables/qc_metrics/"), "qc_metrics", metrics)
            overwrite(session.workspace("tables/qc_results/"), "qc_results", results)
            return session.commit(f"QC of {name}", {"qc_of": head})

    return run


@pytest.fixture
def make(repo: Repository, judge_with) -> Callable[..., CommitId]:
    """Make a candidate with data and QC, ready to be published."""

    def build(name: str, *, merge: bool = False, again: str | None = None, data: bool = True, **values: float | None):
        candidate(repo, name, again=again)
        if data:
            with repo.session(f"cand-{name}", owner="run") as session:
                em_volume(session, name)
                segment_graph(session, merge)
                session.commit(f"data of {name}")
        return judge_with(name, **values)

    return build


@pytest.fixture
def side_by_side(repo: Repository, make, judge_with) -> None:
    """Candidates `a`, which is published, and `b`, judged beside it: main holds what `b` lacks."""
    make("a", data=False)
    candidate(repo, "b")
    with repo.session("cand-b", owner="run") as session:
        session.put("params/watershed/default/1.json", b"{}")
        session.commit("another parameter set")
    judge_with("b")
    publish(repo, "a", user="ann")
