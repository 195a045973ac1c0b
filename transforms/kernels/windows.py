"""Windows of one section are found in another: what tells how two sections lie to each other.

::

    first   +----+----+----+      second      each window of the first is looked for in the second, near where the
            | o  | o  | o  |   ->   o   o o   rough step expects it; what stands alone against its pair's affine,
            +----+----+----+          o       agrees too little or runs into the rim of its search is not kept
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.correlate import Mask, coarse_shift, flatten, shrink, template_shift
from transforms.kernels.geometry import Affine, Points, apply, compose, identity, resample, translation


@dataclass(frozen=True, slots=True)
class AlignParams:
    """How sections are matched and placed. Lengths in pixels.

    Parameters
    ----------
    reach : int
        Sections are matched with the next one, ..., the `reach`-th next: a bad section is then bridged.
    search : float
        Largest shift, per axis, of a section against its neighbour that the rough step looks for.
    window, stride, fine : int
        Edge and spacing of the matched windows, and how far each may lie from the rough step.
    min_ncc : float
        Windows that agree less say nothing.
    outlier : float
        Windows further from the pair's own affine than this are left out.
    min_confidence : float
        Pairs of which a smaller share of windows is kept tell nothing: by chance a few windows always agree.
    stage_sigma, linear_sigma, elastic_sigma : float
        How far a section may be from where the stage put it: its shift, what its turn and stretch move at the rim, and
        a node of its grid.
    pair_sigma : float
        How far one pair's windows together are trusted; neighbouring windows err together, so more of them help little.
    window_sigma : float
        How far a single window is trusted for the grid.
    nodes : int
        Grid nodes per axis; 0 = affine only.
    """

    reach: int = 2
    search: float = 32.0
    window: int = 96
    stride: int = 64
    fine: int = 8
    min_ncc: float = 0.3
    outlier: float = 3.0
    min_confidence: float = 0.15
    stage_sigma: float = 2.5
    linear_sigma: float = 1.0
    elastic_sigma: float = 0.3
    pair_sigma: float = 0.3
    window_sigma: float = 1.0
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """A section's montage: pixel (0, 0) lies at `origin_yx` of the stitched frame."""

    image: NDArray[np.uint8]
    mask: Mask
    origin_yx: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class SectionMatch:
    """Windows of one section found in another.

    Attributes
    ----------
    points, found : (n, 2) float64
        Window centres in the first section's stitched frame, and where the same tissue lies in the second's.
    ncc : (n,) float64
        Correlation of each window, -1 to 1.
    kept : (n,) bool
        Whether it is textured, agrees, and fits its pair's affine.
    rough_ncc : float
        Correlation of the sections as wholes after the rough step.
    """

    points: Points
    found: Points
    ncc: NDArray[np.float64]
    kept: NDArray[np.bool_]
    rough_ncc: float

    def table(self) -> NDArray[np.float64]:
        """Give (n, 6): y, x, found y, found x, ncc, kept; `from_table` reads it back."""
        return np.column_stack([self.points, self.found, self.ncc, self.kept.astype(float)])

    @classmethod
    def from_table(cls, table: NDArray[np.float64], rough_ncc: float = float("nan")) -> "SectionMatch":
        """Read what `table` gave."""
        return cls(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5] > 0, rough_ncc)

    def tells(self, params: AlignParams) -> bool:
        """Whether enough windows were kept to place one section by the other."""
        return int(self.kept.sum()) >= 3 and self.confidence >= params.min_confidence

    @property
    def confidence(self) -> float:
        """Share of the windows that were kept; 0 without windows."""
        return float(self.kept.mean()) if self.kept.size else 0.0

    @property
    def median_ncc(self) -> float:
        """Median correlation over all windows, rejected ones included; `nan` without windows."""
        return float(np.median(self.ncc)) if self.ncc.size else float("nan")


def match_sections(first: Picture, second: Picture, params: AlignParams | None = None) -> SectionMatch:
    """Find windows of `first` in `second`: a rough shift (or, where that fails, SIFT), then windows one by one."""
    params = params or AlignParams()
    rough, rough_ncc = _rough(first, second, params)
    # `second` on `first`'s pixels: by whole pixels where the rough step is a shift, so that nothing is interpolated.
    on_first = compose(compose(translation(-np.array(second.origin_yx)), rough), translation(first.origin_yx))
    shape = (first.image.shape[0], first.image.shape[1])
    image = np.asarray(resample(second.image, on_first, shape), np.uint8)
    mask = np.asarray(resample(second.mask.astype(np.uint8), on_first, shape, sampling="nearest"), np.uint8) > 0
    half, reach = params.window // 2, params.window // 2 + params.fine
    points, offsets, ncc = [], [], []
    for y in _centres(shape[0], reach, params.stride):
        for x in _centres(shape[1], reach, params.stride):
            inner = (slice(y - half, y + half), slice(x - half, x + half))
            outer = (slice(y - reach, y + reach), slice(x - reach, x + reach))
            if not (first.mask[inner].all() and mask[outer].all()):
                continue
            dy, dx, score = template_shift(image[outer], first.image[inner])
            points.append((y - 0.5, x - 0.5))  # the middle of an even window lies between two pixels
            offsets.append((dy - params.fine, dx - params.fine))
            ncc.append(score)
    at = np.array(points, float).reshape(-1, 2)
    shift = np.array(offsets, float).reshape(-1, 2)
    scores = np.array(ncc, float)
    # At the rim of its search a window did not find a peak, it ran into a wall.
    clear = (scores >= params.min_ncc) & (np.abs(shift) < params.fine - 0.5).all(axis=1)
    kept = clear & _fits_affine(at, shift, clear, params.outlier)
    source = at + first.origin_yx
    return SectionMatch(source, apply(rough, source + shift), scores, kept, rough_ncc)


