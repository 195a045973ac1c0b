"""The versioned store as an executable specification: dictionaries, one lock, no files.

Every engine must do what this one does; where a docstring and this code disagree, one of them is wrong. Three rules
are worth reading first: `threeway.three_way` (merge, revert and cherry-pick by whole units), `Graph.merge_base`
and `_lookup`. When several things are wrong with one request, the first of these is reported: a malformed argument, a
missing reference, protection, an unexpected head, staged changes, nothing to do, a conflict, the gate (of a
commit: right after protection).

It hands out no `Location`: there is no folder and no bucket behind it.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from threading import RLock

from lake import admission
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    DirtyBranch,
    NotFound,
    NothingToCommit,
    ObjectNotFound,
    ProtectedBranch,
    RefNotFound,
    nearest,
)
from lake.location import Location
from lake.names import (
    MAIN,
    check_branch,
    check_content,
    check_key,
    check_metadata,
    check_paths,
    check_pattern,
    check_tag,
)
from lake.refs import not_found, parse, resolve_steps, unique_prefix
from lake.replay import check_parent, picked_metadata
from lake.repository import NO_METADATA, Change, Commit, CommitId, Handle, Metadata, ObjectStat, Strategy
from lake.testing import threeway
from lake.testing.graph import Graph
from lake.testing.threeway import Tree

Staging = dict[str, ObjectStat | None]


class MemoryRepository(Handle):
    """A repository that lives in this process, safe between threads."""

    def __init__(self, name: str = "model") -> None:
        self._name = name
        self._guard = RLock()
        self._blobs: dict[str, bytes] = {}
        self.graph = Graph()
        self._trees, self._commits = self.graph.trees, self.graph.commits
        self._branches: dict[str, CommitId] = {}
        self._staging: dict[str, Staging] = {}
        self._tags: dict[str, CommitId] = {}
        self._patterns: set[str] = set()
        self._branches[MAIN] = self.graph.add((), {}, "Repository created", {})
        self._staging[MAIN] = {}

    @property
    def location(self) -> str:
        return f"memory://{self._name}"

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    # -- refs ---------------------------------------------------------------------------------------------------
    def _lookup(self, base: str) -> CommitId:
        """Look a base up: full commit id, branch, tag, unique prefix, in this order."""
        for known in (self._commits.keys() & {base} and {base: base}, self._branches, self._tags):
            if known and base in known:
                return known[base]
        found = unique_prefix(base, self._commits)
        if found is None:
            raise not_found(base, [*self._branches, *self._tags])
        return found

    def resolve(self, ref: str) -> CommitId:
        expr = parse(ref)
        with self._guard:
            if expr.at and expr.base not in self._branches:
                raise RefNotFound(f"{ref!r}: there is no branch {expr.base!r}", fix=nearest(expr.base, self._branches))
            if expr.at == "$":
                raise BadInput(f"{ref!r} is a staging area, not a commit", fix=f"use {expr.base!r}, or commit first")
            return resolve_steps(lambda commit: self._commits[commit].parents, self._lookup(expr.base), expr.steps)

    def commit_info(self, ref: str) -> Commit:
        return self._commits[self.resolve(ref)]

    def branches(self, prefix: str = "") -> Mapping[str, CommitId]:
        with self._guard:
            return {name: self._branches[name] for name in sorted(self._branches) if name.startswith(prefix)}

    def create_branch(self, name: str, source: str) -> CommitId:
        check_branch(name)
        with self._guard:
            head = self.resolve(source)
            self._check_free(name)
            self._branches[name], self._staging[name] = head, {}
            return head

    def delete_branch(self, name: str) -> None:
        with self._guard:
            self._head(name)
            if name == MAIN:
                raise ConflictError(f"branch {MAIN!r} cannot be removed", fix="it is where releases live")
            del self._branches[name], self._staging[name]

    def tags(self, prefix: str = "") -> Mapping[str, CommitId]:
        with self._guard:
            return {name: self._tags[name] for name in sorted(self._tags) if name.startswith(prefix)}

    def create_tag(self, name: str, ref: str) -> CommitId:
        check_tag(name)
        with self._guard:
            commit = self.resolve(ref)
            self._check_free(name)
            self._tags[name] = commit
            return commit

    def delete_tag(self, name: str) -> None:
        with self._guard:
            if name not in self._tags:
                raise RefNotFound(f"there is no tag {name!r}", fix=nearest(name, self._tags))
            del self._tags[name]

    def _check_free(self, name: str) -> None:
        for kind, known in (("branch", self._branches), ("tag", self._tags), ("commit", self._commits)):
            if name in known:
                raise AlreadyExists(f"{name!r} is the name of a {kind} already", fix="choose another name")

    def _head(self, branch: str) -> CommitId:
        if branch not in self._branches:
            raise RefNotFound(f"there is no branch {branch!r}", fix=nearest(branch, self._branches))
        return self._branches[branch]

    # -- protection ---------------------------------------------------------------------------------------------
    def protect(self, pattern: str, *more: str) -> None:
        patterns = [check_pattern(each) for each in (pattern, *more)]
        with self._guard:
            self._patterns.update(patterns)

    def protected(self) -> tuple[str, ...]:
        return tuple(sorted(self._patterns))

    def _writable(self, branch: str) -> CommitId:
        head = self._head(branch)
        for pattern in self._patterns:
            if fnmatchcase(branch, pattern):
                raise ProtectedBranch(
                    f"branch {branch!r} is protected by {pattern!r}", fix="open a session, or merge into it"
                )
        return head

    # -- objects ------------------------------------------------------------------------------------------------
    def put(
        self,
        branch: str,
        key: str,
        data: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        metadata: Metadata = NO_METADATA,
    ) -> ObjectStat:
        check_key(key)
        check_content(data)
        content = _read(data) if isinstance(data, Path) else data
        checksum = hashlib.sha256(content).hexdigest()
        entry = ObjectStat(key, len(content), checksum, content_type, check_metadata(metadata), f"memory:{checksum}")
        with self._guard:
            self._writable(branch)
            self._blobs[checksum] = content
            self._staging[branch][key] = entry
        return entry

    def delete(self, branch: str, keys: Collection[str]) -> None:
        with self._guard:
            self._writable(branch)
            for key in keys:
                self._staging[branch][key] = None

    def _visible(self, ref: str) -> Tree:
        """Give the tree that object reads of `ref` see: a branch by name, or by `branch$`, shows what is staged."""
        expr = parse(ref)
        with self._guard:
            if expr.base in self._branches and not expr.steps and expr.at != "@" and expr.base not in self._commits:
                return self._staged(expr.base)
            return self._trees[self.resolve(ref)]

    def _staged(self, branch: str) -> Tree:
        merged: Mapping[str, ObjectStat | None] = {**self._trees[self._branches[branch]], **self._staging[branch]}
        return {key: entry for key, entry in merged.items() if entry is not None}

    def get(self, ref: str, key: str) -> bytes:
        return self._blobs[self.stat(ref, key).checksum]

    def stat(self, ref: str, key: str) -> ObjectStat:
        tree = self._visible(ref)
        if key not in tree:
            raise ObjectNotFound(f"no object {key!r} at {ref!r}", fix=nearest(key, tree))
        return tree[key]

    def list(self, ref: str, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[ObjectStat]:
        # The order of code points is the byte order of UTF-8.
        tree = self._visible(ref)
        keys = sorted(key for key in tree if key.startswith(prefix) and key > after)
        return iter([tree[key] for key in keys[:limit]])

    def location_of(self, ref: str, prefix: str) -> Location:
        raise BadInput(f"MemoryRepository has no location for {prefix!r} at {ref!r}", fix="use get and list")

    def workspace(self, branch: str, prefix: str) -> Location:
        raise BadInput(f"MemoryRepository has no workspace for {prefix!r} on {branch!r}", fix="use put and delete")

    # -- history ------------------------------------------------------------------------------------------------
    def _move(self, branch: str, parents: tuple[CommitId, ...], tree: Tree, message: str, meta: Metadata) -> CommitId:
        self._branches[branch] = self.graph.add(parents, tree, message, meta)
        self._staging[branch] = {}
        return self._branches[branch]

    def uncommitted(self, branch: str, prefix: str = "") -> Iterator[Change]:
        with self._guard:
            return iter(threeway.two_way(self._trees[self._head(branch)], self._staged(branch), prefix))

    def commit(
        self, branch: str, message: str, metadata: Metadata = NO_METADATA, *, allow_empty: bool = False
    ) -> CommitId:
        metadata = check_metadata(metadata)
        with self._guard:
            head = self._writable(branch)
            admission.check_commit(self, branch, head)
            tree = self._staged(branch)
            if not allow_empty and not threeway.two_way(self._trees[head], tree):
                raise NothingToCommit(f"branch {branch!r} has nothing staged", fix="put or delete something first")
            return self._move(branch, (head,), tree, message, metadata)

    def reset(self, branch: str) -> None:
        with self._guard:
            self._writable(branch)
            self._staging[branch] = {}

    def reset_to(self, branch: str, ref: str) -> CommitId:
        with self._guard:
            self._head(branch)
            commit = self.resolve(ref)
            self._writable(branch)
            self._check_clean(branch)
            self._branches[branch], self._staging[branch] = commit, {}
            return commit

    def log(
        self,
        ref: str,
        *,
        limit: int | None = None,
        first_parent: bool = False,
        objects: Collection[str] = (),
        prefixes: Collection[str] = (),
    ) -> Iterator[Commit]:
        paths = check_paths(objects, prefixes)
        with self._guard:
            commits = [self._commits[c] for c in self.graph.ancestors(self.resolve(ref), first_parent=first_parent)]
            if paths:
                commits = [commit for commit in commits if self.graph.touches(commit.id, *paths)]
        commits.sort(key=lambda commit: commit.created, reverse=True)
        return iter(commits[:limit])

    def diff(self, left: str, right: str, *, three_dot: bool = False, prefix: str = "") -> Iterator[Change]:
        with self._guard:
            ours, theirs = self.resolve(left), self.resolve(right)
            if not three_dot:
                return iter(threeway.two_way(self._trees[ours], self._trees[theirs], prefix))
            base = self.graph.merge_base(ours, theirs)
            return iter(threeway.three_dot(self._trees[base], self._trees[ours], self._trees[theirs], prefix))

    def merge(
        self,
        source: str,
        dest: str,
        message: str,
        metadata: Metadata = NO_METADATA,
        *,
        strategy: Strategy | None = None,
        squash: bool = False,
        allow_empty: bool = False,
        expect_head: CommitId | None = None,
        contested: Collection[str] = (),
    ) -> CommitId:
        metadata = check_metadata(metadata)
        if strategy not in (None, "source-wins", "dest-wins"):
            raise BadInput(f"strategy {strategy!r} is unknown", fix="use 'source-wins', 'dest-wins' or none")
        with self._guard:
            head, theirs = self._head(dest), self.resolve(source)
            if expect_head is not None and expect_head != head:
                raise ConflictError(f"branch {dest!r} is at {head}, not at {expect_head}", fix="look at what came in")
            self._check_clean(dest)
            base = self.graph.merge_base(head, theirs)
            if not allow_empty and threeway.identities(self._trees[base]) == threeway.identities(self._trees[theirs]):
                raise NothingToCommit(f"{source!r} has nothing that {dest!r} lacks", fix="commit to it first")
            tree = threeway.three_way(
                self._trees[base], self._trees[head], self._trees[theirs], (dest, source), strategy, tuple(contested)
            )
            if admission.watched(self, dest, head, theirs):
                admission.check_merge(self, head, theirs, metadata, squash=squash)
            return self._move(dest, (head,) if squash else (head, theirs), tree, message, metadata)

    def revert(
        self, branch: str, ref: str, *, parent: int | None = None, message: str = "", metadata: Metadata = NO_METADATA
    ) -> CommitId:
        metadata = check_metadata(metadata)
        with self._guard:
            head, undone = self._head(branch), self.commit_info(ref)
            number = check_parent(ref, undone, parent)
            self._check_clean(branch)
            before = self._trees[undone.parents[number - 1]] if undone.parents else {}
            tree = threeway.three_way(
                self._trees[undone.id], self._trees[head], before, (branch, f"the undoing of {ref}")
            )
            if threeway.identities(tree) == threeway.identities(self._trees[head]):
                raise NothingToCommit(f"{ref!r} is undone on {branch!r} already", fix="nothing is left to do")
            return self._move(branch, (head,), tree, message or f"Revert {ref}", metadata)

    def cherry_pick(
        self,
        branch: str,
        ref: str,
        *,
        parent: int | None = None,
        message: str = "",
        metadata: Metadata | None = None,
    ) -> CommitId:
        given = None if metadata is None else check_metadata(metadata)
        with self._guard:
            head, picked = self._head(branch), self.commit_info(ref)
            number = check_parent(ref, picked, parent)
            self._check_clean(branch)
            base = self._trees[picked.parents[number - 1]] if picked.parents else {}
            tree = threeway.three_way(base, self._trees[head], self._trees[picked.id], (branch, ref))
            if threeway.identities(tree) == threeway.identities(self._trees[head]):
                raise NothingToCommit(f"{branch!r} holds what {ref!r} changed already", fix="nothing is left to do")
            admission.check_commit(self, branch, head)
            return self._move(branch, (head,), tree, message or picked.message, picked_metadata(picked, given))

    def _check_clean(self, branch: str) -> None:
        staged = threeway.two_way(self._trees[self._branches[branch]], self._staged(branch))
        if staged:
            raise DirtyBranch(
                f"branch {branch!r} has {len(staged)} staged changes, the first {staged[0].key!r}",
                fix="commit or reset them",
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", fix="give a readable file") from error
