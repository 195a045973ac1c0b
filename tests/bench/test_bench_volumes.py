"""A volume through an embedded Location against TensorStore on a bare folder: in turn, median of nine."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

import lake
from lake.box import Box
from lake.location import Location
from lake.volumes import Volume, VolumeSpec, create_volume

SHAPE = (256, 1024, 1024)  # 256 MB of uint8
ROUNDS = 9


def spec_of(driver: str) -> VolumeSpec:
    shard = (128, 256, 256)
    return VolumeSpec("v", "image", "uint8", SHAPE, (16, 8, 8), chunk_zyx=(64, 64, 64), driver=driver, shard_zyx=shard)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bare_store(folder: Path, driver: str):
    """The same files, opened by TensorStore with nothing of ours in between; a view in zyx."""
    kvstore = {"driver": "file", "path": f"{folder}/"}
    if driver == "zarr3":
        return ts.open({"driver": "zarr3", "kvstore": {**kvstore, "path": f"{folder}/s0/"}, "open": True}).result()
    return ts.open({"driver": "neuroglancer_precomputed", "kvstore": kvstore, "open": True}).result().T[0]


def write_bare(store, array: np.ndarray, unit: tuple[int, int, int]) -> None:
    for _, box in Box((0, 0, 0), SHAPE).blocks(unit):
        with ts.Transaction() as transaction:
            store.with_transaction(transaction)[box.slices].write(array[box.slices]).result()


def write_ours(volume: Volume, array: np.ndarray) -> None:
    for _, box in volume.box.blocks(volume.unit()):
        volume.write(box, array[box.slices])


def read_blocks(read: Callable[[Box], np.ndarray]) -> None:
    for _, box in Box((0, 0, 0), SHAPE).blocks((128, 256, 256)):
        assert read(box).shape == box.shape


@pytest.mark.bench
@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
def test_a_volume_through_an_embedded_location(tmp_path, driver, record_property) -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(128, 20, SHAPE)).clip(0, 255).astype(np.uint8)
    repo = lake.create(tmp_path / "repo")
    ours: dict[str, list[float]] = {"write": [], "read": []}
    bare: dict[str, list[float]] = {"write": [], "read": []}
    for number in range(ROUNDS):
        folder = tmp_path / f"bare{number}"
        create_volume(Location(str(folder), writable=True), spec_of(driver))
        store = bare_store(folder, driver)
        session = repo.session("main", owner="bench")
        volume = create_volume(session.workspace(f"volumes/v{number}/"), spec_of(driver))
        bare["write"].append(timed(lambda: write_bare(store, array, volume.unit())))  # noqa: B023
        ours["write"].append(timed(lambda: write_ours(volume, array)))  # noqa: B023
        commit = session.commit(f"round {number}")
        pinned = repo.snapshot(commit).volume(f"v{number}")
        assert (pinned.read(volume.box) == array).all()
        bare["read"].append(timed(lambda: read_blocks(lambda box: store[box.slices].read().result())))  # noqa: B023
        ours["read"].append(timed(lambda: read_blocks(pinned.read)))  # noqa: B023
        shutil.rmtree(folder)
    for name in ("write", "read"):
        there, here = statistics.median(bare[name]), statistics.median(ours[name])
        print(f"\n{driver} {name}: bare {256 / there:.0f} MB/s, ours {256 / here:.0f} MB/s, ratio {there / here:.2f}")
        record_property(f"{driver}_{name}_ratio", there / here)
        assert there / here >= 0.9
    repo.close()
