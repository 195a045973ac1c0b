"""A repository that this process may read and not write: another user's, a read-only mount, a backup.

Nothing is written to its folder: no lock, no claim, no temporary file, no index of the database. What must be written
somewhere, the folders of links that native libraries read and copies of a database that cannot be read in place, lies
below `$EMLAKE_HOME/reading` while this process lives.

What its owner writes meanwhile is seen from the next read on; what the owner's collector removes is gone, since nothing
there tells of readers like this one.
"""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from lake.engines.embedded.database import BUSY_S, Database
from lake.engines.embedded.folders import check_prefix
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.trees import Tree
from lake.engines.embedded.views import Views, fill_view, name_of
from lake.errors import LakeError, NotAuthorized, StorageError
from lake.home import home
from lake.repository import CommitId

_TICK_S = 0.05  # longer than any file system takes to give two changes two times
_TRIES = 20
Found = tuple[str, tuple[int, ...]]


class AwayScratch(Scratch):
    """Temporary files below the user's own folder."""

    def __init__(self) -> None:
        super().__init__(home() / "reading")

    def _begin(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.sweep()
            super()._begin()
        except OSError as error:
            raise NotAuthorized(
                f"{self.root} cannot be written ({error.strerror}), where a repository that is read-only for you keeps "
                "its temporary files",
                fix="set EMLAKE_HOME to a folder of yours",
            ) from error


class AwayViews(Views):
    """Folders of symbolic links to the objects, of this process alone."""

    def folder(self, commit: CommitId, tree: Tree, prefix: str) -> Path:
        """Give the folder with the objects under `prefix`; the first call of a process makes it."""
        head = check_prefix(prefix)
        view = self._scratch.folder() / f"{commit}-{name_of(head)}"
        if not view.exists():
            fresh = fill_view(self._store, self._trees, self._scratch, tree, prefix)
            with suppress(OSError):  # another thread was faster, and made the same
                fresh.rename(view)
        return view / prefix


class ReadOnlyDatabase(Database):
    """Reads a database beside whoever may write to it.

    While somebody has it open, or after a crash, there are a log and an index of it: SQLite reads both, by its own
    locks. Without a log the file is the whole truth and is read as one that does not change; whether it did is seen
    from its times. A log without its index, as a copy made of a live repository may hold, is copied and read away.
    """

    def __init__(self, path: Path, scratch: Scratch, refuse: Callable[[], LakeError]) -> None:
        super().__init__(path, aside=False)
        self._scratch = scratch
        self._refuse = refuse
        self._look = threading.Lock()
        self._pool: _Pool | None = None
        self._found: Found = "", ()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the database; `StorageError` if its owner wrote over it meanwhile."""
        pool, found = self._current()
        try:
            with pool.read() as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            if self._is_overtaken(found):
                raise self._changed() from error
            raise
        if self._is_overtaken(found):
            raise self._changed()

    def write(self, *, freeing: bool = False) -> NoReturn:
        """Refuse."""
        raise self._refuse()

    def write_soon(self) -> NoReturn:
        """Refuse."""
        raise self._refuse()

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._look:
            if self._pool is not None:
                self._pool.close()
            self._pool = None
        super().close()

    # -- what is there ------------------------------------------------------------------------------------------------
    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _state(self) -> Found:
        """Say how the database is to be read, and what tells this state of the files from the next."""
        log = _identity(self._beside("-wal"))
        if log and self._beside("-shm").exists():
            return "in place", ()
        if log and self._beside("-wal").stat().st_size:
            return "away", (*_identity(self.path), *log)
        return "as it is", _identity(self.path)

    def _is_overtaken(self, found: Found) -> bool:
        return found[0] == "as it is" and found[1] != _identity(self.path)

    def _changed(self) -> StorageError:
        return StorageError(f"{self.path} was written while it was read", fix="repeat the command")

    def _current(self) -> "tuple[_Pool, Found]":
        """Give connections that read what is there now."""
        with self._look:
            for _ in range(_TRIES):
                found = self._state()
                if self._pool is not None and found == self._found:
                    return self._pool, found
                if self._pool is not None:
                    self._pool.close()
                    self._pool = None
                if found[0] != "in place":
                    _let_settle(self.path)
                    if found != self._state():
                        continue
                try:
                    pool = self._open(found)
                except sqlite3.OperationalError:
                    if self._state() == found:
                        raise
                    continue  # its owner has just opened or closed it
                if found != self._state():
                    pool.close()
                    continue
                self._pool, self._found = pool, found
                return pool, found
        raise StorageError(f"{self.path} is written again and again", fix="repeat the command when its owner is done")

    def _open(self, found: Found) -> "_Pool":
        if found[0] == "in place":
            pool = _Pool(self.path, "mode=ro")
        elif found[0] == "as it is":
            pool = _Pool(self.path, "immutable=1")
        else:
            folder = self._scratch.new()
            folder.mkdir()
            for path in (self.path, self._beside("-wal")):
                shutil.copyfile(path, folder / path.name)
            pool = _Pool(folder / self.path.name, "mode=rw")
        with pool.read():
            return pool


class _Pool(Database):
    """Connections that are opened in one way."""

    def __init__(self, path: Path, how: str) -> None:
        super().__init__(path, aside=False)
        self._uri = f"file:{quote(str(path))}?{how}"

    def _connect_now(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self._uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _identity(path: Path) -> tuple[int, ...]:
    """Tell one state of a file from another; empty if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _let_settle(path: Path) -> None:
    """Wait until a further change of a file would show in its times."""
    with suppress(FileNotFoundError):
        while 0 <= time.time() - os.stat(path).st_ctime < _TICK_S:
            time.sleep(_TICK_S)
