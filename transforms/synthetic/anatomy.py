"""From coarse skeletons to anatomy at image resolution: neurites cut by membranes, mitochondria, vesicles."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from transforms.synthetic.skeletons import MARGIN, Skeletons, grow

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]
_SMALLEST = 400  # voxels; smaller pieces of neurites become extracellular


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Who is where, with nothing of how it looks.

    Parameters
    ----------
    cells : (z, y, x) uint16
        Neurite of each voxel, membranes not yet cut out; what is drawn as boundary is where this changes.
    labels : (z, y, x) uint16
        Truth: connected neurites numbered from 1, 0 on membranes.
    mitochondria : (z, y, x) uint16
        Number of the mitochondrion, 0 outside; always inside one neurite.
    """

    cells: U16
    labels: U16
    mitochondria: U16


def build(shape: tuple[int, int, int], rng: np.random.Generator) -> Anatomy:
    """Grow neurites and mitochondria for an image of `shape` zyx."""
    coarse_shape = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))
    skeletons = grow(coarse_shape, rng)
    organelles = _mitochondria(skeletons, rng)
    cells, inside = _to_image(skeletons.labels, organelles, shape, rng)
    labels = _cut_membranes(cells)
    return Anatomy(cells, labels, _keep_inside(inside, labels))


def _mitochondria(skeletons: Skeletons, rng: np.random.Generator) -> U16:
    """Sausages along stretches of walks that are thick enough; coarse grid."""
    grid = np.zeros(skeletons.labels.shape, np.uint16)
    thick = np.flatnonzero(skeletons.radius > 4.6)
    if not thick.size:
        return grid
    number = round(grid.size / 24_000)
    for count, start in enumerate(rng.choice(thick, size=number), start=1):
        length = int(rng.integers(4, 14))
        stretch = slice(int(start), int(start) + length)
        same = skeletons.walk[stretch] == skeletons.walk[start]
        radius = float(np.clip(0.6 * skeletons.radius[start], 2.8, 7.0) * rng.uniform(0.8, 1.1))
        offset = rng.normal(0, 0.15 * skeletons.radius[start], 3)
        centres = (skeletons.centre[stretch] + offset)[same]
        for centre in _densify(centres, 0.4 * radius):
            _ball(grid, centre, radius, count)
    return grid


def _densify(centres: F32, spacing: float) -> F32:
    """Points along the polyline through `centres`, at most `spacing` apart."""
    if len(centres) < 2:
        return centres
    pieces = [
        a + (b - a) * np.linspace(0, 1, max(2, int(np.linalg.norm(b - a) / spacing) + 1), endpoint=False)[:, None]
        for a, b in pairwise(centres)
    ]
    return np.concatenate([*pieces, centres[-1:]]).astype(np.float32)


def _ball(grid: U16, centre: F32, radius: float, value: int) -> None:
    low = np.maximum(np.ceil(centre - radius).astype(int), 0)
    high = np.minimum(np.floor(centre + radius).astype(int) + 1, grid.shape)
    if (high <= low).any():
        return
    z, y, x = ((np.arange(a, b) - c) ** 2 for a, b, c in zip(low, high, centre.tolist(), strict=True))
    window = grid[tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))]
    window[z[:, None, None] + y[None, :, None] + x[None, None, :] < radius**2] = value


