"""Refs and commits: what a reference means, who descends from whom, how a branch moves."""

import getpass
import hashlib
import heapq
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cache
from threading import Lock

from lake.clones import FROM, clone_named, may_be_old, origins
from lake.engines.embedded.database import DEPARTED, Database
from lake.errors import AlreadyExists, BadInput, ConflictError, ProtectedBranch, RefNotFound
from lake.names import is_commit_id
from lake.refs import is_prefix, not_found, parse, resolve_steps
from lake.repository import Commit, CommitId, Metadata

CACHED_COMMITS = 20_000
_HIGHEST = (1 << 63) - 1  # SQLite has no larger row number


@dataclass(frozen=True, slots=True)
class Node:
    """A commit with its place in the order of making (parents first) and its tree."""

    commit: Commit
    seq: int
    tree: bytes


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch; `token` tells it from earlier branches of the same name."""

    name: str
    head: CommitId
    token: str


@cache
def committer() -> str:
    """Name the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def commit_body(tree: bytes, parents: Sequence[Commit], message: str, metadata: Metadata) -> bytes:
    """Write a new commit in canonical JSON; its sha256 is the commit's id."""
    # Whatever the clock does, a child is younger than its parents.
    created = max([datetime.now(UTC), *(parent.created + timedelta(microseconds=1) for parent in parents)])
    return told_body(tree, Commit("", tuple(parent.id for parent in parents), message, metadata, committer(), created))


