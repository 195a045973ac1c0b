"""Judges a candidate by the policy of main. Changes nothing.

Whether a judged candidate may be merged is told by `lake.admission`, which every engine asks.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from lake.errors import NotFound, TableNotFound, nearest
from lake.repository import CommitId, Repository
from lake.tables import collect
from releases.history import current
from releases.policy import Gate, Policy, read_policy
from releases.verdict import GateResult, Outcome, Verdict, status_of


def branch_of(name: str) -> str:
    """Give the branch of candidate `name` (with or without `cand-` in front)."""
    return name if name.startswith("cand-") else f"cand-{name}"


def candidate_branch(repo: Repository, name: str) -> str:
    """Give the branch of an existing candidate, or raise `NotFound` with the nearest name."""
    branch = branch_of(name)
    known = repo.branches("cand-")
    if branch not in known:
        raise NotFound(f"there is no candidate {name!r}", fix=nearest(branch, known))
    return branch


def judged_commit(repo: Repository, branch: str) -> CommitId | None:
    """Give Q, the newest commit with a QC of its data, or None if data changed after it (or there was none)."""
    for commit in repo.log(branch, first_parent=True):
        if "qc_of" in commit.metadata:
            return commit.id
        if "judged" not in commit.metadata:
            return None
    return None


def judge(repo: Repository, name: str, *, now: datetime | None = None) -> Verdict:
    """Judge the newest QC of candidate `name` by the policy of main, with the waivers on `ops`.

    A metric or suite that is missing, or data that changed after its QC, is `unknown`, which blocks.
    """
    branch = candidate_branch(repo, name)
    dest = repo.resolve("main")
    policy = read_policy(repo, dest)
    base = current(repo)
    q = judged_commit(repo, branch)
    if q is None:
        why = f"the head of {branch} has no QC; run `emlake qc run {branch}`"
        missing = GateResult("qc", "qc", "global", "", None, None, None, "1", "unknown", why)
        head = repo.resolve(branch)
        return Verdict("unknown", head, head, dest, base.name if base else None, policy.digest, (missing,))
    metrics = _rows(repo, q, "qc_metrics")
    baseline = _rows(repo, base.merge, "qc_metrics") if base else None
    results = [r for gate in policy.gate for r in _apply(gate, metrics, baseline)]
    results += _suites(policy, _rows(repo, q, "qc_results"))
    waived = _waive(results, policy, waivers(repo, branch.removeprefix("cand-"), now or datetime.now(UTC)))
    return Verdict(
        status_of(waived),
        q,
        repo.commit_info(q).metadata["qc_of"],
        dest,
        base.name if base else None,
        policy.digest,
        waived,
    )


def _rows(repo: Repository, commit: CommitId, table: str) -> pl.DataFrame:
    with repo.snapshot(commit) as snapshot:
        try:
            return snapshot.table(table).pipe(collect)
        except TableNotFound:
            return pl.DataFrame()


def _apply(gate: Gate, metrics: pl.DataFrame, baseline: pl.DataFrame | None) -> Iterable[GateResult]:
    rows = _select(metrics, gate)
    before = {row["scope_id"]: row for row in _select(baseline, gate)} if baseline is not None else {}
    lost = [scope_id for scope_id in before if scope_id not in {row["scope_id"] for row in rows}]
    # A metric that the baseline has and the candidate lacks was not computed: that must not read as "fine".
    for scope_id in lost or ([] if rows else [""]):
        yield GateResult(
            gate.id, gate.metric, gate.scope, scope_id, None, None, None, gate.unit, "unknown", "it was not measured"
        )
    for row in rows:
        old = before.get(row["scope_id"], {}).get("value")
        known = row["status"] == "ok" and row["value"] is not None and math.isfinite(row["value"])
        value = row["value"] if known else None
        bound = gate.bound(old)
        outcome: Outcome
        if value is None:
            outcome, reason = "unknown", row["reason"] or "no value"
        elif bound is None or gate.passes(value, bound):
            outcome, reason = "pass", ""
        else:
            outcome, reason = ("fail" if gate.severity == "block" else "warn"), gate.why
        yield GateResult(
            gate.id, gate.metric, gate.scope, row["scope_id"], value, old, bound, gate.unit, outcome, reason
        )


def _select(metrics: pl.DataFrame, gate: Gate) -> list[dict[str, Any]]:
    if metrics.is_empty():
        return []
    chosen = metrics.filter((pl.col("metric") == gate.metric) & (pl.col("scope") == gate.scope))
    return chosen.sort("scope_id").to_dicts()


def _suites(policy: Policy, results: pl.DataFrame) -> Iterable[GateResult]:
    ran = set(results["suite"].unique()) if not results.is_empty() else set()
    for suite in policy.suites.required:
        if suite not in ran:
            yield GateResult(
                f"suite:{suite}", suite, "global", "", None, None, None, "1", "unknown", "the suite did not run"
            )
            continue
        checks = results.filter(pl.col("suite") == suite).sort("expectation", "scope", "scope_id")
        for row in checks.filter(~pl.col("passed").fill_null(value=False)).to_dicts():
            unknown = row["passed"] is None
            blocking: Outcome = "unknown" if unknown else "fail"
            outcome: Outcome = blocking if row["severity"] == "critical" else "warn"
            reason = row["reason"] or f"observed {row['observed']}, expected {row['expected']}"
            yield GateResult(
                f"suite:{suite}",
                row["expectation"],
                row["scope"],
                row["scope_id"],
                None if unknown else 0.0,
                None,
                1.0,
                "1",
                outcome,
                reason,
            )
        if checks["passed"].fill_null(value=False).all():
            yield GateResult(f"suite:{suite}", suite, "global", "", 1.0, None, 1.0, "1", "pass")


def waivers(repo: Repository, release: str, now: datetime) -> list[dict[str, Any]]:
    """List the waivers for candidate `release` that have not expired."""
    with repo.snapshot("main") as snapshot:
        try:
            rows = snapshot.table("waivers", schema="ops").pipe(collect)
        except TableNotFound:
            return []
    return rows.filter((pl.col("release") == release) & (pl.col("expires") > now)).sort("ts").to_dicts()


def _waive(results: Iterable[GateResult], policy: Policy, granted: list[dict[str, Any]]) -> tuple[GateResult, ...]:
    waivable = {gate.id: gate.waivable for gate in policy.gate}
    out = []
    for result in results:
        if result.outcome == "fail" and waivable.get(result.gate, True):
            for waiver in granted:
                # An empty scope_id covers every place of that gate.
                if waiver["gate"] == result.gate and waiver["scope_id"] in {"", result.scope_id}:
                    note = f"{waiver['owner']}: {waiver['reason']} (until {waiver['expires']:%Y-%m-%d})"
                    result = _with(result, "waived", note)
                    break
        out.append(result)
    return tuple(out)


def _with(result: GateResult, outcome: Outcome, waiver: str) -> GateResult:
    return replace(result, outcome=outcome, waiver=waiver)
