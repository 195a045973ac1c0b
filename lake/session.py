"""One writer, one commit: work on a hidden branch, landed on its branch whole or not at all.

The same code on every engine, over the protocol's primitives: a hidden branch `session-<id>` takes the writes, a lock
made of tags (`lake.locks`) keeps other writers away, and a squash merge that demands the head where the session began
puts everything on the branch as one commit. So a protected branch can be written by sessions and by nothing else.

What a crash leaves, and who deals with it: the lock of a dead process is taken over by the next session on the branch,
which goes on with the work (`resume=True`) or throws it away; a crash between landing and tidying is tidied by the next
session; a hidden branch that no lock speaks of is removed by `sweep`.

Decision: the work is not tied to the lock. Whoever loses the lock loses the right to land, never the work; it stays on
the hidden branch until `sweep` finds that its process is gone.
"""

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from lake.durable import point
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    LakeError,
    NothingToCommit,
    SessionLost,
    StorageError,
)
from lake.location import Location
from lake.locks import (
    LEASE_S,
    LOCK,
    WORK,
    Lock,
    Process,
    break_lock,
    claim_tag,
    hold_metadata,
    holder_in,
    is_stray,
    landed,
    lock_tag,
    lock_tags,
    locks,
    new_session_id,
    read_lock,
    release,
    remove_branch,
    remove_tag,
    suspended_tag,
    writer_has_ended,
)
from lake.repository import NO_METADATA, CommitId, Metadata, ObjectStat, Repository

__all__ = [
    "Lock",
    "Process",
    "Session",
    "break_lock",
    "locks",
    "open_new_session",
    "open_session",
    "read_lock",
    "sweep",
]

_log = logging.getLogger(__name__)
_POLL_S = (0.02, 0.5)  # first and longest pause between looks at a held lock
#: Holders that this process gave up and could not remove, its disk being full or its server gone. By its locks it still
#: writes there; the next session on the branch removes them, or, where the value is True, takes their work over.
_given_up: dict[CommitId, bool] = {}


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
        except StorageError as error:
            # The commit is made; to raise now would say that it is not.
            _log.warning("session %s landed as %s; its lock is left for the next one: %s", self.id, done, error)
        return done

    def suspend(self) -> None:
        """Leave work and lock as they are, for whoever opens the next session on this branch; closes this one."""
        self._check_open()
        with _remembered(self._lock.commit, keep=True):
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

    def _check_hold(self) -> None:
        if holder_in(lock_tags(self._repo, self.branch), self.branch) != self._lock.commit:
            raise self._lost("its lock was broken")
        head = self._repo.resolve(f"{self.branch}@")
        if head != self.base:
            raise self._lost(f"the branch is at {head}, not at {self.base} where the work began")

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
            # since the hidden branch holds all that `base` does.
            if type(error) is not ConflictError:
                raise
            raise self._lost(str(error)) from error

    def _clean_up(self) -> None:
        # The lock goes last: a crash in between leaves a dead lock, which the next session tidies.
        with _remembered(self._lock.commit, keep=False):
            remove_branch(self._repo, self.work)
            point("session.work-removed")
            release(self._repo, self.branch, self._lock.commit)
            point("session.unlocked")


@contextmanager
def _remembered(holder: CommitId, *, keep: bool) -> Iterator[None]:
    """Remember a holder that could not be let go of; `keep` its work."""
    try:
        yield
    except StorageError:
        _given_up[holder] = keep
        raise


def open_session(
    repo: Repository,
    branch: str,
    *,
    owner: str | None = None,
    wait_s: float = 0.0,
    resume: bool = True,
    process: Process | None = None,
    lease_s: float = LEASE_S,
) -> Session:
    """Become the one writer of `branch`.

    Parameters
    ----------
    owner : str
        For others to read; the user's name if absent.
    wait_s : float
        How long to wait for another writer to finish.
    resume : bool
        Continue the work of a dead or suspended session; else it is thrown away.
    process : Process
        On whose behalf; the calling process if absent.
    lease_s : float
        Seconds without opening or checkpoint after which other machines may take this session for dead.

    Raises
    ------
    RefNotFound
        There is no such branch.
    ConflictError
        Somebody else writes; says who, where and since when.
    """
    who = process or Process.current(owner)
    deadline = time.monotonic() + wait_s
    pause, longest = _POLL_S
    while True:
        base = repo.resolve(f"{branch}@")
        lock = read_lock(repo, branch)
        if lock is not None and lock.commit in _given_up:
            if not _given_up[lock.commit]:
                _remove(repo, lock)
                continue
            lock = replace(lock, state="dead")
        if lock is None or lock.state != "held":
            session = _try_to_open(repo, branch, base, lock, who, lease_s, resume=resume)
            if session is not None:
                return session
        left = deadline - time.monotonic()
        if left <= 0:
            raise _held(branch, lock or read_lock(repo, branch))
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, longest)


