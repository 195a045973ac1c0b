"""What a release must satisfy, as data: `_policy/release.toml`, read from the destination, never the candidate."""

import tomllib
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lake.admission import POLICY_KEY
from lake.digests import json_digest
from lake.errors import BadInput
from lake.repository import Repository

GRID_KEY = "_policy/grid.json"


class Gate(BaseModel):
    """One threshold on one metric, with its unit and its reason.

    A value passes if it satisfies every limit that applies: `limit` always; `worse_by` and `slack` against the
    baseline where there is one; `first` where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9_]{2,}$")
    metric: str
    scope: Literal["global", "region", "section", "tile"]
    better: Literal["lower", "higher"]
    limit: float | None = Field(None, description="absolute limit, always")
    first: float | None = Field(None, description="absolute limit while there is no baseline")
    worse_by: float | None = Field(None, ge=0, description="share of the baseline by which it may be worse")
    slack: float = Field(0.0, ge=0, description="added to the relative limit, in the metric's unit, against noise")
    severity: Literal["block", "warn"] = "block"
    waivable: bool = True
    unit: str
    why: str = Field(min_length=10, description="where the threshold comes from")

    @model_validator(mode="after")
    def _limits(self) -> "Gate":
        if self.limit is None and self.worse_by is None:
            raise ValueError(f"gate {self.id!r} has neither limit nor worse_by")
        if self.limit is None and self.first is None:
            raise ValueError(f"gate {self.id!r} needs `first`: what holds while there is no baseline")
        return self

    def bound(self, baseline: float | None) -> float | None:
        """Give the tightest limit that applies, in the metric's unit; None if none does."""
        bounds = [] if self.limit is None else [self.limit]
        if baseline is None:
            bounds += [] if self.first is None else [self.first]
        elif self.worse_by is not None:
            room = abs(baseline) * self.worse_by + self.slack
            bounds.append(baseline + room if self.better == "lower" else baseline - room)
        if not bounds:
            return None
        return min(bounds) if self.better == "lower" else max(bounds)

    def passes(self, value: float, bound: float) -> bool:
        """Tell whether `value` is on the good side of `bound`; being on it is good."""
        return value <= bound if self.better == "lower" else value >= bound


class Suites(BaseModel):
    """Which suites of expectations must have run; a failed critical expectation of theirs blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required: tuple[str, ...]
    why: str = Field(min_length=10)


class Price(BaseModel):
    """What things cost, for the cost of a run and of an accepted cubic millimetre."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str
    cpu_hour: float = Field(ge=0)
    why: str = Field(min_length=10)


class Policy(BaseModel):
    """The whole policy of a repository."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    gate: tuple[Gate, ...]
    suites: Suites
    price: Price

    @model_validator(mode="after")
    def _unique(self) -> "Policy":
        ids = [gate.id for gate in self.gate]
        if len(set(ids)) < len(ids):
            raise ValueError(f"gate ids repeat: {sorted(i for i in set(ids) if ids.count(i) > 1)}")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of the policy's canonical JSON."""
        return json_digest(self.model_dump(mode="json"))


def default_policy() -> bytes:
    """Give the policy that `init` lays down."""
    return files("releases").joinpath("default_policy.toml").read_bytes()


def parse_policy(text: bytes, origin: str) -> Policy:
    """Read a policy, or raise `BadInput` with the place and the fault."""
    try:
        return Policy.model_validate(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise BadInput(
            f"{origin} is not a policy: {_told(error)}", fix="compare it with releases/default_policy.toml"
        ) from error


def _told(error: ValueError) -> str:
    """Say on one line what is wrong, and where."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, *more = error.errors()
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'the whole'}: {first['msg']}" + (f", and {len(more)} more faults" if more else "")


def read_policy(repo: Repository, ref: str) -> Policy:
    """Read the policy in force at `ref`."""
    return parse_policy(repo.get(repo.resolve(ref), POLICY_KEY), f"{POLICY_KEY} at {ref}")
