"""Rebuilds commits of another repository: the same tree, message, metadata, committer and time, with parents here."""

from collections.abc import Iterable, Mapping
from datetime import timedelta

from lake.clones import Held, Move
from lake.engines.embedded import commits
from lake.engines.embedded.engine import Engine, writing
from lake.engines.embedded.history import check_free, check_kept, new_token, stage
from lake.engines.embedded.ranges import pack_object
from lake.names import check_branch, check_key
from lake.repository import Commit, CommitId

_DIGEST_DIGITS = 64


class EmbeddedImporter:
    """See `lake.clones.Importer`."""

    precision = timedelta(microseconds=1)
    content_addressed = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.root = engine.root
        self._read: set[bytes] = set()  # contents that were compared with their digest

    @writing
    def commit(self, branch: str, like: Commit) -> CommitId:
        """Turn what is staged on `branch` into a commit like `like`; when it returns it survives a power cut."""
        return commits.rebuild(self._engine, branch, like)

    @writing
    def reuse(self, branch: str, key: str, held: Held, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Stage a content that was put or committed before; False without its sha256, or if it is damaged.

        Each content is read once.
        """
        if len(held.checksum) != _DIGEST_DIGITS:
            return False
        digest = bytes.fromhex(held.checksum)
        value = pack_object(digest, held.size, content_type, metadata)
        with self._engine.turns.working():
            if digest not in self._read and not self._engine.incoming.holds_bytes(digest, held.size):
                return False
            self._read.add(digest)
            with self._engine.db.write_soon() as con:
                stage(con, self._engine.history.branch(con, branch).token, {check_key(key).encode(): value})
        return True

    @writing
    def move(self, moves: Iterable[Move]) -> None:
        """Move branches, each in one transaction."""
        for move in moves:
            if move.expected is None:
                self._make(move)
            else:
                commits.forward(self._engine, move.branch, move.expected, move.to)

    def _make(self, move: Move) -> None:
        check_branch(move.branch)
        with self._engine.db.write() as con:
            check_kept(con, [move.to])
            check_free(con, move.branch)
            con.execute("INSERT INTO branches VALUES (?, ?, ?)", (move.branch, move.to, new_token(move.branch)))
