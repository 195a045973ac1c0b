"""From maps of synaptic sites to synapses and connections."""

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from lake.box import Zyx
from transforms.stage import (
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
    WritePort,
)
from transforms.stages.segmentation import cells_shape


class FindSynapses(Stage):
    """Pairs of sites to synapses, bound to segments; a synapse belongs to the block that holds its centre."""

    name: ClassVar[str] = "synapses"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.synapses",)
    libraries: ClassVar[tuple[str, ...]] = ("scipy", "connected-components-3d")

    level: float = Field(0.4, gt=0, lt=1, description="probability from which a voxel belongs to a site")
    peak: float = Field(0.6, gt=0, le=1, description="probability that a site reaches somewhere")
    min_voxels: int = Field(60, ge=1, description="smaller sites are noise")
    max_site_nm: float = Field(260.0, gt=0, description="width of a site, at most")
    pair_nm: float = Field(170.0, gt=0, description="distance between the two sites' centres, at most")
    halo: Zyx = Field((35, 67, 67), description="context around a block, voxels; what is too little is refused")
    cells: Zyx = Field((1, 2, 2), description="grid cells of one block")

    def reads(self) -> tuple[ReadPort, ...]:
        """Sites and supervoxels with a wide halo, and roots of the same cells."""
        return (
            VolumeIn.around("synapse_sites", self.halo),
            VolumeIn.around("supervoxels", self.halo),
            TableIn("agglomeration", "supervoxel_id", self.halo, self.halo, ("supervoxel_id", "root_id")),
        )

    def writes(self) -> tuple[WritePort, ...]:
        """One row per partner pair."""
        return (TableOut("synapses"),)

    def block_shape(self, scene: Scene) -> Zyx:
        """A few cells: the halo is as wide as a cell."""
        return cells_shape(scene, self.cells)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Find and bind the block's synapses."""
        from transforms.kernels.synapses import SynapseParameters, find_synapses

        sites, supervoxels = inputs.volumes["synapse_sites"], inputs.volumes["supervoxels"]
        roots = inputs.tables["agglomeration"].sort("supervoxel_id")
        assert block.box is not None
        rows = find_synapses(
            sites.array,
            supervoxels.array,
            (roots["supervoxel_id"].to_numpy(), roots["root_id"].to_numpy()),
            box=sites.box,
            core=block.box,
            bounds=sites.bounds,
            cell=inputs.grid.block,
            voxel_nm=sites.voxel_nm,
            parameters=SynapseParameters(self.level, self.peak, self.min_voxels, self.max_site_nm, self.pair_nm),
        )
        return Outputs(tables={"synapses": _with_region(rows, inputs, sites.voxel_nm)})


class Connections(Stage):
    """Valid synapses counted by ordered pair of roots."""

    name: ClassVar[str] = "connections"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "whole"
    kernels: ClassVar[tuple[str, ...]] = ("transforms.kernels.synapses",)

    def reads(self) -> tuple[ReadPort, ...]:
        """All synapses."""
        return (TableIn("synapses", columns=("id", "pre_pt_root_id", "post_pt_root_id", "size", "valid")),)

    def writes(self) -> tuple[WritePort, ...]:
        """One row per connected pair."""
        return (TableOut("connections"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        """Group and count."""
        from transforms.kernels.synapses import connections

        return Outputs(tables={"connections": connections(inputs.tables["synapses"])})


def _with_region(rows: pl.DataFrame, inputs: Inputs, voxel_nm: tuple[float, float, float]) -> pl.DataFrame:
    """Name the region of each centre point: a block may cover several."""
    points = [
        np.floor(rows[f"ctr_pt_position_{axis}"].to_numpy() / size).astype(np.int64).tolist()
        for axis, size in zip("zyx", voxel_nm, strict=True)
    ]
    regions = [inputs.grid.region_of((z, y, x)) for z, y, x in zip(*points, strict=True)]
    return rows.with_columns(pl.Series("region", regions, pl.String))
