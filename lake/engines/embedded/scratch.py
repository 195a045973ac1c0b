"""Temporary files of one process, in a folder that its lock protects and the next opener sweeps once it is dead."""

import fcntl
import itertools
import os
import secrets
import shutil
import threading
from pathlib import Path

from lake.engines.embedded.files import flocked
from lake.engines.embedded.sharing import make_folder, open_shared

_SWEEP = ".sweep"


class Scratch:
    """Hands out names for temporary files below `tmp/<process>/`.

    Each process holds a lock on `tmp/<process>.lock` while it lives. A sweeper removes a folder only when it gets its
    lock, so a live writer is never touched, whatever became of its process id.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._names = itertools.count()
        self._owner = 0
        self._fd = -1
        self._folder = root

    def new(self) -> Path:
        """Give a name that nobody uses, on the same file system as the store."""
        return self.folder() / f"t{next(self._names)}"

    def name(self) -> str:
        """Give such a name as text: a path object costs as much as a system call."""
        return f"{self.folder()}/t{next(self._names)}"

    def folder(self) -> Path:
        """Give this process's folder, making it on first use (and again in a forked child)."""
        if self._owner != os.getpid():
            with self._guard:
                if self._owner != os.getpid():
                    self._begin()
        return self._folder

    def _begin(self) -> None:
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        # Shared with other beginners, never with a sweeper: a lock file is not seen before it is locked.
        with flocked(self.root / _SWEEP, shared=True):
            self._fd = open_shared(self.root / f"{name}.lock")
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._folder = self.root / name
            make_folder(self._folder)
        self._owner = os.getpid()

    def discard(self, path: Path) -> bool:
        """Remove a folder tree: moved here first, so a crash leaves it to the next sweep. Tells if there was one."""
        target = self.new()
        try:
            path.rename(target)
        except FileNotFoundError:
            return False
        shutil.rmtree(target)
        return True

    def sweep(self) -> int:
        """Remove what dead processes left; returns how many there were. One folder listing if there is nothing."""
        locks = [entry for entry in os.listdir(self.root) if entry.endswith(".lock")]
        if not locks:
            return 0
        dead = 0
        with flocked(self.root / _SWEEP):
            for lock in locks:
                dead += self._sweep_one(self.root / lock)
        return dead

    @staticmethod
    def _sweep_one(lock: Path) -> bool:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            return True
        finally:
            os.close(fd)

    def close(self) -> None:
        """Remove this process's folder and lock."""
        with self._guard:
            if self._owner == os.getpid():
                shutil.rmtree(self._folder, ignore_errors=True)
                (self.root / f"{self._folder.name}.lock").unlink(missing_ok=True)
                os.close(self._fd)
                self._owner = 0
