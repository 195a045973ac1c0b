"""The part of the engine that knows names: commits, branches, tags, and what a reference means."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from lake.clones import clone_named, may_be_old, origins
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.landing import public_metadata
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    LakeError,
    NotFound,
    RefNotFound,
    RepositoryNotFound,
    StorageError,
    nearest,
)
from lake.names import MAIN, check_branch, check_tag
from lake.refs import not_found, parse
from lake.repository import Commit, CommitId

COMMIT_FIELDS = ("id", "parents", "message", "committer", "creation_date")
_REF_FIELDS = ("id", "commit_id")


def commit_from(entry: dict[str, Any]) -> Commit:
    """Read a commit as the server describes it."""
    return Commit(
        id=entry["id"],
        parents=tuple(entry["parents"] or ()),
        message=entry["message"],
        metadata=public_metadata(entry.get("metadata")),
        committer=entry["committer"],
        created=datetime.fromtimestamp(entry["creation_date"], UTC),
    )


def commit_pages(
    wire: Wire, start: CommitId, *, first_parent: bool, limit: int | None = None, paths: Iterable[tuple[str, str]] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the server's log; `paths` are its filters, ("objects", key) or ("prefixes", prefix)."""
    query = [("first_parent", "true" if first_parent else "false"), *paths]
    doing = f"log of {start[:12]}"
    return wire.pages(f"/refs/{start}/commits", query, fields=COMMIT_FIELDS, doing=doing, limit=limit)


class Clones:
    """Finds the clones of commits by the ids these had in other repositories; reads each commit once."""

    def __init__(self, references: "References") -> None:
        self._references = references
        self._seen: set[CommitId] = set()
        self._found: dict[CommitId, CommitId] = {}
        self._natives: dict[CommitId, CommitId] = {}
        self._lock = RLock()

    def find(self, old: CommitId) -> CommitId | None:
        """Give the commit that was cloned from `old`, an id or the first digits of one, or None."""
        with self._lock:
            if old not in self._found:
                self._read()
            return clone_named(old, self._found)

    def native(self, commit: CommitId) -> CommitId:
        """Give the id to ask the server for: that of the clone if there is one, else `commit` itself."""
        # One question for each commit, ever: reads pinned to a commit are the fast ones, and must stay so.
        if commit not in self._natives:
            try:
                info = self._references.commit_info(commit)
            except NotFound:
                return commit
            if not any(each.startswith(commit.lower()) for each in (info.id, *origins(info.metadata))):
                return commit  # a branch or tag with such a name: it may move
            self._natives[commit] = info.id
        return self._natives[commit]

    def _read(self) -> None:
        waiting = [*self._references.branches().values(), *self._references.tags().values()]
        while waiting:
            head = waiting.pop()
            if head in self._seen:
                continue
            for commit in self._references.log(head, first_parent=True):
                if commit.id in self._seen:
                    break
                self._seen.add(commit.id)
                self._found |= dict.fromkeys(origins(commit.metadata), commit.id)
                waiting += commit.parents[1:]


_NAME_TAKEN = 409


