"""From affinities to segments: watershed, edges, agglomerate, segments, segmentation.

::

    volumes/affinity -watershed-> volumes/supervoxels + supervoxels      block by block, no block knows another
                     -edges-----> edges                                  integer sums that add up
    supervoxels + edges -agglomerate-> agglomeration                     once, on the global graph
    supervoxels + agglomeration -segments-> segments
    volumes/supervoxels + agglomeration -segmentation-> volumes/segmentation
"""

from typing import ClassVar

import polars as pl
from pydantic import Field

from lake.box import Zyx
from lake.errors import BadInput
from lake.volume_spec import VolumeSpec
from transforms.stage import (
    ZERO,
    Block,
    GridKind,
    Inputs,
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

LABEL_SCALES: tuple[Zyx, ...] = ((1, 1, 1), (1, 2, 2), (2, 4, 4))


def labels_like(name: str, source: VolumeSpec, scene: Scene) -> VolumeSpec:
    """Specify a volume of ids over the same box; a chunk is a cell of the grid, so every block writes its own."""
    return VolumeSpec(
        name,
        "segmentation",
        "uint64",
        source.shape_zyx,
        source.voxel_nm_zyx,
        source.offset_zyx,
        chunk_zyx=scene.grid.block,
        scales=LABEL_SCALES,
    )


class Watershed(Stage):
    """Affinities to supervoxels, each block by itself."""

    name: ClassVar[str] = "watershed"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = (
        "transforms.kernels.watershed",
        "transforms.kernels.edges",
        "transforms.kernels.segments",
    )
    libraries: ClassVar[tuple[str, ...]] = (
        "scikit-image",
        "opencv-python-headless",
        "scipy",
        "connected-components-3d",
    )

    boundary_level: float = Field(
        0.5, gt=0, lt=1, description="mean affinity below it is boundary when seeds are sought"
    )
    seed_distance_nm: float = Field(40.0, gt=0, description="distance between seeds, at least")
    min_voxels: int = Field(16, ge=1, description="smaller fragments join a neighbour")
    distance_weight: float = Field(0.5, ge=0, le=1, description="how far the flood follows distance, not affinity")
    halo: Zyx = Field((4, 8, 8), description="context around a block, voxels")

    def reads(self) -> tuple[ReadPort, ...]:
        """Affinities with a halo."""
        return (VolumeIn.around("affinity", self.halo),)

    def writes(self) -> tuple[WritePort, ...]:
        """Ids, and what each stands for."""
        return VolumeOut("supervoxels"), TableOut("supervoxels")

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        """Cover the affinities' box."""
        return {"supervoxels": labels_like("supervoxels", scene.volume("affinity"), scene)}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Flood the block with its halo, cut the halo off, number what is left."""
        from lake.ids import supervoxel_id
        from transforms.kernels.segments import supervoxel_table
        from transforms.kernels.watershed import FragmentParameters, fragments

        affinity = inputs.volumes["affinity"]
        assert block.box is not None
        parameters = FragmentParameters(
            self.boundary_level, self.seed_distance_nm, self.min_voxels, self.distance_weight
        )
        local = fragments(
            affinity.array, voxel_nm=affinity.voxel_nm, core=block.box.within(affinity.box), parameters=parameters
        )
        region = inputs.grid.region_of(block.box.start)
        rows = supervoxel_table(local, block.index, block.box, affinity.voxel_nm, region=region)
        return Outputs(volumes={"supervoxels": supervoxel_id(block.index, local)}, tables={"supervoxels": rows})


class Edges(Stage):
    """Affinity sums over the faces between supervoxels."""

    name: ClassVar[str] = "edges"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.edges",)

    def reads(self) -> tuple[ReadPort, ...]:
        """Affinities of the block, and supervoxels one voxel further on the high sides."""
        return VolumeIn("affinity"), VolumeIn("supervoxels", ZERO, (1, 1, 1))

    def writes(self) -> tuple[WritePort, ...]:
        """Touching pairs; those across a face belong to the lower block."""
        return (TableOut("edges"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Sum up the faces that the block owns."""
        from transforms.kernels.edges import edge_statistics

        assert block.box is not None
        affinity, supervoxels = inputs.volumes["affinity"], inputs.volumes["supervoxels"]
        edges = edge_statistics(affinity.crop(block.box), supervoxels.array, block.box.shape)
        rows = pl.DataFrame(
            {
                "a": edges.a,
                "b": edges.b,
                "sum_affinity": edges.sum_affinity,
                "count": edges.count,
                "contact_area": edges.area_nm2(supervoxels.voxel_nm),
            }
        )
        return Outputs(tables={"edges": rows})


class Agglomerate(Stage):
    """Supervoxels to roots: average linkage on the graph of everything."""

    name: ClassVar[str] = "agglomerate"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "whole"
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.agglomerate", "transforms.kernels.segments")
    libraries: ClassVar[tuple[str, ...]] = ("higra", "scipy")

    threshold: float = Field(0.5, ge=0, le=1, description="mean affinity from which clusters merge")
    small_voxels: int = Field(0, ge=0, description="clusters below this join their strongest neighbour; 0 = none")
    small_threshold: float = Field(0.0, ge=0, le=1, description="... from this mean affinity on")

    def reads(self) -> tuple[ReadPort, ...]:
        """Sizes and hashes of supervoxels, and all edges."""
        return (
            TableIn("supervoxels", columns=("supervoxel_id", "voxels", "voxel_hash")),
            TableIn("edges", columns=("a", "b", "sum_affinity", "count")),
        )

    def writes(self) -> tuple[WritePort, ...]:
        """One root per supervoxel."""
        return (TableOut("agglomeration"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Solve the graph."""
        from transforms.kernels.agglomerate import agglomerate
        from transforms.kernels.segments import agglomeration_table

        supervoxels = inputs.tables["supervoxels"].sort("supervoxel_id")
        edges = inputs.tables["edges"]
        clusters = agglomerate(
            supervoxels["supervoxel_id"].to_numpy(),
            *(edges[name].to_numpy() for name in ("a", "b", "sum_affinity", "count")),
            threshold=self.threshold,
            voxels=supervoxels["voxels"].to_numpy(),
            small_voxels=self.small_voxels,
            small_threshold=self.small_threshold,
        )
        return Outputs(tables={"agglomeration": agglomeration_table(supervoxels, clusters)})


class Segments(Stage):
    """Size, place and extent of every root."""

    name: ClassVar[str] = "segments"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "whole"
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.segments",)

    def reads(self) -> tuple[ReadPort, ...]:
        """Supervoxels and their roots."""
        return TableIn("supervoxels"), TableIn("agglomeration")

    def writes(self) -> tuple[WritePort, ...]:
        """One row per root."""
        return (TableOut("segments"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Add supervoxels up."""
        from transforms.kernels.segments import segments_table

        return Outputs(
            tables={"segments": segments_table(inputs.tables["supervoxels"], inputs.tables["agglomeration"])}
        )


class Segmentation(Stage):
    """Supervoxel ids to root ids, voxel by voxel."""

    name: ClassVar[str] = "segmentation"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.segments",)

    def reads(self) -> tuple[ReadPort, ...]:
        """The block's supervoxels and their roots."""
        return (
            VolumeIn("supervoxels"),
            TableIn("agglomeration", select="supervoxel_id", columns=("supervoxel_id", "root_id")),
        )

    def writes(self) -> tuple[WritePort, ...]:
        """Root ids."""
        return (VolumeOut("segmentation"),)

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        """Cover the supervoxels' box."""
        return {"segmentation": labels_like("segmentation", scene.volume("supervoxels"), scene)}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Look every id up."""
        from transforms.kernels.segments import relabel

        roots = inputs.tables["agglomeration"]
        out = relabel(
            inputs.volumes["supervoxels"].array, roots["supervoxel_id"].to_numpy(), roots["root_id"].to_numpy()
        )
        return Outputs(volumes={"segmentation": out})


def cells_shape(scene: Scene, cells: Zyx) -> Zyx:
    """Voxels of a block that is `cells` cells of the repository's grid."""
    if min(cells) < 1:
        raise BadInput(f"a block of {cells} cells has none", fix="give at least 1 on each axis")
    z, y, x = (n * b for n, b in zip(cells, scene.grid.block, strict=True))
    return z, y, x
