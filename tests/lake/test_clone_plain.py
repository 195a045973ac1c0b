"""A repository cloned to a server that takes no commit records: real ones, but for a proxy that says so."""

from datetime import UTC, datetime, timedelta

import pytest

import lake
from lake.clone import clone
from lake.clones import original_committer, original_metadata, original_time, parents_of
from lake.errors import ServerUnreachable
from lake.repository import Commit
from lake.testing.cloning import CLONE, all_commits, build, content_of
from lake.testing.crash import check_sessions_swept, passes_of, python, run
from lake.testing.proxy import MERGES, RECORDS
from lake.testing.trees import save

pytestmark = [pytest.mark.lakefs, pytest.mark.slow]


@pytest.fixture
def source(tmp_path):
    repo = build(lake.create(tmp_path / "source"))
    yield repo
    repo.close()


def check_plain(source, dest, lost=(), among="cloned_from"):
    """The clone has all that the source has: trees and words exactly, parents but for those that are `lost`."""
    by_origin = {commit.metadata.get(among): commit for commit in all_commits(dest).values()}
    root = dest.resolve([*dest.log("main", first_parent=True)][-1].id)
    for ours, theirs in ((source.branches(), dest.branches()), (source.tags(), dest.tags())):
        for name, head in ours.items():
            assert theirs[name] == by_origin[head].id, name
    for commit in all_commits(source).values():
        copy = by_origin[commit.id]
        assert content_of(dest, copy.id) == content_of(source, commit.id)
        assert (copy.message, original_committer(copy)) == (commit.message, commit.committer)
        assert original_time(copy) == commit.created
        assert original_metadata(copy) == dict(commit.metadata)
        assert dest.resolve(commit.id) == copy.id
        parents = tuple(by_origin[parent].id for parent in commit.parents) or (root,)
        assert copy.parents == (parents[:1] if commit.id in lost else parents)
        assert parents_of(dest, copy) == parents
    assert set(source.protected()) <= set(dest.protected())
    assert not [name for name in dest.branches() if name.startswith("session-")]


def merges(repo):
    return {commit.id for commit in all_commits(repo).values() if len(commit.parents) > 1}


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501, 400, 200])
def test_without_commit_records_merges_are_the_servers_own_and_nothing_is_lost(source, lakefs_behind, tmp_path, status):
    place = lakefs_behind({RECORDS: status})
    done = clone(source, place)
    assert str(status) in done.plain
    assert done.lost == {}
    dest = lake.open(place)
    check_plain(source, dest)
    assert clone(source, place).commits == 0
    clone(dest, tmp_path / "back")
    back = lake.open(tmp_path / "back")
    for commit in all_commits(source).values():
        returned = back.commit_info(commit.id)
        assert (returned.message, returned.committer) == (commit.message, commit.committer)
        assert returned.created == commit.created
        assert original_metadata(returned) == dict(commit.metadata)
        assert content_of(back, returned.id) == content_of(source, commit.id)


def test_a_server_that_takes_records_is_asked_without_a_trace(source, lakefs_behind):
    place = lakefs_behind({})
    dest = lake.create(place)
    before = dest.branches(), dest.tags(), [*dest.log("main")]
    foreseen = clone(source, place, dry_run=True)
    assert (foreseen.plain, foreseen.lost) == ("", {})
    assert (dest.branches(), dest.tags(), [*dest.log("main")]) == before
    assert clone(source, place).plain == ""
    assert {len(c.parents) for c in all_commits(dest).values()} == {0, 1, 2}


def test_where_merging_is_refused_too_a_merge_keeps_its_first_parent_and_says_so(source, lakefs_behind):
    place = lakefs_behind({RECORDS: 404, MERGES: 403})
    source.delete_branch("side")  # now only the merge leads to its second parent
    done = clone(source, place)
    assert set(done.lost) == merges(source) != set()
    assert all("not offered here" in why for why in done.lost.values())
    dest = lake.open(place)
    check_plain(source, dest, done.lost)
    (kept,) = dest.branches("clone-kept-")
    (merge,) = done.lost
    assert dest.branches()[kept] == dest.resolve(source.commit_info(merge).parents[1])
    source.create_branch("later", "main")
    save(source, "later", {"later": b"1"}, "later")
    more = clone(source, place)
    assert (more.commits, more.made, more.gone) == (1, ("later",), ("side",) if "side" in dest.branches() else ())
    assert more.lost == {merge: "in an earlier run"}
    check_plain(source, dest, more.lost)


@pytest.mark.parametrize("onto", ["a folder", "a server"])
def test_cloned_on_to_where_records_are_taken_merges_have_their_parents_again(
    source, lakefs_behind, lakefs_server, monkeypatch, tmp_path, onto
):
    place = lakefs_behind({RECORDS: 404, MERGES: 403})
    source.delete_branch("side")  # now only the merge leads to its second parent
    (lost,) = clone(source, place).lost
    plain = lake.open(place)
    monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", lakefs_server.endpoint)
    last = tmp_path / "back" if onto == "a folder" else lakefs_server.location("back-" + place.rpartition("/")[2])
    done = clone(plain, last)
    assert (done.plain, done.lost) == ("", {})
    back = lake.open(last)
    check_plain(source, back, among="cloned_before")
    merge = back.commit_info(lost)
    assert merge.parents == tuple(back.resolve(parent) for parent in source.commit_info(lost).parents)
    assert "cloned_parents" not in merge.metadata
    assert back.branches("clone-kept-") == {}
    assert clone(plain, last).commits == 0


