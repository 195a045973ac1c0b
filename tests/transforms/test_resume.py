"""A run that is killed with SIGKILL goes on where it was: nothing finished is computed again, digests are the same."""

import random
import shutil
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import lake
from lake import tables
from lake.testing import crash
from transforms.runner import run
from transforms.testing.repos import toy_pipeline, toy_repository

# Told before the run begins, so that random moments count from there.
CODE = """
import sys
import lake
from transforms.runner import run
from transforms.testing.repos import toy_pipeline
if __name__ == "__main__":
    repo = lake.open(sys.argv[1])
    pipeline = toy_pipeline("label", paint={"shape": [8, 8, 16]})
    print("begin", flush=True)
    print(run(repo, pipeline, "work", executor=sys.argv[2]).merkle_root, flush=True)
"""
OURS = ("run.", "block.")


@dataclass(frozen=True)
class Case:
    """An untouched repository, and what a run of it comes to when nobody disturbs it."""

    folder: Path
    script: Path
    root: str
    digests: dict
    passes: list
    seconds: float

    def command(self, folder, executor="serial"):
        return [*crash.python("")[:-2], str(self.script), str(folder), executor]


def contents(repo):
    with repo.snapshot("work") as snapshot:
        names = snapshot.tables()
        found = {name: tables.content_digest(snapshot.location(f"tables/{name}/"), name) for name in names}
        for name in ("em", "smooth", "supervoxels", "segmentation"):
            volume = snapshot.volume(name)
            found[name] = volume.read(volume.box).tobytes()
            assert all(volume.missing_chunks(scale=s) == [] for s in range(len(volume.spec.scales)))
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    base = tmp_path_factory.mktemp("case")
    script = base / "job.py"
    script.write_text(CODE)
    toy_repository(base / "repo").close()
    made = Case(base / "repo", script, "", {}, [], 0.0)
    shutil.copytree(made.folder, base / "undisturbed")
    passes = crash.passes_of(made.command(base / "undisturbed"))
    repo = lake.open(base / "undisturbed")
    report = run(repo, toy_pipeline("label", paint={"shape": [8, 8, 16]}), "work")
    assert report.state == "unchanged"
    shutil.copytree(made.folder, base / "timed")
    began = time.monotonic()
    run(lake.open(base / "timed"), toy_pipeline("label", paint={"shape": [8, 8, 16]}), "work")
    seconds = time.monotonic() - began
    passes = [name for name in passes if name.startswith(OURS)]
    return Case(base / "repo", script, report.merkle_root, contents(repo), passes, seconds)


def finished_blocks(repo):
    """Count the blocks that are recorded as done in the session that the killed run left."""
    keys = [stat.key for branch in repo.branches("session-") for stat in repo.list(branch, "_runs/")]
    return len({key for key in keys if "/blocks/" in key})


def is_recorded(folder):
    """Tell whether the session that a killed run left holds the whole record of a run."""
    with closing(lake.open(folder)) as repo:
        known = {stat.key for stat in repo.list("work", "_runs/")}
        found = {stat.key for branch in repo.branches("session-") for stat in repo.list(branch, "_runs/")}
    return any(key.endswith("/run.json") for key in found - known)


def test_a_run_that_was_killed_after_its_record_was_made_is_landed_as_it_is(case, tmp_path):
    folder, ended = killed_at(case, tmp_path, "run.recorded")
    assert ended.killed
    assert is_recorded(folder)
    report, _ = go_on(case, folder)
    assert report.state == "unchanged"
    assert sum(stage.computed for stage in report.stages) == 0


