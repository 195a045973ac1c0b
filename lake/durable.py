"""Durable steps, and the named points between them where a crash test kills the process.

`EMLAKE_KILL_AT=name` or `name:n` (the n-th pass, from 1) makes the process kill itself with SIGKILL there: nothing is
flushed, no handler runs. `EMLAKE_KILL_AT=>path` kills nobody and appends the names that are passed to a file, so that a
crash test can find all there are. Without the variable a point costs one dictionary look-up.
"""

import os
import signal
from pathlib import Path

_passes: dict[str, int] = {}


def sync_path(path: str | Path) -> None:
    """Put a file's or folder's content on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def point(name: str) -> None:
    """Mark a point between two durable steps; names are `<operation>.<step>`, as in `commit.objects-linked`."""
    target = os.environ.get("EMLAKE_KILL_AT")
    if target is None:
        return
    if target.startswith(">"):
        with open(target[1:], "a") as names:
            names.write(name + "\n")
        return
    wanted, _, count = target.partition(":")
    if wanted == name:
        _passes[name] = _passes.get(name, 0) + 1
        if _passes[name] >= int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