class References:
    """Looks up, makes and removes names in one repository."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._clones = Clones(self)

    @property
    def location(self) -> str:
        """`lakefs://host:port/name`."""
        return self._wire.address.location

    def resolve(self, ref: str) -> CommitId:
        """Give the full commit id behind `ref`, or raise `RefNotFound` with the nearest name."""
        return self.commit_info(ref).id

    def commit_info(self, ref: str) -> Commit:
        """Give the commit behind `ref`, or raise `RefNotFound`."""
        expr = parse(ref)
        if expr.at:
            self.head(expr.base)
        if expr.at == "$":
            raise BadInput(f"{ref!r} is a staging area, not a commit", fix=f"use {expr.base!r}, or commit first")
        try:
            return self._described(ref)
        except NotFound as error:
            if may_be_old(expr.base) and (clone := self._clones.find(expr.base)):
                return self._described(clone + ref.removeprefix(expr.base))
            raise self._unknown_ref(ref) from error
        except StorageError as error:
            # lakeFS answers 500 to a step beyond the last parent.
            if status_of(error) != 500 or not expr.steps:
                raise
            self.resolve(expr.base)
            raise RefNotFound(f"{ref!r} leads nowhere", fix="ask for fewer steps; `log` shows the parents") from error

    def _described(self, ref: str) -> Commit:
        return commit_from(self._wire.json(f"/commits/{segment(ref)}", fields=COMMIT_FIELDS, doing=f"resolve {ref!r}"))

    def native(self, ref: str) -> str:
        """Put the clone's id into a reference that names a commit by the id it had in another repository."""
        base = parse(ref).base
        return self._clones.native(base) + ref.removeprefix(base) if may_be_old(base) else ref

    def _unknown_ref(self, ref: str) -> LakeError:
        try:
            return not_found(ref, [*self.branches(), *self.tags()])
        except NotFound:
            return RepositoryNotFound(f"{self.location} is gone", fix="restore it, or open another one")

    def head(self, branch: str) -> CommitId:
        """Give the committed head of a branch, or raise `RefNotFound` if there is none of this name."""
        try:
            path, doing = f"/branches/{segment(branch)}", f"look up branch {branch!r}"
            return str(self._wire.json(path, fields=_REF_FIELDS, doing=doing)["commit_id"])
        except (NotFound, BadInput) as error:
            if isinstance(error, RepositoryNotFound):
                raise
            raise RefNotFound(f"there is no branch {branch!r}", fix=nearest(branch, self.branches())) from error

    def branches(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map branch names to committed heads, sorted by name."""
        pages = self._wire.pages("/branches", {"prefix": prefix}, fields=_REF_FIELDS, doing="list branches")
        return {entry["id"]: entry["commit_id"] for entry in pages}

    def create_branch(self, name: str, source: str) -> CommitId:
        """Make a branch at the commit behind `source`; `AlreadyExists` if a branch or tag has the name."""
        check_branch(name)
        head = self.resolve(source)
        with self._taken(name):
            self._wire.call(
                self._wire.sdk.branches_api.create_branch,
                self._wire.name,
                {"name": name, "source": head},
                doing=f"create branch {name!r}",
            )
        return head

    def delete_branch(self, name: str) -> None:
        """Remove a branch and what is staged on it; `RefNotFound` if there is none, `ConflictError` for `main`."""
        self.head(name)
        if name == MAIN:
            raise ConflictError(f"branch {MAIN!r} cannot be removed", fix="it is where releases live")
        try:
            self._wire.call(
                self._wire.sdk.branches_api.delete_branch, self._wire.name, name, doing=f"delete branch {name!r}"
            )
        except NotFound as error:
            raise RefNotFound(f"there is no branch {name!r}", fix="it was deleted just now") from error

    def tags(self, prefix: str = "") -> Mapping[str, CommitId]:
        """Map tag names to commits, sorted by name."""
        pages = self._wire.pages("/tags", {"prefix": prefix}, fields=_REF_FIELDS, doing="list tags")
        return {entry["id"]: entry["commit_id"] for entry in pages}

    def create_tag(self, name: str, ref: str) -> CommitId:
        """Make a tag, atomically: of many callers one wins, the others get `AlreadyExists`."""
        check_tag(name)
        commit = self.resolve(ref)
        with self._taken(name):
            self._wire.call(
                self._wire.sdk.tags_api.create_tag,
                self._wire.name,
                {"id": name, "ref": commit},
                doing=f"create tag {name!r}",
            )
        return commit

    def delete_tag(self, name: str) -> None:
        """Remove a tag, or raise `RefNotFound`."""
        try:
            self._wire.call(self._wire.sdk.tags_api.delete_tag, self._wire.name, name, doing=f"delete tag {name!r}")
        except (NotFound, BadInput) as error:
            tags = self.tags()
            if name in tags:
                raise
            raise RefNotFound(f"there is no tag {name!r}", fix=nearest(name, tags)) from error

    def log(self, ref: str, *, limit: int | None = None, first_parent: bool = False) -> Iterator[Commit]:
        """Yield commits reachable from `ref`, newest first."""
        query = {"first_parent": "true" if first_parent else "false"}
        path = f"/refs/{self.resolve(ref)}/commits"
        return map(
            commit_from, self._wire.pages(path, query, fields=COMMIT_FIELDS, doing=f"log of {ref!r}", limit=limit)
        )

    @contextmanager
    def _taken(self, name: str) -> Iterator[None]:
        try:
            yield
        except ConflictError as error:
            if status_of(error) != _NAME_TAKEN:
                raise
            raise AlreadyExists(
                f"{name!r} is the name of a branch, tag or commit already", fix="choose another name"
            ) from error
