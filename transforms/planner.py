"""What a run would do, and why, before it does anything: a plan is data.

For each block: its inputs, hence its fingerprint, hence whether the tree already holds what it would compute::

    unchanged   the newest record of the block has this fingerprint and its outputs are there
    stale       it has another one (`why` says which part), or an output is missing
    new         it was never computed on this branch
    depends     an input is still to be computed; if that comes out as before, this block is unchanged after all

The last is honest rather than clever: a fingerprint is over what inputs *are*, and nobody knows before they are made.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from lake.box import Box
from lake.errors import BadInput
from lake.repository import CommitId, Repository
from lake.volume_spec import VolumeSpec
from lake.volumes import same_volume
from transforms.fingerprint import Basis, Fingerprint, basis, changed, fingerprint
from transforms.inputs import Finder, Selection, Waiting, output_name
from transforms.layout import Layout
from transforms.ledger import Ledger, Record, state_of
from transforms.model_store import as_resolved, find_models
from transforms.pipeline import Pipeline, ResolvedStage, resolve
from transforms.stage import Block, Grid, Scene, Stage, TilesIn, VolumeIn, VolumeOut
from transforms.tree import Archive, Tree

State = Literal["unchanged", "stale", "new", "depends"]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One block: its state, the reason, and what it would cost.

    Parameters
    ----------
    bytes, memory : int
        Bytes it would write, and an estimate of what its worker needs.
    """

    block: Block
    state: State
    why: str
    bytes: int
    memory: int
    fingerprint: Fingerprint | None = None
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The blocks of one stage."""

    resolved: ResolvedStage
    basis: Basis
    blocks: tuple[BlockPlan, ...]
    specs: Mapping[str, VolumeSpec]

    @property
    def stage(self) -> Stage:
        """The configured stage."""
        return self.resolved.stage

    @property
    def todo(self) -> list[BlockPlan]:
        """Blocks that are to be computed, as far as is known."""
        return [plan for plan in self.blocks if plan.state != "unchanged"]

    def counts(self) -> dict[str, int]:
        """Count blocks by state."""
        return dict(Counter(plan.state for plan in self.blocks))

    def reasons(self) -> dict[str, int]:
        """Count blocks to be computed by reason."""
        return dict(Counter(plan.why for plan in self.todo))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of a pipeline on a branch would do."""

    pipeline: str
    branch: str
    commit: CommitId
    stages: tuple[StagePlan, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether the tree already holds everything."""
        return not any(stage.todo for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Give the plan for `--json`: counts, reasons, bytes, memory by stage, and every block to be computed."""
        return {
            "pipeline": self.pipeline,
            "branch": self.branch,
            "commit": self.commit,
            "stages": [
                {
                    "stage": plan.stage.name,
                    "version": plan.basis.version,
                    "params": plan.basis.params_id,
                    "model": plan.basis.model,
                    "blocks": len(plan.blocks),
                    **plan.counts(),
                    "reasons": plan.reasons(),
                    "bytes": sum(block.bytes for block in plan.todo),
                    "memory": max((block.memory for block in plan.todo), default=0),
                    "todo": [{"block": b.block.id, "state": b.state, "why": b.why} for b in plan.todo],
                }
                for plan in self.stages
            ],
        }

    def explain(self) -> str:
        """Write the plan for a person, a line per stage and reason."""
        lines = [f"{self.pipeline} on {self.branch} at {self.commit[:12]}"]
        for plan in self.stages:
            counts = plan.counts()
            told = ", ".join(f"{counts[s]} {s}" for s in ("unchanged", "stale", "new", "depends") if s in counts)
            size = sum(block.bytes for block in plan.todo)
            need = max((block.memory for block in plan.todo), default=0)
            cost = f"; writes {_size(size)}, about {_size(need)} of memory a worker" if size else ""
            lines.append(f"  {plan.stage.name}: {told}{cost}")
            lines += [f"      {count} x {why}" for why, count in sorted(plan.reasons().items())]
        if self.nothing_to_do:
            lines.append("  nothing to do")
        return "\n".join(lines)


class Planner:
    """Plans one stage after another over a tree and a ledger; a run shares both with it and keeps them up to date.

    Parameters
    ----------
    runs : mapping
        `run.json` of the runs in the tree, for what their parameters were.
    """

    def __init__(
        self,
        tree: Tree,
        archive: Archive,
        stages: Sequence[ResolvedStage],
        ledger: Ledger,
        runs: Mapping[str, Mapping[str, Any]],
        grid: Grid,
    ) -> None:
        self.tree, self.archive, self.ledger, self._runs = tree, archive, ledger, runs
        self.stale: set[str] = set()
        self._layouts: dict[str, Layout] = {}
        self._writers: dict[str, str] = {}
        volumes = _volumes_read(tree, stages)
        reads_tiles = any(isinstance(port, TilesIn) for r in stages for port in r.stage.reads())
        self.scene = Scene(grid, volumes, archive.tiles if reads_tiles else pl.DataFrame())
        self._volumes = volumes
        self._finder = Finder(tree, ledger, self.scene, self._writers, self._layouts, self.stale)

    def stage(self, resolved: ResolvedStage) -> StagePlan:
        """Plan one stage; those before it in the pipeline must have been planned."""
        stage = resolved.stage
        base = basis(resolved, self.scene)
        specs = stage.volumes(self.scene)
        layout = Layout.of(stage, self.scene)
        _check_chunks(stage, specs, layout)
        presence = _Presence(self.tree, specs)
        blocks = []
        self._finder.forget()
        for block in layout.blocks.values():
            plan = self._block(stage, base, block, specs, presence)
            if plan.state != "unchanged":
                self.stale.add(block.id)
            blocks.append(plan)
        self._finder.forget()
        self._layouts[stage.name] = layout
        self._volumes.update(specs)
        for port in stage.writes():
            name = output_name(port)
            if self._writers.setdefault(name, stage.name) != stage.name:
                raise BadInput(
                    f"stages {self._writers[name]!r} and {stage.name!r} both write {name}", fix="leave one of them out"
                )
        return StagePlan(resolved, base, tuple(blocks), specs)

    def layout(self, stage: str) -> Layout:
        """Give the blocks of a stage that was planned."""
        return self._layouts[stage]

    def _block(
        self, stage: Stage, base: Basis, block: Block, specs: Mapping[str, VolumeSpec], presence: "_Presence"
    ) -> BlockPlan:
        found = self._finder.select(stage, block)
        size, memory = _estimate(stage, block, specs, self.scene)
        if isinstance(found, Waiting):
            return BlockPlan(block, "depends", f"waits for {found.for_.split('/')[0]}", size, memory)
        key = fingerprint(base, "" if block.box is None else str(block.box), found.refs)
        record = self.ledger.get(stage.name, block.name)
        if record is None:
            return BlockPlan(block, "new", "never computed here", size, memory, key, found)
        if record.fingerprint != key.key:
            why = changed(record.parts, key.parts, self._params_of(record), base)
            return BlockPlan(block, "stale", why, size, memory, key, found)
        missing = presence.missing(record)
        if missing:
            return BlockPlan(block, "stale", missing, size, memory, key, found)
        return BlockPlan(block, "unchanged", "", size, memory, key)

    def _params_of(self, record: Record) -> Mapping[str, Any]:
        run = self._runs.get(record.made_by, {})
        for stage in run.get("stages", ()):
            if stage["stage"] == record.stage:
                params: Mapping[str, Any] = stage["params"]
                return params
        return {}


class _Presence:
    """Whether the outputs that a record speaks of are in the tree."""

    def __init__(self, tree: Tree, specs: Mapping[str, VolumeSpec]) -> None:
        self._tree, self._specs = tree, specs
        self._volumes = {name: tree.volume(name) for name in specs}
        self._missing = {
            name: {str(cell) for cell in volume.missing_chunks()}
            for name, volume in self._volumes.items()
            if volume is not None
        }
        self._files: dict[str, frozenset[str]] = {}

    def missing(self, record: Record) -> str:
        """Say which output is not there as the record has it, or give ""."""
        for output in record.outputs:
            kind, _, name = output.name.partition("/")
            unit = f"{output.name}/"
            if kind == "volumes":
                volume = self._volumes.get(name)
                if volume is None:
                    return f"missing: {output.name}"
                if not same_volume(volume.spec, self._specs[name]):
                    return f"{output.name} has another extent or type"
                if self._missing[name]:
                    box = Box.parse(record.box)
                    if any(Box.parse(cell).meets(box) for cell in self._missing[name]):
                        return f"missing: chunks of {output.name}"
                continue
            if unit not in self._files:
                self._files[unit] = self._tree.written_files(unit)
            wanted = [part.path for part in output.parts] or list(output.keys)
            if not self._files[unit].issuperset(wanted):
                return f"missing: {output.name}"
        return ""


def _volumes_read(tree: Tree, stages: Sequence[ResolvedStage]) -> dict[str, VolumeSpec]:
    """Specify the volumes that the pipeline reads and does not write."""
    written = {port.name for r in stages for port in r.stage.writes() if isinstance(port, VolumeOut)}
    wanted = {port.name for r in stages for port in r.stage.reads() if isinstance(port, VolumeIn)} - written
    found = {name: tree.spec(name) for name in sorted(wanted)}
    return {name: spec for name, spec in found.items() if spec is not None}


def _check_chunks(stage: Stage, specs: Mapping[str, VolumeSpec], layout: Layout) -> None:
    """Refuse blocks that would share a chunk or shard: two workers would write one file."""
    for name, spec in specs.items():
        unit = spec.shard_zyx or spec.chunk_zyx
        for block in layout.blocks.values():
            if block.box is None:
                raise BadInput(f"block {block.id} has no box to write volume {name!r} over", fix="use a grid of blocks")
            for start, stop, low, high, n in zip(
                block.box.start, block.box.stop, spec.box.start, spec.box.stop, unit, strict=True
            ):
                if (start - low) % n or ((stop - low) % n and stop != high):
                    raise BadInput(
                        f"block {block.id} ({block.box}) cuts chunks {unit} of volume {name!r}, which starts at "
                        f"{spec.box.start}",
                        fix="choose blocks of whole chunks, and a volume offset that is a multiple of the block",
                    )


def _estimate(stage: Stage, block: Block, specs: Mapping[str, VolumeSpec], scene: Scene) -> tuple[int, int]:
    """Estimate bytes written and memory needed; tables are small beside voxels and not counted."""
    if block.box is None:
        return 0, 0
    written = sum(_nbytes(spec, block.box.voxels) for spec in specs.values())
    read = 0
    for port in stage.reads():
        if isinstance(port, VolumeIn) and port.name in scene.volumes:
            grown = [s + a + b for s, a, b in zip(block.box.shape, port.low, port.high, strict=True)]
            read += _nbytes(scene.volumes[port.name], int(np.prod(grown)))
    return written, int((read + written) * stage.memory_factor())


def _size(count: int) -> str:
    """Write a number of bytes for a person."""
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e3:.0f} kB"


def _nbytes(spec: VolumeSpec, voxels: int) -> int:
    return voxels * spec.channels * int(np.dtype(spec.dtype).itemsize)


def plan(repo: Repository, branch: str, pipeline: Pipeline) -> Plan:
    """Say what a run of `pipeline` on `branch` would do; changes nothing."""
    commit = repo.resolve(f"{branch}@")
    tree = Tree(repo, commit)
    stages = resolve(pipeline, repo, commit, as_resolved(find_models(pipeline, tree)))
    ledger, runs = state_of(tree)
    planner = Planner(tree, Archive(repo, tree), stages, ledger, runs, grid_of(pipeline, tree))
    return Plan(pipeline.name, branch, commit, tuple(planner.stage(stage) for stage in stages))


def grid_of(pipeline: Pipeline, tree: Tree) -> Grid:
    """Give the repository's grid; `BadInput` if the pipeline was written for another one."""
    grid = tree.grid()
    if pipeline.block is not None and pipeline.block != grid.block:
        raise BadInput(
            f"pipeline {pipeline.name!r} is for blocks of {pipeline.block}, the repository's grid has {grid.block}",
            fix="use the repository's block_zyx: ids and regions depend on it",
        )
    return grid
