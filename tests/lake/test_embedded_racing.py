"""Threads, processes and forks on one folder lose nothing and see nothing torn."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import lake
from lake.engines.embedded import commits
from lake.errors import ConflictError, DirtyBranch, NothingToCommit, RefNotFound
from lake.testing.crash import check_whole, content


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


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


@pytest.mark.parametrize("operation", ["merge", "revert"])
def test_what_is_staged_while_a_merge_or_revert_is_prepared_stops_it(repo, monkeypatch, operation):
    for branch in ("main", "side"):
        if branch == "side":
            repo.create_branch("side", "main")
        repo.put(branch, branch, b"1")
        head = repo.commit(branch, branch)
    head = repo.resolve("main")
    real = commits.commit_body

    def late(*arguments):
        lake.open(repo.location).put("main", "late", b"1")
        return real(*arguments)

    monkeypatch.setattr(commits, "commit_body", late)
    with pytest.raises(DirtyBranch, match="just now"):
        repo.merge("side", "main", "no") if operation == "merge" else repo.revert("main", "main")
    assert repo.resolve("main") == head
    assert repo.get("main", "late") == b"1"


def test_an_expected_head_that_moved_is_a_conflict(repo):
    head = repo.resolve("main")
    repo.create_branch("side", "main")
    repo.put("side", "k", b"1")
    repo.commit("side", "side")
    repo.put("main", "other", b"1")
    moved = repo.commit("main", "moved")
    with pytest.raises(ConflictError, match=moved):
        repo.merge("side", "main", "no", expect_head=head)
