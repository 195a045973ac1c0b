import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from lake.errors import BadInput
from lake.measures import variation_of_information
from transforms.kernels.watershed import (
    FragmentParameters,
    boundary_distance,
    connected,
    fragments,
    intensity_fragments,
    join_small,
    together,
)

VOXEL_NM = (16.0, 8.0, 8.0)


def voronoi(seed, shape=(16, 48, 48), cells=12, voxel_nm=VOXEL_NM):
    """Random cells, 1..cells, each voxel given to the nearest of random points (distances in nm)."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (cells, 3)) * shape
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., None, :]
    return (((where - points) * voxel_nm) ** 2).sum(axis=-1).argmin(axis=-1).astype(np.uint32) + 1


def perfect_affinity(labels):
    out = np.zeros((3, *labels.shape), np.uint8)
    for axis in range(3):
        same = np.diff(labels.astype(np.int64), axis=axis) == 0
        inner = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
        out[axis][inner] = np.where(same, 255, 0)
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([(16.0, 8.0, 8.0), (40.0, 4.0, 4.0), (10.0, 10.0, 10.0)]))
def test_boundary_distance_is_exact_for_any_voxel_shape(seed, voxel_nm):
    inside = np.random.default_rng(seed).random((9, 17, 13)) > 0.01
    inside[4, 8, 6] = False
    expected = distance_transform_edt(inside, sampling=voxel_nm)
    np.testing.assert_allclose(boundary_distance(inside, voxel_nm), expected, rtol=1e-6)


def test_boundary_distance_without_any_boundary_is_finite_and_equal_everywhere():
    distance = boundary_distance(np.ones((4, 5, 6), bool), VOXEL_NM)
    assert np.isfinite(distance).all()
    assert np.ptp(distance) == 0


def test_rectangular_pixels_are_measured_too():
    inside = np.ones((5, 9, 9), bool)
    inside[2, 4, 4] = False
    assert boundary_distance(inside, (30.0, 4.0, 6.0))[2, 4, 8] == pytest.approx(24.0)


def test_fragments_of_perfect_affinities_never_cross_a_boundary_by_more_than_a_sliver():
    labels = voronoi(1)
    found = fragments(perfect_affinity(labels), voxel_nm=VOXEL_NM)
    split, merge = variation_of_information(found, labels)
    assert merge < 0.15
    assert split < 3.0


def test_fragments_cover_every_voxel_with_connected_labels_in_order_of_first_voxel():
    found = fragments(perfect_affinity(voronoi(2)), voxel_nm=VOXEL_NM)
    assert found.dtype == np.uint32
    assert found.min() == 1
    _, first = np.unique(found, return_index=True)
    assert (np.diff(first) > 0).all()
    assert connected(found).max() == found.max()


def test_fragments_of_a_core_are_connected_inside_it_and_leave_the_halo_out():
    affinity = perfect_affinity(voronoi(3))
    core = (slice(4, 12), slice(8, 40), slice(8, 40))
    found = fragments(affinity, voxel_nm=VOXEL_NM, core=core)
    assert found.shape == (8, 32, 32)
    assert connected(found).max() == found.max()


def test_no_fragment_is_smaller_than_asked_for():
    noise = np.random.default_rng(4).integers(0, 256, (3, 12, 32, 32)).astype(np.uint8)
    found = fragments(noise, voxel_nm=VOXEL_NM, parameters=FragmentParameters(min_voxels=50))
    assert np.bincount(found.ravel())[1:].min() >= 50
    finer = fragments(noise, voxel_nm=VOXEL_NM, parameters=FragmentParameters(min_voxels=1))
    assert finer.max() > found.max()


def test_the_same_block_gives_the_same_fragments_twice():
    noise = np.random.default_rng(5).integers(0, 256, (3, 12, 32, 32)).astype(np.uint8)
    assert (fragments(noise, voxel_nm=VOXEL_NM) == fragments(noise.copy(), voxel_nm=VOXEL_NM)).all()


@pytest.mark.parametrize("level", [0, 255])
def test_a_block_that_is_all_boundary_or_all_inside_is_one_fragment(level):
    found = fragments(np.full((3, 8, 16, 16), level, np.uint8), voxel_nm=VOXEL_NM)
    assert (found == 1).all()


def test_outside_the_mask_there_is_no_fragment_and_inside_there_is_no_hole():
    labels = voronoi(6)
    mask = np.zeros(labels.shape, bool)
    mask[:, 4:20, 4:20] = True
    mask[:, 30:33, 30:33] = True  # an island without a seed of its own
    found = fragments(perfect_affinity(labels), voxel_nm=VOXEL_NM, mask=mask)
    assert ((found > 0) == mask).all()


def test_a_small_fragment_joins_the_neighbour_with_the_highest_affinity():
    labels = np.ones((1, 1, 9), np.uint32)
    labels[..., 4], labels[..., 5:] = 2, 3
    affinity = np.full((3, 1, 1, 9), 255, np.uint8)
    affinity[2, 0, 0, 3], affinity[2, 0, 0, 4] = 10, 200
    assert join_small(labels, affinity, 2).ravel().tolist() == [1] * 4 + [2] * 5
    assert join_small(labels, affinity, 1).max() == 3


def test_mean_affinity_of_a_voxel_counts_faces_on_both_sides():
    affinity = np.zeros((3, 1, 1, 3), np.uint8)
    affinity[2, 0, 0] = [200, 100, 77]  # the last one leads out of the array and counts for nothing
    assert together(affinity).ravel().tolist() == [200, 150, 100]


def test_plain_intensity_separates_bright_cells_by_dark_membranes():
    labels = voronoi(7, shape=(12, 64, 64), cells=6)
    edge = np.zeros(labels.shape, bool)
    for axis in (1, 2):
        step = np.diff(labels.astype(int), axis=axis) != 0
        for inner in (slice(0, -1), slice(1, None)):
            edge[tuple(inner if a == axis else slice(None) for a in range(3))] |= step
    noise = np.random.default_rng(0).normal(0, 8, labels.shape)
    em = np.clip(np.where(edge, 60, 170) + noise, 0, 255).astype(np.uint8)
    _, merge = variation_of_information(intensity_fragments(em, voxel_nm=VOXEL_NM), labels)
    assert merge < 0.3


@pytest.mark.parametrize("wrong", [np.zeros((2, 4, 4, 4), np.uint8), np.zeros((3, 4, 4, 4), np.float32)])
def test_affinities_of_the_wrong_shape_or_type_are_refused(wrong):
    with pytest.raises(BadInput, match="affinity"):
        fragments(wrong, voxel_nm=VOXEL_NM)


@pytest.mark.parametrize("wrong", [{"boundary_level": 1.0}, {"seed_distance_nm": 0}, {"min_voxels": 0}])
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput):
        FragmentParameters(**wrong)
