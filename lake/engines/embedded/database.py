"""The SQLite database behind refs, commits, staging and workspaces: connections, transactions, tables.

Write-ahead log with `synchronous=FULL`: a transaction that has ended survives a power cut (staging alone waits for the
next such transaction), readers never wait for writers, and a killed writer leaves nothing behind.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lake.engines.embedded.mounts import pages_take_room
from lake.engines.embedded.sharing import open_shared
from lake.engines.embedded.spare import Spare
from lake.room import TRANSACTION, code_of

BUSY_S = 60.0
_LEFT_OPEN: list[sqlite3.Connection] = []  # until this process ends: the next to open finds what they left
_INDEX = 16 * 1024  # bytes of the shared index that reading may write to
_ROW = 512  # bytes of log and index that one changed row takes
SCHEMA = """
CREATE TABLE commits (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE branches (name TEXT PRIMARY KEY, head TEXT NOT NULL, token TEXT NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE tags (name TEXT PRIMARY KEY, target TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE protection (pattern TEXT PRIMARY KEY) WITHOUT ROWID;
-- A null value stages a removal. A later write of the same key gets a later seq, so a commit that has read up to some
-- seq removes exactly what it took.
CREATE TABLE staging (seq INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL, key BLOB NOT NULL, value BLOB,
                      UNIQUE (token, key));
-- What a branch's folder holds: the content of commit `base` under the open prefixes, and the staged values in `shown`.
CREATE TABLE workspaces (token TEXT PRIMARY KEY, base TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prefixes (token TEXT NOT NULL, prefix BLOB NOT NULL, PRIMARY KEY (token, prefix)) WITHOUT ROWID;
CREATE TABLE shown (token TEXT NOT NULL, key BLOB NOT NULL, value BLOB, PRIMARY KEY (token, key)) WITHOUT ROWID;
"""
# A second copy of each row that no digest covers: SQLite keeps an index in step with its table, and `integrity_check`
# compares the two, so a bit that flips in either is found (see `audit`). Nothing is ever looked up in these.
SECOND = """
CREATE INDEX branches_second ON branches (head, name);
CREATE INDEX tags_second ON tags (target, name);
CREATE INDEX protection_second ON protection (pattern);
CREATE INDEX staging_second ON staging (seq, value);
CREATE INDEX workspaces_second ON workspaces (base, token);
CREATE INDEX prefixes_second ON prefixes (prefix, token);
CREATE INDEX shown_second ON shown (token, key, value);
CREATE INDEX departed_second ON departed (target, since);
"""

#: Commits that branches and tags gave up, and when, in seconds since 1970. Early repositories lack it until first use.
DEPARTED = "CREATE TABLE IF NOT EXISTS departed (target TEXT NOT NULL, since REAL NOT NULL)"


def whole_schema() -> str:
    """Give the declaration of a new database."""
    return f"{SCHEMA}{DEPARTED};{SECOND}"


class Database:
    """A pool of connections to one database file, safe between threads and across forks."""

    def __init__(self, path: Path, *, aside: bool = True) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._idle_soon: list[sqlite3.Connection] = []  # those whose transactions do not wait for the disk
        self._owner = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._closed = False
        self._spare = Spare(path.parent)
        # SQLite maps its shared index: reading and writing alike end in a signal where a page of it finds no room.
        self._looks_ahead = aside and pages_take_room(path.parent)
        if aside:
            self._spare.keep()

    @staticmethod
    def make(path: Path) -> None:
        """Make the empty database of a new repository."""
        # SQLite would make it 0644; its log and index take the mode of this file.
        os.close(open_shared(path))
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(whole_schema())
        finally:
            connection.close()

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        if not self.path.exists():
            raise sqlite3.OperationalError(f"{self.path} is missing")
        while True:
            try:
                return self._connect_now(synchronous)
            except sqlite3.Error as error:
                if not (code_of(error, self.path.parent) and self._spare.give()):
                    raise

    def _connect_now(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA synchronous={synchronous}")
            # Some builds of SQLite write zeros over all that is deleted: as much work as writing it was.
            connection.execute("PRAGMA secure_delete=OFF")
            connection.execute("PRAGMA schema_version").fetchone()  # makes the shared index, for which room is needed
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextmanager
    def _borrowed(self, *, soon: bool = False) -> Iterator[sqlite3.Connection]:
        if self._looks_ahead:
            self._spare.ensure(_INDEX, giving=True)
        with self._guard:
            if self._owner != os.getpid():
                # SQLite forbids using, and even closing, a connection on the other side of a fork.
                self._inherited += self._idle + self._idle_soon
                self._idle, self._idle_soon = [], []
                self._owner = os.getpid()
            idle = self._idle_soon if soon else self._idle
            connection = idle.pop() if idle else None
        if connection is None:
            connection = self._connect("NORMAL" if soon else "FULL")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            with self._guard:
                if self._closed:
                    connection.close()
                else:
                    (self._idle_soon if soon else self._idle).append(connection)

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, *, freeing: bool = False) -> Iterator[sqlite3.Connection]:
        connection.execute("BEGIN IMMEDIATE")
        before = connection.total_changes
        yield connection
        if self._looks_ahead:
            self._spare.ensure(TRANSACTION + _ROW * (connection.total_changes - before), giving=freeing)
        connection.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the database, whatever is written meanwhile."""
        with self._borrowed() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def write(self, *, freeing: bool = False) -> Iterator[sqlite3.Connection]:
        """Change the database: all of it durably at the end, or nothing.

        A change that is made to free room may use what is kept aside for that.
        """
        if freeing:
            self._spare.give_if_full(TRANSACTION)
        with self._borrowed() as connection, self._transaction(connection, freeing=freeing):
            yield connection
        self._spare.keep_again()

    @contextmanager
    def write_soon(self) -> Iterator[sqlite3.Connection]:
        """Change the database so that it survives a kill at once, and a power cut from the next `write` on."""
        with self._borrowed(soon=True) as connection, self._transaction(connection):
            yield connection

    def settle(self) -> None:
        """Let bytes that were just written take all their room before a change of the database looks for its own."""
        if self._looks_ahead:
            self._spare.settle(TRANSACTION)

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._guard:
            self._closed = True
            if self._owner == os.getpid():
                idle = [*self._idle, *self._idle_soon]
                try:
                    if self._looks_ahead:
                        self._spare.ensure(_INDEX, giving=True)
                except OSError:
                    _LEFT_OPEN.extend(idle)  # closing the last one writes too
                else:
                    for connection in idle:
                        connection.close()
                self._spare.take_back()
            self._idle, self._idle_soon = [], []
