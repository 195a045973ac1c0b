"""What a stage says about itself, and what its kernel is given: ports, blocks, boxes of voxels, the scene."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput, nearest
from lake.volume_spec import VolumeSpec

GridKind = Literal["block", "section", "whole"]
ZERO: Zyx = (0, 0, 0)
WHOLE = "0_0_0"


@dataclass(frozen=True, slots=True)
class Grid:
    """The repository's fixed grid, laid down at `init` as `_policy/grid.json`.

    Parameters
    ----------
    block : (z, y, x) int
        Voxels of one cell; a supervoxel id packs the cell's index.
    region_blocks : (z, y, x) int
        Cells of one region.
    voxel_nm : (z, y, x) float
        Voxel size at full resolution, where no volume says otherwise.
    """

    block: Zyx = (64, 64, 64)
    region_blocks: Zyx = (1, 1, 1)
    voxel_nm: tuple[float, float, float] = (16.0, 8.0, 8.0)

    def region_of(self, voxel: Zyx) -> str:
        """Name the region that holds a voxel, `z_y_x`."""
        cells = (v // (b * r) for v, b, r in zip(voxel, self.block, self.region_blocks, strict=True))
        return "_".join(str(c) for c in cells)


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of work.

    Parameters
    ----------
    stage, name : str
        `<stage>/<name>` is the block's id; `name` is `z_y_x`, or the section number.
    index : (z, y, x) int
        Place on the stage's grid; (section, 0, 0) for a section.
    box : Box or None
        What it writes, global voxels; None for a stage over everything, and for a section whose extent is unknown.
    section : int or None
        The section, on the section grid.
    """

    stage: str
    name: str
    index: Zyx
    box: Box | None = None
    section: int | None = None

    @property
    def id(self) -> str:
        """`<stage>/<name>`."""
        return f"{self.stage}/{self.name}"


# -- ports ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class VolumeIn:
    """Voxels of a volume over the block's box, widened by `low` and `high` (z, y, x) voxels and cut to the volume.

    A `section` stage gets whole planes, z widened by `low[0]` and `high[0]`; a `whole` stage gets nothing (volumes are
    never read whole) and may declare none.
    """

    name: str
    low: Zyx = ZERO
    high: Zyx = ZERO

    @classmethod
    def around(cls, name: str, halo: Zyx) -> "VolumeIn":
        """The same halo on both sides."""
        return cls(name, halo, halo)


@dataclass(frozen=True, slots=True)
class TableIn:
    """Rows of a table.

    Parameters
    ----------
    select : str
        "" = all rows (their digest is that of the blocks that wrote them); a column of supervoxel ids = rows whose id
        lies in a cell that the block (widened by `low`, `high` voxels) meets; "z" = rows whose integer z lies in the
        widened block; "section" = rows of the block's section (widened by `low[0]`, `high[0]`).
    columns : tuple of str
        Columns to read; empty = all but the volatile ones. Fewer columns, fewer reasons to compute again.
    optional : bool
        An absent table is an empty frame.
    """

    name: str
    select: str = ""
    low: Zyx = ZERO
    high: Zyx = ZERO
    columns: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TilesIn:
    """Accepted tiles of the archive: those of the block's section, or those that `placed` puts over the block's box.

    Parameters
    ----------
    acquisition : str
        Which acquisition; "" = the only one.
    placed : str
        Name of a table with columns `path`, `z` and `y0`, `y1`, `x0`, `x1` (what the tile reaches), written by an
        earlier stage; its rows of these tiles come with them. "" = all tiles of the section.
    origin_yx : (y, x) int
        Where voxel (0, 0) of the block's frame lies in the table's.
    """

    acquisition: str = ""
    placed: str = ""
    origin_yx: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ObjectsIn:
    """All objects that an earlier stage wrote through `ObjectsOut(prefix)`, loaded one by one on access."""

    prefix: str


@dataclass(frozen=True, slots=True)
class ModelIn:
    """The model whose digest the stage's field `model` names, loaded once per worker."""


@dataclass(frozen=True, slots=True)
class VolumeOut:
    """Voxels over the block's box, exactly. `Stage.volumes` gives the volume's specification."""

    name: str


@dataclass(frozen=True, slots=True)
class TableOut:
    """Rows of a table of `lake.schemas`; the runner adds `run_id`, `block` and `region` where they are lacking."""

    name: str


@dataclass(frozen=True, slots=True)
class ObjectsOut:
    """Objects under a unit (`meshes/segmentation/`); keys are below it."""

    prefix: str


ReadPort = VolumeIn | TableIn | TilesIn | ObjectsIn | ModelIn
WritePort = VolumeOut | TableOut | ObjectsOut


# -- what a kernel sees -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Voxels:
    """A piece of a volume.

    Parameters
    ----------
    array : (z, y, x) or (c, z, y, x)
        The voxels over `box`.
    box : Box
        Where they lie, global voxels; the block's box plus what of the halo lies inside the volume.
    bounds : Box
        The whole volume: where `box` ends with it, there is no more data.
    voxel_nm : (z, y, x) float
        Size of a voxel.
    """

    array: NDArray[Any]
    box: Box
    bounds: Box
    voxel_nm: tuple[float, float, float]

    def crop(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`, a view; `box` must lie inside."""
        return self.array[(..., *box.within(self.box))]


@dataclass(frozen=True, slots=True)
class TileFile:
    """An accepted tile of the archive: its row of table `tiles`, and its bytes as acquired."""

    path: str
    row: Mapping[str, Any]
    data: bytes


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the runner read for one block; volumes and tables by name."""

    volumes: Mapping[str, Voxels] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    tiles: tuple[TileFile, ...] = ()
    objects: Mapping[str, bytes] = field(default_factory=dict)
    model: Any = None
    grid: Grid = field(default_factory=Grid)
    specs: Mapping[str, VolumeSpec] = field(default_factory=dict)
    frame: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a block gives.

    Parameters
    ----------
    volumes : name -> (z, y, x) or (c, z, y, x) array
        Over the block's box exactly.
    tables : name -> DataFrame
        Rows of the block; may be empty, must not be missing.
    objects : key -> bytes
        Full keys, each below a declared prefix.
    """

    volumes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    objects: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known when a stage's blocks are laid out: the grid, the volumes so far, the archive's accepted tiles."""

    grid: Grid
    volumes: Mapping[str, VolumeSpec]
    tiles: pl.DataFrame = field(default_factory=pl.DataFrame)

    def volume(self, name: str) -> VolumeSpec:
        """Give what is known of a volume, or raise `BadInput` with the nearest name."""
        if name not in self.volumes:
            raise BadInput(
                f"volume {name!r} does not exist and no earlier stage makes it",
                fix=f"put the stage that writes it first, or import it; {nearest(name, self.volumes)}",
            )
        return self.volumes[name]

    def tiles_of(self, acquisition: str = "") -> pl.DataFrame:
        """Accepted tiles of an acquisition ("" = the only one), or `BadInput` naming those that exist."""
        known = sorted(self.tiles["acquisition"].unique()) if self.tiles.height else []
        if not acquisition and len(known) == 1:
            return self.tiles
        if acquisition not in known:
            raise BadInput(
                f"acquisition {acquisition!r} has no accepted tiles in the archive" if acquisition or not known
                else f"the archive holds {len(known)} acquisitions and the pipeline names none",
                fix="ingest tiles first" if not known else nearest(acquisition, known),
            )  # fmt: skip
        return self.tiles.filter(pl.col("acquisition") == acquisition)
