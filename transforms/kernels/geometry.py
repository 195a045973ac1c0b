"""Points, affines and resampling in one convention: yx, pixels, a pixel's centre at its integer coordinate.

An affine is (2, 3) float64: `[[a_yy, a_yx, t_y], [a_xy, a_xx, t_x]]` takes a point (y, x) to `A @ (y, x) + t`.
OpenCV's own matrices are xy; only this module turns one into the other.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Points = NDArray[np.float64]
Outside = Literal["zero", "mirror"]
Sampling = Literal["nearest", "linear", "cubic", "lanczos"]


def identity() -> Affine:
    """Give the affine that moves nothing."""
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def translation(shift_yx: NDArray[np.float64] | tuple[float, float]) -> Affine:
    """Give the affine that adds `shift_yx`."""
    affine = identity()
    affine[:, 2] = shift_yx
    return affine


def apply(affine: Affine, points: Points) -> Points:
    """Move points, (..., 2) yx."""
    moved: Points = points @ affine[:, :2].T + affine[:, 2]
    return moved


def compose(second: Affine, first: Affine) -> Affine:
    """Give the affine that does `first`, then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def invert(affine: Affine) -> Affine:
    """Give the affine that undoes this one; `LinAlgError` if it flattens the plane."""
    inverse = np.linalg.inv(affine[:, :2])
    return np.column_stack([inverse, -inverse @ affine[:, 2]])


def resample(
    image: NDArray[np.uint8] | NDArray[np.float32],
    affine: Affine,
    shape: tuple[int, int],
    *,
    outside: Outside = "zero",
    sampling: Sampling = "cubic",
    displacement: NDArray[np.float32] | None = None,
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Fill a canvas of `shape` with `image` looked up at `affine(pixel + displacement)`.

    Parameters
    ----------
    image : (h, w) uint8 or float32
        The type is kept; uint8 is rounded and clipped.
    affine : (2, 3)
        From a canvas pixel to the image pixel it shows (the inverse of the image's own motion).
    displacement : (2, *shape) float32, optional
        Added to the canvas pixel, yx, before the affine.

    Notes
    -----
    OpenCV quantises the sub-pixel position to 1/32 pixel.
    """
    import cv2

    flag = {
        "nearest": cv2.INTER_NEAREST,
        "linear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    }[sampling]
    border = cv2.BORDER_REFLECT_101 if outside == "mirror" else cv2.BORDER_CONSTANT
    (yy, yx, ty), (xy, xx, tx) = affine
    if displacement is None:
        matrix = np.array([[xx, xy, tx], [yx, yy, ty]])
        out = cv2.warpAffine(
            image, matrix, (shape[1], shape[0]), flags=flag | cv2.WARP_INVERSE_MAP, borderMode=border, borderValue=0
        )
    else:
        y = np.arange(shape[0], dtype=np.float32)[:, None] + displacement[0]
        x = np.arange(shape[1], dtype=np.float32)[None, :] + displacement[1]
        map_y = (yy * y + yx * x + ty).astype(np.float32)
        map_x = (xy * y + xx * x + tx).astype(np.float32)
        out = cv2.remap(image, map_x, map_y, flag, borderMode=border, borderValue=0)
    return np.asarray(out)


def parabola_peak(scores: NDArray[np.float32]) -> tuple[float, float, float]:
    """Find the maximum of a correlation surface to a fraction of a pixel.

    Returns
    -------
    (y, x, height)
        The peak of the parabolas through the highest sample and its neighbours on each axis; at the surface's rim the
        sample itself. `height` is the highest sample.
    """
    y, x = np.unravel_index(int(np.argmax(scores)), scores.shape)
    peak = [float(y), float(x)]
    for axis, (at, size) in enumerate(zip((y, x), scores.shape, strict=True)):
        if 0 < at < size - 1:
            low, high = (scores[y - 1, x], scores[y + 1, x]) if axis == 0 else (scores[y, x - 1], scores[y, x + 1])
            bend = float(low) - 2 * float(scores[y, x]) + float(high)
            if bend < 0:
                peak[axis] += 0.5 * (float(low) - float(high)) / bend
    return peak[0], peak[1], float(scores[y, x])
