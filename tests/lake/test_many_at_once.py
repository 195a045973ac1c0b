"""Many readers and writers at once, threads and processes, on a folder and on a server: whole commits, nothing lost."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import lake
from lake.testing.crash import content
from lake.testing.readers import (
    count_up,
    in_processes,
    move_main,
    numbers_in,
    put_commit_merge,
    under_readers,
    write_release,
)

ENGINES = ["embedded", pytest.param("server", marks=[pytest.mark.lakefs, pytest.mark.slow])]


@pytest.fixture(params=ENGINES)
def repo(request, tmp_path):
    on_disk = request.param == "embedded"
    made = lake.create(tmp_path / "repo") if on_disk else request.getfixturevalue("lakefs_repo")
    yield made
    made.close()


def check_seen(repo, had, seen):
    torn = [numbers for numbers in seen if len(numbers) != 1]
    assert not torn, torn[:5]
    assert {number for (number,) in seen} <= {0, *had}
    final = had[-1] if had[-1] % 2 else had[-1] - 1
    assert numbers_in(repo, "main") == {final}


def start(repo):
    with repo.session("main") as session:
        write_release(session, 0)


def test_reader_threads_see_whole_releases_only_while_main_is_merged_and_reverted(repo):
    start(repo)
    had, seen = under_readers(repo.location, 3, lambda: move_main(repo, 4), processes=False)
    assert len(seen) > 6
    check_seen(repo, had, seen)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_reader_processes_see_whole_releases_only_while_main_is_merged_and_reverted(repo, rounds):
    start(repo)
    had, seen = under_readers(repo.location, 4, lambda: move_main(repo, rounds), processes=True)
    check_seen(repo, had, seen)
    assert len({number for (number,) in seen}) > 2, "they looked while main moved"


def test_writers_of_one_branch_that_wait_count_without_a_gap(repo):
    repo.create_branch("ops", "main")
    with ThreadPoolExecutor(4) as pool:
        done = sum(pool.map(lambda _: count_up(repo.location, "ops", 3, 60.0), range(4)))
    assert int(repo.get("ops", "count")) == done == 12
    assert len(list(repo.log("ops"))) == done + 1
    assert dict(repo.tags()) == {}


@pytest.mark.slow
def test_processes_that_append_to_ops_wait_for_one_another_and_lose_no_row(repo):
    repo.create_branch("ops", "main")
    done = sum(in_processes(count_up, [(repo.location, "ops", 4, 60.0)] * 4))
    assert int(repo.get("ops", "count")) == done == 16
    assert [name for name in repo.branches() if name.startswith("session-")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "rounds"), [(16, 2), pytest.param(16, 40, marks=pytest.mark.soak)])
def test_of_what_many_clients_put_commit_and_merge_nothing_is_lost(repo, clients, rounds):
    with ThreadPoolExecutor(clients) as pool:
        landed = list(pool.map(lambda worker: put_commit_merge(repo.location, worker, rounds), range(clients)))
    keys = {key for each in landed for key in each}
    assert len(keys) == clients * rounds
    assert content(repo, "main") == {key: key.encode() for key in keys}
    merges = [commit for commit in repo.log("main", first_parent=True) if len(commit.parents) == 2]
    assert len(merges) == len(keys)
