"""Writable folders: what a commit notices, what it leaves alone, what it refuses."""

import errno
import os
import stat
import time

import pytest

import lake
from lake.engines.embedded import files as files_module
from lake.engines.embedded import store as store_module
from lake.engines.embedded.folders import is_leftover
from lake.errors import (
    BadInput,
    ConflictError,
    CorruptObject,
    DirtyBranch,
    InvalidName,
    NothingToCommit,
    ProtectedBranch,
    UnrepresentableKey,
)
from lake.repository import Change
from lake.testing.trees import save

BIG = os.urandom(100_000)


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


@pytest.fixture
def folder(repo):
    """A workspace of `main` with a small and a large file, both committed."""
    repo.put("main", "v/small", b"small")
    repo.put("main", "v/big", BIG)
    repo.commit("main", "first")
    return repo.workspace("main", "v/").path


def pending(repo, branch="main"):
    return [(change.key, change.kind) for change in repo.uncommitted(branch)]


def stored(repo, key, ref="main@"):
    """The path of the stored object."""
    return repo.stat(ref, key).address


def test_new_changed_and_removed_files_are_noticed(repo, folder):
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/new").write_bytes(b"n")
    (folder / "small").write_bytes(b"SMALL")
    (folder / "big").unlink()
    assert pending(repo) == [("v/big", "removed"), ("v/deep/er/new", "added"), ("v/small", "changed")]
    head = repo.commit("main", "second")
    assert pending(repo) == []
    assert list(repo.diff("main~1", head)) == [
        Change("v/big", "removed"),
        Change("v/deep/er/new", "added"),
        Change("v/small", "changed"),
    ]
    assert repo.get("main~1", "v/small") == b"small"


def test_an_untouched_workspace_costs_no_hashing(repo, folder, monkeypatch):
    def never(path):
        raise AssertionError(path)

    monkeypatch.setattr("lake.engines.embedded.workspaces.hash_file", never)
    monkeypatch.setattr(store_module, "hash_file", never)
    assert pending(repo) == []
    with pytest.raises(NothingToCommit):
        repo.commit("main", "nothing")


def test_a_touched_file_is_no_change_and_is_known_again_after_the_next_commit(repo, folder, monkeypatch):
    (folder / "small").touch()
    assert pending(repo) == []
    (folder / "new").write_bytes(b"n")
    repo.commit("main", "second")
    monkeypatch.setattr("lake.engines.embedded.workspaces.hash_file", None)
    assert pending(repo) == []


def test_a_file_rewritten_with_the_same_size_is_noticed(repo, folder):
    (folder / "small").write_bytes(b"SMALL")
    assert pending(repo) == [("v/small", "changed")]


def test_small_files_are_copies_and_large_ones_links_in_both_directions(repo, folder):
    # Where the file system shares extents, a large file is a copy too.
    assert os.stat(folder / "small").st_ino != os.stat(stored(repo, "v/small")).st_ino
    shared = os.stat(folder / "big").st_ino == os.stat(stored(repo, "v/big")).st_ino
    assert shared == (os.stat(stored(repo, "v/big")).st_nlink > 1)
    (folder / "tiny").write_bytes(b"t")
    (folder / "huge").write_bytes(BIG + b"h")
    inode = os.stat(folder / "huge").st_ino
    repo.commit("main", "second")
    assert os.stat(stored(repo, "v/huge")).st_ino == inode
    assert os.stat(stored(repo, "v/tiny")).st_ino != os.stat(folder / "tiny").st_ino
    for key in ("v/tiny", "v/huge"):
        assert stat.S_IMODE(os.stat(stored(repo, key)).st_mode) == 0o444


def test_writing_into_a_small_committed_file_harms_no_commit(repo, folder):
    for text in (b"1", b"22", b"333"):
        with open(folder / "small", "r+b") as file:
            file.write(text)
            file.truncate()
        repo.commit("main", text.decode())
    assert [repo.get(f"main~{n}", "v/small") for n in range(4)] == [b"333", b"22", b"1", b"small"]


def test_writing_into_a_stored_object_is_refused_by_name(repo, folder):
    path = stored(repo, "v/big")
    os.chmod(path, 0o644)  # as root, no mode would stop a program
    with open(path, "r+b") as file:
        file.write(b"damage")
    with pytest.raises(CorruptObject, match=os.path.basename(path)):
        repo.get("main", "v/big")
    with pytest.raises(CorruptObject, match=os.path.basename(path)):
        repo.location_of("main", "v/")
    if os.stat(folder / "big").st_nlink > 1:
        head = repo.resolve("main")
        for action in (lambda: repo.commit("main", "no"), lambda: list(repo.uncommitted("main"))):
            with pytest.raises(CorruptObject, match="v/big, written in place"):
                action()
        assert repo.resolve("main") == head
    repo.create_branch("side", "main")
    repo.put("side", "elsewhere", BIG)
    repo.commit("side", "heal")
    assert repo.get("main", "v/big") == BIG, "the same bytes put and committed heal it"


