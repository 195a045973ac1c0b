"""`emlake clone`, as a user calls it."""

import json

import pytest

import lake
from lake.testing.cloning import build
from lake.testing.crash import python, run
from lake.testing.proxy import MERGES, RECORDS
from releases.setup import DAYS, is_ready


def test_clone_explains_copies_and_then_has_nothing_to_do(emlake, tmp_path):
    source, place = tmp_path / "lab", tmp_path / "copy"
    emlake("init", source)
    emlake("release", "candidate", "r1", "--repo", source)
    foreseen = json.loads(emlake("clone", source, place, "--explain", "--json").out)
    assert not place.exists()
    assert (foreseen["dry_run"], foreseen["bytes"] > 0) == (True, True)
    answer = emlake("clone", source, place)
    assert answer.code == 0
    assert f"copied {foreseen['commits']} commits" in answer.out
    assert f"{foreseen['objects']} changes of objects" in answer.out
    assert "new branches: archive, cand-r1, main, ops" in answer.out
    assert "moved branches" not in answer.out
    assert "by recorded checksums: equal" in answer.out
    logs = [json.loads(emlake("log", "cand-r1", "--repo", at, "--json").out)["commits"] for at in (source, place)]
    for told in ("message", "created", "committer"):
        assert [c[told] for c in logs[0]] == [c[told] for c in logs[1]] != [None] * len(logs[0])
    assert [c["id"] for c in logs[0]] == [c["metadata"]["cloned_from"] for c in logs[1]]
    again = emlake("clone", source, place, "--verify", "full").out
    assert again.startswith("copied 0 commits")
    assert "compared nothing: no head is new" in again
    assert "unfinished" not in emlake("doctor", "--repo", place).out


def test_doctor_says_that_a_clone_was_killed(emlake, tmp_path):
    emlake("init", tmp_path / "lab")
    code = "import sys, lake; from lake.clone import clone; clone(lake.open(sys.argv[1]), sys.argv[2])"
    assert run(python(code, tmp_path / "lab", tmp_path / "copy"), kill_at="clone.compared").killed
    killed = emlake("doctor", "--repo", tmp_path / "copy")
    assert ("unfinished" in killed.out, killed.code) == (True, 6)
    emlake("clone", tmp_path / "lab", tmp_path / "copy")
    assert "unfinished" not in emlake("doctor", "--repo", tmp_path / "copy").out


def test_clone_names_a_branch_that_moved_on_and_ends_with_5_after_the_rest(emlake, tmp_path):
    source, place = tmp_path / "lab", tmp_path / "copy"
    emlake("init", source)
    emlake("clone", source, place)
    with lake.open(place).session("ops") as session:
        session.put("note", b"mine")
        session.commit("a note of its own")
    with lake.open(source).session("ops") as session:
        session.put("note", b"theirs")
        session.commit("a note")
    emlake("release", "candidate", "r1", "--repo", source)
    answer = emlake("clone", source, place)
    assert answer.code == 5
    assert "new branches: cand-r1" in answer.out
    assert "ops: it has moved on by itself" in answer.err
    assert "a note of its own" in answer.err


def test_clone_into_a_stranger_or_from_nowhere_is_refused(emlake, tmp_path):
    emlake("init", tmp_path / "lab")
    emlake("init", tmp_path / "other")
    before = lake.open(tmp_path / "other").branches()
    stranger = emlake("clone", tmp_path / "lab", tmp_path / "other")
    assert (stranger.code, "neither empty nor an earlier clone" in stranger.err) == (5, True)
    assert lake.open(tmp_path / "other").branches() == before
    assert emlake("clone", tmp_path / "nowhere", tmp_path / "copy").code == 4
    assert emlake("clone", tmp_path / "lab", tmp_path / "lab").code == 2
    inside = emlake("clone", tmp_path / "lab", tmp_path / "lab" / "objects" / "copy")
    assert (inside.code, "inside the source" in inside.err) == (2, True)
    assert not (tmp_path / "lab" / "objects" / "copy").exists()


@pytest.mark.lakefs
@pytest.mark.slow
def test_clone_to_a_server_makes_it_ready_for_releases(emlake, lakefs_location, tmp_path):
    emlake("init", tmp_path / "lab")
    assert emlake("clone", tmp_path / "lab", lakefs_location).code == 0
    dest = lake.open(lakefs_location)
    assert is_ready(dest)
    assert dest.retention().days() == DAYS


@pytest.mark.lakefs
@pytest.mark.slow
def test_clone_says_what_a_server_without_commit_records_cannot_have(emlake, lakefs_behind, tmp_path):
    source = build(lake.create(tmp_path / "lab"))
    (merge,) = [commit.id for commit in source.log("main") if len(commit.parents) > 1]
    place = lakefs_behind({RECORDS: 404, MERGES: 403})
    lake.create(place).close()
    why = "it takes no commit records (404: not offered here)"
    assert why in emlake("clone", source.location, place, "--explain").out
    answer = emlake("clone", source.location, place)
    assert answer.code == 0
    assert why in answer.out
    assert f"first parent only: {merge[:12]}: rebuild a merge: not offered here" in answer.out
    told = json.loads(emlake("clone", source.location, lakefs_behind({RECORDS: 403}), "--json").out)
    assert (told["lost"], "403" in told["plain"]) == ({}, True)
