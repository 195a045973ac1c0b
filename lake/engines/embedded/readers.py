"""What living processes say they use: one file a process, locked while it lives, a line for each thing it claims."""

import fcntl
import os
import secrets
import threading
from pathlib import Path

from lake.engines.embedded.sharing import make_folder, open_shared


class Readers:
    """The files below a folder. Who claims, and who asks what is claimed, does so under one lock that is not ours."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._owner = 0
        self._fd = -1
        self._path = root
        self._claims: set[str] = set()

    def claim(self, what: str) -> None:
        """Say that this process uses something, until it ends or calls `close`."""
        with self._guard:
            if self._owner != os.getpid():
                self._begin()
            if what not in self._claims:
                os.write(self._fd, f"{what}\n".encode())
                self._claims.add(what)

    def _begin(self) -> None:
        """Make this process's file; a forked child makes its own, and its parent's stays locked while either lives."""
        make_folder(self.root)
        self._path = self.root / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._fd = open_shared(self._path)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._claims = set()
        self._owner = os.getpid()

    def claimed(self) -> set[str]:
        """Give what living processes claim, and remove the files of dead ones."""
        found: set[str] = set()
        for entry in list(self.root.iterdir()) if self.root.exists() else []:
            try:
                fd = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink(missing_ok=True)
            except BlockingIOError:
                found.update(entry.read_text().split())
            finally:
                os.close(fd)
        return found

    def close(self) -> None:
        """Give up all claims of this process."""
        with self._guard:
            if self._owner == os.getpid():
                self._path.unlink(missing_ok=True)
                os.close(self._fd)
                self._owner = 0
