"""What one block reads: resolved from the stage's ports to blocks, tiles, rows and voxels that were really looked at.

Each input has a digest of *what was selected*, so a change elsewhere makes nothing stale::

    VolumeIn    a block reference per block of the writing stage that meets the widened box; for a volume that no run
                made, the digest of its voxels cell by cell (`source`)
    TableIn     all rows: the Merkle root of the blocks that wrote them; selected rows: the digest of those rows
    TilesIn     a reference per tile, with the digest of its bytes
    ObjectsIn   the Merkle root of the blocks that wrote them

Selected rows are found in a table that is read once per stage: 16 bytes a row for ids and roots.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from lake import tables
from lake.box import Box, Zyx
from lake.digests import array_digest, canonical_json
from lake.errors import BadInput
from lake.ids import supervoxel_id
from lake.schemas import TABLES, table_spec
from lake.volumes import Volume
from transforms.fingerprint import InputRef
from transforms.layout import Layout, cells_of
from transforms.ledger import Ledger, Record, outputs_root
from transforms.stage import Block, ModelIn, ObjectsIn, Scene, Stage, TableIn, TableOut, TilesIn, VolumeIn, WritePort
from transforms.tree import Tree


@dataclass(frozen=True, slots=True)
class Waiting:
    """Inputs cannot be told yet: a block that they come from has not been computed."""

    for_: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What the ports of one block come to.

    Parameters
    ----------
    boxes : name -> Box
        What to read of each volume.
    rows : name -> DataFrame
        Selected rows of tables; a table that is read whole is not in it.
    tiles : DataFrame
        Rows of `tiles`.
    """

    refs: tuple[InputRef, ...]
    boxes: dict[str, Box]
    rows: dict[str, pl.DataFrame]
    tiles: pl.DataFrame


def output_name(port: WritePort) -> str:
    """Name what a port writes: `volumes/em`, `tables/edges`, `meshes/segmentation`."""
    if isinstance(port, TableOut):
        return f"tables/{port.name}"
    return port.prefix.strip("/") if hasattr(port, "prefix") else f"volumes/{port.name}"


def widen(box: Box, low: Zyx, high: Zyx, bounds: Box) -> Box:
    """Widen a box on its low and high sides, and cut it to `bounds`."""
    start = tuple(a - n for a, n in zip(box.start, low, strict=True))
    stop = tuple(b + n for b, n in zip(box.stop, high, strict=True))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).clip(bounds)


