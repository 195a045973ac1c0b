"""What a cloned commit says of its origin, and what an engine must offer to be cloned into.

A commit that `emlake clone` made carries in its metadata

- `cloned_from`: the id it has in the repository it was cloned from,
- `cloned_before`: the ids it had in repositories before that, newest first, if there were any,
- `cloned_time`: its time to the microsecond, where the engine here keeps less.

Records in a repository (manifests, verdicts, rows on `ops`) speak of commits by the ids these had where the records
were written. They are never rewritten: `Repository.resolve` finds the clone of a full commit id that is not here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from graphlib import TopologicalSorter
from typing import Protocol, runtime_checkable

from lake.repository import Commit, CommitId, Repository

FROM, BEFORE, TIME = "cloned_from", "cloned_before", "cloned_time"
_OURS = (FROM, BEFORE, TIME)


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


def original_time(commit: Commit) -> datetime:
    """Give the time a commit was first made, as exactly as it is known."""
    told = commit.metadata.get(TIME)
    return datetime.fromisoformat(told) if told else commit.created


def original_metadata(commit: Commit) -> dict[str, str]:
    """Give the metadata without what cloning added."""
    return {name: value for name, value in commit.metadata.items() if name not in _OURS}


def clone_of(commit: Commit, parents: tuple[CommitId, ...], precision: timedelta) -> Commit:
    """Describe the clone of a commit in a repository where its parents are `parents`."""
    metadata = original_metadata(commit) | {FROM: commit.id}
    earlier = [old for old in origins(commit.metadata) if old != commit.id]
    if earlier:
        metadata[BEFORE] = ",".join(dict.fromkeys(earlier))
    made = original_time(commit)
    kept = made - timedelta(microseconds=made.microsecond % (precision // timedelta(microseconds=1)))
    if kept != made:
        metadata[TIME] = made.isoformat(timespec="microseconds")
    return Commit("", parents, commit.message, metadata, commit.committer, kept)


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
    order = TopologicalSorter({commit.id: commit.parents for commit in found.values()}).static_order()
    return {commit: found[commit] for commit in order}
