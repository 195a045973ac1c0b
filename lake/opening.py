"""Becoming the one writer of a branch: a fresh session, or the place of one that is dead or was suspended.

What a crash leaves, and who deals with it: the lock of a dead process is taken over by the next session on the branch,
which goes on with the work (`resume=True`) or throws it away; a crash between landing and tidying is tidied by the next
session; a hidden branch that no lock speaks of is removed by `sweep`.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain

from lake.durable import point
from lake.errors import AlreadyExists, ConflictError, LakeError
from lake.locks import (
    LEASE_S,
    LOCK,
    WORK,
    Lock,
    Process,
    claim_tag,
    hold_metadata,
    holder_in,
    is_stray,
    lock_tag,
    lock_tags,
    locks,
    new_session_id,
    read_lock,
    release,
    remove_branch,
    remove_tag,
    writer_has_ended,
)
from lake.repository import CommitId, Repository
from lake.session import Session, given_up, never_began, remembered

_log = logging.getLogger(__name__)
_POLL_S = (0.02, 0.5)  # first and longest pause between looks at a held lock


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
        if lock is not None and lock.commit in given_up:
            if not given_up[lock.commit]:
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
    given_up.pop(lock.commit, None)


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
    with _removed_on_error(repo, opening):
        repo.create_branch(opening, base)
        point("session.branch-made")
        told = hold_metadata(branch, session, began, who, lease_s)
        commit = repo.commit(opening, f"session on {branch}", told, allow_empty=True)
        point("session.opening-commit")
        now = datetime.now(UTC)
        held = Lock(branch, commit, session, WORK + session, began, who, now, now, lease_s, "held")
        with remembered(commit, keep=goes_on):  # an error may leave a lock that no session knows of
            taken = _take(repo, held, lock, opening, base)
    return Session(repo, held, resumed=goes_on) if taken else None


@contextmanager
def _removed_on_error(repo: Repository, opening: str) -> Iterator[None]:
    """Leave no branch of a session that did not begin: `sweep` cannot tell it from one whose writer still runs."""
    try:
        yield
    except LakeError:
        never_began.add(opening)
        with suppress(LakeError):
            remove_branch(repo, opening)
            never_began.discard(opening)
        raise


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

    So goes what this process could not let go of when it tried. Kept: the lock and work of a dead or suspended session
    (the next session decides), and every hidden branch whose process may still run.
    """
    removed: list[str] = []
    branches = repo.branches()
    for lock in locks(repo):
        if given_up.get(lock.commit) is False:
            _remove(repo, lock)
            removed.append(lock_tag(lock.branch))
        elif lock.branch not in branches:
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
        if name.startswith(WORK) and name not in used and (name in never_began or writer_has_ended(repo, name)):
            remove_branch(repo, name)
            removed.append(name)
    return tuple(sorted(removed))
