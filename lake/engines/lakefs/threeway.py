"""What a three-way merge of two commits must come to, and a rehearsal that finds out whether lakeFS agrees.

lakeFS 1.84 compares a key that one side added with the *next* key of the base, by content alone
(`committed/merge.go`, `handleAll` and `handleBothKeys`). Where both hold the same bytes it loses the added object, or
picks a side where it should report a conflict. Its diff has no such fault. So a merge whose destination has moved
since the base is rehearsed on a hidden branch, compared with the diff, and put right there before the real branch
moves. A destination that stands at the base takes the source's tree whole, needs none of this, and is the usual case:
sessions, publishing, undoing the newest release.

Equality of change sets needs no identities: both sides are told from the same base, so they changed a unit to the
same content exactly if their trees agree below it.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from lake.engines.lakefs.wire import Wire, segment
from lake.errors import LakeError, NotFound, StorageError
from lake.names import UNIT_ROOTS, conflict, unit_of
from lake.repository import Change, CommitId

_KINDS: Mapping[str, Literal["added", "changed", "removed", "conflict"]] = {
    "added": "added",
    "changed": "changed",
    "removed": "removed",
    "conflict": "conflict",
}
# `session-` is a reserved prefix; hidden branches are in no listing.
_REHEARSAL = "session-rehearsal-"
_STALE_S = 3600
DIFF_FIELDS = ("path", "type", "path_type")


@dataclass(frozen=True, slots=True)
class Plan:
    """What merging `theirs` into `ours` does to `ours`; `base` is what both are compared with.

    Parameters
    ----------
    wanted : set of keys
        Taken from `theirs`.
    conflicts : set of keys
        Changed on both sides to different content.
    units : list
        Units changed on both sides to different content.
    """

    base: CommitId
    ours: CommitId
    theirs: CommitId
    wanted: frozenset[str]
    conflicts: frozenset[str]
    units: list[str]

    @property
    def straight(self) -> bool:
        """True if `ours` stands at the base: the result is the tree of `theirs`."""
        return self.base == self.ours

    def check(self, names: tuple[str, str], *, decided: bool) -> None:
        """Raise `ConflictError` if units are contested, or objects unless a strategy `decided` them."""
        keys = [] if decided else sorted(key for key in self.conflicts if unit_of(key) not in self.units)
        if self.units or keys:
            raise conflict(names, self.units, keys)


def changes(entries: Iterator[dict[str, Any]]) -> Iterator[Change]:
    """Read the lines of a diff."""
    return (Change(entry["path"], _KINDS[entry["type"]]) for entry in entries)


def diff_pages(
    wire: Wire, left: CommitId, right: CommitId, *, kind: str = "two_dot", limit: int | None = None, **query: str
) -> Iterator[dict[str, Any]]:
    """Yield the raw lines of a diff of two commits; `query` may hold `prefix` and `delimiter`."""
    return wire.pages(
        f"/refs/{left}/diff/{right}",
        {"type": kind, **query},
        fields=DIFF_FIELDS,
        doing=f"diff {left[:12]} {right[:12]}",
        limit=limit,
    )


def differ(wire: Wire, left: CommitId, right: CommitId, prefix: str = "") -> bool:
    """Tell whether two trees differ below `prefix`."""
    return left != right and next(diff_pages(wire, left, right, prefix=prefix, limit=1), None) is not None


def merge_base(wire: Wire, source: CommitId, dest: CommitId) -> CommitId:
    """Give the commit from which lakeFS tells the changes of both."""
    doing = f"find the merge base of {source[:12]} and {dest[:12]}"
    return str(wire.json(f"/refs/{source}/merge/{dest}", fields=("base_commit_id",), doing=doing)["base_commit_id"])


def plan_merge(wire: Wire, base: CommitId, ours: CommitId, theirs: CommitId, spared: tuple[str, ...] = ()) -> Plan:
    """Plan a merge; `base` is lakeFS's own. Units that begin with one of `spared` are not contested."""
    if base == ours:
        return Plan(base, ours, theirs, frozenset(), frozenset(), [])
    lines = list(changes(diff_pages(wire, ours, theirs, kind="three_dot")))
    conflicts = frozenset(line.key for line in lines if line.kind == "conflict")
    wanted = frozenset(line.key for line in lines) - conflicts
    return Plan(base, ours, theirs, wanted, conflicts, _contested(wire, base, ours, theirs, spared))


def plan_replay(wire: Wire, base: CommitId, ours: CommitId, theirs: CommitId) -> Plan:
    """Plan a merge from a base that lakeFS's diff does not know: a commit and its parent, or the other way round."""
    if base == ours:
        return Plan(base, ours, theirs, frozenset(), frozenset(), [])
    asked = changed_keys(wire, base, theirs)
    open_ = asked & changed_keys(wire, ours, theirs)
    conflicts = open_ & changed_keys(wire, base, ours)
    return Plan(base, ours, theirs, open_ - conflicts, conflicts, _contested(wire, base, ours, theirs))


