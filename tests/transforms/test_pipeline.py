"""Pipelines are read strictly: whatever is not known is refused with the nearest known name."""

import pytest

from lake.errors import BadInput, NotFound
from transforms import params
from transforms.model_store import find_models
from transforms.pipeline import builtin_pipelines, load_pipeline, resolve
from transforms.planner import plan
from transforms.runner import run
from transforms.stages import STAGES, stage_class
from transforms.testing.repos import toy_pipeline, toy_repository
from transforms.testing.stages import TOYS

GOOD = """
name = "toys"
[grid]
block_zyx = [8, 8, 8]
[[stages]]
stage = "paint"
params = { seed = 3 }
[[stages]]
stage = "smooth"
"""


def write(tmp_path, text):
    path = tmp_path / "pipeline.toml"
    path.write_text(text)
    return path


def test_a_good_file_is_read(tmp_path):
    pipeline = load_pipeline(write(tmp_path, GOOD), stages=TOYS)
    assert [step.stage for step in pipeline.steps] == ["paint", "smooth"]
    assert pipeline.steps[0].params == {"seed": 3}
    assert pipeline.block == (8, 8, 8)


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        (('stage = "smooth"', 'stage = "smoth"'), "there is no stage 'smoth'", "did you mean 'smooth'"),
        (("seed = 3", "sed = 3"), "stage 'paint' has no parameter 'sed'", "did you mean 'seed'"),
        (("seed = 3", 'seed = "three"'), "parameter 'seed'.*'three'", "emlake params show paint"),
        (("params =", "parms ="), "stage 1: unknown key 'parms'", "did you mean 'params'"),
        (("[grid]", "[gird]"), "unknown key 'gird'", "did you mean 'grid'"),
        (("[8, 8, 8]", "[8, 8]"), r"block_zyx \[8, 8\]", "three positive integers"),
        (('stage = "smooth"', 'stage = "paint"'), "names stage 'paint' twice", "once"),
        (('stage = "smooth"', 'stage = "smooth"\nmodel = "m"'), "takes no model", "leave it out"),
        (("name =", "name"), "not valid TOML", "line"),
        (('name = "toys"', ""), "has no name", "pipelines"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_name(tmp_path, change, message, fix):
    with pytest.raises(BadInput, match=message) as caught:
        load_pipeline(write(tmp_path, GOOD.replace(*change)), stages=TOYS)
    assert fix in caught.value.fix


def test_a_file_that_is_not_there_and_a_name_that_is_not_known():
    with pytest.raises(BadInput, match=r"no pipeline file nowhere\.toml"):
        load_pipeline("nowhere.toml")
    with pytest.raises(BadInput, match="'reconstrct'") as caught:
        load_pipeline("reconstrct")
    assert "did you mean 'reconstruct'" in caught.value.fix


def test_the_pipelines_that_come_with_emlake_are_valid():
    for name, path in builtin_pipelines().items():
        pipeline = load_pipeline(path)
        assert pipeline.name == name


def test_every_stage_is_declared_under_its_own_name_with_documented_parameters():
    for name in STAGES:
        kind = stage_class(name)
        assert kind.name == name
        assert kind.version >= 1
        assert all(field.description for field in kind.model_fields.values()), name


def test_a_stage_without_its_model_is_refused():
    with pytest.raises(BadInput, match="'affinity' names no model"):
        load_pipeline({"name": "x", "stages": [{"stage": "affinity"}]})
    raw = {"name": "x", "models": {"membranes": "a" * 64}, "stages": [{"stage": "affinity", "model": "membrane"}]}
    with pytest.raises(BadInput, match="unknown model 'membrane'") as caught:
        load_pipeline(raw)
    assert "membranes" in caught.value.fix


def test_a_pipeline_for_another_grid_is_refused(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    with pytest.raises(BadInput, match=r"\(16, 16, 16\).*\(8, 8, 8\)"):
        plan(repo, "work", load_pipeline(write(tmp_path, GOOD.replace("8, 8, 8", "16, 16, 16")), stages=TOYS))


def test_a_model_that_is_nowhere_is_named(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    raw = {"name": "x", "stages": [{"stage": "affinity", "model": "a" * 64}]}
    with pytest.raises(NotFound, match="no model aaaa"):
        plan(repo, "work", load_pipeline(raw))
    raw = {"name": "x", "models": {"m": str(tmp_path / "none")}, "stages": [{"stage": "affinity", "model": "m"}]}
    with pytest.raises(NotFound, match="no model folder"):
        plan(repo, "work", load_pipeline(raw))


def test_parameters_and_ends_can_be_changed_by_name():
    pipeline = toy_pipeline("smooth", paint={"seed": 9})
    assert pipeline.steps[0].params == {"seed": 9}
    assert len(pipeline.steps) == 2
    with pytest.raises(BadInput, match="no stage 'pant'"):
        pipeline.with_params({"pant": {}})
    with pytest.raises(BadInput, match="no stage 'label'"):
        pipeline.up_to("label")


def test_a_named_parameter_set_is_used_and_named_in_the_record(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    made = params.add(repo, "work", "paint", "bright", {"seed": 5}, stages=TOYS)
    raw = {"name": "toys", "stages": [{"stage": "paint", "params": "bright@1"}]}
    pipeline = load_pipeline(raw, stages=TOYS)
    (resolved,) = resolve(pipeline, repo, "work", find_models(pipeline, repo))
    assert (resolved.params_id, resolved.params_digest) == ("paint/bright/1", made.digest)
    run(repo, pipeline, "work")
    with repo.snapshot("work") as snapshot:
        assert snapshot.sql("select params_id, params_digest from ops.runs").rows() == [(made.id, made.digest)]
    with pytest.raises(NotFound, match="'brigth@1'") as caught:
        plan(
            repo,
            "work",
            load_pipeline({"name": "t", "stages": [{"stage": "paint", "params": "brigth@1"}]}, stages=TOYS),
        )
    assert "bright@1" in caught.value.fix
