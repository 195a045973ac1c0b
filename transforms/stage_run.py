"""One stage of a run: plan it, copy or compute what is stale, record each block, close its tables and scales."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from lake import tables
from lake.box import Box
from lake.durable import point
from lake.errors import BadInput
from lake.kv import clear
from lake.location import Location
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume, same_volume
from transforms.dispatch import Failed, Finished, Job, Retry, dispatch
from transforms.executors import Executor
from transforms.inputs import output_name
from transforms.layout import Layout
from transforms.ledger import Record, stage_root
from transforms.pipeline import ResolvedStage
from transforms.planner import BlockPlan, Planner, StagePlan
from transforms.recorder import Recorder
from transforms.reuse import Elsewhere
from transforms.stage import ModelIn, ObjectsIn, TableIn, TableOut, VolumeIn
from transforms.worker import CopyTask, Outcome, ScaleTask, Task, build_scales, compute, copy

_ONCE = Retry(attempts=1)


class Progress(Protocol):
    """Told after each block: how many of the stage's blocks are there, and how many voxels they cover."""

    def __call__(self, stage: str, done: int, total: int, voxels: int) -> None:
        """Show it."""
        ...


class StageRun:
    """Carries out one stage.

    Parameters
    ----------
    models : mapping of digest to folder
        Where workers load models from.
    """

    def __init__(
        self,
        planner: Planner,
        resolved: ResolvedStage,
        executor: Executor,
        recorder: Recorder,
        progress: Progress,
        retry: Retry,
        models: Mapping[str, Path],
        elsewhere: Elsewhere,
    ) -> None:
        self._planner, self._resolved, self._executor = planner, resolved, executor
        self._recorder, self._progress, self._retry = recorder, progress, retry
        self._models, self._elsewhere = models, elsewhere
        self._tree, self._ledger = planner.tree, planner.ledger
        self._began = datetime.now(UTC)
        self._copied: dict[str, Record] = {}

    def go(self) -> dict[str, Failed]:
        """Do all that is to be done; give the blocks that failed for good, by id.

        A fatal error is raised, after the blocks in flight have been recorded.
        """
        plan = self._planner.stage(self._resolved)
        layout = self._planner.layout(plan.stage.name)
        todo = {block.block.id: block for block in plan.todo}
        self._total, self._done = len(plan.blocks), len(plan.blocks) - len(todo)
        self._voxels = sum(p.block.box.voxels for p in plan.blocks if p.state == "unchanged" and p.block.box)
        self._tell(plan)
        failures: dict[str, Failed] = {}
        touched = bool(todo) or any(r.id in self._recorder.made_here for r in self._records(layout))
        if todo:
            self._recorder.ensure_begun()
            self._open_outputs(plan)
            self._copy(plan, todo)
            failures = self._compute(plan, todo)
        if touched and not failures:
            self._close(plan, layout)
        self._recorder.stage(plan.basis, layout, self._ledger, self._began, failures.values(), touched=touched)
        fatal = next((failed for failed in failures.values() if failed.kind == "fatal"), None)
        if fatal is not None:
            raise fatal.error
        return failures

    def _records(self, layout: Layout) -> list[Record]:
        held = self._ledger.of(self._resolved.stage.name)
        return [held[name] for name in layout.blocks if name in held]

    def _tell(self, plan: StagePlan) -> None:
        self._progress(plan.stage.name, self._done, self._total, self._voxels)

    # -- outputs ------------------------------------------------------------------------------------------------------
    def _open_outputs(self, plan: StagePlan) -> None:
        for port in plan.stage.writes():
            self._tree.write(f"{output_name(port)}/")
        for name, spec in plan.specs.items():
            location = self._tree.write(f"volumes/{name}/")
            present = self._tree.spec(name)
            if present is not None and not same_volume(present, spec):
                # Another extent or type: every block is stale (see the planner), none of the old files is wanted.
                clear(location)
            create_volume(location, spec, {"description": f"written by stage {plan.stage.name}"})

    def _places(self, plan: StagePlan) -> dict[str, Location]:
        return {name: self._tree.write(f"{name}/") for name in map(output_name, plan.stage.writes())}

    # -- blocks from elsewhere ----------------------------------------------------------------------------------------
    def _copy(self, plan: StagePlan, todo: dict[str, BlockPlan]) -> None:
        """Take over what another branch holds; what cannot be had stays in `todo`."""
        keys = {p.fingerprint.key: p for p in todo.values() if p.fingerprint is not None}
        found = self._elsewhere.find(plan.stage.name, keys)
        if not found:
            return
        jobs = []
        for key, (record, tree) in found.items():
            block = keys[key].block
            sources = {output.name: tree.pinned(f"{output.name}/") for output in record.outputs}
            self._copied[block.id] = record
            jobs.append(Job(block.id, copy, CopyTask(block, record.outputs, sources, self._places(plan))))
        for done in dispatch(self._executor, jobs, _ONCE):
            if isinstance(done, Finished):
                was = self._copied[done.key]
                self._record(plan, todo.pop(done.key), done, was)

    # -- computing ----------------------------------------------------------------------------------------------------
    def _compute(self, plan: StagePlan, todo: dict[str, BlockPlan]) -> dict[str, Failed]:
        failures: dict[str, Failed] = {}
        places = self._places(plan)
        jobs = (Job(key, compute, self._task(plan, block, places)) for key, block in list(todo.items()))
        for done in dispatch(self._executor, jobs, self._retry):
            if isinstance(done, Failed):
                failures[done.key] = done
                self._recorder.dead(plan.stage.name, todo[done.key].block.name, done)
            else:
                self._record(plan, todo[done.key], done, None)
        return failures

    def _task(self, plan: StagePlan, block: BlockPlan, places: Mapping[str, Location]) -> Task:
        found = block.selection
        if found is None:
            raise BadInput(f"block {block.block.id} has no inputs yet", fix="run the stages before it first")
        volumes, whole, objects, model = {}, {}, {}, None
        for port in plan.stage.reads():
            if isinstance(port, VolumeIn):
                volumes[port.name] = (self._tree.read(f"volumes/{port.name}/"), found.boxes[port.name])
            elif isinstance(port, TableIn) and port.name not in found.rows:
                whole[port.name] = (self._tree.read(f"tables/{port.name}/"), port.columns)
            elif isinstance(port, ObjectsIn):
                name = port.prefix.strip("/")
                keys = sorted(k for r in self._ledger.writers_of(name) if (o := r.output(name)) for k in o.keys)
                objects[f"{name}/"] = (self._tree.read(f"{name}/"), tuple(keys))
            elif isinstance(port, ModelIn):
                model = self._models[str(plan.basis.model)]
        archive = self._planner.archive
        tiles = tuple((*archive.folder_of(row["path"]), row) for row in found.tiles.iter_rows(named=True))
        return Task(
            plan.stage,
            block.block,
            self._recorder.run_id,
            self._planner.scene.grid,
            places,
            volumes,
            whole,
            found.rows,
            tiles,
            objects,
            model,
            plan.basis.frame,
        )

    def _record(self, plan: StagePlan, planned: BlockPlan, done: Finished, was: Record | None) -> None:
        """Write that a block is done, and go on from there."""
        assert planned.fingerprint is not None
        assert planned.selection is not None
        outcome: Outcome = done.value
        block = planned.block
        record = Record(
            stage=block.stage,
            block=block.name,
            box="" if block.box is None else str(block.box),
            fingerprint=planned.fingerprint.key,
            parts=planned.fingerprint.parts,
            outputs=outcome.outputs,
            made_by=self._recorder.run_id if was is None else was.made_by,
            origin="computed" if was is None else "copied",
            region=self._region(block.box),
            voxels=0 if block.box is None else block.box.voxels,
            changed=planned.why if planned.state == "stale" else None,
            attempts=done.attempts,
            seconds=outcome.seconds,
            cpu_s=outcome.cpu_s,
            wasted_s=done.wasted_s,
            peak_bytes=outcome.peak_bytes,
            finished=datetime.now(UTC).isoformat(),
        )
        self._recorder.done(record, planned.selection.refs)
        self._ledger.add(record)
        self._planner.stale.discard(record.id)
        self._done += 1
        self._voxels += record.voxels
        self._tell(plan)

    def _region(self, box: Box | None) -> str | None:
        """Name the region a block lies in; None if it lies in several, or everywhere."""
        if box is None or not box.voxels:
            return None
        grid = self._planner.scene.grid
        first = grid.region_of(box.start)
        z, y, x = (stop - 1 for stop in box.stop)
        return first if grid.region_of((z, y, x)) == first else None

    # -- closing ------------------------------------------------------------------------------------------------------
    def _close(self, plan: StagePlan, layout: Layout) -> None:
        """Let the parts enter their tables and make the coarser scales: both can be done again without harm."""
        records = self._records(layout)
        root = stage_root(records)
        if self._recorder.is_closed(plan.stage.name, root):
            return
        for port in plan.stage.writes():
            if isinstance(port, TableOut):
                output = f"tables/{port.name}"
                parts = [part for r in records if (found := r.output(output)) for part in found.parts]
                tables.commit_parts(self._tree.write(f"{output}/"), port.name, parts, mode="overwrite")
                point("run.table-entered")
        for name, spec in plan.specs.items():
            self._build_scales(name, spec, [r for r in records if r.id in self._recorder.made_here])
        self._recorder.close(plan.stage.name, root)
        self._recorder.session.checkpoint(f"stage {plan.stage.name} of run {self._recorder.run_id}")
        point("run.checkpointed")

    def _build_scales(self, name: str, spec: VolumeSpec, records: Iterable[Record]) -> None:
        if len(spec.scales) < 2:
            return
        place = self._tree.write(f"volumes/{name}/")
        boxes = coarse_cells(spec, [Box.parse(record.box) for record in records if record.box])
        jobs = [Job(str(box), build_scales, ScaleTask(place, box)) for box in boxes]
        for done in dispatch(self._executor, jobs, self._retry):
            if isinstance(done, Failed):
                raise done.error


def coarse_cells(spec: VolumeSpec, changed: Iterable[Box]) -> list[Box]:
    """Give the pieces of a volume, full resolution, whose coarser scales can be made apart from each other.

    A piece covers one chunk (shard) of the coarsest scale and so whole chunks of every scale: no two share a file.
    """
    unit = spec.shard_zyx or spec.chunk_zyx
    factor = spec.scales[-1]
    size = (unit[0] * factor[0], unit[1] * factor[1], unit[2] * factor[2])
    start = spec.box.start
    cells: set[tuple[int, int, int]] = set()
    for box in changed:
        spans = [
            range((a - o) // n, -(-(b - o) // n)) for a, b, o, n in zip(box.start, box.stop, start, size, strict=True)
        ]
        cells |= {(z, y, x) for z in spans[0] for y in spans[1] for x in spans[2]}
    boxes = []
    for cell in sorted(cells):
        low = tuple(o + c * n for o, c, n in zip(start, cell, size, strict=True))
        high = tuple(a + n for a, n in zip(low, size, strict=True))
        boxes.append(Box((low[0], low[1], low[2]), (high[0], high[1], high[2])).clip(spec.box))
    return boxes
