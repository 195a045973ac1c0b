import json

import numpy as np
import pytest

from lake.box import Box
from lake.errors import BadInput, NotFound
from transforms.models.inference import CARD, WEIGHTS, kept, load_model, read_folder
from transforms.synthetic.neuropil import neuropil

NAMES = ("affinity-large", "affinity-small", "synapse")


@pytest.fixture(scope="module")
def small():
    return load_model(kept("affinity-small"))


@pytest.fixture(scope="module")
def em():
    return neuropil(7, (40, 160, 112)).image


def test_the_kept_models_take_less_than_three_megabytes():
    folders = [kept(name) for name in NAMES]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 3_000_000
    assert all({path.name for path in folder.iterdir()} == {WEIGHTS, CARD} for folder in folders)


def test_the_small_model_needs_at_most_a_third_of_the_multiply_adds(small):
    shape = (16, 64, 64)
    assert 3 * small.multiply_adds(shape) <= load_model(kept("affinity-large")).multiply_adds(shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_card_names_its_seeds_its_figures_and_the_command_that_makes_it_again(name):
    card = load_model(kept(name)).card
    assert card["name"] == name
    assert card["training"]["seed"] >= 1000
    assert card["metrics"]
    assert card["command"].startswith("emlake train ")


def test_only_the_large_model_has_seen_the_odd_stain(small):
    assert small.card["training"]["odd_share"] == 0
    assert load_model(kept("affinity-large")).card["training"]["odd_share"] > 0


def test_a_block_gives_the_same_bytes_as_the_whole_wherever_it_lies(small, em):
    whole = small.predict(em)
    volume = Box((0, 0, 0), em.shape)
    for core in (Box((0, 0, 0), (16, 64, 40)), Box((16, 64, 32), (40, 96, 72)), Box((8, 96, 40), (24, 160, 112))):
        wide = core.grow(small.halo).clip(volume)
        block = small.predict(em[wide.slices])
        assert np.array_equal(block[(slice(None), *core.within(wide))], whole[(slice(None), *core.slices)]), core


def test_sides_that_are_no_multiple_of_the_stride_are_filled_up_and_cut_off(small, em):
    assert small.predict(em[:7, :33, :50]).shape == (3, 7, 33, 50)


def test_affinities_are_high_inside_neurites_and_low_on_membranes(small):
    sample = neuropil(8, (16, 96, 96), odd_box=None)
    affinity = small.predict_affinity(sample.image)
    assert affinity.dtype == np.uint8
    assert affinity[:, sample.labels > 0].mean() > 2 * affinity[:, sample.labels == 0].mean()


def test_a_model_is_the_same_from_its_folder_and_from_its_bytes(small):
    assert load_model(read_folder(kept("affinity-small"))).digest == small.digest


def test_the_digest_covers_weights_and_architecture_but_no_figures(small):
    weights, card = read_folder(kept("affinity-small"))
    renamed = json.dumps({**json.loads(card), "name": "else", "metrics": {}}).encode()
    assert load_model((weights, renamed)).digest == small.digest
    # The last byte belongs to a tensor.
    assert load_model((weights[:-1] + bytes([weights[-1] ^ 1]), card)).digest != small.digest


def test_card_and_weights_of_two_models_are_refused():
    with pytest.raises(BadInput, match="does not fit"):
        load_model((read_folder(kept("affinity-small"))[0], read_folder(kept("affinity-large"))[1]))


def test_what_is_no_model_is_refused(tmp_path, small):
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        load_model((b"\x00\x01", read_folder(kept("affinity-small"))[1]))
    with pytest.raises(NotFound) as refused:
        kept("affinity-smal")
    assert "affinity-small" in refused.value.fix
    with pytest.raises(BadInput, match="synapse"):
        small.predict_synapse(np.zeros((4, 16, 16), np.uint8))
    with pytest.raises(BadInput, match="float32"):
        small.predict(np.zeros((4, 16, 16), np.float32))


def test_numerics_name_library_device_and_type(small):
    assert {"torch", "device", "dtype", "threads"} <= set(small.numerics())
