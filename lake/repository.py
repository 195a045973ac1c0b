"""What every engine promises: branches, commits, diff, three-way merge, revert, cherry-pick, tags, protection, staging.

The shape is lakeFS's. `lake.testing.memory` is the specification in executable form, `lake.testing.repository` the
contract that every engine passes. References (`ref`) are a branch, a tag, a commit id, a unique prefix of one,
followed by any chain of `~n` and `^n`; `branch@` is the committed head and `branch$` the staging area (object reads
only). A plain branch name shows staged writes to object reads and means the committed head to everything else.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from lake.location import Location

if TYPE_CHECKING:
    from lake.session import Session
    from lake.snapshot import Snapshot

CommitId = str
Metadata = Mapping[str, str]
ChangeKind = Literal["added", "changed", "removed", "conflict"]
Strategy = Literal["source-wins", "dest-wins"]
Progress = Callable[[str, int, int], None]  # long work tells its step, how much of it is done, and how much there is
Finding = tuple[str, str, str]  # what was looked at, its state, and the detail; what `emlake doctor` prints
NO_METADATA: Metadata = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Commit:
    """One immutable commit; `parents` is empty for the first, two long for a merge (destination first)."""

    id: CommitId
    parents: tuple[CommitId, ...]
    message: str
    metadata: Metadata
    committer: str
    created: datetime


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """One object as a listing shows it.

    Two objects are the same if size, checksum, content type and metadata are. `checksum` is the engine's own
    (embedded: sha256; lakeFS: md5, or md5 of md5s after a multipart upload), never an integrity digest across engines.
    `address` says where the bytes lie, for the operator; it may differ for equal content.
    """

    key: str
    size: int
    checksum: str
    content_type: str = "application/octet-stream"
    metadata: Metadata = field(default_factory=dict)
    address: str = ""

    @property
    def identity(self) -> tuple[int, str, str, tuple[tuple[str, str], ...]]:
        """What merge and diff compare."""
        return self.size, self.checksum, self.content_type, tuple(sorted(self.metadata.items()))


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One line of a diff, in byte order of `key`."""

    key: str
    kind: ChangeKind


