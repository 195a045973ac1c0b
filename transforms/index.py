"""Rows on `ops` about runs: an index over all branches, made from the runs' own folders, so it can be made again.

A run is in the index if table `runs` has it as complete. Whoever runs next adds what a crash or an unreachable `ops`
left out (`reindex`).
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import polars as pl

from lake import tables
from lake.box import Box
from lake.errors import ConflictError, ObjectNotFound, StorageError
from lake.repository import CommitId, Repository
from lake.rows import Rows
from transforms.ledger import RUNS, Record, read_blocks, read_inputs, read_json, run_folder
from transforms.tree import Tree

OPS = "ops"
_log = logging.getLogger(__name__)


def index_run(repo: Repository, run_id: str, commit: CommitId, *, wait_s: float = 60.0) -> bool:
    """Add a run that `commit` holds to the index; True if it is there afterwards.

    False if `ops` cannot be written now (somebody else holds it, the storage fails) or does not exist: the run itself
    is whole, and the next command adds its rows.
    """
    tree = Tree(repo, commit)
    try:
        run = read_json(tree, f"{run_folder(run_id)}run.json")
        if run is None or OPS not in repo.branches(OPS):
            return False
        records = read_blocks(tree.get(f"{run_folder(run_id)}blocks.parquet"))
        inputs = read_inputs(tree.get(f"{run_folder(run_id)}inputs.parquet"))
        rows = {
            "runs": run_rows(run, commit),
            "blocks": block_rows(run, records),
            "block_inputs": inputs.with_columns(run_id=pl.lit(run_id)),
        }
        _append(repo, run_id, rows, wait_s)
    except (ConflictError, StorageError, ObjectNotFound) as error:
        _log.warning("run %s is not in the index yet: %s", run_id, error)
        return False
    return True


def index_failure(repo: Repository, run: Mapping[str, Any], *, wait_s: float = 10.0) -> bool:
    """Add the rows of a run that failed: what was spent on it counts, though it made no commit."""
    try:
        if OPS not in repo.branches(OPS):
            return False
        with repo.session(OPS, owner=f"run {run['run_id']}", wait_s=wait_s, resume=False) as session:
            tables.append(session.workspace("tables/runs/"), "runs", run_rows(run, None))
            session.commit(f"run {run['run_id']} failed", {"run_id": str(run["run_id"])})
    except (ConflictError, StorageError) as error:
        _log.warning("the failure of run %s is not in the index: %s", run["run_id"], error)
        return False
    return True


def reindex(repo: Repository) -> list[str]:
    """Add every complete run of any branch that the index lacks; give their ids."""
    head = repo.branches(OPS).get(OPS)
    if head is None:
        return []
    known = _indexed(repo, head)
    added = []
    for branch, commit in repo.branches().items():
        if branch == OPS or branch.startswith("session-"):
            continue
        for run_id in _runs_at(repo, commit):
            if run_id in known:
                continue
            made = _commit_of(repo, commit, run_id)
            if made is not None and index_run(repo, run_id, made):
                added.append(run_id)
            known.add(run_id)
    return added


def _append(repo: Repository, run_id: str, rows: Mapping[str, Rows], wait_s: float) -> None:
    with repo.session(OPS, owner=f"run {run_id}", wait_s=wait_s, resume=False) as session:
        # Looked up under the lock: two processes may be adding the same run.
        if run_id in _indexed(repo, session.base):
            return
        for name, table in rows.items():
            if len(table):
                tables.append(session.workspace(f"tables/{name}/"), name, table)
        session.commit(f"index of run {run_id}", {"run_id": run_id})


def _indexed(repo: Repository, head: CommitId) -> set[str]:
    location = repo.location_of(head, "tables/runs/")
    if not tables.table_exists(location):
        return set()
    complete = (
        tables.read(location).filter(pl.col("state") == "complete").select("run_id").unique().pipe(tables.collect)
    )
    return set(complete["run_id"])


def _runs_at(repo: Repository, commit: CommitId) -> list[str]:
    keys = (stat.key.removeprefix(RUNS) for stat in repo.list(commit, RUNS))
    return [key.removesuffix("/run.json") for key in keys if key.endswith("/run.json")]


def _commit_of(repo: Repository, head: CommitId, run_id: str) -> CommitId | None:
    """Find the commit by which a run landed."""
    return next((c.id for c in repo.log(head) if c.metadata.get("run_id") == run_id), None)


# -- rows -------------------------------------------------------------------------------------------------------------
def run_rows(run: Mapping[str, Any], commit: CommitId | None) -> list[dict[str, Any]]:
    """Make a row per stage of a run from its `run.json`."""
    shared = {
        "run_id": run["run_id"], "pipeline": run["pipeline"], "code_commit": run["code"], "branch": run["branch"],
        "input_commit": run["input_commit"], "archive_commit": run["archive_commit"], "output_commit": commit,
        "state": run["state"], "reason": run["reason"],
    }  # fmt: skip
    names = (
        "stage", "version", "params_id", "params_digest", "model_digest", "runtime", "merkle_root", "blocks",
        "computed", "reused", "wall_s", "cpu_s", "bytes", "cost", "accepted_voxels", "wasted_cpu_s",
    )  # fmt: skip
    times = ("started", "finished")
    return [
        {**shared, **{n: stage[n] for n in names}, **{n: _moment(stage[n]) for n in times}} for stage in run["stages"]
    ]


def block_rows(run: Mapping[str, Any], records: Iterable[Record]) -> list[dict[str, Any]]:
    """Make a row per block and output."""
    voxel_nm = {stage["stage"]: stage["voxel_nm"] for stage in run["stages"]}
    rows = []
    for record in records:
        box = _nm(Box.parse(record.box), voxel_nm[record.stage]) if record.box else {}
        shared = {
            "run_id": run["run_id"], "stage": record.stage, "block": record.id, "region": record.region,
            "box": record.box, **box, "fingerprint": record.fingerprint, "params_digest": record.parts["params"],
            "model_digest": record.parts["model"], "changed": record.changed, "reused": record.origin != "computed",
            "made_by": record.made_by, "attempts": record.attempts, "exit_class": "ok", "seconds": record.seconds,
            "cpu_s": record.cpu_s, "finished": _moment(record.finished),
        }  # fmt: skip
        rows += [
            {**shared, "output": out.name, "output_digest": out.digest, "bytes": out.bytes} for out in record.outputs
        ]
    return rows


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _nm(box: Box, voxel_nm: Iterable[float]) -> dict[str, float]:
    sizes = list(voxel_nm)
    ends = (("min", box.start), ("max", box.stop))
    return {f"{end}_{axis}": at[2 - n] * sizes[2 - n] for end, at in ends for n, axis in enumerate("xyz")}
