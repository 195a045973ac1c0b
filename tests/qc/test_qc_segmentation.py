"""A segmentation measured block by block gives what the whole arrays give."""

from pathlib import Path

import numpy as np
import pytest

from lake.box import Box, Zyx
from lake.location import Location
from lake.measures import score_regions, variation_of_information
from lake.volume_spec import VolumeSpec
from lake.volumes import Volume, create_volume
from qc import metrics as m
from qc.metrics import Continuity, Metric
from qc.regions import Grid
from qc.segmentation import in_order, measure_segmentation

NM = (16.0, 8.0, 8.0)


def volume(folder: Path, array: np.ndarray, offset: Zyx = (0, 0, 0), *, chunk: Zyx = (4, 4, 4)) -> Volume:
    spec = VolumeSpec("v", "segmentation", "uint64", array.shape, NM, offset, chunk_zyx=chunk)
    made = create_volume(Location(str(folder), writable=True), spec)
    made.write(made.box, array.astype(np.uint64))
    return made


def labels(shape: Zyx, seed: int, most: int = 5) -> np.ndarray:
    """Lumps of 2 voxels, some of them unlabelled."""
    lumps = np.random.default_rng(seed).integers(0, most, tuple(-(-n // 2) for n in shape))
    return np.kron(lumps, np.ones((2, 2, 2), np.int64))[tuple(slice(0, n) for n in shape)]


def values(found: list[Metric], metric: str) -> dict[str, float | None]:
    return {x.scope_id: x.value for x in found if x.metric == metric}


def faces_by_hand(array: np.ndarray, offset: Zyx, block: Zyx) -> float | None:
    """All pairs across block faces, and those between the two planes before each of them."""
    total = Continuity()
    for axis in range(3):
        view = np.moveaxis(array, axis, 0)
        for at in range(1, len(view)):
            first = at < 2 or (at - 1 + offset[axis]) % block[axis] == 0  # a block of one plane has no inside
            if (at + offset[axis]) % block[axis] == 0 and not first:
                total += Continuity(*m.agreement(view[at - 1], view[at]), *m.agreement(view[at - 2], view[at - 1]))
    return total.ratio


@pytest.mark.parametrize(
    ("shape", "offset", "block", "per_region"),
    [
        ((8, 12, 8), (0, 0, 0), (4, 4, 4), (1, 1, 1)),
        ((6, 13, 9), (0, 0, 0), (4, 4, 4), (1, 2, 1)),
        ((8, 10, 12), (4, 2, 7), (4, 5, 3), (2, 1, 2)),
    ],
)
def test_blocks_add_up_to_the_whole(tmp_path: Path, shape: Zyx, offset: Zyx, block: Zyx, per_region: Zyx) -> None:
    seg, truth = labels(shape, 1), labels(shape, 2)
    volumes = [volume(tmp_path / name, array, offset) for name, array in (("seg", seg), ("truth", truth))]
    grid = Grid(block, per_region, NM, volumes[0].box)
    found = measure_segmentation(*volumes, grid)
    split, merge = variation_of_information(seg, truth)
    assert values(found, "vi_split")[""] == pytest.approx(split)
    assert values(found, "vi_merge")[""] == pytest.approx(merge)
    for name, (_, scores) in score_regions(seg, truth, volumes[0].box, grid.region).items():
        assert values(found, "vi_split")[name] == pytest.approx(scores.vi_split)
        assert values(found, "labelled_voxels")[name] == scores.voxels
    assert values(found, "block_continuity")[""] == pytest.approx(faces_by_hand(seg, offset, block))


def test_blocks_that_leave_no_trace_have_continuity_one_and_loose_blocks_none(tmp_path: Path) -> None:
    whole = np.ones((8, 8, 8), np.int64)
    grid = Grid((4, 4, 4), (1, 1, 1), NM)
    assert values(measure_segmentation(volume(tmp_path / "a", whole), None, grid), "block_continuity")[""] == 1.0
    loose = whole.copy()
    for number, (_, cell) in enumerate(Box((0, 0, 0), (8, 8, 8)).blocks((4, 4, 4)), 1):
        loose[cell.slices] = number
    assert values(measure_segmentation(volume(tmp_path / "b", loose), None, grid), "block_continuity")[""] == 0.0


def test_a_single_block_has_no_continuity(tmp_path: Path) -> None:
    found = measure_segmentation(volume(tmp_path / "v", np.ones((4, 4, 4))), None, Grid((4, 4, 4), (1, 1, 1), NM))
    assert values(found, "block_continuity") == {"": None}


def test_a_truth_of_part_of_the_volume_scores_that_part(tmp_path: Path) -> None:
    seg, truth = labels((8, 8, 8), 1), labels((4, 4, 4), 2)
    volumes = volume(tmp_path / "seg", seg), volume(tmp_path / "truth", truth, (2, 2, 2))
    found = measure_segmentation(*volumes, Grid((4, 4, 4), (1, 1, 1), NM))
    assert values(found, "vi_split")[""] == pytest.approx(variation_of_information(seg[2:6, 2:6, 2:6], truth)[0])


def test_a_truth_in_other_voxels_is_not_compared(tmp_path: Path) -> None:
    spec = VolumeSpec("t", "segmentation", "uint64", (4, 4, 4), (8.0, 8.0, 8.0), chunk_zyx=(4, 4, 4))
    truth = create_volume(Location(str(tmp_path / "truth"), writable=True), spec)
    found = measure_segmentation(volume(tmp_path / "seg", np.ones((4, 4, 4))), truth, Grid((4, 4, 4), (1, 1, 1), NM))
    assert values(found, "vi_split") == {"": None}
    assert "8.0" in next(x.reason for x in found if x.metric == "vi_split")


def test_a_chunk_that_is_gone_makes_its_region_and_the_whole_unknown(tmp_path: Path) -> None:
    seg, truth = (volume(tmp_path / name, np.ones((4, 4, 8))) for name in ("seg", "truth"))
    (chunk,) = (tmp_path / "seg").rglob("4-8_0-4_0-4")
    chunk.unlink()
    found = measure_segmentation(seg, truth, Grid((4, 4, 4), (1, 1, 1), NM))
    assert values(found, "vi_split") == {"": None, "0_0_0": 0.0, "0_0_1": None}
    assert values(found, "block_continuity")[""] is None
    assert "lacks 1 chunks" in next(x.reason for x in found if x.metric == "vi_split" and x.scope == "global")


def test_cells_come_once_each_with_the_longest_axis_slowest() -> None:
    box = Box((0, 5, 2), (9, 12, 40))
    found = list(in_order(box, (4, 4, 4)))
    assert sum(cell.voxels for _, cell in found) == box.voxels
    assert [index[2] for index, _ in found] == sorted(index[2] for index, _ in found)
    assert len(set(found)) == len(found)
