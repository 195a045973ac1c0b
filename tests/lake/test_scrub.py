"""What a scrub checks in which order, what it records, and whom it names."""

import os
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import lake
from lake.coverage import HIGHEST, Region, by_age, extended, joined, members
from lake.errors import BadInput, CorruptObject
from lake.integrity import Inventory
from lake.scrub import scrub
from lake.scrub_record import recall
from lake.testing.clocks import Ahead
from lake.testing.crash import python, run
from lake.testing.example import write_example
from lake.testing.memory import MemoryRepository
from lake.testing.rot import flip


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    repo.create_branch("ops", "main")
    yield repo
    repo.close()


def commit(repo, files, branch="main", **metadata):
    for key, data in files.items():
        repo.put(branch, key, data)
    return repo.commit(branch, "files", metadata)


def path_of(repo, ref, key):
    return repo.stat(ref, key).address


# -- order and budget --------------------------------------------------------------------------------------------------
def test_a_whole_repository_is_checked_and_nothing_is_wrong(repo):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(20)})
    report = scrub(repo, budget=None)
    assert report.ok
    assert report.recorded
    assert report.left_objects == report.never == 0
    [contents] = [part for part in report.parts if part.kind == "object"]
    assert (contents.items, contents.bytes) == (20, 20_000)


def test_a_budget_ends_the_run_and_the_next_one_goes_on_where_it_was(repo):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(40)})
    left = []
    for _ in range(5):
        report = scrub(repo, budget=10_000)
        left.append(report.never)
        if not report.never:
            break
    # Each run also meets the few small objects in which the runs before it recorded what they did.
    assert left[0] == 30
    assert left == sorted(left, reverse=True)
    assert len(left) >= 4


def test_what_was_never_checked_comes_before_what_was(repo):
    commit(repo, {f"old{n}": os.urandom(1000) for n in range(10)})
    scrub(repo, budget=None)
    commit(repo, {"new": os.urandom(1000)})
    flip(path_of(repo, "main", "new"))
    report = scrub(repo, budget=1)
    assert report.never > 0  # of the record's own objects
    for _ in range(30):
        if any(fault.keys == ("new",) for fault in report.faults):
            break
        report = scrub(repo, budget=1000)
    assert [fault.keys for fault in report.faults] == [("new",)]
    with repo.snapshot("main") as snapshot:
        [old] = snapshot.sql(
            "SELECT count(DISTINCT checked) FROM ops.scrubs WHERE kind = 'object' AND since = 0"
        ).rows()
    assert old == (1,)  # nothing old was read again meanwhile


def test_what_waits_longest_comes_first(repo):
    commit(repo, {f"k{n}": os.urandom(10_000) for n in range(30)})
    scrub(repo, budget=None)
    oldest = [scrub(repo, budget=150_000).oldest for _ in range(8)]
    assert oldest == sorted(oldest)
    assert len(set(oldest)) >= 3  # about every third run comes round


def test_a_damaged_object_is_reported_in_each_run_until_it_is_healed(repo):
    data = os.urandom(5000)
    commit(repo, {"a": data, "b": os.urandom(5000)})
    flip(path_of(repo, "main", "a"), 77, 5)
    assert [fault.keys for fault in scrub(repo, budget=None).faults] == [("a",)]
    assert [fault.keys for fault in scrub(repo, budget=1).faults] == [("a",)]
    # As the advice says: nobody has told the engine that the file is damaged, and its size and times are the old ones.
    repo.put("main", "again", data)
    repo.commit("main", "heal")
    report = scrub(repo, budget=1)
    assert report.ok
    assert [name.split()[0] for name in report.healed] == ["object"]
    assert scrub(repo, budget=1).healed == ()


def test_a_staged_object_is_checked_in_each_run(repo):
    scrub(repo, budget=None)
    repo.put("main", "staged", b"not yet committed")
    assert scrub(repo, budget=None).ok
    [path] = [p for p in (repo.root / "incoming").glob("*/*") if p.name != ".lock"]
    flip(path, 3)
    [fault] = scrub(repo, budget=1).faults
    assert (fault.kind, fault.keys, fault.commits) == ("staged", ("staged",), 0)
    repo.put("main", "staged", b"not yet committed")
    assert scrub(repo, budget=1).ok


