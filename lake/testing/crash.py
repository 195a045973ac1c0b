"""Kill a process at chosen or random moments, and look at what it left.

::

    work = python(CODE, folder)                        # a child process; CODE does the operation, or loops over it
    for at in passes_of(work):                         # every `lake.durable.point` that it passes, in order
        prepare(folder)
        run(work, kill_at=at)                          # kill -9 there
        repo = lake.open(folder); check_whole(repo); ...

    for moment in moments(rng, 50, seconds):           # any moment: between two instructions, inside a system call
        run(work, kill_after_s=moment)

A child tells what was acknowledged by printing lines (`told`), each flushed before it goes on.

What every writing operation is put through is one table: an `Operation` says how a repository looks before it, what one
round of it does, how many rounds can be seen in a repository, and what it must then hold. `at_every_point` and
`at_moments` do the rest, with the same demands after each kill: see `survives`. A table is a dict `OPERATIONS` in a
file of its own, because the child loads it by its path::

    at_every_point(TABLE, "merge", fresh)
    at_moments(TABLE, "merge", fresh, 200, seed)
"""

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import cast
from unittest.mock import patch

import lake
from lake import locks
from lake.errors import LakeError, StorageError
from lake.opening import sweep
from lake.repository import Commit, CommitId, Repository

TIMEOUT_S = 120.0
OPENS_WITHIN_S = 5.0  # a thousand times what it takes: a repair that reads the repository would show
SERVER_SETTLES_S = 0.3
ENDLESS = 10_000  # rounds; a child that shall be killed at a moment never ends by itself


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Parameters
    ----------
    killed : bool
        By SIGKILL, or cut off by the death of what it worked with; else it ran to its end.
    told : tuple of str
        The whole lines it had printed.
    lasted_s : float
        From the first line it printed to its end.
    """

    killed: bool
    told: tuple[str, ...]
    lasted_s: float


def python(code: str, *arguments: object) -> list[str]:
    """Give the command line that runs `code` in a new interpreter, warnings being errors."""
    return [sys.executable, "-u", "-W", "error", "-c", code, *map(str, arguments)]


def run(
    command: Sequence[str],
    *,
    kill_at: str = "",
    kill_after_s: float | None = None,
    env: Mapping[str, str] | None = None,
    victim: Callable[[], None] | None = None,
) -> Ended:
    """Run a command; kill it at a point (`commit.ref-moved`, `store.named:3`) or after a time, whichever is given.

    With `kill_after_s` the clock starts at the first line it prints, so that a slow start does not count. A child that
    fails by itself is an `AssertionError` with what it said; but where a `victim` is given, that is what is killed (the
    server, say), and the child then ends as it may, by an error of `lake.errors` that stands for storage.
    """
    settings = {**os.environ, **(env or {}), "EMLAKE_KILL_AT": kill_at}
    if not kill_at:
        del settings["EMLAKE_KILL_AT"]
    # Files, not pipes: a child that is killed has lost nothing of what it wrote, and none waits for a reader.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as failed:
        with subprocess.Popen(command, stdout=said, stderr=failed, env=settings) as child:
            while child.poll() is None and not os.fstat(said.fileno()).st_size:
                time.sleep(0.001)
            began = time.monotonic()
            try:
                child.wait(TIMEOUT_S if kill_after_s is None else kill_after_s)
            except subprocess.TimeoutExpired:
                assert kill_after_s is not None, f"the child hung for {TIMEOUT_S} s"
                if victim is None:
                    child.kill()
                else:
                    victim()
                    child.wait(TIMEOUT_S)
            finally:
                child.kill()
            lasted_s = time.monotonic() - began
        lines = os.pread(said.fileno(), 1 << 28, 0).decode().split("\n")
        errors = os.pread(failed.fileno(), 1 << 20, 0).decode(errors="replace")
    allowed = {0, StorageError.exit_code} if victim else {0, -SIGKILL} if kill_at or kill_after_s is not None else {0}
    if child.returncode not in allowed:
        raise AssertionError(f"the child ended with {child.returncode}:\n{errors}")
    return Ended(child.returncode != 0, tuple(lines[:-1]), lasted_s)


def passes_of(command: Sequence[str]) -> list[str]:
    """Run a command to its end and list each pass of each point, as `run(kill_at=...)` takes it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "points"
        log.touch()
        run(command, kill_at=f">{log}")
        names = log.read_text().split()
    seen: Counter[str] = Counter()
    passes = []
    for name in names:
        seen[name] += 1
        passes.append(f"{name}:{seen[name]}")
    return passes


