"""What a worker does with one block: read, compute, write, digest. Nothing here decides; the runner does.

Everything in a task is plain data and places (`Location`), so that any process can carry it out. Outputs go straight
from the worker to the workspace, each file under a temporary name first, so a worker that is killed leaves no half
file; that a block is *done* is said by the runner's record, which comes last.
"""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake import reach, tables
from lake.box import Box
from lake.digests import array_digest, bytes_digest, json_digest
from lake.durable import point
from lake.errors import BadInput, CorruptObject, NotFound
from lake.kv import open_kv, storage_error
from lake.location import Location
from lake.rows import conform, empty_rows, ids_below_2_63, rows_digest
from lake.schemas import table_spec
from lake.volumes import open_volume
from transforms.ledger import Output
from transforms.stage import Block, Grid, Inputs, Outputs, Stage, TableOut, TileFile, VolumeOut, Voxels


@dataclass(frozen=True, slots=True)
class Task:
    """One block to compute.

    Parameters
    ----------
    volumes : name -> (where, what to read)
    whole_tables : name -> (where, columns; empty = all that are not volatile)
    tables : name -> rows that were selected already
    tiles : (folder, file name, row of table `tiles`)
    objects : prefix -> (where, keys)
    model : folder of the model, or None
    writes : output name (`volumes/em`) -> where
    """

    stage: Stage
    block: Block
    run_id: str
    grid: Grid
    writes: Mapping[str, Location]
    volumes: Mapping[str, tuple[Location, Box]] = field(default_factory=dict)
    whole_tables: Mapping[str, tuple[Location, tuple[str, ...]]] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    tiles: tuple[tuple[Location, str, Mapping[str, Any]], ...] = ()
    objects: Mapping[str, tuple[Location, tuple[str, ...]]] = field(default_factory=dict)
    model: Path | None = None
    frame: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CopyTask:
    """Outputs of a block that another commit holds: copied if they still are what was recorded."""

    block: Block
    outputs: tuple[Output, ...]
    sources: Mapping[str, Location]
    writes: Mapping[str, Location]


@dataclass(frozen=True, slots=True)
class CheckTask:
    """Outputs of a block that was recorded as done before a crash, to be looked at again."""

    block: Block
    outputs: tuple[Output, ...]
    places: Mapping[str, Location]


@dataclass(frozen=True, slots=True)
class ScaleTask:
    """A piece of a volume whose coarser scales are to be made again."""

    place: Location
    box: Box


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker tells: outputs with their digests, and what they cost.

    `peak_bytes` is the most memory the worker process has ever held.
    """

    outputs: tuple[Output, ...]
    seconds: float
    cpu_s: float
    peak_bytes: int


def compute(task: Task) -> Outcome:
    """Compute one block and write its outputs."""
    began, cpu = time.perf_counter(), time.process_time()
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    made = task.stage.run_block(task.block, _read(task))
    point("block.computed")
    outputs = tuple(_write(task, made))
    point("block.written")
    return Outcome(outputs, time.perf_counter() - began, time.process_time() - cpu, peak_bytes())


def peak_bytes() -> int:
    """Give the most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- reading --------------------------------------------------------------------------------------------------------
def _read(task: Task) -> Inputs:
    voxels, specs = {}, {}
    for name, (location, box) in task.volumes.items():
        volume = open_volume(location)
        voxels[name] = Voxels(volume.read(box), box, volume.box, volume.spec.voxel_nm_zyx)
        specs[name] = volume.spec
    frames = dict(task.tables)
    for name, (location, columns) in task.whole_tables.items():
        frames[name] = _rows(location, name, columns)
    tiles = tuple(TileFile(str(row["path"]), row, _bytes(where, name)) for where, name, row in task.tiles)
    objects = _Lazy({f"{p}{key}": (w, key) for p, (w, keys) in task.objects.items() for key in keys})
    model = None if task.model is None else _model(task.model)
    return Inputs(voxels, frames, tiles, objects, model, task.grid, specs, task.frame)


