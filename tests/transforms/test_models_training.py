import importlib.metadata
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from lake.errors import BadInput
from transforms.models.ahead import CHUNK, batches
from transforms.models.inference import load_model, read_folder
from transforms.models.nets import Architecture
from transforms.models.samples import ArraySource
from transforms.models.training import TrainConfig, config_folder, train

TINY = Architecture(outputs=3, widths=(4, 6), encoder=(1, 1), decoder=(1,), pool_z=(2,))
CONFIG = TrainConfig("tiny", "affinity", TINY, steps=6, crop=(8, 32, 32), crops=1, seed=1000, strength=0)


@pytest.fixture(scope="module")
def stripes():
    """Neurites as bright slabs with dark walls: learnt in a few steps."""
    labels = np.zeros((16, 64, 64), np.uint32)
    for index in range(8):
        labels[:, :, index * 8 : index * 8 + 6] = index + 1
    em = np.where(labels > 0, 180, 50).astype(np.uint8)
    return ArraySource(CONFIG.crop_settings(), em, labels, carve=False)


def test_equal_configurations_train_equal_models(tmp_path, stripes):
    one, two = (train(CONFIG, tmp_path / name, source=stripes) for name in "ab")
    other = train(replace(CONFIG, seed=1001), tmp_path / "c", source=stripes)
    assert load_model(one).digest == load_model(two).digest != load_model(other).digest


def test_a_training_cut_short_goes_on_to_the_same_weights(tmp_path, stripes):
    whole = train(CONFIG, tmp_path / "whole", source=stripes)

    def cut(step, steps, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "cut", source=stripes, progress=cut, checkpoint=2)
    seen = []
    train(CONFIG, tmp_path / "cut", source=stripes, progress=lambda *p: seen.append(p[0]))
    assert seen == [5, 6]
    assert read_folder(tmp_path / "cut")[0] == read_folder(whole)[0]


def test_a_folder_with_another_training_is_refused(tmp_path, stripes):
    train(CONFIG, tmp_path, source=stripes)
    with pytest.raises(BadInput, match="another configuration"):
        train(replace(CONFIG, steps=7), tmp_path, source=stripes)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, stripes):
    (tmp_path / "file").touch()
    steps = []
    with pytest.raises(BadInput, match="file cannot be written"):
        train(CONFIG, tmp_path / "file", source=stripes, progress=lambda *step: steps.append(step))
    assert steps == []


def test_training_learns(tmp_path, stripes):
    losses = []
    config = replace(CONFIG, steps=120, learning_rate=2e-2, architecture=replace(TINY, widths=(8, 12)))
    folder = train(config, tmp_path, source=stripes, progress=lambda step, steps, loss: losses.append(loss))
    assert losses[-1] < 0.75 * losses[0]
    affinity = load_model(folder).predict(stripes.em)
    inside = stripes.labels[:, :, 1:] == stripes.labels[:, :, :-1]
    inside &= stripes.labels[:, :, 1:] > 0
    assert affinity[2, :, :, :-1][inside].mean() > 2 * affinity[2, :, :, :-1][~inside].mean()


def test_the_card_says_what_the_model_was_made_from(tmp_path, stripes):
    card = json.loads(read_folder(train(CONFIG, tmp_path, source=stripes, data={"volume": "stripes"}))[1])
    assert card["data"] == {"volume": "stripes"}
    assert TrainConfig.from_json(card["training"]) == CONFIG
    assert card["architecture"]["widths"] == [4, 6]
    assert card["multiply_adds_per_voxel"] > 0


def test_configurations_with_unknown_fields_or_crooked_crops_are_refused(tmp_path):
    with pytest.raises(BadInput, match="epochs"):
        TrainConfig.from_json({**CONFIG.to_json(), "epochs": 3})
    with pytest.raises(BadInput, match=r"\(7, 32, 32\)"):
        replace(CONFIG, crop=(7, 32, 32))
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(BadInput, match=r"broken\.toml"):
        TrainConfig.read(broken)


def test_every_kept_configuration_reads_and_trains_on_seeds_from_1000_on():
    configs = [TrainConfig.read(path) for path in sorted(config_folder().glob("*.toml"))]
    assert {c.name for c in configs} >= {"affinity-large", "affinity-small", "synapse"}
    assert all(c.seed >= 1000 for c in configs)


def test_a_device_that_is_not_there_is_refused_by_name(tmp_path, stripes):
    with pytest.raises(BadInput, match="cuda:77"):
        train(CONFIG, tmp_path / "model", source=stripes, device="cuda:77")
    assert not (tmp_path / "model").exists()


def test_what_the_card_needs_is_looked_up_before_hours_of_training(tmp_path, stripes, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    steps = []
    with pytest.raises(PackageNotFoundError):
        train(CONFIG, tmp_path / "model", source=stripes, progress=lambda *told: steps.append(told))
    assert steps == []


@pytest.mark.slow
def test_batches_made_ahead_by_processes_are_those_made_in_turn(stripes):
    alone, ahead = (list(batches(stripes, 3, 3 + CHUNK + 2, workers)) for workers in (0, 2))
    assert len(alone) == len(ahead) == CHUNK + 2
    for one, two in zip(alone, ahead, strict=True):
        for name in ("em", "wanted", "known"):
            assert np.array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.gpu
def test_an_accelerator_learns_what_a_core_learns(tmp_path, stripes):
    losses = {"cpu": [], "cuda": []}
    config = replace(CONFIG, steps=60, learning_rate=2e-2)
    for device, seen in losses.items():
        folder = train(
            config, tmp_path / device, source=stripes, device=device, progress=lambda *p, seen=seen: seen.append(p[2])
        )
        assert load_model(folder).predict(stripes.em).shape == (3, *stripes.em.shape)
    assert losses["cuda"][-1] == pytest.approx(losses["cpu"][-1], rel=0.05)