def moments(rng: random.Random, count: int, longest_s: float) -> Iterator[float]:
    """Yield times to kill after, spread over an operation that takes up to `longest_s`."""
    for number in range(count):
        yield longest_s * (number + rng.random()) / count


def check_whole(repo: Repository, *, pending: bool = True) -> dict[CommitId, Commit]:
    """Read every object of every tag, of every branch (with what is `pending` there) and commit behind them.

    A missing or damaged object or manifest, or a commit that cannot be read, fails here. Returns the commits.
    """
    commits: dict[CommitId, Commit] = {}
    read: set[tuple[str, int]] = set()
    for ref in {*repo.branches().values(), *repo.tags().values()}:
        commits |= {commit.id: commit for commit in repo.log(ref)}
    for ref in (*commits, *(repo.branches() if pending else ())):
        for stat in repo.list(ref):
            if (stat.checksum, stat.size) not in read:
                assert len(repo.get(ref, stat.key)) == stat.size, f"{stat.key} at {ref}"
                read.add((stat.checksum, stat.size))
    return commits


def content(repo: Repository, ref: str) -> dict[str, bytes]:
    """Read all that a reference holds."""
    return {stat.key: repo.get(ref, stat.key) for stat in repo.list(ref)}


# -- operations -------------------------------------------------------------------------------------------------------
class Operation:
    """One writing operation, in rounds 0, 1, 2...; a round that was cut off can be done again."""

    longest_s = 1.0  # kills at moments fall within this time after the repository was opened
    once = False  # True: a child does one round, which tells how long; then the same round is done again, landed or not

    def prepare(self, location: str) -> None:
        """Make the repository in which the operation is done."""
        raise NotImplementedError

    def round(self, repo: Repository, number: int) -> None:
        """Do it once. When this returns, the round is acknowledged."""
        raise NotImplementedError

    def landed(self, repo: Repository) -> int:
        """Count the rounds whose effect is there."""
        raise NotImplementedError

    def check(self, repo: Repository, landed: int) -> None:
        """Fail if the repository is not as it should be after so many rounds, the next being cut off anywhere."""
        raise NotImplementedError

    def check_clean(self, repo: Repository, landed: int) -> None:
        """Fail if the repository is not as it should be after so many rounds and nothing else."""
        self.check(repo, landed)


def load(table: str | Path) -> Mapping[str, Operation]:
    """Load the table of operations in a file."""
    spec = importlib.util.spec_from_file_location("operations_under_test", table)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Mapping[str, Operation]", module.OPERATIONS)


def child(table: str, name: str, location: str, first: str, count: str) -> None:
    """Be the process that is killed: do rounds, and print the number of each that returned."""
    operation = load(table)[name]
    repo = lake.open(location)
    print("ready")
    try:
        for number in range(int(first), int(first) + int(count)):
            operation.round(repo, number)
            print(number)
    except LakeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error.message}\n")
        sys.exit(error.exit_code)


def working(table: str | Path, name: str, location: str | Path, *, first: int = 0, count: int = 1) -> list[str]:
    """Give the command line of a child that does rounds of an operation."""
    code = "import sys; from lake.testing.crash import child; child(*sys.argv[1:])"
    return python(code, table, name, location, first, count)


def survives(operation: Operation, location: str | Path, acknowledged: int, first: int = 0) -> int:
    """Check all that must hold after a kill, do the next round, check again; returns how many rounds had landed.

    `acknowledged` counts from round `first`, where the child began.

    The repository opens at once; no acknowledged round is missing and at most one more is there, whole; every object of
    every commit is sound; leftovers were swept; and the next round works as if nothing had happened.
    """
    began = time.monotonic()
    repo = lake.open(location)
    took = time.monotonic() - began
    try:
        assert took < OPENS_WITHIN_S, f"opening took {took:.1f} s"
        if isinstance(location, Path):
            check_swept(location, repo)
        landed = operation.landed(repo)
        assert landed - first in (acknowledged, acknowledged + 1), (
            f"{acknowledged} acknowledged, {landed - first} there"
        )
        operation.check(repo, landed)
        check_whole(repo)
        following = first if operation.once else landed
        operation.round(repo, following)
        assert operation.landed(repo) == following + 1
        operation.check_clean(repo, following + 1)
        check_whole(repo)
    finally:
        repo.close()
    return landed - first


