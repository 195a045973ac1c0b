"""The folder as a whole: opening, creating, views, full disks, wrong file systems, many writers."""

import json
import multiprocessing
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import lake
from lake.engines.embedded import incoming, mounts
from lake.engines.embedded.scratch import Scratch
from lake.errors import (
    AlreadyExists,
    ConflictError,
    CorruptObject,
    FormatTooNew,
    LakeError,
    NotFound,
    NothingToCommit,
    RefNotFound,
    RepositoryNotFound,
    StorageError,
    UnsupportedFileSystem,
)
from lake.testing.crash import check_whole, content, python, run


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


# -- opening and creating ----------------------------------------------------------------------------------------------
def test_a_folder_without_a_repository_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path, tmp_path / "file"):
        with pytest.raises(RepositoryNotFound, match=str(path)):
            lake.open(path)


def test_a_repository_of_a_newer_version_is_refused_and_left_alone(repo):
    repo.close()
    marker = repo.root / "emlake.json"
    marker.write_text(json.dumps({"engine": "embedded", "format": 2}))
    with pytest.raises(FormatTooNew, match="format 2"):
        lake.open(repo.location)


def test_a_damaged_or_incomplete_repository_is_reported(repo):
    repo.close()
    (repo.root / "emlake.json").write_text("{")
    with pytest.raises(RepositoryNotFound, match="cannot be read"):
        lake.open(repo.location)
    (repo.root / "emlake.json").write_text('{"format": 1}')
    (repo.root / "refs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="database"):
        lake.open(repo.location)
    (repo.root / "refs.sqlite").unlink()
    with pytest.raises(RepositoryNotFound, match="missing"):
        lake.open(repo.location)


def test_a_repository_is_not_made_over_anything(repo, tmp_path):
    with pytest.raises(AlreadyExists):
        lake.create(repo.location)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("mine")
    with pytest.raises(AlreadyExists, match="not an empty folder"):
        lake.create(tmp_path / "used")
    (tmp_path / "empty").mkdir()
    lake.create(tmp_path / "empty").close()
    assert sorted(os.listdir(tmp_path)) == ["empty", "repo", "used"]


def test_of_many_that_create_one_repository_one_wins(tmp_path):
    def create(_):
        try:
            lake.create(tmp_path / "r").close()
        except AlreadyExists:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(4))) == 1


def test_a_network_file_system_is_refused_by_name(tmp_path, monkeypatch):
    home = tmp_path.resolve()
    (tmp_path / "my share").mkdir()
    table = tmp_path / "mounts"
    monkeypatch.setattr(mounts, "MOUNTS", table)
    escaped = str(home / "my share").replace(" ", "\\040")
    for kind in ("nfs4", "cifs", "fuse.sshfs", "lustre"):
        table.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n")
        with pytest.raises(UnsupportedFileSystem, match=kind):
            lake.create(tmp_path / "my share" / "repo")
        assert not (tmp_path / "my share" / "repo").exists()
    table.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {escaped} nfs rw 0 0\n/dev/b {escaped} xfs rw 0 0\n")
    made = lake.create(tmp_path / "my share" / "repo")
    made.close()
    table.write_text(f"server:/x {escaped} nfs rw 0 0\n")
    with pytest.raises(UnsupportedFileSystem, match="nfs"):
        lake.open(made.root)


def test_a_file_that_cannot_be_read_is_named(repo, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFound, match=str(path)):
            repo.put("main", "k", path)
    assert list(repo.uncommitted("main")) == []


# -- views -------------------------------------------------------------------------------------------------------------
def test_a_view_is_made_once_and_shows_its_commit_for_ever(repo):
    repo.put("main", "t/a", b"1")
    repo.put("main", "t/b/c", b"2" * 100_000)
    first = repo.commit("main", "first")
    view = repo.location_of("main", "t/").path
    repo.put("main", "t/a", b"new")
    repo.commit("main", "second")
    assert repo.location_of(first, "t/").path == view
    assert (view / "a").read_bytes() == b"1"
    assert (view / "b/c").stat().st_mode & 0o222 == 0
    assert (repo.location_of("main", "t/").path / "a").read_bytes() == b"new"
    assert view.parts[-1] == "t"


def test_a_view_holds_nothing_but_its_prefix(repo):
    for key in ("t/a", "tt/a", "t", "u/x"):
        repo.put("main", key, b"1")
    repo.commit("main", "first")
    assert os.listdir(repo.location_of("main", "t/").path) == ["a"]
    assert os.listdir(repo.location_of("main", "none/").path) == []


