import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput
from lake.ids import unpack_supervoxel_id
from lake.schemas import TABLES
from transforms.kernels.synapses import SynapseParameters, connections, find_synapses

VOXEL_NM = (16.0, 8.0, 8.0)
CELL = (8, 16, 16)
PARAMETERS = SynapseParameters(min_voxels=3, max_site_nm=50.0, pair_nm=60.0)


def ball(sites, channel, centre, value=220, radius=(1, 2, 2)):
    window = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, radius, strict=True))
    sites[(channel, *window)] = value


def scene(shape=(16, 32, 48)):
    """Two cells that meet at x = 24: 10 (supervoxels 1, 2 by z) on the left and 20 (supervoxel 3) on the right."""
    supervoxels = np.zeros(shape, np.int64)
    supervoxels[:8, :, :24], supervoxels[8:, :, :24], supervoxels[:, :, 24:] = 1, 2, 3
    return np.zeros((2, *shape), np.uint8), supervoxels, {1: 10, 2: 10, 3: 20}


def find(sites, supervoxels, roots, core=None, parameters=PARAMETERS, box=None):
    bounds = Box((0, 0, 0), supervoxels.shape)
    core = core or bounds
    box = box or core.grow(parameters.halo(VOXEL_NM)).clip(bounds)
    return find_synapses(
        sites[(slice(None), *box.slices)],
        supervoxels[box.slices],
        (np.array(list(roots)), np.array(list(roots.values()))),
        box=box,
        core=core,
        bounds=bounds,
        cell=CELL,
        voxel_nm=VOXEL_NM,
        parameters=parameters,
    )


def test_a_pair_of_facing_sites_is_one_synapse_with_points_at_voxel_centres():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 10, 20))
    ball(sites, 1, (4, 10, 27))
    rows = find(sites, supervoxels, roots).to_dicts()
    assert len(rows) == 1
    row = rows[0]
    assert [row[f"pre_pt_position_{a}"] for a in "zyx"] == [4.5 * 16, 10.5 * 8, 20.5 * 8]
    assert [row[f"post_pt_position_{a}"] for a in "zyx"] == [4.5 * 16, 10.5 * 8, 27.5 * 8]
    assert [row[f"ctr_pt_position_{a}"] for a in "zyx"] == [4.5 * 16, 10.5 * 8, 24.5 * 8]
    assert (row["pre_pt_supervoxel_id"], row["pre_pt_root_id"]) == (1, 10)
    assert (row["post_pt_supervoxel_id"], row["post_pt_root_id"]) == (3, 20)
    assert row["size"] == 150
    assert row["score"] == pytest.approx(220 / 255)
    assert row["valid"] is True
    assert [int(v) for v in unpack_supervoxel_id(row["id"])] == [0, 0, 1, 1]


def test_a_site_is_bound_to_the_root_that_holds_most_of_it_and_its_point_lies_there():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (8, 10, 22))  # crosses from supervoxel 1 to 2 in z, and one column reaches into cell 20
    ball(sites, 1, (8, 10, 28))
    row = find(sites, supervoxels, roots).to_dicts()[0]
    assert (row["pre_pt_root_id"], row["pre_pt_supervoxel_id"]) == (10, 2)
    assert supervoxels[8, 10, 22] == 2
    assert row["pre_pt_position_z"] in (8.5 * 16, 9.5 * 16)


def test_both_ends_in_one_segment_make_an_invalid_row_unless_another_partner_is_in_reach():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 10, 12))
    ball(sites, 1, (4, 10, 18))
    assert find(sites, supervoxels, roots)["valid"].to_list() == [False]
    ball(sites, 0, (4, 14, 23), radius=(1, 1, 1))
    supervoxels[:, 13:, 22:26], roots[4] = 4, 30
    assert find(sites, supervoxels, roots).filter(pl.col("valid"))["pre_pt_root_id"].to_list() == [30]


def test_one_presynaptic_site_may_face_several_partners():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 14, 21))
    ball(sites, 1, (4, 11, 26))
    ball(sites, 1, (4, 18, 26))
    rows = find(sites, supervoxels, roots)
    assert rows.height == 2
    assert rows["pre_pt_position_y"].unique().to_list() == [14.5 * 8]


