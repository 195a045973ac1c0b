"""Commits with their trees and parents, and what their graph tells: ancestors, merge bases, who touched a path."""

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from itertools import count
from types import MappingProxyType

from lake.repository import Commit, CommitId, Metadata
from lake.testing import threeway
from lake.testing.threeway import Tree


class Graph:
    """All commits of a `MemoryRepository`, whose lock its callers hold."""

    def __init__(self) -> None:
        self.commits: dict[CommitId, Commit] = {}
        self.trees: dict[CommitId, Tree] = {}
        self._numbers = count()  # of commits ever made: a forgotten one's id never comes again

    def add(self, parents: tuple[CommitId, ...], tree: Tree, message: str, metadata: Metadata) -> CommitId:
        """Make a commit; a child is always younger than its parents."""
        now = datetime.now(UTC)
        for newest in [*self.commits.values()][-1:]:
            now = max(now, newest.created + timedelta(microseconds=1))
        commit_id = hashlib.sha256(f"{next(self._numbers)} {parents} {message}".encode()).hexdigest()
        frozen = MappingProxyType(dict(metadata))
        self.commits[commit_id] = Commit(commit_id, parents, message, frozen, "model", now)
        self.trees[commit_id] = MappingProxyType(dict(tree))
        return commit_id

    def forget(self, commit: CommitId) -> None:
        """Drop a commit that nothing holds, as an engine's collector may."""
        del self.commits[commit], self.trees[commit]

    def ancestors(self, commit: CommitId, *, first_parent: bool = False) -> set[CommitId]:
        """Give the commits that are reached from one, itself among them."""
        seen, queue = set[CommitId](), [commit]
        while queue:
            commit = queue.pop()
            if commit not in seen:
                seen.add(commit)
                queue.extend(self.commits[commit].parents[: 1 if first_parent else None])
        return seen

    def best_ancestors(self, left: CommitId, right: CommitId) -> set[CommitId]:
        """Give the common ancestors that are not ancestors of another one: more than one in a criss-cross."""
        common = self.ancestors(left) & self.ancestors(right)
        return common - {parent for commit in common for parent in self.commits[commit].parents}

    def merge_base(self, left: CommitId, right: CommitId) -> CommitId:
        """Choose one of the best: in a criss-cross an engine may choose another one and see a false conflict."""
        return max(self.best_ancestors(left, right), key=lambda commit: self.commits[commit].created)

    def touches(self, commit: CommitId, objects: Collection[str], prefixes: tuple[str, ...]) -> bool:
        """Tell whether a commit differs from its first parent at one of the paths."""
        parents = self.commits[commit].parents
        changed = threeway.changes(self.trees[parents[0]] if parents else {}, self.trees[commit])
        return any(key in objects or key.startswith(prefixes) for key in changed)
