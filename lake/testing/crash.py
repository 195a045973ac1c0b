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
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from lake.repository import Commit, CommitId, Repository

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Parameters
    ----------
    killed : bool
        By SIGKILL; else it ran to its end.
    told : tuple of str
        The whole lines it had printed.
    """

    killed: bool
    told: tuple[str, ...]


def python(code: str, *arguments: object) -> list[str]:
    """Give the command line that runs `code` in a new interpreter, warnings being errors."""
    return [sys.executable, "-u", "-W", "error", "-c", code, *map(str, arguments)]


def run(
    command: Sequence[str],
    *,
    kill_at: str = "",
    kill_after_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command; kill it at a point (`commit.ref-moved`, `store.named:3`) or after a time, whichever is given.

    With `kill_after_s` the clock starts at the first line it prints, so that a slow start does not count. A child that
    fails by itself is an `AssertionError` with what it said.
    """
    settings = {**os.environ, **(env or {}), "EMLAKE_KILL_AT": kill_at}
    if not kill_at:
        del settings["EMLAKE_KILL_AT"]
    # Files, not pipes: a child that is killed has lost nothing of what it wrote, and none waits for a reader.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as failed:
        with subprocess.Popen(command, stdout=said, stderr=failed, env=settings) as child:
            if kill_after_s is not None:
                while child.poll() is None and not os.fstat(said.fileno()).st_size:
                    time.sleep(0.001)
            try:
                child.wait(TIMEOUT_S if kill_after_s is None else kill_after_s)
            except subprocess.TimeoutExpired:
                child.kill()
                assert kill_after_s is not None, f"the child hung for {TIMEOUT_S} s"
        lines = os.pread(said.fileno(), 1 << 28, 0).decode().split("\n")
        errors = os.pread(failed.fileno(), 1 << 20, 0).decode(errors="replace")
    if child.returncode not in (0, -SIGKILL) or (child.returncode and not (kill_at or kill_after_s is not None)):
        raise AssertionError(f"the child ended with {child.returncode}:\n{errors}")
    return Ended(child.returncode == -SIGKILL, tuple(lines[:-1]))


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


def check_whole(repo: Repository) -> dict[CommitId, Commit]:
    """Read every object of every branch, tag and commit behind them; returns the commits.

    A missing or damaged object or manifest, or a commit that cannot be read, fails here.
    """
    commits: dict[CommitId, Commit] = {}
    read: set[tuple[str, int]] = set()
    for ref in {*repo.branches().values(), *repo.tags().values()}:
        commits |= {commit.id: commit for commit in repo.log(ref)}
    for ref in (*commits, *repo.branches()):
        for stat in repo.list(ref):
            if (stat.checksum, stat.size) not in read:
                assert len(repo.get(ref, stat.key)) == stat.size, f"{stat.key} at {ref}"
                read.add((stat.checksum, stat.size))
    return commits


def content(repo: Repository, ref: str) -> dict[str, bytes]:
    """Read all that a reference holds."""
    return {stat.key: repo.get(ref, stat.key) for stat in repo.list(ref)}
