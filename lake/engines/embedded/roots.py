"""Which commits are needed, and why: the strongest reason by which each is reached."""

import json
import sqlite3
from array import array
from collections.abc import Iterable, Mapping
from datetime import datetime

from lake.errors import CorruptObject
from lake.locks import LOCK, WORK
from lake.repository import CommitId

#: From the strongest to the weakest: a commit counts under the first that reaches it.
REASONS = ("branches", "tags", "sessions", "views", "grace")
NOT_NEEDED = len(REASONS)
MET = "met"  # what refs gave up at any time, or an earlier collector met

Roots = Mapping[str, Iterable[CommitId]]


class Commits:
    """All commits in the order of their making, parents first; about 300 bytes each."""

    def __init__(self) -> None:
        self.ids: list[CommitId] = []
        self.trees: list[bytes] = []
        self._parents: list[tuple[int, ...]] = []
        self._created = array("d")  # seconds since 1970
        self._place: dict[CommitId, int] = {}
        self._seq = 0

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, con: sqlite3.Connection) -> None:
        """Read the commits that were made since the last call."""
        for seq, commit, body in con.execute(
            "SELECT seq, id, body FROM commits WHERE seq > ? ORDER BY seq", (self._seq,)
        ):
            fields = json.loads(body)
            try:
                parents = tuple(self._place[parent] for parent in fields["parents"])
            except KeyError as error:
                raise CorruptObject(
                    f"commit {commit} names the parent {error.args[0]}, which is not in the history",
                    fix="restore refs.sqlite from a copy of the repository",
                ) from error
            self._seq = seq
            self._place[commit] = len(self.ids)
            self.ids.append(commit)
            self.trees.append(bytes.fromhex(fields["tree"]))
            self._parents.append(parents)
            self._created.append(datetime.fromisoformat(fields["created"]).timestamp())

    def reasons(self, roots: Roots, since: float, now: float) -> bytearray:
        """Give each commit's reason, as its place in `REASONS`, or `NOT_NEEDED`.

        Commits made after `since` (seconds since 1970) are in their grace period, whoever refers to them. One that a
        wrong clock dated after `now` may be of any age: its grace period begins when a collector first meets it
        (`undated`), and is over with that of what was given up with it.
        """
        found = bytearray([NOT_NEEDED]) * len(self.ids)
        grace = REASONS.index("grace")
        met = self._reached(roots.get(MET, ()))
        for at, created in enumerate(self._created):
            if created > since and (created <= now or not met[at]):
                found[at] = grace
        for number, reason in enumerate(REASONS):
            for commit in roots.get(reason, ()):
                at = self._place.get(commit, -1)
                if at >= 0:
                    found[at] = min(found[at], number)
        for at in range(len(found) - 1, -1, -1):
            for parent in self._parents[at]:
                found[parent] = min(found[parent], found[at])
        return found

    def _reached(self, heads: Iterable[CommitId]) -> bytearray:
        """Mark these commits and their ancestors."""
        marks = bytearray(len(self.ids))
        for commit in heads:
            if (at := self._place.get(commit, -1)) >= 0:
                marks[at] = 1
        for at in range(len(marks) - 1, -1, -1):
            if marks[at]:
                for parent in self._parents[at]:
                    marks[parent] = 1
        return marks

    def undated(self, reasons: bytearray, met: Iterable[CommitId], now: float) -> list[CommitId]:
        """Give the commits whose grace period is to begin `now`, since their date is yet to come."""
        known, grace = self._reached(met), REASONS.index("grace")
        return [
            commit
            for commit, created, reason, seen in zip(self.ids, self._created, reasons, known, strict=True)
            if created > now and reason == grace and not seen
        ]


def read_roots(con: sqlite3.Connection, since: float, views: Iterable[CommitId]) -> Roots:
    """Read where history is held: refs, the bases of workspaces, what refs gave up after `since`, and views in use.

    Sessions are hidden branches and tags like others here; they have a reason of their own.
    """
    branches = dict(con.execute("SELECT name, head FROM branches"))
    tags = dict(con.execute("SELECT name, target FROM tags"))
    bases = [base for (base,) in con.execute("SELECT base FROM workspaces")]
    departed: list[CommitId] = []
    met: list[CommitId] = []
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'departed'").fetchone():
        for commit, given_up in con.execute("SELECT target, since FROM departed"):
            met.append(commit)
            if given_up > since:
                departed.append(commit)
    return {
        "branches": [head for name, head in branches.items() if not name.startswith(WORK)] + bases,
        "tags": [commit for name, commit in tags.items() if not name.startswith(LOCK)],
        "sessions": [
            *(head for name, head in branches.items() if name.startswith(WORK)),
            *(commit for name, commit in tags.items() if name.startswith(LOCK)),
        ],
        "views": list(views),
        "grace": departed,
        MET: met,
    }
