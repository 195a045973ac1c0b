"""A QC run whose server is lost says so at once, and notes nothing as unknown or damaged for it."""

import pytest

import lake
from lake.errors import NoRoom, ServerUnreachable
from lake.snapshot import Snapshot
from lake.testing.crash import check_whole
from lake.testing.lost import lose
from lake.volumes import Volume
from qc.measure import measure
from qc.run import run_qc

STAMPS = ("data_commit", "run_id")


@pytest.mark.lakefs
@pytest.mark.slow
@pytest.mark.xdist_group("lakefs-crash")
@pytest.mark.parametrize("points", [1, pytest.param(40, marks=pytest.mark.soak)])
def test_a_qc_run(points, lakefs_mortal, full_lake_at):
    repo = full_lake_at(lakefs_mortal.state.location("qc-lake")).repo

    def fresh(number):
        repo.create_branch(f"cand-{number}", "cand-r1")
        return f"cand-{number}"

    def act(branch):
        own = lake.open(repo.location)
        try:
            run_qc(own, branch)
        finally:
            own.close()

    def outcome(branch):
        check_whole(repo)
        found = run_qc(repo, branch)
        assert not found.made
        frames = [frame.drop(STAMPS) for frame in (found.metrics, found.results)]
        return [frame.sort(frame.columns).to_dicts() for frame in frames], len(list(repo.log(branch)))

    lose(lakefs_mortal, fresh, act, outcome, points)
    repo.close()


@pytest.mark.parametrize("error", [NoRoom, ServerUnreachable])
@pytest.mark.parametrize("where", [(Volume, "read"), (Snapshot, "table"), (Snapshot, "get"), (Snapshot, "sql")])
def test_a_machine_that_fails_in_one_read_only_is_no_figure(where, error, clean, monkeypatch):
    # The server may be back for the next read: a loss of seconds must not be told as damage of the data.
    owner, name = where
    real, failed = getattr(owner, name), []

    def fail_once(*arguments, **options):
        if failed:
            return real(*arguments, **options)
        failed.append(name)
        raise error("for a moment")

    monkeypatch.setattr(owner, name, fail_once)
    with clean.repo.snapshot("cand-r1") as snapshot, pytest.raises(error, match="for a moment"):
        measure(snapshot)
