"""What a commit names is on the disk before the commit is: watched through every sync that the engine asks for."""

import os

import pytest

import lake
from lake.engines.embedded import files
from lake.engines.embedded.database import Database

BIG = os.urandom(100_000)


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


class Watched:
    """The inodes synced so far, and what was synced when each database transaction ended."""

    def __init__(self, monkeypatch):
        self.synced: set[int] = set()
        self.at_commit: list[set[int]] = []
        real_fsync, real_write = os.fsync, Database.write

        def fsync(fd):
            real_fsync(fd)
            self.synced.add(os.fstat(fd).st_ino)

        def write(database):
            self.at_commit.append(set(self.synced))
            return real_write(database)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Database, "write", write)
        # Each file by itself, so that it can be told which.
        monkeypatch.setattr(files, "SYNC_EACH", 1 << 30)


def inodes(*paths) -> set[int]:
    return {os.stat(path).st_ino for path in paths}


def test_objects_manifests_and_their_names_are_synced_before_a_commit_is_recorded(repo, monkeypatch):
    folder = repo.workspace("main", "v/").path
    (folder / "old").write_bytes(b"o")
    repo.commit("main", "first")
    (folder / "old").unlink()
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/small").write_bytes(b"s")
    (folder / "big").write_bytes(BIG)
    repo.put("main", "put", b"p")
    repo.put("main", "large", BIG + b"2")
    watched = Watched(monkeypatch)
    head = repo.commit("main", "second")
    (synced,) = watched.at_commit

    addresses = [stat.address for stat in repo.list(head)]
    assert len(addresses) == 4
    assert inodes(*addresses) <= synced
    assert inodes(*map(os.path.dirname, addresses)) <= synced
    tree = repo._engine.tree_of(head)
    manifests = [repo.root / "manifests" / each.hex()[:2] / each.hex()[2:] for each in (tree.digest, *tree.ranges)]
    assert inodes(*manifests, *(path.parent for path in manifests)) <= synced
    # The folder is said to hold the new commit: its own files and names, and the missing one, must last too.
    assert inodes(folder, folder / "deep", folder / "deep/er", folder / "deep/er/small", folder / "big") <= synced


def test_a_merge_syncs_what_it_writes_before_it_is_recorded(repo, monkeypatch):
    for branch in ("main", "side"):
        if branch == "side":
            repo.create_branch("side", "main~1")
        repo.put(branch, branch, b"1")
        repo.commit(branch, branch)
    watched = Watched(monkeypatch)
    head = repo.merge("side", "main", "joined")
    (synced,) = watched.at_commit
    tree = repo._engine.tree_of(head)
    manifests = [repo.root / "manifests" / each.hex()[:2] / each.hex()[2:] for each in (tree.digest, *tree.ranges)]
    assert inodes(*manifests, *(path.parent for path in manifests)) <= synced


def test_a_folder_is_synced_before_the_database_says_what_it_holds(repo, monkeypatch):
    repo.put("main", "v/small", b"s")
    repo.put("main", "v/deep/big", BIG)
    repo.commit("main", "first")
    watched = Watched(monkeypatch)
    folder = repo.workspace("main", "v/").path
    everything = (folder, folder / "small", folder / "deep", folder / "deep/big", repo.root / "workspaces")
    assert inodes(*everything) <= watched.at_commit[-1]

    repo.create_branch("side", "main")
    repo.delete("side", ["v/deep/big"])
    repo.put("side", "v/new", b"n")
    repo.commit("side", "second")
    repo.merge("side", "main", "joined")
    watched.synced.clear()
    repo.workspace("main", "v/")
    assert not (folder / "deep").exists()
    assert inodes(folder, folder / "new") <= watched.at_commit[-1]

    (folder / "small").write_bytes(b"x")
    watched.synced.clear()
    repo.reset("main")
    assert inodes(folder, folder / "small") <= watched.at_commit[-1]


def test_many_files_are_synced_by_one_call_for_the_whole_file_system(repo, monkeypatch):
    called = []
    real = files.sync_file_system
    monkeypatch.setattr(files, "sync_file_system", lambda root: called.append(root) or real(root))
    for number in range(100):
        repo.put("main", f"k/{number}", b"%d" % number)
    repo.commit("main", "many")
    assert 1 <= len(called) <= 3
