"""The neuroglancer precomputed format: the `info` file, names of chunks, and which chunks a shard holds.

Axis order on disk is x, y, z, channel, x fastest. In a sharded scale, chunk (x, y, z) has the compressed Morton code
of its grid position: the bits of x, y and z in turn, lowest first, each axis only as many bits as its grid needs. We
number shards by that code without its lowest k bits, so a shard is a box of chunks, `2^a x 2^b x 2^c`::

    bits, lowest first:   x0 y0 z0 x1 y1 z1 ...        k = 3: 2 x 2 x 2 chunks;  k = 4: 4 x 2 x 2 (x, y, z)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from lake.box import Box, Zyx
from lake.errors import BadInput
from lake.volume_spec import VolumeKind, VolumeSpec

_SEGMENTATION_BLOCK = [8, 8, 8]
_MINISHARD_BITS = 9  # at most 512 chunks in a minishard: its index is read whole before any chunk


@dataclass(frozen=True, slots=True)
class ShardGrid:
    """How the chunks of one scale are dealt to shards.

    Parameters
    ----------
    axes : tuple of int
        Axis (0 = x, 1 = y, 2 = z) that each bit of the Morton code belongs to, lowest bit first.
    low_bits : int
        How many of them are inside a shard (k).
    """

    axes: tuple[int, ...]
    low_bits: int

    @classmethod
    def of(cls, grid_xyz: Zyx, low_bits: int) -> "ShardGrid":
        """Lay out a grid of `grid_xyz` chunks; a grid with fewer than `low_bits` bits is one shard."""
        axes = tuple(
            axis for bit in range(max(grid_xyz).bit_length()) for axis in range(3) if (1 << bit) < grid_xyz[axis]
        )
        return cls(axes, min(low_bits, len(axes)))

    @property
    def chunks_xyz(self) -> Zyx:
        """Chunks of one shard along x, y, z."""
        inside = self.axes[: self.low_bits]
        return 1 << inside.count(0), 1 << inside.count(1), 1 << inside.count(2)

    @property
    def shard_bits(self) -> int:
        """Bits of a shard's number."""
        return len(self.axes) - self.low_bits

    @property
    def minishard_bits(self) -> int:
        """Bits of a minishard's number within its shard."""
        return max(0, self.low_bits - _MINISHARD_BITS)

    def shard_of(self, chunk_xyz: Zyx) -> int:
        """Give the number of the shard that holds a chunk."""
        taken = [0, 0, 0]
        code = 0
        for place, axis in enumerate(self.axes):
            code |= (chunk_xyz[axis] >> taken[axis] & 1) << place
            taken[axis] += 1
        return code >> self.low_bits

    def file(self, chunk_xyz: Zyx) -> str:
        """Name the file of the shard that holds a chunk."""
        digits = -(-self.shard_bits // 4)
        return f"{self.shard_of(chunk_xyz):0{digits}x}.shard"

    def empty_shard(self) -> bytes:
        """Give the bytes of a shard that holds no chunk, hence reads as zeros: a shard index of empty minishards."""
        return bytes(16 << self.minishard_bits)

    def to_json(self) -> dict[str, object]:
        """Give the `sharding` member of a scale."""
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": self.low_bits - self.minishard_bits,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "hash": "identity",
            "minishard_index_encoding": "gzip",
            "data_encoding": "raw",
        }


