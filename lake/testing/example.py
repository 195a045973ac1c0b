"""A lake of twenty rows whose every answer is known by heart: for tests of SQL and lineage, on any engine.

::

    tiles          t0   t1        t2           (archive; t3 is quarantined and in no lineage)
    align        0_0_0 [t0 t1]  0_0_1 [t1 t2]
    affinity     0_0_0 [align 0_0_0]           0_0_1 [align 0_0_0, align 0_0_1]     model "m1" ("m2" in the second run)
    watershed    0_0_0 [affinity 0_0_0]        0_0_1 [affinity 0_0_1]
    supervoxels  11, 12 in region 0_0_0        21, 22 in region 0_0_1
    segments     A = 11        B = 12 + 21     C = 22 (orphan: touches no face, no synapse)
    synapses     1: A -> B (0_0_0)   2: B -> A (0_0_1)   3: B -> B, not valid   4: A -> B (0_0_1)

The second candidate repeats affinity, watershed and synapses in region 0_0_1 with model "m2": 21 is cut otherwise, so B
differs.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lake import tables
from lake.ids import add_hashes
from lake.ops import append_rows
from lake.repository import CommitId, Repository

RUN1, RUN2 = "run-1", "run-2"
M1, M2 = "1" * 64, "2" * 64
REGIONS = {"0_0_0": 0.0, "0_0_1": 512.0}
_HASH = {11: 1001, 12: 1002, 21: 2001, 22: 2002}
_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Example:
    """Commits and root ids of the example."""

    archive: CommitId
    first: CommitId
    second: CommitId
    a: int
    b: int
    c: int
    b_second: int


def _bounds(region: str) -> dict[str, float]:
    x = REGIONS[region]
    return {"min_x": x, "min_y": 0.0, "min_z": 0.0, "max_x": x + 512.0, "max_y": 512.0, "max_z": 1024.0}


def _points(prefix: str, x: float) -> dict[str, float]:
    return {f"{prefix}_x": x, f"{prefix}_y": 100.0, f"{prefix}_z": 200.0}


def tile_path(name: str) -> str:
    """Name a tile's object."""
    return f"raw/acq/0/{name}.tif"


def _tiles() -> list[dict[str, Any]]:
    return [
        {
            "acquisition": "acq", "section": 0, "tile": name, "path": tile_path(name), "sha256": name * 32, "bytes": 10,
            "shape_y": 4, "shape_x": 4, "dtype": "uint8", "stage_x_nm": 1000.0 * index, "stage_y_nm": 0.0,
            "pixel_nm": 8.0, "status": "quarantined" if name == "t3" else "ok",
            "reason": "blurred" if name == "t3" else None, "ingested": _START, "run_id": "ingest-1",
        }
        for index, name in enumerate(("t0", "t1", "t2", "t3"))
    ]  # fmt: skip


def _block(run: str, stage: str, cell: str, digest: str, model: str | None) -> dict[str, Any]:
    return {
        "run_id": run, "stage": stage, "block": f"{stage}/{cell}", "region": cell, "box": "0:64,0:64,0:64",
        **_bounds(cell), "output": stage, "output_digest": digest, "fingerprint": f"f-{run}-{stage}-{cell}",
        "params_digest": "p", "model_digest": model, "reused": False, "made_by": run, "attempts": 1,
        "exit_class": "ok", "seconds": 1.0, "cpu_s": 1.0, "bytes": 100, "finished": _START,
    }  # fmt: skip


def _input(run: str, block: str, kind: str, name: str, input_run: str | None = None) -> dict[str, Any]:
    return {"run_id": run, "block": block, "kind": kind, "input_id": name, "digest": "d", "input_run_id": input_run}


