"""The parts of an open repository, and what is pending on a branch."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lake.engines.embedded.access import read_only
from lake.engines.embedded.database import Database
from lake.engines.embedded.files import flocked, guarded
from lake.engines.embedded.history import Branch, History, Node, read_staging
from lake.engines.embedded.incoming import Incoming
from lake.engines.embedded.layout import DATABASE
from lake.engines.embedded.reading import AwayScratch, AwayViews, ReadOnlyDatabase
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.staging import Stager
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Edits, Tree, Trees
from lake.engines.embedded.turns import OneByOne, Turns
from lake.engines.embedded.views import Views
from lake.engines.embedded.workspaces import State, Values, Workspaces, load_state
from lake.errors import ReadOnlyRepository
from lake.integrity import RESTORE_MANIFEST
from lake.repository import Change, ChangeKind, CommitId
from lake.room import code_of

COLLECTOR = ".collector"  # the lock file of whoever removes what nobody needs


@dataclass(frozen=True, slots=True)
class Pending:
    """What is pending on a branch: staged by `put` and `delete`, and written in its folder."""

    branch: Branch
    node: Node
    tree: Tree
    staged: Values
    last: int  # what is staged later has a higher number
    state: State | None


class Engine:
    """The open parts of a repository, below one folder.

    ::

        emlake.json      format version
        refs.sqlite      refs, commits, staging, workspaces
        objects/         contents by sha256
        incoming/        contents that were put and not committed yet
        manifests/       trees and their ranges by sha256
        views/           read-only folders, per commit and prefix; made again when missing
        workspaces/      writable folders, per branch
        locks/ tmp/      one lock file per branch, those of readers, writers and the collector; temporary files
        trash/           what a collector is about to remove; there while one works
        spare            room kept aside for a full disk

    A repository that this process may not write to is read through the same parts; see `reading`.

    Attributes
    ----------
    refused : str
        Why this process may not write here; empty if it may.
    """

    def __init__(self, root: Path, refused: str = "") -> None:
        self.root = root
        self.refused = refused
        self.trash = root / "trash"
        self.scratch = AwayScratch() if refused else Scratch(root / "tmp")
        database = root / DATABASE
        self.db = ReadOnlyDatabase(database, self.scratch, self._read_only) if refused else Database(database)
        self.objects = Store(root / "objects", self.scratch, symbolic=bool(refused))
        self.turns = Turns(root / "locks")
        self.small_puts = OneByOne()
        self.incoming = Incoming(root / "incoming", self.objects, self.scratch, self.turns)
        self.objects.elsewhere = self.incoming.find
        self.manifests = Store(root / "manifests", self.scratch, fix=RESTORE_MANIFEST)
        self.trees = Trees(self.manifests)
        self.history = History(self.db)
        self.stager = Stager(self.db, self.history)
        views = AwayViews if refused else Views
        self.views = views(root / "views", self.objects, self.trees, self.scratch)
        self.workspaces = Workspaces(root / "workspaces", self.db, self.objects, self.trees, self.history, self.scratch)

    def check_writable(self) -> None:
        """Raise `ReadOnlyRepository` if this process may not write here."""
        if self.refused:
            raise self._read_only()

    def _read_only(self) -> ReadOnlyRepository:
        return read_only(self.root, self.refused)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do a piece of work (`Turns.working`); where nothing can be written there is none to be seen."""
        with nullcontext() if self.refused else self.turns.working():
            yield

    @contextmanager
    def locked(self, name: str) -> Iterator[Branch]:
        """Be the only one to move a branch or its folder; gives the branch as it is under the lock.

        Who may not write here cannot hold a lock, and gets the branch as it is.
        """
        while True:
            with self.db.read() as con:
                branch = self.history.branch(con, name)
            if self.refused:
                yield branch
                return
            with flocked(self.root / "locks" / branch.token):
                with self.db.read() as con:
                    now = self.history.branch(con, name)
                if now.token == branch.token:
                    yield now
                    return

    def tree_of(self, commit: CommitId) -> Tree:
        """Load the tree of a commit."""
        with self.db.read() as con:
            node = self.history.node(con, commit)
        return self.trees.load(node.tree)

    def sweep(self) -> None:
        """Remove what dead processes left: temporary files, folders of deleted branches, what nobody stages."""
        self.scratch.sweep()
        # Listed before the branches are read: what belongs to a branch made meanwhile is not among them.
        folders, locks = os.listdir(self.workspaces.root), os.listdir(self.root / "locks")
        with self.db.read() as con:
            # A branch takes its rows along when it goes. A folder that has some, and no branch, is no leftover: its
            # branch's row is damaged, and what was written there may be all there is.
            query = "SELECT token FROM branches UNION SELECT token FROM workspaces UNION SELECT token FROM staging"
            tokens = {token for (token,) in con.execute(query)}
        for token in folders:
            if token not in tokens:
                self.workspaces.discard(token)
        for token in locks:
            if token not in tokens and not token.startswith("."):
                (self.root / "locks" / token).unlink(missing_ok=True)
        self.incoming.sweep(self.staged_digests)
        if self.trash.exists():
            with flocked(self.root / "locks" / COLLECTOR, wait=False) as alone:
                if alone:
                    self.put_back()

    def tidy(self) -> None:
        """Remove what nobody stages any more, after the fact; without room even for that, the next opener does."""
        try:
            self.incoming.sweep(self.staged_digests)
        except (OSError, sqlite3.Error) as error:
            if not code_of(error, self.root):
                raise

    def put_back(self) -> None:
        """Give back to the stores what a collector condemned and did not remove; the caller holds its lock."""
        for store in (self.manifests, self.objects):
            store.trash.put_back(store.trash.names())
            store.trash.close()
        with suppress(OSError):
            self.trash.rmdir()

    def staged_digests(self) -> set[bytes]:
        """Give the digests of all that is staged on any branch."""
        with self.db.read() as con:
            return {value[:32] for value in self.staged_values(con)}

    @staticmethod
    def staged_values(con: sqlite3.Connection) -> list[bytes]:
        """Give digest and size, in 40 bytes, of all that is staged on any branch."""
        rows = con.execute("SELECT substr(value, 1, 40) FROM staging WHERE value IS NOT NULL").fetchall()
        rows += con.execute("SELECT substr(value, 1, 40) FROM shown WHERE value IS NOT NULL").fetchall()
        return [value for (value,) in rows]

    def pending(self, branch: Branch) -> Pending:
        """Read what is staged on a branch and what its folder started from."""
        with self.db.read() as con:
            node = self.history.node(con, branch.head)
            staged, last = read_staging(con, branch.token)
            state = load_state(con, branch.token)
        return Pending(branch, node, self.trees.load(node.tree), staged, last, state)

    def unsaved(self, pending: Pending) -> list[Change]:
        """List what a commit would change, sorted."""
        values: Values = dict(pending.staged)
        if pending.state:
            values |= self.workspaces.changes(pending.branch, pending.state)
        return self.changes_of(pending.tree, values)

    def changes_of(self, tree: Tree, values: Edits) -> list[Change]:
        """Tell what edits do to a tree."""
        changes: list[Change] = []
        for key in sorted(values):
            before, after = self.trees.find(tree, key), values[key]
            if before != after:
                changes.append(Change(key.decode(), kind_of(before, after)))
        return changes

    def close(self) -> None:
        """Close the database and remove this process's temporary files."""
        self.workspaces.discard_late()
        self.db.close()
        self.views.close()
        self.scratch.close()


def kind_of(before: bytes | None, after: bytes | None) -> ChangeKind:
    """Name a change."""
    return "added" if before is None else "removed" if after is None else "changed"


class Owned(Protocol):
    """Something that works on an engine."""

    _engine: Engine

    @property
    def root(self) -> Path:
        """The repository's folder."""
        ...


S = TypeVar("S", bound=Owned)
P = ParamSpec("P")
R = TypeVar("R")


def writing(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method run only where this process may write, and only errors of `lake.errors` out of it."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._engine.check_writable()
        return method(self, *args, **kwargs)

    return guarded(call)
