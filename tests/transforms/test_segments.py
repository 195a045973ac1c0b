import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput
from lake.ids import supervoxel_id
from lake.schemas import TABLES
from transforms.kernels.segments import agglomeration_table, relabel, segments_table, supervoxel_table

VOXEL_NM = (16.0, 8.0, 4.0)


def whole_and_blocks(seed, shape, block, labels=6):
    """A labelled volume as supervoxels: a table of all blocks, and the volume of ids."""
    truth = np.random.default_rng(seed).integers(0, labels, shape)
    bounds = Box((0, 0, 0), shape)
    tables, ids = [], np.zeros(shape, np.int64)
    for index, core in bounds.blocks(block):
        tables.append(supervoxel_table(truth[core.slices], index, core, VOXEL_NM))
        ids[core.slices] = supervoxel_id(index, truth[core.slices])
    return truth, pl.concat(tables).sort("supervoxel_id"), ids


def test_one_supervoxel_is_measured_at_voxel_centres_in_global_nm():
    labels = np.zeros((2, 3, 4), np.uint32)
    labels[0, 1, 1:3] = 5
    row = supervoxel_table(labels, (1, 0, 2), Box((10, 20, 30), (12, 23, 34)), VOXEL_NM).to_dicts()
    assert len(row) == 1
    assert row[0]["supervoxel_id"] == int(supervoxel_id((1, 0, 2), 5))
    assert row[0]["region"] == "1_0_2"
    assert row[0]["voxels"] == 2
    centre = (row[0]["centroid_z"], row[0]["centroid_y"], row[0]["centroid_x"])
    assert centre == (10.5 * 16, 21.5 * 8, 32.0 * 4)
    assert [row[0][f"min_{a}"] for a in "zyx"] == [160.0, 168.0, 124.0]
    assert [row[0][f"max_{a}"] for a in "zyx"] == [176.0, 176.0, 132.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.tuples(*[st.integers(2, 7)] * 3), st.tuples(*[st.integers(2, 5)] * 3))
def test_a_segment_is_the_same_however_the_volume_was_cut(seed, shape, block):
    bounds = ((0.0, 0.0, 0.0), tuple(n * v for n, v in zip(shape, VOXEL_NM, strict=True)))
    found = []
    for size in (block, shape):
        truth, supervoxels, ids = whole_and_blocks(seed, shape, size)
        names, first = np.unique(ids, return_index=True)
        cluster = truth.ravel()[first][names > 0]
        table = agglomeration_table(supervoxels, cluster)
        segments = segments_table(supervoxels, table, bounds)
        found.append((segments, relabel(ids, *(table[c].to_numpy() for c in ("supervoxel_id", "root_id")))))
    (left, left_volume), (right, right_volume) = found
    assert (left_volume == right_volume).all()
    assert left.drop("supervoxels", "centroid_x", "centroid_y", "centroid_z").equals(
        right.drop("supervoxels", "centroid_x", "centroid_y", "centroid_z")
    )
    for axis in "xyz":
        np.testing.assert_allclose(left[f"centroid_{axis}"], right[f"centroid_{axis}"], rtol=1e-12)
    assert left["voxels"].sum() == (truth > 0).sum()
    for root, voxels in left.select("root_id", "voxels").iter_rows():
        assert (left_volume == root).sum() == voxels


def test_faces_of_the_volume_that_a_segment_touches_are_counted():
    labels = np.ones((3, 3, 3), np.uint32)
    labels[1, 1, 1] = 2
    labels[0, 1, 1] = 3
    supervoxels = supervoxel_table(labels, (0, 0, 0), Box((0, 0, 0), (3, 3, 3)), VOXEL_NM)
    segments = segments_table(
        supervoxels, agglomeration_table(supervoxels, np.arange(3)), ((0.0, 0.0, 0.0), (48.0, 24.0, 12.0))
    )
    by_size = sorted(segments.select("voxels", "boundary_faces").iter_rows())
    assert by_size == [(1, 0), (1, 1), (25, 6)]
    again = segments_table(supervoxels, agglomeration_table(supervoxels, np.arange(3)))
    assert again.equals(segments)


@pytest.mark.parametrize("name", ["supervoxels", "segments"])
def test_rows_fit_the_declared_tables(name):
    _, supervoxels, ids = whole_and_blocks(0, (4, 4, 4), (2, 4, 4))
    table = agglomeration_table(supervoxels, np.zeros(supervoxels.height, np.int64))
    rows = supervoxels if name == "supervoxels" else segments_table(supervoxels, table, ((0, 0, 0), (64, 32, 16)))
    required = {c.name for c in TABLES[name].columns if not c.nullable} - {"run_id", "block"}
    assert required <= set(rows.columns) <= set(TABLES[name].names)
    assert ids.min() == 0


def test_a_supervoxel_without_a_root_is_refused_in_the_table_and_in_the_volume():
    _, supervoxels, ids = whole_and_blocks(1, (4, 4, 4), (4, 4, 4))
    table = agglomeration_table(supervoxels, np.zeros(supervoxels.height, np.int64))
    with pytest.raises(BadInput, match="1 without a root"):
        segments_table(supervoxels, table[1:], ((0, 0, 0), (64, 32, 16)))
    with pytest.raises(BadInput, match="1 supervoxels have no root"):
        relabel(ids, *(table[1:][c].to_numpy() for c in ("supervoxel_id", "root_id")))


def test_background_stays_background_and_ids_beyond_32_bits_survive():
    ids = np.array([[[0, 2**62 + 1], [2**62 + 3, 0]]], np.uint64)
    out = relabel(ids, np.array([2**62 + 3, 2**62 + 1]), np.array([2**63 - 1, 7]))
    assert out.dtype == np.uint64
    assert out.tolist() == [[[0, 7], [2**63 - 1, 0]]]
    assert (relabel(np.zeros((2, 2, 2), np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0).all()


def test_an_empty_block_gives_no_rows():
    table = supervoxel_table(np.zeros((2, 2, 2), np.uint32), (0, 0, 0), Box((0, 0, 0), (2, 2, 2)), VOXEL_NM)
    assert table.height == 0
