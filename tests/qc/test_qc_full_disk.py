"""A QC run whose disk fills up says so, and notes nothing as unknown for it; it is done again when there is room."""

import shutil

import pytest

import lake
from lake.testing.crash import check_whole
from lake.testing.small_disk import exhaust
from qc.run import run_qc


@pytest.mark.slow
@pytest.mark.parametrize("points", [1, pytest.param(40, marks=pytest.mark.soak)])
def test_wherever_room_ends_a_qc_run_is_done_or_not_done(points, cramped, full_lake_at, tmp_path):
    full_lake_at(tmp_path / "template").repo.close()

    def fresh():
        return shutil.copytree(tmp_path / "template", cramped.root / "repo", symlinks=True)

    def act(root):
        repo = lake.open(root)
        try:
            run_qc(repo, "cand-r1")
        finally:
            repo.close()

    def outcome(root):
        repo = lake.open(root)
        check_whole(repo)
        found = run_qc(repo, "cand-r1")
        assert not found.made
        frames = [frame.drop("data_commit", "run_id") for frame in (found.metrics, found.results)]
        commits = len(list(repo.log("cand-r1")))
        repo.close()
        return [frame.sort(frame.columns).to_dicts() for frame in frames], commits

    exhaust(cramped, fresh, act, outcome, points)
