"""Which blocks of a stage meet a box, without looking at all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lake.box import Box, Zyx
from transforms.stage import Block, Scene, Stage


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one stage, found by place.

    Parameters
    ----------
    cells : mapping
        Names of the blocks that meet each cell of `pitch` voxels.
    """

    blocks: dict[str, Block]
    pitch: Zyx
    cells: dict[Zyx, list[str]] = field(repr=False)

    @classmethod
    def of(cls, stage: Stage, scene: Scene) -> "Layout":
        """Lay out a stage."""
        return cls.from_blocks(stage.blocks(scene), scene.grid.block)

    @classmethod
    def from_blocks(cls, blocks: Iterable[Block], pitch: Zyx) -> "Layout":
        """Index blocks by the cells they meet."""
        found = {block.name: block for block in blocks}
        cells: dict[Zyx, list[str]] = {}
        for name, block in found.items():
            if block.box is not None:
                for cell in cells_of(block.box, pitch):
                    cells.setdefault(cell, []).append(name)
        return cls(found, pitch, cells)

    def meeting(self, box: Box | None) -> list[str]:
        """Name the blocks that share a voxel with `box`, in order; all of them for None."""
        if box is None:
            return list(self.blocks)
        near = {name for cell in cells_of(box, self.pitch) for name in self.cells.get(cell, ())}
        touching = [name for name in near if (b := self.blocks[name].box) is not None and b.meets(box)]
        return sorted(touching, key=lambda name: self.blocks[name].index)


def cells_of(box: Box, pitch: Zyx) -> Iterator[Zyx]:
    """Yield the cells of the grid from voxel (0, 0, 0) that a box meets."""
    if not box.voxels:
        return
    spans = [range(a // p, -(-b // p)) for a, b, p in zip(box.start, box.stop, pitch, strict=True)]
    for z in spans[0]:
        for y in spans[1]:
            for x in spans[2]:
                yield z, y, x
