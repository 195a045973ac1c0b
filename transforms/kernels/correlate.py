"""How well two pictures agree at every shift: normalised cross-correlation, with masks, to a fraction of a pixel."""

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.geometry import parabola_peak

Mask = NDArray[np.bool_]
_FLAT = 1e-3  # squared grey levels per pixel: below this a patch has no texture, and correlation is noise


def shrink(image: NDArray[np.uint8], mask: Mask, factor: int) -> tuple[NDArray[np.float32], Mask]:
    """Average `factor` x `factor` pixels; a coarse pixel is valid if more than half of it was."""
    import cv2

    if factor == 1:
        return image.astype(np.float32), mask
    size = (max(image.shape[1] // factor, 1), max(image.shape[0] // factor, 1))
    cut = (slice(0, size[1] * factor), slice(0, size[0] * factor))
    small = cv2.resize(image[cut].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(mask[cut].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32), np.asarray(share > 0.5)


def flatten(image: NDArray[np.float32], mask: Mask, sigma: float) -> NDArray[np.float32]:
    """Subtract the masked local mean of width `sigma`, so that shading does not correlate; 0 where invalid."""
    import cv2

    weight = mask.astype(np.float32)
    total = cv2.GaussianBlur(image * weight, (0, 0), sigma)
    mean = total / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3)
    return np.asarray((image - mean) * weight, np.float32)


def masked_ncc(
    a: NDArray[np.float32], b: NDArray[np.float32], mask_a: Mask, mask_b: Mask
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correlate `b` with `a` at every shift, over the pixels valid in both.

    Returns
    -------
    (ncc, overlap) : (ha + hb - 1, wa + wb - 1) float32
        Entry (i, j): `b` placed with its pixel (0, 0) on pixel (i - hb + 1, j - wb + 1) of `a`; the correlation in
        [-1, 1], and the number of pixels it was taken over.

    Notes
    -----
    Padfield 2012, "Masked object registration in the Fourier domain": six transforms, exact at every overlap.
    """
    from scipy.fft import irfft2, next_fast_len, rfft2

    shape = (a.shape[0] + b.shape[0] - 1, a.shape[1] + b.shape[1] - 1)
    size = (next_fast_len(shape[0], real=True), next_fast_len(shape[1], real=True))

    def forward(array: NDArray[np.float32], *, flip: bool) -> NDArray[np.complex64]:
        return np.asarray(rfft2(array[::-1, ::-1] if flip else array, size))

    ma, mb = mask_a.astype(np.float32), mask_b.astype(np.float32)
    # About the means the sums of squares stay small, else float32 loses them against 255^2 times the area.
    a = (a - a[mask_a].mean()) * ma if mask_a.any() else a * ma
    b = (b - b[mask_b].mean()) * mb if mask_b.any() else b * mb
    fa, fma, faa = (forward(x, flip=False) for x in (a, ma, a * a))
    fb, fmb, fbb = (forward(x, flip=True) for x in (b, mb, b * b))

    def back(product: NDArray[np.complex64]) -> NDArray[np.float32]:
        return np.asarray(irfft2(product, size), np.float32)[: shape[0], : shape[1]]

    count = np.maximum(back(fma * fmb), 1.0)
    sum_a, sum_b = back(fa * fmb), back(fma * fb)
    cross = back(fa * fb) - sum_a * sum_b / count
    var_a = np.maximum(back(faa * fmb) - sum_a**2 / count, 0)
    var_b = np.maximum(back(fma * fbb) - sum_b**2 / count, 0)
    textured = (var_a > _FLAT * count) & (var_b > _FLAT * count)
    ncc = np.where(textured, cross / np.sqrt(np.where(textured, var_a * var_b, 1.0)), 0.0)
    return np.clip(ncc, -1, 1).astype(np.float32), count.astype(np.float32)


def coarse_shift(
    a: tuple[NDArray[np.float32], Mask],
    b: tuple[NDArray[np.float32], Mask],
    expected: tuple[float, float],
    radius: tuple[float, float],
    least_overlap: float,
) -> tuple[int, int, float] | None:
    """Find where `b` lies in `a`, within `radius` of `expected`, or None where too little overlaps.

    Parameters
    ----------
    a, b : (picture, mask)
    expected, radius : (y, x) pixels of these pictures
    least_overlap : float
        Pixels that must be valid in both.

    Returns
    -------
    (dy, dx, ncc)
        The shift whose correlation is the least likely to be chance: a high value over few pixels counts less.
    """
    ncc, count = masked_ncc(a[0], b[0], a[1], b[1])
    rows = np.arange(ncc.shape[0]) - (b[0].shape[0] - 1)
    columns = np.arange(ncc.shape[1]) - (b[0].shape[1] - 1)
    near = (np.abs(rows - expected[0]) <= radius[0])[:, None] & (np.abs(columns - expected[1]) <= radius[1])[None, :]
    allowed = near & (count >= least_overlap)
    if not allowed.any():
        return None
    # Fisher's z over its standard error 1 / sqrt(n): correlations over unlike areas become comparable.
    score = np.where(allowed, np.arctanh(np.clip(ncc, -0.999, 0.999)) * np.sqrt(count), -np.inf)
    i, j = np.unravel_index(int(np.argmax(score)), score.shape)
    return int(rows[i]), int(columns[j]), float(ncc[i, j])


def template_shift(
    search: NDArray[np.uint8] | NDArray[np.float32],
    template: NDArray[np.uint8] | NDArray[np.float32],
    mask: Mask | None = None,
) -> tuple[float, float, float]:
    """Find `template` in the slightly larger `search`: its (y, x) to a fraction of a pixel, and the correlation.

    A template or surrounding without texture gives correlation 0. `mask` leaves template pixels out.
    """
    import cv2

    if float(np.var(template)) < _FLAT or float(np.var(search)) < _FLAT:
        return (search.shape[0] - template.shape[0]) / 2, (search.shape[1] - template.shape[1]) / 2, 0.0
    if mask is None or bool(mask.all()):
        scores = cv2.matchTemplate(search, template, cv2.TM_CCOEFF_NORMED)
    else:
        scores = cv2.matchTemplate(search, template, cv2.TM_CCOEFF_NORMED, mask=mask.astype(np.uint8))
    scores = np.nan_to_num(np.asarray(scores, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return parabola_peak(scores)