def test_a_lone_site_a_faint_one_a_small_one_and_a_wide_one_are_no_synapse():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 10, 20))
    assert find(sites, supervoxels, roots).height == 0
    ball(sites, 1, (4, 10, 27), value=130)
    assert find(sites, supervoxels, roots).height == 0
    ball(sites, 1, (4, 10, 27), value=0)
    sites[1, 4, 10, 27] = 255
    assert find(sites, supervoxels, roots).height == 0
    ball(sites, 1, (4, 10, 28), radius=(1, 2, 4))
    assert find(sites, supervoxels, roots).height == 0
    ball(sites, 1, (4, 10, 28), value=0, radius=(1, 2, 4))
    ball(sites, 1, (4, 10, 27))
    assert find(sites, supervoxels, roots).height == 1


def test_background_under_a_site_gives_id_zero_and_an_invalid_row():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 10, 20))
    ball(sites, 1, (4, 10, 27))
    supervoxels[..., 24:] = 0
    row = find(sites, supervoxels, roots).to_dicts()[0]
    assert (row["post_pt_supervoxel_id"], row["post_pt_root_id"], row["valid"]) == (0, 0, False)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), density=st.sampled_from([10, 40, 90]))
def test_blocks_partition_the_synapses_exactly(seed, density):
    # Crowded on purpose: sites that touch, that are cut by read boxes, that have several partners in reach.
    rng = np.random.default_rng(seed)
    sites, supervoxels, roots = scene((16, 64, 96))
    for _ in range(density):
        centre = tuple(int(rng.integers(0, n)) for n in supervoxels.shape)
        radius = tuple(int(rng.integers(0, 3)) for _ in range(3))
        ball(sites, int(rng.integers(0, 2)), centre, int(rng.integers(100, 256)), radius)
    parameters = SynapseParameters(min_voxels=2, max_site_nm=50.0, pair_nm=50.0)
    whole = find(sites, supervoxels, roots, parameters=parameters)
    bounds = Box((0, 0, 0), supervoxels.shape)
    parts = [find(sites, supervoxels, roots, core, parameters) for _, core in bounds.blocks((8, 16, 32))]
    assert pl.concat(parts).sort("id").equals(whole.sort("id"))
    assert whole["id"].is_unique().all()


def test_too_little_context_is_refused_rather_than_giving_other_synapses():
    sites, supervoxels, roots = scene((16, 64, 96))
    core = Box((0, 16, 32), (8, 32, 64))
    with pytest.raises(BadInput, match="too little context"):
        find(sites, supervoxels, roots, core, box=core.grow((2, 2, 2)).clip(Box((0, 0, 0), supervoxels.shape)))


def test_rows_fit_the_declared_table_also_when_there_are_none():
    sites, supervoxels, roots = scene()
    empty = find(sites, supervoxels, roots)
    required = {c.name for c in TABLES["synapses"].columns} - {"run_id", "block", "region"}
    assert set(empty.columns) == required
    assert empty.height == 0
    assert connections(empty).height == 0


def test_a_supervoxel_without_a_root_is_refused_by_name():
    sites, supervoxels, roots = scene()
    ball(sites, 0, (4, 10, 20))
    del roots[1]
    with pytest.raises(BadInput, match="supervoxel 1 has no root"):
        find(sites, supervoxels, roots)


def test_connections_count_valid_synapses_by_ordered_pair():
    base = {"size": 100.0, "valid": True}
    rows = pl.DataFrame(
        [
            {"id": 1, "pre_pt_root_id": 7, "post_pt_root_id": 9, **base},
            {"id": 2, "pre_pt_root_id": 7, "post_pt_root_id": 9, **base, "size": 50.0},
            {"id": 3, "pre_pt_root_id": 9, "post_pt_root_id": 7, **base},
            {"id": 4, "pre_pt_root_id": 7, "post_pt_root_id": 7, **base, "valid": False},
        ]
    )
    assert connections(rows).rows() == [(7, 9, 2, 150.0), (9, 7, 1, 100.0)]
    assert set(connections(rows).columns) == {c.name for c in TABLES["connections"].columns} - {"run_id"}
