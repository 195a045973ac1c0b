"""Large objects go straight into the store of a server on this machine: the same object, or nothing at all."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import lake
from lake import server
from lake.engines.lakefs import address, local_store
from lake.engines.lakefs.unnamed import UNNAMED, sweep
from lake.engines.lakefs.uploads import LARGE
from lake.errors import CorruptObject, NoRoom, ProtectedBranch, RefNotFound, ServerUnreachable, StorageError
from lake.garbage import Share
from lake.testing.rot import flip
from lake.testing.server import program

pytestmark = pytest.mark.lakefs
DATA = hashlib.shake_256(b"large").digest(LARGE + 17)


@pytest.fixture
def near(lakefs_repo):
    """A repository that knows by now that its store is on this machine."""
    lakefs_repo.put("main", "first", DATA)
    assert isinstance(lakefs_repo._uploads._store, local_store.LocalStore)
    return lakefs_repo


def stored(repo) -> set[Path]:
    return {file for file in repo._uploads._store.root.glob("data/*/*") if file.is_file()}


def file_of(stat) -> Path:
    return Path(stat.address.removeprefix("local://"))


@pytest.mark.parametrize("size", [LARGE - 1, LARGE, LARGE + 1, (1 << 20) + 3, 5 << 20])
@pytest.mark.parametrize("as_file", [False, True])
def test_an_object_of_any_size_arrives_whole_and_is_described_as_the_server_does(near, tmp_path, size, as_file):
    data = hashlib.shake_256(b"%d" % size).digest(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    told = {"unit": "nm", "größe": "3 µm", "Run": "A", "run": "b"}
    stat = near.put("main", "a/ü b,c", source if as_file else data, content_type="image/tiff", metadata=told)
    assert stat == near.stat("main", "a/ü b,c")
    assert (stat.size, stat.content_type, dict(stat.metadata)) == (size, "image/tiff", told)
    assert stat.checksum == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert near.get("main", "a/ü b,c") == data == source.read_bytes()
    assert ("," in file_of(stat).name) == (size >= LARGE)
    near.commit("main", "it")
    assert near.get("main@", "a/ü b,c") == data


def test_by_whichever_road_the_same_bytes_are_the_same_object(lakefs_location):
    with closing(lake.create(lakefs_location)) as repo:
        over_rest = repo.put("main", "a", DATA)
        first = repo.commit("main", "one")
        placed = repo.put("main", "a", DATA)
        assert over_rest.identity == placed.identity
        assert over_rest.address != placed.address
        assert list(repo.uncommitted("main")) == []
        repo.put("main", "b", DATA)
        assert [change.key for change in repo.diff(first, repo.commit("main", "two"))] == ["b"]


def test_the_object_does_not_change_with_the_file_it_came_from(near, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(DATA)
    stat = near.put("main", "a", source)
    source.write_bytes(b"x" * len(DATA))
    assert near.get("main", "a") == DATA
    assert file_of(stat).stat().st_nlink == 1


def test_a_damaged_file_is_found_and_its_address_tells_when_the_bytes_came(near):
    stat = near.put("main", "a", DATA)
    assert abs(local_store.arrival(stat.address) - time.time()) < 600
    file = file_of(stat)
    file.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    with pytest.raises(CorruptObject):
        near.get("main", "a")


def test_where_it_may_not_be_put_nothing_is_left(near):
    near.create_branch("closed", "main")
    near.create_tag("r1", "main")
    near.protect("closed")
    before = stored(near)
    with pytest.raises(ProtectedBranch):
        near.put("closed", "a", DATA)
    for branch in ("mian", "r1", near.head("main"), "main~1", ""):
        with pytest.raises(RefNotFound):
            near.put(branch, "a", DATA)
    assert stored(near) == before


@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_that_changes_its_size_meanwhile_is_refused(near, tmp_path, monkeypatch, by):
    source = tmp_path / "source"
    source.write_bytes(DATA)
    monkeypatch.setattr(local_store, "point", lambda name: source.write_bytes(bytes(len(DATA) + by)))
    before = stored(near)
    with pytest.raises(StorageError, match="bytes arrived"):
        near.put("main", "a", source)
    assert stored(near) == before
    assert [entry.key for entry in near.list("main")] == ["first"]


# -- whose store it is ------------------------------------------------------------------------------------------------
def test_a_folder_in_which_the_object_is_not_found_is_not_the_servers(lakefs_repo):
    stat = lakefs_repo.put("main", "a", DATA[:100])
    find = lambda data: local_store.find(lakefs_repo._wire, stat, data)  # noqa: E731
    assert find(DATA[:100]) is not None
    assert find(DATA[1:101]) is None
    file = file_of(stat)
    file.write_bytes(DATA[:99])
    assert find(DATA[:100]) is None
    file.unlink()
    assert find(DATA[:100]) is None


def test_files_of_another_user_are_left_to_the_server(lakefs_repo):
    if os.geteuid() != 0:
        pytest.skip("giving a file away takes root")
    stat = lakefs_repo.put("main", "a", DATA)
    os.chown(file_of(stat), 12345, -1)
    assert local_store.find(lakefs_repo._wire, stat, DATA) is None


def test_a_server_that_is_not_on_this_machine_gets_all_over_rest(lakefs_repo, monkeypatch):
    monkeypatch.setattr(address, "_LOOPBACK", frozenset())
    for _ in range(2):
        assert "," not in file_of(lakefs_repo.put("main", "a", DATA)).name


def test_another_server_at_the_same_address_is_noticed(tmp_path, monkeypatch):
    homes = tmp_path / "one", tmp_path / "two"
    state = server.start(port=server.free_port(), home=homes[0], program=program())
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    try:
        with closing(lake.create(state.location("same"))) as repo:
            for _ in range(2):
                assert str(homes[0]) in repo.put("main", "a", DATA).address
            server.stop(home=homes[0])
            (homes[1] / "server").mkdir(parents=True)
            shutil.copy(homes[0] / "server" / "settings.json", homes[1] / "server")  # the same port and keys
            server.start(home=homes[1], program=program())
            lake.create(state.location("same")).close()
            placed = [repo.put("main", "a", DATA) for _ in range(3)]
            assert all(str(homes[1]) in stat.address for stat in placed)
            assert ["," in file_of(stat).name for stat in placed] == [False, True, True]
            assert repo.get("main", "a") == DATA
    finally:
        for home in homes:
            server.stop(home=home)


# -- what goes wrong half way -----------------------------------------------------------------------------------------
KILLED = """
import os, sys, lake
repo = lake.open(sys.argv[1])
repo.put("main", "first", os.urandom(300_000))
os.environ["EMLAKE_KILL_AT"] = sys.argv[2]
repo.put("main", "new", b"n" * 300_000)
"""


@pytest.mark.parametrize("where", ["put.place-given", "put.bytes-placed", "put.linked"])
def test_a_killed_client_leaves_all_or_nothing(lakefs_repo, where):
    asked = [sys.executable, "-c", KILLED, lakefs_repo.location, where]
    assert subprocess.run(asked, check=False, timeout=60).returncode == -signal.SIGKILL
    found = {entry.key for entry in lakefs_repo.list("main")}
    assert found == ({"first", "new"} if where == "put.linked" else {"first"})
    lakefs_repo.put("main", "new", b"n" * 300_000)
    assert lakefs_repo.get("main", "new") == b"n" * 300_000


@pytest.mark.slow
@pytest.mark.parametrize("where", ["put.place-given", "put.bytes-placed", "put.linked"])
def test_a_server_lost_half_way_is_told_and_nothing_half_is_seen(lakefs_mortal, monkeypatch, where):
    with closing(lake.create(lakefs_mortal.state.location("lost"))) as repo:
        repo.put("main", "first", DATA)
        repo.put("main", "second", DATA)
        with monkeypatch.context() as patch:
            patch.setattr(local_store, "point", lambda name: lakefs_mortal.kill() if name == where else None)
            if where == "put.linked":
                repo.put("main", "new", DATA)
            else:
                with pytest.raises(ServerUnreachable):
                    repo.put("main", "new", DATA)
        lakefs_mortal.restart()
        assert ("new" in {entry.key for entry in repo.list("main")}) == (where == "put.linked")
        repo.put("main", "new", DATA)
        assert repo.get("main", "new") == DATA


def test_a_lost_answer_is_asked_for_again_and_the_bytes_stay(near, monkeypatch):
    real, lost = near._wire._lane._receive, []

    def receive(connection):
        answer = real(connection)
        if not lost and b'"path"' in answer[0].data:
            lost.append(answer)
            raise ConnectionResetError("the answer was lost")
        return answer

    monkeypatch.setattr(near._wire._lane, "_receive", receive)
    stat = near.put("main", "a", DATA)
    assert len(lost) == 1
    assert "," in file_of(stat).name
    assert near.get("main", "a") == DATA


def test_a_full_disk_under_the_store_is_no_room_and_what_was_taken_goes_back(small_disk, monkeypatch):
    home = small_disk.root / "home"
    state = server.start(port=server.free_port(), home=home, program=program())
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    try:
        with closing(lake.create(state.location("full"))) as repo:
            repo.put("main", "first", DATA)
            before, data = stored(repo), os.urandom(64 << 20)
            small_disk.leave(32 << 20)
            with pytest.raises(NoRoom, match="bytes are needed") as caught:
                repo.put("main", "big", data)
            assert caught.value.needed > len(data)
            assert stored(repo) == before
            small_disk.leave(None)
            repo.put("main", "big", data)
            assert {entry.key for entry in repo.list("main")} == {"first", "big"}
            assert repo.get("main", "big") == data
    finally:
        server.stop(home=home)


# -- what was cut off -------------------------------------------------------------------------------------------------
def cut_off(repo):
    """Have a client killed between the bytes and their naming; give the file that it leaves in the store."""
    before = stored(repo)
    asked = [sys.executable, "-c", KILLED, repo.location, "put.bytes-placed"]
    assert subprocess.run(asked, check=False, timeout=60).returncode == -signal.SIGKILL
    (left,) = (path for path in stored(repo) - before if "," in path.name)
    return left


def aged(path, days=2):
    """Give a file of the store the name that it would have if it had been placed some days ago."""
    xid, _, signature = path.name.partition(",")
    number = int(xid, 32) - (days * 86_400 << 68)
    digits = "".join("0123456789abcdefghijklmnopqrstuv"[number >> 5 * place & 31] for place in reversed(range(20)))
    return path.rename(path.with_name(f"{digits},{signature}"))


def test_what_a_cut_off_upload_left_is_removed_when_nothing_can_name_it_any_more(near):
    near.put("main", "staged", DATA)
    left = cut_off(near)
    names = stored(near)
    assert near.collect_garbage().removed == {UNNAMED: Share()}, "the server may name it yet"
    old = aged(left)
    found = near.collect_garbage(dry_run=True)
    assert (found.removed, found.freed) == ({UNNAMED: Share(1, 300_000)}, 300_000)
    assert old.exists()
    assert near.collect_garbage() == replace(found, dry_run=False)
    assert stored(near) == names - {left}
    assert near.get("main", "staged") == DATA
    assert near.collect_garbage().removed == {UNNAMED: Share()}


def test_whatever_a_commit_or_a_branch_names_stays_however_old_it_is(near):
    kept = {file_of(near.put("main", "committed", DATA + b"1"))}
    near.commit("main", "first")
    kept.add(file_of(near.put("main", "committed", DATA + b"2")))
    near.commit("main", "second")
    near.create_branch("dropped", "main")
    kept.add(file_of(near.put("dropped", "on no branch any more", DATA + b"3")))
    dropped = near.commit("dropped", "third")
    near.delete_branch("dropped")
    kept.add(file_of(near.put("main", "staged", DATA + b"4")))
    # The same bytes put again: the server calls that no change, and points at the new file all the same.
    kept.add(file_of(near.put("main", "committed", DATA + b"2")))
    with near.session("main", owner="worker") as session:
        session.put("in a session", DATA + b"5")
        left = cut_off(near)
        found = sweep(near._wire, older_s=-1)
        assert found.removed == {UNNAMED: Share(1, 300_000)}
        assert not left.exists()
        assert all("," in path.name and path.exists() for path in kept)
        assert session.get("in a session") == DATA + b"5"
    assert near.get("main", "committed") == DATA + b"2"
    assert near.get(dropped, "on no branch any more") == DATA + b"3"
    assert near.get("main~1", "committed") == DATA + b"1"


def test_where_a_tree_is_damaged_nothing_is_removed(near):
    near.put("main", "a", DATA)
    near.commit("main", "first")
    left = aged(cut_off(near))
    folder = left.parents[2] / "_lakefs"
    for path in sorted(entry for entry in folder.iterdir() if len(entry.name) == 64):
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        with pytest.raises(CorruptObject, match="nothing was removed"):
            near.collect_garbage()
        path.unlink()
        with pytest.raises(CorruptObject, match=r"it is missing.*nothing was removed"):
            near.collect_garbage()
        path.write_bytes(whole)
    assert left.exists()
    assert near.collect_garbage().freed == 300_000


@pytest.mark.slow
def test_an_upload_that_never_reached_the_server_leaves_nothing(lakefs_mortal, monkeypatch):
    with closing(lake.create(lakefs_mortal.state.location("gone"))) as repo:
        repo.put("main", "first", DATA)
        repo.put("main", "second", DATA)
        before = stored(repo)

        def die(name):
            if name == "put.bytes-placed":
                lakefs_mortal.kill()
                repo._wire._lane.close()  # as after a while: a kept connection would leave it open what arrived

        with monkeypatch.context() as patch:
            patch.setattr(local_store, "point", die)
            with pytest.raises(ServerUnreachable):
                repo.put("main", "new", DATA)
        lakefs_mortal.restart()
        assert stored(repo) == before
