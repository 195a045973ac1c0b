"""The stages from affinities to meshes, block by block, with no repository: inputs are cut out of arrays in memory."""

import numpy as np
import polars as pl
import pytest

from lake.box import Box
from lake.ids import add_hashes, voxel_hashes
from lake.measures import synapse_f1, variation_of_information
from lake.rows import conform
from lake.schemas import TABLES
from lake.volume_spec import VolumeSpec
from transforms.kernels.meshes import info
from transforms.kernels.sharded import Sharding, read_entry
from transforms.stage import Grid, Inputs, ObjectsIn, ObjectsOut, Scene, TableIn, TableOut, VolumeIn, VolumeOut, Voxels
from transforms.stages import STAGES, stage_class

SHAPE, CELL, VOXEL_NM = (32, 48, 48), (16, 16, 16), (16.0, 8.0, 8.0)
ORDER = (
    "watershed",
    "edges",
    "agglomerate",
    "segments",
    "segmentation",
    "synapses",
    "connections",
    "mesh_pieces",
    "meshes",
)
PARAMETERS = {
    "watershed": {"min_voxels": 8},
    "synapses": {"cells": (1, 2, 1), "halo": (14, 26, 26), "max_site_nm": 80, "pair_nm": 70, "min_voxels": 10},
    "mesh_pieces": {"factor": (1, 2, 2), "cells": (1, 1, 2)},
    "meshes": {"min_voxels": 500},
}


def truth():
    """Four columns that run through the whole depth, walls in between, and a synapse from each to the next in x."""
    labels = np.ones(SHAPE, np.int64)
    labels[:, 24:, :] += 2
    labels[:, :, 24:] += 1
    affinity = np.full((3, *SHAPE), 245, np.uint8)
    for axis in (1, 2):
        for at in (22, 23, 24):
            affinity[(slice(None), *[slice(at, at + 1) if a == axis else slice(None) for a in range(3)])] = 30
    sites = np.zeros((2, *SHAPE), np.uint8)
    for z, y in ((8, 12), (20, 36)):
        sites[0, z - 1 : z + 2, y - 2 : y + 3, 18:22] = 230
        sites[1, z - 1 : z + 2, y - 2 : y + 3, 26:30] = 230
    return labels, affinity, sites


class Lake:
    """Volumes, tables and objects in memory; gives each block what its ports ask for."""

    def __init__(self):
        self.labels, affinity, sites = truth()
        self.volumes = {"affinity": affinity, "synapse_sites": sites}
        self.tables, self.objects = {}, {}
        self.specs = {
            name: VolumeSpec(name, "affinity", "uint8", SHAPE, VOXEL_NM, channels=len(array), chunk_zyx=CELL)
            for name, array in self.volumes.items()
        }
        self.grid = Grid(CELL, (1, 1, 1), VOXEL_NM)

    def run(self, name):
        stage = stage_class(name)(**PARAMETERS.get(name, {}))
        scene = Scene(self.grid, self.specs)
        parts = {}
        for block in stage.blocks(scene):
            made = stage.run_block(block, self.inputs(stage, block))
            for port in stage.writes():
                if isinstance(port, VolumeOut):
                    out = self.volumes.setdefault(port.name, np.zeros(SHAPE, np.uint64))
                    out[block.box.slices] = made.volumes[port.name]
                elif isinstance(port, TableOut):
                    parts.setdefault(port.name, []).append((block, made.tables[port.name]))
                else:
                    assert isinstance(port, ObjectsOut)
                    assert all(key.startswith(f"{port.prefix}/") for key in made.objects)
                    self.objects |= made.objects
        self.specs |= stage.volumes(scene)
        for table, rows in parts.items():
            self.tables[table] = self.conformed(table, rows)

    def conformed(self, table, parts):
        """Every block's rows, completed as the runner completes them, pass the declared schema."""
        spec, frames = TABLES[table], []
        for block, rows in parts:
            if "region" in spec.names and "region" not in rows.columns:
                rows = rows.with_columns(region=pl.lit(self.grid.region_of(block.box.start)))
            for column in {"run_id", "block"} & set(spec.names):
                rows = rows.with_columns(pl.lit(block.id).alias(column))
            frames.append(pl.DataFrame(pl.from_arrow(conform(rows, spec))))
        return pl.concat(frames)

    def inputs(self, stage, block):
        volumes, tables, objects = {}, {}, {}
        bounds = Box((0, 0, 0), SHAPE)
        for port in stage.reads():
            if isinstance(port, VolumeIn):
                low, high = block.box.grow(port.low), block.box.grow(port.high)
                box = Box(low.start, high.stop).clip(bounds)
                array = self.volumes[port.name][(..., *box.slices)]
                volumes[port.name] = Voxels(array, box, bounds, VOXEL_NM)
            elif isinstance(port, TableIn):
                # All rows instead of the selected ones: what is selected is the runner's affair.
                tables[port.name] = self.tables[port.name].select(port.columns or self.tables[port.name].columns)
            else:
                assert isinstance(port, ObjectsIn)
                objects |= {k: v for k, v in self.objects.items() if k.startswith(f"{port.prefix}/")}
        return Inputs(volumes, tables, objects=objects, grid=self.grid, specs=self.specs)