def told_body(tree: bytes, told: Commit) -> bytes:
    """Write what a commit says, and its tree, in canonical JSON."""
    content = {
        "committer": told.committer,
        "created": told.created.isoformat(timespec="microseconds"),
        "message": told.message,
        "metadata": dict(told.metadata),
        "parents": list(told.parents),
        "tree": tree.hex(),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def commit_id(body: bytes) -> CommitId:
    """Give the id of a commit."""
    return hashlib.sha256(body).hexdigest()


def new_token(branch: str) -> str:
    """Make the name of a branch's folder."""
    return f"{branch[:40]}.{secrets.token_hex(6)}"


def node_of(seq: int, commit: CommitId, body: bytes) -> Node:
    """Read a commit from its row."""
    fields = json.loads(body)
    created = datetime.fromisoformat(fields["created"])
    parents = tuple(fields["parents"])
    return Node(
        Commit(commit, parents, fields["message"], fields["metadata"], fields["committer"], created),
        seq,
        bytes.fromhex(fields["tree"]),
    )


def add_commit(con: sqlite3.Connection, body: bytes) -> CommitId:
    """Record a commit; the same one twice is one."""
    commit = commit_id(body)
    con.execute("INSERT OR IGNORE INTO commits (id, body) VALUES (?, ?)", (commit, body))
    return commit


def check_kept(con: sqlite3.Connection, commits: Iterable[CommitId]) -> None:
    """Raise `RefNotFound` if one of these commits was collected since it was read."""
    for commit in commits:
        if con.execute("SELECT 1 FROM commits WHERE id = ?", (commit,)).fetchone() is None:
            raise RefNotFound(
                f"commit {commit} was not reachable from any branch or tag, and was collected just now",
                fix="make a branch or tag at a commit that is to be kept",
            )


def let_go(con: sqlite3.Connection, commit: CommitId) -> None:
    """Note that a branch or tag has given up a commit: the collector keeps its history for a grace period from now."""
    con.execute(DEPARTED)
    con.execute("INSERT INTO departed VALUES (?, ?)", (commit, time.time()))


def move_branch(con: sqlite3.Connection, branch: Branch, commit: CommitId) -> None:
    """Compare and set: move a branch from where it was read to `commit`."""
    moved = con.execute(
        "UPDATE branches SET head = ? WHERE name = ? AND token = ? AND head = ?",
        (commit, branch.name, branch.token, branch.head),
    )
    if moved.rowcount != 1:
        raise ConflictError(
            f"branch {branch.name!r} is no longer at {branch.head}", fix="read the branch again, then repeat"
        )


def check_unprotected(con: sqlite3.Connection, branch: str) -> None:
    """Raise `ProtectedBranch` if a pattern covers `branch`."""
    for (pattern,) in con.execute("SELECT pattern FROM protection"):
        if fnmatchcase(branch, pattern):
            raise ProtectedBranch(
                f"branch {branch!r} is protected by the rule {pattern!r}",
                fix="work on another branch and merge it, or open a session",
            )


def check_free(con: sqlite3.Connection, name: str) -> None:
    """Raise `AlreadyExists` if a branch, tag or commit has the name."""
    for kind, query in (
        ("branch", "SELECT 1 FROM branches WHERE name = ?"),
        ("tag", "SELECT 1 FROM tags WHERE name = ?"),
        ("commit", "SELECT 1 FROM commits WHERE id = ?"),
    ):
        if con.execute(query, (name,)).fetchone():
            raise AlreadyExists(f"there is a {kind} named {name!r} already", fix="choose another name")


class History:
    """Reads refs and commits. Commits never change, so they are kept once read."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._nodes: dict[CommitId, Node] = {}
        self._clones: dict[CommitId, CommitId] = {}
        self._clones_seq = 0
        self._lock = Lock()

    # -- refs ---------------------------------------------------------------------------------------------------------
    def branch(self, con: sqlite3.Connection, name: str) -> Branch:
        """Give a branch, or raise `RefNotFound` with the nearest name."""
        row = con.execute("SELECT head, token FROM branches WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise RefNotFound(f"there is no branch {name!r}", fix=not_found(name, self._names(con, "branches")).fix)
        return Branch(name, row[0], row[1])

    @staticmethod
    def _names(con: sqlite3.Connection, *tables: str) -> list[str]:
        return [name for table in tables for (name,) in con.execute(f"SELECT name FROM {table}")]

    @staticmethod
    def listing(con: sqlite3.Connection, table: str, column: str, prefix: str) -> dict[str, CommitId]:
        """Map names to commits, sorted."""
        rows = con.execute(f"SELECT name, {column} FROM {table} ORDER BY name")
        return {name: commit for name, commit in rows if name.startswith(prefix)}

    def resolve(self, con: sqlite3.Connection, expr: str) -> CommitId:
        """Give the commit behind a reference expression."""
        ref = parse(expr)
        if ref.at:
            self.branch(con, ref.base)
        if ref.at == "$":
            raise BadInput(f"{expr!r} is a staging area, not a commit", fix=f"use {ref.base!r}, or commit first")
        commit = self._base(con, ref.base, expr)
        return resolve_steps(lambda at: self.node(con, at).commit.parents, commit, ref.steps)

    def _base(self, con: sqlite3.Connection, base: str, expr: str) -> CommitId:
        if is_commit_id(base) and con.execute("SELECT 1 FROM commits WHERE id = ?", (base,)).fetchone():
            return base
        for query in ("SELECT head FROM branches WHERE name = ?", "SELECT target FROM tags WHERE name = ?"):
            if row := con.execute(query, (base,)).fetchone():
                return str(row[0])
        if is_prefix(base):
            low = base.lower()
            rows = con.execute("SELECT id FROM commits WHERE id >= ? AND id < ? LIMIT 2", (low, low + "g")).fetchall()
            if len(rows) == 1:
                return str(rows[0][0])
            if not rows and may_be_old(base) and (clone := self._clone_of(con, base)):
                return clone
        raise not_found(expr, self._names(con, "branches", "tags"))

    def _clone_of(self, con: sqlite3.Connection, old: CommitId) -> CommitId | None:
        """Find the commit that was cloned from one with this id in another repository; reads each commit once."""
        query = "SELECT id, body FROM commits WHERE seq > ? AND instr(body, CAST(? AS BLOB)) ORDER BY seq"
        with self._lock:
            (newest,) = con.execute("SELECT ifnull(max(seq), 0) FROM commits").fetchone()
            if newest > self._clones_seq:
                for commit, body in con.execute(query, (self._clones_seq, FROM)):
                    self._clones.update(dict.fromkeys(origins(json.loads(body)["metadata"]), commit))
                self._clones_seq = newest
            clone = clone_named(old, self._clones)
        row = con.execute("SELECT id FROM commits WHERE id = ?", (clone,)).fetchone()
        return str(row[0]) if row else None  # it may have been collected since

    def staged_branch(self, con: sqlite3.Connection, expr: str) -> Branch | None:
        """Give the branch whose staging area an object read of `expr` sees, or None if it reads a commit."""
        ref = parse(expr)
        if ref.steps or ref.at == "@":
            return None
        row = con.execute("SELECT head, token FROM branches WHERE name = ?", (ref.base,)).fetchone()
        if row is None:
            return None
        if is_commit_id(ref.base) and con.execute("SELECT 1 FROM commits WHERE id = ?", (ref.base,)).fetchone():
            return None
        return Branch(ref.base, row[0], row[1])

    # -- commits ------------------------------------------------------------------------------------------------------
    def node(self, con: sqlite3.Connection, commit: CommitId) -> Node:
        """Read a commit by its full id."""
        if node := self._nodes.get(commit):
            return node
        row = con.execute("SELECT seq, id, body FROM commits WHERE id = ?", (commit,)).fetchone()
        if row is None:
            raise RefNotFound(f"there is no commit {commit}", fix="`log` shows the commits of a branch")
        node = node_of(*row)
        with self._lock:
            if len(self._nodes) >= CACHED_COMMITS:
                self._nodes.clear()
            self._nodes[commit] = node
        return node

    def forget(self, commits: Iterable[CommitId]) -> None:
        """Drop commits that were collected from what is kept in memory."""
        with self._lock:
            for commit in commits:
                self._nodes.pop(commit, None)

    def log(self, start: CommitId, *, first_parent: bool) -> Iterator[Commit]:
        """Yield a commit and its ancestors, in the reverse order of their making."""
        with self._db.read() as con:
            heap = [(-self.node(con, start).seq, start)]
        seen = {start}
        while heap:
            found: list[Commit] = []
            # In batches: a transaction must not stay open while the caller thinks.
            with self._db.read() as con:
                while heap and len(found) < 256:
                    commit = self.node(con, heapq.heappop(heap)[1]).commit
                    found.append(commit)
                    for parent in commit.parents[:1] if first_parent else commit.parents:
                        if parent not in seen:
                            seen.add(parent)
                            heapq.heappush(heap, (-self.node(con, parent).seq, parent))
            yield from found

    def merge_base(self, con: sqlite3.Connection, left: CommitId, right: CommitId) -> Node | None:
        """Give the newest common ancestor: no other common ancestor descends from it.

        Commits are visited newest first, so all descendants of a commit that matter come before it: the first one
        reached from both sides is the answer, and only the history since then is read.
        """
        sides: dict[CommitId, int] = {}
        heap: list[tuple[int, CommitId]] = []
        for commit, side in ((left, 1), (right, 2)):
            if commit not in sides:
                heapq.heappush(heap, (-self.node(con, commit).seq, commit))
            sides[commit] = sides.get(commit, 0) | side
        while heap:
            commit = heapq.heappop(heap)[1]
            node = self.node(con, commit)
            if sides[commit] == 3:
                return node
            for parent in node.commit.parents:
                if parent not in sides:
                    heapq.heappush(heap, (-self.node(con, parent).seq, parent))
                sides[parent] = sides.get(parent, 0) | sides[commit]
        return None


def read_staging(con: sqlite3.Connection, token: str, prefix: bytes = b"") -> tuple[dict[bytes, bytes | None], int]:
    """Read what is staged on a branch, sorted by key, and a number that only what is staged later exceeds."""
    query = "SELECT key, value FROM staging WHERE token = ?"
    parameters: tuple[object, ...] = (token,)
    if prefix:
        query += " AND key >= ? AND key < ?"
        parameters = (token, prefix, prefix + b"\xff")
    values = dict(con.execute(query + " ORDER BY key", parameters))
    # Of all branches: that is one look, where the last of one branch is found by reading all it has.
    (last,) = con.execute("SELECT ifnull(max(seq), 0) FROM staging").fetchone()
    return values, last


def stage(con: sqlite3.Connection, token: str, values: Mapping[bytes, bytes | None]) -> None:
    """Stage values (None removes)."""
    con.executemany(
        "INSERT OR REPLACE INTO staging (token, key, value) VALUES (?, ?, ?)",
        [(token, key, value) for key, value in values.items()],
    )


def unstage(con: sqlite3.Connection, token: str, last: int = _HIGHEST) -> int:
    """Drop what is staged on a branch, up to the number that `read_staging` gave; tells how many rows there were."""
    others = "token < :token", "token > :token", "seq > :last"
    query = " OR ".join(f"EXISTS (SELECT 1 FROM staging WHERE {rows})" for rows in others)
    (some_stay,) = con.execute(f"SELECT {query}", {"token": token, "last": last}).fetchone()
    # Without a condition SQLite frees whole pages, and neither reads nor logs what was in them.
    which = " WHERE token = :token AND seq <= :last" if some_stay else ""
    return con.execute(f"DELETE FROM staging{which}", {"token": token, "last": last}).rowcount
