"""Where a section goes in the volume: an affine, and a coarse grid of small displacements on top."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.geometry import Affine, Points, apply, invert

Extent = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a section goes.

    Attributes
    ----------
    to_volume : (2, 3)
        Affine from the stitched frame to the volume's.
    grid : (2, nodes, nodes) float64
        Displacements (yx) added after the affine, at nodes spread evenly over `extent`; may be empty.
    extent : (y0, x0, y1, x1)
        What the grid spans, volume frame.
    residual : float
        Median distance of the kept windows of its pairs after the solve; `nan` if it has none.
    folds : int
        Grid cells that turned over (Jacobian not positive).
    anchored : bool
        False if no window ties it to a neighbour: it lies where the stage put it.
    """

    to_volume: Affine
    grid: NDArray[np.float64]
    extent: Extent
    residual: float
    folds: int
    anchored: bool

    def to_json(self) -> dict[str, Any]:
        """Give a JSON object; `affine` is row-major `a b c d e f`, yx. `from_json` reads it back."""
        return {
            "affine": self.to_volume.ravel().tolist(),
            "grid": self.grid.tolist(),
            "extent": list(self.extent),
            "residual": None if np.isnan(self.residual) else self.residual,
            "folds": self.folds,
            "anchored": self.anchored,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Placement":
        """Read what `to_json` gave."""
        y0, x0, y1, x1 = value["extent"]
        residual = float("nan") if value["residual"] is None else float(value["residual"])
        affine = np.array(value["affine"], np.float64).reshape(2, 3)
        grid = np.array(value["grid"], np.float64).reshape(2, -1)
        nodes = round(np.sqrt(grid.shape[1]))
        return cls(affine, grid.reshape(2, nodes, nodes), (y0, x0, y1, x1), residual, value["folds"], value["anchored"])

    @property
    def from_volume(self) -> Affine:
        """The inverse affine, as `render_section` takes it."""
        return invert(self.to_volume)

    def displacement(self, origin_yx: tuple[float, float], shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Give what to add to a canvas pixel before `from_volume`, (2, *shape); None without a grid.

        First order: the displacement at the place itself is subtracted, which for fields of a pixel that bend over
        hundreds is right to a hundredth.
        """
        if not self.grid.size:
            return None
        y = np.arange(shape[0], dtype=np.float64) + origin_yx[0]
        x = np.arange(shape[1], dtype=np.float64) + origin_yx[1]
        field = _interpolate(self.grid, self.extent, y, x)
        return np.asarray(-field, np.float32)

    def move(self, points: Points) -> Points:
        """Take points (n, 2) of the stitched frame to the volume."""
        moved = apply(self.to_volume, points)
        if self.grid.size:
            weights = node_weights(moved, self.extent, self.grid.shape[1])
            moved = moved + weights @ self.grid.reshape(2, -1).T
        return moved


def node_weights(points: Points, extent: Extent, nodes: int) -> NDArray[np.float64]:
    """Give (n, nodes^2) bilinear weights; points beyond the grid take its rim."""
    low, high = np.array(extent[:2]), np.array(extent[2:])
    at = np.clip((points - low) / (high - low), 0, 1) * (nodes - 1)
    cell = np.minimum(at.astype(int), max(nodes - 2, 0))
    part = at - cell
    weights = np.zeros((len(points), nodes, nodes))
    index = np.arange(len(points))
    for dy in (0, 1):
        for dx in (0, 1):
            w = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            weights[index, np.minimum(cell[:, 0] + dy, nodes - 1), np.minimum(cell[:, 1] + dx, nodes - 1)] += w
    return weights.reshape(len(points), -1)


def _interpolate(
    grid: NDArray[np.float64],
    extent: Extent,
    y: NDArray[np.float64],
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Give the grid's displacement (2, len(y), len(x)) at the crossings of `y` and `x`."""
    nodes = grid.shape[1]
    sides = []
    for values, low, high in ((y, extent[0], extent[2]), (x, extent[1], extent[3])):
        at = np.clip((values - low) / (high - low), 0, 1) * (nodes - 1)
        sides.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(nodes)[None, :])))
    return np.asarray(np.einsum("yi,cij,xj->cyx", sides[0], grid, sides[1]))


def folds_of(affine: Affine, grid: NDArray[np.float64], extent: Extent) -> int:
    """Count cells whose corners, once moved, turn the other way; an affine that mirrors counts as one."""
    if float(np.linalg.det(affine[:, :2])) <= 0:
        return 1
    if not grid.size:
        return 0
    nodes = grid.shape[1]
    y = np.linspace(extent[0], extent[2], nodes)[:, None] + grid[0]
    x = np.linspace(extent[1], extent[3], nodes)[None, :] + grid[1]
    down = (np.diff(y, axis=0)[:, :-1], np.diff(x, axis=0)[:, :-1])
    right = (np.diff(y, axis=1)[:-1], np.diff(x, axis=1)[:-1])
    return int((down[0] * right[1] - down[1] * right[0] <= 0).sum())