def test_many_readers_that_ask_for_one_view_get_the_same_whole_one(repo):
    for number in range(40):
        repo.put("main", f"t/{number}", b"x")
    repo.commit("main", "first")
    handles = [lake.open(repo.location) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda n: handles[n % 4].location_of("main", "t/").path, range(16)))
    assert len(set(paths)) == 1
    assert len(os.listdir(paths[0])) == 40
    for handle in handles:
        handle.close()


# -- full disks --------------------------------------------------------------------------------------------------------
LIMITED = """
import resource, signal, sys, lake
from lake.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
repo = lake.open(sys.argv[1])
folder = repo.workspace('main', 'v/').path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    {action}
except StorageError as error:
    print(error.message, error.fix)
"""


@pytest.mark.parametrize(
    ("action", "limit"),
    [
        ("repo.put('main', 'k', b'x' * 300_000)", 200_000),
        ("repo.put('main', 'k', __import__('pathlib').Path(sys.argv[3]))", 200_000),
        ("repo.commit('main', 'pending')", 1_000),
    ],
)
def test_a_full_disk_says_how_much_room_is_needed_and_changes_nothing(repo, tmp_path, action, limit):
    (tmp_path / "large").write_bytes(b"y" * 300_000)
    repo.put("main", "first", b"1")
    repo.commit("main", "first")
    (repo.workspace("main", "v/").path / "small").write_bytes(b"s" * 20_000)
    before = (repo.branches(), content(repo, "main"), list(repo.uncommitted("main")))
    command = python(LIMITED.format(action=action), repo.root, limit, tmp_path / "large")
    said = run(command).told
    assert any("bytes are free" in line and "free at least" in line for line in said), said
    assert (repo.branches(), content(repo, "main"), list(repo.uncommitted("main"))) == before
    check_whole(repo)


def fill_up(repo, done):
    for number in range(10_000):
        repo.put("main", f"k/{number}", os.urandom(40_000))
        done.append(repo.commit("main", f"{number}"))


@pytest.mark.slow
def test_a_disk_that_fills_up_during_commits_keeps_every_commit_that_returned(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        repo = lake.create(disk / "repo")
        done = []
        with pytest.raises(StorageError, match="bytes are free"):
            fill_up(repo, done)
        assert len(done) > 10
        check_whole(repo)
        assert [commit.id for commit in repo.log("main")][:-1] == done[::-1]
        repo.close()
        repo = lake.open(disk / "repo")
        assert check_whole(repo)
        subprocess.run(["mount", "-o", "remount,size=12m", disk], check=True)
        repo.reset("main")
        repo.put("main", "after", b"room again")
        repo.commit("main", "after")
        repo.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# -- power cuts --------------------------------------------------------------------------------------------------------
def after_reboot(repo, monkeypatch, tmp_path):
    """Open the repository as if the machine had been started again."""
    repo.close()
    (tmp_path / "boot_id").write_text("another-boot\n")
    monkeypatch.setattr(incoming, "_BOOT_ID", tmp_path / "boot_id")
    return lake.open(repo.location)


def test_what_was_put_before_a_reboot_is_committed_if_its_bytes_are_sound(repo, monkeypatch, tmp_path):
    repo.put("main", "sound", b"s" * 1000)
    repo.put("main", "large", b"l" * 100_000)
    again = after_reboot(repo, monkeypatch, tmp_path)
    assert again.get("main", "sound") == b"s" * 1000
    assert (again.workspace("main", "").path / "large").stat().st_size == 100_000
    again.commit("main", "after the power cut")
    check_whole(again)
    again.close()


def test_what_a_power_cut_tore_is_not_committed_though_it_looks_right(repo, monkeypatch, tmp_path):
    repo.put("main", "torn", b"t" * 1000)
    (kept,) = [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]
    seal = kept.stat().st_mtime_ns
    kept.chmod(0o644)
    kept.write_bytes(b"\0" * 1000)  # a file system may leave the length and the time, and no bytes
    os.utime(kept, ns=(seal, seal))
    head = repo.resolve("main")
    again = after_reboot(repo, monkeypatch, tmp_path)
    for action in (lambda: again.commit("main", "no"), lambda: again.get("main", "torn")):
        with pytest.raises(CorruptObject, match="torn"):
            action()
    assert again.resolve("main") == head
    again.put("main", "torn", b"t" * 1000)
    again.commit("main", "put again")
    assert again.get("main", "torn") == b"t" * 1000
    again.close()


def test_what_nobody_stages_any_more_is_swept_on_opening(repo):
    for key in ("a", "b", "c"):
        repo.put("main", key, key.encode())
    repo.put("main", "a", b"over it")
    repo.create_branch("side", "main")
    repo.put("side", "x", b"side")
    repo.delete_branch("side")
    assert len([path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]) == 5
    lake.open(repo.location).close()
    assert len([path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]) == 3
    repo.commit("main", "first")
    assert content(repo, "main") == {"a": b"over it", "b": b"b", "c": b"c"}
    assert not [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]


def test_a_damaged_staged_object_is_not_committed(repo):
    repo.put("main", "k", b"x" * 1000)
    (kept,) = [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]
    kept.chmod(0o644)
    kept.write_bytes(b"y" * 1000)
    with pytest.raises(CorruptObject, match="k"):
        repo.commit("main", "no")


# -- many at once ------------------------------------------------------------------------------------------------------
def test_writers_and_committers_at_once_lose_nothing(repo):
    done = threading.Event()

    def write(worker):
        handle = lake.open(repo.location)
        for number in range(15):
            handle.put("main", f"{worker}/{number}", b"%d" % number)
        handle.close()

    def commit():
        while not done.is_set():
            try:
                repo.commit("main", "whatever is there")
            except NothingToCommit:
                done.wait(0.001)

    committer = threading.Thread(target=commit)
    committer.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    done.set()
    committer.join()
    repo.commit("main", "the rest", allow_empty=True)
    assert content(repo, "main@") == {f"{w}/{n}": b"%d" % n for w in range(4) for n in range(15)}


def merge_many(root, worker, count):
    repo = lake.open(root)
    for number in range(count):
        branch = f"b{worker}-{number}"
        repo.create_branch(branch, "main")
        folder = repo.workspace(branch, f"w{worker}/").path
        (folder / f"{number}").write_bytes(b"%d" % number)
        repo.commit(branch, branch)
        repo.merge(branch, "main", branch)
        repo.delete_branch(branch)
    repo.close()


def test_processes_that_merge_into_one_branch_all_land(repo):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=merge_many, args=(repo.root, worker, 4)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert content(repo, "main") == {f"w{w}/{n}": b"%d" % n for w in range(3) for n in range(4)}
    assert os.listdir(repo.root / "workspaces") == []
    check_whole(repo)


def test_readers_see_whole_commits_while_a_branch_moves(repo):
    for key in ("a", "b"):
        repo.put("main", key, b"0")
    repo.commit("main", "0")
    stop = threading.Event()
    torn = []

    def read():
        handle = lake.open(repo.location)
        while not stop.is_set():
            head = handle.resolve("main")
            if handle.get(head, "a") != handle.get(head, "b"):
                torn.append(head)
        handle.close()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 15):
        for key in ("a", "b"):
            repo.put("main", key, b"%d" % number)
        repo.commit("main", f"{number}")
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn


