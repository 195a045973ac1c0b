"""The part of the engine that knows names: commits, branches, tags, protection, and what a reference means."""

from collections.abc import Mapping
from pathlib import Path

from lake.durable import point
from lake.engines.embedded.engine import Engine, writing
from lake.engines.embedded.files import guarded
from lake.engines.embedded.history import History, check_free, let_go, new_token, unstage
from lake.engines.embedded.workspaces import forget_state
from lake.errors import ConflictError, RefNotFound, nearest
from lake.names import MAIN, check_branch, check_pattern, check_tag
from lake.repository import Commit, CommitId


class References:
    """Looks up, makes and removes names in one repository."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._history: History = engine.history

    @property
    def root(self) -> Path:
        """The repository's folder."""
        return self._engine.root

    @guarded
    def resolve(self, ref: str) -> CommitId:
        """Give the full commit id behind `ref`."""
        with self._engine.db.read() as con:
            return self._history.resolve(con, ref)

    @guarded
    def commit_info(self, ref: str) -> Commit:
        """Give the commit behind `ref`."""
        with self._engine.db.read() as con:
            return self._history.node(con, self._history.resolve(con, ref)).commit

    @guarded
    def branches(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map branch names to committed heads, sorted."""
        with self._engine.db.read() as con:
            return self._history.listing(con, "branches", "head", prefix)

    @writing
    def create_branch(self, name: str, source: str) -> CommitId:
        """Make a branch at the commit behind `source`."""
        check_branch(name)
        self._engine.workspaces.discard_late()
        with self._engine.db.write() as con:
            head = self._history.resolve(con, source)
            check_free(con, name)
            con.execute("INSERT INTO branches VALUES (?, ?, ?)", (name, head, new_token(name)))
        return head

    @writing
    def delete_branch(self, name: str) -> None:
        """Remove a branch and what is pending on it."""
        self._engine.workspaces.discard_late()
        with self._engine.locked(name) as branch:
            if name == MAIN:
                raise ConflictError(f"branch {MAIN!r} cannot be removed", fix="it is where releases live")
            with self._engine.db.write(freeing=True) as con:
                con.execute("DELETE FROM branches WHERE token = ?", (branch.token,))
                let_go(con, branch.head)
                dropped = unstage(con, branch.token)
                forget_state(con, branch.token)
            point("delete-branch.forgotten")
            self._engine.workspaces.discard(branch.token)
            (self.root / "locks" / branch.token).unlink(missing_ok=True)
        if dropped:
            self._engine.tidy()

    @guarded
    def tags(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map tag names to commits, sorted."""
        with self._engine.db.read() as con:
            return self._history.listing(con, "tags", "target", prefix)

    @writing
    def create_tag(self, name: str, ref: str) -> CommitId:
        """Make a tag; of many callers one wins."""
        check_tag(name)
        with self._engine.db.write() as con:
            commit = self._history.resolve(con, ref)
            check_free(con, name)
            con.execute("INSERT INTO tags VALUES (?, ?)", (name, commit))
        return commit

    @writing
    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self._engine.db.write(freeing=True) as con:
            removed = con.execute("DELETE FROM tags WHERE name = ? RETURNING target", (name,)).fetchall()
            if not removed:
                known = self._history.listing(con, "tags", "target", "")
                raise RefNotFound(f"there is no tag {name!r}", fix=nearest(name, known))
            let_go(con, removed[0][0])

    @writing
    def protect(self, pattern: str, *more: str) -> None:
        """Refuse direct changes of the branches that match one of these globs."""
        patterns = [(check_pattern(each),) for each in (pattern, *more)]
        with self._engine.db.write() as con:
            con.executemany("INSERT OR IGNORE INTO protection VALUES (?)", patterns)

    @guarded
    def protected(self) -> tuple[str, ...]:
        """List the protection patterns, sorted."""
        with self._engine.db.read() as con:
            return tuple(pattern for (pattern,) in con.execute("SELECT pattern FROM protection ORDER BY pattern"))
