"""Parameter sets: named, versioned, and what a version says never changes."""

import json

import pytest

from lake.errors import BadInput, ConflictError, CorruptObject, NotFound, StageFailed
from transforms import params
from transforms.dispatch import Retry
from transforms.runner import run
from transforms.testing.repos import toy_pipeline, toy_repository
from transforms.testing.stages import TOYS


@pytest.fixture
def repo(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    yield repo
    repo.close()


def add(repo, values, name="default", stage="paint"):
    return params.add(repo, "work", stage, name, values, stages=TOYS)


def test_versions_count_up_and_old_ones_stay(repo):
    first, second = add(repo, {"seed": 1}), add(repo, {"seed": 2})
    assert (first.version, second.version) == (1, 2)
    assert params.show(repo, "work", "paint", "default@1") == first
    assert params.show(repo, "work", "paint", "default@2") == second
    assert [s.id for s in params.list_sets(repo, "work")] == ["paint/default/1", "paint/default/2"]


def test_the_same_values_are_the_same_version_and_write_nothing(repo):
    first = add(repo, {"seed": 1})
    head = repo.resolve("work")
    assert add(repo, {"seed": 1}) == first
    assert repo.resolve("work") == head


def test_a_set_holds_every_parameter_so_that_defaults_may_move(repo):
    assert add(repo, {}).values == add(repo, {"seed": 0}).values
    assert "shape" in add(repo, {}).values


@pytest.mark.parametrize(
    ("values", "message"),
    [({"sed": 1}, "no parameter 'sed'"), ({"channels": 9}, "channels"), ({"model": "x"}, "cannot hold a model")],
)
def test_wrong_values_are_refused(repo, values, message):
    with pytest.raises(BadInput, match=message):
        add(repo, values)
    assert params.list_sets(repo, "work") == []


def test_wrong_names_are_refused_with_the_nearest_one(repo):
    add(repo, {})
    with pytest.raises(BadInput, match="no stage 'pant'"):
        add(repo, {}, stage="pant")
    with pytest.raises(BadInput, match="'A b'"):
        add(repo, {}, name="A b")
    with pytest.raises(NotFound, match="defualt@1") as caught:
        params.show(repo, "work", "paint", "defualt@1")
    assert "default@1" in caught.value.fix
    with pytest.raises(BadInput, match="'default' is not a name"):
        params.show(repo, "work", "paint", "default")


def test_a_set_that_was_tampered_with_is_not_used(repo):
    made = add(repo, {"seed": 1})
    raw = json.loads(repo.get("work", made.key))
    raw["values"]["seed"] = 2
    repo.put("work", made.key, json.dumps(raw).encode())
    repo.commit("work", "tampered")
    with pytest.raises(CorruptObject, match=made.key):
        params.show(repo, "work", "paint", "default@1")


def test_adding_a_set_never_lands_an_unfinished_run(repo):
    with pytest.raises(StageFailed):
        run(repo, toy_pipeline("paint", paint={"fail_at": "0_1_0"}), "work", retry=Retry(1))
    with pytest.raises(ConflictError, match="unfinished"):
        add(repo, {})
    assert run(repo, toy_pipeline("paint"), "work").taken_over == 3
