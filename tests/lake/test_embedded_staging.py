"""Callers that stage at the same time share a transaction, and nothing else: not each other's errors, not a fork."""

import os
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import lake
from lake.engines.embedded.database import Database
from lake.engines.embedded.files import SMALL
from lake.engines.embedded.history import read_staging, stage, unstage
from lake.engines.embedded.incoming import Incoming
from lake.errors import ProtectedBranch, RefNotFound, StorageError

CALLERS = 12
#: Too large for one put at a time: these meet where they are staged.
LARGE = SMALL


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


@pytest.fixture
def counted(monkeypatch):
    """Counts the transactions that stage; what is put in `failing` is raised by the next ones instead."""

    class Counted:
        transactions = 0
        failing: list[Exception] = []  # noqa: RUF012

    real = Database.write_soon

    @contextmanager
    def write_soon(database):
        Counted.transactions += 1
        if Counted.failing:
            raise Counted.failing.pop()
        with real(database) as connection:
            yield connection

    monkeypatch.setattr(Database, "write_soon", write_soon)
    return Counted


def all_waiting(repo, work, items, meanwhile=lambda: None) -> list[Future]:
    """Do `work` on all items in threads that must wait for one another, and something `meanwhile`; all have ended."""
    stager = repo._engine.stager
    with ThreadPoolExecutor(len(items)) as pool, stager._writing:
        futures = [pool.submit(work, item) for item in items]
        deadline = time.monotonic() + 30
        while len(stager._waiting) < len(items):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        meanwhile()
    return futures


def test_callers_who_wait_are_staged_in_one_transaction(repo, counted):
    futures = all_waiting(repo, lambda n: repo.put("main", f"k/{n}", b"%2d" % n * LARGE), range(CALLERS))
    assert {future.result().key for future in futures} == {f"k/{n}" for n in range(CALLERS)}
    assert counted.transactions == 1
    assert {stat.key: repo.get("main", stat.key) for stat in repo.list("main")} == {
        f"k/{n}": b"%2d" % n * LARGE for n in range(CALLERS)
    }


def test_a_caller_who_is_refused_keeps_nobody_else_from_staging(repo):
    stage = repo._engine.stager.stage
    value = repo._engine.objects.put_bytes(b"x") + (1).to_bytes(8, "little")
    repo.create_branch("held", "main")
    repo.protect("held")
    branches = ["main", "held", "gone", "main", "main"]
    futures = all_waiting(repo, lambda n: stage(branches[n], {b"k/%d" % n: value}, "put"), range(5))
    met = [type(future.exception()) for future in futures]
    assert met == [type(None), ProtectedBranch, RefNotFound, type(None), type(None)]
    assert [stat.key for stat in repo.list("main")] == ["k/0", "k/3", "k/4"]
    assert list(repo.list("held")) == []


def test_a_transaction_that_fails_fails_for_one_and_the_others_are_staged_all_the_same(repo, counted):
    counted.failing.append(sqlite3.OperationalError("disk I/O error"))
    futures = all_waiting(repo, lambda n: repo.put("main", f"k/{n}", b"x" * LARGE), range(CALLERS))
    failed = [n for n, future in enumerate(futures) if future.exception() is not None]
    assert len(failed) == 1
    assert isinstance(futures[failed[0]].exception(), StorageError)
    assert {stat.key for stat in repo.list("main")} == {f"k/{n}" for n in range(CALLERS) if n != failed[0]}


def test_a_child_forked_while_others_wait_stages_what_is_its_own_and_nothing_of_theirs(repo):
    taken, given = os.pipe()
    children = []

    def fork():
        children.append(os.fork())
        if not children[0]:
            try:
                os.read(taken, 1)
                repo.put("main", "child", b"c")
                os._exit(0)
            finally:
                os._exit(1)

    futures = all_waiting(repo, lambda n: repo.put("main", f"k/{n}", b"x" * LARGE), range(3), fork)
    keys = [future.result().key for future in futures]
    repo.delete("main", keys)
    os.write(given, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    os.close(taken)
    os.close(given)
    # A child that saw to what its parent's threads were waiting for would have put them again.
    assert [stat.key for stat in repo.list("main")] == ["child"]


@pytest.mark.parametrize("beside", ["nothing", "a branch before it", "a branch after it", "later rows"])
def test_what_was_read_is_unstaged_and_nothing_else(repo, beside):
    # Where nothing stays the table is emptied by another way of SQLite's; it must count the rows all the same.
    rows, other = {b"a": b"1" * 40, b"b": None}, {b"c": b"2" * 40}
    token = {"a branch before it": "l", "a branch after it": "n", "later rows": "m"}.get(beside)
    with repo._engine.db.write() as con:
        stage(con, "m", rows)
        read, last = read_staging(con, "m")
        assert read == rows
        if token:
            stage(con, token, other)
        assert unstage(con, "m", last) == 2
        assert unstage(con, "m", last) == 0
        assert [read_staging(con, each)[0] for each in "lmn"] == [other if each == token else {} for each in "lmn"]
        assert unstage(con, "m") == (token == "m")
        stage(con, "m", rows)
        assert read_staging(con, "m")[1] > last


def test_small_puts_of_many_threads_are_kept_one_at_a_time_and_large_ones_side_by_side(repo, monkeypatch):
    at_work, most = set(), {}
    real = Incoming.put_bytes

    def put_bytes(incoming, digest, data):
        at_work.add(digest)
        time.sleep(0.01)
        most[len(data)] = max(most.get(len(data), 0), len(at_work))
        real(incoming, digest, data)
        at_work.discard(digest)

    monkeypatch.setattr(Incoming, "put_bytes", put_bytes)
    for size in (SMALL - 1, SMALL):
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(lambda n, size=size: repo.put("main", f"{size}/{n}", b"%08d" % n + bytes(size - 8)), range(8))
            )
    assert most[SMALL - 1] == 1 < most[SMALL]
    assert len(list(repo.list("main"))) == 16


def test_a_child_forked_while_a_small_put_is_under_way_can_put(repo):
    with repo._engine.small_puts.through():
        child = os.fork()
        if not child:
            try:
                repo.put("main", "child", b"c")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert repo.get("main", "child") == b"c"
