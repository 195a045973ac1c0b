"""The engine on a lakeFS server. Refs, objects and history are the server's; units and expected heads are added."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn

from lake.engines.lakefs import merging, objects, threeway
from lake.engines.lakefs.address import Address, resolve
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.format import check_format, write_format
from lake.engines.lakefs.gate_runs import RunningGate
from lake.engines.lakefs.importing import LakeFSImporter
from lake.engines.lakefs.inspection import ServerInspector
from lake.engines.lakefs.landing import land
from lake.engines.lakefs.plain import importer_for
from lake.engines.lakefs.protection import Protection
from lake.engines.lakefs.references import References
from lake.engines.lakefs.retention import Retention
from lake.engines.lakefs.touching import touching
from lake.engines.lakefs.uploads import Uploads
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    LakeError,
    NoRoom,
    NotFound,
    NothingToCommit,
    ObjectNotFound,
    ProtectedBranch,
    RefNotFound,
    RepositoryNotFound,
    ServerUnreachable,
    StorageError,
    nearest,
)
from lake.location import Location, S3Access
from lake.names import MAIN, check_branch, check_content, check_key, check_metadata, check_paths, is_commit_id
from lake.refs import parse
from lake.repository import NO_METADATA, Change, Commit, CommitId, Handle, Metadata, ObjectStat, Strategy

_COMMIT_TRIES = 4


class LakeFSRepository(References, Handle):
    """A repository on a server; make one with `open` or `create`. Safe between threads, not between forks."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._protection = Protection(wire)
        self._uploads = Uploads(wire)
        self._s3: S3Access | None = None

    @classmethod
    def open(cls, location: str) -> "LakeFSRepository":
        """Open `lakefs://host:port/name`; `RepositoryNotFound`, `ServerUnreachable` or `NotAuthorized` otherwise."""
        wire = Wire(resolve(location))
        try:
            wire.json("", fields=("id",), doing=f"open {location}")
        except NotFound as error:
            names = _repositories(wire)
            wire.close()
            raise RepositoryNotFound(
                f"there is no repository {wire.name!r} at {wire.address.origin}", fix=nearest(wire.name, names)
            ) from error
        try:
            check_format(wire, location)
        except LakeError:
            wire.close()
            raise
        return cls(wire)

    @classmethod
    def create(cls, location: str) -> "LakeFSRepository":
        """Make a repository with one empty commit on `main`, stored under the server's own block store."""
        wire = Wire(resolve(location))
        doing = f"create {location}"
        body = {"name": wire.name, "storage_namespace": _namespace(wire, doing), "default_branch": MAIN}
        try:
            wire.call(wire.sdk.repositories_api.create_repository, body, doing=doing)
        except (ConflictError, BadInput) as error:
            # 400 or 409: lakeFS gives a storage namespace out once, even if its repository was deleted since.
            raise AlreadyExists(
                f"{location} exists or existed: {error.message}",
                fix="open it, or choose a name that was never used on this server",
            ) from error
        write_format(wire)
        return cls(wire)

    @property
    def address(self) -> Address:
        """The server and the keys."""
        return self._wire.address

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def inspector(self) -> ServerInspector:
        """Begin an inspection of the stored bytes; see `lake.integrity`."""
        return ServerInspector(self, self, self._wire)

    def importer(self) -> LakeFSImporter:
        """Give the part that rebuilds commits of another repository here, as far as this server lets it."""
        return importer_for(self, self._wire, self._protection)

    # -- protection ---------------------------------------------------------------------------------------------
    def protect(self, pattern: str, *more: str) -> None:
        """Refuse direct writes on branches that match; returns when the server does refuse them.

        The server caches its rules: the wait is 0 to 6 s, once for all patterns given together.
        """
        self._protection.add([pattern, *more])

    def protected(self) -> tuple[str, ...]:
        """List the protection patterns, sorted."""
        return self._protection.patterns()

    @contextmanager
    def _writing(self, branch: str) -> Iterator[None]:
        try:
            yield
        except ProtectedBranch as error:
            raise ProtectedBranch(f"branch {branch!r} is protected", fix="open a session, or merge into it") from error
        except NotFound as error:
            if isinstance(error, RefNotFound):
                raise
            self.head(branch)
            raise

    def server_gate(self) -> RunningGate:
        """Give the gate as the server runs it."""
        return RunningGate(self._wire)

    def retention(self) -> Retention:
        """Give the rules of the server's garbage collection."""
        return Retention(self._wire)

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
        """Stage bytes, or the content of a file, under `key`; see `uploads` for how they travel."""
        check_key(key)
        check_content(data)
        entries = check_metadata(metadata)
        if isinstance(data, Path) and not data.is_file():
            raise NotFound(f"{data} cannot be read: no such file", fix="give a readable file")
        with self._writing(branch):
            self._check_branch_name(branch)
            return self._uploads.put(branch, key, data, content_type, entries)

    def _check_branch_name(self, branch: str) -> None:
        # A tag, a commit id or a malformed name is answered with 400, 404 or 500: ask the right question instead.
        try:
            check_branch(branch)
        except BadInput:
            self.head(branch)
        if is_commit_id(branch):
            self.head(branch)

    def delete(self, branch: str, keys: Collection[str]) -> None:
        """Stage the removal of `keys`; a key that is not there is ignored."""
        # Deleting on a branch that is not there is answered with 200 and no errors.
        self.head(branch)
        with self._writing(branch):
            objects.delete(self._wire, branch, keys)

    def get(self, ref: str, key: str) -> bytes:
        """Read an object; its checksum is verified unless it came by multipart upload."""
        with self._reading(ref, key) as plain:
            return objects.get(self._wire, plain, key)

    def stat(self, ref: str, key: str) -> ObjectStat:
        """Describe an object, or raise `RefNotFound` / `ObjectNotFound`."""
        with self._reading(ref, key) as plain:
            return objects.describe(self._wire, plain, key, f"stat {key!r} at {ref!r}")

    def list(self, ref: str, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[ObjectStat]:
        """Yield objects whose key starts with `prefix` and is greater than `after`, in byte order."""
        with self._reading(ref, None) as plain:
            yield from objects.listing(self._wire, plain, prefix, after, limit)

    @contextmanager
    def _reading(self, ref: str, key: str | None) -> Iterator[str]:
        """Give the form of `ref` that object reads take, and tell a missing ref from a missing object."""
        expr = parse(ref)
        if expr.at == "$":
            # The server shows under `branch$` what a plain branch name shows.
            self.head(expr.base)
        plain = expr.base if expr.at == "$" else self.native(ref)
        try:
            yield plain
        except (NotFound, BadInput, StorageError) as error:
            if status_of(error) not in (400, 404, 500):
                raise
            self.resolve(plain)
            if key is None or status_of(error) == 500:
                raise
            siblings = [entry.key for entry in objects.listing(self._wire, plain, _folder(key), "", 1000)]
            raise ObjectNotFound(f"no object {key!r} at {ref!r}", fix=nearest(key, siblings)) from error

    def location_of(self, ref: str, prefix: str) -> Location:
        """Give `s3://name/<commit>/prefix`, pinned; a missing ref is found out here, not read as zeros."""
        return self._location(self.resolve(ref), prefix, writable=False)

    def workspace(self, branch: str, prefix: str) -> Location:
        """Give `s3://name/<branch>/prefix`: what is written there is staged at once.

        A key both put and written here is no conflict: the later one stands (`lake.engines.lakefs` says why).
        """
        self.head(branch)
        self._protection.check(branch)
        return self._location(branch, prefix, writable=True)

    def _location(self, ref: str, prefix: str, *, writable: bool) -> Location:
        if prefix and not prefix.endswith("/"):
            raise BadInput(f"prefix {prefix!r} does not end in '/'", fix=f"use {prefix + '/'!r}")
        if self._s3 is None:
            self._s3 = self._wire.address.s3_access()
        return Location(f"{self._wire.name}/{ref}/{prefix}".rstrip("/"), self._s3, writable)

    # -- history ------------------------------------------------------------------------------------------------
    def uncommitted(self, branch: str, prefix: str = "") -> Iterator[Change]:
        """Yield what a commit of `branch` would change, sorted by key."""
        self.head(branch)
        return threeway.changes(
            self._wire.pages(
                f"/branches/{segment(branch)}/diff",
                {"prefix": prefix},
                fields=threeway.DIFF_FIELDS,
                doing=f"diff staging of {branch!r}",
            )
        )

    def commit(
        self, branch: str, message: str, metadata: Metadata = NO_METADATA, *, allow_empty: bool = False
    ) -> CommitId:
        """Turn what is staged into one commit; `NothingToCommit` or `ProtectedBranch` change nothing.

        Of commits of one branch at the same moment one wins and takes what all have staged; the others try again.
        """
        entries = check_metadata(metadata)
        head = self.head(branch)
        for left in reversed(range(_COMMIT_TRIES)):
            try:
                with self._writing(branch):
                    return land(
                        self._wire,
                        branch,
                        head,
                        entries,
                        lambda marked: self._send_commit(branch, message, marked, allow_empty=allow_empty),
                    )
            except (BadInput, StorageError, ConflictError) as error:
                if isinstance(error, (NoRoom, ServerUnreachable, ProtectedBranch)) or not status_of(error):
                    raise
                if next(self.uncommitted(branch), None) is None and not allow_empty:
                    raise NothingToCommit(
                        f"branch {branch!r} has nothing staged", fix="put or delete something first"
                    ) from error
                if not left or isinstance(error, BadInput):
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _send_commit(self, branch: str, message: str, metadata: dict[str, str], *, allow_empty: bool) -> CommitId:
        body = {"message": message, "metadata": metadata, "allow_empty": allow_empty}
        answer = self._wire.call(
            self._wire.sdk.commits_api.commit, self._wire.name, branch, body, doing=f"commit {branch!r}"
        )
        return str(answer.id)

    def reset(self, branch: str) -> None:
        """Drop what is staged on `branch`."""
        self.head(branch)
        with self._writing(branch):
            self._wire.call(
                self._wire.sdk.branches_api.reset_branch,
                self._wire.name,
                branch,
                {"type": "reset"},
                doing=f"reset {branch!r}",
            )

    def reset_to(self, branch: str, ref: str) -> CommitId:
        """Move the head of a clean branch to the commit behind `ref`.

        The server itself looks at protection only: what somebody stages at the same moment stays staged.
        """
        self.head(branch)
        commit = self.resolve(ref)
        self._protection.check(branch)
        merging.check_clean(self, branch)
        with self._writing(branch):
            self._wire.call(
                self._wire.sdk.experimental_api.hard_reset_branch,
                self._wire.name,
                branch,
                commit,
                doing=f"reset {branch!r} to {commit[:12]}",
            )
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
        """Yield commits reachable from `ref`, newest first; with paths, those that touched them, merges too."""
        paths = check_paths(objects, prefixes)
        start = self.resolve(ref)
        if paths:
            return islice(touching(self._wire, start, *paths, first_parent=first_parent, limit=limit), limit)
        return super().log(start, limit=limit, first_parent=first_parent)

    def diff(self, left: str, right: str, *, three_dot: bool = False, prefix: str = "") -> Iterator[Change]:
        """Yield changes from `left` to `right`, sorted by key, both resolved once."""
        kind = "three_dot" if three_dot else "two_dot"
        return threeway.changes(
            threeway.diff_pages(self._wire, self.resolve(left), self.resolve(right), kind=kind, prefix=prefix)
        )

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
        """Merge by whole units; see the protocol. `GateRefused` carries what a hook on the server said."""
        request = merging.MergeRequest(
            source,
            dest,
            message,
            check_metadata(metadata),
            strategy,
            squash,
            allow_empty,
            expect_head,
            tuple(contested),
        )
        return merging.merge(self, self._wire, request)

    def revert(
        self, branch: str, ref: str, *, parent: int | None = None, message: str = "", metadata: Metadata = NO_METADATA
    ) -> CommitId:
        """Undo commit `ref` on `branch` by whole units; see the protocol."""
        return merging.revert(self, self._wire, branch, ref, parent, message, check_metadata(metadata))

    def cherry_pick(
        self,
        branch: str,
        ref: str,
        *,
        parent: int | None = None,
        message: str = "",
        metadata: Metadata | None = None,
    ) -> CommitId:
        """Bring what commit `ref` changed into `branch` by whole units; see the protocol."""
        given = None if metadata is None else check_metadata(metadata)
        return merging.cherry_pick(self, self._wire, branch, ref, parent, message, given)

    def collect_garbage(self, **_: object) -> NoReturn:
        """Raise `BadInput`: only the server's owner can remove objects, with lakeFS's own collector."""
        raise BadInput(
            f"{self.location} is on a lakeFS server, whose own collector removes objects; nothing was removed",
            fix="have its operator run lakeFS garbage collection (the lakefs-spark-client job, not for local storage); "
            "the retention rules that `emlake init` sets keep the branch of every release; `emlake doctor` checks them",
        )


def _folder(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _repositories(wire: Wire) -> list[str]:
    page = wire.call(wire.sdk.repositories_api.list_repositories, amount=1000, doing="list repositories", safe=True)
    return [repository.id for repository in page.results]


def _namespace(wire: Wire, doing: str) -> str:
    config = wire.call(wire.sdk.config_api.get_config, doing=doing, safe=True)
    storage = config.storage_config
    prefix = storage.default_namespace_prefix if storage is not None else None
    if prefix:
        return f"{prefix}{'' if prefix.endswith('/') else '/'}{wire.name}"
    if storage is not None and storage.blockstore_type == "local":
        return f"local://{wire.name}"
    raise BadInput(
        f"{doing}: the server does not say where repositories are stored",
        fix="set blockstore.default_namespace_prefix on the server, or create the repository with lakectl and open it",
    )
