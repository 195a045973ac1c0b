"""A pipeline is a TOML file: which stages, in which order, with which parameters and models.

::

    name = "reconstruct"

    [grid]                          # optional; must agree with the repository's
    block_zyx = [64, 64, 64]

    [models]                        # a digest in the repository, a folder beside this file, or builtin:<name>
    membranes = "builtin:affinity"

    [[stages]]
    stage = "affinity"
    model = "membranes"
    params = "default@1"            # a named set of the branch ...

    [[stages]]
    stage = "watershed"
    params = { min_voxels = 60 }    # ... or values; what is not named keeps its default

Unknown keys, stages, parameters and models are refused with the nearest known name, before anything is read.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lake.box import Zyx
from lake.digests import json_digest
from lake.errors import BadInput, nearest
from lake.repository import Repository
from transforms import params as parameter_sets
from transforms.stage import Stage, configure
from transforms.stages import stage_class

BUILTIN = "builtin:"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Step:
    """One stage as a pipeline names it, before the repository has been looked at.

    `params` is a reference `name@version`, or values.
    """

    stage: str
    params: str | Mapping[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as read from its file; `resolve` makes stages of it."""

    name: str
    steps: tuple[Step, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    block: Zyx | None = None
    folder: Path | None = None
    stages: Mapping[str, str] | None = None

    def with_params(self, changes: Mapping[str, Mapping[str, Any]]) -> "Pipeline":
        """Give a pipeline in which some stages have other values; a named set is replaced, not changed."""
        unknown = [name for name in changes if name not in {step.stage for step in self.steps}]
        if unknown:
            raise BadInput(
                f"pipeline {self.name!r} has no stage {unknown[0]!r}",
                fix=nearest(unknown[0], [step.stage for step in self.steps]),
            )
        steps = []
        for step in self.steps:
            if step.stage in changes:
                kept = {} if isinstance(step.params, str) else dict(step.params)
                step = replace(step, params={**kept, **changes[step.stage]})
            steps.append(step)
        return replace(self, steps=tuple(steps))

    def with_models(self, models: Mapping[str, str]) -> "Pipeline":
        """Give a pipeline with other models behind the same names."""
        for name in models:
            if name not in self.models:
                raise BadInput(f"pipeline {self.name!r} has no model {name!r}", fix=nearest(name, self.models))
        return replace(self, models={**self.models, **models})

    def up_to(self, stage: str) -> "Pipeline":
        """Give the pipeline that ends with `stage`."""
        names = [step.stage for step in self.steps]
        if stage not in names:
            raise BadInput(f"pipeline {self.name!r} has no stage {stage!r}", fix=nearest(stage, names))
        return replace(self, steps=self.steps[: names.index(stage) + 1])


@dataclass(frozen=True, slots=True)
class ResolvedStage:
    """A configured stage, and where its parameters came from.

    Parameters
    ----------
    params_id : str
        `<stage>/<name>/<version>`, or `<stage>/inline/<digest, 12 digits>`.
    """

    stage: Stage
    params_id: str
    params_digest: str
    model_digest: str | None


def load_pipeline(source: str | Path | Mapping[str, Any], *, stages: Mapping[str, str] | None = None) -> Pipeline:
    """Read a pipeline from a TOML file, the name of one that comes with emlake, or a mapping; check every name."""
    folder: Path | None = None
    if isinstance(source, Mapping):
        raw: dict[str, Any] = dict(source)
        where = "pipeline"
    else:
        path = _find(source)
        folder, where = path.parent, str(path)
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}", fix="give a readable TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is not valid TOML: {error}", fix="correct the file at the line named") from error
    _known(raw, ("name", "description", "grid", "models", "stages"), where)
    grid = raw.get("grid", {})
    _known(grid, ("block_zyx",), f"{where}, [grid]")
    models = {str(k): str(v) for k, v in raw.get("models", {}).items()}
    steps = tuple(_step(item, number, models, stages, where) for number, item in enumerate(raw.get("stages", []), 1))
    if not steps or not isinstance(raw.get("name"), str):
        raise BadInput(f"{where} has no {'stages' if raw.get('name') else 'name'}", fix="see transforms/pipelines/")
    names = [step.stage for step in steps]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise BadInput(f"{where} names stage {doubled!r} twice", fix="name each stage once")
    return Pipeline(raw["name"], steps, models, _block(grid, where), folder, stages)


def builtin_pipelines() -> dict[str, Path]:
    """Map the names of the pipelines that come with emlake to their files."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "pipelines").glob("*.toml"))}


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise BadInput(f"there is no pipeline file {path}", fix=nearest(path.stem, builtin_pipelines()))
        return path
    known = builtin_pipelines()
    if str(source) not in known:
        raise BadInput(f"there is no pipeline {str(source)!r}", fix=nearest(str(source), known))
    return known[str(source)]


def _known(raw: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for key in raw:
        if key not in names:
            raise BadInput(f"{where}: unknown key {key!r}", fix=nearest(key, names))


def _step(
    item: Mapping[str, Any], number: int, models: Mapping[str, str], stages: Mapping[str, str] | None, where: str
) -> Step:
    _known(item, ("stage", "params", "model"), f"{where}, stage {number}")
    name = item.get("stage", "")
    kind = stage_class(str(name), stages)
    params = item.get("params", {})
    if not isinstance(params, str | Mapping):
        raise BadInput(f"{where}, stage {name!r}: params {params!r}", fix="write 'name@version' or a table of values")
    if isinstance(params, Mapping):
        parameter_sets.complete(kind, params)
    model = str(item.get("model", ""))
    needs = "model" in kind.model_fields
    if needs != bool(model):
        raise BadInput(
            f"{where}, stage {name!r} {'names no model' if needs else 'takes no model'}",
            fix=f"add model = ...; {nearest('', models)}" if needs else "leave it out",
        )
    if model and model not in models and not _DIGEST.fullmatch(model):
        raise BadInput(f"{where}, stage {name!r}: unknown model {model!r}", fix=nearest(model, models))
    return Step(str(name), dict(params) if isinstance(params, Mapping) else params, model)


def _block(grid: Mapping[str, Any], where: str) -> Zyx | None:
    block = grid.get("block_zyx")
    if block is None:
        return None
    if not (isinstance(block, list) and len(block) == 3 and all(isinstance(n, int) and n > 0 for n in block)):
        raise BadInput(f"{where}, [grid]: block_zyx {block!r}", fix="give three positive integers, z y x")
    return block[0], block[1], block[2]


def resolve(
    pipeline: Pipeline, repo: Repository, ref: str, models: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> tuple[ResolvedStage, ...]:
    """Make configured stages of a pipeline.

    Parameters
    ----------
    ref : str
        Where named parameter sets are looked up.
    models : mapping
        Digest and card of each model that the pipeline names (see `transforms.model_store`).
    """
    made = []
    for step in pipeline.steps:
        kind = stage_class(step.stage, pipeline.stages)
        if isinstance(step.params, str):
            found = parameter_sets.show(repo, ref, step.stage, step.params)
            values, params_id = found.values, found.id
        else:
            values, params_id = dict(step.params), ""
        model, card = models[step.model] if step.model else (None, {})
        stage = configure(kind, {**values, "model": model} if model else values)
        digest = json_digest(parameter_sets.stage_values(stage))
        stage = stage.bind(card)
        made.append(ResolvedStage(stage, params_id or f"{step.stage}/inline/{digest[:12]}", digest, model))
    return tuple(made)
