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
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lake.box import Box, Zyx
from lake.errors import BadInput, nearest
from lake.volume_spec import VolumeSpec
from transforms.ports import (
    WHOLE,
    ZERO,
    Block,
    Grid,
    GridKind,
    Inputs,
    ModelIn,
    ObjectsIn,
    ObjectsOut,
    Outputs,
    ReadPort,
    Scene,
    TableIn,
    TableOut,
    TileFile,
    TilesIn,
    VolumeIn,
    VolumeOut,
    Voxels,
    WritePort,
)

__all__ = [
    "Stage",
    "configure",
    "Block",
    "Grid",
    "GridKind",
    "Inputs",
    "ModelIn",
    "ObjectsIn",
    "ObjectsOut",
    "Outputs",
    "ReadPort",
    "Scene",
    "TableIn",
    "TableOut",
    "TileFile",
    "TilesIn",
    "VolumeIn",
    "VolumeOut",
    "Voxels",
    "WHOLE",
    "WritePort",
    "ZERO",
]


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

    def numerics(self) -> dict[str, str]:
        """Tell what else the last bits of a result depend on, beside the versions of `libraries`."""
        return {}

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
