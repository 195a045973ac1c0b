import csv

import cv2
import numpy as np
import pytest
from scipy import ndimage

from lake.errors import BadInput
from transforms.kernels.geometry import apply
from transforms.synthetic.acquisition import COLUMNS, Microscope, acquire, load_acquisition


@pytest.fixture(scope="module")
def volume():
    noise = np.random.default_rng(0).normal(size=(5, 130, 150)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (1, 2, 2))
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def acquisition(volume, tmp_path_factory):
    return acquire(volume, tmp_path_factory.mktemp("acq"), 7, microscope=Microscope(noise=0.0, vignetting=0.0))


def read(acquisition, tile):
    return cv2.imdecode(np.fromfile(acquisition.folder / tile.file, np.uint8), cv2.IMREAD_UNCHANGED)


def test_equal_seeds_write_equal_bytes_and_other_seeds_do_not(volume, tmp_path):
    first, again = acquire(volume, tmp_path / "a", 3), acquire(volume, tmp_path / "b", 3)
    other = acquire(volume, tmp_path / "c", 4)
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == sorted(path.name for path in again.folder.iterdir())
    assert all((first.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in names)
    assert (first.folder / "tiles.csv").read_bytes() != (other.folder / "tiles.csv").read_bytes()


def test_every_section_is_covered_to_beyond_its_border(acquisition):
    height, width = acquisition.section_shape
    tile_height, tile_width = Microscope().tile_shape(acquisition.section_shape)
    corners = np.array([[0.0, 0.0], [0, width - 1], [height - 1, 0], [height - 1, width - 1]])
    for section in range(5):
        placed = apply(acquisition.drift[section], corners)
        origins = np.array([t.origin_yx for t in acquisition.tiles if t.section == section])
        assert (origins.min(axis=0) <= placed.min(axis=0)).all()
        assert (origins.max(axis=0) + np.subtract((tile_height, tile_width), 1) >= placed.max(axis=0)).all()


def test_a_frame_shows_the_volume_where_its_truth_says(volume, acquisition):
    tile = next(t for t in acquisition.tiles if t.section == 2 and t.tile == 0 and t.kind == "good")
    frame = read(acquisition, tile).astype(float)
    # A point of the volume, taken to the stage, then into the frame.
    points = np.stack(np.meshgrid(np.arange(20.0, 50), np.arange(20.0, 50), indexing="ij"), axis=-1)
    inside = apply(acquisition.drift[2], points) - tile.origin_yx
    seen = ndimage.map_coordinates(frame, [inside[..., 0], inside[..., 1]], order=1)
    assert np.corrcoef(seen.ravel(), volume[2, 20:50, 20:50].ravel())[0, 1] > 0.99


def test_drift_and_stage_errors_average_to_zero_so_that_the_stage_anchors_the_truth_frame(acquisition):
    middle = (np.array(acquisition.section_shape) - 1) / 2
    shifts = np.array([apply(affine, middle) - middle for affine in acquisition.drift])
    assert np.abs(shifts.mean(axis=0)).max() < 0.05
    assert np.abs(shifts).max() > 0.5
    errors = np.array([np.subtract(t.stage_yx, t.origin_yx) for t in acquisition.tiles if not t.retake])
    assert np.abs(errors).max() > 1.0


def test_the_three_faults_are_there_and_two_are_taken_again_later(acquisition):
    faults = acquisition.faulty()
    assert set(faults) == {"duplicated", "truncated", "blurred"}
    copy = acquisition.folder / faults["duplicated"].file
    original = acquisition.folder / faults["duplicated"].file.replace("_copy", "")
    assert copy.read_bytes() == original.read_bytes()
    assert read(acquisition, faults["truncated"]) is None
    with acquisition.csv.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    times = {row["file"]: row["acquired"] for row in rows}
    for kind in ("truncated", "blurred"):
        bad = faults[kind]
        (second,) = [t for t in acquisition.tiles if t.retake and (t.section, t.tile) == (bad.section, bad.tile)]
        assert times[second.file] > times[bad.file]
        assert read(acquisition, second) is not None
    sharp = next(t for t in acquisition.tiles if t.retake and t.section == faults["blurred"].section)
    detail = [cv2.Laplacian(read(acquisition, t), cv2.CV_64F).var() for t in (faults["blurred"], sharp)]
    assert detail[0] < 0.3 * detail[1]


def test_the_truth_is_read_back_from_the_folder(acquisition, tmp_path):
    loaded = load_acquisition(acquisition.folder)
    assert loaded.tiles == acquisition.tiles
    assert np.array_equal(loaded.drift, acquisition.drift)
    with pytest.raises(BadInput, match=r"truth\.json"):
        load_acquisition(tmp_path)


def test_a_volume_of_the_wrong_type_is_refused_with_its_type_and_shape(tmp_path):
    with pytest.raises(BadInput, match="float32"):
        acquire(np.zeros((3, 10, 10), np.float32), tmp_path, 1)