def test_a_damaged_copy_in_a_workspace_is_healed_by_removing_it_and_resetting_the_branch(repo):
    commit(repo, {"a": b"small", "b": os.urandom(100)})
    repo.create_branch("work", "main")
    copy = repo.workspace("work", "").path / "a"
    flip(copy, 2)
    [fault] = scrub(repo, budget=None).faults
    assert (fault.kind, fault.keys) == ("copy", ("a",))
    copy.unlink()
    repo.reset("work")
    assert copy.read_bytes() == b"small"
    assert scrub(repo, budget=1).ok


def test_a_budget_of_nothing_is_refused(repo):
    with pytest.raises(BadInput, match="0 bytes"):
        scrub(repo, budget=0)


def test_a_repository_in_memory_cannot_be_scrubbed():
    with pytest.raises(BadInput, match="no bytes"):
        scrub(MemoryRepository(), budget=None)


# -- who is hit --------------------------------------------------------------------------------------------------------
def test_a_damaged_object_is_named_with_commits_releases_heads_and_tables(repo):
    example_free = commit(repo, {"other": b"x"})
    first = commit(repo, {"tables/t/part": b"rows", "copy": b"rows"})
    middle = commit(repo, {"more": b"y"}, release="r7")
    repo.create_tag("r7", middle)
    repo.delete("main", ["tables/t/part", "copy"])
    after = repo.commit("main", "gone")
    flip(path_of(repo, middle, "copy"))
    [fault] = [fault for fault in scrub(repo, budget=None).faults if fault.kind == "object"]
    assert fault.keys == ("copy", "tables/t/part")
    assert (fault.first, fault.last, fault.commits) == (first, middle, 2)
    assert (fault.releases, fault.refs, fault.tables) == (("r7",), ("r7",), ("t",))
    assert not {example_free, after} & {fault.first, fault.last}


def test_all_commits_of_one_tree_are_named_the_one_undone_and_made_again_too(repo):
    # A release that is rolled back leaves main with the tree it had: both commits hold the object.
    first = commit(repo, {"k": b"data"})
    again = repo.revert("main", commit(repo, {"more": b"x"}))
    flip(path_of(repo, first, "k"))
    [fault] = [fault for fault in scrub(repo, budget=None).faults if fault.kind == "object"]
    assert (fault.first, fault.last, fault.commits, fault.refs) == (first, again, 3, ("main",))


def test_a_damaged_commit_names_the_merge_that_took_it_and_the_branch_that_ends_in_it(repo):
    repo.create_branch("side", "main")
    damaged = commit(repo, {"s": b"1"}, branch="side")
    commit(repo, {"m": b"1"})
    merge = repo.merge("side", "main", "merge")
    last = commit(repo, {"m": b"2"})
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        con.execute("UPDATE commits SET body = ? WHERE id = ?", (b"no body", damaged))
    con.close()
    [fault] = [fault for fault in scrub(repo, budget=None).faults if fault.kind == "commit"]
    assert (fault.name, fault.first, fault.last, fault.commits) == (damaged, merge, last, 2)
    assert fault.refs == ("main", "side")


def test_a_damaged_manifest_is_restored_and_others_may_be_hit_worse_than_they_know(repo):
    commit(repo, {"a": b"a" * 100})
    largest = max((repo.root / "manifests").glob("*/*"), key=lambda path: path.stat().st_size)
    flip(largest, 60)
    report = scrub(repo, budget=None)
    assert "manifest" in {fault.kind for fault in report.faults}
    assert any("1 manifest cannot be read" in note for note in report.notes)
    repo.close()
    again = lake.open(repo.location)
    with pytest.raises(CorruptObject) as raised:
        list(again.list("main"))
    assert "restore it" in raised.value.fix  # nobody can put one
    again.close()


