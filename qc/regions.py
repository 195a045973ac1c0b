"""The grid of blocks and regions that a repository was laid out with."""

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput, ObjectNotFound
from lake.ids import parse_region, region_name
from lake.snapshot import Snapshot
from lake.volumes import Volume

GRID_KEY = "_policy/grid.json"
BoxNm = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Sizes in voxels (z, y, x); both grids begin at global voxel (0, 0, 0).

    Parameters
    ----------
    block : (z, y, x) int
        A stage's unit of work, at whose faces a segmentation is stitched.
    blocks_per_region : (z, y, x) int
    voxel_nm : (z, y, x) float
    bounds : Box or None
        The volume that regions are cut at, global voxels.
    """

    block: Zyx
    blocks_per_region: Zyx
    voxel_nm: tuple[float, float, float]
    bounds: Box | None = None

    @property
    def region(self) -> Zyx:
        """Size of a region in voxels."""
        z, y, x = (b * n for b, n in zip(self.block, self.blocks_per_region, strict=True))
        return z, y, x

    def region_of(self, block_index: Zyx) -> str:
        """Name the region that a block lies in."""
        z, y, x = (i // n for i, n in zip(block_index, self.blocks_per_region, strict=True))
        return region_name((z, y, x))

    def regions_at(self, points: NDArray[np.float64]) -> list[str]:
        """Name the region of each point; `points` is (n, 3), z, y, x in nm."""
        size = np.asarray(self.region) * np.asarray(self.voxel_nm)
        return [region_name((z, y, x)) for z, y, x in np.floor(points / size).astype(np.int64).tolist()]

    def box_nm(self, region: str) -> BoxNm:
        """Give a region as (min_x, min_y, min_z, max_x, max_y, max_z), nm."""
        index, size = parse_region(region), self.region
        z, y, x = (i * n for i, n in zip(index, size, strict=True))
        box = Box((z, y, x), (z + size[0], y + size[1], x + size[2]))
        box = box if self.bounds is None else box.clip(self.bounds)
        low, high = ([a * nm for a, nm in zip(at, self.voxel_nm, strict=True)] for at in (box.start, box.stop))
        return low[2], low[1], low[0], high[2], high[1], high[0]


def read_grid(snapshot: Snapshot, volume: Volume | None = None) -> Grid:
    """Read the grid that `init` laid down; with a volume, cut to it and in its voxels."""
    try:
        raw = json.loads(snapshot.get(GRID_KEY))
        block, per_region = (cast(Zyx, tuple(int(n) for n in raw[k])) for k in ("block_zyx", "region_blocks_zyx"))
        z, y, x = (float(nm) for nm in raw["voxel_nm_zyx"])
    except ObjectNotFound as error:
        raise BadInput(f"{snapshot.ref} has no grid ({GRID_KEY})", fix="`emlake init` lays it down") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{GRID_KEY} at {snapshot.ref} cannot be read: {error!r}", fix="restore it from main") from error
    if volume is not None:
        return Grid(block, per_region, volume.spec.voxel_nm_zyx, volume.box)
    return Grid(block, per_region, (z, y, x))


def cells(box: Box, size: Zyx) -> list[int]:
    """Count the cells of the grid of `size` that meet `box`, by axis z, y, x."""
    return [-(-b // s) - a // s for a, b, s in zip(box.start, box.stop, size, strict=True)]
