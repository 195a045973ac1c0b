"""From root ids to meshes: pieces block by block, then one mesh per segment in neuroglancer's sharded form."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import polars as pl
from pydantic import Field

from lake.box import Zyx
from transforms.kernels.meshes import Mesh
from transforms.stage import (
    ZERO,
    Block,
    GridKind,
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
    WritePort,
)
from transforms.stages.segmentation import cells_shape

PIECES, MESHES = "meshes/segmentation-pieces", "meshes/segmentation"
_KERNELS = ("transforms.kernels.meshes", "transforms.kernels.sharded")
_LIBRARIES = ("zmesh", "DracoPy")


class MeshPieces(Stage):
    """Marching cubes and simplification inside each block; an intermediate result, one object a block."""

    name: ClassVar[str] = "mesh_pieces"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = _KERNELS
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES

    factor: Zyx = Field((2, 4, 4), description="voxels that are meshed as one")
    reduction: float = Field(6.0, ge=1, description="triangles are reduced by about this factor")
    cells: Zyx = Field((1, 2, 2), description="grid cells of one block")

    def reads(self) -> tuple[ReadPort, ...]:
        """Root ids, and one sampled voxel beyond the high sides."""
        return (VolumeIn("segmentation", ZERO, self.factor),)

    def writes(self) -> tuple[WritePort, ...]:
        """Pieces."""
        return (ObjectsOut(PIECES),)

    def block_shape(self, scene: Scene) -> Zyx:
        """A few cells: fewer rims, which simplification must leave alone."""
        return cells_shape(scene, self.cells)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Mesh what lies in the block."""
        from transforms.kernels.meshes import mesh_pieces, pack_pieces

        roots = inputs.volumes["segmentation"]
        assert block.box is not None
        pieces = mesh_pieces(
            roots.array,
            box=roots.box,
            core=block.box,
            bounds=roots.bounds,
            voxel_nm=roots.voxel_nm,
            factor=self.factor,
            reduction=self.reduction,
        )
        return Outputs(objects={f"{PIECES}/{block.name}.pieces": pack_pieces(pieces)})


class Meshes(Stage):
    """Pieces joined to one mesh per segment, in two levels of detail."""

    name: ClassVar[str] = "meshes"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "whole"
    kernels: ClassVar[tuple[str, ...]] = _KERNELS
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES

    min_voxels: int = Field(2000, ge=1, description="segments below this get no mesh")
    detail_nm: float = Field(32.0, gt=0, description="smallest feature of the finest level, nm")
    coarse_reduction: float = Field(8.0, ge=1, description="the second level has about this factor fewer triangles")

    def reads(self) -> tuple[ReadPort, ...]:
        """Pieces, and sizes of segments."""
        return ObjectsIn(PIECES), TableIn("segments", columns=("root_id", "voxels"))

    def writes(self) -> tuple[WritePort, ...]:
        """A mesh folder, and a row per mesh."""
        return ObjectsOut(MESHES), TableOut("meshes")

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Join, coarsen, encode and lay out."""
        from transforms.kernels.meshes import coarser, encode, join_pieces, mesh_files

        segments = inputs.tables["segments"]
        wanted = set(segments.filter(pl.col("voxels") >= self.min_voxels)["root_id"].to_list())
        entries, rows = {}, []
        for root, parts in _by_root(inputs.objects, wanted):
            mesh = join_pieces(parts)
            coarse = coarser(mesh, self.coarse_reduction, 2 * self.detail_nm)
            levels = [mesh, coarse] if len(coarse.faces) else [mesh]
            entries[root] = encode(levels, self.detail_nm)
            size = len(entries[root].data) + len(entries[root].before)
            rows.append((root, len(levels), len(mesh.vertices), len(mesh.faces), size))
        files, sharding = mesh_files(entries)
        table = pl.DataFrame(
            rows,
            schema=dict.fromkeys(("root_id", "lod", "vertices", "faces", "bytes"), pl.Int64),
            orient="row",
        )
        paths = [f"{MESHES}/{sharding.file_of(root)}" for root in table["root_id"].to_list()]
        return Outputs(
            objects={f"{MESHES}/{name}": data for name, data in files.items()},
            tables={"meshes": table.with_columns(pl.Series("path", paths, pl.String))},
        )


def _by_root(objects: Mapping[str, bytes], wanted: set[int]) -> Iterator[tuple[int, list[Mesh]]]:
    """Gather the pieces of each wanted segment; roots ascending, pieces in the order of their blocks' names."""
    from transforms.kernels.meshes import unpack_pieces

    found: dict[int, list[Mesh]] = {}
    for key in sorted(objects):
        for root, mesh in unpack_pieces(objects[key]).items():
            if root in wanted:
                found.setdefault(root, []).append(mesh)
    yield from sorted(found.items())