def test_an_object_whose_time_alone_changed_is_sound(repo, folder):
    os.utime(stored(repo, "v/big"))
    assert pending(repo) == []
    assert (repo.location_of("main", "v/").path / "big").read_bytes() == BIG


def test_a_missing_object_is_named(repo, folder):
    path = stored(repo, "v/small")
    os.unlink(path)
    for action in (lambda: repo.get("main", "v/small"), lambda: repo.location_of("main", "v/")):
        with pytest.raises(CorruptObject, match="missing"):
            action()


def test_prefixes_inside_each_other_are_the_same_files(repo):
    inner = repo.workspace("main", "tables/a/").path
    (inner / "x").write_bytes(b"x")
    outer = repo.workspace("main", "tables/").path
    assert outer / "a" == inner
    assert (outer / "a/x").read_bytes() == b"x"
    (outer / "b").write_bytes(b"b")
    assert repo.workspace("main", "tables/a/").path == inner
    repo.commit("main", "both")
    assert [item.key for item in repo.list("main")] == ["tables/a/x", "tables/b"]


def test_opening_an_outer_prefix_brings_in_the_rest_only(repo):
    for key in ("t/a/1", "t/b/1", "t/c"):
        repo.put("main", key, key.encode())
    repo.commit("main", "first")
    inner = repo.workspace("main", "t/a/").path
    (inner / "1").write_bytes(b"mine")
    outer = repo.workspace("main", "t/").path
    assert (outer / "a/1").read_bytes() == b"mine"
    assert (outer / "b/1").read_bytes() == b"t/b/1"
    assert pending(repo) == [("t/a/1", "changed")]


def test_the_whole_branch_can_be_a_workspace(repo, folder):
    everything = repo.workspace("main", "").path
    assert (everything / "v/small").read_bytes() == b"small"
    (everything / "top").write_bytes(b"t")
    assert pending(repo) == [("top", "added")]


def test_a_workspace_is_found_again_by_another_process(repo, folder):
    (folder / "small").write_bytes(b"kept")
    repo.close()
    again = lake.open(repo.location)
    assert again.workspace("main", "v/").path == folder
    assert pending(again) == [("v/small", "changed")]
    again.close()


