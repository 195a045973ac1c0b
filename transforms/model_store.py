"""Models on their way into a run: found by digest in the repository, or by folder and imported.

A model is two objects, `models/<digest>/model.safetensors` and `models/<digest>/card.json`; the digest is that of
`transforms.models`. A run imports what its pipeline names by folder, so the branch holds every model it was made with.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lake.errors import BadInput, NotFound, ObjectNotFound, nearest
from lake.session import Session
from transforms.ledger import Objects
from transforms.pipeline import BUILTIN, Pipeline

WEIGHTS, CARD = "model.safetensors", "card.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's digest and bytes."""

    digest: str
    weights: bytes
    card_bytes: bytes

    @property
    def card(self) -> dict[str, Any]:
        """What is known about it."""
        found: dict[str, Any] = json.loads(self.card_bytes)
        return found

    def key(self, name: str) -> str:
        """Name one of its objects."""
        return f"models/{self.digest}/{name}"

    def import_into(self, session: Session) -> None:
        """Store it, unless it is there."""
        for name, data in ((WEIGHTS, self.weights), (CARD, self.card_bytes)):
            try:
                session.stat(self.key(name))
            except ObjectNotFound:
                session.put(self.key(name), data)

    def unpack(self, folder: Path) -> Path:
        """Write it below a folder for workers to load; models are small, volumes are not."""
        target = folder / self.digest
        target.mkdir(parents=True, exist_ok=True)
        (target / WEIGHTS).write_bytes(self.weights)
        (target / CARD).write_bytes(self.card_bytes)
        return target


def find_models(pipeline: Pipeline, objects: Objects) -> dict[str, ModelFiles]:
    """Find every model a pipeline uses, by the name it uses.

    `NotFound` names the model and the nearest known one.
    """
    found = {}
    for step in pipeline.steps:
        if step.model and step.model not in found:
            found[step.model] = _find(pipeline.models.get(step.model, step.model), pipeline.folder, objects)
    return found


def as_resolved(models: Mapping[str, ModelFiles]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Give what `pipeline.resolve` wants: digest and card by name."""
    return {name: (files.digest, files.card) for name, files in models.items()}


def _find(source: str, folder: Path | None, objects: Objects) -> ModelFiles:
    if _DIGEST.fullmatch(source):
        return _from_repository(source, objects)
    # Heavy: brings torch. Only runs with models come here.
    from transforms.models.inference import kept, model_digest, read_folder

    if source.startswith(BUILTIN):
        path = kept(source.removeprefix(BUILTIN))
    else:
        path = (folder or Path()) / source
        if not path.is_dir():
            raise NotFound(f"there is no model folder {path}", fix="give a digest, a folder or builtin:<name>")
    weights, card = read_folder(path)
    try:
        return ModelFiles(model_digest(weights, json.loads(card)), weights, card)
    except ValueError as error:
        raise BadInput(f"{path / CARD} is not JSON: {error}", fix="train the model again, or fetch it whole") from error


def _from_repository(digest: str, objects: Objects) -> ModelFiles:
    try:
        return ModelFiles(digest, objects.get(f"models/{digest}/{WEIGHTS}"), objects.get(f"models/{digest}/{CARD}"))
    except ObjectNotFound as error:
        known = sorted({stat.key.split("/")[1] for stat in objects.list("models/")})
        raise NotFound(f"the branch holds no model {digest}", fix=nearest(digest, known)) from error