def test_parents_that_nobody_kept_stay_lost_and_are_named_on(source, lakefs_behind, tmp_path):
    place = lakefs_behind({RECORDS: 404, MERGES: 403})
    source.delete_branch("side")
    (lost,) = clone(source, place).lost
    plain = lake.open(place)
    for name in plain.branches("clone-kept-"):
        plain.delete_branch(name)
    clone(plain, tmp_path / "back")
    back = lake.open(tmp_path / "back")
    merge = back.commit_info(lost)
    assert len(merge.parents) == 1
    assert merge.metadata["cloned_parents"] == ",".join(source.commit_info(lost).parents)


def test_a_merge_that_holds_what_no_parent_holds_keeps_its_first_parent(source, lakefs_behind, tmp_path):
    importer = source.importer()
    left, right = source.resolve("main"), source.resolve("side")
    source.create_branch("evil", "main")
    source.put("evil", "a", b"of neither side")
    now = datetime.now(UTC)
    made = importer.commit("evil", Commit("", (left, right), "settled by hand", {}, "ann", now))
    place = lakefs_behind({RECORDS: 404})
    done = clone(source, place)
    assert done.lost == {made: "its tree holds what none of its parents holds"}
    dest = lake.open(place)
    check_plain(source, dest, done.lost)
    assert dest.branches("clone-kept-") == {}, "the branch `side` holds it"
    clone(dest, tmp_path / "back")
    back = lake.open(tmp_path / "back")
    assert parents_of(back, back.commit_info(made)) == (back.resolve(left), back.resolve(right))


def test_conflicts_that_one_side_won_are_won_again(source, lakefs_behind):
    for strategy in ("source-wins", "dest-wins"):
        source.create_branch(f"left-{strategy}", "side")
        source.create_branch(f"right-{strategy}", "side")
        save(source, f"left-{strategy}", {"fought": b"left", "l": b""}, "left")
        save(source, f"right-{strategy}", {"fought": b"right", "r": b""}, "right")
        source.merge(f"right-{strategy}", f"left-{strategy}", "fought", strategy=strategy)
    place = lakefs_behind({RECORDS: 404})
    done = clone(source, place)
    assert done.lost == {}
    check_plain(source, lake.open(place))


def test_a_server_that_gained_records_goes_on_where_an_older_one_was(source, lakefs_behind, lakefs_server, monkeypatch):
    place = lakefs_behind({RECORDS: 404})
    clone(source, place)
    monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", lakefs_server.endpoint)
    newer = lakefs_server.location(place.rpartition("/")[2])
    save(source, "side", {"more": b"more"}, "more")
    source.merge("side", "main", "second merge")
    done = clone(source, newer)
    assert (done.commits, done.plain, done.moved) == (2, "", ("main", "side"))
    check_plain(source, lake.open(newer))


def test_a_fault_that_says_nothing_of_records_is_no_reason_to_do_without(source, lakefs_behind):
    place = lakefs_behind({RECORDS: 503})
    with pytest.raises(ServerUnreachable):
        clone(source, place)
    assert list(lake.open(place).branches()) == ["main"]


@pytest.mark.parametrize(
    "point", ["rebuild.committed:4", "rebuild.merged", "clone.commit-rebuilt:6", "clone.protected"]
)
def test_killed_at_any_point_it_goes_on_where_it_was(source, lakefs_behind, point):
    place = lakefs_behind({RECORDS: 404})
    assert run(python(CLONE, source.location, place), kill_at=point).killed
    done = clone(source, place)
    assert done.commits < len(all_commits(source)) - 2
    check_plain(source, lake.open(place))


@pytest.mark.soak
@pytest.mark.parametrize("refusals", [{RECORDS: 404}, {RECORDS: 404, MERGES: 403}], ids=["merges", "first parents"])
def test_killed_at_every_pass_of_every_point_it_goes_on(source, lakefs_behind, refusals):
    source.delete_branch("side")
    lost = merges(source) if MERGES in refusals else ()
    passes = passes_of(python(CLONE, source.location, lakefs_behind(refusals)))
    assert len(passes) > 20
    for at in passes:
        place = lakefs_behind(refusals)
        assert run(python(CLONE, source.location, place), kill_at=at).killed, at
        clone(source, place)
        check_sessions_swept(lake.open(place))
        check_plain(source, lake.open(place), lost)
    print(f"killed {len(passes)} times")


def test_a_day_old_commit_has_its_time_where_the_server_can_give_it(source, lakefs_behind):
    old = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    source.importer().commit("side", Commit("", (source.resolve("side"),), "old", {}, "ann", old))
    place = lakefs_behind({RECORDS: 404})
    clone(source, place)
    dest = lake.open(place)
    assert dest.commit_info("side").created == old
    assert abs(dest.commit_info("r1").created - datetime.now(UTC)) < timedelta(minutes=10), "a merge takes no time"
