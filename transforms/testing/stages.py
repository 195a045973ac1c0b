"""A toy pipeline with every kind of port: an image is painted, smoothed, cut, counted, joined and painted again.

::

    paint   block  -> volumes/em (two scales)
    smooth  block  em, halo 1 -> volumes/smooth (zarr3)
    cut     block  smooth -> volumes/supervoxels + tables/supervoxels
    join    whole  tables/supervoxels -> tables/agglomeration
    label   block  supervoxels + own rows of agglomeration -> volumes/segmentation + meshes/segmentation
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

from lake.errors import BadInput, StorageError
from lake.ids import root_ids, supervoxel_id, unpack_supervoxel_id, voxel_hashes
from lake.volume_spec import VolumeSpec
from transforms.stage import (
    Block,
    Inputs,
    ObjectsIn,
    ObjectsOut,
    Outputs,
    ReadPort,
    Scene,
    Stage,
    TableIn,
    TableOut,
    VolumeIn,
    VolumeOut,
    WritePort,
)

TOYS: Mapping[str, str] = {
    name: f"transforms.testing.stages:{name.capitalize()}"
    for name in ("paint", "smooth", "cut", "join", "label", "shelf")
}


class Paint(Stage):
    """An image made of nothing but its seed and place; can be told to fail."""

    name, version, grid = "paint", 1, "block"

    shape: tuple[int, int, int] = (8, 16, 16)
    seed: int = 0
    channels: int = Field(1, ge=1, le=3)
    odd_block: str = Field("", description="block that is painted with another seed")
    fail_at: str = Field("", description="block whose kernel raises, always")
    refuse_at: str = Field("", description="block whose kernel refuses its input")
    die_at: str = Field("", description="block that kills its worker, always")
    flaky_file: str = Field("", description="file that, while it is there, is removed and makes a block fail")
    slow_s: float = 0.0

    def reads(self) -> tuple[ReadPort, ...]:
        return ()

    def writes(self) -> tuple[WritePort, ...]:
        return (VolumeOut("em"),)

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        block = scene.grid.block
        spec = VolumeSpec(
            "em", "image", "uint8", self.shape, scene.grid.voxel_nm, chunk_zyx=block, scales=((1, 1, 1), (1, 2, 2))
        )
        return {"em": spec}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        assert block.box is not None
        time.sleep(self.slow_s)
        if block.name == self.fail_at:
            raise ZeroDivisionError("the toy was told to fail")
        if block.name == self.refuse_at:
            raise BadInput("the toy refuses its input", fix="tell it otherwise")
        if block.name == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.flaky_file and Path(self.flaky_file).exists():
            Path(self.flaky_file).unlink()
            raise StorageError("the toy lost its disk for a moment", fix="wait")
        seed = self.seed + (block.name == self.odd_block)
        rng = np.random.default_rng([seed, *block.index])
        return Outputs({"em": rng.integers(1, 255, block.box.shape, dtype=np.uint8)})


class Smooth(Stage):
    """Mean over the neighbours along z, y and x, as far as there are any."""

    name, version, grid = "smooth", 1, "block"

    weight: int = 1

    def reads(self) -> tuple[ReadPort, ...]:
        return (VolumeIn.around("em", (1, 1, 1)),)

    def writes(self) -> tuple[WritePort, ...]:
        return (VolumeOut("smooth"),)

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        em = scene.volume("em")
        spec = VolumeSpec(
            "smooth", "image", "uint8", em.shape_zyx, em.voxel_nm_zyx, chunk_zyx=scene.grid.block, driver="zarr3"
        )
        return {"smooth": spec}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        assert block.box is not None
        em = inputs.volumes["em"]
        grown = np.pad(em.array.astype(np.int64), 1, mode="edge")
        z, y, x = em.array.shape
        total = self.weight * grown[1:-1, 1:-1, 1:-1]
        for axis in range(3):
            for step in (0, 2):
                cut = [slice(1, z + 1), slice(1, y + 1), slice(1, x + 1)]
                cut[axis] = slice(step, step + em.array.shape[axis])
                total = total + grown[tuple(cut)]
        mean = (total // (6 + self.weight)).astype(np.uint8)
        return Outputs({"smooth": mean[block.box.within(em.box)]})


class Cut(Stage):
    """Dark and bright voxels of a block are its two supervoxels."""

    name, version, grid = "cut", 1, "block"

    level: int = 128

    def reads(self) -> tuple[ReadPort, ...]:
        return (VolumeIn("smooth"),)

    def writes(self) -> tuple[WritePort, ...]:
        return VolumeOut("supervoxels"), TableOut("supervoxels")

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        return {"supervoxels": _labels("supervoxels", scene)}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        smooth = inputs.volumes["smooth"]
        local = (smooth.array >= self.level).astype(np.int64) + 1
        hashes = voxel_hashes(local, smooth.box, 2)
        counts = np.bincount(local.ravel(), minlength=3)
        present = [n for n in (1, 2) if counts[n]]
        rows = pl.DataFrame(
            {
                "supervoxel_id": [int(supervoxel_id(block.index, n)) for n in present],
                "voxels": [int(counts[n]) for n in present],
                "voxel_hash": [int(hashes[n]) for n in present],
                **{f"{what}_{axis}": [0.0] * len(present) for what in ("centroid", "min", "max") for axis in "xyz"},
            }
        )
        return Outputs({"supervoxels": supervoxel_id(block.index, local)}, {"supervoxels": rows})


class Join(Stage):
    """All dark supervoxels are one root, all bright ones another."""

    name, version, grid = "join", 1, "whole"

    apart: bool = Field(False, description="every supervoxel is a root of its own")

    def reads(self) -> tuple[ReadPort, ...]:
        return (TableIn("supervoxels", columns=("supervoxel_id", "voxel_hash")),)

    def writes(self) -> tuple[WritePort, ...]:
        return (TableOut("agglomeration"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        rows = inputs.tables["supervoxels"]
        ids = rows["supervoxel_id"].to_numpy()
        local = unpack_supervoxel_id(ids)[3]
        clusters = np.arange(len(ids)) if self.apart else local
        roots = root_ids(ids, clusters, rows["voxel_hash"].to_numpy())
        return Outputs(tables={"agglomeration": pl.DataFrame({"supervoxel_id": ids, "root_id": roots})})


class Label(Stage):
    """Supervoxels get the number of their root; each root of a block leaves an object."""

    name, version, grid = "label", 1, "block"

    def reads(self) -> tuple[ReadPort, ...]:
        columns = ("supervoxel_id", "root_id")
        return VolumeIn("supervoxels"), TableIn("agglomeration", select="supervoxel_id", columns=columns)

    def writes(self) -> tuple[WritePort, ...]:
        return VolumeOut("segmentation"), ObjectsOut("meshes/segmentation/")

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        return {"segmentation": _labels("segmentation", scene)}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        rows = inputs.tables["agglomeration"]
        root_of = dict(zip(rows["supervoxel_id"].to_list(), rows["root_id"].to_list(), strict=True))
        voxels = inputs.volumes["supervoxels"].array.astype(np.int64)
        names, index = np.unique(voxels, return_inverse=True)
        roots = np.array([root_of[int(name)] for name in names], np.int64)
        objects = {f"meshes/segmentation/{root}:{block.name}": b"mesh of %d" % root for root in sorted(roots.tolist())}
        return Outputs({"segmentation": roots[index].reshape(voxels.shape)}, objects=objects)


class Shelf(Stage):
    """Counts the objects that `label` left."""

    name, version, grid = "shelf", 1, "whole"

    def reads(self) -> tuple[ReadPort, ...]:
        return (ObjectsIn("meshes/segmentation/"),)

    def writes(self) -> tuple[WritePort, ...]:
        return (TableOut("meshes"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        sizes: dict[int, int] = {}
        for key in inputs.objects:
            root = int(key.rpartition("/")[2].partition(":")[0])
            sizes[root] = sizes.get(root, 0) + len(inputs.objects[key])
        rows = [
            {"root_id": root, "path": f"meshes/{root}", "lod": 1, "vertices": 0, "faces": 0, "bytes": size}
            for root, size in sorted(sizes.items())
        ]
        return Outputs(tables={"meshes": pl.DataFrame(rows)})


def _labels(name: str, scene: Scene) -> VolumeSpec:
    em = scene.volumes.get("smooth") or scene.volume("em")
    return VolumeSpec(
        name, "segmentation", "uint64", em.shape_zyx, em.voxel_nm_zyx, em.offset_zyx, chunk_zyx=scene.grid.block
    )