class Finder:
    """Resolves the ports of a stage's blocks.

    Parameters
    ----------
    writers : mapping of output name to stage name
        Which stage of this pipeline writes what.
    layouts : mapping of stage name to Layout
        The blocks of the stages before this one.
    stale : set of block ids
        Blocks of earlier stages that are still to be computed.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        scene: Scene,
        writers: dict[str, str],
        layouts: dict[str, Layout],
        stale: set[str],
    ) -> None:
        self._tree, self._ledger, self._scene = tree, ledger, scene
        self._writers, self._layouts, self._stale = writers, layouts, stale
        self._earlier: dict[str, tuple[Layout, dict[str, Record]]] = {}
        self._sources: dict[tuple[str, Zyx], InputRef] = {}
        self._tables: dict[tuple[str, tuple[str, ...], str], pl.DataFrame] = {}
        self._roots: dict[str, InputRef | Waiting] = {}

    def forget(self) -> None:
        """Drop what was read for one stage."""
        self._tables.clear()
        self._roots.clear()

    def select(self, stage: Stage, block: Block) -> Selection | Waiting:
        """Resolve every port of a block."""
        refs: list[InputRef] = []
        boxes: dict[str, Box] = {}
        rows: dict[str, pl.DataFrame] = {}
        tiles = pl.DataFrame()
        for port in stage.reads():
            found: list[InputRef] | Waiting
            if isinstance(port, VolumeIn):
                found, boxes[port.name] = self._voxels(port, block)
            elif isinstance(port, TableIn) and not port.select:
                root = self._whole_table(port)
                found = root if isinstance(root, Waiting) else [root]
            elif isinstance(port, TableIn):
                found, frame = self._selected_rows(port, block)
                if frame is not None:
                    rows[port.name] = frame
            elif isinstance(port, TilesIn):
                found, tiles, placed = self._tiles(port, block)
                if placed is not None:
                    rows[port.placed] = placed
            elif isinstance(port, ObjectsIn):
                root = self._root(port.prefix.strip("/"), "source")
                found = root if isinstance(root, Waiting) else [root]
            else:
                assert isinstance(port, ModelIn)
                found = []
            if isinstance(found, Waiting):
                return found
            refs += found
        return Selection(tuple(refs), boxes, rows, tiles)

    # -- volumes ------------------------------------------------------------------------------------------------------
    def _voxels(self, port: VolumeIn, block: Block) -> tuple[list[InputRef] | Waiting, Box]:
        bounds = self._scene.volume(port.name).box
        if block.box is None:
            raise BadInput(
                f"block {block.id} has no box, so it cannot read volume {port.name!r}",
                fix="a stage over everything reads tables, not voxels",
            )
        box = widen(block.box, port.low, port.high, bounds)
        output = f"volumes/{port.name}"
        stage = self._writers.get(output)
        if stage is not None:
            layout, records = self._layouts[stage], self._ledger.of(stage)
            waiting = next((n for n in layout.meeting(box) if f"{stage}/{n}" in self._stale), None)
            if waiting is not None:
                return Waiting(f"{stage}/{waiting}"), box
            return [_block_ref(records[name], output) for name in layout.meeting(box)], box
        layout, records = self._made_earlier(output)
        names = layout.meeting(box)
        if sum(_shared(layout.blocks[name].box, box) for name in names) == box.voxels:
            return [_block_ref(records[name], output) for name in names], box
        return [self._source(port.name, cell) for cell in cells_of(box, self._scene.grid.block)], box

    def _made_earlier(self, output: str) -> tuple[Layout, dict[str, Record]]:
        """Index the blocks of earlier runs that wrote a volume which no stage of this pipeline writes."""
        if output not in self._earlier:
            records = {record.id: record for record in self._ledger.writers_of(output) if record.box}
            blocks = [Block(r.stage, key, (n, 0, 0), Box.parse(r.box)) for n, (key, r) in enumerate(records.items())]
            self._earlier[output] = (Layout.from_blocks(blocks, self._scene.grid.block), records)
        return self._earlier[output]

    def _source(self, name: str, cell: Zyx) -> InputRef:
        """Digest one cell of a volume that no run made; costs one read of the volume for each plan."""
        if (name, cell) not in self._sources:
            volume = self._tree.volume(name)
            assert isinstance(volume, Volume)
            grid = self._scene.grid.block
            corner = (cell[0] * grid[0], cell[1] * grid[1], cell[2] * grid[2])
            box = Box(corner, (corner[0] + grid[0], corner[1] + grid[1], corner[2] + grid[2])).clip(volume.box)
            key = f"volumes/{name}/{cell[0]}_{cell[1]}_{cell[2]}"
            self._sources[name, cell] = InputRef("source", key, array_digest(volume.read(box), box))
        return self._sources[name, cell]

    # -- tables -------------------------------------------------------------------------------------------------------
    def _waiting_for(self, output: str) -> Waiting | None:
        stage = self._writers.get(output)
        if stage is None:
            return None
        stale = next((n for n in self._layouts[stage].blocks if f"{stage}/{n}" in self._stale), None)
        return None if stale is None else Waiting(f"{stage}/{stale}")

    def _root(self, output: str, kind: str) -> InputRef | Waiting:
        """Refer to all that the blocks of one output wrote."""
        waiting = self._waiting_for(output)
        if waiting is not None:
            return waiting
        stage = self._writers.get(output)
        planned = self._layouts[stage].blocks if stage else None
        records = [r for r in self._ledger.writers_of(output) if planned is None or r.block in planned]
        name = output.removeprefix("tables/")
        return InputRef("table" if kind == "table" else "source", name, outputs_root(records, output))

    def _whole_table(self, port: TableIn) -> InputRef | Waiting:
        output = f"tables/{port.name}"
        if output not in self._roots:
            if output in self._writers or self._ledger.writers_of(output):
                self._roots[output] = self._root(output, "table")
            else:
                location = self._tree.read(f"{output}/")
                there = tables.table_exists(location)
                if not there and not port.optional:
                    raise BadInput(
                        f"table {port.name!r} does not exist and no earlier stage writes it",
                        fix="put the stage that writes it first, or write the table",
                    )
                digest = tables.content_digest(location, port.name) if there else ""
                self._roots[output] = InputRef("table", port.name, digest)
        return self._roots[output]

    def _selected_rows(self, port: TableIn, block: Block) -> tuple[list[InputRef] | Waiting, pl.DataFrame | None]:
        waiting = self._waiting_for(f"tables/{port.name}")
        if waiting is not None:
            return waiting, None
        frame = self._table(port)
        keys = frame[port.select].to_numpy() if frame.height else np.zeros(0, np.int64)
        pieces = []
        for low, high in self._ranges(port, block):
            first, last = np.searchsorted(keys, [low, high])
            if last > first:
                pieces.append(frame.slice(int(first), int(last - first)))
        rows = pl.concat(pieces) if pieces else frame.clear()
        return [InputRef("table", port.name, frame_digest(rows))], rows

    def _table(self, port: TableIn) -> pl.DataFrame:
        """Read the wanted columns of a table, sorted by the column that selects."""
        key = (port.name, port.columns, port.select)
        if key not in self._tables:
            location = self._tree.read(f"tables/{port.name}/")
            if not tables.table_exists(location) and port.optional:
                return pl.DataFrame()
            spec = TABLES.get(port.name) or table_spec(port.name)
            wanted = port.columns or tuple(n for n in spec.names if n not in spec.volatile)
            wanted = tuple(dict.fromkeys((port.select, *wanted)))
            frame = tables.read(location).select(wanted).pipe(tables.collect)
            self._tables[key] = frame.sort(wanted, maintain_order=True)
        return self._tables[key]

    def _ranges(self, port: TableIn, block: Block) -> list[tuple[int, int]]:
        """Give the half-open ranges of the selecting column that a block reads, in order."""
        if port.select == "section" and block.section is not None:
            return [(block.section - port.low[0], block.section + port.high[0] + 1)]
        if block.box is None:
            raise BadInput(f"block {block.id} has no box to select rows of {port.name!r} by", fix="read all rows")
        if port.select in ("z", "section"):
            return [(block.box.start[0] - port.low[0], block.box.stop[0] + port.high[0])]
        span = widen(block.box, port.low, port.high, Box((0, 0, 0), (2**40, 2**40, 2**40)))
        ranges = []
        for cell in cells_of(span, self._scene.grid.block):
            first = int(supervoxel_id(cell, 1)) - 1
            ranges.append((first, first + 2**24))
        return sorted(ranges)

    # -- tiles --------------------------------------------------------------------------------------------------------
    def _tiles(self, port: TilesIn, block: Block) -> tuple[list[InputRef] | Waiting, pl.DataFrame, pl.DataFrame | None]:
        """Give the tiles of a block and, where a table places them, that table's rows of these tiles alone."""
        known = self._scene.tiles_of(port.acquisition)
        if not port.placed:
            mine = known.filter(pl.col("section") == block.section)
            return _tile_refs(mine), mine, None
        waiting = self._waiting_for(f"tables/{port.placed}")
        if waiting is not None:
            return waiting, known.clear(), None
        if block.box is None:
            raise BadInput(f"block {block.id} has no box to place tiles in", fix="use the block grid")
        oy, ox = port.origin_yx
        (z0, y0, x0), (z1, y1, x1) = block.box.start, block.box.stop
        inside = self._table(TableIn(port.placed, select="z")).filter(
            (pl.col("z") >= z0) & (pl.col("z") < z1),
            (pl.col("y0") < y1 + oy) & (pl.col("y1") > y0 + oy),
            (pl.col("x0") < x1 + ox) & (pl.col("x1") > x0 + ox),
        )
        mine = known.filter(pl.col("path").is_in(inside["path"].to_list()))
        return [*_tile_refs(mine), InputRef("table", port.placed, frame_digest(inside))], mine, inside


