"""A killed ingest has archived every tile with its row, or none; the next one takes over what it had stored."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import lake
from lake.engines.embedded import files
from lake.testing.crash import at_every_point, at_moments, check_whole, load, working
from lake.testing.powercut import Disk
from lake.testing.tracing import can_record, record
from transforms.synthetic.acquisition import acquire

TABLE = Path(__file__).with_name("crash_table.py")


@pytest.fixture
def fresh(fresh_folder, tmp_path):
    """Give a function that makes a fresh archive; the acquisition is beside it."""
    noise = np.random.default_rng(0).normal(size=(3, 100, 110)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (1, 2, 2))
    acquire(np.clip(128 + 40 * smooth / smooth.std(), 10, 245).astype(np.uint8), tmp_path / "acq", 2)
    return lambda name: fresh_folder(name, load(TABLE)[name].prepare)


@pytest.mark.slow
def test_a_kill_between_two_steps_archives_all_or_nothing(fresh):
    # Those of the engine below, and each of the many passes, are for the soak.
    ours = {"ingest.tile-stored:5", "ingest.rows-written:1", "ingest.recorded:1"}
    passes = at_every_point(TABLE, "ingest", fresh, only=lambda at: at in ours or at.startswith("session."))
    assert ours < set(passes)
    assert len(passes) >= 9


@pytest.mark.soak
def test_a_kill_at_every_single_pass_archives_all_or_nothing(fresh):
    at_every_point(TABLE, "ingest", fresh)


@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.soak)])
def test_a_kill_at_any_moment_archives_all_or_nothing(count, fresh):
    print(at_moments(TABLE, "ingest", fresh, count, seed=1 if count == 3 else time.time_ns()))


@pytest.mark.slow
@pytest.mark.skipif(bool(can_record()), reason=f"no power cut is replayed: {can_record()}")
def test_an_ingest_that_returned_survives_a_power_cut(fresh, tmp_path, monkeypatch):
    operation, root = load(TABLE)["ingest"], fresh("ingest")
    shutil.copytree(root, tmp_path / "before")
    disk = Disk(tmp_path / "before", root)
    for event in record(working(TABLE, "ingest", root)):
        disk.apply(event)
    assert disk.told.splitlines() == [b"ready", b"0"]
    (tmp_path / "boot_id").write_text("00000000-0000-4000-8000-000000000000\n")
    monkeypatch.setattr(files, "BOOT_ID", tmp_path / "boot_id")
    for number in range(5):
        target = tmp_path / f"cut{number}"
        disk.rebuild(target, random.Random(number), "most" if number == 0 else "random")
        repo = lake.open(target)
        assert operation.landed(repo) == 1
        operation.check(repo, 1)
        check_whole(repo)
        operation.round(repo, 0)
        operation.check_clean(repo, 1)
        repo.close()
