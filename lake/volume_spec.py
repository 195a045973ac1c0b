"""What a volume is: its type, place, resolution, scales and grid of chunks and shards."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import numpy as np

from lake.box import Box, Zyx
from lake.errors import BadInput

VolumeKind = Literal["image", "segmentation", "affinity"]
Driver = Literal["precomputed", "zarr3"]
_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
_KINDS = ("image", "segmentation", "affinity")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Declaration of a volume; axis order z, y, x (and c in front with several channels).

    Parameters
    ----------
    name : str
        Folder name below `volumes/`.
    kind : "image", "segmentation" or "affinity"
        Decides how coarser scales are made: mean for images and affinities, mode for segmentations.
    shape_zyx, offset_zyx : (z, y, x) int
        Size and first voxel at full resolution, global coordinates.
    voxel_nm_zyx : (z, y, x) float
        Voxel size at full resolution.
    chunk_zyx : (z, y, x) int
        What is read and decoded at once.
    scales : tuple of (z, y, x) int
        Downsampling factors from full resolution; the first is (1, 1, 1), each a multiple of the one before.
    shard_zyx : (z, y, x) int or None
        What one file holds; a multiple of the chunk. None: a file per chunk. A write covers whole shards.
    """

    name: str
    kind: VolumeKind
    dtype: str
    shape_zyx: Zyx
    voxel_nm_zyx: tuple[float, float, float]
    offset_zyx: Zyx = (0, 0, 0)
    channels: int = 1
    chunk_zyx: Zyx = (64, 64, 64)
    driver: Driver = "precomputed"
    scales: tuple[Zyx, ...] = ((1, 1, 1),)
    shard_zyx: Zyx | None = None

    def __post_init__(self) -> None:
        # Lists (from JSON or TOML) become tuples, so that equal specs are equal.
        for name in ("shape_zyx", "offset_zyx", "chunk_zyx"):
            object.__setattr__(self, name, _triple(name, getattr(self, name)))
        nm = tuple(float(v) for v in self.voxel_nm_zyx)
        object.__setattr__(self, "voxel_nm_zyx", nm)
        object.__setattr__(self, "scales", tuple(_triple("scales", s) for s in self.scales))
        if self.shard_zyx is not None:
            object.__setattr__(self, "shard_zyx", _triple("shard_zyx", self.shard_zyx))
        self._check(nm)

    def _check(self, nm: tuple[float, ...]) -> None:
        problems = {
            f"kind {self.kind!r}": self.kind in _KINDS,
            f"driver {self.driver!r}": self.driver in ("precomputed", "zarr3"),
            f"dtype {self.dtype!r} (known: {', '.join(_DTYPES)})": self.dtype in _DTYPES,
            f"segmentation dtype {self.dtype!r} (must be an unsigned integer)": self.kind != "segmentation"
            or self.dtype in ("uint8", "uint16", "uint32", "uint64"),
            f"shape {self.shape_zyx}": min(self.shape_zyx) > 0,
            f"chunk {self.chunk_zyx}": min(self.chunk_zyx) > 0,
            f"channels {self.channels}": self.channels >= 1,
            f"voxel size {nm} nm": len(nm) == 3 and min(nm) > 0,
            f"scales {self.scales} (the first is 1,1,1; each a multiple of the one before)": _nested(self.scales),
            f"shard {self.shard_zyx} (a multiple of the chunk {self.chunk_zyx})": self.shard_zyx is None
            or all(s % c == 0 and s >= c for s, c in zip(self.shard_zyx, self.chunk_zyx, strict=True)),
        }
        bad = [what for what, fine in problems.items() if not fine]
        if bad:
            raise BadInput(f"volume {self.name!r} cannot have {bad[0]}", fix="correct the volume's specification")

    @property
    def box(self) -> Box:
        """Where the volume lies at full resolution, global voxels."""
        return self.scale_box(0)

    @property
    def numpy_dtype(self) -> "np.dtype[np.generic]":
        """The element type."""
        return np.dtype(self.dtype)

    def scale_box(self, scale: int) -> Box:
        """Give the box at a scale, in voxels of that scale: every voxel that a full-resolution voxel falls into."""
        factor = self._factor(scale)
        start = tuple(o // f for o, f in zip(self.offset_zyx, factor, strict=True))
        stop = tuple(-(-(o + n) // f) for o, n, f in zip(self.offset_zyx, self.shape_zyx, factor, strict=True))
        return Box(cast(Zyx, start), cast(Zyx, stop))

    def scale_nm(self, scale: int) -> tuple[float, float, float]:
        """Give the voxel size at a scale, nm."""
        z, y, x = (nm * f for nm, f in zip(self.voxel_nm_zyx, self._factor(scale), strict=True))
        return z, y, x

    def step(self, scale: int) -> Zyx:
        """Give the factors from scale - 1 to `scale`."""
        fine, coarse = self._factor(scale - 1), self._factor(scale)
        return cast(Zyx, tuple(c // f for c, f in zip(coarse, fine, strict=True)))

    def _factor(self, scale: int) -> Zyx:
        if not 0 <= scale < len(self.scales):
            raise BadInput(f"volume {self.name!r} has no scale {scale}", fix=f"it has scales 0..{len(self.scales) - 1}")
        return self.scales[scale]


def _triple(name: str, value: object) -> Zyx:
    try:
        z, y, x = (int(v) for v in cast(tuple[int, ...], value))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} {value!r} is not three whole numbers", fix="give z, y, x") from error
    return z, y, x


def _nested(scales: tuple[Zyx, ...]) -> bool:
    if not scales or scales[0] != (1, 1, 1):
        return False
    pairs = pairwise(scales)
    return all(a >= 1 and b % a == 0 for fine, coarse in pairs for a, b in zip(fine, coarse, strict=True))
