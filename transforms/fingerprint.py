"""What a block depends on, as one sha256: the cache key, and the provenance line that says what changed.

::

    fingerprint = sha256(canonical JSON of)
        stage, version      name and version of the stage
        kernel              digest of the source that computes it
        params              digest of the parameters
        model               digest of the model, or null
        numerics            library versions, device, number type, machine kind, threads: canonical JSON, digested
        inputs              (kind, id, digest) of everything the block reads
        box, halo           where, and how far it looks beyond
        frame               what follows from the scene, such as where a canvas begins

The source digest follows references from the stage's class (`transforms.sources`); a comment makes nothing stale.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal

from lake.digests import canonical_json, json_digest
from lake.errors import BadInput
from transforms import sources
from transforms.params import stage_values
from transforms.pipeline import ResolvedStage
from transforms.stage import Scene, Stage, TableIn, VolumeIn

InputKind = Literal["block", "tile", "table", "source"]


@dataclass(frozen=True, slots=True, order=True)
class InputRef:
    """One thing a block reads; `made_by` (the run that computed a block) is provenance and not part of the key."""

    kind: InputKind
    id: str
    digest: str
    made_by: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Basis:
    """What all blocks of a stage share in one run; goes into `run.json` whole, so a later plan can say what changed."""

    stage: str
    version: int
    kernel: str
    params: Mapping[str, Any]
    params_id: str
    params_digest: str
    model: str | None
    numerics: Mapping[str, Any]
    halo: str
    frame: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The key, and the digests of its parts."""

    key: str
    parts: Mapping[str, Any]


def basis(resolved: ResolvedStage, scene: Scene) -> Basis:
    """Collect what a stage's blocks share."""
    stage = resolved.stage
    return Basis(
        stage.name,
        stage.version,
        kernel_digest(type(stage)),
        stage_values(stage),
        resolved.params_id,
        resolved.params_digest,
        resolved.model_digest,
        numerics(stage),
        halo_text(stage),
        stage.frame(scene),
    )


def fingerprint(base: Basis, box: str, inputs: Iterable[InputRef]) -> Fingerprint:
    """Digest a block's dependencies; the order of `inputs` does not count."""
    parts = {
        "stage": base.stage,
        "version": base.version,
        "kernel": base.kernel,
        "params": base.params_digest,
        "model": base.model,
        "numerics": json_digest(base.numerics),
        "inputs": inputs_digest(inputs),
        "box": box,
        "halo": base.halo,
        "frame": json_digest(base.frame),
    }
    return Fingerprint(json_digest(parts), parts)


def inputs_digest(inputs: Iterable[InputRef]) -> str:
    """Digest (kind, id, digest) of the inputs, sorted."""
    return json_digest([[ref.kind, ref.id, ref.digest] for ref in sorted(inputs)])


def changed(old: Mapping[str, Any], new: Mapping[str, Any], old_params: Mapping[str, Any], now: Basis) -> str:
    """Say which parts of a fingerprint differ, parameters by name and value.

    Parameters
    ----------
    old, new : mapping
        The parts of both fingerprints.
    old_params : mapping
        Parameters of the earlier run; empty if not known.
    """
    told = []
    for part in new:
        if old.get(part) == new[part]:
            continue
        if part == "params" and old_params:
            names = sorted(set(old_params) | set(now.params))
            differ = [n for n in names if old_params.get(n) != now.params.get(n)]
            told.append("params: " + ", ".join(f"{n} {old_params.get(n)!r} -> {now.params.get(n)!r}" for n in differ))
        elif part in ("version", "box", "halo"):
            told.append(f"{part} {old.get(part)} -> {new[part]}")
        elif part == "model":
            told.append(f"model {str(old.get(part))[:12]} -> {str(new[part])[:12]}")
        else:
            told.append(part)
    return "; ".join(told)


def halo_text(stage: Stage) -> str:
    """Write how far each port looks beyond the block."""
    ports = [port for port in stage.reads() if isinstance(port, VolumeIn | TableIn)]
    return canonical_json([[p.name, list(p.low), list(p.high)] for p in ports]).decode()


def numerics(stage: Stage) -> dict[str, Any]:
    """Tell what may change a float: versions of the libraries, processor kind, device, threads."""
    return {**runtime(stage.libraries), **stage.numerics()}


def runtime(libraries: Iterable[str]) -> dict[str, Any]:
    """Tell versions of the language and of these libraries, processor kind, device, threads."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: _version(name) for name in sorted({"numpy", *libraries})},
        "device": "cpu",
        "threads": 1,
    }


@lru_cache(maxsize=256)
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise BadInput(
            f"distribution {distribution!r}, which a stage names in `libraries`, is not installed",
            fix="correct the name in the stage, or install it",
        ) from error


@lru_cache(maxsize=256)
def kernel_digest(stage: type[Stage]) -> str:
    """Digest all source that decides what a stage computes; see `transforms.sources`."""
    parts: dict[tuple[str, str], str] = {}
    for kind in stage.__mro__:
        if issubclass(kind, Stage) and kind is not Stage:
            parts |= sources.closure(kind.__module__, kind.__name__)
    for module in stage.kernels:
        parts[module, ""] = sources.whole_module(module)
    return sources.digest_of(parts)
