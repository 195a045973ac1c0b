"""A repository cloned from folder to folder: everything is there, old ids lead to it, and a killed clone goes on."""

import itertools
from datetime import timedelta

import pytest

import lake
from lake import copying
from lake.clone import clone
from lake.clones import clone_named, origins
from lake.engines.embedded.importing import EmbeddedImporter
from lake.errors import BadInput, ConflictError, CorruptObject, RefNotFound
from lake.testing.cloning import (
    CLONE,
    build,
    check_clone,
    check_resumed_within_a_commit,
    content_of,
    run_cloning_machine,
)
from lake.testing.crash import check_sessions_swept, check_whole, passes_of, python, run
from lake.testing.trees import save, state

EXACT = timedelta(0)


@pytest.fixture
def source(tmp_path):
    repo = build(lake.create(tmp_path / "source"))
    yield repo
    repo.close()


@pytest.fixture
def place(tmp_path):
    return tmp_path / "clone"


def opened(place):
    return lake.open(place)


def test_a_clone_has_all_commits_trees_branches_tags_and_protection(source, place):
    cloned = clone(source, place)
    check_clone(source, opened(place), {}, within=EXACT)
    assert cloned.made == ("main", "ops", "side")
    assert cloned.moved == ()
    assert cloned.tags == ("r1",)
    assert set(opened(place).branches()) == {"main", "ops", "side"}


def test_each_content_is_sent_once(source, place):
    cloned = clone(source, place)
    contents = {stat.checksum for commit in ("main", "side", "ops", "main~1", "main~2") for stat in source.list(commit)}
    assert cloned.contents == len(contents)
    assert cloned.bytes == sum({s.checksum: s.size for c in ("main", "side", "ops") for s in source.list(c)}.values())


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(source, place):
    foreseen = clone(source, place, dry_run=True)
    assert not place.exists()
    done = clone(source, place)
    assert (foreseen.commits, foreseen.bytes, foreseen.tags) == (done.commits, done.bytes, done.tags)


def test_old_ids_lead_to_the_clone_everywhere_a_reference_is_taken(source, place):
    clone(source, place)
    dest = opened(place)
    old = source.resolve("r1")
    assert dest.resolve(old) == dest.resolve("r1") != old
    assert dest.resolve(old + "~1") == dest.resolve("r1~1")
    assert dest.get(old, "b") == b"2"
    assert dest.stat(old, "typed").content_type == "text/plain"
    assert [c.id for c in dest.log(old)] == [c.id for c in dest.log("r1")]
    assert list(dest.diff(old, "r1")) == []
    assert dest.location_of(old, "volumes/v/").path.joinpath("007").read_bytes() == b"7"
    dest.create_branch("again", old)
    with pytest.raises(RefNotFound):
        dest.resolve("0" * 64)


def test_the_first_digits_of_an_old_id_lead_to_the_clone_as_logs_show_them(source, place):
    clone(source, place)
    dest = opened(place)
    old = source.resolve("r1")[:12]
    assert dest.resolve(old) == dest.resolve(old.upper()) == dest.resolve("r1")
    assert dest.get(old + "~0", "b") == b"2"
    # A few digits are rather a name that somebody mistyped, and an own id comes first.
    with pytest.raises(RefNotFound):
        dest.resolve(old[:6])
    assert dest.resolve(dest.resolve("main")[:12]) == dest.resolve("main")


def test_of_several_old_ids_that_begin_alike_none_is_taken():
    clones = {"a" * 63 + "1": "one", "a" * 63 + "2": "two", "b" * 64: "three", "c" * 64: "three"}
    assert clone_named("a" * 12, clones) is None
    assert clone_named("b" * 12, clones) == clone_named("c" * 64, clones) == "three"
    assert clone_named("d" * 12, clones) is None


def test_what_was_sent_for_a_commit_that_was_not_finished_is_not_sent_again(source, place, monkeypatch):
    # An acquisition is one commit of a terabyte: a clone of it that was killed near its end used to begin it anew.
    clone(source, place)
    check_resumed_within_a_commit(source, place, monkeypatch)
    check_clone(source, opened(place), {}, within=EXACT)
    assert not opened(place).branches("session-")


def test_what_was_sent_under_a_key_that_means_something_else_now_is_sent_again(source, place, monkeypatch):
    clone(source, place)
    check_resumed_within_a_commit(
        source, place, monkeypatch, then={"many/1": b"other", "many/2": b"longer than it was"}
    )
    check_clone(source, opened(place), {}, within=EXACT)


def test_a_long_commit_shows_how_far_it_is(source, place, monkeypatch):
    # One commit of a year of tiles used to stand at "0 of 1 commits" until its end.
    monkeypatch.setattr(copying, "_BATCH", 2)
    with source.session("main", owner="me") as session:
        session.delete(["b"])
        for number in range(5):
            session.put(f"many/{number}", bytes([number]))
        session.commit("many")
    told = []
    clone(source, place, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "objects" and step[2] == 6] == [("objects", n, 6) for n in (3, 5, 6)]


