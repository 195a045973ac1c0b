"""Who may write a branch: locks made of tags, because creating a tag is the one atomic step every engine has.

::

    lock.<branch>                       -> commit L     the first holder: L's metadata says who, where, since when
    lock.<branch>.claim-<L, 16 digits>  -> commit N     L was dead or suspended; N holds the branch now
    lock.<branch>.suspended-<N>         -> commit N     N left on purpose and may be continued

The holder is the end of the chain that starts at `lock.<branch>`. Taking over is one `create_tag`, so of many that see
a dead holder one wins, and there is never a moment without a holder. Releasing removes `lock.<branch>` first: from
then on the rest of the chain means nothing, and the next holder's commit begins a new one.

The lock keeps writers apart; what keeps the data right is that landing demands the head where the session began.
"""

import getpass
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lake.errors import RefNotFound
from lake.repository import Commit, CommitId, Metadata, Repository

LOCK = "lock."
WORK = "session-"
#: Seconds without a sign of life (opening, checkpoint) after which a holder on another machine counts as dead.
LEASE_S = 3600.0
#: Seconds that a living holder gets to remove its lock after it has landed.
TIDYING_S = 30.0

_SESSION = re.compile(r"([0-9a-f]{8})[0-9a-f]{12}")
State = Literal["held", "suspended", "dead", "landed"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process, described so that somebody else can tell later whether it still runs.

    Parameters
    ----------
    owner, host : str
        For people.
    pid : int
        Its number in the process space `space`.
    started : str
        Start time in clock ticks since boot: a number that was given out again is another process.
    machine, boot, space : str
        Machine id, boot id and process name space; empty where the system does not say.
    """

    owner: str
    host: str
    pid: int
    started: str = ""
    machine: str = ""
    boot: str = ""
    space: str = ""

    @classmethod
    def current(cls, owner: str | None = None) -> "Process":
        """Describe the calling process."""
        return cls(
            owner=owner or _user(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_start_of(os.getpid()) or "",
            machine=_read("/etc/machine-id"),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            space=_space(),
        )

    @classmethod
    def told_by(cls, metadata: Metadata) -> "Process":
        """Read back what `hold_metadata` wrote; gaps become empty."""
        texts = {name: metadata.get(name, "") for name in ("host", "started", "machine", "boot", "space")}
        return cls(owner=metadata.get("owner", "somebody"), pid=int(metadata.get("pid", "0")), **texts)

    def gone(self) -> bool | None:
        """Tell whether this process has ended; None if that cannot be known from here."""
        here = Process.current(owner="-")
        if (self.host, self.boot, self.space) == (here.host, here.boot, here.space):
            started = _start_of(self.pid)
            return started is None or bool(self.started and started and started != self.started)
        if self.machine and self.boot and (self.host, self.machine) == (here.host, here.machine):
            return self.boot != here.boot or None  # the machine was started again since
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return f"uid {os.getuid()}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Give a process's start time, empty if the system does not say, or None if there is no such process."""
    try:
        # The command name, in brackets, may hold anything: count from behind the last bracket.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    # A killed process whose parent has not looked yet is a zombie: it will never write again.
    return None if state in "ZX" else rest[18]


@dataclass(frozen=True, slots=True)
class Lock:
    """The holder of a branch.

    Parameters
    ----------
    branch : str
        What is held.
    commit : commit id
        The commit whose metadata says what is told here; also the identity of this hold.
    session, work : str
        The session's id and its hidden branch.
    base : commit id
        Where `branch` was when the session began.
    process : Process
        Who holds it.
    since : datetime
        When it was taken (UTC).
    seen : datetime
        The last sign of life: the newest commit on `work`.
    lease_s : float
        Seconds from `seen` after which a holder on another machine counts as dead.
    state : str
        "held", "suspended", "dead", or "landed" (its work is on `branch`; only the tidying was left undone).
    """

    branch: str
    commit: CommitId
    session: str
    work: str
    base: CommitId
    process: Process
    since: datetime
    seen: datetime
    lease_s: float
    state: State

    def __str__(self) -> str:
        age = int(_age_s(self.since))
        return (
            f"{self.process.owner!r} (process {self.process.pid} on {self.process.host}) "
            f"since {self.since:%Y-%m-%d %H:%M:%S} UTC, {age} s ago"
        )

    def to_json(self) -> dict[str, object]:
        """Give what `doctor --json` prints."""
        return {**asdict(self), "since": self.since.isoformat(), "seen": self.seen.isoformat()}


def hold_metadata(branch: str, session: str, base: CommitId, process: Process, lease_s: float) -> dict[str, str]:
    """Make the metadata by which a commit says who holds `branch`."""
    told = {name: str(value) for name, value in asdict(process).items() if value != ""}
    # lakeFS derives a commit's id from its content, with its time in seconds: without `hold`, whoever suspends and
    # resumes within a second would claim the branch from itself.
    hold = secrets.token_hex(8)
    return {"holds": branch, "hold": hold, "session": session, "base": base, "lease_s": f"{lease_s:g}", **told}


def lock_tag(branch: str) -> str:
    """Name the tag whose creation makes somebody the writer of `branch`."""
    return LOCK + branch


def claim_tag(branch: str, commit: CommitId) -> str:
    """Name the tag whose creation takes the branch over from the holder `commit`."""
    return f"{LOCK}{branch}.claim-{commit[:16]}"


def suspended_tag(branch: str, commit: CommitId) -> str:
    """Name the tag by which the holder `commit` says that it has left for now."""
    return f"{LOCK}{branch}.suspended-{commit[:16]}"


def lock_tags(repo: Repository, branch: str) -> dict[str, CommitId]:
    """Map all tags that speak of the lock of `branch`; no branch name holds a dot, so none of another branch's."""
    tag = lock_tag(branch)
    return {name: commit for name, commit in repo.tags(tag).items() if name == tag or name.startswith(tag + ".")}


def holder_in(tags: Mapping[str, CommitId], branch: str) -> CommitId | None:
    """Follow the chain of claims in `tags` to the commit that holds `branch`, or None."""
    chain = _chain(tags, branch)
    return chain[-1] if chain else None


def _chain(tags: Mapping[str, CommitId], branch: str) -> list[CommitId]:
    chain: list[CommitId] = []
    commit = tags.get(lock_tag(branch))
    while commit is not None and commit not in chain:
        chain.append(commit)
        commit = tags.get(claim_tag(branch, commit))
    return chain


def read_lock(repo: Repository, branch: str) -> Lock | None:
    """Tell who holds `branch`, or None."""
    tags = lock_tags(repo, branch)
    commit = holder_in(tags, branch)
    if commit is None:
        return None
    info = repo.commit_info(commit)
    told = info.metadata
    session, base = told.get("session", ""), told.get("base", "")
    process = Process.told_by(told)
    seen = info.created
    with suppress(RefNotFound):
        seen = max(seen, repo.commit_info(f"{WORK}{session}@").created)
    lease_s = float(told.get("lease_s", LEASE_S))
    dead = _has_ended(process, seen, lease_s)
    state: State = "dead" if dead else "held"
    if (done := landed(repo, branch, base, session)) is not None:
        # A living holder is about to remove its lock itself, unless that has failed.
        tidying = not dead and _age_s(repo.commit_info(done).created) < TIDYING_S
        state = "held" if tidying else "landed"
    elif suspended_tag(branch, commit) in tags:
        state = "suspended"
    return Lock(branch, commit, session, WORK + session, base, process, info.created, seen, lease_s, state)


def _age_s(then: datetime) -> float:
    return (datetime.now(UTC) - then).total_seconds()


def _has_ended(process: Process, seen: datetime, lease_s: float) -> bool:
    gone = process.gone()
    return _age_s(seen) > lease_s if gone is None else gone


def locks(repo: Repository) -> tuple[Lock, ...]:
    """List the holders of all branches, sorted by branch."""
    branches = [name.removeprefix(LOCK) for name in repo.tags(LOCK)]
    found = [read_lock(repo, branch) for branch in branches if "." not in branch]
    return tuple(lock for lock in found if lock is not None)


def landed(repo: Repository, branch: str, base: CommitId, session: str) -> CommitId | None:
    """Find the commit by which `session`, begun at `base`, landed on `branch`, or None."""
    try:
        # The usual answer costs one look-up: the branch has not moved.
        if not session or repo.resolve(f"{branch}@") == base:
            return None
    except RefNotFound:
        return None
    for commit in _until(repo, branch, base):
        if commit.metadata.get("session") == session:
            return commit.id
    return None


def _until(repo: Repository, branch: str, base: CommitId) -> Iterator[Commit]:
    for commit in repo.log(branch, first_parent=True):
        if commit.id == base:
            return
        yield commit


def is_stray(repo: Repository, name: str) -> bool:
    """Tell whether the lock tag `name` is a claim or a suspension outside its branch's chain."""
    branch, _, rest = name.removeprefix(LOCK).partition(".")
    tags = lock_tags(repo, branch)  # read now: what was stray a moment ago may have become somebody's lock
    known = {tag(branch, commit) for commit in _chain(tags, branch) for tag in (claim_tag, suspended_tag)}
    return bool(rest) and name in tags and name not in known


def writer_has_ended(repo: Repository, work: str) -> bool:
    """Tell whether the last process that committed on the hidden branch `work` can write no more."""
    with suppress(RefNotFound):
        for commit in repo.log(work, first_parent=True):
            told = commit.metadata
            if "holds" in told and "session" in told:
                lease_s = float(told.get("lease_s", LEASE_S))
                return _has_ended(Process.told_by(told), commit.created, lease_s)
        # Killed before its opening commit: all that tells its age is its name.
        match = _SESSION.fullmatch(work.removeprefix(WORK))
        return match is not None and time.time() - int(match[1], 16) > LEASE_S
    return False


def new_session_id() -> str:
    """Make an id that is like no other and tells the second it was made."""
    return f"{int(time.time()):08x}{secrets.token_hex(6)}"


def remove_branch(repo: Repository, name: str) -> None:
    """Delete a branch that somebody else may be deleting too."""
    with suppress(RefNotFound):
        repo.delete_branch(name)


def remove_tag(repo: Repository, name: str) -> None:
    """Delete a tag that somebody else may be deleting too."""
    with suppress(RefNotFound):
        repo.delete_tag(name)


def release(repo: Repository, branch: str, commit: CommitId | None = None) -> bool:
    """Remove the lock of `branch`; with `commit`, only if that is the holder. Tells whether there was one to remove."""
    tags = lock_tags(repo, branch)
    if commit is not None and holder_in(tags, branch) != commit:
        return False
    # The head of the chain goes first: without it the rest means nothing, in whatever order it goes.
    for name in sorted(tags):
        remove_tag(repo, name)
    return lock_tag(branch) in tags


def break_lock(repo: Repository, branch: str) -> Lock | None:
    """Take `branch` from its holder, dead or alive, and tell who that was; its work stays on its hidden branch.

    A holder that is alive after all is refused when it lands (`SessionLost`).
    """
    lock = read_lock(repo, branch)
    release(repo, branch)
    return lock