@pytest.fixture(scope="module")
def lake():
    lake = Lake()
    for name in ORDER:
        lake.run(name)
    return lake


def test_every_stage_here_is_registered_under_its_own_name():
    for name in ORDER:
        assert stage_class(name).name == name
    assert set(ORDER) <= set(STAGES)


def test_four_columns_come_back_as_four_segments_through_all_blocks(lake):
    assert sum(variation_of_information(lake.volumes["segmentation"], lake.labels)) < 0.02
    assert lake.tables["segments"]["voxels"].sum() == np.prod(SHAPE)
    big = lake.tables["segments"].filter(pl.col("voxels") > 1000)
    assert big.height == 4
    assert (big["boundary_faces"] == 4).all()


def test_a_root_id_is_the_hash_of_its_voxels(lake):
    segmentation = lake.volumes["segmentation"].astype(np.int64)
    for root in lake.tables["segments"]["root_id"].to_list():
        whole = voxel_hashes((segmentation == root).astype(np.uint32), Box((0, 0, 0), SHAPE), 1)
        assert add_hashes(whole[1:]) == root


def test_every_supervoxel_has_one_root_and_lies_in_the_region_of_its_block(lake):
    supervoxels, agglomeration = lake.tables["supervoxels"], lake.tables["agglomeration"]
    assert supervoxels["supervoxel_id"].sort().equals(agglomeration["supervoxel_id"].sort())
    assert set(supervoxels["region"]) == {f"{z}_{y}_{x}" for z in range(2) for y in range(3) for x in range(3)}
    names = np.unique(lake.volumes["supervoxels"])
    assert names.astype(np.int64).tolist() == supervoxels["supervoxel_id"].sort().to_list()


def test_an_edge_lies_in_the_region_of_its_lower_end(lake):
    owner = dict(lake.tables["supervoxels"].select("supervoxel_id", "region").iter_rows())
    edges = lake.tables["edges"]
    assert all(owner[a] == region for a, region in edges.select("a", "region").iter_rows())
    assert edges.select("a", "b").is_unique().all()
    assert (edges["contact_area"] > 0).all()


def test_the_two_synapses_are_found_once_and_bound_to_the_right_columns(lake):
    rows = lake.tables["synapses"].sort("id")
    assert rows["valid"].to_list() == [True, True]
    assert rows["region"].to_list() == ["0_0_1", "1_2_1"]
    points = rows.select(f"ctr_pt_position_{a}" for a in "zyx").to_numpy()
    sides = [rows.select(f"{side}_pt_position_{a}" for a in "zyx").to_numpy() for side in ("pre", "post")]
    pairs = np.stack([lake.labels[tuple((p // VOXEL_NM).astype(int).T)] for p in sides], axis=1)
    true_points = (np.array([[8, 12, 24], [20, 36, 24]]) + 0.5) * VOXEL_NM
    assert synapse_f1(points, pairs, true_points, np.array([[1, 2], [3, 4]]), 30.0).f1 == 1.0
    assert lake.tables["connections"]["synapses"].to_list() == [1, 1]


def test_each_large_segment_has_a_mesh_where_the_table_says(lake):
    import json

    meshes, segments = lake.tables["meshes"], lake.tables["segments"]
    assert set(meshes["root_id"]) == set(segments.filter(pl.col("voxels") >= 500)["root_id"])
    written = json.loads(lake.objects["meshes/segmentation/info"])
    assert written == info(Sharding())
    for root, path, size in meshes.select("root_id", "path", "bytes").iter_rows():
        data, start = read_entry(lake.objects[path], root, Sharding())
        assert len(data) < size
        assert start > size - len(data)


@pytest.mark.parametrize("name", ORDER)
def test_a_block_computed_again_gives_the_same_bytes(lake, name):
    stage = stage_class(name)(**PARAMETERS.get(name, {}))
    block = list(stage.blocks(Scene(lake.grid, lake.specs)))[-1]
    one, two = (stage.run_block(block, lake.inputs(stage, block)) for _ in range(2))
    assert all((one.volumes[k] == two.volumes[k]).all() for k in one.volumes)
    assert all(one.tables[k].equals(two.tables[k]) for k in one.tables)
    assert one.objects == two.objects
