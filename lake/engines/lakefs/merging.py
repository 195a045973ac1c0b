"""Merge, revert and cherry-pick by whole units, with an expected head, on a server that knows neither.

lakeFS merges object by object and looks at no head. So before a merge the units that both sides changed are compared
and a contested one is refused, and the merge is rehearsed if it is not straightforward (`threeway`); afterwards the
parent of the new commit tells whether the branch moved in between, and a merge that should not have been is reverted.

What is right reaches the branch by the same kind of request as what was asked for, since a gate in the server lets
reverts pass and no squash: where lakeFS reverts wrongly, a commit is made beside the branch whose undoing, on the
branch as it stands, gives the right tree, and that one is reverted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from lake import admission
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.landing import after_landing, land
from lake.engines.lakefs.threeway import (
    Plan,
    changed_keys,
    differ,
    head_of,
    hidden_branch,
    merge_base,
    plan_merge,
    plan_replay,
    rehearse,
)
from lake.engines.lakefs.wire import Wire
from lake.errors import BadInput, ConflictError, DirtyBranch, LakeError, NothingToCommit, StorageError
from lake.replay import check_parent, picked_metadata
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


def check_clean(repo: "LakeFSRepository", branch: str) -> None:
    """Raise `DirtyBranch` if anything is staged."""
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
        check_clean(repo, request.dest)
        base = merge_base(wire, theirs, head)
        if not request.allow_empty and not differ(wire, base, theirs):
            raise NothingToCommit(
                f"{request.source!r} has nothing that {request.dest!r} lacks", fix="commit to it first"
            )
        plan = plan_merge(wire, base, head, theirs, request.contested)
        plan.check(request.names, decided=request.strategy is not None)
        # A gate that the source alone brings the server runs itself.
        if admission.watched(repo, request.dest, head):
            admission.check_merge(repo, head, theirs, request.metadata, squash=request.squash)
        try:
            merged = _merge_planned(repo, wire, request, plan)
        except _Moved:
            continue
        with after_landing(request.dest, merged):
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
        check_clean(repo, request.dest)
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


# -- revert and cherry-pick -------------------------------------------------------------------------------------------
_Send = Callable[[str, dict[str, Any]], CommitId | None]


@dataclass(frozen=True, slots=True)
class _Replay:
    """One commit to be played again on a branch: its change, or the undoing of it.

    Parameters
    ----------
    base, theirs : commit id
        The three-way merge that it comes to: what `theirs` changed since `base`.
    names : (str, str)
        What an error calls the two sides.
    done : str
        What to say if the branch holds the outcome already.
    send : callable
        Asks the server to do it on a branch, with a message and metadata.
    instead : callable
        Takes the head of the branch and a commit of the right tree, where the server gives a wrong one; gives another
        `send`.
    gated : bool
        The gate of main has a say.
    """

    branch: str
    base: CommitId
    theirs: CommitId
    names: tuple[str, str]
    done: str
    message: str
    metadata: Metadata
    send: _Send
    instead: Callable[[CommitId, CommitId], _Send]
    gated: bool


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
    repo.head(branch)
    undone = repo.commit_info(ref)
    number = check_parent(ref, undone, parent)

    def instead(head: CommitId, outcome: CommitId) -> _Send:
        return partial(_send_revert, wire, _taken_back(wire, head, outcome), 1)

    # The first commit of a repository is empty: there is nothing to undo in it.
    before = undone.parents[number - 1] if undone.parents else undone.id
    names, done = (branch, f"the undoing of {ref}"), f"{ref!r} is undone on {branch!r} already"
    send, said = partial(_send_revert, wire, undone.id, number), message or f"Revert {ref}"
    order = _Replay(branch, undone.id, before, names, done, said, metadata, send, instead, gated=False)
    return _replay(repo, wire, order)


def _send_revert(wire: Wire, commit: CommitId, number: int, target: str, overrides: dict[str, Any]) -> None:
    body = {"ref": commit, "parent_number": number, "allow_empty": True, "commit_overrides": overrides}
    doing = f"revert {commit[:12]} on {target!r}"
    wire.call(wire.sdk.branches_api.revert_branch, wire.name, target, body, doing=doing)


def _taken_back(wire: Wire, head: CommitId, outcome: CommitId) -> CommitId:
    """Make a commit that holds the tree of `head` and whose parent holds that of `outcome`."""
    with hidden_branch(wire, head) as branch:
        there = _send_merge(wire, outcome, branch, {"squash_merge": True})
        _send_revert(wire, there, 1, branch, {"message": "rehearsal"})
        return head_of(wire, branch)


def cherry_pick(
    repo: "LakeFSRepository",
    wire: Wire,
    branch: str,
    ref: str,
    parent: int | None,
    message: str,
    metadata: Metadata | None,
) -> CommitId:
    """Carry out `Repository.cherry_pick`: a three-way merge of `ref`, with its parent as base."""
    repo.head(branch)
    picked = repo.commit_info(ref)
    number = check_parent(ref, picked, parent)

    def send(target: str, overrides: dict[str, Any]) -> None:
        # Never without metadata: lakeFS 1.84 would write the origin into its cached copy of the picked commit, which
        # then no longer fits its id and is answered with 404 until the cache forgets it.
        body = {"ref": picked.id, "parent_number": number, "commit_overrides": overrides}
        doing = f"cherry-pick {picked.id[:12]} on {target!r}"
        wire.call(wire.sdk.branches_api.cherry_pick, wire.name, target, body, doing=doing)

    def instead(_: CommitId, outcome: CommitId) -> _Send:
        # A cherry-pick of `outcome` would be said to come from there.
        return lambda target, overrides: _send_merge(wire, outcome, target, {**overrides, "squash_merge": True})

    before = picked.parents[number - 1] if picked.parents else picked.id
    done, entries = f"{branch!r} holds what {ref!r} changed already", picked_metadata(picked, metadata)
    names, said = (branch, ref), message or picked.message
    order = _Replay(branch, before, picked.id, names, done, said, entries, send, instead, gated=True)
    return _replay(repo, wire, order)


def _replay(repo: "LakeFSRepository", wire: Wire, order: _Replay) -> CommitId:
    for _ in range(_TRIES):
        head = repo.head(order.branch)
        check_clean(repo, order.branch)
        plan = plan_replay(wire, order.base, head, order.theirs)
        plan.check(order.names, decided=False)
        if not (differ(wire, head, order.theirs) if plan.straight else plan.wanted):
            raise NothingToCommit(order.done, fix="nothing is left to do")
        if order.gated:
            # The server asks the gate of main about a pick, and that of the source about a merge in its place.
            admission.check_commit(repo, order.branch, head)
        try:
            return _replay_planned(repo, wire, order, plan)
        except _Moved:
            continue
    raise _keeps_moving(order.branch)


def _replay_planned(repo: "LakeFSRepository", wire: Wire, order: _Replay, plan: Plan) -> CommitId:
    branch = order.branch

    ask = order.send
    if not plan.straight:
        overrides = {"message": "rehearsal", "metadata": {"rehearsal": branch}}
        outcome, right = rehearse(wire, plan, plan.wanted, lambda hidden: order.send(hidden, overrides))
        if not right:
            ask = order.instead(plan.ours, outcome)

    def send(marked: dict[str, str]) -> CommitId | None:
        return ask(branch, {"message": order.message, "metadata": marked})

    try:
        made = land(wire, branch, plan.ours, order.metadata, send)
    except (ConflictError, BadInput, StorageError) as error:
        if status_of(error) not in (400, 409, 500):
            raise
        check_clean(repo, branch)
        if repo.head(branch) == plan.ours:
            raise
        raise _Moved from error
    with after_landing(branch, made):
        actual = repo.commit_info(made).parents[0]
        if actual != plan.ours:
            now = plan_replay(wire, plan.base, actual, plan.theirs)
            if now.units or now.conflicts or changed_keys(wire, actual, made) != now.wanted:
                _undo(repo, wire, branch, made, None, (plan.ours, actual), tuple(now.units))
    return made
