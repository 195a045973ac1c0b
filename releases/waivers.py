"""Waivers: a named person answers, for a stated reason and until a stated day, for a gate that fails."""

import uuid
from datetime import UTC, datetime, timedelta

import polars as pl

from lake.errors import BadInput, nearest
from lake.ops import append_rows
from lake.repository import Repository
from lake.wording import counted
from releases.gate import candidate_branch
from releases.policy import read_policy

_SCOPES = ("global", "region", "section", "tile")


def waive(
    repo: Repository, name: str, gate: str, *, owner: str, reason: str, days: int = 14, scope_id: str = ""
) -> str:
    """Record a waiver on `ops` and return its id.

    Parameters
    ----------
    gate : str
        Gate id of main's policy, or `suite:<suite>`.
    scope_id : str
        Region, section or tile that is waived; empty for every place of that gate.

    Raises
    ------
    BadInput
        Unknown gate (with the nearest), one that cannot be waived, no owner, no reason, or no days.
    """
    release = candidate_branch(repo, name).removeprefix("cand-")
    policy = read_policy(repo, "main")
    gates = {g.id: g for g in policy.gate}
    known = [*gates, *(f"suite:{suite}" for suite in policy.suites.required)]
    if gate not in known:
        raise BadInput(f"there is no gate {gate!r}", fix=nearest(gate, known))
    if gate in gates and not gates[gate].waivable:
        raise BadInput(f"gate {gate!r} cannot be waived", fix=f"mend what it found: {gates[gate].why}")
    if not owner.strip() or len(reason.strip()) < 10:
        raise BadInput(f"owner {owner!r}, reason {reason!r}", fix="name who answers for it and say why in a sentence")
    if days < 1:
        raise BadInput(f"a waiver of {counted(days, 'day')}", fix="give at least one day")
    now = datetime.now(UTC)
    waiver_id = uuid.uuid4().hex
    row = {
        "waiver_id": waiver_id,
        "release": release,
        "gate": gate,
        "scope": gates[gate].scope if gate in gates else "global",
        "scope_id": scope_id,
        "owner": owner.strip(),
        "reason": reason.strip(),
        "expires": now + timedelta(days=days),
        "ts": now,
    }
    append_rows(repo, "ops", {"waivers": pl.DataFrame([row])}, message=f"waiver on {gate} for {release}")
    return waiver_id