def changed_keys(wire: Wire, left: CommitId, right: CommitId) -> frozenset[str]:
    """Give the keys at which two trees differ."""
    return frozenset() if left == right else frozenset(entry["path"] for entry in diff_pages(wire, left, right))


def _contested(wire: Wire, base: CommitId, ours: CommitId, theirs: CommitId, spared: tuple[str, ...] = ()) -> list[str]:
    if base in (ours, theirs):
        return []
    both = _changed_units(wire, base, ours) & _changed_units(wire, base, theirs)
    return sorted(unit for unit in both if not unit.startswith(spared) and differ(wire, ours, theirs, unit))


def _changed_units(wire: Wire, base: CommitId, side: CommitId) -> set[str]:
    """Name the units in which `side` differs from `base`; the server skips over their objects."""
    tops = {entry["path"] for entry in diff_pages(wire, base, side, delimiter="/")}
    return {
        entry["path"]
        for root in UNIT_ROOTS
        if f"{root}/" in tops
        for entry in diff_pages(wire, base, side, delimiter="/", prefix=f"{root}/")
        if entry["path_type"] == "common_prefix" and unit_of(entry["path"] + "x") == entry["path"]
    }


# -- rehearsal --------------------------------------------------------------------------------------------------------
def rehearse(wire: Wire, plan: Plan, expected: frozenset[str], act: Callable[[str], object]) -> tuple[CommitId, bool]:
    """Let the server `act` on a hidden branch at `plan.ours` and put right what it did wrong there.

    Parameters
    ----------
    expected : set of keys
        What must differ from `plan.ours` afterwards, taken from `plan.theirs`.
    act : callable
        Merges into the branch it is given, or reverts or cherry-picks on it.

    Returns
    -------
    commit, right : commit id, bool
        The outcome, and whether the server did it right by itself.
    """
    with hidden_branch(wire, plan.ours) as branch:
        act(branch)
        outcome = head_of(wire, branch)
        actual = changed_keys(wire, plan.ours, outcome)
        if actual == expected:
            return outcome, True
        # A merge takes every value from one of the two sides, so a key that differs where it should has theirs.
        _take(wire, branch, plan.theirs, sorted(expected - actual))
        _take(wire, branch, plan.ours, sorted(actual - expected))
        body = {"message": f"put right what the merge of {plan.theirs} into {plan.ours} lost", "allow_empty": True}
        wire.call(wire.sdk.commits_api.commit, wire.name, branch, body, doing="commit a rehearsed merge")
        outcome = head_of(wire, branch)
        if changed_keys(wire, plan.ours, outcome) != expected:
            raise StorageError(
                f"merging {plan.theirs} into {plan.ours} does not give the tree that their diff foretells",
                fix="report this with the server's version; nothing was changed",
            )
        return outcome, False


@contextmanager
def hidden_branch(wire: Wire, commit: CommitId) -> Iterator[str]:
    """Lend a branch at `commit` that no listing shows; it is gone afterwards."""
    _tidy(wire)
    name = f"{_REHEARSAL}{time.time():.0f}-{secrets.token_hex(8)}"
    body = {"name": name, "source": commit, "hidden": True}
    wire.call(wire.sdk.branches_api.create_branch, wire.name, body, doing="create a branch for a rehearsal")
    try:
        yield name
    finally:
        # A branch that stays behind is hidden and harmless; it must not hide the error that ended the rehearsal.
        with suppress(LakeError):
            wire.call(wire.sdk.branches_api.delete_branch, wire.name, name, doing="delete the rehearsal's branch")


def _tidy(wire: Wire) -> None:
    """Delete what rehearsals left that were killed, told by the time in the name."""
    query = {"prefix": _REHEARSAL, "show_hidden": "true"}
    for entry in wire.pages("/branches", query, fields=("id",), doing="look for old rehearsals"):
        began = entry["id"].removeprefix(_REHEARSAL).partition("-")[0]
        if began.isdigit() and time.time() - int(began) > _STALE_S:
            with suppress(LakeError):
                wire.call(wire.sdk.branches_api.delete_branch, wire.name, entry["id"], doing="delete an old rehearsal")


def head_of(wire: Wire, branch: str) -> CommitId:
    """Give the commit at the head of a branch, hidden or not."""
    answer = wire.json(f"/branches/{segment(branch)}", fields=("commit_id",), doing=f"look up branch {branch!r}")
    return str(answer["commit_id"])


def _take(wire: Wire, branch: str, ref: CommitId, keys: list[str]) -> None:
    """Make `branch` hold at `keys` what `ref` holds there: the same bytes, type and metadata, or nothing."""
    for key in keys:
        doing = f"take {key!r} from {ref[:12]}"
        try:
            body = {"src_path": key, "src_ref": ref}
            wire.call(wire.sdk.objects_api.copy_object, wire.name, branch, key, body, doing=doing, safe=True)
        except NotFound:
            wire.call(wire.sdk.objects_api.delete_object, wire.name, branch, key, doing=doing, safe=True)
