"""The life of a release on a real lakeFS server, where its own gate judges every merge into main."""

import pytest

from lake.errors import ConflictError, GateRefused, ProtectedBranch
from lake.testing import unasked
from releases.candidates import candidate, refresh
from releases.gate import judge
from releases.history import standing
from releases.publish import publish, rollback
from releases.setup import init
from releases.verify import verify
from releases.waivers import waive

pytestmark = [pytest.mark.lakefs, pytest.mark.slow]


@pytest.fixture
def repo(lakefs_location):
    made = init(lakefs_location, block_zyx=(4, 4, 4))
    yield made
    made.close()


def test_a_release_goes_out_is_undone_and_comes_back_under_a_new_name(repo, make, judge_with):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True, vi_split__0_0_1=1.9)
    with pytest.raises(GateRefused, match=r"vi_split in region 0_0_1 is 1\.9 bits"):
        publish(repo, "r2", user="ann")
    waive(repo, "r2", "vi_split_region", owner="bob", reason="known, wanted for the drill")
    assert judge(repo, "r2").status == "waived"
    bad = publish(repo, "r2", user="ann").release
    assert verify(repo, "r2").ok
    reader = repo.snapshot("r2")
    assert rollback(repo, "r2", user="ann", reason="splits in one region").restored == "r1"
    assert list(repo.diff("r1", "main")) == []
    assert reader.table("segments").collect().height == 1
    assert repo.tags()["r2"] == bad.merge
    candidate(repo, "r3", again="r2")
    assert repo.snapshot("cand-r3").table("segments").collect().height == 1
    judge_with("r3")
    publish(repo, "r3", user="ann")
    assert list(repo.diff("r2", "main", prefix="tables/segments/")) == []
    assert [release.name for release in standing(repo)] == ["r1", "r3"]
    rows = repo.snapshot("main").sql("SELECT kind, release FROM ops.decisions ORDER BY ts").rows()
    assert rows == [("publish", "r1"), ("publish", "r2"), ("rollback", "r2"), ("publish", "r3")]
    first = repo.commit_info("r1").parents[0]
    assert [rollback(repo, user="ann", reason="all of it").restored for _ in range(2)] == ["r1", None]
    assert list(repo.diff(first, "main")) == []


def test_of_two_candidates_side_by_side_the_second_is_refreshed(repo, side_by_side, judge_with):
    with pytest.raises(ConflictError, match="main holds what cand-b lacks"):
        publish(repo, "b", user="ann")
    refresh(repo, "b")
    judge_with("b")
    assert publish(repo, "b", user="ann").made
    assert verify(repo, "b").ok


def test_a_merge_past_the_client_is_refused_by_the_server(repo, make):
    make("r1")
    before = repo.resolve("main")
    with pytest.raises(GateRefused, match="hook run"):
        unasked.merge(repo, "cand-r1", "past the client")
    with pytest.raises(ProtectedBranch):
        repo.put("main", "x", b"")
    assert repo.resolve("main") == before
