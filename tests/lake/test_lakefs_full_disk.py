"""A server whose own disk is full says so; with room again it has all that it acknowledged, and goes on."""

import os
from itertools import count

import numpy as np
import polars as pl
import pytest

import lake
from lake.engines.lakefs.failures import from_status
from lake.engines.lakefs.local_store import place_of
from lake.errors import NoRoom, ServerUnreachable, StorageError
from lake.kv import storage_error
from lake.tables import append
from lake.testing.crash import check_whole, content
from lake.testing.server import MortalServer, program
from lake.volumes import VolumeSpec, create_volume

SPEC = VolumeSpec("em", "image", "uint8", (32, 64, 64), (1, 1, 1), chunk_zyx=(32, 64, 64))


@pytest.fixture
def cramped(small_disk, monkeypatch):
    """Give (a server on a small disk, a repository on it)."""
    server = MortalServer(small_disk.root / "home", program())
    for name, value in server.state.environment().items():
        monkeypatch.setenv(name, value)
    repo = lake.create(server.state.location("cramped"))
    yield server, repo
    repo.close()
    small_disk.leave(None)
    server.stop()


def work(repo, made, data):
    """One round of everything that writes; notes in `made` what was acknowledged."""
    number = len(made)
    repo.put("main", f"k{number}", data)
    repo.commit("main", f"main {number}")
    name = f"side{number}"
    repo.create_branch(name, "main")
    repo.put(name, f"s{number}", b"s")
    repo.commit(name, name)
    repo.merge(name, "main", f"merge {number}")
    repo.create_tag(f"t{number}", "main")
    made.append(repo.resolve("main"))


def work_without_end(repo, made):
    for _ in count():
        work(repo, made, os.urandom(30_000))


@pytest.mark.lakefs
@pytest.mark.slow
@pytest.mark.parametrize(
    "room", [200_000, *(pytest.param(room, marks=pytest.mark.soak) for room in (0, 4096, 30_000, 1_000_000, 9_000_000))]
)
def test_wherever_the_servers_room_ends_it_has_all_that_it_acknowledged(room, small_disk, cramped):
    server, repo = cramped
    made = []
    work(repo, made, b"0")
    small_disk.leave(room)
    # lakeFS keeps its refs in files that are mapped into memory: where these cannot grow it may die.
    with pytest.raises((NoRoom, ServerUnreachable)):
        work_without_end(repo, made)
    small_disk.leave(None)
    server.kill()
    server.restart()
    check_whole(repo)
    assert set(made) <= {commit.id for commit in repo.log("main")}
    assert {name: repo.resolve(name) for name in repo.tags()}.items() >= {
        f"t{n}": c for n, c in enumerate(made)
    }.items()
    repo.reset("main")
    work(repo, [*made, *made], b"again")
    check_whole(repo)


@pytest.mark.lakefs
@pytest.mark.slow
def test_what_does_not_fit_on_the_server_is_told_with_its_size_and_changes_nothing(small_disk, cramped):
    _, repo = cramped
    repo.put("main", "a", b"1")
    head = repo.commit("main", "one")
    small_disk.leave(64 << 10)
    with pytest.raises(NoRoom, match="about 3,000,000 bytes are needed") as caught:
        repo.put("main", "big", os.urandom(3_000_000))
    fix = caught.value.fix
    assert "server's disk" in fix
    assert caught.value.exit_code == 6
    with repo.session("main") as session:
        volume = create_volume(session.workspace("volumes/em/"), SPEC)
        with pytest.raises(
            NoRoom, match=r"volumes/em: the server has no room \(about 131,072 bytes are needed"
        ) as caught:
            volume.write(volume.box, np.random.default_rng(0).integers(0, 255, SPEC.shape_zyx, np.uint8))
        assert (caught.value.needed, caught.value.fix) == (131_072, fix)
    assert repo.resolve("main") == head
    assert content(repo, "main") == {"a": b"1"}
    small_disk.leave(None)
    repo.put("main", "big", bytes(3_000_000))
    repo.commit("main", "two")
    check_whole(repo)


@pytest.mark.lakefs
@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 40_000])
def test_a_table_that_does_not_fit_on_the_server_is_told_and_written_when_there_is_room(room, small_disk, cramped):
    _, repo = cramped
    head = repo.resolve("main")
    ids = np.random.default_rng(0).integers(0, 1 << 62, 20_000)
    rows = pl.DataFrame({"supervoxel_id": ids, "root_id": ids + 1, "run_id": "r"})
    with repo.session("main") as session:
        small_disk.leave(room)
        with pytest.raises(NoRoom, match="tables/agglomeration: the server has no room") as caught:
            append(session.workspace("tables/agglomeration/"), "agglomeration", rows)
        assert "repeat the command" in caught.value.fix
        assert caught.value.needed > 100_000
        small_disk.leave(None)
        append(session.workspace("tables/agglomeration/"), "agglomeration", rows)
        session.commit("a table")
    assert repo.log("main", limit=1).__next__().parents == (head,)
    assert repo.snapshot("main").table("agglomeration").collect().height == 20_000


@pytest.mark.lakefs
def test_what_the_gateway_cannot_do_for_another_reason_is_no_lack_of_room(lakefs_repo):
    location = lakefs_repo.workspace("main", "volumes/em/")
    folder = place_of(lakefs_repo.put("main", "a", b"1").address)[0] / "data"
    stored = {path for path in folder.rglob("*") if path.is_file()}
    told = storage_error(ValueError("ABORTED: InternalError: [http_response_code='500']"), location, 300_000)
    assert (type(told), told.kind) == (StorageError, "storage")
    assert lakefs_repo.branches().keys() == {"main"}
    assert {path for path in folder.rglob("*") if path.is_file()} == stored


def test_a_full_disk_of_the_server_is_told_from_its_other_troubles():
    quota = from_status(500, "write /x: disk quota exceeded", "put 'a'")
    assert isinstance(quota, NoRoom)
    assert isinstance(from_status(400, "commit: write /x: no space left on device", "commit"), NoRoom)
    assert not isinstance(from_status(500, "hook failed", "merge"), NoRoom)
    assert not isinstance(from_status(404, "no space left on device", "get"), NoRoom)
