"""One writer, one commit: work on a hidden branch, landed on its branch whole or not at all.

The same code on every engine, over the protocol's primitives: a hidden branch `session-<id>` takes the writes, a lock
made of tags (`lake.locks`) keeps other writers away, and a squash merge that demands the head where the session began
puts everything on the branch as one commit. So a protected branch can be written by sessions and by nothing else. How
one begins, and what becomes of one that crashed, is in `lake.opening`.

Decision: the work is not tied to the lock. Whoever loses the lock loses the right to land, never the work; it stays on
the hidden branch until `sweep` finds that its process is gone.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from lake.durable import point
from lake.errors import (
    BadInput,
    ConflictError,
    LakeError,
    NothingToCommit,
    SessionLost,
)
from lake.location import Location
from lake.locks import (
    Lock,
    hold_metadata,
    holder_in,
    landed,
    lock_tags,
    release,
    remove_branch,
    suspended_tag,
)
from lake.repository import NO_METADATA, CommitId, Metadata, ObjectStat, Repository

_log = logging.getLogger(__name__)
#: Holders that this process gave up and could not remove, its disk being full or its server gone. By its locks it still
#: writes there; the next session on the branch removes them, or, where the value is True, takes their work over.
given_up: dict[CommitId, bool] = {}
#: Hidden branches that this process made for sessions that never began, and could not remove again.
never_began: set[str] = set()


class Session:
    """The single writer of a branch; get one from `Repository.session`.

    As a context manager it abandons its work when the block ends, or raises, without `commit` or `suspend`.

    Attributes
    ----------
    id : str
        Recorded as `session` in the metadata of the commit that lands.
    branch, work : str
        The branch that is written, and the hidden branch where the work is until it lands.
    base : commit id
        Where `branch` was when the session began.
    owner : str
        Who writes.
    resumed : bool
        True if this continues a dead or suspended session; its work is there.
    """

    def __init__(self, repo: Repository, lock: Lock, *, resumed: bool) -> None:
        self.id, self.branch, self.work, self.base = lock.session, lock.branch, lock.work, lock.base
        self.owner, self.resumed = lock.process.owner, resumed
        self._repo = repo
        self._lock = lock
        self._state: Literal["open", "lost", "closed"] = "open"

    # -- work ---------------------------------------------------------------------------------------------------
    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        metadata: Metadata = NO_METADATA,
    ) -> ObjectStat:
        """Write bytes, or a file's content, under `key`."""
        self._check_open()
        return self._repo.put(self.work, key, data, content_type=content_type, metadata=metadata)

    def delete(self, keys: Collection[str]) -> None:
        """Remove `keys`; those that are not there are ignored."""
        self._check_open()
        self._repo.delete(self.work, keys)

    def get(self, key: str) -> bytes:
        """Read an object as this session sees it, or raise `ObjectNotFound`."""
        return self._repo.get(self.work, key)

    def stat(self, key: str) -> ObjectStat:
        """Describe an object as this session sees it, or raise `ObjectNotFound`."""
        return self._repo.stat(self.work, key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[ObjectStat]:
        """Yield objects as this session sees them, in byte order."""
        return self._repo.list(self.work, prefix, after=after, limit=limit)

    def workspace(self, prefix: str) -> Location:
        """Give a writable place that starts with the content under `prefix` (ends in `/`)."""
        self._check_open()
        return self._repo.workspace(self.work, prefix)

    def checkpoint(self, message: str = "checkpoint") -> CommitId:
        """Commit the work so far on the hidden branch: it survives a power cut, and is the session's sign of life."""
        self._check_open()
        return self._repo.commit(self.work, message, self._told(), allow_empty=True)

    # -- endings ------------------------------------------------------------------------------------------------
    def commit(self, message: str, metadata: Metadata = NO_METADATA, *, allow_empty: bool = False) -> CommitId:
        """Land everything on the branch as one commit with one parent, and close.

        Raises
        ------
        NothingToCommit
            The work equals the branch, and not `allow_empty`; the session stays open.
        SessionLost
            The lock was broken, or the branch moved: nothing landed, the work stays on the hidden branch.
        DirtyBranch
            Somebody staged changes on the branch itself; the session stays open.
        GateRefused
            The branch is a main that takes releases only (`lake.admission`); the session stays open.
        """
        self._check_open()
        # A landing whose answer never came is not repeated, only tidied.
        done = landed(self._repo, self.branch, self.base, self.id)
        if done is None:
            self._check_hold()
            with suppress(NothingToCommit):  # all of it was checkpointed, or there is none: the merge will tell
                self._repo.commit(self.work, message, self._told())
            point("session.work-committed")
            done = self._land(message, {**metadata, "session": self.id}, allow_empty=allow_empty)
            point("session.landed")
        self._state = "closed"
        try:
            self._clean_up()
        except LakeError as error:
            # The commit is made; to raise now would say that it is not.
            _log.warning("session %s landed as %s; its lock is left for the next one: %s", self.id, done, error)
        return done

    def suspend(self) -> None:
        """Leave work and lock as they are, for whoever opens the next session on this branch; closes this one."""
        self._check_open()
        with remembered(self._lock.commit, keep=True):
            self._check_hold()
            self._repo.create_tag(suspended_tag(self.branch, self._lock.commit), self._lock.commit)
        self._state = "closed"

    def abandon(self) -> None:
        """Throw the work away and release the branch; does nothing on a closed session."""
        if self._state == "open":
            self._state = "closed"
            self._clean_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abandon()
        except LakeError as second:
            if error is None:
                raise
            # What went wrong first is what the reader needs.
            error.add_note(f"the session on {self.branch!r} could not be abandoned either: {second}")

    def __repr__(self) -> str:
        return f"Session({self.branch!r}, owner={self.owner!r}, work={self.work!r}, {self._state})"

    # -- steps --------------------------------------------------------------------------------------------------
    def _told(self) -> dict[str, str]:
        return hold_metadata(self.branch, self.id, self.base, self._lock.process, self._lock.lease_s)

    def _check_open(self) -> None:
        if self._state == "lost":
            raise self._lost("it was lost before")
        if self._state == "closed":
            raise BadInput(f"session {self.id} on {self.branch!r} is closed", fix="open another session")

    def _lost(self, why: str) -> SessionLost:
        self._state = "lost"
        return SessionLost(
            f"session {self.id} of {self.owner!r} on {self.branch!r} cannot land: {why}",
            fix=f"its work is on branch {self.work!r}; open a new session and replay it",
        )

    def _moved(self, why: str) -> SessionLost:
        """Lose the session to a branch that moved; the lock is left as by `suspend`, for whoever comes next."""
        with suppress(LakeError), remembered(self._lock.commit, keep=True):
            self._repo.create_tag(suspended_tag(self.branch, self._lock.commit), self._lock.commit)
        return self._lost(why)

    def _check_hold(self) -> None:
        if holder_in(lock_tags(self._repo, self.branch), self.branch) != self._lock.commit:
            raise self._lost("its lock was broken")
        head = self._repo.resolve(f"{self.branch}@")
        if head != self.base:
            raise self._moved(f"the branch is at {head}, not at {self.base} where the work began")

    def _land(self, message: str, metadata: Metadata, *, allow_empty: bool) -> CommitId:
        try:
            return self._repo.merge(
                self.work,
                self.branch,
                message,
                metadata,
                squash=True,
                allow_empty=allow_empty,
                expect_head=self.base,
            )
        except ConflictError as error:
            # Its subclasses (nothing to commit, dirty, ...) say what they mean; the base class means a moved head,
            # since the hidden branch holds all that `base` does, or a server that is busy with something else.
            if type(error) is not ConflictError or self._repo.resolve(f"{self.branch}@") == self.base:
                raise
            raise self._moved(str(error)) from error

    def _clean_up(self) -> None:
        # The lock goes last: a crash in between leaves a dead lock, which the next session tidies.
        with remembered(self._lock.commit, keep=False):
            remove_branch(self._repo, self.work)
            point("session.work-removed")
            release(self._repo, self.branch, self._lock.commit)
            point("session.unlocked")


@contextmanager
def remembered(holder: CommitId, *, keep: bool) -> Iterator[None]:
    """Remember a holder that could not be let go of; `keep` its work."""
    try:
        yield
    except SessionLost:  # nothing is held any more
        raise
    except LakeError:
        given_up[holder] = keep
        raise
