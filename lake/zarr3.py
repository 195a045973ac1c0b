"""The zarr 3 layout of a volume: a group with OME-NGFF metadata, one (sharded) array a scale, `s0`, `s1`, ..."""

import json
from collections.abc import Iterator
from typing import Any, cast

from lake.box import Box
from lake.errors import BadInput
from lake.precomputed import cells
from lake.volume_spec import VolumeSpec

_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def metadata_files(spec: VolumeSpec) -> dict[str, bytes]:
    """Give the `zarr.json` of the group and of every scale."""
    arrays = {f"s{scale}/zarr.json": _array(spec, scale) for scale in range(len(spec.scales))}
    # The group last: its presence says that the volume is there.
    return {name: json.dumps(value, indent=1).encode() for name, value in {**arrays, "zarr.json": _group(spec)}.items()}


def _group(spec: VolumeSpec) -> dict[str, Any]:
    lead = [] if spec.channels == 1 else [{"name": "c", "type": "channel"}]
    axes = [*lead, *({"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx")]
    datasets = []
    for scale in range(len(spec.scales)):
        nm = spec.scale_nm(scale)
        # OME-NGFF places voxel centres: the first one of a scale lies half its voxel into the box.
        shift = [(o + 0.5) * v for o, v in zip(spec.scale_box(scale).start, nm, strict=True)]
        ones, zeros = [1.0] * len(lead), [0.0] * len(lead)
        transforms = [
            {"type": "scale", "scale": [*ones, *nm]},
            {"type": "translation", "translation": [*zeros, *shift]},
        ]
        datasets.append({"path": f"s{scale}", "coordinateTransformations": transforms})
    ours = {
        "kind": spec.kind, "dtype": spec.dtype, "shape_zyx": spec.shape_zyx, "voxel_nm_zyx": spec.voxel_nm_zyx,
        "offset_zyx": spec.offset_zyx, "channels": spec.channels, "chunk_zyx": spec.chunk_zyx, "scales": spec.scales,
        "shard_zyx": spec.shard_zyx,
    }  # fmt: skip
    multiscales = [{"name": spec.name, "axes": axes, "datasets": datasets}]
    attributes = {"ome": {"version": "0.5", "multiscales": multiscales}, "emlake": ours}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(spec: VolumeSpec, scale: int) -> dict[str, Any]:
    lead = [] if spec.channels == 1 else [spec.channels]
    codecs: list[dict[str, Any]] = [_LITTLE, _ZSTD]
    outer = spec.chunk_zyx
    if spec.shard_zyx is not None:
        index = [_LITTLE, {"name": "crc32c"}]
        inner = {"chunk_shape": [*lead, *spec.chunk_zyx], "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": {**inner, "index_location": "end"}}]
        outer = spec.shard_zyx
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*lead, *spec.scale_box(scale).shape],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*lead, *outer]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "dimension_names": ["c", "z", "y", "x"][1 - len(lead) :],
        "attributes": {},
    }


def spec_of(group: dict[str, Any], name: str) -> VolumeSpec:
    """Read a specification back from the group's attributes; `BadInput` if this program did not write it."""
    try:
        return VolumeSpec(name=name, driver="zarr3", **group["attributes"]["emlake"])
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"volume {name!r}: its zarr.json is not one of ours", fix="import it: emlake ingest volume"
        ) from error


def chunk_files(spec: VolumeSpec, scale: int, box: Box) -> Iterator[tuple[str, Box]]:
    """Yield the file and box of every chunk, or of every shard, that meets `box` (voxels of the scale)."""
    unit = spec.shard_zyx or spec.chunk_zyx
    lead = "" if spec.channels == 1 else "0/"
    for index, cell in cells(spec.scale_box(scale), unit, box):
        yield f"s{scale}/c/{lead}{'/'.join(map(str, cast(tuple[int, ...], index)))}", cell