def test_a_copy_of_the_repository_was_not_checked_by_checking_the_original(repo, tmp_path):
    import shutil

    commit(repo, {"k": b"data"})
    assert scrub(repo, budget=None).place == scrub(repo, budget=None).place
    shutil.copytree(repo.root, tmp_path / "copy")
    with_copy = lake.open(tmp_path / "copy")
    report = scrub(with_copy, budget=1)
    assert report.place != repo.inspector().place
    assert report.never == report.left_objects > 0
    with_copy.close()


# -- the record --------------------------------------------------------------------------------------------------------
def test_what_was_checked_when_is_one_query(repo):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(10)})
    scrub(repo, budget=4000)
    with repo.snapshot("main") as snapshot:
        rows = snapshot.sql("SELECT * FROM v_integrity ORDER BY days").polars()
    assert rows["days"].to_list() == [1, 7, 30, 90, 365]
    assert rows["checked_objects"].to_list() == [4] * 5
    assert rows["share"].to_list() == [0.4] * 5
    assert rows["never_objects"].to_list() == [6] * 5
    assert rows["damaged"].to_list() == [0] * 5


def test_the_record_does_not_grow_with_the_number_of_objects(repo):
    commit(repo, {f"k{n}": n.to_bytes(4, "big") for n in range(300)})
    scrub(repo, budget=None)
    with repo.snapshot("main") as snapshot:
        [count] = snapshot.sql("SELECT count(*) FROM ops.scrubs WHERE kind = 'object'").rows()
    assert count == (1,)


def test_without_a_branch_for_records_the_check_is_made_all_the_same(tmp_path):
    repo = lake.create(tmp_path / "plain")
    commit(repo, {"k": b"data"})
    flip(path_of(repo, "main", "k"))
    report = scrub(repo, budget=None)
    assert [fault.keys for fault in report.faults] == [("k",)]
    assert not report.recorded
    assert "no branch ops" in report.notes[0]
    repo.close()


def test_a_damaged_record_is_told_and_checked_from_the_start(repo):
    commit(repo, {"k": b"data"})
    scrub(repo, budget=None)
    [stat] = [s for s in repo.list("ops", "tables/scrubs/") if s.key.endswith(".parquet")]
    flip(stat.address, 100)
    report = scrub(repo, budget=None)
    assert "cannot be read" in report.notes[0]
    assert "object" in {fault.kind for fault in report.faults}


@pytest.mark.parametrize("table", ["scrubs", "scrub_faults"])
@pytest.mark.parametrize("harm", [os.remove, lambda path: flip(path, 100)], ids=["lost", "flipped"])
def test_a_record_that_no_copy_holds_is_begun_anew_and_scrubs_go_on_where_they_were(repo, table, harm):
    # A lost file of the record used to end it for ever: each night the same first contents were checked, and what was
    # known to be damaged was forgotten, with exit code 0.
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(40)})
    bad = path_of(repo, "main", "k7")
    flip(bad, 5)
    assert len(scrub(repo, budget=None).faults) == 1
    for stat in repo.list("ops", f"tables/{table}/"):
        if stat.key.endswith(".parquet"):
            harm(stat.address)
    first = scrub(repo, budget=1000)
    assert f"tables/{table}/" in {fault.name for fault in first.faults if fault.kind == "table"}
    assert first.recorded
    assert first.never > 20
    second = scrub(repo, budget=30_000)
    assert second.recorded
    assert second.never < first.never, "the next run goes on behind this one"
    assert f"table tables/{table}/" in second.healed
    found = scrub(repo, budget=None)
    assert (found.never, found.recorded) == (0, True)
    name = "".join(bad.split("/")[-2:])
    for report in (found, scrub(repo, budget=1)):
        assert name in {fault.name for fault in report.faults}, "what is known to be damaged is told in each run"
        assert "table" not in {fault.kind for fault in report.faults}


_KILLED = """
import sys
import lake
from lake import scrub
scrub.BATCH_ITEMS = 4
repo = lake.open(sys.argv[1])
scrub.scrub(repo, budget=None, record_every_s=0.0)
"""