def test_what_libraries_leave_when_they_die_is_not_committed(repo, folder):
    for name in ("0_0.__lock", "part-0.parquet#1", "_delta_log/00.json#2", "_delta_log/_commit_9f.json.tmp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    (folder / "tile#1").write_bytes(b"data")
    (folder / "_commit_notes.txt").write_bytes(b"data")
    assert pending(repo) == [("v/_commit_notes.txt", "added"), ("v/tile#1", "added")]


def test_a_leftover_that_was_put_on_purpose_is_an_object_like_any_other(repo):
    repo.put("main", "v/a.__lock", b"1")
    repo.commit("main", "first")
    folder = repo.workspace("main", "v/").path
    (folder / "a.__lock").write_bytes(b"22")
    assert is_leftover("v/a.__lock")
    assert pending(repo) == [("v/a.__lock", "changed")]


def test_a_key_both_put_and_written_is_a_conflict_and_commits_nothing(repo, folder):
    head = repo.resolve("main")
    (folder / "small").write_bytes(b"written")
    repo.put("main", "v/small", b"put")
    with pytest.raises(ConflictError, match="v/small") as caught:
        repo.commit("main", "no")
    assert caught.value.keys == ("v/small",)
    assert repo.resolve("main") == head
    assert len(pending(repo)) == 1
    repo.reset("main")
    assert (folder / "small").read_bytes() == b"small"


def test_a_key_put_and_removed_in_the_workspace_is_a_conflict(repo, folder):
    (folder / "small").unlink()
    repo.put("main", "v/small", b"put")
    with pytest.raises(ConflictError, match="v/small"):
        repo.commit("main", "no")


def test_what_was_put_before_is_in_the_workspace_and_can_be_written_over_only_after_a_commit(repo, folder):
    repo.put("main", "w/a", b"1")
    repo.delete("main", ["v/small"])
    other = repo.workspace("main", "w/").path
    assert (other / "a").read_bytes() == b"1"
    repo.workspace("main", "v/")
    assert not (folder / "small").exists()
    assert pending(repo) == [("v/small", "removed"), ("w/a", "added")]
    (other / "a").write_bytes(b"22")
    with pytest.raises(ConflictError, match="w/a"):
        repo.commit("main", "no")
    (other / "a").write_bytes(b"1")
    repo.commit("main", "second")
    (other / "a").write_bytes(b"22")
    repo.commit("main", "third")
    assert repo.get("main", "w/a") == b"22"


def test_a_put_after_opening_is_committed_and_shows_in_the_folder(repo, folder):
    repo.put("main", "v/late", b"late")
    repo.delete("main", ["v/big"])
    repo.commit("main", "second")
    assert [item.key for item in repo.list("main")] == ["v/late", "v/small"]
    assert sorted(os.listdir(folder)) == ["late", "small"]
    assert pending(repo) == []


def test_a_merge_shows_in_the_folder_when_it_is_asked_for_again(repo, folder):
    repo.create_branch("side", "main")
    side = repo.workspace("side", "v/").path
    (side / "small").write_bytes(b"theirs")
    (side / "big").unlink()
    (side / "sub").mkdir()
    (side / "sub/new").write_bytes(b"n")
    repo.commit("side", "side")
    repo.merge("side", "main", "joined")
    assert pending(repo) == []
    assert repo.workspace("main", "v/").path == folder
    assert (folder / "small").read_bytes() == b"theirs"
    assert sorted(os.listdir(folder)) == ["small", "sub"]
    repo.revert("main", "main", parent=1)
    assert pending(repo) == []
    (folder / "other").write_bytes(b"o")
    repo.commit("main", "after the revert, without asking again")
    assert repo.get("main", "v/small") == b"small"
    assert sorted(os.listdir(folder)) == ["big", "other", "small"]


def test_a_branch_with_written_files_is_dirty(repo, folder):
    repo.create_branch("side", "main")
    repo.put("side", "x", b"x")
    repo.commit("side", "side")
    (folder / "small").write_bytes(b"mine")
    with pytest.raises(DirtyBranch, match="v/small"):
        repo.merge("side", "main", "no")
    with pytest.raises(DirtyBranch, match="v/small"):
        repo.revert("main", "main")


def test_reset_gives_the_files_back(repo, folder):
    (folder / "small").write_bytes(b"mine")
    (folder / "big").unlink()
    (folder / "new").mkdir()
    (folder / "new/file").write_bytes(b"n")
    repo.put("main", "v/put", b"p")
    repo.workspace("main", "v/")
    repo.reset("main")
    assert pending(repo) == []
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == {"small": b"small", "big": BIG}


def test_a_branch_of_the_same_name_starts_with_an_empty_desk(repo, folder):
    repo.create_branch("side", "main")
    first = repo.workspace("side", "v/").path
    (first / "small").write_bytes(b"gone with the branch")
    repo.delete_branch("side")
    assert not first.exists()
    repo.create_branch("side", "main")
    assert repo.workspace("side", "v/").path != first
    assert pending(repo, "side") == []


def test_keys_that_no_folder_holds_are_refused_and_nothing_is_linked(repo):
    for keys in (["p/a", "p/a/b"], ["p/a/"], ["p/../x"], ["p/a//b"], ["p/./a"], ["p/" + "n" * 256], ["p/n\0"]):
        repo.create_branch("b", "main")
        for key in keys:
            repo.put("b", key, b"1")
        repo.commit("b", "odd")
        with pytest.raises(UnrepresentableKey):
            repo.workspace("b", "p/")
        with pytest.raises(UnrepresentableKey):
            repo.location_of("b", "p/")
        assert [item.key for item in repo.list("b")] == sorted(keys)
        repo.workspace("b", "other/")
        repo.delete_branch("b")


def test_a_prefix_must_name_a_folder(repo):
    for prefix in ("a", "a/b"):
        with pytest.raises(BadInput, match="does not end"):
            repo.workspace("main", prefix)
    for prefix in ("/", "a//", "../", "a/./"):
        with pytest.raises(UnrepresentableKey):
            repo.location_of("main", prefix)


def test_links_and_names_that_are_no_text_are_refused(repo, folder):
    (folder / "link").symlink_to("small")
    with pytest.raises(BadInput, match="link"):
        repo.commit("main", "no")
    (folder / "link").unlink()
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"1")
    with pytest.raises(InvalidName, match="UTF-8"):
        repo.commit("main", "no")


