"""Writable folders of a branch: opened per prefix, compared with what they started from at each commit.

A branch has one folder, so a prefix inside another is the same files. The database remembers the commit its files were
taken from (`base`), which prefixes are open, and the staged values shown in it; a file is unchanged if it carries the
size and the seal of that content. So nothing is recorded per file, a workspace outlives any process, and looking for
changes costs one `stat` a file.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lake.durable import point
from lake.engines.embedded.database import Database
from lake.engines.embedded.files import SMALL, hash_file, in_threads, is_sealed, remove, sync_files, with_folders
from lake.engines.embedded.folders import check_representable, encode_key, fill, is_leftover, place, walk
from lake.engines.embedded.history import Branch, History, read_staging
from lake.engines.embedded.ranges import digest_of, number_of, pack
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Tree, Trees, overlay
from lake.errors import ConflictError
from lake.names import check_key
from lake.repository import CommitId
from lake.room import Room

_LATE_S = 60.0
Values = dict[bytes, bytes | None]
Move = tuple[str, str, bytes | None]  # path, key, the value that shall be there


@dataclass(frozen=True, slots=True)
class State:
    """What the database knows of a branch's folder."""

    base: CommitId
    prefixes: tuple[bytes, ...]
    shown: Values

    def covers(self, key: bytes) -> bool:
        """Tell whether a key lies in an open prefix."""
        return key.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A file that is not as it was, going by size and seal."""

    key: bytes
    path: str
    stat: os.stat_result
    before: bytes | None  # the value it started from


@dataclass(frozen=True, slots=True)
class Survey:
    """What is different in a folder, before anything is hashed."""

    suspects: list[Suspect]
    removed: list[bytes]


def load_state(con: sqlite3.Connection, token: str) -> State | None:
    """Read what is known of a branch's folder; None if no prefix was opened."""
    row = con.execute("SELECT base FROM workspaces WHERE token = ?", (token,)).fetchone()
    if row is None:
        return None
    prefixes = tuple(prefix for (prefix,) in con.execute("SELECT prefix FROM prefixes WHERE token = ?", (token,)))
    shown = dict(con.execute("SELECT key, value FROM shown WHERE token = ? ORDER BY key", (token,)))
    return State(row[0], prefixes, shown)


def save_state(con: sqlite3.Connection, token: str, state: State) -> None:
    """Write what a branch's folder holds now."""
    forget_state(con, token)
    con.execute("INSERT INTO workspaces VALUES (?, ?)", (token, state.base))
    con.executemany("INSERT INTO prefixes VALUES (?, ?)", [(token, prefix) for prefix in state.prefixes])
    con.executemany("INSERT INTO shown VALUES (?, ?, ?)", [(token, *item) for item in state.shown.items()])


def forget_state(con: sqlite3.Connection, token: str) -> None:
    """Forget a branch's folder."""
    for table in ("workspaces", "prefixes", "shown"):
        con.execute(f"DELETE FROM {table} WHERE token = ?", (token,))