def open_new_session(repo: Repository, branch: str, *, owner: str | None = None, wait_s: float = 0.0) -> Session:
    """Become the one writer of `branch` for a piece of work of one's own; never land what somebody else left half done.

    For commands that begin and end in one go: a killed or suspended run leaves a session that only that run may go on
    with.

    Raises
    ------
    ConflictError
        As `open_session`, and if the branch holds unfinished work, which stays as it is.
    """
    session = open_session(repo, branch, owner=owner, wait_s=wait_s, resume=True)
    if session.resumed:
        session.suspend()
        raise ConflictError(
            f"branch {branch!r} holds the work of an unfinished run",
            fix="finish it with the same `emlake run`, or throw it away with `emlake run --fresh`",
        )
    return session


def _remove(repo: Repository, lock: Lock) -> None:
    remove_branch(repo, lock.work)
    release(repo, lock.branch, lock.commit)
    _given_up.pop(lock.commit, None)


def _held(branch: str, lock: Lock | None) -> ConflictError:
    who = str(lock) if lock else "somebody who has just finished"
    return ConflictError(
        f"branch {branch!r} is being written by {who}",
        fix="wait for it (wait_s); if that process is gone: emlake doctor --break-lock " + branch,
    )


def _try_to_open(
    repo: Repository, branch: str, base: CommitId, lock: Lock | None, who: Process, lease_s: float, *, resume: bool
) -> Session | None:
    """Make the hidden branch and take the lock; None if somebody else was quicker or the branch moved meanwhile."""
    goes_on = lock is not None and resume and _can_go_on(repo, lock, base)
    fresh = new_session_id()
    session, began = (lock.session, lock.base) if lock is not None and goes_on else (fresh, base)
    opening = WORK + fresh
    repo.create_branch(opening, base)
    point("session.branch-made")
    told = hold_metadata(branch, session, began, who, lease_s)
    commit = repo.commit(opening, f"session on {branch}", told, allow_empty=True)
    point("session.opening-commit")
    now = datetime.now(UTC)
    held = Lock(branch, commit, session, WORK + session, began, who, now, now, lease_s, "held")
    with _remembered(commit, keep=goes_on):  # an error may leave a lock that no session knows of
        taken = _take(repo, held, lock, opening, base)
    return Session(repo, held, resumed=goes_on) if taken else None


def _take(repo: Repository, held: Lock, lock: Lock | None, opening: str, base: CommitId) -> bool:
    """Become the holder in the place of `lock`, if nobody was quicker; dispose of what is not gone on with."""
    branch, commit = held.branch, held.commit
    tag = lock_tag(branch) if lock is None else claim_tag(branch, lock.commit)
    try:
        repo.create_tag(tag, commit)
    except AlreadyExists:
        remove_branch(repo, opening)
        return False
    point("session.locked")
    if holder_in(lock_tags(repo, branch), branch) != commit:
        # What was claimed had just been released: the claim hangs in the air.
        remove_tag(repo, tag)
        remove_branch(repo, opening)
        return False
    if repo.resolve(f"{branch}@") != base:
        # Another session landed and left between the first look and the lock.
        remove_branch(repo, opening)
        release(repo, branch, commit)
        return False
    if held.work != opening:
        remove_branch(repo, opening)
    elif lock is not None:
        _discard(repo, lock, base)
    return True


def _can_go_on(repo: Repository, lock: Lock, head: CommitId) -> bool:
    return lock.state in ("dead", "suspended") and lock.base == head and lock.work in repo.branches(lock.work)


def _discard(repo: Repository, lock: Lock, head: CommitId) -> None:
    if lock.state != "landed" and lock.base != head and _holds_work(repo, lock):
        # It could not land any more, but nobody asked to throw it away.
        _log.warning("branch %r moved under a session of %s; its work stays on %r", lock.branch, lock, lock.work)
        return
    remove_branch(repo, lock.work)


def _holds_work(repo: Repository, lock: Lock) -> bool:
    """Tell whether anything was written in a session: a publication holds the lock of main and nothing else."""
    if lock.work not in repo.branches(lock.work):
        return False
    return next(chain(repo.diff(lock.base, lock.work), repo.uncommitted(lock.work)), None) is not None


def sweep(repo: Repository) -> tuple[str, ...]:
    """Remove what crashed sessions left and nobody can use, and name it: branches and tags, sorted.

    Kept: the lock and work of a dead or suspended session (the next session decides), and every hidden branch whose
    process may still run.
    """
    removed: list[str] = []
    branches = repo.branches()
    for lock in locks(repo):
        if lock.branch not in branches:
            release(repo, lock.branch)
            removed.append(lock_tag(lock.branch))
        elif lock.state == "landed" or (lock.state == "dead" and lock.work not in branches):
            open_session(repo, lock.branch).abandon()
            removed.append(lock_tag(lock.branch))
    for name in repo.tags(LOCK):
        if is_stray(repo, name):
            remove_tag(repo, name)
            removed.append(name)
    used = {lock.work for lock in locks(repo)}
    for name in branches:
        if name.startswith(WORK) and name not in used and writer_has_ended(repo, name):
            remove_branch(repo, name)
            removed.append(name)
    return tuple(sorted(removed))
