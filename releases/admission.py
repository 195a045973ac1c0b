"""Says whether a judged candidate may be merged into main: the client's half of the gate.

The other half runs inside a lakeFS server (`lake.engines.lakefs.gate`): the same rules in the same order and words. But
a server reads its half from the candidate itself, so what a candidate does to the gate is judged here alone.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from lake.clones import goes_by
from lake.engines.lakefs.gate import GATE_KEY, NO_RELEASE, gate_yaml
from lake.errors import ObjectNotFound, RefNotFound
from lake.names import is_commit_id
from lake.repository import CommitId, Repository
from releases.gate import QC_TABLES
from releases.policy import POLICY_KEY

_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ACTIONS = "_lakefs_actions/"


def refusal(repo: Repository, source: str, metadata: Mapping[str, str], *, dest: CommitId | None = None) -> str | None:
    """Say why a merge of `source` into main must not happen, or None if it may.

    Parameters
    ----------
    metadata : mapping
        What the merge will carry: `release`, `qc` (the commit that was judged) and `expect_dest` (the head of main
        that it was judged against).
    dest : commit id
        The head of main that the merge replaces; the present one if None.
    """
    head = repo.resolve(source)
    dest = repo.resolve("main") if dest is None else dest
    return (
        _of_request(repo, metadata, dest)
        or _of_verdict(repo, head, metadata["qc"], dest)
        or _of_changes(repo, head, metadata["qc"], metadata["release"], dest)
        or _of_rules(repo, head, metadata["release"], dest)
        or _of_gate(repo, head, dest)
    )


def _of_request(repo: Repository, metadata: Mapping[str, str], dest: CommitId) -> str | None:
    if any(name not in metadata for name in ("release", "qc", "expect_dest")):
        return NO_RELEASE
    if not _RELEASE.fullmatch(metadata["release"]):
        return f"the release name is not valid: {metadata['release']}"
    if not is_commit_id(metadata["qc"]):
        return f"qc is not a full commit id: {metadata['qc']}"
    if not goes_by(repo.commit_info(dest), metadata["expect_dest"]):
        return f"main has moved: it is at {dest}, not at {metadata['expect_dest']}"
    return None


def _of_verdict(repo: Repository, head: CommitId, q: CommitId, dest: CommitId) -> str | None:
    try:
        text = repo.get(head, f"_qc/{q}.json")
    except ObjectNotFound:
        return f"there is no QC verdict on {q}"
    try:
        # Strictly what the server reads too: UTF-8 without a mark in front, no NaN.
        verdict: Any = json.loads(text.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        verdict = None
    if not isinstance(verdict, dict):
        return "the QC verdict is not a JSON object"
    if verdict.get("status") not in ("pass", "waived"):
        return f"the QC verdict is {_told(verdict.get('status'))}"
    if verdict.get("commit") != q:
        return f"the QC verdict is on commit {_told(verdict.get('commit'))}"
    if not goes_by(repo.commit_info(dest), verdict.get("dest")):
        return f"the QC verdict was reached against {_told(verdict.get('dest'))}"
    return None


def _no_number(text: str) -> None:
    raise ValueError(text)


def _told(value: object) -> str:
    return value if isinstance(value, str) else "not told"


def _of_changes(repo: Repository, head: CommitId, q: CommitId, release: str, dest: CommitId) -> str | None:
    mine = ("_qc/", f"_releases/{release}/")
    # Three-dot: what the right side changed since both were one. So that two lines are equal takes both directions.
    for left, right, allowed, reason in (
        (q, head, mine, "changed after QC: "),
        (head, q, (), "QC judged another line of work, with "),
        (head, dest, (), "main holds what the candidate lacks: "),
    ):
        try:
            for change in repo.diff(left, right, three_dot=True):
                if not change.key.startswith(allowed):
                    return reason + change.key
        except RefNotFound:
            return f"{reason}there is no commit {q}"
    return None


def _of_rules(repo: Repository, head: CommitId, release: str, dest: CommitId) -> str | None:
    places = (_ACTIONS, POLICY_KEY)
    if not any(next(repo.diff(dest, head, three_dot=True, prefix=place), None) for place in places):
        return None
    free = (_ACTIONS, "_policy/", *QC_TABLES, "_qc/", f"_releases/{release}/")
    other = next((c.key for c in repo.diff(dest, head, three_dot=True) if not c.key.startswith(free)), None)
    return None if other is None else f"gate or policy change together with {other}"


def _of_gate(repo: Repository, head: CommitId, dest: CommitId) -> str | None:
    """What a server cannot see: it runs the gate of the candidate, whatever that is, or none."""
    here, there = gate_at(repo, head), gate_at(repo, dest)
    if here is None:
        return f"the candidate lacks the gate: {GATE_KEY}"
    if here != there and here != gate_yaml():
        return f"the gate is neither main's nor the one of this version: {GATE_KEY}"
    return None


def gate_at(repo: Repository, commit: CommitId) -> bytes | None:
    """Give the bytes of the gate in a commit, or None where there is none."""
    try:
        return repo.get(commit, GATE_KEY)
    except ObjectNotFound:
        return None
