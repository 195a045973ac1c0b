"""Merge and revert by whole units, with an expected head, on a server that knows neither.

lakeFS merges object by object and looks at no head. So before a merge the units that both sides changed are compared
and a contested one is refused; afterwards the parent of the new commit tells whether the branch moved in between, and
a merge that should not have been is reverted.

Equality of change sets needs no identities: both sides are told from the same base, so they changed a unit to the
same content exactly if their trees agree below it (`diff` of the two heads is empty there).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lake.engines.lakefs.failures import may_have_arrived, status_of
from lake.engines.lakefs.wire import Wire
from lake.errors import (
    BadInput,
    ConflictError,
    DirtyBranch,
    LakeError,
    NotFound,
    NothingToCommit,
    RefNotFound,
    ServerUnreachable,
    StorageError,
)
from lake.names import UNIT_ROOTS, unit_of
from lake.repository import Change, CommitId, Metadata, Strategy

if TYPE_CHECKING:
    from lake.engines.lakefs.repository import LakeFSRepository

_KINDS: Mapping[str, Literal["added", "changed", "removed", "conflict"]] = {
    "added": "added",
    "changed": "changed",
    "removed": "removed",
    "conflict": "conflict",
}
DIFF_FIELDS = ("path", "type", "path_type")
_TRIES = 5
_SEARCHED = 100


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """The arguments of `Repository.merge`."""

    source: str
    dest: str
    message: str
    metadata: Metadata
    strategy: Strategy | None
    squash: bool
    allow_empty: bool
    expect_head: CommitId | None
    contested: tuple[str, ...]


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


def _differ(wire: Wire, left: CommitId, right: CommitId, prefix: str = "") -> bool:
    return left != right and next(diff_pages(wire, left, right, prefix=prefix, limit=1), None) is not None


def _changed_units(wire: Wire, base: CommitId, side: CommitId) -> set[str]:
    """Name the units in which `side` differs from `base`; the server skips over their objects."""
    if base == side:
        return set()
    tops = {entry["path"] for entry in diff_pages(wire, base, side, delimiter="/")}
    return {
        entry["path"]
        for root in UNIT_ROOTS
        if f"{root}/" in tops
        for entry in diff_pages(wire, base, side, delimiter="/", prefix=f"{root}/")
        if unit_of(entry["path"] + ("x" if entry["path_type"] == "common_prefix" else "")) == entry["path"]
    }


def _contested(wire: Wire, base: CommitId, ours: CommitId, theirs: CommitId, spared: tuple[str, ...] = ()) -> list[str]:
    """Name the units that both sides changed, to different content, in order."""
    if base in (ours, theirs):
        return []
    both = _changed_units(wire, base, ours) & _changed_units(wire, base, theirs)
    return sorted(unit for unit in both if not unit.startswith(spared) and _differ(wire, ours, theirs, unit))


def _check_clean(repo: "LakeFSRepository", branch: str) -> None:
    staged = next(repo.uncommitted(branch), None)
    if staged is not None:
        raise DirtyBranch(f"branch {branch!r} has staged changes, the first {staged.key!r}", fix="commit or reset them")


def _refuse(names: tuple[str, str], units: list[str], keys: list[str]) -> ConflictError:
    return ConflictError(
        f"{names[0]!r} and {names[1]!r} both changed {', '.join([*units, *keys][:5])}",
        fix="take one side, or replace what both changed and try again",
        units=units,
        keys=keys,
    )


# -- merge ------------------------------------------------------------------------------------------------------------
def merge(repo: "LakeFSRepository", wire: Wire, request: MergeRequest) -> CommitId:
    """Carry out `Repository.merge`."""
    if request.strategy not in (None, "source-wins", "dest-wins"):
        raise BadInput(f"strategy {request.strategy!r} is unknown", fix="use 'source-wins', 'dest-wins' or none")
    for _ in range(_TRIES):
        head, theirs = repo._head(request.dest), repo.resolve(request.source)
        if request.expect_head is not None and request.expect_head != head:
            raise ConflictError(
                f"branch {request.dest!r} is at {head}, not at {request.expect_head}", fix="look at what came in"
            )
        _check_clean(repo, request.dest)
        base = _merge_base(wire, theirs, head)
        if not request.allow_empty and not _differ(wire, base, theirs):
            raise NothingToCommit(
                f"{request.source!r} has nothing that {request.dest!r} lacks", fix="commit to it first"
            )
        units = _contested(wire, base, head, theirs, request.contested)
        if units:
            raise _refuse((request.dest, request.source), units, _merge_keys(wire, head, theirs, request, units))
        merged = _send_merge(repo, wire, request, head, theirs)
        if merged is not None:
            return merged
    raise ConflictError(f"branch {request.dest!r} keeps moving", fix="try again when fewer writers are at work")


def _merge_base(wire: Wire, source: CommitId, dest: CommitId) -> CommitId:
    doing = f"find the merge base of {source[:12]} and {dest[:12]}"
    return str(wire.json(f"/refs/{source}/merge/{dest}", fields=("base_commit_id",), doing=doing)["base_commit_id"])


def _merge_keys(wire: Wire, head: CommitId, theirs: CommitId, request: MergeRequest, units: list[str]) -> list[str]:
    if request.strategy is not None:
        return []
    lines = changes(diff_pages(wire, head, theirs, kind="three_dot"))
    return sorted(line.key for line in lines if line.kind == "conflict" and unit_of(line.key) not in units)


def _send_merge(
    repo: "LakeFSRepository", wire: Wire, request: MergeRequest, head: CommitId, theirs: CommitId
) -> CommitId | None:
    """Merge and look at what came of it; None if the branch moved before anything happened."""
    body = {
        "message": request.message,
        "metadata": dict(request.metadata),
        "squash_merge": request.squash,
        "allow_empty": True,  # whether there is something to merge was decided by `merge`
        **({"strategy": request.strategy} if request.strategy else {}),
    }
    try:
        with outcome(repo, request.dest, head, request.message):
            answer = wire.call(
                wire.sdk.refs_api.merge_into_branch,
                wire.name,
                theirs,
                request.dest,
                body,
                doing=f"merge {request.source!r} into {request.dest!r}",
            )
    except ConflictError as error:
        if status_of(error) != 409:
            raise
        keys = _merge_keys(wire, head, theirs, request, [])
        if not keys:
            return None
        raise _refuse((request.dest, request.source), [], keys) from error
    except (BadInput, StorageError) as error:
        if status_of(error) not in (400, 500):
            raise
        _check_clean(repo, request.dest)
        if repo._head(request.dest) == head:
            raise
        return None
    merged = str(answer.reference)
    _check_landing(repo, wire, request, head, theirs, merged)
    return merged


def _check_landing(
    repo: "LakeFSRepository",
    wire: Wire,
    request: MergeRequest,
    head: CommitId,
    theirs: CommitId,
    merged: CommitId,
) -> None:
    """Undo a merge that landed on another head than the one it was checked against, if that makes it wrong."""
    actual = repo.commit_info(merged).parents[0]
    if actual == head:
        return
    units = _contested(wire, _merge_base(wire, theirs, actual), actual, theirs, request.contested)
    if request.expect_head is None and not units:
        return
    why = f"branch {request.dest!r} moved from {head} to {actual} during the merge"
    note = f"Revert {merged}: {why}"
    try:
        undone = revert(repo, wire, request.dest, merged, None if request.squash else 1, note, {"reverts": merged})
    except LakeError as error:
        raise ConflictError(
            f"{why}; merge {merged} should not have landed and could not be undone: {error.message}",
            fix=f"revert {merged} on {request.dest!r} by hand",
            units=units,
        ) from error
    raise ConflictError(
        f"{why}; merge {merged} was reverted by {undone}",
        fix="look at what came in; a merged branch must be merged anew from a fresh branch",
        units=units,
    )


# -- revert -----------------------------------------------------------------------------------------------------------
def revert(
    repo: "LakeFSRepository",
    wire: Wire,
    branch: str,
    ref: str,
    parent: int | None,
    message: str,
    metadata: Metadata,
) -> CommitId:
    """Carry out `Repository.revert`: a three-way merge of the parent of `ref`, with `ref` as base."""
    for _ in range(_TRIES):
        head, undone = repo._head(branch), repo.commit_info(ref)
        if parent is None and len(undone.parents) > 1:
            raise BadInput(f"{ref!r} is a merge", fix="give parent=1 to go back to what its branch was before")
        if parent is not None and not 1 <= parent <= len(undone.parents):
            raise BadInput(f"{ref!r} has no parent {parent}", fix=f"it has {len(undone.parents)}")
        _check_clean(repo, branch)
        before = undone.parents[(parent or 1) - 1] if undone.parents else None
        names = (branch, f"the undoing of {ref}")
        units = _contested(wire, undone.id, head, before) if before else []
        if units and before:
            raise _refuse(names, units, _revert_keys(wire, undone.id, head, before, units))
        body = {
            "ref": undone.id,
            "parent_number": parent or (1 if undone.parents else 0),
            "commit_overrides": {"message": message or f"Revert {ref}", "metadata": dict(metadata)},
        }
        try:
            with outcome(repo, branch, head, message or f"Revert {ref}"):
                wire.call(
                    wire.sdk.branches_api.revert_branch, wire.name, branch, body, doing=f"revert {ref!r} on {branch!r}"
                )
        except ConflictError as error:
            if status_of(error) != 409 or before is None:
                raise
            keys = _revert_keys(wire, undone.id, head, before, [])
            if keys:
                raise _refuse(names, [], keys) from error
            continue
        except (BadInput, StorageError) as error:
            if status_of(error) not in (400, 500):
                raise
            _check_clean(repo, branch)
            if repo._head(branch) != head:
                continue
            if status_of(error) == 500:
                raise
            raise NothingToCommit(f"{ref!r} is undone on {branch!r} already", fix="nothing is left to do") from error
        return _find_revert(repo, branch, head, message or f"Revert {ref}", metadata)
    raise ConflictError(f"branch {branch!r} keeps moving", fix="try again when fewer writers are at work")


def _revert_keys(wire: Wire, base: CommitId, ours: CommitId, theirs: CommitId, units: list[str]) -> list[str]:
    """Name the objects that both sides changed since `base`, to different content."""

    def keys(left: CommitId, right: CommitId) -> set[str]:
        return {entry["path"] for entry in diff_pages(wire, left, right)}

    both = keys(base, theirs) & keys(base, ours) & keys(ours, theirs)
    return sorted(key for key in both if unit_of(key) not in units)


def _find_revert(repo: "LakeFSRepository", branch: str, head: CommitId, message: str, metadata: Metadata) -> CommitId:
    """Find the commit that a revert made: its answer holds no id, and others may have landed since."""
    found = None
    for commit in repo.log(branch, limit=_SEARCHED, first_parent=True):
        if commit.id == head:
            break
        if commit.message == message and commit.metadata == metadata:
            found = commit.id  # the oldest that matches: the one nearest to where the branch was
    if found is None:
        raise StorageError(f"the revert on {branch!r} is not in its log", fix="look at the log")
    return found


# -- what happened when the answer was lost --------------------------------------------------------------------------
@contextmanager
def outcome(repo: "LakeFSRepository", branch: str, head: CommitId, message: str) -> Iterator[None]:
    """Say which head `branch` has when the connection broke after a request that moves it was sent."""
    try:
        yield
    except ServerUnreachable as error:
        if not may_have_arrived(error):
            raise ServerUnreachable(
                f"{error.message}; nothing was sent: {branch!r} is where it was, at {head}", fix=error.fix
            ) from error
        raise ServerUnreachable(f"{error.message}; {_aftermath(repo, branch, head, message)}", fix=error.fix) from error


def _aftermath(repo: "LakeFSRepository", branch: str, head: CommitId, message: str) -> str:
    try:
        time.sleep(0.2)
        now = repo.commit_info(branch)
    except (ServerUnreachable, StorageError):
        return (
            f"{branch!r} was at {head} before: when the server is back, its log begins with that commit (nothing "
            f"landed, what was staged is still staged) or with one on top of it that says {message!r} (it landed)"
        )
    except (RefNotFound, NotFound):
        return f"{branch!r} was at {head} and is gone now"
    if now.id == head:
        return f"{branch!r} is still at {head}: nothing landed, what was staged is still staged"
    return f"{branch!r} went from {head} to {now.id}, whose message is {now.message!r}: look whether it is yours"
