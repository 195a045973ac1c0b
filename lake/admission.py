"""What may become the head of main: the release gate, the same on every engine.

A repository has a gate if main holds the file `GATE_KEY` (`emlake init` puts it there); one without takes anything.
With a gate main takes releases and their undoing, nothing else:

=============  =======================================================================================================
merge          `refusal` must have nothing against it, and it may not squash
cherry-pick    never
commit         never, but for the one that lays down the gate
revert         always, since it is how a release is undone
reset_to       as protection says, and `emlake init` protects main
=============  =======================================================================================================

Whether a merge is a release is told by what the commits hold, so that every engine can ask as main is about to move:
the embedded one under the lock of the branch; a lakeFS server by a program (`lake.engines.lakefs.gate`: the same rules
in the same order and words), and its client first, for a server reads that program from the candidate itself, and what
the candidate does to it is judged here alone.

What does not ask gets past: a revert that undoes what is good, a hard reset where protection is lifted, another program
that writes in the folder or sends a server a candidate without the gate. `emlake doctor` names each such commit, and
nothing is published until it is undone (`releases.guard`).
"""

import json
import re
from typing import Any

from lake.clones import goes_by
from lake.engines.lakefs.gate import GATE_KEY, NO_RELEASE, ONLY_RELEASES, SQUASHED, gate_yaml
from lake.errors import GateRefused, ObjectNotFound, RefNotFound
from lake.names import MAIN, is_commit_id
from lake.repository import CommitId, Metadata, Repository

POLICY_KEY = "_policy/release.toml"
QC_TABLES = ("tables/qc_metrics/", "tables/qc_results/")  # what measuring a candidate adds to it
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ACTIONS = "_lakefs_actions/"
_FIX = "put the work on a candidate: `emlake release candidate`, `qc run`, `release publish`; revert undoes a release"


def watched(repo: Repository, branch: str, *commits: CommitId) -> bool:
    """Tell whether a gate looks at what moves `branch`: it is main, and one of `commits` holds the gate."""
    if branch != MAIN:
        return False
    return any(entry.key == GATE_KEY for commit in commits for entry in repo.list(commit, GATE_KEY, limit=1))


def check_merge(repo: Repository, head: CommitId, source: CommitId, metadata: Metadata, *, squash: bool) -> None:
    """Raise `GateRefused` unless main, which is at `head` and has a gate, may be merged with `source`."""
    why = SQUASHED if squash else refusal(repo, source, metadata, dest=head)
    if why is not None:
        raise GateRefused(f"merge {source[:12]} into {MAIN!r}: {why}", fix=_FIX)


def check_commit(repo: Repository, branch: str, head: CommitId) -> None:
    """Raise `GateRefused` if `branch`, which is at `head`, takes no commit or cherry-pick."""
    if watched(repo, branch, head):
        raise GateRefused(f"commit on {branch!r}: {ONLY_RELEASES}", fix=_FIX)


def refusal(repo: Repository, source: str, metadata: Metadata, *, dest: CommitId | None = None) -> str | None:
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
    dest = repo.resolve(MAIN) if dest is None else dest
    return (
        _of_request(repo, metadata, dest)
        or _of_verdict(repo, head, metadata["qc"], dest)
        or _of_changes(repo, head, metadata["qc"], metadata["release"], dest)
        or _of_rules(repo, head, metadata["release"], dest)
        or _of_gate(repo, head, dest)
    )


def _of_request(repo: Repository, metadata: Metadata, dest: CommitId) -> str | None:
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