def low_bits_of(spec: VolumeSpec) -> int | None:
    """Find k for the specified shard, or None for an unsharded volume; `BadInput` lists the shapes that exist."""
    if spec.shard_zyx is None:
        return None
    grid = grid_xyz(spec, 0)
    wanted = tuple(
        min(s // c, 1 << (n - 1).bit_length())
        for s, c, n in zip(spec.shard_zyx[::-1], spec.chunk_zyx[::-1], grid, strict=True)
    )
    shapes = []
    for k in range(len(ShardGrid.of(grid, 0).axes) + 1):
        chunks = ShardGrid.of(grid, k).chunks_xyz
        if chunks == wanted:
            return k
        shapes.append(tuple(n * c for n, c in zip(chunks[::-1], spec.chunk_zyx, strict=True)))
    raise BadInput(
        f"volume {spec.name!r}: a precomputed shard cannot be {spec.shard_zyx} (zyx)",
        fix=f"choose one of {shapes}, or driver='zarr3'",
    )


def grid_xyz(spec: VolumeSpec, scale: int) -> Zyx:
    """Count the chunks of a scale along x, y, z."""
    shape = spec.scale_box(scale).shape
    z, y, x = (-(-n // c) for n, c in zip(shape, spec.chunk_zyx, strict=True))
    return x, y, z


def info_bytes(spec: VolumeSpec) -> bytes:
    """Write the `info` file: all scales at once, since a server refuses to have it changed conditionally later."""
    info: dict[str, object] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if spec.kind == "segmentation" else "image",
        "data_type": spec.dtype,
        "num_channels": spec.channels,
        "scales": [_scale(spec, scale) for scale in range(len(spec.scales))],
    }
    return json.dumps(info, indent=1, sort_keys=True).encode()


def _scale(spec: VolumeSpec, scale: int) -> dict[str, object]:
    box = spec.scale_box(scale)
    nm = spec.scale_nm(scale)[::-1]
    made: dict[str, object] = {
        "key": "_".join(f"{v:g}" for v in nm),
        "size": list(box.shape[::-1]),
        "resolution": [int(v) if v == int(v) else v for v in nm],
        "voxel_offset": list(box.start[::-1]),
        "chunk_sizes": [list(spec.chunk_zyx[::-1])],
        "encoding": "raw",
    }
    if spec.kind == "segmentation" and spec.dtype in ("uint32", "uint64"):
        made["encoding"] = "compressed_segmentation"
        made["compressed_segmentation_block_size"] = _SEGMENTATION_BLOCK
    low_bits = low_bits_of(spec)
    if low_bits is not None:
        made["sharding"] = ShardGrid.of(grid_xyz(spec, scale), low_bits).to_json()
    return made


def spec_of(info: dict[str, Any], name: str) -> VolumeSpec:
    """Read a specification back from `info`, ours or another program's; `BadInput` if it is none we can work with."""
    try:
        scales = info["scales"]
        first = scales[0]
        resolutions = [scale["resolution"] for scale in scales]
        factors = tuple(
            cast(Zyx, tuple(round(r / f) for r, f in zip(res[::-1], resolutions[0][::-1], strict=True)))
            for res in resolutions
        )
        kind: VolumeKind = "segmentation" if info["type"] == "segmentation" else "image"
        if kind == "image" and int(info["num_channels"]) == 3 and info["data_type"] in ("uint8", "float32"):
            kind = "affinity"
        chunk = tuple(first["chunk_sizes"][0][::-1])
        spec = VolumeSpec(
            name,
            kind,
            info["data_type"],
            tuple(first["size"][::-1]),
            tuple(first["resolution"][::-1]),
            tuple(first.get("voxel_offset", (0, 0, 0))[::-1]),
            int(info["num_channels"]),
            chunk,
            "precomputed",
            factors,
        )
        grid = scale_shards(first, spec, 0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInput(
            f"volume {name!r}: its info file cannot be used: {error!r}", fix="see the precomputed format"
        ) from error
    if grid is None:
        return spec
    shard = tuple(n * c for n, c in zip(grid.chunks_xyz[::-1], chunk, strict=True))
    return VolumeSpec(
        name, kind, spec.dtype, spec.shape_zyx, spec.voxel_nm_zyx, spec.offset_zyx, spec.channels, chunk,
        "precomputed", factors, cast(Zyx, shard),
    )  # fmt: skip


def scale_shards(scale_info: dict[str, Any], spec: VolumeSpec, scale: int) -> ShardGrid | None:
    """Give the shard layout of a scale as its `info` states it, or None if it is unsharded."""
    sharding = scale_info.get("sharding")
    if sharding is None:
        return None
    if sharding["hash"] != "identity":
        raise BadInput(
            f"volume {spec.name!r}: shards hashed by {sharding['hash']} are not boxes",
            fix="copy it into a volume of the lake first: emlake ingest volume",
        )
    return ShardGrid.of(grid_xyz(spec, scale), sharding["preshift_bits"] + sharding["minishard_bits"])


def chunk_files(spec: VolumeSpec, scale: int, scale_info: dict[str, Any], box: Box) -> Iterator[tuple[str, Box]]:
    """Yield the file and box of every chunk, or of every shard, that meets `box` (voxels of the scale)."""
    bounds = spec.scale_box(scale)
    grid = scale_shards(scale_info, spec, scale)
    key = scale_info["key"]
    unit = spec.chunk_zyx
    if grid is not None:
        unit = cast(Zyx, tuple(n * c for n, c in zip(grid.chunks_xyz[::-1], unit, strict=True)))
    for index, cell in cells(bounds, unit, box):
        if grid is None:
            name = "_".join(f"{a}-{b}" for a, b in zip(cell.start[::-1], cell.stop[::-1], strict=True))
        else:
            x, y, z = (i * n for i, n in zip(index[::-1], grid.chunks_xyz, strict=True))
            name = grid.file((x, y, z))
        yield f"{key}/{name}", cell


def cells(bounds: Box, unit: Zyx, box: Box) -> Iterator[tuple[Zyx, Box]]:
    """Yield index and box of the cells of the grid of `unit` from the start of `bounds` that meet `box`."""
    inside = box.clip(bounds)
    if not inside.voxels:
        return
    first = tuple((a - o) // u for a, o, u in zip(inside.start, bounds.start, unit, strict=True))
    start = cast(Zyx, tuple(o + i * u for o, i, u in zip(bounds.start, first, unit, strict=True)))
    for index, cell in Box(start, inside.stop).blocks(unit):
        whole = Box(cell.start, cast(Zyx, tuple(a + u for a, u in zip(cell.start, unit, strict=True)))).clip(bounds)
        yield cast(Zyx, tuple(i + f for i, f in zip(index, first, strict=True))), whole
