"""The files in which a volume's chunks (or shards) lie, in either format: their names, which are there, which must be.

TensorStore does not store a block of zeros, so that its file would tell nothing; `write_empty_shards` makes it tell.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from lake import precomputed, reach, zarr3
from lake.box import Box, Zyx
from lake.kv import list_keys, open_kv
from lake.location import Location
from lake.volume_spec import VolumeSpec


class ChunkFiles:
    """The chunk files of one open volume; `metadata` is its `info` or `zarr.json`. Raises what TensorStore raises."""

    def __init__(self, location: Location, spec: VolumeSpec, metadata: Mapping[str, Any]) -> None:
        self._location, self._spec, self._metadata = location, spec, metadata
        self._listed: dict[int, set[str]] = {}

    def unit(self, scale: int) -> Zyx:
        """Give the voxels (zyx) of one file: a chunk, or a shard where there are any."""
        if self._spec.driver == "zarr3":
            return self._spec.shard_zyx or self._spec.chunk_zyx
        grid = precomputed.scale_shards(self._scale_info(scale), self._spec, scale)
        if grid is None:
            return self._spec.chunk_zyx
        return cast(Zyx, tuple(n * c for n, c in zip(grid.chunks_xyz[::-1], self._spec.chunk_zyx, strict=True)))

    def of(self, box: Box, scale: int) -> Iterator[tuple[str, Box]]:
        """Yield (file, its voxels) for all that meet `box`, in C order."""
        if self._spec.driver == "zarr3":
            return zarr3.chunk_files(self._spec, scale, box)
        return precomputed.chunk_files(self._spec, scale, self._scale_info(scale), box)

    def presence(self, box: Box, scale: int) -> Iterator[tuple[Box, bool]]:
        """Yield (voxels of a file, whether it is there) for all that meet `box`, in C order."""
        files = self.of(box, scale)
        if self._location.s3 is None:
            root = self._location.path
            return ((cell, (root / file).exists()) for file, cell in files)
        present = self._present(scale)
        return ((cell, file in present) for file, cell in files)

    def _present(self, scale: int) -> set[str]:
        cached = self._listed.get(scale)
        if cached is not None:
            return cached
        key = f"s{scale}" if self._spec.driver == "zarr3" else str(self._scale_info(scale)["key"])
        found = {f"{key}/{name}" for name in list_keys(self._location.child(key))}
        if not self._location.writable:
            self._listed[scale] = found  # pinned to a commit: it cannot change
        return found

    def write_empty_shards(self, box: Box, array: NDArray[Any], scale: int) -> None:
        """Write the precomputed shards that hold nothing but zeros; `array` is ((c,) z, y, x) over `box`."""
        info = self._scale_info(scale)
        grid = precomputed.scale_shards(info, self._spec, scale)
        if grid is None:
            return
        for file, cell in precomputed.chunk_files(self._spec, scale, info, box):
            if _is_zero(array[(..., *cell.within(box))]):
                reach.settle(open_kv(self._location).write(file, grid.empty_shard()), self._location)

    def remove_cut(self, box: Box, scale: int) -> None:
        """Remove zarr chunks that the volume's end cuts, on S3: TensorStore would read them before it writes them.

        The server refuses that kind of write (`If-Match`). Who writes `box` writes the whole of what there is, so
        nothing is lost.
        """
        if self._spec.driver != "zarr3" or self._location.s3 is None:
            return
        unit = self.unit(scale)
        kv = open_kv(self._location)
        for file, cell in zarr3.chunk_files(self._spec, scale, box):
            if cell.shape != unit:
                reach.settle(kv.delete_range(ts.KvStore.KeyRange(file, f"{file}\0")), self._location)

    def _scale_info(self, scale: int) -> dict[str, Any]:
        self._spec.scale_box(scale)  # refuses a scale that there is not
        return cast(dict[str, Any], self._metadata["scales"][scale])


def _is_zero(array: NDArray[Any]) -> bool:
    """Tell whether nothing but zeros is in a (c,) z, y, x array: plane by plane, so that data ends the search at once.

    `any` of a whole cell reads all of it, which cost a fifth of the time of writing a sharded volume.
    """
    return not any(array[plane].any() for plane in np.ndindex(array.shape[:-2]))
