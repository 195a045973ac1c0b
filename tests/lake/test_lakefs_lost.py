"""A real server that is gone in the middle of any writing operation: one clear error, soon; and then it goes on."""

import time
from itertools import count

import numpy as np
import pytest

import lake
from lake import tables
from lake.errors import ServerUnreachable
from lake.testing.crash import check_whole, content
from lake.volumes import VolumeSpec, create_volume

pytestmark = [pytest.mark.lakefs, pytest.mark.slow, pytest.mark.xdist_group("lakefs-crash")]
SPEC = VolumeSpec("em", "image", "uint8", (8, 8, 8), (1, 1, 1), chunk_zyx=(8, 8, 8))
WITHIN_S = 5.0
MORE = (2, 3, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)


def in_session(repo):
    with repo.session("main") as session:
        session.put("in", b"session")
        session.commit("work")


def table_in_session(repo):
    with repo.session("main") as session:
        rows = [{"supervoxel_id": 1, "root_id": 1, "run_id": "r"}]
        tables.overwrite(session.workspace("tables/agglomeration/"), "agglomeration", rows)
        volume = create_volume(session.workspace("volumes/em/"), SPEC)
        volume.write(volume.box, np.ones(SPEC.shape_zyx, np.uint8))
        session.commit("work")


OPERATIONS = {
    "put": lambda repo: repo.put("main", "new", b"1"),
    "delete": lambda repo: repo.delete("main", ["a"]),
    "commit": lambda repo: repo.commit("main", "c"),
    "merge": lambda repo: repo.merge("side", "clean", "m"),
    "revert": lambda repo: repo.revert("clean", "clean"),
    "tag": lambda repo: repo.create_tag("t", "main"),
    "branch": lambda repo: repo.create_branch("b", "main"),
    "session": in_session,
    "table and volume in a session": table_in_session,
}


@pytest.fixture
def repo(lakefs_mortal):
    made = lake.create(lakefs_mortal.state.location("lost"))
    made.put("main", "a", b"1")
    made.commit("main", "one")
    made.create_branch("side", "main")
    made.put("side", "b", b"2")
    made.commit("side", "two")
    made.create_branch("clean", "main")
    made.put("clean", "c", b"3")
    made.commit("clean", "three")
    yield made
    made.close()


def lose_at(repo, monkeypatch, request_number, kill):
    """Kill the server right before the n-th request from now on."""
    numbers = count(1)
    real = repo._wire._attempt

    def attempt(*arguments, **options):
        if next(numbers) == request_number:
            kill()
        return real(*arguments, **options)

    monkeypatch.setattr(repo._wire, "_attempt", attempt)


def seen(repo):
    """Read what is committed and pending on every branch, and the tags; what sessions are made of is left out."""
    branches = [name for name in repo.branches() if not name.startswith("session-")]
    tags = [name for name in repo.tags() if not name.startswith("lock.")]
    return {name: (content(repo, f"{name}@"), content(repo, name)) for name in branches}, tags


@pytest.mark.parametrize("request_number", [1, 4, *(pytest.param(n, marks=pytest.mark.soak) for n in MORE)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_server_lost_at_any_request_is_told_soon_and_the_same_process_goes_on(
    lakefs_mortal, repo, monkeypatch, name, request_number
):
    if name == "commit":
        repo.put("main", "staged", b"4")
    before = seen(repo)
    began = []

    def kill():
        lakefs_mortal.kill()
        began.append(time.monotonic())

    with monkeypatch.context() as patch:
        lose_at(repo, patch, request_number, kill)
        try:
            OPERATIONS[name](repo)
        except ServerUnreachable as error:
            told, took = error, time.monotonic() - began[0]
        else:
            assert not began, "it went through although the server was gone"
            pytest.skip(f"{name} takes fewer than {request_number} requests")
    assert took < WITHIN_S, told
    assert f"127.0.0.1:{lakefs_mortal.state.port}" in told.message
    assert "server" in told.fix
    lakefs_mortal.restart()
    check_whole(repo)
    if seen(repo) == before:
        OPERATIONS[name](repo)
    else:
        assert "it had landed" in told.message
    assert seen(repo) != before
    check_whole(repo)
    assert [tag for tag in repo.tags() if tag.startswith("lock.")] == []