class Repository(Protocol):
    """A versioned set of objects. All methods raise from `lake.errors` only, and a failed one changes nothing."""

    @property
    def location(self) -> str:
        """Where it is, as `lake.open` takes it."""
        ...

    # -- refs ---------------------------------------------------------------------------------------------------
    def resolve(self, ref: str) -> CommitId:
        """Give the full commit id behind `ref`, or raise `RefNotFound` with the nearest name.

        An id that a commit had where it was cloned from, or its first digits (from seven on), stands for its clone,
        here and wherever a `ref` is taken.
        """
        ...

    def commit_info(self, ref: str) -> Commit:
        """Give the commit behind `ref`, or raise `RefNotFound`."""
        ...

    def branches(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map branch names to committed heads, sorted by name."""
        ...

    def create_branch(self, name: str, source: str) -> CommitId:
        """Make a branch at the commit behind `source`; `AlreadyExists` if a branch or tag has the name."""
        ...

    def delete_branch(self, name: str) -> None:
        """Remove a branch and what is staged on it; `RefNotFound` if there is none, `ConflictError` for `main`."""
        ...

    def tags(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map tag names to commits, sorted by name."""
        ...

    def create_tag(self, name: str, ref: str) -> CommitId:
        """Make a tag, atomically: of many callers one wins, the others get `AlreadyExists`."""
        ...

    def delete_tag(self, name: str) -> None:
        """Remove a tag, or raise `RefNotFound`."""
        ...

    def protect(self, pattern: str, *more: str) -> None:
        """Refuse direct writes, deletes, commits and resets on branches that match the glob `pattern` (or one more).

        Merges, reverts and cherry-picks stay possible. Returns when the rules are in force: a server needs up to 6 s
        for it, once for all that come in one call. `InvalidName` for anything but letters of a branch name, `*`
        and `?`.
        """
        ...

    def protected(self) -> tuple[str, ...]:
        """List the protection patterns, sorted."""
        ...

    # -- objects ------------------------------------------------------------------------------------------------
    def put(
        self,
        branch: str,
        key: str,
        data: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        metadata: Metadata = NO_METADATA,
    ) -> ObjectStat:
        """Stage bytes, or the content of a file, under `key`; when it returns they survive a crash.

        Raises `ProtectedBranch`, `RefNotFound` (no such branch), `InvalidName` (key) or `NotFound` (file). A `Path`
        is copied, never moved or changed.
        """
        ...

    def delete(self, branch: str, keys: Collection[str]) -> None:
        """Stage the removal of `keys`; a key that is not there is ignored. `ProtectedBranch` as for `put`."""
        ...

    def get(self, ref: str, key: str) -> bytes:
        """Read an object, or raise `RefNotFound` / `ObjectNotFound`; `CorruptObject` if it is damaged."""
        ...

    def stat(self, ref: str, key: str) -> ObjectStat:
        """Describe an object, or raise `RefNotFound` / `ObjectNotFound`."""
        ...

    def list(self, ref: str, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[ObjectStat]:
        """Yield objects whose key starts with `prefix` and is greater than `after`, in byte order."""
        ...

    def location_of(self, ref: str, prefix: str) -> Location:
        """Give a read-only place where native libraries find the objects under `prefix` (ends in `/`) at `ref`.

        `ref` is resolved to a commit once, here. Raises `UnrepresentableKey` on engines that hand out folders.
        """
        ...

    def workspace(self, branch: str, prefix: str) -> Location:
        """Give a writable place that starts with the branch's content under `prefix` (ends in `/`).

        What is written there belongs to `branch` at its next commit. `ProtectedBranch` on a protected branch.
        """
        ...

    # -- history ------------------------------------------------------------------------------------------------
    def uncommitted(self, branch: str, prefix: str = "") -> Iterator[Change]:
        """Yield what a commit of `branch` would change: puts, deletes and workspace writes, sorted by key."""
        ...

    def commit(
        self, branch: str, message: str, metadata: Metadata = NO_METADATA, *, allow_empty: bool = False
    ) -> CommitId:
        """Turn what is staged into one commit; `NothingToCommit` or `ProtectedBranch` change nothing.

        A key that was both put and written in a workspace is a `ConflictError` (on a server the later one stands).
        `GateRefused` on a main that has a release gate (`lake.admission`).
        """
        ...

    def reset(self, branch: str) -> None:
        """Drop what is staged on `branch`, workspace writes included."""
        ...

    def reset_to(self, branch: str, ref: str) -> CommitId:
        """Move the head of `branch` to the commit behind `ref` and return it (a hard reset).

        What the branch held alone stays readable by id until garbage collection. `ProtectedBranch` as for `put`;
        `DirtyBranch` if anything is staged (a bare lakeFS would leave it staged, now on another commit).
        """
        ...

    def log(
        self,
        ref: str,
        *,
        limit: int | None = None,
        first_parent: bool = False,
        objects: Collection[str] = (),
        prefixes: Collection[str] = (),
    ) -> Iterator[Commit]:
        """Yield commits reachable from `ref`, newest first (children before parents).

        With `objects` (whole keys) or `prefixes`, only those commits that differ from their *first parent* at one of
        them. So a merge is listed on the line that it changed, and `first_parent` tells which release brought a
        path in. (A bare lakeFS leaves out every commit with two parents, whatever it changed.)
        """
        ...

    def diff(self, left: str, right: str, *, three_dot: bool = False, prefix: str = "") -> Iterator[Change]:
        """Yield changes from `left` to `right`, sorted by key.

        Two-dot compares the two trees. Three-dot tells what `right` changed since the merge base, with kind
        `conflict` where `left` changed the same key differently: what a merge of `right` into `left` would meet.
        """
        ...

    def merge(
        self,
        source: str,
        dest: str,
        message: str,
        metadata: Metadata = NO_METADATA,
        *,
        strategy: Strategy | None = None,
        squash: bool = False,
        allow_empty: bool = False,
        expect_head: CommitId | None = None,
        contested: Collection[str] = (),
    ) -> CommitId:
        """Merge `source` into branch `dest` by whole units and return the new commit.

        Parents are `[dest, source]`, or `[dest]` with `squash`. A unit (`lake.names.unit_of`) changed on both sides
        to different content, or a single object outside units in conflict (unless `strategy` decides it), raises
        `ConflictError` with `units` and `keys` and changes nothing.

        Parameters
        ----------
        strategy : "source-wins", "dest-wins" or None
            Decides objects in conflict; never a unit, unless it is `contested`.
        expect_head : commit id
            `ConflictError` unless `dest` is there, and stays there until the merge has happened.
        contested : collection of prefixes
            Units under these prefixes may be changed on both sides: `strategy` decides object by object. The
            caller must then replace them whole, else a table may be torn.

        Raises
        ------
        NothingToCommit
            `source` holds what it held at the merge base, and not `allow_empty`. (A source that made the same
            changes as `dest` is merged: the commit has the tree of `dest` and says that the lines met.)
        DirtyBranch
            `dest` has staged changes. (Staged changes of `source` are ignored.)
        GateRefused
            `dest` is a main that has a release gate, and this is no release (`lake.admission`).
        """
        ...

    def revert(
        self, branch: str, ref: str, *, parent: int | None = None, message: str = "", metadata: Metadata = NO_METADATA
    ) -> CommitId:
        """Undo commit `ref` on `branch` by a new one-parent commit: a three-way merge of its parent, base `ref`.

        `parent` (from 1) is required for a merge commit, else `BadInput`. `ConflictError` names the units and keys
        that later commits changed; `NothingToCommit` if it is undone already; `DirtyBranch` as for merge. An empty
        message becomes `Revert <ref>`.
        """
        ...

    def cherry_pick(
        self,
        branch: str,
        ref: str,
        *,
        parent: int | None = None,
        message: str = "",
        metadata: Metadata | None = None,
    ) -> CommitId:
        """Bring what commit `ref` changed into `branch` by a new one-parent commit: a merge of `ref`, base its parent.

        Units hold as for merge. `parent` (from 1) is required for a merge commit, else `BadInput`. An empty message
        and no metadata mean those of `ref`; `cherry-pick-origin` (its id) and `cherry-pick-committer` are added.
        `ConflictError` names the units and keys that `branch` holds otherwise; `NothingToCommit` if it holds the change
        already (a bare lakeFS makes an empty commit); `DirtyBranch` as for merge; `GateRefused` as for commit.
        """
        ...

    def close(self) -> None:
        """Release connections and file handles; the repository stays as it is."""
        ...

    def server_gate(self) -> "ServerGate | None":
        """Give the release gate that runs inside the server; None on an engine without a server."""
        ...

    def retention(self) -> "Retention | None":
        """Give the rules of the server's own garbage collection; None on an engine without a server."""
        ...

    # -- work and reading (the same code on every engine: `Handle`) -----------------------------------------------
    def session(self, branch: str, *, owner: str | None = None, wait_s: float = 0.0, resume: bool = True) -> "Session":
        """Become the one writer of `branch`, or raise `ConflictError` naming who is and since when."""
        ...

    def snapshot(self, ref: str, *, ops: str | None = None) -> "Snapshot":
        """Pin `ref`, and the archive and ops commits that go with it, for reading."""
        ...


class ServerGate(Protocol):
    """The release gate that runs inside a server, as the server's own record and conduct show it."""

    def ran_for(self, merge: CommitId) -> bool:
        """Tell whether the server ran the gate for this merge into main, and the gate let it in."""
        ...

    def refuses(self) -> bool:
        """Tell whether the server refuses, now, what the gate must refuse; no branch is moved by asking."""
        ...


class Retention(Protocol):
    """What a server's own garbage collection keeps: days by branch, the default under the empty name."""

    def days(self) -> Mapping[str, int]:
        """Give the rules; empty if there are none."""
        ...

    def keep(self, days: Mapping[str, int]) -> None:
        """Raise the rules to at least these days; what is kept for longer stays so."""
        ...


class Handle:
    """What every engine inherits: `session` and `snapshot`, written once over the protocol's primitives."""

    def server_gate(self) -> ServerGate | None:
        """Give None: there is no server that could hold a gate of its own."""
        return None

    def retention(self) -> Retention | None:
        """Give None: there is no server that collects."""
        return None

    def session(
        self: Repository, branch: str, *, owner: str | None = None, wait_s: float = 0.0, resume: bool = True
    ) -> "Session":
        """Become the one writer of `branch`; see `lake.session.Session`."""
        from lake.opening import open_session

        return open_session(self, branch, owner=owner, wait_s=wait_s, resume=resume)

    def snapshot(self: Repository, ref: str, *, ops: str | None = None) -> "Snapshot":
        """Pin `ref` for reading; see `lake.snapshot.Snapshot`."""
        from lake.snapshot import open_snapshot

        return open_snapshot(self, ref, ops=ops)