def _rough(first: Picture, second: Picture, params: AlignParams) -> tuple[Affine, float]:
    """Find the affine from the first's stitched frame to the second's: a whole-pixel shift, or SIFT if that fails."""
    factor = 2  # the windows then have `fine` pixels to make good what the coarse step leaves
    while params.search / factor > 8 and 2 * factor < params.fine:
        factor *= 2
    small = []
    for picture in (first, second):
        coarse, mask = shrink(picture.image, picture.mask, factor)
        small.append((flatten(coarse, mask, 12.0), mask))
    apart = np.subtract(second.origin_yx, first.origin_yx)
    expected = (float(apart[0]) / factor, float(apart[1]) / factor)
    radius = params.search / factor + 1
    least = 0.25 * min(float(small[0][1].sum()), float(small[1][1].sum()))
    found = coarse_shift(small[0], small[1], expected, (radius, radius), max(least, 16.0))
    if found is not None and found[2] >= params.min_ncc / 2:
        shift = apart - np.array(found[:2]) * factor
        # Whole pixels between the two rasters, so that resampling the second copies it.
        shift = np.round(shift - apart) + apart
        return translation(shift), found[2]
    turned = _sift(first, second)
    if turned is not None:
        return turned, float("nan")
    return identity(), found[2] if found is not None else 0.0


def _sift(first: Picture, second: Picture) -> Affine | None:
    """Match features at a quarter of the size and fit turn, stretch and shift by RANSAC; None with under 12 inliers."""
    import cv2

    detector: Any = cv2.SIFT.create(nfeatures=2000)
    described = []
    for picture in (first, second):
        small = cv2.resize(picture.image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        size = (small.shape[1], small.shape[0])
        mask = cv2.resize(picture.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        described.append(detector.detectAndCompute(small, mask))
    (points_a, features_a), (points_b, features_b) = described
    if features_a is None or features_b is None or min(len(points_a), len(points_b)) < 12:
        return None
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features_a, features_b, k=2)
    good = [pair[0] for pair in candidates if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
    if len(good) < 12:
        return None
    # A quarter-size pixel's centre lies at 4 * p + 1.5 of the full picture.
    a = np.array([points_a[m.queryIdx].pt for m in good]) * 4 + 1.5
    b = np.array([points_b[m.trainIdx].pt for m in good]) * 4 + 1.5
    cv2.setRNGSeed(0)
    fitted, inliers = cv2.estimateAffinePartial2D(a, b, ransacReprojThreshold=6.0)
    if fitted is None or int(inliers.sum()) < 12:
        return None
    (xx, xy, tx), (yx, yy, ty) = fitted
    raster = np.array([[yy, yx, ty], [xy, xx, tx]])
    return compose(compose(translation(second.origin_yx), raster), translation(-np.array(first.origin_yx)))


def _centres(size: int, reach: int, stride: int) -> Sequence[int]:
    """Spread window centres evenly, about `stride` apart, from rim to rim."""
    room = size - 2 * reach
    if room < 0:
        return []
    steps = max(1, round(room / stride))
    return [reach + round(room * k / steps) for k in range(steps + 1)] if room else [reach]


def _fits_affine(points: Points, shift: Points, clear: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Mark windows within `limit` of the affine that most agree on: robust reweighting from the median shift."""
    if int(clear.sum()) < 4:
        return clear
    middle, spread = points.mean(axis=0), points.std() + 1e-9
    basis = np.concatenate([np.ones((len(points), 1)), (points - middle) / spread], axis=1)
    fit = np.zeros((3, 2))
    fit[0] = np.median(shift[clear], axis=0)
    scale = 2 * limit
    for _ in range(10):
        error = np.linalg.norm(shift - basis @ fit, axis=1)
        weights = np.where(clear, np.clip(1 - (error / (2 * scale)) ** 2, 0, 1) ** 2, 0.0)
        scale = max(limit, scale * 0.8)
        normal = basis.T @ (basis * weights[:, None]) + 1e-6 * np.eye(3)
        fit = np.linalg.solve(normal, basis.T @ (shift * weights[:, None]))
    return np.asarray(np.linalg.norm(shift - basis @ fit, axis=1) <= limit)
