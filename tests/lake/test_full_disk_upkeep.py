"""A full disk under what keeps a lake in order: clone, garbage collection, scrub, and the temporary files of SQL."""

import os
import tempfile
from datetime import timedelta

import duckdb
import pytest

import lake
from lake.clone import clone
from lake.errors import NoRoom
from lake.scrub import scrub
from lake.testing.cloning import build, check_clone
from lake.testing.crash import check_whole
from lake.testing.example import write_example
from lake.testing.small_disk import exhaust


@pytest.mark.slow
@pytest.mark.parametrize("points", [4, pytest.param(60, marks=pytest.mark.soak)])
def test_wherever_room_ends_a_clone_goes_on_when_there_is_some(points, small_disk, tmp_path):
    source = build(lake.create(tmp_path / "source"))
    for number in range(10):
        source.put("side", f"more/{number}", os.urandom(50_000))
        source.commit("side", f"more {number}")

    def outcome(destination):
        dest = lake.open(destination)
        check_whole(dest)
        check_clone(source, dest, {}, within=timedelta(0))
        trees = [(commit.message, len(list(dest.list(commit.id)))) for commit in dest.log("side")]
        dest.close()
        return trees

    exhaust(
        small_disk,
        lambda: small_disk.root / "repo",
        lambda destination: clone(source, destination),
        outcome,
        points,
    )
    source.close()


def test_a_collection_makes_room_on_a_full_disk(small_disk):
    repo = lake.create(small_disk.root / "repo")
    repo.put("main", "kept", b"k" * 100_000)
    repo.commit("main", "one")
    repo.create_branch("waste", "main")
    for number in range(20):
        repo.put("waste", f"w/{number}", os.urandom(50_000))
    repo.commit("waste", "waste")
    repo.delete_branch("waste")
    small_disk.leave(0)
    try:
        freed = repo.collect_garbage(grace_s=0.0).freed
    except NoRoom as error:
        small_disk.leave(error.needed)
        freed = repo.collect_garbage(grace_s=0.0).freed
    assert freed >= 1_000_000
    repo.put("main", "new", b"n")
    repo.commit("main", "two")
    check_whole(repo)
    repo.close()


@pytest.fixture
def example(small_disk):
    repo = lake.create(small_disk.root / "repo")
    write_example(repo)
    repo.close()
    return small_disk.root / "repo"


def test_a_scrub_of_a_full_disk_reads_all_finds_no_damage_and_says_that_it_is_not_recorded(small_disk, example):
    repo = lake.open(example)
    before = repo.resolve("ops")
    small_disk.leave(0)
    found = scrub(repo, budget=None)
    print(found.faults, found.notes)
    assert found.faults == ()
    assert not found.recorded
    assert any("are free" in note for note in found.notes)
    assert repo.resolve("ops") == before
    small_disk.leave(None)
    assert scrub(repo, budget=None).recorded
    repo.close()


def test_a_query_that_spills_on_a_full_disk_says_so_and_leaves_no_file(small_disk, example, monkeypatch):
    spill = small_disk.root / "tmp"
    spill.mkdir()
    monkeypatch.setenv("TMPDIR", str(spill))
    monkeypatch.setattr(tempfile, "tempdir", None)
    real = duckdb.connect
    little = {"memory_limit": "40MB", "threads": "1"}
    monkeypatch.setattr(duckdb, "connect", lambda where, config: real(where, config={**config, **little}))
    repo = lake.open(example)
    small_disk.leave(2 << 20)
    with repo.snapshot("cand-r2") as snapshot:
        with pytest.raises(NoRoom) as caught:
            snapshot.sql("SELECT * FROM range(3000000) a(x) ORDER BY hash(x)")
        assert "TMPDIR" in caught.value.fix
        assert str(spill) in caught.value.message
        assert sum(path.stat().st_size for path in spill.rglob("*") if path.is_file()) == 0
        assert snapshot.sql("SELECT count(*) FROM segments").rows() == [(3,)]
    assert list(spill.iterdir()) == []
    repo.close()