def _tile_refs(tiles: pl.DataFrame) -> list[InputRef]:
    return [InputRef("tile", path, sha256) for path, sha256 in tiles.select("path", "sha256").iter_rows()]


def _block_ref(record: Record, output: str) -> InputRef:
    written = record.output(output)
    assert written is not None
    return InputRef("block", record.id, written.digest, record.made_by)


def _shared(one: Box | None, other: Box) -> int:
    return 0 if one is None or not one.meets(other) else one.clip(other).voxels


def frame_digest(frame: pl.DataFrame) -> str:
    """Digest rows: columns, types and values, in the order of all columns."""
    ordered = frame.sort(frame.columns) if frame.height > 1 else frame
    header = [[name, str(kind)] for name, kind in ordered.schema.items()]
    digest = hashlib.sha256(canonical_json([ordered.height, header]) + b"\n")
    for series in ordered:
        digest.update(_bytes_of(series))
    return digest.hexdigest()


def _bytes_of(series: pl.Series) -> bytes:
    known = series.is_not_null().to_numpy().tobytes()
    if series.dtype == pl.String:
        texts: Sequence[str] = series.fill_null("").to_list()
        lengths = np.array([len(text.encode()) for text in texts], "<i8")
        return known + lengths.tobytes() + "".join(texts).encode()
    if series.dtype == pl.Float64:
        # Added in numpy: polars leaves out the addition of 0.0, and -0.0 would stay.
        return known + (series.fill_null(0.0).to_numpy() + 0.0).astype("<f8").tobytes()
    if series.dtype in (pl.Boolean, pl.Int64):
        return known + series.cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").tobytes()
    return known + canonical_json(series.to_list())
