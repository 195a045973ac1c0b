"""The folder as a whole: opening, creating, views, full disks, wrong file systems, many writers."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import lake
from lake.clone import clone
from lake.engines.embedded import mounts
from lake.engines.embedded.scratch import Scratch
from lake.errors import (
    AlreadyExists,
    BadInput,
    CorruptObject,
    FormatTooNew,
    LakeError,
    NotFound,
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


@pytest.mark.parametrize("address", ["s3://bucket/lab", "file:///lab", "LAKEFS://127.0.0.1:8000/lab"])
def test_an_address_of_another_kind_is_refused_and_no_folder_gets_its_name(address, repo, tmp_path, monkeypatch):
    # A clone into `s3://bucket/lab` used to end well, in a folder `s3:` under the present one.
    monkeypatch.chdir(tmp_path)
    for use in (lake.open, lake.create, partial(clone, repo)):
        with pytest.raises(BadInput, match=address):
            use(address)
    assert os.listdir(tmp_path) == ["repo"]


def test_a_repository_of_a_newer_version_is_refused_and_left_alone(repo):
    repo.close()
    marker = repo.root / "emlake.json"
    marker.write_text(json.dumps({"engine": "embedded", "format": 2}))
    with pytest.raises(FormatTooNew, match="format 2"):
        lake.open(repo.location)


def test_a_damaged_or_incomplete_repository_is_reported_as_that_and_not_as_absent(repo):
    repo.close()
    (repo.root / "emlake.json").write_text("{")
    with pytest.raises(CorruptObject, match=r"emlake\.json cannot be read"):
        lake.open(repo.location)
    for text in (
        "[]",
        "null",
        '{"format": 1}',
        '{"engine": "other", "format": 1}',
        '{"engine": "embedded", "format": 0}',
    ):
        (repo.root / "emlake.json").write_text(text)
        with pytest.raises(CorruptObject, match="not one of ours"):
            lake.open(repo.location)
    (repo.root / "emlake.json").unlink()
    with pytest.raises(CorruptObject, match=r"emlake\.json is missing"):
        lake.open(repo.location)
    (repo.root / "emlake.json").write_text('{"engine": "embedded", "format": 1}')
    (repo.root / "refs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="database"):
        lake.open(repo.location)
    (repo.root / "refs.sqlite").unlink()
    with pytest.raises(CorruptObject, match=r"refs\.sqlite is missing"):
        lake.open(repo.location)


def test_a_damaged_marker_is_mended_as_the_advice_says(repo):
    repo.close()
    (repo.root / "emlake.json").write_text("{")
    with pytest.raises(CorruptObject) as told:
        lake.open(repo.location)
    line = re.search(r"`(\{.*\})`", told.value.fix)
    (repo.root / "emlake.json").write_text(line[1])
    lake.open(repo.location).close()


def test_a_folder_cannot_be_made_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for below in ("file/repo", "file/deeper/repo"):
        with pytest.raises(BadInput, match="is a file"):
            lake.create(tmp_path / below)


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


def test_a_folder_says_what_its_file_system_can_do(repo, monkeypatch):
    found = {what: (state, detail) for what, state, detail in repo.examine()}
    assert found["hard links"][0] == "ok"
    assert found["shared extents"][0] in {"ok", "none"}
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    assert ("hard links", "refused") in [finding[:2] for finding in repo.examine()]


def test_what_is_staged_is_counted_by_branch_whoever_has_the_bytes_already(repo):
    # Contents without a commit were counted: a key whose bytes some commit held, and a deletion, were none.
    assert ("staged objects", "ok", "none") in repo.examine()
    repo.put("main", "a", b"1")
    repo.commit("main", "a")
    for name in ("one", "two"):
        repo.create_branch(name, "main")
    repo.put("one", "again", b"1")
    repo.put("one", "b", b"2")
    repo.delete("two", ["a"])
    assert ("staged objects", "ok", "not committed yet: 2 on one, 1 on two") in repo.examine()


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


# -- file size limits -------------------------------------------------------------------------------------------------
LIMITED = """
import resource, signal, sys, lake
from lake.errors import NoRoom
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
repo = lake.open(sys.argv[1])
folder = repo.workspace('main', 'v/').path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    {action}
except NoRoom as error:
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
def test_a_file_size_limit_is_named_and_changes_nothing(repo, tmp_path, action, limit):
    (tmp_path / "large").write_bytes(b"y" * 300_000)
    repo.put("main", "first", b"1")
    repo.commit("main", "first")
    (repo.workspace("main", "v/").path / "small").write_bytes(b"s" * 20_000)
    before = (repo.branches(), content(repo, "main"), list(repo.uncommitted("main")))
    command = python(LIMITED.format(action=action), repo.root, limit, tmp_path / "large")
    said = run(command).told
    assert any("ulimit -f" in line and f"files of {limit:,} bytes" in line for line in said), said
    assert (repo.branches(), content(repo, "main"), list(repo.uncommitted("main"))) == before
    check_whole(repo)


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
