"""What a cloned commit says of its origin, and what an engine must offer to be cloned into.

A commit that `emlake clone` made carries in its metadata

- `cloned_from`: the id it has in the repository it was cloned from,
- `cloned_before`: the ids it had in repositories before that, newest first, if there were any,
- `cloned_time`: its time to the microsecond, where the engine here keeps less, or its own;
- `cloned_committer`: who made it, where the engine here puts its own user in the place;
- `cloned_parents`: the ids its parents had there, where not all of them are parents here.

Records in a repository (manifests, verdicts, rows on `ops`) speak of commits by the ids these had where the records
were written. They are never rewritten: `Repository.resolve` finds the clone of a commit id that is not here. So it does
for the first digits of one, as logs and lists show them.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from graphlib import CycleError, TopologicalSorter
from typing import Protocol, runtime_checkable

from lake.errors import RefNotFound
from lake.names import is_commit_id
from lake.refs import is_prefix
from lake.repository import Commit, CommitId, Repository

FROM, BEFORE, TIME = "cloned_from", "cloned_before", "cloned_time"
COMMITTER, PARENTS = "cloned_committer", "cloned_parents"
_OURS = (FROM, BEFORE, TIME, COMMITTER, PARENTS)
_DIGITS = 7  # of an id from elsewhere; a shorter text is more likely a name that was mistyped


@dataclass(frozen=True, slots=True)
class Held:
    """A content that the destination holds: under `key` at `ref`, with the destination's own checksum."""

    ref: str
    key: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Move:
    """A branch to be moved to commit `to`: made if `expected` is None, else it must stand there and be clean."""

    branch: str
    to: CommitId
    expected: CommitId | None


