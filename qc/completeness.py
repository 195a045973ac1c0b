"""Is everything there that the runs of a tree say they wrote? Asked of the objects, not of the records' word.

A tree holds a folder for each run that made something in it: `_runs/<run_id>/run.json` says how many blocks each stage
has, `blocks.parquet` has a row for each block and output. A later run of a stage supersedes an earlier one: what counts
is the newest plan of each stage, and for each block the newest row that made it. An output that another stage has
written since belongs to that stage.
"""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from lake.errors import CorruptObject, NotFound, ObjectNotFound
from lake.snapshot import Snapshot

_RUNS = "_runs/"
_INGEST = "ingest"  # lands whole or not at all: nothing of it can be missing
_COLUMNS = ("stage", "block", "origin", "output", "output_parts", "keys")


@dataclass(slots=True)
class _Plan:
    """What the newest runs leave standing.

    Attributes
    ----------
    blocks : mapping of stage to number of blocks
    writers : mapping of output to its stages
    made : mapping of (stage, block, output) to the objects it left, below the output's folder
    """

    blocks: dict[str, int] = field(default_factory=dict)
    writers: dict[str, set[str]] = field(default_factory=dict)
    made: dict[tuple[str, str, str], tuple[str, ...]] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)


def missing_blocks(snapshot: Snapshot) -> int:
    """Count the blocks that were planned and lack a record or an output, and the chunks that volumes lack.

    Raises
    ------
    NotFound
        There is neither a run nor a volume to judge.
    CorruptObject
        A run's folder is not what a run leaves.
    """
    plan, volumes = _plan(snapshot), snapshot.folders("volumes/")
    if not plan.blocks and not volumes:
        raise NotFound("there is neither a run nor a volume", fix="run a pipeline on this branch")
    missing = sum(max(0, planned - len(plan.names[stage])) for stage, planned in plan.blocks.items())
    for name in volumes:
        volume = snapshot.volume(name)
        missing += sum(len(volume.missing_chunks(scale=scale)) for scale in range(len(volume.spec.scales)))
    return missing + _lost(snapshot, plan, set(volumes))


def _lost(snapshot: Snapshot, plan: _Plan, volumes: set[str]) -> int:
    """Count blocks that left something in a table, a folder or a volume that is not there."""
    present: dict[str, set[str]] = {}
    lost = set()
    for (stage, block, output), keys in plan.made.items():
        # A block that a later plan of its stage no longer has left nothing that should still be there.
        if stage not in plan.writers[output] or block not in plan.names[stage]:
            continue
        kind, _, name = output.partition("/")
        if kind == "volumes":
            gone = name not in volumes
        else:
            folder = f"{output}/"
            if output not in present:
                present[output] = {stat.key.removeprefix(folder) for stat in snapshot.list(folder)}
            gone = not present[output].issuperset(keys)
        if gone:
            lost.add((stage, block))
    return len(lost)


def _plan(snapshot: Snapshot) -> _Plan:
    plan = _Plan()
    for run_id, run in _runs(snapshot):
        if run.get("pipeline") == _INGEST:
            continue
        rows = _rows(snapshot, run_id)
        try:
            stages = {stage["stage"]: int(stage["blocks"]) for stage in run["stages"]}
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(f"{_RUNS}{run_id}/run.json", error) from error
        plan.blocks |= stages
        for (stage,), part in rows.group_by(["stage"]):
            plan.names[str(stage)] = set(part["block"])
        plan.names |= {stage: set() for stage in stages if stage not in plan.names}
        for (output,), part in rows.group_by(["output"]):
            plan.writers[str(output)] = set(part["stage"])
        for row in rows.filter(pl.col("origin") != "unchanged").iter_rows(named=True):
            paths = [part["path"] for part in json.loads(row["output_parts"])]
            key = (row["stage"], row["block"], row["output"])
            plan.made[key] = tuple(paths or json.loads(row["keys"]))
    return plan


def _runs(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    """Read `run.json` of each run folder, oldest first."""
    found = []
    for run_id in snapshot.folders(_RUNS):
        key = f"{_RUNS}{run_id}/run.json"
        try:
            run = json.loads(snapshot.get(key))
            found.append((str(run["started"]), run_id, run))
        except (ObjectNotFound, ValueError, KeyError, TypeError) as error:
            raise _corrupt(key, error) from error
    return [(run_id, run) for _, run_id, run in sorted(found, key=lambda item: item[:2])]


def _rows(snapshot: Snapshot, run_id: str) -> pl.DataFrame:
    key = f"{_RUNS}{run_id}/blocks.parquet"
    try:
        return pl.read_parquet(io.BytesIO(snapshot.get(key)), columns=list(_COLUMNS))
    except (ObjectNotFound, pl.exceptions.PolarsError) as error:
        raise _corrupt(key, error) from error


def _corrupt(key: str, error: Exception) -> CorruptObject:
    return CorruptObject(
        f"{key} is not what a complete run leaves: {error!r}", fix="run the pipeline again, or restore the run's folder"
    )
