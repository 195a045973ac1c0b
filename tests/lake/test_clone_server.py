"""A repository cloned to a real lakeFS server, between two, and back: the same promises as from folder to folder."""

import itertools
import os
import time
from datetime import timedelta

import pytest

import lake
from lake.clone import clone
from lake.engines.lakefs.identity import identity_of
from lake.errors import ConflictError, ProtectedBranch, RefNotFound
from lake.scrub import scrub
from lake.testing.cloning import (
    CLONE,
    all_commits,
    build,
    check_clone,
    check_resumed_within_a_commit,
    content_of,
    run_cloning_machine,
)
from lake.testing.crash import check_sessions_swept, passes_of, python, run
from lake.testing.example import M1, tile_path, write_example
from lake.testing.rot import flip
from lake.testing.trees import save, state

pytestmark = [pytest.mark.lakefs, pytest.mark.slow]
SECOND = timedelta(seconds=1)


@pytest.fixture
def source(tmp_path):
    repo = build(lake.create(tmp_path / "source"))
    yield repo
    repo.close()


@pytest.fixture
def another(lakefs_server):
    return lambda: lakefs_server.location(f"r-{os.urandom(6).hex()}")


def test_to_a_server_to_another_repository_there_and_back(source, another, tmp_path):
    first, second = another(), another()
    clone(source, first)
    check_clone(source, lake.open(first), {}, within=SECOND)
    there = clone(lake.open(first), second, reread=True)
    assert there.comparison == "read"
    check_clone(lake.open(first), lake.open(second), {}, within=SECOND)
    clone(lake.open(second), tmp_path / "back")
    back = lake.open(tmp_path / "back")
    for commit in (found for name in ("main", "side", "ops") for found in source.log(name)):
        returned = back.commit_info(commit.id)
        assert content_of(back, returned.id) == content_of(source, commit.id)
        assert (returned.message, returned.committer) == (commit.message, commit.committer)
        assert returned.created == commit.created, "to the microsecond, though servers keep seconds"
        assert returned.parents == tuple(back.resolve(parent) for parent in commit.parents)
    assert {name: back.resolve(old) for name, old in source.tags().items()} == dict(back.tags())


def test_what_a_revert_brings_back_is_not_sent_again(source, another):
    cloned = clone(source, another())
    contents = {s.identity for commit in ("main", "side", "ops", "r1", "main~2") for s in source.list(commit)}
    assert cloned.contents == len(contents)


def test_reads_by_an_old_id_are_those_of_the_clone(source, another):
    place = another()
    clone(source, place)
    dest, old = lake.open(place), source.resolve("r1")
    assert dest.get(old, "b") == b"2"
    assert dest.stat(old + "~1", "b").size == 1
    assert [entry.key for entry in dest.list(old, "tables/")] == ["tables/t/0"]
    assert list(dest.diff(old, "r1")) == []
    assert [c.id for c in dest.log(old)] == [c.id for c in dest.log("r1")]


def test_the_first_digits_of_an_old_id_are_enough(source, another):
    place = another()
    clone(source, place)
    dest, old = lake.open(place), source.resolve("r1")[:12]
    assert dest.resolve(old) == dest.resolve("r1")
    assert dest.get(old, "b") == b"2"
    assert dest.stat(old + "~1", "b").size == 1
    assert [c.id for c in dest.log(old)] == [c.id for c in dest.log("r1")]
    with pytest.raises(RefNotFound):
        dest.get(old[:6], "b")
    with pytest.raises(RefNotFound):
        dest.resolve("0" * 12)


def test_what_was_sent_for_a_commit_that_was_not_finished_is_not_sent_again(source, another, tmp_path, monkeypatch):
    place = another()
    clone(source, place)
    check_resumed_within_a_commit(source, place, monkeypatch)
    check_clone(source, lake.open(place), {}, within=SECOND)
    clone(lake.open(place), tmp_path / "back")
    check_resumed_within_a_commit(lake.open(place), tmp_path / "back", monkeypatch)
    second = another()
    clone(lake.open(place), second)
    check_resumed_within_a_commit(lake.open(place), second, monkeypatch)
    assert not lake.open(second).branches("session-")


def test_a_second_run_moves_a_protected_branch_and_leaves_it_protected(source, another):
    place = another()
    clone(source, place)
    save(source, "side", {"more": b"more"}, "more")
    source.merge("side", "main", "second merge")
    more = clone(source, place)
    assert (more.commits, more.contents, more.moved) == (2, 1, ("main", "side"))
    dest = lake.open(place)
    check_clone(source, dest, {}, within=SECOND)
    with pytest.raises(ProtectedBranch):
        dest.put("main", "x", b"")
    assert clone(source, place).commits == 0


