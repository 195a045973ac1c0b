"""Grow neurites: branching random walks of balls that avoid one another until they fill a coarse grid.

Everything here is in the units of the coarse grid, whose voxels are two image pixels wide in y and x and one section
deep: at the default voxel of 16 x 8 x 8 nm the grid is isotropic, 16 nm, and a radius of 5 is 80 nm.

The grid keeps, per voxel, the smallest `distance to a ball's centre - its radius` over all balls and the neurite that
has it: an additively weighted Voronoi diagram. Walks steer towards large values of that field, which is free space, so
thick neurites placed first are wrapped by thinner ones, as in real neuropil.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
MARGIN = 10  # coarse voxels grown around the volume, so that its faces look like its inside
_REACH = 5.0  # how far beyond its radius a ball claims space
_STEP = 0.55  # of the radius
# (neurites per million coarse voxels, smallest and largest radius, branching probability per step of half a radius)
_CALIBRES = ((0.5, 11.0, 15.0, 0.03), (7.0, 7.5, 11.0, 0.03))
_THIN = (4.5, 8.0, 0.008)
_BRANCHES = 3  # per neurite and way: more would let one tree fill the volume


@dataclass(frozen=True, slots=True)
class Skeletons:
    """What grew: the coarse label grid and the balls, in walking order.

    Parameters
    ----------
    labels : (z, y, x) uint16
        Neurite of each coarse voxel, `MARGIN` included; no zeros.
    owner : (n,) uint16
        Neurite of each ball.
    walk : (n,) int32
        Walk of each ball: consecutive balls of one walk are about half a radius apart.
    centre : (n, 3) float32
        Position zyx in coarse voxels, `MARGIN` included.
    radius : (n,) float32
        In coarse voxels.
    """

    labels: NDArray[np.uint16]
    owner: NDArray[np.uint16]
    walk: NDArray[np.int32]
    centre: F32
    radius: F32


class _Garden:
    """The growing grid; one method per act."""

    def __init__(self, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
        self.shape = np.array(shape)
        self.rng = rng
        self.field: F32 = np.full(shape, 1e3, np.float32)
        self.labels: NDArray[np.uint16] = np.zeros(shape, np.uint16)
        self.balls: list[tuple[int, int, float, float, float, float]] = []
        self.neurites = 0
        self.walks = 0

    def value(self, points: NDArray[np.floating[Any]]) -> F32:
        """Field at `points` (n, 3); points outside the grid read as at the nearest voxel inside."""
        at = np.clip(points.astype(np.int64), 0, self.shape - 1)
        found: F32 = self.field[at[:, 0], at[:, 1], at[:, 2]]
        return found

    def free_place(self, tries: int) -> tuple[F32, float]:
        """Best of `tries` random places and its field value."""
        points = (self.rng.random((tries, 3), dtype=np.float32) * self.shape).astype(np.float32)
        values = self.value(points)
        best = int(values.argmax())
        return points[best], float(values[best])

    def stamp(self, neurite: int, centre: F32, radius: float) -> None:
        """Claim the voxels nearer to this ball's surface than to any earlier one."""
        reach = radius + _REACH
        low = np.maximum(np.ceil(centre - reach).astype(int), 0)
        high = np.minimum(np.floor(centre + reach).astype(int) + 1, self.shape)
        if (high <= low).any():
            return
        z, y, x = (
            (np.arange(a, b, dtype=np.float32) - c) ** 2 for a, b, c in zip(low, high, centre.tolist(), strict=True)
        )
        surface = np.sqrt(z[:, None, None] + y[None, :, None] + x[None, None, :])
        surface -= np.float32(radius)
        window = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        field = self.field[window]
        closer = surface < field
        np.copyto(field, surface, where=closer)
        np.copyto(self.labels[window], np.uint16(neurite), where=closer)

    def walk(self, neurite: int, start: F32, heading: F32, radius: float, branching: float) -> None:
        """One process and, recursively through a list, its branches."""
        pending, branches = [(start, heading, radius)], 0
        while pending:
            place, heading, radius = pending.pop()
            self.walks += 1
            calibre, steps = radius, 0
            while steps < 400:
                self.stamp(neurite, place, calibre)
                z, y, x = (float(edge) for edge in place)
                self.balls.append((neurite, self.walks, z, y, x, calibre))
                if (place < -radius).any() or (place > self.shape + radius).any():
                    break
                heading, room = self._steer(place, heading, calibre)
                if room < -1.5 and steps > 2:
                    break
                place = (place + np.float32(_STEP * calibre) * heading).astype(np.float32)
                calibre = float(np.clip(calibre + self.rng.normal(0, 0.05 * radius), 0.7 * radius, 1.35 * radius))
                if branches < _BRANCHES and self.rng.random() < branching:
                    branches += 1
                    side = np.cross(heading, self.rng.normal(size=3)).astype(np.float32)
                    side /= max(float(np.linalg.norm(side)), 1e-6)
                    thin = max(_THIN[0], radius * self.rng.uniform(0.4, 0.7))
                    pending.append((place + side * np.float32(calibre), side, thin))
                steps += 1

    def _steer(self, place: F32, heading: F32, radius: float) -> tuple[F32, float]:
        """Choose among nine headings the one with most room ahead, liking to go straight."""
        # Thick processes bend less.
        ahead = heading + np.float32(0.8 / np.sqrt(radius)) * self.rng.normal(size=(9, 3)).astype(np.float32)
        ahead[0] = heading
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        far = (1 + _STEP) * radius + 1.5
        room = np.minimum(self.value(place + np.float32(far) * ahead), np.float32(far - radius))
        best = int((room + 1.5 * (ahead @ heading)).argmax())
        chosen: F32 = ahead[best]
        return chosen, float(room[best])

    def plant(self, radius: float, branching: float, tries: int) -> float:
        """Grow one neurite both ways from the freest of `tries` places; returns the room there was."""
        place, room = self.free_place(tries)
        radius = min(radius, max(room, _THIN[0]))
        heading = self.rng.normal(size=3).astype(np.float32)
        heading /= np.float32(np.linalg.norm(heading))
        self.neurites += 1
        for way in (heading, -heading):
            self.walk(self.neurites, place, way, radius, branching)
        return room


def grow(shape: tuple[int, int, int], rng: np.random.Generator) -> Skeletons:
    """Fill a coarse grid of `shape` (without margin) with neurites; the same `rng` state gives the same result."""
    padded = (shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN, shape[2] + 2 * MARGIN)
    garden = _Garden(padded, rng)
    millions = float(np.prod(padded)) / 1e6
    for density, thin, thick, branching in _CALIBRES:
        for _ in range(max(1, round(density * millions))):
            garden.plant(float(rng.uniform(thin, thick)), branching, tries=24)
    crowded = 0
    while crowded < 12 and garden.neurites < 60_000:
        thin = float(_THIN[0] + (_THIN[1] - _THIN[0]) * rng.random() ** 1.5)
        crowded = crowded + 1 if garden.plant(thin, _THIN[2], tries=300) < 3.0 else 0
    _fill(garden.labels)
    rows = np.array(garden.balls, np.float64)
    return Skeletons(
        garden.labels,
        rows[:, 0].astype(np.uint16),
        rows[:, 1].astype(np.int32),
        rows[:, 2:5].astype(np.float32),
        rows[:, 5].astype(np.float32),
    )


def _fill(labels: NDArray[np.uint16]) -> None:
    """Give voxels that no ball reached to the nearest neurite, in place."""
    from scipy import ndimage

    if labels.all():
        return
    z, y, x = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    labels[...] = labels[z, y, x]
