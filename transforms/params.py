"""Named, versioned parameter sets: `params/<stage>/<name>/<version>.json`. A version's content never changes.

A set holds every parameter of its stage, defaults included: what it means does not move when a default does. The model
is not part of it; a pipeline names set and model side by side.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lake.digests import canonical_json, json_digest
from lake.errors import BadInput, CorruptObject, NotFound, nearest
from lake.opening import open_new_session
from lake.repository import Repository
from transforms.stage import Stage, configure
from transforms.stages import stage_class

FOLDER = "params/"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_REFERENCE = re.compile(r"([a-z0-9][a-z0-9_-]*)@(\d+)")


@dataclass(frozen=True, slots=True)
class ParameterSet:
    """One version of a named set.

    Parameters
    ----------
    values : dict
        Every parameter of the stage but `model`.
    digest : str
        sha256 of the canonical JSON of `values`.
    """

    stage: str
    name: str
    version: int
    values: dict[str, Any]
    digest: str
    note: str = ""
    created: str = ""

    @property
    def id(self) -> str:
        """`<stage>/<name>/<version>`, as `runs.params_id` holds it."""
        return f"{self.stage}/{self.name}/{self.version}"

    @property
    def key(self) -> str:
        """Where the object lies."""
        return f"{FOLDER}{self.id}.json"

    def to_json(self) -> dict[str, Any]:
        """Give the object's content."""
        return {
            "stage": self.stage, "name": self.name, "version": self.version, "values": self.values,
            "digest": self.digest, "note": self.note, "created": self.created,
        }  # fmt: skip


def stage_values(stage: Stage) -> dict[str, Any]:
    """Give a stage's parameters as JSON values, without its model."""
    return stage.model_dump(mode="json", exclude={"model"})


def complete(stage: type[Stage], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check `values` against a stage and fill in its defaults; `BadInput` names what is wrong."""
    if "model" in values:
        raise BadInput(
            f"a parameter set of stage {stage.name!r} cannot hold a model", fix="name the model in the pipeline"
        )
    model = {"model": "0" * 64} if "model" in stage.model_fields else {}
    return stage_values(configure(stage, {**values, **model}))


def add(
    repo: Repository,
    branch: str,
    stage: str,
    name: str,
    values: Mapping[str, Any],
    *,
    note: str = "",
    stages: Mapping[str, str] | None = None,
) -> ParameterSet:
    """Store `values` as the next version of a set, in one commit on `branch`.

    Values equal to the newest version are that version: nothing is written.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"parameter set name {name!r} is not valid", fix="use a-z, 0-9, '_' and '-'")
    filled = complete(stage_class(stage, stages), values)
    digest = json_digest(filled)
    with open_new_session(repo, branch, owner=f"params add {stage}") as session:
        versions = [s for s in list_sets(repo, session.work, stage) if s.name == name]
        if versions and versions[-1].digest == digest:
            return versions[-1]
        version = versions[-1].version + 1 if versions else 1
        created = datetime.now(UTC).isoformat(timespec="seconds")
        made = ParameterSet(stage, name, version, filled, digest, note, created)
        session.put(made.key, canonical_json(made.to_json()), content_type="application/json")
        session.commit(f"params {made.id}", {"params": made.id, "params_digest": digest})
    return made


def list_sets(repo: Repository, ref: str, stage: str = "") -> list[ParameterSet]:
    """List the sets at `ref` (of one stage), by stage, name and version."""
    prefix = f"{FOLDER}{stage}/" if stage else FOLDER
    found = [_read(repo.get(ref, stat.key), stat.key) for stat in repo.list(ref, prefix)]
    return sorted(found, key=lambda s: (s.stage, s.name, s.version))


def show(repo: Repository, ref: str, stage: str, reference: str) -> ParameterSet:
    """Give the set `name@version` of a stage, or raise `NotFound` with the nearest one."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise BadInput(f"parameter set {reference!r} is not a name", fix="write name@version, for instance default@1")
    known = {f"{s.name}@{s.version}": s for s in list_sets(repo, ref, stage)}
    if reference not in known:
        raise NotFound(f"stage {stage!r} has no parameter set {reference!r} at {ref}", fix=nearest(reference, known))
    return known[reference]


def _read(data: bytes, key: str) -> ParameterSet:
    try:
        found = ParameterSet(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise CorruptObject(f"{key} is not a parameter set: {error}", fix="restore the object from history") from error
    if json_digest(found.values) != found.digest or found.key != key:
        raise CorruptObject(f"{key} does not hold the values it was written with", fix="restore it from history")
    return found
