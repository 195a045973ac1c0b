"""A real server that says no in the midst of a session's end, or does what it was asked and says that it did not."""

import pytest

import lake
from lake.errors import AlreadyExists, ConflictError, LakeError, ServerUnreachable
from lake.locks import lock_tags
from lake.opening import sweep
from lake.testing.crash import check_sessions_swept
from lake.testing.proxy import LATE
from lake.testing.trees import save, tree

pytestmark = pytest.mark.lakefs

LANDING = r"^POST .*/refs/[^/]+/merge/work$"
REMOVALS = {"branch": r"^DELETE .*/branches/session-", "lock": r"^DELETE .*/tags/lock"}
REFUSED = [400, 401, 403, 409, 410, 412, 423, 429, 500, 501, 503]


@pytest.fixture
def behind(lakefs_behind, lakefs_server, monkeypatch):
    """Give a function (refusals, once): a repository with a branch `work` behind them, and one on the straight road."""
    opened = []

    def make(refusals, *, once=False):
        place = lakefs_behind(refusals, once=once)
        repo = lake.create(place)
        save(repo, "main", {"a": b"1"})
        repo.create_branch("work", "main")
        monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", lakefs_server.endpoint)
        direct = lake.open(lakefs_server.location(place.rpartition("/")[2]))
        opened.extend((repo, direct))
        return repo, direct

    yield make
    for repo in opened:
        repo.close()


@pytest.mark.parametrize("what", REMOVALS)
@pytest.mark.parametrize("status", REFUSED)
def test_a_session_that_has_landed_says_so_whatever_its_tidying_is_answered_and_the_next_one_tidies(
    behind, what, status
):
    repo, direct = behind({REMOVALS[what]: status})
    session = repo.session("work", owner="first")
    session.put("b", b"2")
    made = session.commit("landed")
    assert direct.resolve("work") == made
    with direct.session("work", owner="next") as after:
        assert not after.resumed
        after.put("c", b"3")
        after.commit("after it")
    assert tree(direct, "work") == {"a": b"1", "b": b"2", "c": b"3"}
    sweep(direct)
    check_sessions_swept(direct)
    assert lock_tags(direct, "work") == {}


@pytest.mark.parametrize("what", REMOVALS)
@pytest.mark.parametrize("status", REFUSED)
def test_a_session_that_cannot_be_abandoned_says_so_and_holds_nobody_up(behind, what, status):
    repo, direct = behind({REMOVALS[what]: status})
    session = repo.session("work", owner="first")
    session.put("b", b"2")
    with pytest.raises(LakeError, match="not offered here"):
        session.abandon()
    with direct.session("work", owner="next") as after:
        assert not after.resumed
    assert tree(direct, "work") == {"a": b"1"}
    sweep(direct)
    check_sessions_swept(direct)


@pytest.mark.parametrize("status", REFUSED)
def test_a_refused_landing_changes_nothing_and_the_session_can_land_again(behind, status):
    repo, direct = behind({LANDING: status}, once=True)
    before = direct.resolve("work")
    with repo.session("work", owner="first") as session:
        session.put("b", b"2")
        if status != 429:  # that is tried again at once
            with pytest.raises(LakeError, match="not offered here"):
                session.commit("landed")
            assert direct.resolve("work") == before
        made = session.commit("landed")
    assert direct.resolve("work") == made
    assert direct.commit_info(made).parents == (before,)
    check_sessions_swept(direct)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_landing_of_which_a_proxy_says_nothing_good_is_found(behind, status):
    repo, direct = behind({LANDING: LATE + status}, once=True)
    before = direct.resolve("work")
    with repo.session("work", owner="first") as session:
        session.put("b", b"2")
        made = session.commit("landed")
    assert direct.resolve("work") == made
    assert direct.commit_info(made).parents == (before,)


ASKED = {
    "commit": (r"^POST .*/branches/work/commits$", lambda repo: repo.commit("work", "m")),
    "merge": (r"^POST .*/refs/[^/]+/merge/work$", lambda repo: repo.merge("side", "work", "m")),
    "revert": (r"^POST .*/branches/work/revert$", lambda repo: repo.revert("work", "work", message="m")),
    "cherry-pick": (r"^POST .*/branches/work/cherry-pick$", lambda repo: repo.cherry_pick("work", "side")),
}


@pytest.mark.parametrize("late", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("what", ASKED)
def test_what_a_proxy_cannot_tell_is_looked_up(behind, what, status, late):
    asked, act = ASKED[what]
    repo, direct = behind({asked: status + LATE * late}, once=True)
    direct.create_branch("side", "work")
    save(direct, "side", {"b": b"2"})
    if what == "commit":
        direct.put("work", "c", b"3")
    before = direct.resolve("work")
    if late:
        assert act(repo) == direct.resolve("work")
        assert direct.commit_info("work").parents[0] == before
    else:
        with pytest.raises(ServerUnreachable, match=f"'work' is at {before}.*nothing of this landed"):
            act(repo)
        assert direct.resolve("work") == before


def test_a_conflict_of_a_branch_that_moved_loses_the_session(behind):
    repo, direct = behind({LANDING: 409}, once=True)
    with repo.session("work", owner="first") as session:
        session.put("b", b"2")
        direct.merge(save(direct, "main", {"z": b"z"}), "work", "another road")
        with pytest.raises(ConflictError, match="not at"):
            session.commit("landed")


@pytest.mark.parametrize("status", [400, 404, 423])
def test_a_tag_that_cannot_be_made_or_removed_just_now_is_not_said_to_be_there_or_gone(behind, status):
    repo, direct = behind({r"^(POST|DELETE) .*/tags": status})
    direct.create_tag("v1", "main")
    with pytest.raises(LakeError, match="not offered here") as caught:
        repo.create_tag("v2", "main")
    assert not isinstance(caught.value, AlreadyExists)
    with pytest.raises(LakeError, match="not offered here"):
        repo.delete_tag("v1")
    assert list(direct.tags()) == ["v1"]
