"""Volumes: what was written is read, whole shards only, nothing missing unseen; other programs open them."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import AlreadyExists, BadInput, NotFound
from lake.location import Location
from lake.precomputed import ShardGrid
from lake.volumes import Volume, VolumeSpec, create_volume, open_volume

SHAPE = (20, 50, 65)
SHARDS = {"plain": None, "sharded": (16, 32, 32)}


def place(folder: Path, *, writable: bool = True) -> Location:
    return Location(str(folder / "v"), writable=writable)


def spec_of(driver: str = "precomputed", **changes) -> VolumeSpec:
    given_fields = {
        "name": "v",
        "kind": "image",
        "dtype": "uint8",
        "shape_zyx": SHAPE,
        "voxel_nm_zyx": (16, 8, 8),
        "chunk_zyx": (16, 16, 16),
        "driver": driver,
    }
    return VolumeSpec(**{**given_fields, **changes})


def noise(volume: Volume, seed: int = 0) -> np.ndarray:
    shape = volume.box.shape if volume.spec.channels == 1 else (volume.spec.channels, *volume.box.shape)
    array = np.random.default_rng(seed).integers(1, 250, shape).astype(volume.spec.dtype)
    array[..., :16, :32, :32] = 0  # one whole shard of zeros
    return array


def fill(volume: Volume, array: np.ndarray) -> None:
    for _, box in volume.box.blocks(volume.unit()):
        volume.write(box, array[(..., *box.within(volume.box))])


@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
@pytest.mark.parametrize("shard", ["plain", "sharded"])
@pytest.mark.parametrize(
    ("kind", "dtype", "channels"), [("image", "uint8", 1), ("segmentation", "uint64", 1), ("affinity", "uint8", 3)]
)
@pytest.mark.parametrize("offset", [(0, 0, 0), (3, 5, 7)])
def test_what_was_written_is_read(tmp_path, driver, shard, kind, dtype, channels, offset) -> None:
    spec = spec_of(driver, kind=kind, dtype=dtype, channels=channels, offset_zyx=offset, shard_zyx=SHARDS[shard])
    volume = create_volume(place(tmp_path), spec)
    array = noise(volume)
    fill(volume, array)
    again = open_volume(place(tmp_path, writable=False))
    assert again.spec == spec
    assert again.box == Box(offset, tuple(o + n for o, n in zip(offset, SHAPE, strict=True)))
    read = again.read(again.box)
    assert (read == array).all()
    assert read.flags.c_contiguous
    inner = Box((1, 2, 3), (18, 40, 51)).shift(offset)
    assert (again.read(inner) == array[(..., *inner.within(again.box))]).all()


@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
@pytest.mark.parametrize("shard", ["plain", "sharded"])
def test_a_chunk_that_was_never_written_is_not_zeros(tmp_path, driver, shard) -> None:
    volume = create_volume(place(tmp_path), spec_of(driver, shard_zyx=SHARDS[shard]))
    array = noise(volume)
    boxes = [box for _, box in volume.box.blocks(volume.unit())]
    assert volume.missing_chunks() == boxes
    with pytest.raises(NotFound, match=r"lacks \d+ chunks"):
        volume.read(volume.box)
    for box in boxes[:-1]:
        volume.write(box, array[box.slices])
    assert volume.missing_chunks() == boxes[-1:]
    assert volume.present_chunks() == boxes[:-1]
    with pytest.raises(NotFound, match=r"lacks 1 chunks at scale 0, the first at " + str(boxes[-1])):
        volume.read(volume.box)
    assert (volume.read(boxes[0]) == array[boxes[0].slices]).all()
    zeros = volume.read(volume.box, missing="zero")
    assert not zeros[boxes[-1].slices].any()
    assert (zeros[boxes[1].slices] == array[boxes[1].slices]).all()
    assert volume.missing_chunks(boxes[0]) == []


@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
def test_zeros_that_were_written_are_present(tmp_path, driver) -> None:
    for shard in SHARDS.values():
        volume = create_volume(Location(str(tmp_path / str(shard)), writable=True), spec_of(driver, shard_zyx=shard))
        fill(volume, np.zeros(SHAPE, np.uint8))
        assert volume.missing_chunks() == []
        assert not volume.read(volume.box).any()


def test_a_shard_written_again_is_replaced_by_zeros_too(tmp_path) -> None:
    volume = create_volume(place(tmp_path), spec_of(shard_zyx=SHARDS["sharded"]))
    box = next(box for _, box in volume.box.blocks(volume.unit()))
    for value in (5, 0, 6):
        volume.write(box, np.full(box.shape, value, np.uint8))
        assert (volume.read(box) == value).all()


@pytest.mark.parametrize(
    ("box", "dtype", "message"),
    [
        (Box((0, 0, 0), (16, 16, 17)), "uint8", "cuts a chunk"),
        (Box((1, 0, 0), (16, 16, 16)), "uint8", "cuts a chunk"),
        (Box((0, 0, 0), (21, 16, 16)), "uint8", "leaves volume"),
        (Box((0, 0, 0), (16, 16, 16)), "uint16", "takes uint8"),
    ],
)
def test_a_wrong_write_is_refused_and_nothing_is_written(tmp_path, box, dtype, message) -> None:
    volume = create_volume(place(tmp_path), spec_of())
    with pytest.raises(BadInput, match=message):
        volume.write(box, np.ones(box.shape, dtype))
    assert volume.present_chunks() == []


def test_a_wrong_shape_a_cut_shard_and_a_read_only_place_are_refused(tmp_path) -> None:
    volume = create_volume(place(tmp_path), spec_of(shard_zyx=SHARDS["sharded"]))
    chunk = Box((0, 0, 0), (16, 16, 16))
    with pytest.raises(BadInput, match=r"\(2, 2, 2\)"):
        volume.write(Box((0, 0, 0), (16, 32, 32)), np.ones((2, 2, 2), np.uint8))
    with pytest.raises(BadInput, match=r"whole units of \(16, 32, 32\)|cuts a chunk"):
        volume.write(chunk, np.ones(chunk.shape, np.uint8))
    with pytest.raises(BadInput, match="read-only"):
        open_volume(place(tmp_path, writable=False)).write(
            Box((0, 0, 0), (16, 32, 32)), np.ones((16, 32, 32), np.uint8)
        )
    with pytest.raises(BadInput, match="leaves volume"):
        volume.read(Box((0, 0, 0), (21, 1, 1)))
    with pytest.raises(BadInput, match="no scale 1"):
        volume.read(chunk, 1)


def test_a_label_of_2_63_is_refused(tmp_path) -> None:
    volume = create_volume(place(tmp_path), spec_of(kind="segmentation", dtype="uint64"))
    box = Box((0, 0, 0), (16, 16, 16))
    with pytest.raises(BadInput, match="9223372036854775808"):
        volume.write(box, np.full(box.shape, 2**63, np.uint64))
    volume.write(box, np.full(box.shape, 2**63 - 1, np.uint64))
    assert (volume.read(box) == 2**63 - 1).all()


def by_hand(fine: np.ndarray, method: str, step: tuple[int, int, int], origin: tuple[int, int, int]) -> np.ndarray:
    """Downsample a zyx array on the global grid with plain loops."""
    starts = [o // s for o, s in zip(origin, step, strict=True)]
    stops = [-(-(o + n) // s) for o, n, s in zip(origin, fine.shape, step, strict=True)]
    made = np.zeros([b - a for a, b in zip(starts, stops, strict=True)], fine.dtype)
    for index in itertools.product(*(range(a, b) for a, b in zip(starts, stops, strict=True))):
        cell = fine[
            tuple(slice(max(i * s - o, 0), (i + 1) * s - o) for i, s, o in zip(index, step, origin, strict=True))
        ]
        values, counts = np.unique(cell, return_counts=True)
        value = cell.mean() if method == "mean" else values[counts == counts.max()]
        target = tuple(i - a for i, a in zip(index, starts, strict=True))
        made[target] = round(value) if method == "mean" else value[0]
    return made


@pytest.mark.parametrize("offset", [(0, 0, 0), (3, 5, 7)])
def test_coarser_images_are_means_on_the_global_grid(tmp_path, offset) -> None:
    spec = spec_of(scales=((1, 1, 1), (1, 2, 2)), offset_zyx=offset, shape_zyx=(4, 9, 11), chunk_zyx=(4, 4, 4))
    volume = create_volume(place(tmp_path), spec)
    array = np.random.default_rng(0).integers(1, 250, (4, 9, 11)).astype(np.uint8)
    fill(volume, array)
    volume.build_scales()
    coarse = volume.read(spec.scale_box(1), 1)
    expected = by_hand(array, "mean", (1, 2, 2), offset)
    assert coarse.shape == expected.shape
    # TensorStore rounds halves to even, as Python does; float sums of four bytes are exact.
    assert (coarse == expected).all()


def test_coarser_segmentations_hold_the_most_frequent_label(tmp_path) -> None:
    spec = spec_of(kind="segmentation", dtype="uint64", scales=((1, 1, 1), (2, 2, 2)))
    volume = create_volume(place(tmp_path), spec)
    array = np.full(SHAPE, 2**40 + 1, np.uint64)
    array[:, ::2, :] = 9
    array[::2, 1::2, ::2] = 9  # five voxels of eight in every cell
    fill(volume, array)
    volume.build_scales()
    assert (volume.read(Box((0, 0, 0), (9, 24, 31)), 1) == 9).all()


@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
def test_rebuilding_scales_over_a_box_equals_rebuilding_all(tmp_path, driver) -> None:
    scales = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    spec = spec_of(driver, scales=scales, shard_zyx=SHARDS["sharded"], offset_zyx=(2, 4, 6))
    part = create_volume(Location(str(tmp_path / "part"), writable=True), spec)
    whole = create_volume(Location(str(tmp_path / "whole"), writable=True), spec)
    array = noise(part)
    fill(part, array)
    part.build_scales()
    changed = Box((0, 32, 32), (16, 50, 64)).shift(spec.offset_zyx)
    array[changed.within(part.box)] = 77
    fill(part, array)
    fill(whole, array)
    part.build_scales(box=changed)
    whole.build_scales()
    for scale in range(3):
        assert part.missing_chunks(scale=scale) == []
        assert (part.read(spec.scale_box(scale), scale) == whole.read(spec.scale_box(scale), scale)).all()


def test_a_volume_crosses_to_another_process(tmp_path) -> None:
    volume = create_volume(place(tmp_path), spec_of())
    fill(volume, noise(volume))
    assert (pickle.loads(pickle.dumps(volume)).read(volume.box) == noise(volume)).all()


def test_creating_twice_is_harmless_and_another_spec_is_refused(tmp_path) -> None:
    for driver in ("precomputed", "zarr3"):
        where = Location(str(tmp_path / driver), writable=True)
        # A shard larger than the volume comes to the whole volume, and still is the same request.
        spec = spec_of(driver, shard_zyx=(64, 64, 128) if driver == "precomputed" else (32, 64, 64))
        volume = create_volume(where, spec)
        fill(volume, noise(volume))
        assert (create_volume(where, spec).read(volume.box) == noise(volume)).all()
        with pytest.raises(AlreadyExists, match="dtype uint8, not uint16"):
            create_volume(where, spec_of(driver, dtype="uint16"))


def test_nothing_or_rubbish_at_a_location(tmp_path) -> None:
    with pytest.raises(NotFound, match="no volume"):
        open_volume(place(tmp_path))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "info").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        open_volume(place(tmp_path))
    (tmp_path / "v" / "info").write_text('{"scales": []}')
    with pytest.raises(BadInput, match="info"):
        open_volume(place(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "picture"}, "picture"),
        ({"dtype": "float64"}, "float64"),
        ({"shape_zyx": (0, 1, 1)}, "shape"),
        ({"shape_zyx": (1, 1)}, "three whole numbers"),
        ({"scales": ((1, 2, 2),)}, "scales"),
        ({"scales": ((1, 1, 1), (2, 2, 2), (3, 4, 4))}, "scales"),
        ({"shard_zyx": (16, 16, 24)}, "shard"),
        ({"kind": "segmentation", "dtype": "int64"}, "unsigned"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(change, message) -> None:
    with pytest.raises(BadInput, match=message):
        spec_of(**change)


def test_a_shard_that_precomputed_cannot_form_names_those_it_can(tmp_path) -> None:
    with pytest.raises(BadInput) as caught:
        create_volume(place(tmp_path), spec_of(shard_zyx=(32, 16, 16)))
    assert "(16, 16, 32), (16, 32, 32), (32, 32, 32)" in caught.value.fix


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 8))
def test_a_shard_is_a_box_of_chunks(grid: tuple[int, int, int], low_bits: int) -> None:
    shards = ShardGrid.of(grid, low_bits)
    boxes: dict[int, set[tuple[int, ...]]] = {}
    for chunk in itertools.product(*map(range, grid)):
        corner = tuple(i // n for i, n in zip(chunk, shards.chunks_xyz, strict=True))
        boxes.setdefault(shards.shard_of(chunk), set()).add(corner)
    assert all(len(corners) == 1 for corners in boxes.values())
    assert len(boxes) == len(set().union(*boxes.values()))


def test_provenance_lies_beside_the_volume(tmp_path) -> None:
    create_volume(place(tmp_path), spec_of(), {"description": "demo", "sources": ["raw/acq"]})
    found = json.loads((tmp_path / "v" / "provenance").read_text())
    assert found == {"description": "demo", "owners": [], "processing": [], "sources": ["raw/acq"]}


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["plain", "sharded"])
@pytest.mark.parametrize(("kind", "dtype", "channels"), [("image", "uint8", 1), ("segmentation", "uint64", 1)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of cloud-volume's own dependencies, on import
def test_cloud_volume_opens_a_precomputed_volume(tmp_path, shard, kind, dtype, channels) -> None:
    cloudvolume = pytest.importorskip("cloudvolume")
    scales = ((1, 1, 1), (1, 2, 2))
    spec = spec_of(
        kind=kind, dtype=dtype, channels=channels, shard_zyx=SHARDS[shard], scales=scales, offset_zyx=(2, 4, 6)
    )
    volume = create_volume(place(tmp_path), spec, {"description": "demo"})
    fill(volume, noise(volume))
    volume.build_scales()
    for scale in (0, 1):
        other = cloudvolume.CloudVolume(f"file://{tmp_path}/v", mip=scale, progress=False, fill_missing=True)
        assert tuple(other.resolution) == (8 * 2**scale, 8 * 2**scale, 16)
        theirs = np.asarray(other[:])[..., 0].transpose(2, 1, 0)
        assert (theirs == volume.read(spec.scale_box(scale), scale)).all()
    assert other.provenance.description == "demo"


@pytest.mark.lakefs
@pytest.mark.parametrize(
    ("driver", "shard"), [("precomputed", "sharded"), ("precomputed", "plain"), ("zarr3", "sharded")]
)
def test_a_volume_lives_on_a_server(lakefs_repo, driver, shard) -> None:
    scales = ((1, 1, 1), (1, 2, 2))
    spec = spec_of(driver, kind="segmentation", dtype="uint64", shard_zyx=SHARDS[shard], scales=scales)
    commits = []
    with lakefs_repo.session("main", owner="me") as session:
        volume = create_volume(session.workspace("volumes/v/"), spec, {"description": "demo"})
        assert create_volume(session.workspace("volumes/v/"), spec).spec == volume.spec
        array = noise(volume)
        boxes = [box for _, box in volume.box.blocks(volume.unit())]
        for box in boxes[1:]:
            volume.write(box, array[box.slices])
        with pytest.raises(NotFound, match=r"lacks \d chunks"):
            volume.read(volume.box)
        assert volume.missing_chunks(boxes[0])
        volume.write(boxes[0], array[boxes[0].slices])
        volume.build_scales()
        assert volume.missing_chunks() == volume.missing_chunks(scale=1) == []
        commits.append(session.commit("one"))
    with lakefs_repo.session("main", owner="me") as session:
        changed = open_volume(session.workspace("volumes/v/"))
        for value in (0, 9):  # shards are replaced whole, by nothing as well
            changed.write(boxes[-1], np.full(boxes[-1].shape, value, np.uint64))
        changed.write(boxes[1], np.zeros(boxes[1].shape, np.uint64))
        changed.build_scales(box=boxes[-1])
        commits.append(session.commit("two"))
    before, after = (lakefs_repo.snapshot(commit).volume("v") for commit in commits)
    assert (before.read(before.box) == array).all()
    array[boxes[-1].slices], array[boxes[1].slices] = 9, 0
    assert (after.read(after.box) == array).all()
    assert (pickle.loads(pickle.dumps(after)).read(boxes[0], missing="zero") == array[boxes[0].slices]).all()
    assert "secret" not in repr(after).lower()
