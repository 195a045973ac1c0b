"""The verdict on one judged commit: which gate looked at what, what it saw, and what follows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["pass", "warn", "waived", "fail", "unknown"]
Status = Literal["pass", "waived", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate on one scope."""

    gate: str
    metric: str
    scope: str
    scope_id: str
    value: float | None
    baseline: float | None
    bound: float | None
    unit: str
    outcome: Outcome
    reason: str = ""
    waiver: str = ""

    @property
    def sentence(self) -> str:
        """The result in words: metric, place, both values, limit."""
        place = f" in region {self.scope_id}" if self.scope == "region" else f" {self.scope_id}".rstrip()
        if self.value is None:
            return f"{self.gate}: {self.metric}{place} is unknown: {self.reason}"
        baseline = "no baseline" if self.baseline is None else f"baseline {self.baseline:.4g}"
        bound = "" if self.bound is None else f", limit {self.bound:.4g}"
        return f"{self.gate}: {self.metric}{place} is {self.value:.4g} {self.unit} ({baseline}{bound})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gates say of commit `commit` (Q), judged for a merge into `dest` (head of main)."""

    status: Status
    commit: str
    data_commit: str
    dest: str
    baseline: str | None
    policy_digest: str
    results: tuple[GateResult, ...]

    @property
    def refusals(self) -> list[GateResult]:
        """Results that block: failed or unknown, not waived."""
        return [result for result in self.results if result.outcome in {"fail", "unknown"}]

    def to_json(self) -> dict[str, Any]:
        """Give the JSON that `_qc/<Q>.json` holds."""
        return {
            "status": self.status,
            "commit": self.commit,
            "data_commit": self.data_commit,
            "dest": self.dest,
            "baseline": self.baseline,
            "policy_digest": self.policy_digest,
            "results": [asdict(result) for result in self.results],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Verdict":
        """Read what `to_json` gave."""
        return cls(**{**data, "results": tuple(GateResult(**row) for row in data["results"])})


def status_of(results: tuple[GateResult, ...]) -> Status:
    """Fold outcomes: unknown blocks before fail, a waiver shows, warnings pass."""
    outcomes = {result.outcome for result in results}
    for status in ("unknown", "fail", "waived"):
        if status in outcomes:
            return status
    return "pass"
