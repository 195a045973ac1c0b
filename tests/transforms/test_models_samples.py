import numpy as np
import pytest

from lake.errors import BadInput
from transforms.models.samples import ArraySource, Crops, SyntheticSource, change, with_membranes
from transforms.models.targets import NEAREST, affinities, sites

CROPS = Crops("affinity", (8, 32, 32), 2, seed=1000, offsets=NEAREST)


def test_an_affinity_is_true_inside_a_neurite_and_false_across_and_on_membranes():
    labels = np.array([[[1, 1, 0, 2, 2, 3]]])
    same, known = affinities(labels)
    assert same[2].ravel().tolist() == [True, False, False, True, False, False]
    assert known[2].ravel().tolist() == [True, True, True, True, True, False]
    assert not known[0].any()


def test_a_site_is_marked_inside_its_neurite_only_and_at_its_place_in_the_crop():
    labels = np.ones((9, 40, 40), int)
    labels[:, :, 20:] = 2
    marked = sites(labels, np.array([[104, 220, 318]]), np.array([1]), origin=(100, 200, 300))
    assert marked[4, 20, 18]
    assert marked[4, 20, 12]
    assert not marked[4, 20, 20:].any()
    assert not marked[:, :10].any()
    assert 200 < marked.sum() < 700


def test_truth_whose_neurites_touch_gets_a_membrane_between_them():
    labels = np.repeat(np.array([1, 1, 1, 2, 2, 2]), 16).reshape(6, 4, 4)
    assert with_membranes(labels)[:, 0, 0].tolist() == [1, 1, 0, 0, 2, 2]


def test_a_batch_depends_on_its_step_alone():
    shape = (8, 48, 48)
    one = SyntheticSource(CROPS, 1000, shape=shape, renew=2, window=2, odd_share=0.4)
    two = SyntheticSource(CROPS, 1000, shape=shape, renew=2, window=2, odd_share=0.4)
    for step in range(3):
        wanted = one.batch(step)
    again = two.batch(2)
    assert np.array_equal(wanted.em, again.em)
    assert np.array_equal(wanted.wanted, again.wanted)
    assert not np.array_equal(again.em, two.batch(3).em)


def test_seeds_kept_for_scoring_are_refused_for_training():
    with pytest.raises(BadInput, match="99"):
        SyntheticSource(CROPS, 99)


def test_a_crop_of_given_arrays_keeps_image_and_labels_together():
    labels = np.zeros((12, 40, 40), np.uint32)
    labels[:, :, :13], labels[:, 20:, 13:] = 5, 7
    em = np.where(labels == 5, 200, np.where(labels == 7, 120, 40)).astype(np.uint8)
    crops = Crops("affinity", (8, 32, 32), 3, seed=1, offsets=NEAREST, strength=0)
    batch = ArraySource(crops, em, labels, carve=False).batch(0)
    same = batch.wanted[:, 2, :, :, :-1]
    assert same.any()
    assert ((batch.em[..., :-1] == batch.em[..., 1:]) & (batch.em[..., :-1] > 40))[same].all()
    assert np.array_equal(same, (batch.em[..., :-1] == batch.em[..., 1:]) & (batch.em[..., :-1] > 40))


def test_crops_larger_than_the_volume_are_refused_with_both_sizes():
    with pytest.raises(BadInput, match=r"\(8, 32, 32\).*\(4, 40, 40\)"):
        ArraySource(CROPS, np.zeros((4, 40, 40), np.uint8), np.ones((4, 40, 40), np.uint32)).batch(0)


def test_synaptic_crops_hold_both_sides_of_a_synapse():
    source = SyntheticSource(Crops("synapse", (8, 64, 64), 4, seed=1000), 1000, shape=(16, 128, 128), window=1)
    batch = source.batch(0)
    assert batch.wanted.shape == (4, 2, 8, 64, 64)
    assert batch.wanted[:, 0].any()
    assert batch.wanted[:, 1].any()
    assert not (batch.wanted[:, 0] & batch.wanted[:, 1]).any()


def test_changes_of_grey_values_keep_what_is_darker_darker():
    em = np.full((6, 48, 48), 170, np.uint8)
    em[:, :, 20:30] = 60
    rng = np.random.default_rng(0)
    for _ in range(10):
        changed = change(em, rng)
        assert changed.dtype == np.uint8
        assert changed[:, :, 22:28].mean() + 40 < changed[:, :, 32:].mean()
    assert np.array_equal(change(em, rng, 0), em)
