import os

import pytest

from transforms.models.real import Volume, train_and_score
from transforms.models.training import TrainConfig, config_folder

BELOW = 125  # of 250: training sees x < 125, scoring x >= 125


@pytest.mark.soak
@pytest.mark.data
@pytest.mark.timeout(0)
def test_on_the_half_of_fib25_not_trained_on_we_beat_the_supplied_over_segmentation(test_data, tmp_path):
    folder = os.environ.get("EMLAKE_FIB25_MODEL")  # a training to go on with; else ten minutes of one core
    config = TrainConfig.read(config_folder() / "fib25.toml")
    volume = Volume.read(test_data / "fib25" / "volume.npz")
    scores = train_and_score(volume, config, tmp_path if folder is None else type(tmp_path)(folder), train_below=BELOW)
    print(scores)
    assert scores.ours.total < scores.supplied.total