def test_a_handle_works_on_both_sides_of_a_fork(repo):
    repo.put("main", "before", b"1")
    child = multiprocessing.get_context("fork").Process(target=lambda: (repo.put("main", "child", b"2"), repo.close()))
    child.start()
    repo.put("main", "parent", b"3")
    child.join()
    assert child.exitcode == 0
    assert sorted(item.key for item in repo.list("main")) == ["before", "child", "parent"]


def test_a_branch_deleted_under_a_writer_is_reported(repo):
    repo.create_branch("side", "main")
    other = lake.open(repo.location)
    other.delete_branch("side")
    for action in (lambda: repo.put("side", "k", b"1"), lambda: repo.commit("side", "no")):
        with pytest.raises(RefNotFound, match="side"):
            action()
    other.close()


def test_an_expected_head_that_moved_is_a_conflict(repo):
    head = repo.resolve("main")
    repo.create_branch("side", "main")
    repo.put("side", "k", b"1")
    repo.commit("side", "side")
    repo.put("main", "other", b"1")
    moved = repo.commit("main", "moved")
    with pytest.raises(ConflictError, match=moved):
        repo.merge("side", "main", "no", expect_head=head)


# -- temporary files ---------------------------------------------------------------------------------------------------
def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path):
    living, dead = Scratch(tmp_path), Scratch(tmp_path)
    living.new().write_bytes(b"mine")
    dead.new().write_bytes(b"left")
    os.close(dead._fd)  # what the kernel does when a process dies
    assert Scratch(tmp_path).sweep() == 1
    assert not dead._folder.exists()
    assert living._folder.exists()
    living.close()
    assert os.listdir(tmp_path) == [".sweep"]


def test_only_errors_of_the_tree_come_out_of_a_broken_folder(repo):
    repo.put("main", "k", b"1")
    repo.commit("main", "first")
    os.rename(repo.root / "objects", repo.root / "away")
    for action in (
        lambda: repo.put("main", "new", b"2"),
        lambda: repo.get("main", "k"),
        lambda: repo.location_of("main", ""),
        lambda: repo.workspace("main", "k/"),
    ):
        try:
            action()
        except LakeError:
            continue
        except Exception as error:  # pragma: no cover - the test's failure
            pytest.fail(f"{type(error)} came out")
