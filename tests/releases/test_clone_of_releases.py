"""Releases survive a clone: they verify, list, answer SQL, roll back and come again at the destination."""

from datetime import timedelta

import pytest

import lake
from lake.clone import clone
from lake.errors import GateRefused, ProtectedBranch
from lake.testing.cloning import check_clone
from lake.testing.proxy import MERGES, RECORDS
from lake.testing.trees import fork
from releases.candidates import candidate
from releases.gate import judge
from releases.guard import examine
from releases.history import history
from releases.publish import publish, rollback
from releases.verify import verify

RELEASES = (
    "SELECT release, state, verdict, parent, reason, commit_id, data_commit, manifest_digest "
    "FROM v_release_history ORDER BY ALL"
)
SEGMENTS = "SELECT count(*), sum(voxels) FROM segments"
SECOND = timedelta(seconds=1)


@pytest.fixture
def source(repo, make, judge_with):
    """Release r1, r2 rolled back, r3 = r2 again, and candidate r4 judged but not published."""
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    publish(repo, "r2", user="ann")
    rollback(repo, "r2", user="ann", reason="splits in one region")
    candidate(repo, "r3", again="r2")
    judge_with("r3")
    publish(repo, "r3", user="ann")
    make("r4", merge=True)
    return repo


def told(repo):
    """What the releases of a repository are, in words that do not name commits of this repository."""
    return [(r.name, r.qc, r.manifest_digest, len(r.parents), r.undone_by is not None) for r in history(repo)]


def bad(repo):
    """What `emlake doctor` finds wrong with the steps that main took."""
    return [finding for finding in examine(repo) if finding[1] != "ok"]


def check_answers(source, dest):
    """The clone gives the source's answers."""
    assert told(dest) == told(source)
    assert bad(dest) == bad(source) == []
    for name in ("r1", "r2", "r3"):
        expected, found = verify(source, name), verify(dest, name)
        assert found.faults == expected.faults == ()
        assert (found.objects, found.bytes) == (expected.objects, expected.bytes)
    for ref in ("r1", "r2", "main"):
        for query in (RELEASES, SEGMENTS):
            assert dest.snapshot(ref).sql(query).rows() == source.snapshot(ref).sql(query).rows()
    rows = dest.snapshot("main").sql('SELECT "commit", qc_commit, archive_commit, ops_commit FROM ops.releases').rows()
    for old in {commit for row in rows for commit in row}:
        assert dest.resolve(old) != old
        assert dest.commit_info(old).message == source.commit_info(old).message


def check_life(source, dest, judge_with):
    """The clone goes on living by itself: a candidate in progress, a rollback, the next release."""
    assert judge(dest, "r4").status == judge(source, "r4").status == "pass"
    with pytest.raises(ProtectedBranch):
        dest.put("main", "x", b"")
    done = rollback(dest, "r3", user="ben", reason="as bad as r2 was")
    assert done.restored == "r1"
    assert list(dest.diff("r1", "main")) == []
    candidate(dest, "r5", again="r3")
    judge_with("r5", on=dest)
    publish(dest, "r5", user="ben")
    assert verify(dest, "r5").ok
    assert [r.name for r in history(dest) if r.undone_by is None] == ["r1", "r5"]
    assert bad(dest) == []


def test_in_another_folder_releases_live_on(source, judge_with, tmp_path):
    clone(source, tmp_path / "clone")
    dest = lake.open(tmp_path / "clone")
    check_answers(source, dest)
    check_life(source, dest, judge_with)


@pytest.mark.slow
@pytest.mark.lakefs
def test_on_a_server_and_back_in_a_folder_releases_live_on(source, judge_with, lakefs_location, tmp_path):
    there = clone(source, lakefs_location)
    assert there.refused == {}
    server = lake.open(lakefs_location)
    check_clone(source, server, {}, within=SECOND)
    check_answers(source, server)
    clone(server, tmp_path / "back")
    back = lake.open(tmp_path / "back")
    check_clone(server, back, {}, within=SECOND)
    check_answers(source, back)
    for commit in source.log("main"):
        returned = back.commit_info(commit.id)
        assert (returned.message, returned.committer, returned.created) == (
            commit.message,
            commit.committer,
            commit.created,
        )
    check_life(source, server, judge_with)
    for clone_of_it in (server, back):
        fork(clone_of_it, "stray", {"x": b""})
        with pytest.raises(GateRefused):
            clone_of_it.merge("stray", "main", "no release")
    check_life(source, back, judge_with)


@pytest.mark.slow
@pytest.mark.lakefs
def test_a_later_release_follows_to_the_protected_main_of_a_server(source, judge_with, lakefs_location):
    clone(source, lakefs_location)
    publish(source, "r4", user="ann")
    more = clone(source, lakefs_location)
    assert set(more.moved) == {"main", "ops", "cand-r4"}
    assert more.tags == ("r4",)
    server = lake.open(lakefs_location)
    check_clone(source, server, {}, within=SECOND)
    assert verify(server, "r4").ok
    with pytest.raises(ProtectedBranch):
        server.put("main", "x", b"")
    nothing = clone(source, lakefs_location)
    assert (nothing.commits, nothing.moved, nothing.compared) == (0, (), 0)


@pytest.mark.slow
@pytest.mark.lakefs
@pytest.mark.parametrize("refusals", [{RECORDS: 404}, {RECORDS: 404, MERGES: 403}], ids=["no records", "nor merges"])
def test_on_a_server_that_takes_no_commit_records_releases_live_on(source, judge_with, lakefs_behind, refusals):
    """A release needs its merge's second parent, the candidate, for the look at the gate alone: it is kept by name."""
    place = lakefs_behind(refusals)
    there = clone(source, place)
    assert there.refused == {}
    assert len(there.lost) == (len(history(source)) if MERGES in refusals else 0)
    server = lake.open(place)
    check_answers(source, server)
    check_life(source, server, judge_with)
    publish(source, "r4", user="ann")
    more = clone(source, place)
    assert "main" in more.refused, "it has moved on by itself"


@pytest.mark.slow
@pytest.mark.lakefs
@pytest.mark.parametrize("refusals", [{RECORDS: 404}, {RECORDS: 404, MERGES: 403}], ids=["no records", "nor merges"])
def test_a_later_release_follows_to_such_a_server(source, lakefs_behind, refusals):
    place = lakefs_behind(refusals)
    clone(source, place)
    publish(source, "r4", user="ann")
    more = clone(source, place)
    assert set(more.moved) == {"main", "ops", "cand-r4"}
    server = lake.open(place)
    assert verify(server, "r4").ok
    assert rollback(server, "r4", user="ben", reason="of no use").restored == "r3"
    assert list(server.diff("r3", "main")) == []