def _run(run: str, stage: str, model: str | None, branch: str, commit: CommitId) -> dict[str, Any]:
    return {
        "run_id": run, "pipeline": "example", "stage": stage, "version": 1, "params_id": f"{stage}/default/1",
        "params_digest": "p", "model_digest": model, "code_commit": "c", "runtime": "{}", "branch": branch,
        "input_commit": commit, "output_commit": commit, "merkle_root": "r", "state": "complete", "started": _START,
        "finished": _START, "blocks": 2, "computed": 2, "reused": 0, "wall_s": 1.0, "cpu_s": 2.0, "bytes": 100,
        "cost": 0.1, "accepted_voxels": 1000, "wasted_cpu_s": 0.0,
    }  # fmt: skip


def _supervoxel(number: int, voxel_hash: int, run: str) -> dict[str, Any]:
    region = "0_0_0" if number < 20 else "0_0_1"
    return {
        "supervoxel_id": number, "region": region, "block": f"watershed/{region}", "voxels": 10 * number,
        "voxel_hash": voxel_hash, **_points("centroid", REGIONS[region] + 8.0), **_bounds(region), "run_id": run,
    }  # fmt: skip


def _synapse(number: int, region: str, pre: tuple[int, int], post: tuple[int, int], run: str) -> dict[str, Any]:
    x = REGIONS[region] + 10.0 * number
    return {
        "id": number, "region": region, "block": f"synapses/{region}", **_points("pre_pt_position", x),
        "pre_pt_supervoxel_id": pre[0], "pre_pt_root_id": pre[1], **_points("post_pt_position", x + 8.0),
        "post_pt_supervoxel_id": post[0], "post_pt_root_id": post[1], **_points("ctr_pt_position", x + 4.0),
        "size": 5.0, "score": 0.9, "valid": pre[1] != post[1], "run_id": run,
    }  # fmt: skip


def _metric(name: str, scope: str, scope_id: str, value: float) -> dict[str, Any]:
    place = _bounds(scope_id) if scope == "region" else {}
    return {
        "metric": name, "scope": scope, "scope_id": scope_id, **place, "value": value, "unit": "bit",
        "definition": "H(seg given truth)", "status": "ok", "data_commit": "d", "run_id": "qc",
    }  # fmt: skip


def _graph(hashes: dict[int, int], run_of: dict[int, str], vi: float) -> tuple[dict[str, list[dict[str, Any]]], int]:
    a, b, c = hashes[11], add_hashes_of(hashes, 12, 21), hashes[22]
    root = {11: a, 12: b, 21: b, 22: c}
    run = run_of[21]
    members = {a: [11], b: [12, 21], c: [22]}
    segments = [
        {
            "root_id": number, "voxels": sum(10 * sv for sv in svs), "supervoxels": len(svs),
            **_points("centroid", 300.0), **_bounds("0_0_0"), "boundary_faces": 0 if number == c else 2, "run_id": run,
        }
        for number, svs in members.items()
    ]  # fmt: skip
    synapses = [
        _synapse(1, "0_0_0", (11, a), (12, b), run_of[11]),
        _synapse(2, "0_0_1", (21, b), (11, a), run),
        _synapse(3, "0_0_1", (21, b), (21, b), run),
        _synapse(4, "0_0_1", (11, a), (21, b), run),
    ]
    rows = {
        "supervoxels": [_supervoxel(sv, hashes[sv], run_of[sv]) for sv in hashes],
        "agglomeration": [{"supervoxel_id": sv, "root_id": root[sv], "run_id": run} for sv in hashes],
        "segments": segments,
        "synapses": synapses,
        "qc_metrics": [
            _metric("vi_split", "global", "", vi / 2),
            _metric("vi_split", "region", "0_0_0", 0.1),
            _metric("vi_split", "region", "0_0_1", vi),
        ],
    }
    return rows, b


def add_hashes_of(hashes: dict[int, int], *supervoxels: int) -> int:
    """Give the root id of a set of supervoxels of the example."""
    import numpy as np

    return add_hashes(np.array([hashes[sv] for sv in supervoxels]))


