"""Merge and revert by whole units, with an expected head, on a server that knows neither.

lakeFS merges object by object and looks at no head. So before a merge the units that both sides changed are compared
and a contested one is refused, and the merge is rehearsed if it is not straightforward (`threeway`); afterwards the
parent of the new commit tells whether the branch moved in between, and a merge that should not have been is reverted.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.landing import land
from lake.engines.lakefs.threeway import Plan, changed_keys, differ, merge_base, plan_merge, plan_revert, rehearse
from lake.engines.lakefs.wire import Wire
from lake.errors import BadInput, ConflictError, DirtyBranch, LakeError, NothingToCommit, StorageError
from lake.repository import CommitId, Metadata, Strategy

if TYPE_CHECKING:
    from lake.engines.lakefs.repository import LakeFSRepository

_TRIES = 6


class _Moved(Exception):
    """The branch moved between the check and the deed, and nothing was done: check again."""


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

    @property
    def names(self) -> tuple[str, str]:
        """What an error calls the two sides."""
        return self.dest, self.source

    def expected(self, plan: Plan) -> frozenset[str]:
        """Give the keys that the merge takes from the source."""
        return plan.wanted | (plan.conflicts if self.strategy == "source-wins" else frozenset())


def _keeps_moving(branch: str) -> ConflictError:
    return ConflictError(f"branch {branch!r} keeps moving", fix="try again when fewer writers are at work")


def _check_clean(repo: "LakeFSRepository", branch: str) -> None:
    staged = next(repo.uncommitted(branch), None)
    if staged is not None:
        raise DirtyBranch(f"branch {branch!r} has staged changes, the first {staged.key!r}", fix="commit or reset them")


# -- merge ------------------------------------------------------------------------------------------------------------
def merge(repo: "LakeFSRepository", wire: Wire, request: MergeRequest) -> CommitId:
    """Carry out `Repository.merge`."""
    if request.strategy not in (None, "source-wins", "dest-wins"):
        raise BadInput(f"strategy {request.strategy!r} is unknown", fix="use 'source-wins', 'dest-wins' or none")
    for _ in range(_TRIES):
        head, theirs = repo.head(request.dest), repo.resolve(request.source)
        if request.expect_head is not None and request.expect_head != head:
            raise ConflictError(
                f"branch {request.dest!r} is at {head}, not at {request.expect_head}", fix="look at what came in"
            )
        _check_clean(repo, request.dest)
        base = merge_base(wire, theirs, head)
        if not request.allow_empty and not differ(wire, base, theirs):
            raise NothingToCommit(
                f"{request.source!r} has nothing that {request.dest!r} lacks", fix="commit to it first"
            )
        plan = plan_merge(wire, base, head, theirs, request.contested)
        plan.check(request.names, decided=request.strategy is not None)
        try:
            merged = _merge_planned(repo, wire, request, plan)
        except _Moved:
            continue
        _check_landing(repo, wire, request, plan, merged)
        return merged
    raise _keeps_moving(request.dest)


def _merge_planned(repo: "LakeFSRepository", wire: Wire, request: MergeRequest, plan: Plan) -> CommitId:
    source = plan.theirs
    if not plan.straight:

        def act(branch: str) -> None:
            _send_merge(wire, plan.theirs, branch, {"strategy": request.strategy} if request.strategy else {})

        outcome, right = rehearse(wire, plan, request.expected(plan), act)
        # Put right, the rehearsal stands on the head and on the source, so merging it instead is straight.
        source = plan.theirs if right else outcome
    options = {"squash_merge": request.squash, "message": request.message}
    if request.strategy:
        options["strategy"] = request.strategy
    try:
        return land(
            wire,
            request.dest,
            plan.ours,
            request.metadata,
            lambda metadata: _send_merge(wire, source, request.dest, options | {"metadata": metadata}),
        )
    except (ConflictError, BadInput, StorageError) as error:
        # 409: moved, and now in conflict; 400: dirty since; 500: lost the race for the branch too often.
        if status_of(error) not in (400, 409, 500):
            raise
        _check_clean(repo, request.dest)
        if repo.head(request.dest) == plan.ours:
            raise
        raise _Moved from error


def _send_merge(wire: Wire, source: CommitId, dest: str, body: dict[str, Any]) -> CommitId:
    # allow_empty: whether there is something to merge was decided by looking at trees, not at the ids of their parts.
    answer = wire.call(
        wire.sdk.refs_api.merge_into_branch,
        wire.name,
        source,
        dest,
        {"message": "rehearsal", **body, "allow_empty": True},
        doing=f"merge {source[:12]} into {dest!r}",
    )
    return str(answer.reference)


def _check_landing(repo: "LakeFSRepository", wire: Wire, request: MergeRequest, plan: Plan, merged: CommitId) -> None:
    """Undo a merge that landed on another head than the one it was planned for, if that makes it wrong."""
    actual = repo.commit_info(merged).parents[0]
    if actual == plan.ours:
        return
    units: tuple[str, ...] = ()
    if request.expect_head is None:
        now = plan_merge(wire, merge_base(wire, plan.theirs, actual), actual, plan.theirs, request.contested)
        try:
            now.check(request.names, decided=request.strategy is not None)
        except ConflictError as error:
            units = error.units
        else:
            if now.straight or changed_keys(wire, actual, merged) == request.expected(now):
                return
    parent = None if request.squash else 1
    _undo(repo, wire, request.dest, merged, parent, (plan.ours, actual), units)


def _undo(
    repo: "LakeFSRepository",
    wire: Wire,
    branch: str,
    commit: CommitId,
    parent: int | None,
    heads: tuple[CommitId, CommitId],
    units: tuple[str, ...],
) -> NoReturn:
    why = f"branch {branch!r} moved from {heads[0]} to {heads[1]} meanwhile"
    try:
        undone = revert(repo, wire, branch, commit, parent, f"Revert {commit}: {why}", {})
    except LakeError as error:
        raise ConflictError(
            f"{why}; {commit} should not have landed and could not be undone: {error.message}",
            fix=f"revert {commit} on {branch!r} by hand",
            units=units,
        ) from error
    raise ConflictError(
        f"{why}; {commit} was reverted by {undone}",
        fix="look at what came in; to merge a merged branch again, revert that revert on a fresh branch",
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
    message = message or f"Revert {ref}"
    for _ in range(_TRIES):
        head, undone = repo.head(branch), repo.commit_info(ref)
        if parent is None and len(undone.parents) > 1:
            raise BadInput(f"{ref!r} is a merge", fix="give parent=1 to go back to what its branch was before")
        if parent is not None and not 1 <= parent <= len(undone.parents):
            raise BadInput(f"{ref!r} has no parent {parent}", fix=f"it has {len(undone.parents)}")
        _check_clean(repo, branch)
        number = parent or 1
        # The first commit of a repository is empty: there is nothing to undo in it.
        before = undone.parents[number - 1] if undone.parents else undone.id
        plan = plan_revert(wire, undone.id, head, before)
        plan.check((branch, f"the undoing of {ref}"), decided=False)
        if not (differ(wire, head, before) if plan.straight else plan.wanted):
            raise NothingToCommit(f"{ref!r} is undone on {branch!r} already", fix="nothing is left to do")
        try:
            return _revert_planned(repo, wire, branch, plan, number, message, metadata)
        except _Moved:
            continue
    raise _keeps_moving(branch)


def _revert_planned(
    repo: "LakeFSRepository",
    wire: Wire,
    branch: str,
    plan: Plan,
    number: int,
    message: str,
    metadata: Metadata,
) -> CommitId:
    def send(marked: dict[str, str]) -> None:
        _send_revert(wire, branch, plan.base, number, {"message": message, "metadata": marked})

    def send_instead(marked: dict[str, str]) -> CommitId:
        body = {"message": message, "metadata": marked, "squash_merge": True}
        return _send_merge(wire, outcome, branch, body)

    right = True
    if not plan.straight:
        outcome, right = rehearse(
            wire, plan, plan.wanted, lambda hidden: _send_revert(wire, hidden, plan.base, number, {})
        )
    try:
        made = land(wire, branch, plan.ours, metadata, send if right else send_instead)
    except (ConflictError, BadInput, StorageError) as error:
        if status_of(error) not in (400, 409, 500):
            raise
        _check_clean(repo, branch)
        if repo.head(branch) == plan.ours:
            raise
        raise _Moved from error
    actual = repo.commit_info(made).parents[0]
    if actual != plan.ours:
        now = plan_revert(wire, plan.base, actual, plan.theirs)
        if now.units or now.conflicts or changed_keys(wire, actual, made) != now.wanted:
            _undo(repo, wire, branch, made, None, (plan.ours, actual), tuple(now.units))
    return made


def _send_revert(wire: Wire, branch: str, commit: CommitId, number: int, overrides: dict[str, Any]) -> None:
    body = {"ref": commit, "parent_number": number, "allow_empty": True}
    if overrides:
        body["commit_overrides"] = overrides
    wire.call(wire.sdk.branches_api.revert_branch, wire.name, branch, body, doing=f"revert {commit[:12]} on {branch!r}")
