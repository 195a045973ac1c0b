"""Many overlapping tiles become one section: pairs are matched, positions solved together, seams blended.

A section, from its tiles and their stage positions to a picture::

    stitched = stitch_section(tiles, stage_yx)                # positions, seams, illumination; no pixel is moved yet
    image, mask = render_section(tiles, stitched, origin_yx=(-24, -24), shape=(560, 560))

Positions are (y, x) pixels of the frame that the stage positions are in; a tile's position is that of its pixel
(0, 0). Rendering may be put off until the section's alignment is known (`from_canvas`), so that a pixel is
interpolated once on its way from the camera to the volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.geometry import Points
from transforms.kernels.seams import Seam, StitchParams, Tile, View, match_pair, view_of

__all__ = ["Seam", "StitchParams", "Stitched", "solve_illumination", "solve_positions", "stitch_section"]


@dataclass(frozen=True, slots=True)
class Stitched:
    """A solved section.

    Attributes
    ----------
    positions : (n, 2) float64
        Tile positions, yx pixels.
    seams : tuple of Seam
        All that were tried; `kept` are the ones the solution rests on, `residual` in pixels.
    gains : (n,) float64
        Brightness of each frame against the section's.
    light : (2,) float64
        Vignetting: log brightness falls by `light[0] * y^2 + light[1] * x^2`, y and x from -1 to 1 over the tile.
    connected : bool
        Whether kept seams join all tiles; if not, parts lie where the stage put them.
    """

    positions: NDArray[np.float64]
    seams: tuple[Seam, ...]
    gains: NDArray[np.float64]
    light: NDArray[np.float64]
    connected: bool

    def table(self) -> NDArray[np.float64]:
        """Give (n, 5), what drawing needs of each tile: y, x, gain, and the section's light; see `from_table`."""
        light = np.tile(self.light, (len(self.positions), 1))
        return np.column_stack([self.positions, self.gains, light])

    @classmethod
    def from_table(cls, table: NDArray[np.float64]) -> "Stitched":
        """Read what `table` gave; the seams are not in it."""
        return cls(table[:, :2], (), table[:, 2], table[0, 3:5], connected=True)

    @property
    def residual_p95(self) -> float:
        """95th percentile of the kept seams' residuals, px; `nan` with fewer than one."""
        residuals = [seam.residual for seam in self.seams if seam.kept]
        return float(np.percentile(residuals, 95)) if residuals else float("nan")


def stitch_section(tiles: Sequence[Tile], stage_yx: Points, params: StitchParams | None = None) -> Stitched:
    """Place the tiles of one section against each other.

    Parameters
    ----------
    tiles : sequence of (h, w) uint8
    stage_yx : (n, 2) float64
        Reported positions of the tiles' first pixels, in pixels.
    """
    params = params or StitchParams()
    stage = np.asarray(stage_yx, np.float64)
    views = [view_of(tile, params) for tile in tiles]
    seams = []
    for i, j in _neighbours(tiles, stage, params):
        delta = stage[j] - stage[i]
        found = match_pair(views[i], views[j], (float(delta[0]), float(delta[1])), params)
        if found is not None:
            dy, dx, ncc, overlap = found
            seams.append(Seam(i, j, dy, dx, ncc, overlap, kept=ncc >= params.min_ncc))
    positions, judged = solve_positions(stage, seams, params)
    gains, light = np.ones(len(tiles)), np.zeros(2)
    if params.illumination:
        gains, light = solve_illumination(views, positions, judged)
    return Stitched(positions, tuple(judged), gains, light, _connected(len(tiles), judged))


