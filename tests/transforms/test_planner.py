"""Plans: what would be done, and why, before anything is."""

import json

import pytest

from lake.errors import BadInput
from transforms.planner import plan
from transforms.runner import run
from transforms.stage import Stage, TableIn, TableOut, VolumeIn, VolumeOut
from transforms.testing.repos import toy_pipeline, toy_repository
from transforms.testing.stages import Smooth


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    repo = toy_repository(tmp_path_factory.mktemp("finished") / "repo")
    run(repo, toy_pipeline("join"), "work")
    yield repo
    repo.close()


def states(found):
    return {stage.stage.name: stage.counts() for stage in found.stages}


def test_on_an_empty_branch_the_first_stage_is_new_and_the_rest_depends_on_it(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    found = plan(repo, "work", toy_pipeline("join"))
    assert states(found) == {
        "paint": {"new": 4},
        "smooth": {"depends": 4},
        "cut": {"depends": 4},
        "join": {"depends": 1},
    }
    assert not found.nothing_to_do
    assert repo.branches("session-") == {}


def test_after_a_run_there_is_nothing_to_do(finished):
    found = plan(finished, "work", toy_pipeline("join"))
    assert found.nothing_to_do
    assert "nothing to do" in found.explain()


def test_a_plan_says_which_parameter_makes_which_stage_stale(finished):
    found = plan(finished, "work", toy_pipeline("join", cut={"level": 100}))
    assert states(found) == {
        "paint": {"unchanged": 4}, "smooth": {"unchanged": 4}, "cut": {"stale": 4}, "join": {"depends": 1},
    }  # fmt: skip
    text = found.explain()
    assert "cut: 4 stale; writes 16 kB" in text
    assert "4 x params: level 128 -> 100" in text
    assert "1 x waits for cut" in text


def test_a_plan_is_data(finished):
    found = plan(finished, "work", toy_pipeline("join", cut={"level": 100}))
    told = json.loads(json.dumps(found.to_json()))
    cut = told["stages"][2]
    assert (cut["stage"], cut["stale"], cut["blocks"]) == ("cut", 4, 4)
    assert cut["bytes"] == 8 * 16 * 16 * 8
    assert cut["memory"] > cut["bytes"] / 4
    assert cut["todo"][0] == {"block": "cut/0_0_0", "state": "stale", "why": "params: level 128 -> 100"}


def test_planning_changes_nothing(finished):
    before = dict(finished.branches())
    plan(finished, "work", toy_pipeline("label", cut={"level": 100}))
    assert dict(finished.branches()) == before
    assert list(finished.uncommitted("work")) == []


def test_a_block_that_would_share_a_chunk_with_its_neighbour_is_refused(finished, monkeypatch):
    monkeypatch.setattr(Smooth, "block_shape", lambda self, scene: (4, 8, 8))
    with pytest.raises(BadInput, match=r"smooth/0_0_0.*cuts chunks \(8, 8, 8\)"):
        plan(finished, "work", toy_pipeline("smooth"))


def test_two_stages_must_not_write_one_thing(finished, monkeypatch):
    monkeypatch.setattr(Smooth, "writes", lambda self: (VolumeOut("smooth"), TableOut("agglomeration")))
    with pytest.raises(BadInput, match="'smooth' and 'join' both write tables/agglomeration"):
        plan(finished, "work", toy_pipeline("join"))


def test_a_table_that_nobody_writes_is_named(finished, monkeypatch):
    monkeypatch.setattr(Smooth, "reads", lambda self: (VolumeIn("em"), TableIn("segments")))
    with pytest.raises(BadInput, match="table 'segments' does not exist"):
        plan(finished, "work", toy_pipeline("smooth"))


def test_a_stage_over_everything_cannot_read_voxels(finished, monkeypatch):
    monkeypatch.setattr(Smooth, "grid", "whole")
    monkeypatch.setattr(Smooth, "volumes", Stage.volumes)
    with pytest.raises(BadInput, match="has no box"):
        plan(finished, "work", toy_pipeline("smooth"))


def test_a_new_version_of_a_stage_makes_it_stale(finished, monkeypatch):
    monkeypatch.setattr(Smooth, "version", 2)
    found = plan(finished, "work", toy_pipeline("smooth"))
    assert found.stages[1].reasons() == {"version 1 -> 2": 4}