def _write(repo: Repository, branch: str, run: str, rows: dict[str, list[dict[str, Any]]]) -> CommitId:
    with repo.session(branch, owner="example") as session:
        for name, table in rows.items():
            tables.overwrite(session.workspace(f"tables/{name}/"), name, table)
        session.put(f"_runs/{run}/run.json", b"{}")
        return session.commit(f"run {run}", {"run": run})


def write_example(repo: Repository) -> Example:
    """Write the example into a new repository: branches archive, ops, cand-r1, cand-r2; main stays empty."""
    for branch in ("archive", "ops"):
        repo.create_branch(branch, "main")
    repo.create_branch("cand-r1", "main")
    archive = append_rows(repo, "archive", {"tiles": _tiles()}, message="ingest acq")
    hashes = dict(_HASH)
    rows, b = _graph(hashes, dict.fromkeys(hashes, RUN1), 0.2)
    first = _write(repo, "cand-r1", RUN1, rows)
    repo.create_branch("cand-r2", "cand-r1")
    cut = {**hashes, 21: 2999}
    rows, b_second = _graph(cut, {11: RUN1, 12: RUN1, 21: RUN2, 22: RUN2}, 1.5)
    second = _write(repo, "cand-r2", RUN2, rows)
    append_rows(repo, "ops", _operations(first, second), message="what was done")
    return Example(archive, first, second, hashes[11], b, hashes[22], b_second)


def _operations(first: CommitId, second: CommitId) -> dict[str, list[dict[str, Any]]]:
    blocks, inputs = [], []
    for stage, reads in (("align", None), ("affinity", "align"), ("watershed", "affinity"), ("synapses", "affinity")):
        for cell in REGIONS:
            model = M1 if stage == "affinity" else None
            blocks.append(_block(RUN1, stage, cell, f"{stage}-{cell}-1", model))
            if reads:
                inputs.append(_input(RUN1, f"{stage}/{cell}", "block", f"{reads}/{cell}", RUN1))
    inputs.append(_input(RUN1, "affinity/0_0_1", "block", "align/0_0_0", RUN1))
    for cell, names in (("0_0_0", ("t0", "t1")), ("0_0_1", ("t1", "t2"))):
        inputs += [_input(RUN1, f"align/{cell}", "tile", tile_path(name)) for name in names]
    blocks.append({**_block(RUN2, "align", "0_0_1", "align-0_0_1-1", None), "reused": True, "made_by": RUN1})
    for stage, reads, run in (
        ("affinity", "align", RUN1),
        ("watershed", "affinity", RUN2),
        ("synapses", "affinity", RUN2),
    ):
        blocks.append(_block(RUN2, stage, "0_0_1", f"{stage}-2", M2 if stage == "affinity" else None))
        inputs.append(_input(RUN2, f"{stage}/0_0_1", "block", f"{reads}/0_0_1", run))
    release = {
        "data_commit": "d", "manifest_digest": "x", "verdict": "pass", "operations": 0, "user": "me", "qc_commit": "q"
    }  # fmt: skip
    return {
        "runs": [_run(RUN1, "affinity", M1, "cand-r1", first), _run(RUN2, "affinity", M2, "cand-r2", second)],
        "blocks": blocks,
        "block_inputs": inputs,
        "releases": [
            {**release, "release": "r1", "commit": first, "run_ids": [RUN1], "model_digests": [M1], "ts": _START},
            {
                **release, "release": "r2", "commit": second, "run_ids": [RUN1, RUN2], "model_digests": [M1, M2],
                "parent": "r1", "verdict": "waived", "ts": _START.replace(day=2),
            },
        ],
        "decisions": [
            {
                "decision_id": "d1", "kind": "rollback", "release": "r2", "target": "r1", "criteria": "{}",
                "reason": "split errors in 0_0_1", "ts": _START.replace(day=3), "user": "me",
            }
        ],
    }  # fmt: skip