def test_a_protected_branch_gives_no_workspace_and_commits_none(repo, folder):
    (folder / "small").write_bytes(b"mine")
    repo.protect("main")
    with pytest.raises(ProtectedBranch):
        repo.workspace("main", "v/")
    with pytest.raises(ProtectedBranch):
        repo.commit("main", "no")


def test_a_file_written_during_the_commit_is_a_conflict(repo, folder, monkeypatch):
    (folder / "grows").write_bytes(BIG)
    real = store_module.hash_file

    def slow(path):
        digest = real(path)
        with open(path, "ab") as file:
            file.write(b"more")
        return digest

    monkeypatch.setattr(store_module, "hash_file", slow)
    with pytest.raises(ConflictError, match="grows"):
        repo.commit("main", "no")
    assert not os.listdir(
        repo.root / "tmp" / next(n for n in os.listdir(repo.root / "tmp") if "-" in n and "." not in n)
    )


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_where_links_are_refused_bytes_are_copied(repo, folder, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    (folder / "huge").write_bytes(BIG + b"h")
    monkeypatch.setattr(os, "link", refuse)
    repo.commit("main", "second")
    assert repo.get("main", "v/huge") == BIG + b"h"
    view = repo.location_of("main", "v/").path
    assert (view / "huge").read_bytes() == BIG + b"h"
    repo.create_branch("side", "main")
    assert (repo.workspace("side", "v/").path / "big").read_bytes() == BIG
    assert pending(repo, "side") == []


def test_an_object_with_as_many_links_as_the_file_system_allows_gets_a_second_copy(repo, monkeypatch):
    real = os.link

    def limited(source, target):
        if os.stat(source).st_nlink >= 4:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        real(source, target)

    monkeypatch.setattr(os, "link", limited)
    for number in range(10):
        repo.put("main", f"v/{number}", BIG)
    repo.commit("main", "tens")
    view = repo.location_of("main", "v/").path
    assert {path.read_bytes() for path in view.iterdir()} == {BIG}
    assert len({path.stat().st_ino for path in view.iterdir()}) == 4
    assert repo.get("main", "v/0") == BIG


def test_a_seal_keeps_the_second_in_which_a_file_was_written(repo, folder):
    (folder / "huge").write_bytes(BIG + b"h")
    os.utime(folder / "huge", (1_700_000_000, 1_700_000_000))
    repo.commit("main", "second")
    assert int(os.stat(stored(repo, "v/huge")).st_mtime) == 1_700_000_000
    assert abs(os.stat(stored(repo, "v/small")).st_mtime - time.time()) < 100


def test_a_file_written_with_the_bytes_of_its_object_keeps_the_content_type(repo):
    repo.put("main", "tables/t/0", b"1", content_type="text/plain", metadata={"n": "1"})
    commit = repo.commit("main", "typed")
    path = repo.workspace("main", "tables/t/").path / "0"
    for data in (b"2", b"1"):
        path.unlink()
        path.write_bytes(data)
    assert list(repo.uncommitted("main")) == []
    repo.create_branch("side", "main")
    picked = save(repo, "side", {"a": b"1"})
    repo.cherry_pick("main", picked)
    assert repo.stat("main", "tables/t/0") == repo.stat(commit, "tables/t/0")


def test_many_small_files_of_one_content_are_one_object_and_none_is_linked_to_it(repo, folder, monkeypatch):
    written = []
    real = store_module.write_new
    monkeypatch.setattr(store_module, "write_new", lambda path, data, *mode: written.append(data) or real(path, data))
    for number in range(300):
        (folder / f"n{number:03}").write_bytes(b"content %d" % (number % 3))
    head = repo.commit("main", "many")
    # Threads that meet the same content at once may make a copy each, not one a file.
    copies = [data for data in written if data.startswith(b"content")]
    assert set(copies) == {b"content 0", b"content 1", b"content 2"}
    assert len(copies) <= 3 * files_module.WORKERS
    assert all(repo.get(head, f"v/n{number:03}") == b"content %d" % (number % 3) for number in range(300))
    assert {os.stat(folder / f"n{number:03}").st_nlink for number in range(300)} == {1}
    assert pending(repo) == []


def test_work_in_threads_keeps_its_order_and_reports_the_first_failure_when_all_have_ended():
    assert files_module.in_threads(str, range(100)) == [str(number) for number in range(100)]
    ended = []

    def work(number):
        if number in {7, 31}:
            raise ValueError(number)
        ended.append(number)

    with pytest.raises(ValueError, match=r"^7$"):
        files_module.in_threads(work, range(40))
    assert sorted(ended) == sorted(set(range(40)) - {7, 31})
