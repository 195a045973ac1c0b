"""Draws a section from its tiles, straight into the frame of the volume."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.correlate import Mask
from transforms.kernels.geometry import Affine, apply, compose, identity, invert, resample, translation
from transforms.kernels.seams import StitchParams, Tile, padding_mask
from transforms.kernels.stitch import Stitched


def render_section(
    tiles: Sequence[Tile],
    stitched: Stitched,
    origin_yx: tuple[float, float],
    shape: tuple[int, int],
    *,
    from_canvas: Affine | None = None,
    displacement: NDArray[np.float32] | None = None,
    params: StitchParams | None = None,
) -> tuple[NDArray[np.uint8], Mask]:
    """Draw the section on a canvas whose pixel (0, 0) lies at `origin_yx`.

    Parameters
    ----------
    from_canvas : (2, 3), optional
        From a place in the canvas's frame to the place in the stitched frame shown there (an alignment, inverted).
    displacement : (2, *shape) float32, optional
        Added to the canvas place before `from_canvas`, yx pixels (see `align.Placement.displacement`).

    Returns
    -------
    (image, mask)
        Where the mask is False no tile saw the section, and the image is 0.
    """
    params = params or StitchParams()
    to_section = compose(identity() if from_canvas is None else from_canvas, translation(origin_yx))
    total = np.zeros(shape, np.float32)
    weight = np.zeros(shape, np.float32)
    for tile, position, gain in zip(tiles, stitched.positions, stitched.gains, strict=True):
        to_tile = compose(translation(-position), to_section)
        window = _window(invert(to_tile), tile.shape, shape, displacement)
        if window is None:
            continue
        rows, columns = window
        local = compose(to_tile, translation((rows.start, columns.start)))
        size = (rows.stop - rows.start, columns.stop - columns.start)
        move = None if displacement is None else displacement[:, rows, columns]
        # Only the part of the tile that shows in the window is worked on: blocks are small, camera tiles are not.
        part = _source(local, size, tile.shape, move)
        local = compose(translation((-part[0].start, -part[1].start)), local)
        even = tile[part].astype(np.float32) / (np.float32(gain) * _light(tile.shape, stitched.light, part))
        # The mirror beyond the rim keeps the cubic kernel from ringing there; the weight is zero outside.
        picture = resample(even, local, size, outside="mirror", displacement=move)
        feather = resample(_feather(tile, part, params), local, size, sampling="linear", displacement=move)
        total[rows, columns] += picture * feather
        weight[rows, columns] += feather
    mask = weight > 0  # steep feathers reach 1e-17 at the rim of a large tile
    image = np.divide(total, weight, out=np.zeros_like(total), where=mask)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def coverage(mask: Mask) -> float:
    """Share of the canvas that some tile saw."""
    return float(mask.mean())


def _light(shape: tuple[int, ...], light: NDArray[np.float64], part: tuple[slice, slice]) -> NDArray[np.float32]:
    y = np.linspace(-1, 1, shape[0])[part[0], None]
    x = np.linspace(-1, 1, shape[1])[None, part[1]]
    return np.asarray(np.exp(-light[0] * y**2) * np.exp(-light[1] * x**2), np.float32)


def _feather(tile: Tile, part: tuple[slice, slice], params: StitchParams) -> NDArray[np.float32]:
    """Weight of the pixels of a tile's part: their distance to the tile's rim or padding, to a power."""
    import cv2

    height, width = tile.shape
    y = np.minimum(np.arange(1, height + 1), np.arange(height, 0, -1))[part[0], None]
    x = np.minimum(np.arange(1, width + 1), np.arange(width, 0, -1))[None, part[1]]
    distance = np.minimum(y, x).astype(np.float32)
    mask = padding_mask(tile, params.padding)
    if not mask.all():
        distance = np.minimum(distance, cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_C, 3)[part])
    # w = d^p: across an overlap of width v the blend goes from 10 to 90 % over about v / p pixels. Beyond p = 5 the
    # rim of a large tile would weigh nothing at all in float32.
    edge = float(min(height, width))
    power = min(max(1.0, 0.15 * edge / params.feather), 5.0)
    return np.asarray((distance / edge) ** power, np.float32)


def _source(
    to_tile: Affine, size: tuple[int, int], tile_shape: tuple[int, ...], displacement: NDArray[np.float32] | None
) -> tuple[slice, slice]:
    """Give the part of a tile that a window of `size` shows, with room for interpolation; never empty."""
    height, width = size
    corners = apply(to_tile, np.array([[0, 0], [0, width - 1], [height - 1, 0], [height - 1, width - 1]], float))
    room = 6.0 if displacement is None else 6.0 + 2 * float(np.abs(displacement).max())
    low = np.floor(corners.min(axis=0) - room).astype(int)
    high = np.ceil(corners.max(axis=0) + room).astype(int) + 1
    y0, x0 = (min(max(0, int(v)), edge - 1) for v, edge in zip(low, tile_shape, strict=True))
    y1, x1 = (max(min(edge, int(v)), first + 1) for v, edge, first in zip(high, tile_shape, (y0, x0), strict=True))
    return slice(y0, y1), slice(x0, x1)


def _window(
    to_canvas: Affine, tile_shape: tuple[int, ...], shape: tuple[int, int], displacement: NDArray[np.float32] | None
) -> tuple[slice, slice] | None:
    """Give the part of the canvas that a tile can reach, or None."""
    height, width = tile_shape
    corners = apply(to_canvas, np.array([[0, 0], [0, width - 1], [height - 1, 0], [height - 1, width - 1]], float))
    slack = 1.0 if displacement is None else 1.0 + float(np.abs(displacement).max())
    low = np.floor(corners.min(axis=0) - slack).astype(int)
    high = np.ceil(corners.max(axis=0) + slack).astype(int) + 1
    y0, x0 = (max(0, int(v)) for v in low)
    y1, x1 = (min(edge, int(v)) for v, edge in zip(high, shape, strict=True))
    return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None