def go_on(case, folder, *, opened=True):
    """Run again after a kill; give the report and how many blocks the killed run had finished.

    A run that was killed before its session was `opened` may leave an empty hidden branch that is no session's.
    """
    repo = lake.open(folder)
    before = finished_blocks(repo)
    report = run(repo, toy_pipeline("label", paint={"shape": [8, 8, 16]}), "work")
    assert report.merkle_root == case.root
    assert contents(repo) == case.digests
    if opened:
        assert repo.branches("session-") == {}
        assert repo.tags("lock.") == {}
    crash.check_sessions_swept(repo)
    again = run(repo, toy_pipeline("label", paint={"shape": [8, 8, 16]}), "work")
    assert (again.state, again.merkle_root) == ("unchanged", case.root)
    with repo.snapshot("work") as snapshot:
        stages = snapshot.sql("select stage, count(*), min(state) from ops.runs group by all order by all").rows()
    assert stages == [(name, 1, "complete") for name in ("cut", "join", "label", "paint", "smooth")]
    assert sum(1 for commit in repo.log("work") if "run_id" in commit.metadata) == 1
    repo.close()
    return report, before


def killed_at(case, tmp_path, point, executor="serial"):
    folder = tmp_path / "repo"
    shutil.copytree(case.folder, folder)
    ended = crash.run(case.command(folder, executor), kill_at=point)
    return folder, ended


def check_killed_at(case, tmp_path, point):
    folder, ended = killed_at(case, tmp_path, point)
    assert ended.killed
    recorded = is_recorded(folder)
    report, before = go_on(case, folder)
    if point.startswith("run.landed") or recorded:
        # What lacked only its landing is landed; nothing is computed again.
        assert report.state == "unchanged"
        assert sum(stage.computed for stage in report.stages) == 0
    else:
        assert report.state == "complete"
        assert report.taken_over == before


def test_finished_blocks_are_not_computed_again_and_the_digests_are_those_of_an_undisturbed_run(case, tmp_path):
    folder, ended = killed_at(case, tmp_path, "run.block-done:5")
    assert ended.killed
    report, before = go_on(case, folder)
    assert before == report.taken_over == 5
    assert report.resumed
    assert {stage.stage: stage.computed for stage in report.stages} == {
        "paint": 2, "smooth": 2, "cut": 2, "join": 1, "label": 2,
    }  # fmt: skip


def test_a_finished_block_whose_bytes_were_lost_is_computed_again(case, tmp_path):
    folder, _ = killed_at(case, tmp_path, "run.block-done:3")
    # What a power cut leaves of a file that was never synced: its name, and nothing in it.
    chunks = [p for p in (folder / "workspaces").rglob("volumes/em/8_8_16/*") if p.is_file()]
    victim = sorted(chunks)[0]
    victim.unlink()
    victim.write_bytes(b"")
    report, before = go_on(case, folder)
    assert before == 3
    assert report.taken_over == 2


@pytest.mark.slow
def test_a_kill_at_every_kind_of_step_is_survived(case, tmp_path):
    count = Counter(name.split(":")[0] for name in case.passes)
    for number, (name, passes) in enumerate(sorted(count.items())):
        check_killed_at(case, tmp_path / str(number), f"{name}:{(passes + 1) // 2}")


def check_moments(case, tmp_path, count, executor):
    rng = random.Random(count if count < 100 else time.time_ns())
    killed = 0
    for number, moment in enumerate(crash.moments(rng, count, case.seconds * (4 if executor == "processes" else 2))):
        folder = tmp_path / str(number)
        shutil.copytree(case.folder, folder)
        ended = crash.run(case.command(folder, executor), kill_after_s=moment)
        killed += ended.killed
        report, before = go_on(case, folder, opened=False)
        if report.state == "complete":
            # A worker may have been writing when the parent died: what was recorded counts, no more and no less.
            assert report.taken_over == before
        shutil.rmtree(folder)
    assert killed
    print(f"run ({executor}): {killed} of {count} killed, each run again to the same digests")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_kill_at_any_moment_is_survived(case, tmp_path, executor):
    check_moments(case, tmp_path, 3, executor)


@pytest.mark.soak
def test_a_kill_at_every_single_step_is_survived(case, tmp_path):
    for number, point in enumerate(case.passes):
        check_killed_at(case, tmp_path / str(number), point)


@pytest.mark.soak
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_two_hundred_kills_at_any_moment_are_survived(case, tmp_path, executor):
    check_moments(case, tmp_path, 200, executor)