def test_a_clone_of_a_clone_knows_all_earlier_ids(source, place, tmp_path):
    clone(source, place)
    clone(opened(place), tmp_path / "third")
    third = opened(tmp_path / "third")
    for repo in (source, opened(place)):
        assert third.resolve(repo.resolve("r1")) == third.resolve("r1")
    assert third.commit_info("r1").created == source.commit_info("r1").created


def test_a_second_run_copies_only_what_is_new_and_deletes_nothing(source, place):
    clone(source, place)
    nothing = clone(source, place)
    assert (nothing.commits, nothing.contents, nothing.moved) == (0, 0, ())
    source.create_branch("fresh", "side")
    save(source, "side", {"more": b"more"}, "more")
    source.merge("side", "main", "second merge")
    source.delete_branch("ops")
    more = clone(source, place)
    assert (more.commits, more.contents, more.bytes) == (2, 1, 4)
    assert (more.made, more.moved, more.gone) == (("fresh",), ("main", "side"), ("ops",))
    check_clone(source, opened(place), {}, within=EXACT)
    assert "ops" in opened(place).branches()


def test_staged_changes_and_sessions_are_not_copied_and_the_first_are_told(source, place):
    source.put("side", "staged", b"?")
    session = source.session("side", owner="somebody")
    session.put("unfinished", b"?")
    cloned = clone(source, place)
    assert cloned.staged == ("side",)
    dest = opened(place)
    assert list(dest.uncommitted("side")) == []
    assert set(dest.branches()) == {"main", "ops", "side"}
    assert set(dest.tags()) == {"r1"}
    session.abandon()


def test_a_destination_with_a_history_of_its_own_is_refused_unchanged(source, place):
    other = lake.create(place)
    save(other, "main", {"mine": b""}, "mine")
    before = state(other)
    with pytest.raises(ConflictError, match="neither empty nor an earlier clone"):
        clone(source, place)
    assert state(other) == before


def test_a_branch_that_moved_on_by_itself_is_left_alone_and_named_and_the_others_go_on(source, place):
    clone(source, place)
    dest = opened(place)
    own = save(dest, "side", {"own": b""}, "of its own")
    save(source, "side", {"theirs": b""}, "theirs")
    source.create_branch("fresh", "r1")
    cloned = clone(source, place)
    assert set(cloned.refused) == {"side"}
    assert "of its own" in cloned.refused["side"]
    assert dest.resolve("side") == own
    assert cloned.made == ("fresh",)
    assert cloned.commits == 0, "what only a refused branch leads to is not copied"
    check_clone(source, dest, cloned.refused, within=EXACT)


def test_a_branch_of_the_destinations_own_is_neither_gone_nor_touched(source, place):
    clone(source, place)
    dest = opened(place)
    dest.create_branch("own", "side")
    save(dest, "own", {"own": b"1"}, "own")
    assert clone(source, place).gone == ()
    assert dest.get("own", "own") == b"1"


def test_a_destination_that_moves_before_the_clone_holds_it_is_left_alone(source, place, monkeypatch):
    clone(source, place)
    dest = opened(place)
    save(source, "side", {"more": b"more"}, "more")
    lock = lake.clone._lock

    def late(repo, owner):
        save(dest, "side", {"meanwhile": b"1"}, "meanwhile")
        return lock(repo, owner)

    monkeypatch.setattr("lake.clone._lock", late)
    with pytest.raises(ConflictError, match="moved just now"):
        clone(source, place)
    assert dest.commit_info("side").message == "meanwhile"


def test_all_new_heads_are_compared_those_that_only_a_tag_leads_to_as_well(source, place):
    source.create_tag("old", "side")
    source.reset_to("side", "side~1")
    heads = {source.resolve(name) for name in (*source.branches(), *source.tags())}
    assert source.resolve("old") not in source.branches().values()
    assert clone(source, place).compared == sum(1 for head in heads for _ in source.list(head))


@pytest.mark.parametrize(("key", "text"), [("a", "text/plain"), ("more", "application/octet-stream")])
def test_a_comparison_names_what_differs_in_type_alone_or_is_on_one_side_alone(source, place, key, text):
    *_, first = source.log("main")
    source.create_branch("plain", first.id)
    at = save(source, "plain", {"a": b"1", "b": b"2"})
    dest = lake.create(place)
    dest.put("main", key, b"1", content_type=text)
    clone_at = save(dest, "main", {"b": b"2"} | ({"a": b"1"} if key != "a" else {}))
    copier = copying.Copier(source, dest, dest.importer(), lambda *_: None)
    with pytest.raises(CorruptObject, match=f"'{key}'"):
        copying.compare(copier, at, clone_at, reread=False)


def test_what_was_picked_from_a_clone_is_not_taken_for_it(source, place):
    old = save(source, "side", {"more": b"more"}, "more")
    clone(source, place)
    dest = opened(place)
    dest.create_branch("pick", "main")
    made = dest.cherry_pick("pick", "side")
    assert origins(dest.commit_info(made).metadata) == ()
    assert dest.resolve(old) == dest.resolve("side") != made