def check_swept(root: Path, repo: Repository) -> None:
    """Fail if an embedded repository that was just opened still holds what a dead process left."""
    ours = f"{os.getpid()}-"  # sweeping a folder moves it among our own temporary files first
    left = {path.name for path in (root / "tmp").iterdir() if path.name != ".sweep"}
    assert {name for name in left if not name.startswith(ours)} == set()
    assert not any(any((root / "tmp" / name).iterdir()) for name in left if not name.endswith(".lock"))
    branches = len(repo.branches())
    for folder in ("workspaces", "locks"):
        names = [name for name in os.listdir(root / folder) if not name.startswith(".")]
        assert len(names) <= branches, f"{folder} of branches that are gone"
    assert not any((root / "trash").glob("*/*")), "what a collector had condemned"
    staged = {change.key for name in repo.branches() for change in repo.uncommitted(name)}
    kept = [name for boot in (root / "incoming").iterdir() if boot.is_dir() for name in os.listdir(boot)]
    assert len(kept) <= len(staged), "contents that nobody stages"


def on_a_server(
    table: str | Path,
    name: str,
    location: str,
    moment: float,
    *,
    first: int = 0,
    kill: Callable[[], None] | None = None,
    restart: Callable[[], None] | None = None,
) -> str:
    """Kill the client that does an operation, or, where `kill` is given, the server under it, and check the rest.

    Returns a line about what happened.
    """
    operation = load(table)[name]
    ended = run(
        working(table, name, location, first=first, count=1 if operation.once else ENDLESS),
        kill_after_s=moment,
        victim=kill,
    )
    if restart is not None:
        restart()
    # The server goes on for a moment with a request whose client has died.
    time.sleep(SERVER_SETTLES_S)
    acknowledged = len(ended.told) - 1
    try:
        landed = survives(operation, location, acknowledged, first)
    except (AssertionError, LakeError) as error:
        what = "server" if kill else "client"
        raise AssertionError(f"{name}: the {what} was killed {moment} s after opening: {error}") from error
    return f"{name}: killed {ended.killed}, acknowledged {acknowledged}, landed {landed}"


def check_sessions_swept(repo: Repository) -> None:
    """Fail if sweeping leaves a lock or a hidden branch of a session that nobody can use."""
    with patch.object(locks, "LEASE_S", -10.0):  # a branch without a commit of its own is swept when it is old
        sweep(repo)
    left = {name: [c.message for c in repo.log(name, limit=2)] for name in repo.branches(locks.WORK)}
    assert left == {}, f"hidden branches are left: {left}"
    assert dict(repo.tags(locks.LOCK)) == {}


def at_every_point(
    table: str | Path, name: str, fresh: Callable[[str], Path], *, only: Callable[[str], bool] = lambda at: True
) -> list[str]:
    """Kill an operation at each pass of each point it goes through; `fresh` gives a prepared folder by name.

    Returns the passes.
    """
    operation = load(table)[name]
    passes = [at for at in passes_of(working(table, name, fresh(name))) if only(at)]
    assert passes, f"{name} passes no point"
    for at in passes:
        root = fresh(name)
        ended = run(working(table, name, root), kill_at=at)
        assert ended.killed, at
        try:
            survives(operation, root, len(ended.told) - 1)
        except (AssertionError, LakeError) as error:
            raise AssertionError(f"{name} killed at {at}: {error}") from error
    return passes


def at_moments(table: str | Path, name: str, fresh: Callable[[str], Path], count: int, seed: int) -> str:
    """Kill an operation at `count` random moments, each in a fresh folder; returns a line about what happened."""
    operation = load(table)[name]
    tally: Counter[str] = Counter()
    rounds = 1 if operation.once else ENDLESS
    longest_s = run(working(table, name, fresh(name))).lasted_s if operation.once else operation.longest_s
    rng = random.Random(seed)
    # What is done once may have ended before its moment: then it is tried at another one.
    while tally["killed"] < count and tally["tried"] < 5 * count:
        moment = longest_s * rng.random()
        root = fresh(name)
        ended = run(working(table, name, root, count=rounds), kill_after_s=moment)
        acknowledged = len(ended.told) - 1
        try:
            landed = survives(operation, root, acknowledged)
        except (AssertionError, LakeError) as error:
            raise AssertionError(f"{name} killed {moment} s after opening (seed {seed}): {error}") from error
        tally.update(tried=1, killed=ended.killed, rounds=acknowledged, unacknowledged=landed - acknowledged)
    assert tally["killed"] == count, f"most of {name} had ended before it was to be killed"
    return (
        f"{name}: {tally['killed']} kills, {tally['rounds']} rounds acknowledged, none missing; "
        f"{tally['unacknowledged']} landed whole without having said so"
    )
