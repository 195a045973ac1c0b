"""Checks the database file: that no flipped bit in it can change what the repository says.

SQLite's own check follows the structure of the file and not the values in it. What covers the values:

- a commit's id is the sha256 of its body, and both ids and order stand in an index too;
- every other row that matters stands in the file twice, in its table and in an index over the same columns
  (`database.SECOND`), and `integrity_check` compares the two;
- heads, tags and workspaces must name commits that are there; staging and workspaces, branches that are there;
- the text of the schema and the constants of the header are compared with what they must be;
- the write-ahead log is read frame by frame (`wal`), since a damaged one is cut short by SQLite without a word.

Early repositories have no such indexes (`keeps_rows_twice`): there, a flipped bit in the name of a tag, in a rule of
protection or in the content type of a staged object is not noticed.

What is left are bytes that say nothing: unused room in pages, and numbers in the header that only count changes. A
test flips every bit of a small database and finds exactly those unnoticed.
"""

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from lake.engines.embedded.database import DEPARTED, SCHEMA, Database, whole_schema
from lake.engines.embedded.history import commit_id
from lake.engines.embedded.ranges import FIXED
from lake.engines.embedded.wal import fault_in

_HEADER, _CHANGE, _VALID_FOR = 100, 24, 92
# A damaged name makes Python stumble over the very message in which SQLite reports it.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)


