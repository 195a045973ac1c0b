"""Is a tile file good? Container, pixels, focus, contrast, saturation; one file at a time, then against its section.

Two kinds of trouble are kept apart. A *misfit* (a tile of another shape or type than the table of tiles says) means
that the request is wrong: nothing is ingested. A *fault* (cut short, blank, out of focus) is what happens at a
microscope: the tile is archived as it is, and quarantined with the reason.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lake.digests import bytes_digest
from transforms.kernels.seams import padding_mask

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = {b"II*\x00": "<", b"MM\x00*": ">"}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_STRIP = 1 << 17  # pixels that are measured at a time
_REACH = 3  # rows that smoothing and Laplacian look beyond a pixel
_OFFSETS = {273: 279, 324: 325}  # strip and tile offsets, and the tags that hold their byte counts


@dataclass(frozen=True, slots=True)
class TilePolicy:
    """What makes a tile good.

    Parameters
    ----------
    dtypes : tuple of str
        Pixel types that are taken.
    min_contrast : float
        Least distance of the 99th from the 1st percentile, grey levels of 255; below it the tile is blank.
    max_saturation : float
        Largest share of pixels at the ends of the range.
    min_focus_z : float
        Lowest robust z score of log focus against the tile's section.
    focus_spread : float
        Least standard deviation of log focus that is assumed: with four tiles a section's own may be near 0 by chance.
    padding : int
        Grey level up to which pixels joined to the rim are a lens correction's padding, and are not judged; -1 = none.
    misfit : "refuse" or "quarantine"
        What becomes of a tile of another shape or type than declared.
    """

    dtypes: tuple[str, ...] = ("uint8",)
    min_contrast: float = 8.0
    max_saturation: float = 0.01
    min_focus_z: float = -3.0
    focus_spread: float = 0.25
    padding: int = -1
    misfit: Literal["refuse", "quarantine"] = "refuse"


@dataclass(frozen=True, slots=True)
class TileCheck:
    """What one file is found to be.

    Attributes
    ----------
    sha256, bytes : str, int
        Of the file.
    shape, dtype : (y, x), str; None
        None if it does not decode.
    sharpness : float or None
        Variance of the Laplacian of the tile smoothed by one pixel, over its variance: noise and contrast hardly count.
    contrast : float or None
        99th minus 1st percentile, grey levels of 255.
    saturation : float or None
        Share of clipped pixels.
    fault, misfit : str
        Why it must be quarantined, or contradicts its declaration; empty if not.
    """

    sha256: str
    bytes: int
    shape: tuple[int, int] | None = None
    dtype: str | None = None
    sharpness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    fault: str = ""
    misfit: str = ""


def check_tile(data: bytes, *, shape: tuple[int, int] | None, sha256: str | None, policy: TilePolicy) -> TileCheck:
    """Validate one file by itself.

    Parameters
    ----------
    shape : (height, width), optional
        As declared.
    sha256 : str, optional
        As declared; another digest is a fault.
    """
    import cv2

    digest = bytes_digest(data)
    if sha256 is not None and digest != sha256:
        return TileCheck(digest, len(data), fault=f"digest {digest[:12]}... differs from the declared {sha256[:12]}...")
    broken = container_fault(data)
    if broken:
        return TileCheck(digest, len(data), fault=broken)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return TileCheck(digest, len(data), fault="does not decode")
    pixels = np.asarray(image)
    dtype = str(pixels.dtype)
    if pixels.ndim != 2:
        return TileCheck(digest, len(data), misfit=f"has {pixels.shape[2]} channels, not one")
    found = (int(pixels.shape[0]), int(pixels.shape[1]))
    if dtype not in policy.dtypes:
        misfit = f"has pixels of type {dtype}, not {' or '.join(policy.dtypes)}"
        return TileCheck(digest, len(data), found, dtype, misfit=misfit)
    if shape is not None and found != shape:
        misfit = f"is {found[1]} x {found[0]} px, declared as {shape[1]} x {shape[0]}"
        return TileCheck(digest, len(data), found, dtype, misfit=misfit)
    sharpness, contrast, saturation = measure(pixels, policy)
    fault = ""
    if contrast < policy.min_contrast:
        fault = f"blank: contrast {contrast:.1f} below {policy.min_contrast:g} grey levels"
    elif saturation > policy.max_saturation:
        fault = f"saturated: {saturation:.1%} of pixels clipped, more than {policy.max_saturation:.1%}"
    return TileCheck(digest, len(data), found, dtype, sharpness, contrast, saturation, fault=fault)


def measure(pixels: NDArray[Any], policy: TilePolicy) -> tuple[float, float, float]:
    """Give sharpness, contrast and saturation (see `TileCheck`) of a (y, x) picture, padding left out."""
    mask = None
    if policy.padding >= 0 and pixels.dtype == np.uint8:
        found = padding_mask(pixels, policy.padding, erode=8)
        mask = None if found.all() else found.astype(np.uint8)
    if pixels.size == 0 or (mask is not None and not mask.any()):
        return 0.0, 0.0, 0.0
    contrast, saturation = _grey_levels(pixels, mask)
    return _sharpness(pixels, mask), contrast, saturation


def _grey_levels(pixels: NDArray[Any], mask: NDArray[np.uint8] | None) -> tuple[float, float]:
    """Give contrast and saturation; bytes are counted once for both, other types sorted."""
    ends, scale = _ends(pixels)
    if pixels.dtype == np.uint8:
        counts = np.zeros(256)
        for low, high in _strips(pixels.shape):
            counts += _histogram(pixels[low:high], None if mask is None else mask[low:high])
        below = np.cumsum(counts)
        first, last = np.searchsorted(below, [0.01 * below[-1], 0.99 * below[-1]])
        return float(last - first), float((counts[0] + counts[-1]) / below[-1])
    inside = pixels.ravel()
    saturation = float(((inside == ends[0]) | (inside == ends[1])).mean())
    least, most = np.percentile(inside, [1, 99])
    return float(most - least) * scale, saturation


def _histogram(pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    import cv2

    # Counts come as float32: exact in a strip.
    return np.asarray(cv2.calcHist([pixels], [0], mask, [256], [0, 256]), np.float32).ravel()


def _sharpness(pixels: NDArray[Any], mask: NDArray[np.uint8] | None) -> float:
    """Variance of the Laplacian of the smoothed picture over its variance; 0 for a flat one.

    Strip by strip: what is made of one stays in the processor's cache, which is worth a factor of three.
    """
    import cv2

    kernel = cv2.getGaussianKernel(5, 1.0, cv2.CV_32F)
    source = pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32)
    smoothed, details = _Spread(), _Spread()
    for low, high in _strips(pixels.shape):
        start = max(low - _REACH, 0)
        smooth = cv2.sepFilter2D(source[start : high + _REACH], cv2.CV_32F, kernel, kernel)
        detail = cv2.Laplacian(smooth, cv2.CV_32F)
        seen = None if mask is None else mask[low:high]
        for spread, picture in ((smoothed, smooth), (details, detail)):
            spread.add(np.asarray(picture)[low - start : high - start], seen)
    return details.variance / smoothed.variance if smoothed.variance > 0 else 0.0


def _strips(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of a picture, and the one behind its last."""
    rows = max(_STRIP // shape[1], 1)
    for low in range(0, shape[0], rows):
        yield low, min(low + rows, shape[0])


class _Spread:
    """The variance of values that come in parts."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: NDArray[np.float32], mask: NDArray[np.uint8] | None) -> None:
        import cv2

        # Summed in doubles: pixels have at most 16 bits, so what is left of the difference of squares is exact enough.
        count = values.size if mask is None else int(np.count_nonzero(mask))
        self._count += count
        self._sum += cv2.mean(values, mask)[0] * count
        self._squares += cv2.norm(values, cv2.NORM_L2SQR, mask)

    @property
    def variance(self) -> float:
        if not self._count:
            return 0.0
        return max(self._squares / self._count - (self._sum / self._count) ** 2, 0.0)


def focus_scores(
    sharpness: Sequence[float], reference: Sequence[float], spread: float
) -> tuple[list[float], list[float]]:
    """Compare tiles with the good ones of their section.

    Returns
    -------
    (ratio, z)
        Sharpness over the reference's median, and the robust z score of its logarithm (median, 1.4826 MAD, at least
        `spread`); an empty reference gives ratio 1 and z 0.
    """
    known = np.log(np.maximum(np.asarray(reference, float), 1e-12))
    if not known.size:
        return [1.0] * len(sharpness), [0.0] * len(sharpness)
    median = float(np.median(known))
    width = max(1.4826 * float(np.median(np.abs(known - median))), spread)
    logs = np.log(np.maximum(np.asarray(sharpness, float), 1e-12))
    return np.exp(logs - median).tolist(), ((logs - median) / width).tolist()


def container_fault(data: bytes) -> str:
    """Say what is wrong with a PNG, TIFF or JPEG file before it is decoded; empty if nothing.

    Decoders differ in what they make of half a file: some give a picture with a grey half and no error.
    """
    if not data:
        return "empty file"
    if data.startswith(_PNG):
        return _png_fault(data)
    if data.startswith(_JPEG):
        # Some writers pad; the end marker is then followed by zeros.
        return "" if data.rstrip(b"\0").endswith(b"\xff\xd9") else "truncated: JPEG without its end marker"
    if data[:4] in _TIFF:
        return _tiff_fault(data, _TIFF[data[:4]])
    return "not a PNG, TIFF or JPEG file"


def _png_fault(data: bytes) -> str:
    at = len(_PNG)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        if end > len(data):
            break
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != crc:
            return f"damaged: checksum of PNG chunk {kind.decode('latin-1')!r} at byte {at} is wrong"
        if kind == b"IEND":
            return ""
        at = end
    return f"truncated: PNG ends after {len(data)} bytes, before its last chunk"


def _tiff_fault(data: bytes, order: str) -> str:
    cut = f"truncated: TIFF ends after {len(data)} bytes, before its pixels do"
    try:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        values: dict[int, tuple[int, ...]] = {}
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, n = struct.unpack_from(f"{order}HHI", data, entry)
            if tag in _OFFSETS or tag in _OFFSETS.values():
                where = entry + 8
                if n * _TIFF_SIZES[kind] > 4:
                    (where,) = struct.unpack_from(f"{order}I", data, where)
                values[tag] = struct.unpack_from(f"{order}{n}{'H' if kind == 3 else 'I'}", data, where)
    except (struct.error, KeyError):
        return cut
    for offsets, counts in _OFFSETS.items():
        for start, size in zip(values.get(offsets, ()), values.get(counts, ()), strict=False):
            if start + size > len(data):
                return cut
    return "" if any(tag in values for tag in _OFFSETS) else "damaged: TIFF without pixels"


def _ends(pixels: NDArray[Any]) -> tuple[tuple[float, float], float]:
    """Give a type's least and largest value, and the factor that brings its range to 255."""
    if np.issubdtype(pixels.dtype, np.integer):
        limits = np.iinfo(pixels.dtype)
        return (float(limits.min), float(limits.max)), 255.0 / (float(limits.max) - float(limits.min))
    return (float("-inf"), float("inf")), 255.0
