"""A stage declares, a kernel computes, the runner does the rest.

::

    Stage (frozen, extra="forbid")          its fields are the parameter set
      reads()  -> VolumeIn, TableIn, TilesIn, ObjectsIn, ModelIn      what a block needs, and its halo
      writes() -> VolumeOut, TableOut, ObjectsOut                     what a block gives
      blocks(scene)                                                   the blocks, from the volumes known so far
      run_block(block, Inputs) -> Outputs                             pure: arrays, frames and bytes in and out

A block of a stage on the `block` grid covers the cell of a fixed grid that starts at voxel (0, 0, 0); of a `section`
stage one section; of a `whole` stage everything. Which boxes are read follows from the block's own box::

    |<- low ->|<------ block.box ------>|<- high ->|     cut to the volume: `Voxels.box` says what came

A new stage is a subclass and one line in `transforms.stages.STAGES`. Nothing here opens a file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, Self

import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

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


class Stage(BaseModel):
    """Base of all stages: a frozen configuration whose fields are the parameter set.

    Class variables
    ---------------
    name, version : str, int
        Raise `version` when results change for a reason that the sources in `kernels` do not show.
    grid : "block", "section" or "whole"
    kernels : tuple of str
        Modules whose source is part of the fingerprint, beside the stage class itself.
    libraries : tuple of str
        Distributions whose version is part of the fingerprint (numpy always is).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: ClassVar[str]
    version: ClassVar[int]
    grid: ClassVar[GridKind] = "block"
    kernels: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def reads(self) -> tuple[ReadPort, ...]:
        """What a block needs."""
        raise NotImplementedError

    def writes(self) -> tuple[WritePort, ...]:
        """What a block gives."""
        raise NotImplementedError

    def bind(self, card: Mapping[str, Any]) -> Self:
        """Take from its model's card what the stage must declare, a halo for instance; the default takes nothing."""
        return self

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        """Specify the volumes it writes, by name; the default is for stages that write none.

        A block must cover whole chunks (shards): blocks are cut on the grid that starts at voxel (0, 0, 0).
        """
        return {}

    def frame(self, scene: Scene) -> dict[str, Any]:
        """Give JSON values that follow from the scene and that a kernel needs, such as where a canvas begins.

        They reach the kernel as `Inputs.frame`, and are part of the fingerprint.
        """
        return {}

    def block_shape(self, scene: Scene) -> Zyx:
        """Voxels of one block on the `block` grid: the repository's cell, or a whole multiple of it."""
        return scene.grid.block

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Compute one block. Pure: the same inputs give the same outputs, and no file is opened."""
        raise NotImplementedError

    def memory_factor(self) -> float:
        """Working memory of the kernel as a multiple of the bytes it reads and writes, for the plan's estimate."""
        return 3.0

    def bounds(self, scene: Scene) -> Box:
        """Extent of the `block` and `section` grid: the first volume written, else the first one read."""
        for spec in self.volumes(scene).values():
            return spec.box
        for port in self.reads():
            if isinstance(port, VolumeIn):
                return scene.volume(port.name).box
        raise BadInput(f"stage {self.name!r} reads and writes no volume", fix="override `bounds` in the stage")

    def blocks(self, scene: Scene) -> Iterator[Block]:
        """Lay out the blocks, in C order."""
        if self.grid == "whole":
            yield Block(self.name, WHOLE, ZERO)
        elif self.grid == "section":
            yield from self.section_blocks(scene)
        else:
            bounds, size = self.bounds(scene), self.block_shape(scene)
            first = tuple(a // s for a, s in zip(bounds.start, size, strict=True))
            anchor = Box((first[0] * size[0], first[1] * size[1], first[2] * size[2]), bounds.stop)
            for (z, y, x), box in anchor.blocks(size):
                index = (z + first[0], y + first[1], x + first[2])
                yield Block(self.name, "_".join(map(str, index)), index, box.clip(bounds))

    def section_blocks(self, scene: Scene) -> Iterator[Block]:
        """One block a section: from the first to the last of the tiles if it reads any, else a plane of `bounds`.

        The first section is the first plane of the volume that the stage writes; without tiles, section = z.
        """
        tiles = next((port for port in self.reads() if isinstance(port, TilesIn)), None)
        bounds = self.bounds(scene) if tiles is None or self.volumes(scene) else None
        if tiles is None:
            assert bounds is not None
            sections = range(bounds.start[0], bounds.stop[0])
        else:
            known = [int(s) for s in scene.tiles_of(tiles.acquisition)["section"].unique()]
            # A section without an accepted tile is a block without tiles: it must not be forgotten.
            sections = range(min(known), max(known) + 1)
        for section in sections:
            box = None
            if bounds is not None:
                z = bounds.start[0] + section - sections.start
                box = Box((z, *bounds.start[1:]), (z + 1, *bounds.stop[1:]))
            yield Block(self.name, str(section), (section, 0, 0), box, section)


def configure(stage: type[Stage], values: Mapping[str, Any]) -> Stage:
    """Make a stage from parameters; `BadInput` names the unknown or wrong one and the nearest known name."""
    try:
        return stage.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise BadInput(
                f"stage {stage.name!r} has no parameter {field_name!r}",
                fix=nearest(field_name, _parameters(stage)),
            ) from error
        raise BadInput(
            f"stage {stage.name!r}, parameter {field_name!r}: {first['msg']} (got {first.get('input')!r})",
            fix=f"see `emlake params show {stage.name}`",
        ) from error


def _parameters(stage: type[Stage]) -> list[str]:
    """Name a stage's parameters; those of a group as `group.name`."""
    names = []
    for name, info in stage.model_fields.items():
        kind = info.annotation
        inner = [f"{name}.{f.name}" for f in fields(kind)] if isinstance(kind, type) and is_dataclass(kind) else []
        names += inner or [name]
    return names
