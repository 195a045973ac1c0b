"""An ingest or a run whose disk fills up says so, keeps what is finished, and goes on when there is room."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import lake
from lake.errors import NoRoom
from lake.testing.crash import check_whole, load
from lake.testing.small_disk import run_out
from transforms.runner import run
from transforms.synthetic.acquisition import acquire
from transforms.testing.repos import toy_pipeline, toy_repository

TABLE = Path(__file__).with_name("crash_table.py")
PIPELINE = {"paint": {"shape": [8, 8, 32]}}


@pytest.mark.slow
@pytest.mark.parametrize("points", [4, pytest.param(60, marks=pytest.mark.soak)])
def test_wherever_room_ends_an_ingest_archives_all_or_nothing(points, cramped, tmp_path):
    noise = np.random.default_rng(0).normal(size=(3, 100, 110)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (1, 2, 2))
    acquire(np.clip(128 + 40 * smooth / smooth.std(), 10, 245).astype(np.uint8), tmp_path / "template" / "acq", 2)
    operation = load(TABLE)["ingest"]
    operation.prepare(str(tmp_path / "template" / "repo"))
    run_out(operation, cramped, tmp_path / "template", points)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize("points", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_wherever_room_ends_a_run_keeps_its_finished_blocks_and_goes_on(points, executor, cramped, tmp_path):
    made = toy_repository(tmp_path / "template")
    folder = Path(made.location)
    made.close()

    def fresh():
        cramped.leave(None)
        shutil.rmtree(cramped.root / "repo", ignore_errors=True)
        shutil.copytree(folder, cramped.root / "repo", symlinks=True)
        return lake.open(cramped.root / "repo")

    repo = fresh()
    used = cramped.used()
    whole = run(repo, toy_pipeline("label", **PIPELINE), "work", executor=executor)
    took = cramped.used() - used
    repo.close()
    blocks = sum(stage.blocks for stage in whole.stages)
    kept = []
    for number in range(points):
        repo = fresh()
        head = repo.resolve("work")
        cramped.leave(took * number // points)
        failed: NoRoom | None = None
        try:
            report = run(repo, toy_pipeline("label", **PIPELINE), "work", executor=executor)
        except NoRoom as error:
            failed = error
        if failed is None:
            # What a run takes varies by some pages of the database's log.
            assert number > points * 3 // 4, f"{took * number // points} of {took} bytes were enough"
            assert report.merkle_root == whole.merkle_root
            repo.close()
            continue
        assert failed.message.startswith(cramped.says)
        assert f"{failed.free:,} are free" in failed.message
        if not cramped.exact:
            cramped.leave(None)
        assert repo.resolve("work") == head
        assert check_whole(repo)
        cramped.leave(None)
        report = run(repo, toy_pipeline("label", **PIPELINE), "work", executor=executor)
        assert report.merkle_root == whole.merkle_root
        # One that lacked nothing but its landing is landed as it was.
        kept.append(blocks if report.state == "unchanged" else report.taken_over)
        repo.close()
    assert kept[0] == 0
    assert kept == sorted(kept)
    assert kept[-1] > 0