def smooth_noise(shape: tuple[int, int, int], cell: tuple[int, int], rng: np.random.Generator) -> "SmoothNoise":
    """Unit-variance noise that varies over about `cell` = (sections, pixels)."""
    knots = (shape[0] // cell[0] + 2, shape[1] // cell[1] + 3, shape[2] // cell[1] + 3)
    return SmoothNoise(rng.standard_normal(knots, dtype=np.float32), cell[0], (shape[2], shape[1]))


@dataclass(frozen=True, slots=True)
class SmoothNoise:
    """Noise held on few knots and spread out one section at a time, which keeps memory small."""

    knots: F32
    sections: int
    size_xy: tuple[int, int]

    def section(self, z: int) -> F32:
        """(y, x) float32 of section `z`."""
        import cv2

        at, rest = divmod(z, self.sections)
        share = np.float32(rest / self.sections)
        share = share * share * (3 - 2 * share)
        plane = (1 - share) * self.knots[at] + share * self.knots[at + 1]
        return np.asarray(cv2.resize(plane, self.size_xy, interpolation=cv2.INTER_CUBIC), np.float32)


def _to_image(coarse: U16, organelles: U16, shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[U16, U16]:
    """Bring labels and mitochondria to image resolution through one smooth warp, and smooth the stairs."""
    import cv2

    cells, inside = np.empty(shape, np.uint16), np.empty(shape, np.uint16)
    warps = [(smooth_noise(shape, (16, 40), rng), 1.6), (smooth_noise(shape, (8, 14), rng), 0.5)]
    shifts = [(smooth_noise(shape, (16, 40), rng), 1.6), (smooth_noise(shape, (8, 14), rng), 0.5)]
    y = ((np.arange(shape[1], dtype=np.float32) + 0.5) / 2 - 0.5 + MARGIN)[:, None]
    x = ((np.arange(shape[2], dtype=np.float32) + 0.5) / 2 - 0.5 + MARGIN)[None, :]
    for z in range(shape[0]):
        map_y = y + sum(np.float32(size) * noise.section(z) for noise, size in warps)
        map_x = x + sum(np.float32(size) * noise.section(z) for noise, size in shifts)
        map_y, map_x = (np.ascontiguousarray(np.broadcast_to(m, shape[1:]), np.float32) for m in (map_y, map_x))
        for source, target in ((coarse, cells), (organelles, inside)):
            plane = cv2.remap(source[z + MARGIN], map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            target[z] = cv2.medianBlur(plane, 5)
    return cells, inside


def walls(cells: U16, z: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where neurites meet in section `z`: within the section (two pixels wide), and across to the next one.

    Returns
    -------
    (within, across) : (y, x) bool
    """
    plane = cells[z]
    within = np.zeros(plane.shape, bool)
    differs = plane[1:] != plane[:-1]
    within[1:] |= differs
    within[:-1] |= differs
    differs = plane[:, 1:] != plane[:, :-1]
    within[:, 1:] |= differs
    within[:, :-1] |= differs
    across = cells[z + 1] != plane if z + 1 < len(cells) else np.zeros(plane.shape, bool)
    return within, across


def _cut_membranes(cells: U16) -> U16:
    """Truth labels: neurites without their walls, each connected piece a number of its own, crumbs dropped."""
    import cc3d

    cut = cells.copy()
    for z in range(len(cells)):
        within, across = walls(cells, z)
        cut[z][within | across] = 0
    pieces = cc3d.connected_components(cut, connectivity=6)
    sizes = np.bincount(pieces.ravel())
    keep = np.flatnonzero(sizes >= min(_SMALLEST, cells.size // 200))
    keep = keep[keep > 0]
    numbers = np.zeros(len(sizes), np.uint16)
    numbers[keep] = np.arange(1, len(keep) + 1)
    labels: U16 = numbers[pieces]
    return labels


def _keep_inside(inside: U16, labels: U16) -> U16:
    """Clip each mitochondrion to the one neurite that holds most of it, three pixels clear of its membrane."""
    import cv2

    owners = np.zeros((int(inside.max()) + 1,), np.int64)
    there = (inside > 0) & (labels > 0)
    pairs, counts = np.unique(inside[there].astype(np.int64) << 16 | labels[there], return_counts=True)
    order = np.argsort(counts, kind="stable")
    owners[pairs[order] >> 16] = pairs[order] & 0xFFFF  # the largest count is written last
    kept = np.where((owners[inside] == labels) & there, inside, 0).astype(np.uint16)
    for z in range(len(kept)):
        distance = cv2.distanceTransform((labels[z] > 0).astype(np.uint8), cv2.DIST_L2, 3)
        kept[z][distance < 3] = 0
        solid = cv2.morphologyEx((kept[z] > 0).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        kept[z][solid == 0] = 0
    return kept
