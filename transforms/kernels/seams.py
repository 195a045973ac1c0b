"""Two overlapping tiles: where one lies in the other's frame, and what of a tile is picture at all.

Positions are (y, x) pixels of the frame that the stage positions are in; a tile's position is that of its pixel
(0, 0).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.correlate import Mask, coarse_shift, flatten, shrink, template_shift

Tile = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StitchParams:
    """How tiles are matched and solved. Lengths in pixels.

    Parameters
    ----------
    search : float
        Largest error, per axis, of one stage position against a neighbour's.
    min_ncc : float
        Seams that agree less are dropped: one blank seam otherwise ruins a section by tens of pixels.
    min_overlap : int
        Narrower overlaps are not tried.
    stage_sigma, seam_sigma : float
        How far a stage position and a matched seam are trusted; their ratio squared is the prior's weight.
    outlier : float
        Seams that contradict the solution by more are marked as not kept.
    padding : int
        Grey level up to which pixels joined to the tile's rim are padding; -1 = tiles have none.
    feather : float
        Width of the blend across a seam.
    illumination : bool
        Whether frame brightness and vignetting are solved for, from what two tiles show of the same place.
    """

    search: float = 16.0
    min_ncc: float = 0.3
    min_overlap: int = 12
    stage_sigma: float = 5.0
    seam_sigma: float = 0.2
    outlier: float = 4.0
    padding: int = -1
    feather: float = 24.0
    illumination: bool = True


@dataclass(frozen=True, slots=True)
class Seam:
    """What two tiles say about each other: tile `b` lies at tile `a` + (dy, dx)."""

    a: int
    b: int
    dy: float
    dx: float
    ncc: float
    overlap: int
    kept: bool = True
    residual: float = float("nan")


@dataclass(frozen=True, slots=True)
class View:
    """A tile with its valid pixels, and a coarse copy for the search."""

    image: Tile
    mask: Mask
    coarse: NDArray[np.float32] = field(repr=False)
    coarse_mask: Mask = field(repr=False)


def padding_mask(tile: Tile, level: int, *, erode: int = 4) -> Mask:
    """Mark what is picture: False where pixels up to `level`, joined to the rim, were filled in by a lens correction.

    `erode` pixels more are given up along the padding, where compression and interpolation smear its edge.
    """
    import cv2

    if level < 0:
        return np.ones(tile.shape, bool)
    dark = np.pad((tile <= level).astype(np.uint8), 1, constant_values=1)
    flooded = np.zeros((dark.shape[0] + 2, dark.shape[1] + 2), np.uint8)
    cv2.floodFill(dark, flooded, (0, 0), 2)
    padding = (dark == 2).astype(np.uint8)
    if int(padding[1:-1, 1:-1].sum()) == 0:
        return np.ones(tile.shape, bool)
    inner = padding.copy()
    inner[[0, -1], :] = inner[:, [0, -1]] = 0  # the rim itself is no padding: nothing is given up along it
    grown = cv2.dilate(inner, np.ones((2 * erode + 1, 2 * erode + 1), np.uint8))
    return np.asarray(grown[1:-1, 1:-1] == 0)


def view_of(tile: Tile, params: StitchParams) -> View:
    """Prepare a tile for matching."""
    mask = padding_mask(tile, params.padding)
    small, small_mask = shrink(tile, mask, _factor(params.search))
    return View(tile, mask, flatten(small, small_mask, 8.0), small_mask)


def match_pair(
    a: View, b: View, expected: tuple[float, float], params: StitchParams
) -> tuple[float, float, float, int] | None:
    """Measure where tile `b` lies in tile `a`'s frame; None if they cannot overlap enough.

    Returns
    -------
    (dy, dx, ncc, overlap)
        The offset of b's origin to a fraction of a pixel, the correlation there, the pixels it rests on.
    """
    factor = _factor(params.search)
    boxes = [_overlap(n, m, e, params.search) for n, m, e in zip(a.image.shape, b.image.shape, expected, strict=True)]
    if any(min(a1 - a0, b1 - b0) < params.min_overlap for (a0, a1), (b0, b1) in boxes):
        return None
    # Strips are cut on the coarse grid, so that the coarse shift is one of whole coarse pixels.
    (ay, by), (ax, bx) = boxes
    cut_a = tuple(slice(lo // factor, -(-hi // factor)) for lo, hi in (ay, ax))
    cut_b = tuple(slice(lo // factor, -(-hi // factor)) for lo, hi in (by, bx))
    start = [(sb.start - sa.start) for sa, sb in zip(cut_a, cut_b, strict=True)]
    guess = tuple(e / factor + s for e, s in zip(expected, start, strict=True))
    radius = (params.search / factor + 1,) * 2
    least = (params.min_overlap / factor) * min(cut_a[0].stop - cut_a[0].start, cut_a[1].stop - cut_a[1].start)
    found = coarse_shift(
        (a.coarse[cut_a], a.coarse_mask[cut_a]),
        (b.coarse[cut_b], b.coarse_mask[cut_b]),
        (guess[0], guess[1]),
        (radius[0], radius[1]),
        max(least, 16.0),
    )
    if found is None:
        return None
    offset = ((found[0] - start[0]) * factor, (found[1] - start[1]) * factor)
    return _refine(a, b, offset, factor + 3)


def _factor(search: float) -> int:
    """Coarsening at which the search radius is 8 to 16 coarse pixels (at least 2: the fine step then has 5 px)."""
    factor = 2
    while search / factor > 16:
        factor *= 2
    return factor


def _overlap(n: int, m: int, expected: float, search: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give, on one axis, the pixels of a and of b that may overlap when b begins at `expected` +- `search` in a."""
    low, high = expected - search, expected + search
    in_a = (int(max(0, np.floor(low))), int(min(n, np.ceil(high + m))))
    in_b = (int(max(0, np.floor(-high))), int(min(m, np.ceil(n - low))))
    return in_a, in_b


def _refine(a: View, b: View, offset: tuple[int, int], slack: int) -> tuple[float, float, float, int] | None:
    """Look for the inside of the overlap, cut from `a`, in `b`, within `slack` pixels of `offset`."""
    ranges = []
    for n, m, d in zip(a.image.shape, b.image.shape, offset, strict=True):
        low, high = max(0, d + slack), min(n, d + m - slack)
        if high - low < 8:
            return None
        ranges.append((low, high))
    (y0, y1), (x0, x1) = ranges
    template = a.image[y0:y1, x0:x1]
    rows = slice(y0 - offset[0] - slack, y1 - offset[0] + slack)
    columns = slice(x0 - offset[1] - slack, x1 - offset[1] + slack)
    search = b.image[rows, columns]
    mask = a.mask[y0:y1, x0:x1]
    seen = b.mask[rows, columns]
    if not seen.all():
        import cv2

        # A template pixel counts only if, wherever the template lands, b has picture there.
        kernel = np.ones((2 * slack + 1, 2 * slack + 1), np.uint8)
        sure = cv2.erode(seen.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
        mask = mask & (sure[slack:-slack, slack:-slack] > 0)
    pixels = int(mask.sum())
    if pixels < 64:
        return None
    y, x, ncc = template_shift(search, template, mask)
    return offset[0] - (y - slack), offset[1] - (x - slack), ncc, pixels
