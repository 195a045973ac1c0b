"""The stages from affinities to meshes through the real runner, on an embedded repository."""

import json
import warnings

import numpy as np
import polars as pl
import pytest

import lake
from lake.box import Box
from lake.digests import canonical_json
from lake.measures import variation_of_information
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume, open_volume
from transforms.pipeline import load_pipeline
from transforms.runner import run
from transforms.tree import GRID

SHAPE, CELL, VOXEL_NM = (16, 48, 64), (16, 16, 16), (16.0, 8.0, 8.0)
PIPELINE = {
    "name": "cells",
    "stages": [
        {"stage": "watershed", "params": {"min_voxels": 8, "halo": [0, 4, 4]}},
        {"stage": "edges"},
        {"stage": "agglomerate"},
        {"stage": "segments"},
        {"stage": "segmentation"},
        {
            "stage": "synapses",
            "params": {"cells": [1, 1, 2], "halo": [14, 26, 26], "max_site_nm": 80, "pair_nm": 70, "min_voxels": 10},
        },
        {"stage": "connections"},
        {"stage": "mesh_pieces", "params": {"factor": [1, 2, 2], "cells": [1, 1, 2]}},
        {"stage": "meshes", "params": {"min_voxels": 500}},
    ],
}


def sample():
    """Six columns along z with walls between them, and one synapse."""
    labels = np.ones(SHAPE, np.int64)
    affinity = np.full((3, *SHAPE), 245, np.uint8)
    for axis, step, walls in ((1, 3, [24]), (2, 1, [20, 40])):
        for at in walls:
            labels[tuple(slice(at, None) if a == axis else slice(None) for a in range(3))] += step
            affinity[(slice(None), *[slice(at - 2, at + 1) if a == axis else slice(None) for a in range(3)])] = 30
    sites = np.zeros((2, *SHAPE), np.uint8)
    sites[0, 7:10, 10:15, 34:38] = sites[1, 7:10, 10:15, 42:46] = 230
    return labels, affinity, sites


def put(location, name, array):
    spec = VolumeSpec(name, "affinity", "uint8", SHAPE, VOXEL_NM, channels=len(array), chunk_zyx=CELL, driver="zarr3")
    create_volume(location, spec).write(Box((0, 0, 0), SHAPE), array)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    labels, affinity, sites = sample()
    repo = lake.create(tmp_path_factory.mktemp("cells") / "repo")
    grid = {"block_zyx": list(CELL), "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": list(VOXEL_NM)}
    repo.put("main", GRID, canonical_json(grid))
    repo.commit("main", "grid")
    repo.create_branch("ops", "main")
    with repo.session("main", owner="test") as session:
        put(session.workspace("volumes/affinity/"), "affinity", affinity)
        put(session.workspace("volumes/synapse_sites/"), "synapse_sites", sites)
        session.commit("affinities and sites")
    repo.create_branch("work", "main")
    report = run(repo, load_pipeline(PIPELINE), "work")
    yield repo, report, labels
    repo.close()


def test_segments_synapses_and_meshes_come_out_of_one_run(finished):
    repo, report, labels = finished
    assert report.state == "complete"
    with repo.snapshot("work") as snapshot:
        volume = snapshot.volume("segmentation")
        segmentation = volume.read(volume.box)
        synapses = snapshot.table("synapses").collect()
        segments = snapshot.table("segments").collect()
        assert snapshot.table("connections").collect()["synapses"].to_list() == [1]
    assert sum(variation_of_information(segmentation, labels)) < 0.02
    assert set(segments["root_id"]) == set(np.unique(segmentation).tolist())
    assert synapses.select("region", "block").rows() == [("0_0_2", "synapses/0_0_1")]
    pre, post = synapses.select("pre_pt_root_id", "post_pt_root_id").row(0)
    assert (segmentation[8, 12, 35], segmentation[8, 12, 45]) == (pre, post)


def test_cloud_volume_opens_the_meshes_of_the_run(finished, tmp_path):
    repo, _, _ = finished
    for stat in repo.list("work", "meshes/segmentation/"):
        target = tmp_path / "seg" / "mesh" / stat.key.rpartition("/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(repo.get("work", stat.key))
    scale = {
        "chunk_sizes": [[16, 16, 16]],
        "encoding": "raw",
        "key": "s",
        "resolution": [8, 8, 16],
        "size": [64, 48, 16],
    }
    described = {"data_type": "uint64", "num_channels": 1, "type": "segmentation", "mesh": "mesh"}
    described["scales"] = [scale | {"voxel_offset": [0, 0, 0]}]
    (tmp_path / "seg" / "info").write_text(json.dumps(described))
    with repo.snapshot("work") as snapshot:
        rows = snapshot.table("segments").collect().join(snapshot.table("meshes").collect(), on="root_id")
    assert rows.height == 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dependency's own deprecations, on import
        from cloudvolume import CloudVolume

        reader = CloudVolume(f"file://{tmp_path}/seg", progress=False, cache=False)
        for row in rows.iter_rows(named=True):
            mesh = reader.mesh.get(row["root_id"])[row["root_id"]]
            low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
            assert np.allclose(low, [row[f"min_{a}"] for a in "xyz"], atol=16.1)
            assert np.allclose(high, [row[f"max_{a}"] for a in "xyz"], atol=16.1)


def test_one_changed_cell_is_computed_again_with_its_neighbours_and_nothing_else(finished):
    repo, _, _ = finished
    repo.create_branch("patched", "work")
    with repo.session("patched", owner="test") as session:
        volume = open_volume(session.workspace("volumes/affinity/"))
        corner = Box((0, 32, 48), (16, 48, 64))
        changed = volume.read(corner)
        changed[:, 2:14, 3:13, 8] = 0  # a piece of wall in one corner cell, clear of the cell's sides
        volume.write(corner, changed)
        session.commit("another model spoke on one cell")
    report = run(repo, load_pipeline(PIPELINE), "patched")
    computed = {stage.stage: stage.computed for stage in report.stages}
    assert computed["watershed"] == 4  # the cell, and three that see it in their halo
    assert computed["agglomerate"] == 1
    assert 4 <= computed["edges"] <= 9  # those four, and their lower neighbours
    assert computed["segmentation"] <= 4
    assert computed["mesh_pieces"] == 0  # the same voxels under the same roots
    rows = []
    for branch in ("work", "patched"):
        with repo.snapshot(branch) as snapshot:
            rows.append(snapshot.table("edges").collect().drop("run_id").sort("a", "b"))
    far = [frame.filter(pl.col("region").is_in(["0_0_0", "0_0_1", "0_1_0"])) for frame in rows]
    assert far[0].equals(far[1])
    assert rows[1].select("a", "b").is_unique().all()
