"""Scores of segmentations, synapses and skeletons, by hand, by property, and against published figures."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lake.box import Box
from lake.errors import BadInput
from lake.measures import (
    adapted_rand_error,
    add_contingencies,
    contingency,
    expected_run_length,
    score,
    score_regions,
    synapse_f1,
    variation_of_information,
)

SHAPE = (2, 3, 4)
few = settings(deadline=None, max_examples=40)
labels = hnp.arrays(np.int64, SHAPE, elements=st.integers(1, 4))
masked = hnp.arrays(np.int64, SHAPE, elements=st.integers(0, 4))


def entropy_of(a: np.ndarray, given_b: np.ndarray) -> float:
    """H(a | b) in bits, straight from the definition."""
    total = 0.0
    for b in np.unique(given_b):
        inside = a[given_b == b]
        for value in np.unique(inside):
            p = float((inside == value).mean())
            total -= len(inside) / a.size * p * math.log2(p)
    return total


@given(labels, labels)
@few
def test_vi_is_two_conditional_entropies_in_bits(seg: np.ndarray, truth: np.ndarray) -> None:
    split, merge = variation_of_information(seg, truth)
    assert split == pytest.approx(entropy_of(seg, truth), abs=1e-9)
    assert merge == pytest.approx(entropy_of(truth, seg), abs=1e-9)


@given(labels)
@few
def test_a_perfect_segmentation_has_no_error_under_any_numbering(truth: np.ndarray) -> None:
    renumbered = np.array([0, 7, 5, 9, 2**40])[truth]
    assert variation_of_information(renumbered, truth) == (0.0, 0.0)
    assert adapted_rand_error(renumbered, truth) == pytest.approx(0.0, abs=1e-12)


@given(labels, labels)
@few
def test_swapping_the_roles_swaps_split_and_merge(seg: np.ndarray, truth: np.ndarray) -> None:
    assert variation_of_information(seg, truth) == pytest.approx(variation_of_information(truth, seg)[::-1])
    assert adapted_rand_error(seg, truth) == pytest.approx(adapted_rand_error(truth, seg))


@given(labels, masked)
@few
def test_voxels_without_truth_do_not_count(seg: np.ndarray, truth: np.ndarray) -> None:
    elsewhere = np.where(truth == 0, 99, seg)
    # repr, since nan (nothing labelled at all) equals nothing.
    assert repr(score(contingency(elsewhere, truth))) == repr(score(contingency(seg, truth)))


@given(labels, masked, st.tuples(*[st.integers(1, 3)] * 3))
@few
def test_contingencies_of_blocks_add_up(seg: np.ndarray, truth: np.ndarray, size: tuple[int, int, int]) -> None:
    parts = [contingency(seg[b.slices], truth[b.slices]) for _, b in Box((0, 0, 0), SHAPE).blocks(size)]
    whole, added = contingency(seg, truth), add_contingencies(reversed(parts))
    for name in ("seg", "truth", "count"):
        assert (getattr(whole, name) == getattr(added, name)).all()


def test_one_body_cut_in_half_is_one_bit_of_split() -> None:
    truth = np.ones((1, 2, 4), int)
    seg = np.array([[[1, 1, 2, 2], [1, 1, 2, 2]]])
    assert variation_of_information(seg, truth) == (1.0, 0.0)
    assert variation_of_information(truth, seg) == (0.0, 1.0)


def test_nothing_labelled_is_unknown_not_zero() -> None:
    found = score(contingency(np.ones(SHAPE, int), np.zeros(SHAPE, int)))
    assert math.isnan(found.vi_split)
    assert math.isnan(found.adapted_rand_error)
    assert found.voxels == 0


def test_ids_above_2_53_are_kept_apart() -> None:
    seg = np.array([[[2**60, 2**60 + 1]]])
    assert variation_of_information(seg, np.ones((1, 1, 2), int)) == (1.0, 0.0)


def test_regions_are_scored_on_the_global_grid() -> None:
    truth = np.ones((2, 4, 6), int)
    seg = truth.copy()
    seg[:, :, 4:] = np.arange(16).reshape(2, 4, 2) + 5
    found = score_regions(seg, truth, Box((2, 4, 6), (4, 8, 12)), (2, 4, 4))
    assert list(found) == ["1_1_1", "1_1_2"]
    assert found["1_1_1"][0] == Box((2, 4, 6), (4, 8, 8))
    assert found["1_1_1"][1].vi_split == 0.0
    # The second cell holds two columns of one segment (half its voxels) and 16 segments of one voxel.
    assert found["1_1_2"][1].vi_split == pytest.approx(0.5 * 1 + 0.5 * 5)


def test_shapes_must_agree() -> None:
    with pytest.raises(BadInput, match=r"\(2, 3, 4\)"):
        contingency(np.ones(SHAPE, int), np.ones((2, 3, 5), int))


# -- synapses -----------------------------------------------------------------------------------------------------
def points(*xs: float) -> np.ndarray:
    return np.array([[x, 0.0, 0.0] for x in xs])


def pairs(*given_pairs: tuple[int, int]) -> np.ndarray:
    return np.array(given_pairs).reshape(-1, 2)


def test_a_synapse_counts_once_and_only_within_its_pair_of_cells() -> None:
    found = synapse_f1(points(0, 10, 20), pairs((1, 2), (1, 2), (2, 1)), points(1, 21), pairs((1, 2), (1, 2)), 50.0)
    assert (found.true_positives, found.false_positives, found.false_negatives) == (2, 1, 0)
    assert found.match.tolist() == [0, 1, -1]
    assert (found.precision, found.recall, found.f1) == (pytest.approx(2 / 3), 1.0, pytest.approx(0.8))


def test_as_many_matches_as_possible_come_before_short_distances() -> None:
    # The nearest pairing 10-11 alone would leave 0 and 60 unmatched.
    found = synapse_f1(points(10, 60), pairs((1, 2), (1, 2)), points(0, 11), pairs((1, 2), (1, 2)), 50.0)
    assert found.match.tolist() == [0, 1]


def test_beyond_the_distance_nothing_matches() -> None:
    found = synapse_f1(points(0), pairs((1, 2)), points(51), pairs((1, 2)), 50.0)
    assert (found.true_positives, found.f1) == (0, 0.0)
    assert synapse_f1(points(0), pairs((1, 2)), points(50), pairs((1, 2)), 50.0).f1 == 1.0


def test_unbound_predictions_match_nothing() -> None:
    assert synapse_f1(points(0), pairs((0, 2)), points(0), pairs((0, 2)), 50.0).true_positives == 0


def test_no_synapses_on_either_side_is_unknown() -> None:
    empty = np.zeros((0, 3))
    assert math.isnan(synapse_f1(empty, pairs(), empty, pairs(), 50.0).f1)
    assert synapse_f1(empty, pairs(), points(0), pairs((1, 2)), 50.0).f1 == 0.0


# -- run length ---------------------------------------------------------------------------------------------------
def chain(n: int, y: float = 0.0) -> np.ndarray:
    return np.array([[0.0, y, 100.0 * i] for i in range(n)])


def test_erl_of_a_split_is_the_sum_of_squared_runs_over_the_length() -> None:
    nodes = chain(6)
    edges = np.array([[i, i + 1] for i in range(5)])
    found = expected_run_length(nodes, np.ones(6, int), edges, np.array([1, 1, 1, 2, 2, 2]), merge_threshold_nm=50)
    # Runs of 200 and 200 nm; the edge between them belongs to none.
    assert found.erl_nm == pytest.approx((200**2 + 200**2) / 500)
    assert found.ceiling_nm == pytest.approx(500)
    assert found.merged == ()


def test_a_merged_segment_counts_nothing_from_the_threshold_on() -> None:
    nodes = np.concatenate([chain(4), chain(4, y=500.0)])
    skeletons = np.repeat([1, 2], 4)
    edges = np.array([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7]])
    segments = np.array([7, 7, 7, 7, 7, 7, 8, 8])
    merged = expected_run_length(nodes, skeletons, edges, segments, merge_threshold_nm=100)
    assert merged.merged == (7,)
    assert merged.erl_nm == pytest.approx(100**2 / 600)
    apart = expected_run_length(nodes, skeletons, edges, segments, merge_threshold_nm=101)
    assert apart.merged == ()
    assert apart.erl_nm == pytest.approx((300**2 + 100**2 + 100**2) / 600)


def test_cable_in_no_segment_lowers_erl_and_no_cable_is_unknown() -> None:
    edges = np.array([[0, 1], [1, 2]])
    found = expected_run_length(chain(3), np.ones(3, int), edges, np.array([5, 5, 0]), merge_threshold_nm=50)
    assert found.erl_nm == pytest.approx(100**2 / 200)
    assert math.isnan(
        expected_run_length(chain(1), np.ones(1, int), np.zeros((0, 2)), np.ones(1, int), merge_threshold_nm=50).erl_nm
    )


# -- published figures --------------------------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "skip_zero", "expected"),
    [("ws", False, (2.496, 0.306, 0.413)), ("ffn_seg", True, (0.572, 0.238, 0.121))],
)
def test_fib25_reference_scores(test_data: Path, name: str, skip_zero: bool, expected: tuple) -> None:
    volume = np.load(test_data / "fib25" / "volume.npz")
    seg = volume["ws"] if name == "ws" else np.load(test_data / "fib25" / "ffn_seg.npz")["seg"]
    found = score(contingency(seg, volume["gt"], skip_seg_zero=skip_zero))
    assert tuple(round(v, 3) for v in (found.vi_split, found.vi_merge, found.adapted_rand_error)) == expected


@pytest.mark.data
def test_gala_reference_scores(test_data: Path) -> None:
    volume = np.load(test_data / "gala_fib" / "volume.npz")
    split, merge = variation_of_information(volume["ws"], volume["gt"])
    assert (round(split, 2), round(merge, 2)) == (1.34, 0.12)