def test_a_killed_scrub_goes_on_where_it_was(repo):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(40)})
    repo.close()
    # The fourth batch is checked and lost, three are on record.
    assert run(python(_KILLED, repo.location), kill_at="scrub.batch-checked:4").killed
    again = lake.open(repo.location)
    with again.snapshot("main") as snapshot:
        [(checked,)] = snapshot.sql("SELECT checked_objects FROM v_integrity WHERE days = 1").rows()
    assert checked == 12
    report = scrub(again, budget=28_000)
    assert report.left_objects <= 12 + 20
    again.close()


def test_the_example_lake_with_tables_and_views_is_whole(tmp_path):
    repo = lake.create(tmp_path / "example")
    write_example(repo)
    with repo.snapshot("cand-r1") as snapshot:
        snapshot.sql("SELECT count(*) FROM synapses")
    report = scrub(repo, budget=None)
    assert report.ok, report.faults
    counted = {part.kind: part.items for part in report.parts}
    assert counted["table"] == 16
    assert counted["copy"] > 0
    repo.close()


# -- regions -----------------------------------------------------------------------------------------------------------
def _moment(day):
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)


def test_regions_cover_every_content_once_whatever_was_cut_and_joined():
    rng = np.random.default_rng(7)
    regions, until = [], 0
    for day in range(40):
        until += int(rng.integers(0, 5))
        regions = by_age(extended(regions, until))
        done = []
        for region in list(regions[: rng.integers(0, 3)]):
            regions.remove(region)
            cut = int(rng.integers(region.low, region.high, dtype=np.uint64, endpoint=True))
            done.append(Region(region.low, cut, region.since, region.until, _moment(day)))
            if (rest := region.above(cut)) is not None:
                regions.append(rest)
        regions = joined([*regions, *done])
        slots = rng.integers(0, HIGHEST, 500, dtype=np.uint64, endpoint=True)
        births = rng.integers(0, max(until, 1), 500)
        inventory = Inventory(slots, np.ones(500, np.int64), births, until)
        counts = np.zeros(500, int)
        for region in regions:
            counts[members(region, inventory)] += 1
        assert (counts == (1 if until else 0)).all()


def test_regions_that_touch_and_are_of_one_age_become_one():
    day = _moment(1)
    parts = [
        Region(0, 99, 0, 5, day),
        Region(100, HIGHEST, 0, 5, day),
        Region(0, 49, 5, 9, day),
        Region(50, HIGHEST, 5, 9, day),
        Region(0, HIGHEST, 9, 12, _moment(2)),
    ]
    assert sorted(joined(parts), key=lambda r: r.since) == [
        Region(0, HIGHEST, 0, 9, day),
        Region(0, HIGHEST, 9, 12, _moment(2)),
    ]


def test_what_a_scrub_finds_after_one_whose_clock_was_ahead_is_what_is_remembered(repo, monkeypatch):
    """A scrub dated 2036 used to hide, until then, everything that later ones checked and found."""

    with monkeypatch.context() as wrong:
        wrong.setattr("lake.scrub.datetime", Ahead)
        assert scrub(repo, budget=None).recorded
    assert scrub(repo, budget=None).recorded
    known = recall(repo, repo.inspector().place)
    assert any(region.checked and region.checked.year < 2036 for region in known.regions)


def test_what_a_clock_that_was_ahead_checked_has_its_turn_again_before_that_day(repo, monkeypatch):
    """Contents that were checked "in 2036" used to come last until then, and to count as checked within a day."""
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(20)})
    with monkeypatch.context() as wrong:
        wrong.setattr("lake.scrub.datetime", Ahead)
        assert scrub(repo, budget=None).recorded
    commit(repo, {"new": os.urandom(1000)})
    assert scrub(repo, budget=1000).recorded
    now = datetime.now(UTC)
    known = recall(repo, repo.inspector().place)
    assert all(region.checked is None or region.checked <= now for region in known.regions)
    with repo.snapshot("main") as snapshot:
        assert snapshot.sql("SELECT oldest <= now() FROM v_integrity WHERE days = 1").rows() == [(True,)]