class Importer(Protocol):
    """Rebuilds commits of another repository in this one."""

    @property
    def precision(self) -> timedelta:
        """How finely this engine keeps the time of a commit."""
        ...

    @property
    def content_addressed(self) -> bool:
        """Whether a content is found by its checksum alone, wherever it is used."""
        ...

    def commit(self, branch: str, like: Commit) -> CommitId:
        """Turn what is staged on `branch` into a commit and move the branch there.

        Parents, message, metadata, committer and time are those of `like`, whatever the branch's head is; its id is
        ignored. The same twice gives the same commit.
        """
        ...

    def reuse(self, branch: str, key: str, held: Held, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Stage a content that is here already under `key`; False if that takes the bytes."""
        ...

    def move(self, moves: Iterable[Move]) -> None:
        """Move branches, protected ones too; `ConflictError` if one is not where it is expected."""
        ...


@runtime_checkable
class PlainImporter(Importer, Protocol):
    """An importer of a server that makes commits only as it makes anybody's: now, as its user, on a branch's head.

    `commit` then takes a `like` whose only parent is the head of the branch; its committer and time go into the
    metadata.
    """

    @property
    def why(self) -> str:
        """Why commits cannot be rebuilt as they were."""
        ...

    def merge(self, branch: str, theirs: CommitId, like: Commit, fits: Callable[[CommitId], bool]) -> CommitId:
        """Merge `theirs` into the clean `branch`, as `like` says, if the server's own merge gives a tree that fits.

        `fits` is asked about a rehearsal that nobody sees. `CannotMerge`, and nothing has changed, if none does.
        """
        ...


class CannotMerge(Exception):
    """A server cannot rebuild a merge; the text says why. Never leaves a clone: its result tells it."""


@runtime_checkable
class Importing(Protocol):
    """A repository that can be cloned into."""

    def importer(self) -> Importer:
        """Give the part of the engine that rebuilds commits."""
        ...


def origins(metadata: Mapping[str, str]) -> tuple[CommitId, ...]:
    """Give the ids that a commit had in other repositories, newest first; empty if it is no clone."""
    if FROM not in metadata:
        return ()
    earlier = metadata.get(BEFORE, "")
    return (metadata[FROM], *(earlier.split(",") if earlier else ()))


def goes_by(commit: Commit, told: object) -> bool:
    """Tell whether an id names this commit: its own, or one that it had elsewhere."""
    return told in (commit.id, *origins(commit.metadata))


def may_be_old(base: str) -> bool:
    """Tell whether a base of a reference may be an id from elsewhere, or enough of its first digits."""
    return len(base) >= _DIGITS and is_prefix(base)


def clone_named(old: str, clones: Mapping[CommitId, CommitId]) -> CommitId | None:
    """Find a clone by the id that its commit had elsewhere, or the first digits of it; None if none or several answer.

    Parameters
    ----------
    clones : mapping
        Ids from elsewhere to the clones here.
    """
    if old in clones or is_commit_id(old):
        return clones.get(old)
    found = {clone for other, clone in clones.items() if other.startswith(old.lower())}
    return found.pop() if len(found) == 1 else None


def original_time(commit: Commit) -> datetime:
    """Give the time a commit was first made, as exactly as it is known."""
    told = commit.metadata.get(TIME)
    return datetime.fromisoformat(told) if told else commit.created


def original_committer(commit: Commit) -> str:
    """Name who made a commit first."""
    return commit.metadata.get(COMMITTER, commit.committer)


def parents_of(repo: Repository, commit: Commit) -> tuple[CommitId, ...]:
    """Give the parents of a commit, with those that its clone here could not be given; `()` for the first commit.

    A parent that is not in the repository is left out.
    """
    told = commit.metadata.get(PARENTS)
    if told is None or len(commit.parents) > 1:
        return commit.parents
    found = list(commit.parents)
    for old in told.split(",")[1:]:
        with suppress(RefNotFound):
            found.append(repo.resolve(old))
    return tuple(found)


def original_metadata(commit: Commit) -> dict[str, str]:
    """Give the metadata without what cloning added."""
    return {name: value for name, value in commit.metadata.items() if name not in _OURS}


def clone_of(commit: Commit, parents: tuple[CommitId, ...], precision: timedelta) -> Commit:
    """Describe the clone of a commit in a repository where its parents are `parents`."""
    metadata = original_metadata(commit) | {FROM: commit.id}
    told = commit.metadata.get(PARENTS, "")
    if told and len(parents) <= told.count(","):
        metadata[PARENTS] = told
    earlier = [old for old in origins(commit.metadata) if old != commit.id]
    if earlier:
        metadata[BEFORE] = ",".join(dict.fromkeys(earlier))
    made = original_time(commit)
    kept = made - timedelta(microseconds=made.microsecond % (precision // timedelta(microseconds=1)))
    if kept != made:
        metadata[TIME] = made.isoformat(timespec="microseconds")
    return Commit("", parents, commit.message, metadata, original_committer(commit), kept)


def plain_metadata(like: Commit) -> dict[str, str]:
    """Give the metadata of a clone that cannot have the committer and the time of `like`: they tell both."""
    told = {COMMITTER: like.committer, TIME: like.created.isoformat(timespec="microseconds")}
    return told | dict(like.metadata)


def ancestry(repo: Repository, heads: Iterable[CommitId]) -> dict[CommitId, Commit]:
    """Read all commits reachable from `heads`, each once; parents come before children."""
    found: dict[CommitId, Commit] = {}
    waiting = list(heads)
    while waiting:
        head = waiting.pop()
        if head in found:
            continue
        for commit in repo.log(head, first_parent=True):
            if commit.id in found:
                break
            found[commit.id] = commit
            waiting += commit.parents[1:]
    return _parents_first(found)


def _parents_first(commits: Mapping[CommitId, Commit]) -> dict[CommitId, Commit]:
    order = TopologicalSorter({commit.id: commit.parents for commit in commits.values()}).static_order()
    return {commit: commits[commit] for commit in order}


def with_lost_parents(repo: Repository, history: dict[CommitId, Commit]) -> dict[CommitId, Commit]:
    """Give merges the parents back that an earlier clone could not give them, where all of these are in `history`."""
    lost = [commit for commit in history.values() if FROM in commit.metadata and PARENTS in commit.metadata]
    whole = dict(history)
    for commit in lost:
        parents = parents_of(repo, commit)
        if len(parents) > commit.metadata[PARENTS].count(",") and all(parent in history for parent in parents):
            whole[commit.id] = replace(commit, parents=parents)
    try:
        return _parents_first(whole)
    except CycleError:  # somebody wrote ids there that cannot be
        return history
