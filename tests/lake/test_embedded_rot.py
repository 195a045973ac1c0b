"""What is written again after its stored bytes have rotted: an acknowledged write never rests on a rotten file."""

import hashlib
import os
from contextlib import closing

import pytest

import lake
from lake.clone import clone
from lake.engines.embedded import store as store_module
from lake.engines.embedded.files import WORKERS
from lake.errors import CorruptObject
from lake.scrub import scrub
from lake.testing.rot import flip

SMALL, LARGE = b"s" * 1000, b"l" * 100_000


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    repo.put("main", "small", SMALL)
    repo.put("main", "large", LARGE)
    repo.commit("main", "first")
    repo.create_branch("work", "main")
    yield repo
    repo.close()


def rot(repo, data):
    """Flip a bit of a content; its size and times, and so its seal, stay."""
    name = hashlib.sha256(data).hexdigest()
    flip(repo.root / "objects" / name[:2] / name[2:], 77, 3)


@pytest.mark.parametrize("data", [SMALL, LARGE])
@pytest.mark.parametrize("files", [1, 40])
def test_a_workspace_commit_of_bytes_whose_object_has_rotted_heals_it(repo, data, files):
    folder = repo.workspace("work", "new/").path
    rot(repo, data)
    for number in range(files):
        (folder / f"n{number}").write_bytes(data)
    made = repo.commit("work", "the same bytes again")
    assert all(repo.get(made, f"new/n{number}") == data for number in range(files))
    assert scrub(repo, budget=None).ok


def test_an_unchanged_file_of_a_workspace_is_no_new_write_and_its_object_is_not_read(repo, monkeypatch):
    folder = repo.workspace("work", "").path
    (folder / "new").write_bytes(b"new")
    read = []
    hash_file = store_module.hash_file
    monkeypatch.setattr(store_module, "hash_file", lambda path: read.append(str(path)) or hash_file(path))
    repo.commit("work", "new")
    assert not [path for path in read if hashlib.sha256(LARGE).hexdigest()[2:] in path]


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_stored_content_is_read_once_for_all_files_of_a_commit_that_hold_it(repo, data, monkeypatch):
    folder = repo.workspace("work", "new/").path
    for number in range(300):
        (folder / f"n{number}").write_bytes(data)
    read = []
    hash_file = store_module.hash_file
    monkeypatch.setattr(store_module, "hash_file", lambda path: read.append(str(path)) or hash_file(path))
    repo.commit("work", "many")
    # Threads that meet it at once may read it each.
    assert 1 <= len([path for path in read if "/objects/" in path]) <= WORKERS


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_clone_of_bytes_whose_copy_at_the_destination_has_rotted_heals_it(repo, data, tmp_path):
    clone(repo, str(tmp_path / "clone"))
    repo.put("main", "again", data)
    repo.commit("main", "the same bytes again")
    with closing(lake.open(tmp_path / "clone")) as there:
        rot(there, data)
    clone(repo, str(tmp_path / "clone"))
    with closing(lake.open(tmp_path / "clone")) as there:
        assert there.get("main", "again") == data
        assert scrub(there, budget=None).ok


def test_a_commit_that_makes_a_manifest_which_has_rotted_heals_it(repo):
    before = {path.name for path in (repo.root / "manifests").glob("*/*")}
    repo.put("main", "more", b"more")
    repo.commit("main", "more")
    for path in (repo.root / "manifests").glob("*/*"):
        if path.name in before:
            flip(path, path.stat().st_size // 2, 1)
    repo.delete("main", ["more"])
    repo.commit("main", "less")
    repo.close()  # what was read before is not asked for again
    with closing(lake.open(repo.location)) as again:
        assert [stat.key for stat in again.list("main")] == ["large", "small"]
        [fault] = scrub(again, budget=None).faults  # the tree of the empty first commit, which nobody made again
        assert fault.last == list(again.log("main"))[-1].id


def test_a_torn_put_is_not_believed_to_be_stored_where_the_stored_bytes_have_rotted(repo):
    with_same = b"x" * 1000
    repo.put("work", "torn", with_same)
    [staged] = [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]
    folder = repo.workspace("main", "w/").path
    (folder / "same").write_bytes(with_same)
    found = repo._engine.objects.survey(str(folder / "same"), known := set())
    repo._engine.objects.adopt([found], known)
    rot(repo, with_same)
    staged.chmod(0o644)
    os.truncate(staged, 300)
    with pytest.raises(CorruptObject, match="torn"):
        repo.commit("work", "what a power cut tore")
