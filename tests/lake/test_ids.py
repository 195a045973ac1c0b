"""Ids: what a voxel set hashes to, whatever order, cut or numbering it came in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lake.box import Box
from lake.errors import BadInput, RootCollision
from lake.ids import (
    add_hashes,
    mix64,
    parse_region,
    region_name,
    root_ids,
    supervoxel_id,
    unpack_supervoxel_id,
    voxel_hashes,
)

MASK = 2**64 - 1
few = settings(deadline=None, max_examples=50)


def mix_by_hand(value: int) -> int:
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & MASK
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def hash_by_hand(labels: np.ndarray, box: Box, label: int) -> int:
    total = 0
    for z, y, x in np.argwhere(labels == label).tolist():
        key = ((z + box.start[0]) << 42) + ((y + box.start[1]) << 21) + x + box.start[2]
        total += mix_by_hand(key)
    return total % 2**63


@few
@given(st.integers(0, MASK))
def test_mix64_is_the_finaliser_of_splitmix64(value: int) -> None:
    assert int(mix64(np.array([value], np.uint64))[0]) == mix_by_hand(value)


def test_mix64_has_the_published_value() -> None:
    # First output of splitmix64 with seed 0 is the finaliser of the golden increment (Vigna's reference code).
    assert int(mix64(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF


labels_3d = hnp.arrays(np.int64, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 3))
corners = st.tuples(*[st.integers(0, 2**21 - 8)] * 3)


@few
@given(labels_3d, corners)
def test_a_hash_is_the_sum_over_its_voxels_modulo_2_63(labels: np.ndarray, corner: tuple[int, int, int]) -> None:
    box = Box((0, 0, 0), labels.shape).shift(corner)
    hashes = voxel_hashes(labels, box, 3)
    assert hashes[0] == 0
    assert [int(h) for h in hashes[1:]] == [hash_by_hand(labels, box, label) for label in (1, 2, 3)]


@few
@given(labels_3d, st.tuples(*[st.integers(1, 4)] * 3))
def test_a_hash_does_not_depend_on_how_the_volume_is_cut(labels: np.ndarray, size: tuple[int, int, int]) -> None:
    box = Box((0, 0, 0), labels.shape).shift((100, 200, 300))
    parts = [voxel_hashes(labels[b.within(box)], b, 3) for _, b in box.blocks(size)]
    whole = voxel_hashes(labels, box, 3)
    assert [add_hashes(np.array([part[label] for part in parts])) for label in range(4)] == [int(h) for h in whole]


@few
@given(
    st.tuples(*[st.integers(0, 2**13 - 1)] * 3),
    st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=5),
)
def test_a_supervoxel_id_gives_back_its_block_and_number(index: tuple[int, int, int], numbers: list[int]) -> None:
    ids = supervoxel_id(index, np.array(numbers))
    assert (ids > 0).all()
    z, y, x, local = unpack_supervoxel_id(ids)
    assert {tuple(map(int, block)) for block in zip(z, y, x, strict=True)} == {index}
    assert local.tolist() == numbers


def test_background_stays_background_in_every_block() -> None:
    assert supervoxel_id((1, 2, 3), np.array([0, 1])).tolist() == [0, ((1 << 26 | 2 << 13 | 3) << 24) + 1]


@pytest.mark.parametrize(("index", "local"), [((8192, 0, 0), 1), ((0, -1, 0), 1), ((0, 0, 0), 2**24), ((0, 0, 0), -1)])
def test_what_does_not_fit_its_bits_is_refused(index: tuple[int, int, int], local: int) -> None:
    with pytest.raises(BadInput, match=r"bits"):
        supervoxel_id(index, local)


clusterings = st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 3)), min_size=1, max_size=12)


@few
@given(clusterings, st.randoms(use_true_random=False))
def test_root_ids_depend_neither_on_row_order_nor_on_cluster_numbers(rows: list, random) -> None:
    hashes = np.array([h for h, _ in rows], np.int64)
    clusters = np.array([c for _, c in rows])
    supervoxels = np.arange(1, len(rows) + 1)
    try:
        roots = root_ids(supervoxels, clusters, hashes)
    except RootCollision:
        return
    order = list(range(len(rows)))
    random.shuffle(order)
    assert (root_ids(supervoxels[order], 1000 - clusters[order], hashes[order]) == roots[order]).all()
    for cluster in set(clusters.tolist()):
        expected = sum(int(h) for h in hashes[clusters == cluster]) % 2**63 or 1
        assert set(roots[clusters == cluster].tolist()) == {expected}


def test_a_sum_of_zero_becomes_root_one() -> None:
    assert root_ids(np.array([7]), np.array([0]), np.array([0])).tolist() == [1]


def test_two_clusters_with_one_sum_are_a_root_collision_that_names_them() -> None:
    with pytest.raises(RootCollision, match=r"root id 5.*11, 12, 13"):
        root_ids(np.array([11, 12, 13]), np.array([0, 0, 1]), np.array([2, 3, 5]))


def test_a_region_is_named_by_its_index() -> None:
    assert region_name((0, 12, 3)) == "0_12_3"
    assert parse_region("0_12_3") == (0, 12, 3)
    with pytest.raises(BadInput, match="0_12"):
        parse_region("0_12")


def test_labels_beyond_n_and_coordinates_beyond_21_bits_are_refused() -> None:
    labels = np.full((1, 1, 1), 4)
    with pytest.raises(BadInput, match=r"4 to 4"):
        voxel_hashes(labels, Box((0, 0, 0), (1, 1, 1)), 3)
    with pytest.raises(BadInput, match="2\\^21"):
        voxel_hashes(labels, Box((2**21, 0, 0), (2**21 + 1, 1, 1)), 4)