def test_killed_while_rules_are_lifted_they_are_put_back(source, another):
    place = another()
    clone(source, place)
    save(source, "side", {"more": b"more"}, "more")
    source.merge("side", "main", "second merge")
    assert run(python(CLONE, source.location, place), kill_at="forward.lifted").killed
    assert "main" not in lake.open(place).protected()
    clone(source, place)
    check_clone(source, lake.open(place), {}, within=SECOND)
    with pytest.raises(ProtectedBranch):
        lake.open(place).put("main", "x", b"")


@pytest.mark.parametrize(
    "point",
    ["rebuild.tree-made:3", "rebuild.recorded:4", "clone.commit-rebuilt:6", "clone.compared", "forward.ref-moved"],
)
def test_killed_at_any_point_it_goes_on_where_it_was(source, another, point):
    place = another()
    assert run(python(CLONE, source.location, place), kill_at=point).killed
    total = len(all_commits(source))
    done = int(point.partition(":")[2] or total + 1) - (not point.startswith("clone."))
    cloned = clone(source, place)
    check_clone(source, lake.open(place), {}, within=SECOND)
    assert cloned.commits in (max(0, total - done), max(0, total - done - 1))


@pytest.mark.soak
def test_killed_at_every_pass_of_every_point_it_goes_on(source, another):
    passes = passes_of(python(CLONE, source.location, another()))
    assert len(passes) > 20
    for at in passes:
        place = another()
        assert run(python(CLONE, source.location, place), kill_at=at).killed, at
        clone(source, place)
        check_sessions_swept(lake.open(place))
        check_clone(source, lake.open(place), {}, within=SECOND)
    print(f"killed {len(passes)} times")


def test_a_branch_that_moved_on_by_itself_is_left_alone_and_named(source, another):
    place = another()
    clone(source, place)
    dest = lake.open(place)
    own = save(dest, "side", {"own": b""}, "of its own")
    save(source, "side", {"theirs": b""}, "theirs")
    cloned = clone(source, place)
    assert "of its own" in cloned.refused["side"]
    assert dest.resolve("side") == own


def test_a_repository_with_a_history_of_its_own_is_refused_unchanged(source, lakefs_repo):
    save(lakefs_repo, "main", {"mine": b""}, "mine")
    before = state(lakefs_repo)
    with pytest.raises(ConflictError, match="neither empty nor an earlier clone"):
        clone(source, lakefs_repo.location)
    assert state(lakefs_repo) == before


def test_lineage_and_tables_answer_alike(another, tmp_path):
    source = lake.create(tmp_path / "example")
    example = write_example(source)
    place = another()
    clone(source, place)
    dest = lake.open(place)
    for query, parameters in (
        ("tiles_of_segment", {"root_id": example.b_second}),
        ("blocks_of_model", {"model_digest": M1}),
        ("SELECT run_id, input_commit, output_commit FROM ops.runs ORDER BY ALL", {}),
    ):
        rows = [repo.snapshot("cand-r2").sql(query, parameters).rows() for repo in (source, dest)]
        assert rows[0] == rows[1] != []
    ((recorded,),) = (
        dest.snapshot("cand-r2").sql("SELECT DISTINCT output_commit FROM ops.runs WHERE run_id='run-2'").rows()
    )
    assert dest.resolve(recorded) == dest.resolve("cand-r2")
    assert dest.snapshot(example.first).table("segments").collect().height == 3
    assert tile_path("t0") in str(dest.snapshot("archive").table("tiles").collect().to_dicts())


def test_random_histories_are_cloned_whole(another, tmp_path):
    number = itertools.count()
    run_cloning_machine(
        lambda: (lake.create(tmp_path / f"repo{next(number)}"), another()), examples=3, steps=25, within=SECOND
    )


def test_the_id_of_a_record_is_what_the_server_computes(lakefs_repo):
    made = save(lakefs_repo, "main", {"a": b"1"}, "größer", {"ä": "ü", "a": "", "z": "1"})
    assert identity_of(lakefs_repo._wire.json(f"/commits/{made}", doing="look")) == made


def test_what_a_clone_brings_is_new_to_a_scrub_however_old_its_commit_is(source, another):
    place = another()
    save(source, "side", {f"old/{n}": os.urandom(100_000) for n in range(40)}, "checked")
    clone(source, place)
    save(source, "side", {"late": os.urandom(1000)}, "made before the scrub, brought after it")
    time.sleep(1.1)  # a server's commits keep seconds
    dest = lake.open(place)
    assert scrub(dest, budget=None).recorded
    clone(source, place)
    flip(dest.stat("side", "late").address.removeprefix("local://"), 500)
    found = scrub(dest, budget=400_000).faults  # a tenth of what was checked before
    assert [fault.keys for fault in found if fault.kind == "object"] == [("late",)]