def solve_positions(
    stage: NDArray[np.float64], seams: Sequence[Seam], params: StitchParams
) -> tuple[NDArray[np.float64], list[Seam]]:
    """Find positions that fit kept seams, robustly, with a weak prior on the stage's; judge each seam by them.

    Iteratively reweighted sparse least squares with Cauchy weights: a false match of many pixels ends with no say.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse import identity as eye
    from scipy.sparse.linalg import splu

    n = len(stage)
    used = [seam for seam in seams if seam.kept]
    positions = stage.astype(np.float64).copy()
    if used:
        rows = np.repeat(np.arange(len(used)), 2)
        columns = np.array([[seam.a, seam.b] for seam in used]).ravel()
        design = coo_matrix((np.tile([-1.0, 1.0], len(used)), (rows, columns)), shape=(len(used), n)).tocsr()
        target = np.array([[seam.dy, seam.dx] for seam in used])
        prior = eye(n, format="csr") / params.stage_sigma**2
        weights = np.ones(len(used))
        for _ in range(20):
            normal = (design.T @ design.multiply(weights[:, None] / params.seam_sigma**2) + prior).tocsc()
            right = design.T @ (target * weights[:, None]) / params.seam_sigma**2 + stage / params.stage_sigma**2
            positions = splu(normal).solve(right)
            error = np.linalg.norm(design @ positions - target, axis=1)
            update = 1 / (1 + (error / 1.0) ** 2)
            if np.abs(update - weights).max() < 1e-4:
                break
            weights = update
    judged = []
    for seam in seams:
        gap = positions[seam.b] - positions[seam.a] - (seam.dy, seam.dx)
        residual = float(np.hypot(gap[0], gap[1]))
        judged.append(
            Seam(
                seam.a, seam.b, seam.dy, seam.dx, seam.ncc, seam.overlap,
                kept=seam.kept and residual <= params.outlier, residual=residual,
            )
        )  # fmt: skip
    return positions, judged


def solve_illumination(
    views: Sequence[View], positions: NDArray[np.float64], seams: Sequence[Seam], *, patch: int = 16
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Separate brightness from content: two tiles that show one place differ by their light alone.

    Fits log gains and the two vignetting terms to the ratios of patch means in kept overlaps. A tile whose tissue is
    darker keeps that: its neighbours show the same dark patch.
    """
    n = len(views)
    rows, targets = [], []
    for seam in (seam for seam in seams if seam.kept):
        offset = positions[seam.b] - positions[seam.a]
        for first, second, y_a, x_a, y_b, x_b in _patch_means(views[seam.a], views[seam.b], offset, patch):
            row = np.zeros(n + 2)
            row[seam.a], row[seam.b] = 1.0, -1.0
            row[n:] = y_b**2 - y_a**2, x_b**2 - x_a**2
            rows.append(row)
            targets.append(np.log(first / second))
    if not rows:
        return np.ones(n), np.zeros(2)
    design, target = np.array(rows), np.array(targets)
    # Weak pulls to gain 1 and light 0 fix what no overlap tells (the section's own brightness among it).
    ridge = np.diag(np.concatenate([np.full(n, 1e-2), np.full(2, 1e-1)]))
    weights: NDArray[np.float64] = np.ones(len(target))
    solution: NDArray[np.float64] = np.zeros(n + 2)
    for _ in range(10):
        normal = design.T @ (design * weights[:, None]) + ridge
        solution = np.asarray(np.linalg.solve(normal, design.T @ (target * weights)), np.float64)
        weights = 1 / (1 + ((design @ solution - target) / 0.02) ** 2)
    gains = np.exp(solution[:n] - solution[:n].mean())
    return gains, np.asarray(solution[n:])


def _neighbours(tiles: Sequence[Tile], stage: NDArray[np.float64], params: StitchParams) -> list[tuple[int, int]]:
    """List pairs whose stage positions let them overlap by an edge; corners that touch are left out."""
    pairs = []
    for i in range(len(tiles)):
        for j in range(i + 1, len(tiles)):
            delta = stage[j] - stage[i]
            spans = [min(n, d + m) - max(0.0, d) for n, m, d in zip(tiles[i].shape, tiles[j].shape, delta, strict=True)]
            edges = [min(n, m) for n, m in zip(tiles[i].shape, tiles[j].shape, strict=True)]
            shares = sorted(s / e for s, e in zip(spans, edges, strict=True))
            if min(spans) >= params.min_overlap and shares[1] >= 0.5:
                pairs.append((i, j))
    return pairs


def _connected(n: int, seams: Sequence[Seam]) -> bool:
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for seam in seams:
        if seam.kept:
            parent[root(seam.a)] = root(seam.b)
    return len({root(i) for i in range(n)}) <= 1


def _patch_means(a: View, b: View, offset: NDArray[np.float64], patch: int) -> list[tuple[float, ...]]:
    """List (mean in a, mean in b, y and x of the patch in a, in b; -1 to 1) for whole valid patches of the overlap."""
    dy, dx = round(float(offset[0])), round(float(offset[1]))
    (ha, wa), (hb, wb) = a.image.shape, b.image.shape
    found: list[tuple[float, ...]] = []
    for y in range(max(0, dy), min(ha, dy + hb) - patch + 1, patch):
        for x in range(max(0, dx), min(wa, dx + wb) - patch + 1, patch):
            in_a = (slice(y, y + patch), slice(x, x + patch))
            in_b = (slice(y - dy, y - dy + patch), slice(x - dx, x - dx + patch))
            if not (a.mask[in_a].all() and b.mask[in_b].all()):
                continue
            first, second = float(a.image[in_a].mean()), float(b.image[in_b].mean())
            if min(first, second) < 8 or max(first, second) > 247:
                continue  # clipped patches tell nothing of the light
            middle = patch / 2
            found.append(
                (
                    first, second,
                    2 * (y + middle) / ha - 1, 2 * (x + middle) / wa - 1,
                    2 * (y - dy + middle) / hb - 1, 2 * (x - dx + middle) / wb - 1,
                )
            )  # fmt: skip
    return found
