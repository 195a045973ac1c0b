"""Chunked, multi-scale volumes through TensorStore: precomputed (served) and zarr3 (intermediate).

A volume is a folder below a `Location`, so the bytes go from TensorStore to the disk or the server by themselves. A
write covers whole chunks, or whole shards where there are any: a shard has one writer, and nobody needs a lock.

Two things TensorStore does in silence are made loud here: a chunk that was never written reads as zeros (here:
`NotFound`, unless zeros are asked for), and a block of zeros is not stored (here it is, as an empty shard where need
be, so that "everything was written" can be told from the files).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from lake import precomputed, reach, zarr3
from lake.box import Box, Zyx
from lake.chunk_files import ChunkFiles
from lake.errors import AlreadyExists, BadInput, NotFound
from lake.kv import NATIVE_ERRORS, open_kv, storage_error
from lake.location import Location
from lake.room import allocated
from lake.volume_spec import VolumeSpec

__all__ = ["Volume", "VolumeSpec", "create_volume", "open_volume", "same_volume"]

Array = NDArray[Any]
Missing = Literal["error", "zero"]
Method = Literal["mean", "mode"]
_SCALE_TASK_VOXELS = 2**25  # read at once while making coarser scales: 32 MB of an image, 256 MB of a segmentation


class Volume:
    """An open volume. Cheap to open, picklable (it opens again on the other side), safe to share between threads.

    Attributes
    ----------
    location : Location
    spec : VolumeSpec
    """

    def __init__(self, location: Location, spec: VolumeSpec, metadata: Mapping[str, Any]) -> None:
        self.location = location
        self.spec = spec
        self._files = ChunkFiles(location, spec, metadata)
        self._stores: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return open_volume, (self.location,)

    def __repr__(self) -> str:
        return f"Volume({self.spec.name!r}, {self.spec.dtype}, {self.box}, {self.location.uri!r})"

    @property
    def box(self) -> Box:
        """Where the volume lies at full resolution, global voxels."""
        return self.spec.box

    def unit(self, scale: int = 0) -> Zyx:
        """Give the chunk, or the shard, that a write must cover whole; its grid begins at the start of the volume."""
        return self._files.unit(scale)

    # -- reading and writing ----------------------------------------------------------------------------------------
    def read(self, box: Box, scale: int = 0, *, missing: Missing = "error") -> Array:
        """Read a box.

        Parameters
        ----------
        box : Box
            Global voxels of the scale, inside the volume, else `BadInput`.
        missing : "error" or "zero"
            What to make of chunks that were never written: `NotFound`, or zeros.

        Returns
        -------
        (z, y, x) array, or (c, z, y, x) with several channels, C order
        """
        self._check_box(box, scale)
        # Sharded precomputed is the one format in which TensorStore cannot be told to report what is missing.
        if missing == "error" and self.spec.driver == "precomputed" and self.spec.shard_zyx is not None:
            self._report(self.missing_chunks(box, scale), scale)
        store = self._store(scale, missing)
        try:
            return cast(Array, reach.settle(self._view(store, box, scale).read(order="C"), self.location))
        except NATIVE_ERRORS as error:
            if "NOT_FOUND" in str(error):
                self._report(self.missing_chunks(box, scale) or [box], scale)
            raise storage_error(error, self.location) from error

    def _report(self, missing: Sequence[Box], scale: int) -> None:
        if missing:
            raise NotFound(
                f"volume {self.spec.name!r} lacks {len(missing)} chunks at scale {scale}, the first at {missing[0]}",
                fix="finish the run that writes it, or read with missing='zero'",
            )

    def write(self, box: Box, array: Array, scale: int = 0) -> None:
        """Write a box of whole chunks (whole shards, where there are any); return when the bytes are stored.

        Raises
        ------
        BadInput
            The box leaves the volume or cuts a chunk, shape or dtype differ, a label is 2^63 or above, or the volume
            was opened read-only.
        """
        self._check_box(box, scale)
        self._check_aligned(box, scale)
        self._check_array(box, array)
        if not self.location.writable:
            raise BadInput(
                f"volume {self.spec.name!r} at {self.location.uri} is read-only", fix="open it in a session's workspace"
            )
        if not box.voxels:
            return
        store = self._store(scale, "zero")
        sharded = self.spec.driver == "precomputed" and self.spec.shard_zyx is not None
        try:
            if sharded:
                # Without a transaction every chunk rewrites its shard: 245 s instead of 1.1 s for 268 MB.
                transaction = ts.Transaction()
                write = self._view(store.with_transaction(transaction), box, scale).write(array)
                reach.settle(write, self.location)
                reach.settle(transaction.commit_async(), self.location)
                self._files.write_empty_shards(box, array, scale)
            else:
                self._files.remove_cut(box, scale)
                reach.settle(self._view(store, box, scale).write(array), self.location)
        except NATIVE_ERRORS as error:
            # Chunks are compressed: fewer bytes will do, how many is known when they are written.
            raise storage_error(error, self.location, array.nbytes) from error

    # -- completeness -----------------------------------------------------------------------------------------------
    def missing_chunks(self, box: Box | None = None, scale: int = 0) -> list[Box]:
        """Give the boxes of the chunks (shards) that meet `box` and have no file, in C order."""
        return [cell for cell, there in self._presence(box, scale) if not there]

    def present_chunks(self, box: Box | None = None, scale: int = 0) -> list[Box]:
        """Give the boxes of the chunks (shards) that meet `box` and have a file, in C order."""
        return [cell for cell, there in self._presence(box, scale) if there]

    def _presence(self, box: Box | None, scale: int) -> Iterator[tuple[Box, bool]]:
        return self._files.presence(self.spec.scale_box(scale) if box is None else box, scale)

    # -- coarser scales ---------------------------------------------------------------------------------------------
    def build_scales(self, method: Method | None = None, box: Box | None = None) -> None:
        """Make every coarser scale from the one before it.

        Parameters
        ----------
        method : "mean", "mode" or None
            None: mode for a segmentation, mean for everything else.
        box : Box
            Full-resolution voxels that changed; only the chunks over it are made again. None: the whole volume.
        """
        chosen: Method = method or ("mode" if self.spec.kind == "segmentation" else "mean")
        for scale in range(1, len(self.spec.scales)):
            bounds = self.spec.scale_box(scale)
            factor = self.spec.scales[scale]
            changed = bounds if box is None else _coarse(box, factor).clip(bounds)
            for cell in self._tasks(changed, scale):
                self.write(cell, self._downsampled(cell, scale, chosen), scale)

    def _tasks(self, changed: Box, scale: int) -> Iterator[Box]:
        """Cut the chunks over `changed` into boxes of whole chunks, so large that reading them is worth it."""
        bounds, unit = self.spec.scale_box(scale), self.unit(scale)
        touched = [cell for _, cell in precomputed.cells(bounds, unit, changed)]
        if not touched:
            return
        around = Box(touched[0].start, touched[-1].stop)
        size = list(unit)
        budget = _SCALE_TASK_VOXELS // (self.spec.channels * int(np.prod(self.spec.step(scale))))
        for axis in (2, 1, 0):
            while size[axis] < around.shape[axis] and 2 * int(np.prod(size)) <= budget:
                size[axis] += unit[axis]
        yield from (cell for _, cell in around.blocks(cast(Zyx, tuple(size))))

    def _downsampled(self, cell: Box, scale: int, method: Method) -> Array:
        step = self.spec.step(scale)
        fine = Box(_times(cell.start, step), _times(cell.stop, step)).clip(self.spec.scale_box(scale - 1))
        array = self.read(fine, scale - 1)
        lead = array.ndim - 3
        # The origin decides which voxels share a cell: keep the global one, since offsets need not divide by the step.
        view = ts.array(array)[ts.d[lead : lead + 3].translate_to[list(fine.start)]]
        return ts.downsample(view, [1] * lead + list(step), method).read(order="C").result()

    # -- TensorStore ------------------------------------------------------------------------------------------------
    def _store(self, scale: int, missing: Missing) -> Any:
        self.spec.scale_box(scale)
        cached = self._stores.get((scale << 1) | (missing == "zero"))
        if cached is not None:
            return cached
        if self.spec.driver == "zarr3":
            spec: dict[str, object] = {"driver": "zarr3", "kvstore": self.location.child(f"s{scale}").kvstore()}
        else:
            spec = {
                "driver": "neuroglancer_precomputed",
                "kvstore": self.location.kvstore(),
                "scale_index": scale,
            }
        options = {"fill_missing_data_reads": missing == "zero", "store_data_equal_to_fill_value": True}
        try:
            reach.check(self.location)
            store = reach.settle(ts.open({**spec, **options, "open": True}), self.location)
        except NATIVE_ERRORS as error:
            raise storage_error(error, self.location) from error
        self._stores[(scale << 1) | (missing == "zero")] = store
        return store

    def _view(self, store: Any, box: Box, scale: int) -> Any:
        """Cut `box` out of a store as (z, y, x) or (c, z, y, x)."""
        if self.spec.driver == "zarr3":
            return store[(..., *box.within(self.spec.scale_box(scale)))]
        # Precomputed is stored x fastest, so C order of the transpose is its own order: 3 times faster than the other.
        view = store.T[(slice(None), *box.slices)]
        return view[0] if self.spec.channels == 1 else view

    # -- checks -----------------------------------------------------------------------------------------------------
    def _check_box(self, box: Box, scale: int) -> None:
        bounds = self.spec.scale_box(scale)
        if not bounds.contains(box):
            raise BadInput(
                f"box {box} leaves volume {self.spec.name!r}, which at scale {scale} is {bounds}",
                fix="clip the box to the volume",
            )

    def _check_aligned(self, box: Box, scale: int) -> None:
        bounds, unit = self.spec.scale_box(scale), self.unit(scale)
        for a, b, low, high, u in zip(box.start, box.stop, bounds.start, bounds.stop, unit, strict=True):
            if (a - low) % u or ((b - low) % u and b != high):
                raise BadInput(
                    f"box {box} cuts a chunk of volume {self.spec.name!r}",
                    fix=f"write whole units of {unit} (zyx) counted from {bounds.start}",
                )

    def _check_array(self, box: Box, array: Array) -> None:
        shape = box.shape if self.spec.channels == 1 else (self.spec.channels, *box.shape)
        if array.shape != shape or array.dtype != self.spec.numpy_dtype:
            raise BadInput(
                f"volume {self.spec.name!r} takes {self.spec.dtype} {shape} for box {box}, "
                f"not {array.dtype} {array.shape}",
                fix="cast and cut the array before writing",
            )
        if self.spec.kind == "segmentation" and array.dtype == np.uint64 and array.size and int(array.max()) >= 2**63:
            raise BadInput(
                f"volume {self.spec.name!r}: label {int(array.max())} is 2^63 or above", fix="ids are 63 bits wide"
            )


def create_volume(location: Location, spec: VolumeSpec, provenance: Mapping[str, Any] | None = None) -> Volume:
    """Write a volume's metadata (every scale) and open it; a volume that is there with the same spec is just opened.

    Parameters
    ----------
    provenance : mapping
        Written beside the volume as `provenance`, in CloudVolume's form: description, owners, processing, sources.

    Raises
    ------
    AlreadyExists
        There is a volume with another specification.
    """
    if not location.writable:
        raise BadInput(f"{location.uri} is read-only", fix="use session.workspace('volumes/<name>/')")
    try:
        present = open_volume(location)
    except NotFound:
        present = None
    if present is not None:
        there, wanted = _comparable(present.spec), _comparable(spec)
        differing = [f"{name} {there[name]}, not {wanted[name]}" for name in wanted if there[name] != wanted[name]]
        if differing:
            raise AlreadyExists(
                f"volume {spec.name!r} is there already, with {'; '.join(differing)}",
                fix="remove it first, or use another name",
            )
        return present
    files = {}
    if provenance is not None:
        empty = {"description": "", "owners": [], "processing": [], "sources": []}
        files["provenance"] = json.dumps({**empty, **provenance}, indent=1, sort_keys=True).encode()
    # Last, for their presence says that the volume is there, and whole.
    files |= {"info": precomputed.info_bytes(spec)} if spec.driver == "precomputed" else zarr3.metadata_files(spec)
    kv = open_kv(location)
    try:
        for name, data in files.items():
            reach.settle(kv.write(name, data), location)
    except NATIVE_ERRORS as error:
        raise storage_error(error, location, allocated(map(len, files.values()))) from error
    return open_volume(location)


def same_volume(one: VolumeSpec, other: VolumeSpec) -> bool:
    """Tell whether two specifications describe one volume on disk."""
    return _comparable(one) == _comparable(other)


def _comparable(spec: VolumeSpec) -> dict[str, object]:
    # Stored otherwise than stated: a shard larger than the volume, and the kind of an image of three channels.
    shard: object = spec.shard_zyx
    if spec.shard_zyx is not None and spec.driver == "precomputed":
        low_bits = precomputed.low_bits_of(spec)
        shard = precomputed.ShardGrid.of(precomputed.grid_xyz(spec, 0), low_bits or 0).chunks_xyz
    names = ("dtype", "shape_zyx", "voxel_nm_zyx", "offset_zyx", "channels", "chunk_zyx", "driver", "scales")
    return {
        "segmentation": spec.kind == "segmentation",
        "shard": shard,
        **{name: getattr(spec, name) for name in names},
    }


def open_volume(location: Location) -> Volume:
    """Open a volume, ours or another program's precomputed; `NotFound` if there is none here."""
    kv = open_kv(location)
    name = location.root.rsplit("/", 1)[-1]
    try:
        info = reach.settle(kv.read("info"), location)
        group = reach.settle(kv.read("zarr.json"), location) if info.state == "missing" else None
    except NATIVE_ERRORS as error:
        raise storage_error(error, location) from error
    if info.state == "value":
        metadata = _parsed(info.value, f"{location.uri}/info")
        return Volume(location, precomputed.spec_of(metadata, name), metadata)
    if group is not None and group.state == "value":
        metadata = _parsed(group.value, f"{location.uri}/zarr.json")
        return Volume(location, zarr3.spec_of(metadata, name), metadata)
    raise NotFound(f"there is no volume at {location.uri}", fix="look at what the repository lists under volumes/")


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(data))
    except ValueError as error:
        raise BadInput(f"{where} is not JSON: {error}", fix="restore it from an earlier commit") from error


def _times(point: Zyx, factor: Zyx) -> Zyx:
    return point[0] * factor[0], point[1] * factor[1], point[2] * factor[2]


def _coarse(box: Box, factor: Zyx) -> Box:
    start = tuple(a // f for a, f in zip(box.start, factor, strict=True))
    stop = tuple(-(-b // f) for b, f in zip(box.stop, factor, strict=True))
    return Box(cast(Zyx, start), cast(Zyx, stop))
