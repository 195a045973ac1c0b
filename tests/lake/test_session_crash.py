"""A session killed at any point lands once or not at all, and the next one on the branch carries on."""

import os
import random
import time

import pytest

import lake
from lake.errors import LakeError
from lake.opening import sweep
from lake.testing.crash import check_whole, content, moments, passes_of, python, run

OPEN = "import sys, lake; repo = lake.open(sys.argv[1]); print('ready'); "
WORK = (
    OPEN
    + """
with repo.session("main") as session:
    session.put("first", b"1")
    session.checkpoint()
    session.put("second", b"2")
    print(session.commit("work"))
"""
)
COUNT = (
    OPEN
    + """
while True:
    with repo.session("main") as session:
        landed = len(repo.get("main", "n")) if list(repo.list("main", "n")) else 0
        session.put("n", b"x" * (landed + 1))  # the same whether this session is new or continues a dead one
        session.commit("one more")
        print("acknowledged")
"""
)


@pytest.fixture(params=["embedded", pytest.param("server", marks=[pytest.mark.lakefs])])
def make(request, tmp_path):
    """Give a function that makes a repository with one object and says where it is."""
    made = []

    def make():
        if request.param == "embedded":
            location = str(tmp_path / f"repo{len(made)}")
        else:
            location = request.getfixturevalue("lakefs_server").location(f"r-{os.urandom(6).hex()}")
        repo = lake.create(location)
        repo.put("main", "old", b"0")
        repo.commit("main", "first")
        repo.close()
        made.append(location)
        return location

    return make


def look(location, monkeypatch):
    """Check what a killed session left, go on, and tell whether it had landed."""
    repo = lake.open(location)
    try:
        check_whole(repo)
        messages = [commit.message for commit in repo.log("main", limit=2)]
        landed = messages[0] == "work"
        assert landed or messages[0] == "first"
        assert content(repo, "main") == {"old": b"0"} | ({"first": b"1", "second": b"2"} if landed else {})
        assert list(repo.uncommitted("main")) == []
        with repo.session("main") as session:
            # What a call had acknowledged is there; of the call in the middle of which it died, all or nothing.
            seen = {entry.key: session.get(entry.key) for entry in session.list()}
            assert not (session.resumed and landed)
            if not session.resumed:
                assert seen == content(repo, "main")
            session.put("third", b"3")
            session.commit("after")
        assert content(repo, "main") == {**seen, "third": b"3"}
        expected = ["after", "work", "first"] if landed else ["after", "first"]
        assert [commit.message for commit in repo.log("main")][: len(expected)] == expected
        with monkeypatch.context() as patch:
            patch.setattr("lake.locks.LEASE_S", -10.0)  # a branch without a commit of its own is swept when old
            sweep(repo)
        assert (list(repo.branches()), dict(repo.tags())) == (["main"], {})
        return landed
    finally:
        repo.close()


SESSION_POINTS = [
    "session.branch-made",
    "session.opening-commit",
    "session.locked",
    "session.work-committed",
    "session.landed",
    "session.work-removed",
    "session.unlocked",
]


@pytest.mark.parametrize("point", SESSION_POINTS)
def test_killed_between_its_steps_a_session_lands_once_or_not_at_all(make, monkeypatch, point):
    location = make()
    assert run(python(WORK, location), kill_at=point).killed
    assert look(location, monkeypatch) == (SESSION_POINTS.index(point) >= SESSION_POINTS.index("session.landed"))


def test_work_that_was_acknowledged_is_there_for_the_next(make):
    location = make()
    assert run(python(WORK, location), kill_at="session.work-committed").killed
    repo = lake.open(location)
    with repo.session("main") as session:
        assert session.resumed
        assert {entry.key for entry in session.list()} == {"old", "first", "second"}
        session.commit("landed by the next")
    assert content(repo, "main") == {"old": b"0", "first": b"1", "second": b"2"}
    repo.close()


@pytest.mark.slow
@pytest.mark.parametrize("every_pass", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_killed_at_any_durable_step_of_the_engine_too(make, monkeypatch, every_pass):
    outcomes = set()
    for at in passes_of(python(WORK, make())):
        if not (every_pass or at.endswith(":1")):
            continue
        location = make()
        assert run(python(WORK, location), kill_at=at).killed, at
        try:
            outcomes.add(look(location, monkeypatch))
        except (AssertionError, LakeError) as error:
            raise AssertionError(f"killed at {at}") from error
    assert outcomes == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments_no_acknowledged_landing_is_lost_or_doubled(make, count):
    location = make()
    acknowledged = 0
    seed = 7 if count == 3 else time.time_ns()
    for moment in moments(random.Random(seed), count, 1.0):
        acknowledged += run(python(COUNT, location), kill_after_s=moment).told.count("acknowledged")
        repo = lake.open(location)
        landed = [commit for commit in repo.log("main") if commit.message == "one more"]
        held = len(content(repo, "main").get("n", b""))
        assert held == len(landed), f"seed {seed}"
        assert len({commit.metadata["session"] for commit in landed}) == len(landed), "each landed once"
        assert acknowledged <= held, f"seed {seed}"
        repo.close()
    repo = lake.open(location)
    with repo.session("main", resume=False):
        pass
    sweep(repo)
    assert dict(repo.tags()) == {}
    assert acknowledged
    repo.close()
