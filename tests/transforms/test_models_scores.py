import json
from dataclasses import replace

import numpy as np
import pytest

from lake.errors import BadInput
from transforms.kernels.synapses import SynapseParameters
from transforms.models.grading import acquired, grade, synapses_found, variations
from transforms.models.inference import kept, load_model
from transforms.models.nets import Architecture
from transforms.models.real import Volume, train_and_score
from transforms.models.samples import ArraySource
from transforms.models.scores import Variation, best, intensity_variation, segment, variation
from transforms.models.targets import affinities, sites
from transforms.models.training import TrainConfig, train
from transforms.synthetic.neuropil import neuropil

TINY = Architecture(outputs=3, widths=(4, 6), encoder=(1, 1), decoder=(1,), pool_z=(2,))
CONFIG = TrainConfig("tiny", "affinity", TINY, steps=2, crop=(8, 32, 32), crops=1, seed=1000)
NM = (16, 8, 8)


@pytest.fixture(scope="module")
def sample():
    return neuropil(100, (24, 160, 160))


def true_affinity(sample):
    return (affinities(sample.labels)[0] * 255).astype(np.uint8)


def true_sites(sample):
    pairs = ((sample.synapses.pre, sample.synapses.pre_id), (sample.synapses.post, sample.synapses.post_id))
    return np.stack([sites(sample.labels, *pair) * np.uint8(255) for pair in pairs])


def test_perfect_affinities_give_nearly_the_true_neurites(sample):
    found = segment(true_affinity(sample), voxel_nm=NM, thresholds=(0.3, 1.0))
    assert variation(found[0.3], sample.labels).total < 0.2
    # At 1.0 nothing is merged: the fragments alone split more.
    assert variation(found[1.0], sample.labels).split > variation(found[0.3], sample.labels).split


def test_plain_intensity_gives_a_bad_segmentation(sample):
    assert intensity_variation(sample.image, sample.labels, voxel_nm=NM, thresholds=(0.3, 0.5)).total > 1


def test_the_two_stains_are_scored_apart(sample):
    box = sample.odd_box.slices
    affinity = true_affinity(sample)
    affinity[(slice(None), *box)] = 255
    scored = variations(affinity, sample, (0.3,))
    assert scored["odd"][0.3].merge > 1
    assert scored["usual"][0.3].total < 0.5 < scored["all"][0.3].total


def test_the_best_threshold_has_the_least_sum():
    assert best({0.2: Variation(0.1, 0.9), 0.5: Variation(0.4, 0.3), 0.8: Variation(0.9, 0.0)}) == 0.5


def test_perfect_sites_give_the_true_synapses_and_swapped_ones_none(sample):
    assert len(sample.synapses) >= 2
    perfect = synapses_found(true_sites(sample), sample, SynapseParameters())
    assert perfect.f1 > 0.9
    assert synapses_found(true_sites(sample)[::-1].copy(), sample, SynapseParameters()).true_positives == 0


def test_grading_writes_figures_into_the_card_and_leaves_the_model_the_same(tmp_path):
    rng = np.random.default_rng(0)
    em = rng.integers(0, 256, (8, 32, 32), dtype=np.uint8)
    train(CONFIG, tmp_path, source=ArraySource(CONFIG.crop_settings(), em, np.ones(em.shape, np.uint32)))
    before = load_model(tmp_path).digest
    metrics = grade(tmp_path, seeds=(100,), shape=(8, 64, 64))
    assert {"all", "usual", "odd", "threshold", "seeds"} <= set(metrics)
    assert json.loads((tmp_path / "card.json").read_text())["metrics"] == metrics
    assert load_model(tmp_path).digest == before


def test_training_on_a_part_scores_the_other_and_never_sees_it(tmp_path):
    whole = neuropil(101, (8, 64, 96), odd_box=None)
    volume = Volume(whole.image, whole.labels, np.ones_like(whole.labels), (16.0, 8.0, 8.0))
    scores = train_and_score(volume, CONFIG, tmp_path / "a", train_below=48)
    assert scores.supplied.split == 0
    assert scores.supplied.merge > 1
    other = replace(volume, em=np.concatenate([whole.image[..., :48], 255 - whole.image[..., 48:]], axis=2))
    train_and_score(other, CONFIG, tmp_path / "b", train_below=48)
    assert load_model(tmp_path / "a").digest == load_model(tmp_path / "b").digest


def test_a_file_that_is_no_volume_is_refused(tmp_path):
    np.savez(tmp_path / "volume.npz", raw=np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(BadInput, match="voxel_nm"):
        Volume.read(tmp_path / "volume.npz")


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(5))
def test_the_kept_models_do_what_the_demonstration_needs_of_them(seed):
    sample = neuropil(seed, (64, 384, 384))
    em = acquired(sample)
    plain = intensity_variation(em, sample.labels, voxel_nm=NM, thresholds=(0.3, 0.4, 0.5, 0.6))
    large, small = (load_model(kept(f"affinity-{size}")) for size in ("large", "small"))
    threshold = large.card["metrics"]["threshold"]
    by_large = variations(large.predict(em), sample, (threshold,))
    by_small = variations(small.predict(em), sample, (threshold,))
    figures = {k: {p: v[threshold].to_json() for p, v in s.items()} for k, s in (("l", by_large), ("s", by_small))}
    found = synapses_found(load_model(kept("synapse")).predict(em), sample, SynapseParameters())
    print(seed, plain.to_json(), figures, found.f1)
    assert by_large["all"][threshold].total < 0.5 * plain.total
    assert by_small["odd"][threshold].total > 3 * by_large["odd"][threshold].total
    assert by_small["usual"][threshold].total < by_large["usual"][threshold].total + 0.4
    assert found.f1 >= 0.8