@lru_cache(maxsize=2)
def _model(folder: Path) -> Any:
    # Heavy: torch, 1.3 s; paid once a worker.
    from transforms.models.inference import load_model

    return load_model(folder)


def _rows(location: Location, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    spec = table_spec(name)
    wanted = columns or tuple(n for n in spec.names if n not in spec.volatile)
    if not tables.table_exists(location):
        return pl.DataFrame(pl.from_arrow(empty_rows(spec))).select(wanted)
    keys = [key for key in spec.sort_key if key in wanted]
    return tables.read(location).select(wanted).sort(keys or list(wanted)).pipe(tables.collect)


def _bytes(location: Location, key: str) -> bytes:
    try:
        found = reach.settle(open_kv(location).read(key), location)
    except (ValueError, OSError) as error:
        raise storage_error(error, location) from error
    if found.state == "missing":
        raise NotFound(f"{location.uri}/{key} is not there", fix="run `emlake scrub`, then run again")
    return bytes(found.value)


def _put(location: Location, key: str, data: bytes) -> None:
    try:
        reach.settle(open_kv(location).write(key, data), location)
    except (ValueError, OSError) as error:
        raise storage_error(error, location) from error


class _Lazy(Mapping[str, bytes]):
    """Objects that are read when asked for: all of them together may not fit in memory."""

    def __init__(self, places: dict[str, tuple[Location, str]]) -> None:
        self._places = places

    def __getitem__(self, key: str) -> bytes:
        return _bytes(*self._places[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


# -- writing --------------------------------------------------------------------------------------------------------
def _write(task: Task, made: Outputs) -> Iterator[Output]:
    declared = {"volumes": set[str](), "tables": set[str](), "objects": set[str]()}
    for port in task.stage.writes():
        if isinstance(port, VolumeOut):
            declared["volumes"].add(port.name)
        elif isinstance(port, TableOut):
            declared["tables"].add(port.name)
        else:
            declared["objects"].add(port.prefix.strip("/"))
    _check_ports(task, declared["volumes"], set(made.volumes), "volumes")
    _check_ports(task, declared["tables"], set(made.tables), "tables")
    for name in sorted(declared["volumes"]):
        yield _write_volume(task, name, made.volumes[name])
    for name in sorted(declared["tables"]):
        yield _write_table(task, name, made.tables[name])
    for prefix in sorted(declared["objects"]):
        mine = {k.removeprefix(f"{prefix}/"): v for k, v in made.objects.items() if k.startswith(f"{prefix}/")}
        yield _write_objects(task, prefix, mine)
    stray = [key for key in made.objects if not any(key.startswith(f"{p}/") for p in declared["objects"])]
    if stray:
        raise BadInput(f"stage {task.stage.name!r} gave object {stray[0]!r}", fix="declare its prefix in `writes`")


def _check_ports(task: Task, declared: set[str], given: set[str], kind: str) -> None:
    if declared != given:
        raise BadInput(
            f"stage {task.stage.name!r} declares {kind} {sorted(declared)} and gave {sorted(given)}",
            fix="make `run_block` give exactly what `writes` declares",
        )


def _write_volume(task: Task, name: str, array: NDArray[Any]) -> Output:
    assert task.block.box is not None
    volume = open_volume(task.writes[f"volumes/{name}"])
    if volume.spec.dtype == "uint64" and array.dtype == np.int64:
        if array.size and int(array.min()) < 0:
            raise BadInput(f"block {task.block.id}: negative id {int(array.min())}", fix="ids are 0..2^63-1")
        array = array.view(np.uint64)
    volume.write(task.block.box, array)
    return Output(f"volumes/{name}", array_digest(array, task.block.box), array.nbytes)


def _write_table(task: Task, name: str, rows: pl.DataFrame) -> Output:
    spec, location = table_spec(name), task.writes[f"tables/{name}"]
    if rows.height == 0:
        return Output(f"tables/{name}", rows_digest(empty_rows(spec), spec), 0)
    if "region" in spec.names and "region" not in rows.columns:
        assert task.block.box is not None
        rows = rows.with_columns(region=pl.lit(task.grid.region_of(task.block.box.start)))
    for column, value in (("run_id", task.run_id), ("block", task.block.id)):
        if column in spec.names:
            rows = rows.with_columns(pl.lit(value).alias(column))
    unsigned = [n for n, kind in rows.schema.items() if kind == pl.UInt64]
    rows = rows.with_columns(pl.Series(n, ids_below_2_63(rows[n].to_numpy())) for n in unsigned)
    table = conform(rows, spec)
    stem = f"{task.block.stage}-{task.block.name}"
    if not spec.partition_by:
        parts = [tables.write_part(location, name, table, stem)]
    else:
        frame = pl.DataFrame(pl.from_arrow(table))
        groups = frame.partition_by(spec.partition_by, maintain_order=True)
        parts = [tables.write_part(location, name, group, stem) for group in groups]
    return Output(f"tables/{name}", rows_digest(table, spec), sum(part.bytes for part in parts), tuple(parts))


def _write_objects(task: Task, prefix: str, objects: Mapping[str, bytes]) -> Output:
    for key, data in objects.items():
        _put(task.writes[prefix], key, data)
    return Output(prefix, objects_digest(objects), sum(map(len, objects.values())), keys=tuple(sorted(objects)))


def objects_digest(objects: Mapping[str, bytes]) -> str:
    """Digest keys and bytes of objects."""
    return json_digest([[key, bytes_digest(objects[key])] for key in sorted(objects)])


# -- copying, checking, coarser scales --------------------------------------------------------------------------------
def copy(task: CopyTask) -> Outcome:
    """Copy a block's outputs from another commit; `CorruptObject` or `NotFound` if they are not what was recorded."""
    began, cpu = time.perf_counter(), time.process_time()
    for output in task.outputs:
        source, target = task.sources[output.name], task.writes[output.name]
        if output.name.startswith("volumes/"):
            assert task.block.box is not None
            array = open_volume(source).read(task.block.box)
            if array_digest(array, task.block.box) != output.digest:
                raise CorruptObject(f"{task.block.id}: {output.name} is not what was recorded", fix="compute it again")
            open_volume(target).write(task.block.box, array)
            continue
        for key in [part.path for part in output.parts] or output.keys:
            data = _bytes(source, key)
            if output.parts and not _is_part(key, data):
                raise CorruptObject(f"{task.block.id}: {key} is not what was recorded", fix="compute it again")
            _put(target, key, data)
        if output.keys and objects_digest({key: _bytes(target, key) for key in output.keys}) != output.digest:
            raise CorruptObject(f"{task.block.id}: {output.name} is not what was recorded", fix="compute it again")
    return Outcome(task.outputs, time.perf_counter() - began, time.process_time() - cpu, peak_bytes())


def check(task: CheckTask) -> bool:
    """Tell whether a block's outputs are there, byte for byte."""
    try:
        for output in task.outputs:
            place = task.places[output.name]
            if output.name.startswith("volumes/"):
                assert task.block.box is not None
                if array_digest(open_volume(place).read(task.block.box), task.block.box) != output.digest:
                    return False
            elif output.parts:
                if not all(_is_part(part.path, _bytes(place, part.path)) for part in output.parts):
                    return False
            elif output.keys and objects_digest({k: _bytes(place, k) for k in output.keys}) != output.digest:
                return False
    except (NotFound, BadInput):
        return False
    return True


def _is_part(path: str, data: bytes) -> bool:
    """Tell whether a Parquet part holds the bytes it was named by."""
    return path.rpartition("-")[2].removesuffix(".parquet") == bytes_digest(data)[:16]


def build_scales(task: ScaleTask) -> None:
    """Make the coarser scales over a box again."""
    open_volume(task.place).build_scales(box=task.box)