def audit(db: Database, *, read_only: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (what, sentence) for each thing that is wrong; `what` is a commit's id, or empty.

    A log that was found damaged must not be written to before it was copied: that would make its loss final.
    """
    log = Path(f"{db.path}-wal")
    try:
        logged = _read_log(db, log, read_only=read_only)
    except UNREADABLE as error:
        if "locked" in str(error):
            raise
        yield "", f"{db.path} cannot be read: {error}"
        return
    if sentence := fault_in(logged):
        yield "", f"{log}: {sentence}"
    for sentence in _header(db.path):
        yield "", f"{db.path}: {sentence}"
    yield from _tables(db)


def _read_log(db: Database, log: Path, *, read_only: bool) -> bytes:
    """Read the log whole."""
    if not read_only:
        with db.write() as con:
            # Nobody else adds to the log while it is read.
            logged = log.read_bytes() if log.exists() else b""
            con.execute("ROLLBACK")
            con.execute("BEGIN")
        return logged
    with db.read() as con:
        con.execute("SELECT 1 FROM branches").fetchone()
    logged = b""
    for pause in (0.05, 0.2, 0.0):
        # A second look tells damage from a frame that its owner was just writing.
        logged = log.read_bytes() if log.exists() else b""
        if fault_in(logged) is None:
            break
        time.sleep(pause)
    return logged


def keeps_rows_twice(con: sqlite3.Connection) -> bool:
    """Tell whether every row stands in an index too."""
    return con.execute("SELECT 1 FROM sqlite_schema WHERE name = 'tags_second'").fetchone() is not None


def _header(path: Path) -> list[str]:
    """Check the first hundred bytes; a second look tells damage from a page that was just being written."""
    found: list[str] = []
    for pause in (0.05, 0.2, 0.0):
        with path.open("rb") as file:
            found = list(_wrong_in_header(file.read(_HEADER)))
        if not found:
            break
        time.sleep(pause)
    return found


def _wrong_in_header(raw: bytes) -> Iterator[str]:
    """Compare with what every database of ours begins with. Pages and their number are `integrity_check`'s matter."""
    if len(raw) < _HEADER or raw[:16] != b"SQLite format 3\0":
        yield "it does not begin like a database"
        return
    expected = {
        "the versions of the file format": (18, bytes([2, 2, 0, 64, 32, 32])),
        "the format of the schema": (44, struct.pack(">I", 4)),
        "cache size, auto-vacuum, encoding and user version": (48, struct.pack(">5I", 0, 0, 1, 0, 0)),
        "application and reserved room": (68, bytes(24)),
    }
    for what, (at, constant) in expected.items():
        if raw[at : at + len(constant)] != constant:
            yield f"{what} in the header are {raw[at : at + len(constant)].hex()}, not {constant.hex()}"
    if raw[_CHANGE : _CHANGE + 4] != raw[_VALID_FOR : _VALID_FOR + 4]:
        yield "the two counters of changes in the header differ"


def _tables(db: Database) -> Iterator[tuple[str, str]]:
    checks = (_integrity, _schema, _commits, _references, _staging)
    for check in checks:
        found: list[tuple[str, str]] = []
        try:
            with db.read() as con:
                found = list(check(con))
        except UNREADABLE as error:
            found.append(("", f"the database cannot be read: {error}"))
        yield from ((what, f"{db.path}: {sentence}") for what, sentence in found)


def _integrity(con: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for (line,) in con.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield "", " ".join(line.split())


_DECLARED = "SELECT type, name, tbl_name, sql FROM sqlite_schema"


def _declared(script: str) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(script)
        return set(fresh.execute(_DECLARED))


def _schema(con: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    found = set(con.execute(_DECLARED))
    forms = [_declared(script) for script in (whole_schema(), f"{SCHEMA}{DEPARTED}", SCHEMA)]
    if found not in forms:
        nearest = min(forms, key=lambda form: len(found ^ form))
        odd = sorted({str(row[1]) for row in found ^ nearest})
        yield "", f"the declaration of {', '.join(odd)} is not what it must be"


def _commits(con: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    known = {commit for (commit,) in con.execute("SELECT id FROM commits")}
    for commit, body in con.execute("SELECT id, body FROM commits ORDER BY seq"):
        if not isinstance(body, bytes) or commit_id(body) != commit:
            yield str(commit), f"commit {commit} does not have the content that its id says"
            continue
        for parent in json.loads(body)["parents"]:
            if parent not in known:
                yield commit, f"commit {commit} has the parent {parent}, which is missing"
    highest = dict(con.execute("SELECT name, seq FROM sqlite_sequence"))
    for table in ("commits", "staging"):
        last = con.execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0
        if not isinstance(highest.get(table, 0), int) or highest.get(table, 0) < last:
            yield "", f"the highest number in {table} is {last}, and {highest.get(table)} is recorded"
    if odd := set(highest) - {"commits", "staging"}:
        yield "", f"there are numbers for tables that do not exist: {sorted(map(repr, odd))}"


_REFERENCES = (
    ("branch", "SELECT name, head FROM branches WHERE head NOT IN (SELECT id FROM commits)"),
    ("tag", "SELECT name, target FROM tags WHERE target NOT IN (SELECT id FROM commits)"),
    ("workspace", "SELECT token, base FROM workspaces WHERE base NOT IN (SELECT id FROM commits)"),
    ("workspace", "SELECT token, token FROM workspaces WHERE token NOT IN (SELECT token FROM branches)"),
    ("staging", "SELECT key, token FROM staging WHERE token NOT IN (SELECT token FROM branches)"),
    ("prefix", "SELECT prefix, token FROM prefixes WHERE token NOT IN (SELECT token FROM workspaces)"),
    ("shown", "SELECT key, token FROM shown WHERE token NOT IN (SELECT token FROM workspaces)"),
)


def _references(con: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for kind, query in _REFERENCES:
        for name, target in con.execute(query):
            yield "", f"{kind} {name!r} names {target!r}, which is missing"


def _staging(con: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table in ("staging", "shown"):
        for key, value in con.execute(f"SELECT key, value FROM {table} WHERE value IS NOT NULL"):
            try:
                bytes(key).decode()
                if len(value) < FIXED:
                    raise ValueError(f"{len(value)} bytes")
                if value[FIXED:]:
                    _, _ = json.loads(value[FIXED:])
            except (ValueError, TypeError) as error:
                yield "", f"the row of {key!r} in {table} makes no sense: {error}"
