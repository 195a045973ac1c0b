import numpy as np
import pytest

from lake.box import Box
from lake.errors import BadInput
from transforms.synthetic.neuropil import neuropil, odd_box_of

SHAPE = (16, 128, 128)


@pytest.fixture(scope="module")
def sample():
    return neuropil(3, SHAPE)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(sample):
    again, other = neuropil(3, SHAPE), neuropil(4, SHAPE)
    assert np.array_equal(sample.image, again.image)
    assert np.array_equal(sample.labels, again.labels)
    assert np.array_equal(sample.synapses.pre, again.synapses.pre)
    assert not np.array_equal(sample.labels, other.labels)


def test_every_neurite_is_connected_and_numbered_without_gaps(sample):
    import cc3d

    count = int(sample.labels.max())
    assert count > 10
    assert np.array_equal(np.unique(sample.labels), np.arange(count + 1))
    # As many connected pieces as labels: no label is in two pieces.
    assert int(cc3d.connected_components(sample.labels, connectivity=6).max()) == count


def test_two_neurites_never_touch_without_a_membrane_between(sample):
    for axis in range(3):
        here, there = np.moveaxis(sample.labels, axis, 0)[:-1], np.moveaxis(sample.labels, axis, 0)[1:]
        assert not ((here != there) & (here > 0) & (there > 0)).any()


def test_neurites_fill_most_of_the_volume(sample):
    assert 0.6 < (sample.labels > 0).mean() < 0.9


def test_membranes_are_darker_than_neurites_in_the_usual_stain():
    plain = neuropil(5, SHAPE, odd_box=None)
    assert plain.odd_box is None
    assert plain.image[plain.labels == 0].mean() + 30 < plain.image[plain.labels > 0].mean()


def test_the_odd_box_spans_the_depth_and_two_fifths_of_each_side():
    box = odd_box_of(11, (64, 500, 400))
    assert box.shape == (64, 200, 160)
    assert Box((0, 0, 0), (64, 500, 400)).contains(box)
    assert box != odd_box_of(12, (64, 500, 400))


def test_neurites_are_darker_and_less_even_inside_the_odd_box(sample):
    inside = np.zeros(SHAPE, bool)
    inside[sample.odd_box.slices] = True
    cell, image = sample.labels > 0, sample.image.astype(float)
    assert image[inside & cell].mean() + 15 < image[~inside & cell].mean()
    assert image[inside & cell].std() > 1.2 * image[~inside & cell].std()


def test_the_odd_stain_changes_no_truth_and_no_voxel_far_outside_its_box():
    box = Box((0, 20, 20), (16, 60, 70))
    plain, odd = neuropil(6, SHAPE, odd_box=None), neuropil(6, SHAPE, odd_box=box)
    assert odd.odd_box == box
    assert np.array_equal(plain.labels, odd.labels)
    differs = np.argwhere(plain.image != odd.image)
    assert (differs[:, 1:].min(axis=0) >= 8).all()
    assert (differs[:, 1:].max(axis=0) < (72, 82)).all()


def test_synapses_lie_between_the_two_neurites_they_name(sample):
    synapses = sample.synapses
    assert len(synapses) >= 1
    assert np.array_equal(sample.labels[tuple(synapses.pre.T)], synapses.pre_id)
    assert np.array_equal(sample.labels[tuple(synapses.post.T)], synapses.post_id)
    assert (sample.labels[tuple(synapses.centre.T)] == 0).all()
    assert (synapses.pre_id != synapses.post_id).all()
    assert set(synapses.columns()) >= {"pre_z", "post_y", "ctr_x", "pre_id", "post_id"}


def test_synaptic_sites_are_darker_than_the_cytoplasm_around():
    plain = neuropil(5, (16, 192, 192), odd_box=None)
    at = tuple(plain.synapses.pre.T)
    assert len(plain.synapses) >= 2
    assert plain.image[at].mean() + 30 < plain.image[plain.labels > 0].mean()


def test_a_volume_too_small_to_hold_neuropil_is_refused():
    with pytest.raises(BadInput, match="2, 64, 64"):
        neuropil(1, (2, 64, 64))