def test_a_branch_with_staged_changes_at_the_destination_is_left_alone(source, place):
    clone(source, place)
    dest = opened(place)
    dest.put("side", "staged", b"?")
    save(source, "side", {"theirs": b""}, "theirs")
    assert clone(source, place).refused == {"side": "it has staged changes"}
    assert dest.get("side", "staged") == b"?"


def test_a_branch_or_tag_that_the_source_made_anew_is_left_alone(source, place):
    clone(source, place)
    source.delete_branch("side")
    source.create_branch("side", "main~3")
    source.delete_tag("r1")
    source.create_tag("r1", "main")
    before = state(opened(place))
    assert set(clone(source, place).refused) == {"side", "r1"}
    assert state(opened(place)) == before


def test_a_branch_that_the_source_moved_back_is_left_alone_and_not_said_to_have_moved_here(source, place):
    save(source, "side", {"more": b"1"}, "more")
    clone(source, place)
    source.reset_to("side", "side~1")
    refused = clone(source, place).refused
    assert set(refused) == {"side"}
    assert "moved it back" in refused["side"]


def test_main_is_moved_when_all_else_is_there(source, place, monkeypatch):
    moved = []
    move = EmbeddedImporter.move

    def watched(importer, moves):
        for each in moves:
            moved.append(each.branch)
            move(importer, [each])

    monkeypatch.setattr(EmbeddedImporter, "move", watched)
    clone(source, place)
    assert sorted(moved) == ["main", "ops", "side"]
    assert moved[-1] == "main"


def test_a_repository_is_not_cloned_into_itself(source, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(source.location)
    for where in (source.location, link):
        with pytest.raises(BadInput, match="the source itself"):
            clone(source, where)


def test_while_somebody_publishes_at_the_destination_it_waits_then_refuses(source, place, monkeypatch):
    dest = lake.create(place)
    monkeypatch.setattr("lake.clone.WAIT_S", 0.0)
    with dest.session("main", owner="publisher"), pytest.raises(ConflictError, match="publisher"):
        clone(source, place)


def test_a_damaged_object_stops_the_clone_before_a_branch_moves(source, place):
    path = source.stat("main", "b").address
    import os

    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(b"3")
    with pytest.raises(CorruptObject, match="'b'"):
        clone(source, place)
    dest = opened(place)
    assert list(dest.list("main")) == []
    with open(path, "wb") as file:
        file.write(b"2")
    clone(source, place)
    check_clone(source, dest, {}, within=EXACT)


def test_with_reread_an_object_damaged_at_the_destination_is_found(source, place):
    clone(source, place)
    dest = opened(place)
    path = dest.stat("side", "typed").address
    import os

    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(b"y")
    save(source, "side", {"more": b"more"}, "more")
    with pytest.raises(CorruptObject, match="'typed'"):
        clone(source, place, reread=True)


POINTS = [
    "clone.commit-rebuilt:1",
    "clone.commit-rebuilt:5",
    "clone.compared",
    "clone.branches-moved",
    "clone.tagged",
    "clone.protected",
    "rebuild.manifest-written:4",
    "forward.before-ref",
    "put.object-kept:10",
    "delete-branch.forgotten:4",
    "session.work-removed",
]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_it_goes_on_where_it_was(source, place, point):
    assert run(python(CLONE, source.location, place), kill_at=point).killed
    dest = opened(place)
    check_whole(dest)
    made = sum(1 for head in dest.branches("session-clone-").values() for _ in dest.log(head))
    cloned = clone(source, place)
    check_clone(source, dest, {}, within=EXACT)
    assert cloned.commits < 8 or made <= 1


@pytest.mark.slow
@pytest.mark.soak
def test_killed_at_every_pass_of_every_point_it_goes_on(source, tmp_path):
    passes = passes_of(python(CLONE, source.location, tmp_path / "whole"))
    assert len(passes) > 20
    for number, at in enumerate(passes):
        place = tmp_path / f"clone{number}"
        assert run(python(CLONE, source.location, place), kill_at=at).killed, at
        clone(source, place)
        check_sessions_swept(opened(place))
        check_clone(source, opened(place), {}, within=EXACT)
    print(f"killed {len(passes)} times")


def machine(tmp_path):
    number = itertools.count()

    def make():
        n = next(number)
        return lake.create(tmp_path / f"repo{n}"), tmp_path / f"clone{n}"

    return make


def test_random_histories_are_cloned_whole(tmp_path):
    run_cloning_machine(machine(tmp_path), examples=4, steps=20)


@pytest.mark.slow
def test_many_random_histories_are_cloned_whole(tmp_path):
    run_cloning_machine(machine(tmp_path), examples=40, steps=40)


def test_a_listing_is_the_same_whether_objects_are_looked_up_or_listed(source):
    from lake.copying import stats_of

    keys = [stat.key for stat in source.list("r1")]
    for wanted in (keys, keys[::2], keys[-1:], keys[:3] + keys[30:]):
        assert [stat.key for stat in stats_of(source, source.resolve("r1"), wanted)] == wanted
    assert content_of(source, "r1")