class Workspaces:
    """The folders below `workspaces/<branch token>/`. Callers hold the branch's lock."""

    def __init__(
        self, root: Path, db: Database, store: Store, trees: Trees, history: History, scratch: Scratch
    ) -> None:
        self.root = root
        self._db = db
        self._store = store
        self._trees = trees
        self._history = history
        self._scratch = scratch
        self._discarded: dict[str, float] = {}

    def folder(self, token: str) -> Path:
        """Say where a branch's files are."""
        return self.root / token

    # -- opening and refreshing ---------------------------------------------------------------------------------------
    def open(self, branch: Branch, prefix: bytes) -> Path:
        """Make the files under `prefix` those of the branch, keeping what was written; returns the folder."""
        with self._db.read() as con:
            state = load_state(con, branch.token)
            staged, _ = read_staging(con, branch.token)
        state = self.refreshed(branch, state, staged) if state else State(branch.head, (), {})
        folder = self.folder(branch.token)
        if not (state.prefixes and state.covers(prefix)):
            tree = self._tree(branch.head)
            shown = [(key, value) for key, value in staged.items() if key.startswith(prefix)]
            inner = tuple(held for held in state.prefixes if held.startswith(prefix))
            content = list(overlay(self._trees.items(tree, prefix), shown))
            check_representable(key for key, _ in content)
            self._clear(folder, prefix, inner)
            fresh = [item for item in content if not (inner and item[0].startswith(inner))]
            prefixes = (*(held for held in state.prefixes if held not in inner), prefix)
            state = State(branch.head, prefixes, {**state.shown, **dict(shown)})
            with Room(self.root.parent) as room:
                room.need(size for _, value in fresh if (size := number_of(value)) < SMALL)
                try:
                    fill(self._store, folder, fresh, writable=True)
                    point("workspace.filled")
                    self._sync(folder, (key for key, _ in fresh))
                    with self._db.write() as con:
                        save_state(con, branch.token, state)
                except BaseException:
                    self._clear(folder, prefix, inner)
                    raise
        target = folder / prefix.decode()
        target.mkdir(parents=True, exist_ok=True)
        return target

    def _clear(self, folder: Path, prefix: bytes, inner: tuple[bytes, ...]) -> None:
        """Remove what a killed process left under a prefix that it was about to open."""
        target = folder / prefix.decode()
        if not inner:
            if target.exists():
                self._scratch.discard(target)
            return
        for key, entry in list(walk(str(folder), prefix.decode())):
            if not encode_key(key).startswith(inner):
                os.unlink(entry.path)

    def refreshed(self, branch: Branch, state: State, staged: Values) -> State:
        """Bring the open prefixes to the branch's head and staging, where nobody wrote to them."""
        target = {key: value for key, value in staged.items() if state.covers(key)}
        if state.base == branch.head and state.shown == target:
            return state
        self._refresh(branch, state, target)
        point("workspace.refreshed")
        fresh = State(branch.head, state.prefixes, target)
        with self._db.write() as con:
            save_state(con, branch.token, fresh)
        return fresh

    def _refresh(self, branch: Branch, state: State, target: Values) -> None:
        """Put the difference between what the folder started from and what it should show into the files."""
        base, head = self._tree(state.base), self._tree(branch.head)
        differing = {key for key, _, _ in self._trees.delta(base, head) if state.covers(key)}
        moves: list[Move] = []
        clashes: list[str] = []
        for key in sorted(differing | state.shown.keys() | target.keys()):
            before = state.shown[key] if key in state.shown else self._trees.find(base, key)
            after = target[key] if key in target else self._trees.find(head, key)
            if before == after:
                continue
            path = f"{self.folder(branch.token)}/{key.decode()}"
            if _is_value(path, before):
                moves.append((path, key.decode(), after))
            elif not _is_value(path, after) and key in differing:
                clashes.append(key.decode())
        if clashes:
            raise ConflictError(
                f"branch {branch.name!r} moved to {branch.head}, which changed files written in its workspace: "
                + ", ".join(clashes[:5]),
                fix="save those files elsewhere, reset the branch, then write them again",
                keys=clashes,
            )
        if any(after is not None for _, _, after in moves):
            for prefix in state.prefixes:
                shown = sorted((key, value) for key, value in target.items() if key.startswith(prefix))
                check_representable(key for key, _ in overlay(self._trees.items(head, prefix), shown))
        self._exchange(branch.token, moves)
        for prefix in state.prefixes:
            (self.folder(branch.token) / prefix.decode()).mkdir(parents=True, exist_ok=True)
        self._sync(self.folder(branch.token), (name.encode() for _, name, _ in moves))

    def _exchange(self, token: str, moves: Sequence[Move]) -> None:
        """Give paths another content (None: remove them): what takes room first, then what cannot lack any."""
        new = [(path, name, value, self._scratch.name()) for path, name, value in moves if value is not None]
        try:
            with Room(self.root.parent) as room:
                room.need(size for _, _, value, _ in new if (size := number_of(value)) < SMALL)
                for _, name, value, fresh in new:
                    place(self._store, fresh, name, value, writable=True)
                # From here on the folder changes, and the database must be able to follow.
                room.keep_for_transaction()
            # Removals before the others: a folder may take the place of a file.
            for path in (path for path, _, value in moves if value is None):
                _remove(path, self.folder(token))
            for path, _, _, fresh in new:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if os.path.isdir(path):
                    shutil.rmtree(path)
                os.replace(fresh, path)
        finally:
            # Of two links to one file neither replaces the other.
            remove(fresh for *_, fresh in new)

    def _sync(self, folder: Path, keys: Iterable[bytes]) -> None:
        """Put files, their names, and the absence of removed ones on the disk, before the database tells of them.

        Else a power cut would leave a folder that differs from what it is said to hold, and the next commit would take
        the difference for somebody's work.
        """
        paths = with_folders((f"{folder}/{key.decode()}" for key in keys), str(self.root))
        sync_files([path for path in paths if os.path.exists(path)], self.root)

    # -- looking for changes ------------------------------------------------------------------------------------------
    def survey(self, branch: Branch, state: State) -> Survey:
        """Compare every file in the open prefixes with what it started from, by size and seal."""
        tree = self._tree(state.base)
        root = str(self.folder(branch.token))
        suspects: list[Suspect] = []
        removed: list[bytes] = []
        for prefix in _outermost(state.prefixes):
            shown = sorted((key, value) for key, value in state.shown.items() if key.startswith(prefix))
            expected = dict(overlay(self._trees.items(tree, prefix), shown))
            for name, entry in walk(root, prefix.decode()):
                key = encode_key(name)
                before = expected.pop(key, None)
                stat = entry.stat(follow_symlinks=False)
                if before is not None and is_sealed(stat, digest_of(before), number_of(before)):
                    continue
                if before is None and is_leftover(name):
                    continue
                check_key(name)
                suspects.append(Suspect(key, entry.path, stat, before))
            removed += expected
        for suspect in suspects:
            self._check_undamaged(suspect)
        return Survey(suspects, removed)

    def names_of(self, branch: Branch, survey: Survey) -> set[str]:
        """Give the written files, and the folders that know of them and of the removed ones."""
        root = f"{self.folder(branch.token)}/"
        paths = [suspect.path for suspect in survey.suspects]
        for folder in {os.path.dirname(root + key.decode()) for key in survey.removed}:
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            paths.append(folder)
        return with_folders(paths, str(self.root))

    def _check_undamaged(self, suspect: Suspect) -> None:
        """Raise `CorruptObject` if the file *is* a stored object and was written in place."""
        if suspect.before is None or suspect.stat.st_nlink < 2:
            return
        digest = digest_of(suspect.before)
        try:
            stored = os.stat(self._store.path(digest))
        except FileNotFoundError:
            return
        if (stored.st_dev, stored.st_ino) == (suspect.stat.st_dev, suspect.stat.st_ino):
            self._store.check(digest, number_of(suspect.before), f"{suspect.key.decode()}, written in place")

    def changes(self, branch: Branch, state: State) -> Values:
        """Tell what the files hold that the branch does not, storing nothing."""
        survey = self.survey(branch, state)
        digests = in_threads(lambda suspect: hash_file(suspect.path), survey.suspects)
        values: Values = dict.fromkeys(survey.removed)
        for suspect, digest in zip(survey.suspects, digests, strict=True):
            values[suspect.key] = pack(digest, suspect.stat.st_size)
        return self.settle(branch, state, survey, values)

    def settle(self, branch: Branch, state: State, survey: Survey, values: Values) -> Values:
        """Drop what is no change after all: touched files, and what a killed process had already brought in."""
        before = {suspect.key: suspect.before for suspect in survey.suspects}
        head = self._tree(branch.head)
        with self._db.read() as con:
            staged, _ = read_staging(con, branch.token)
        kept: Values = {}
        for key, value in values.items():
            if (value is not None and _same_bytes(value, before[key])) or (
                key in staged and _same_bytes(value, staged[key])
            ):
                continue
            if state.base != branch.head and _same_bytes(value, self._trees.find(head, key)):
                continue
            kept[key] = value
        return kept

    def restore(self, branch: Branch, state: State) -> None:
        """Undo every write in the open prefixes, and show the branch's head again."""
        folder = self.folder(branch.token)
        survey = self.survey(branch, state)
        base = self._tree(state.base)
        dirty = [(suspect.key, suspect.path) for suspect in survey.suspects]
        dirty += [(key, f"{folder}/{key.decode()}") for key in survey.removed]
        moves: list[Move] = []
        for key, path in dirty:
            value = state.shown[key] if key in state.shown else self._trees.find(base, key)
            moves.append((path, key.decode(), value))
        self._exchange(branch.token, moves)
        self._sync(folder, (key for key, _ in dirty))
        point("reset.restored")
        self._refresh(branch, state, {})

    def discard(self, token: str) -> None:
        """Remove a branch's folder."""
        if self._scratch.discard(self.folder(token)):
            self._discarded[token] = time.monotonic()

    def discard_late(self) -> None:
        """Remove what was written into folders after they were removed.

        TensorStore reports the first chunk that fails while threads of its own still write others, and makes folders
        that are missing. Only its process can have such threads.
        """
        for token, when in list(self._discarded.items()):
            if self.folder(token).exists():
                self._scratch.discard(self.folder(token))
            elif time.monotonic() - when > _LATE_S:
                self._discarded.pop(token, None)

    def _tree(self, commit: CommitId) -> Tree:
        with self._db.read() as con:
            return self._trees.load(self._history.node(con, commit).tree)


def _outermost(prefixes: tuple[bytes, ...]) -> Iterator[bytes]:
    for prefix in prefixes:
        if not any(prefix != other and prefix.startswith(other) for other in prefixes):
            yield prefix


def _same_bytes(value: bytes | None, other: bytes | None) -> bool:
    """Compare by digest and size: a file has no content type to compare."""
    return (value and value[:40]) == (other and other[:40])


def _is_value(path: str, value: bytes | None) -> bool:
    """Tell whether the file at `path` still is (or, for None, is not there) what `value` says."""
    try:
        stat = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return value is None
    if value is None:
        return False
    return is_sealed(stat, digest_of(value), number_of(value)) or (
        stat.st_size == number_of(value) and hash_file(path) == digest_of(value)
    )


def _remove(path: str, root: Path) -> None:
    """Remove a file, and the folders it leaves empty."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(path)
    folder = os.path.dirname(path)
    while folder != str(root):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)
