"""The engine on a lakeFS server. Refs, objects and history are the server's; units and expected heads are added."""

from collections.abc import Collection, Iterator
from itertools import islice

from lake.engines.lakefs import merging, threeway
from lake.engines.lakefs.address import Address, resolve
from lake.engines.lakefs.contents import Contents
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.format import check_format, write_format
from lake.engines.lakefs.gate_runs import RunningGate
from lake.engines.lakefs.importing import LakeFSImporter
from lake.engines.lakefs.inspection import ServerInspector
from lake.engines.lakefs.landing import land
from lake.engines.lakefs.plain import importer_for
from lake.engines.lakefs.retention import Retention
from lake.engines.lakefs.touching import touching
from lake.engines.lakefs.unnamed import sweep
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    LakeError,
    NoRoom,
    NotFound,
    NothingToCommit,
    ProtectedBranch,
    RepositoryNotFound,
    ServerUnreachable,
    StorageError,
    nearest,
)
from lake.garbage import Collected
from lake.names import MAIN, check_metadata, check_paths
from lake.repository import NO_METADATA, Change, Commit, CommitId, Handle, Metadata, Strategy

_COMMIT_TRIES = 4


class LakeFSRepository(Contents, Handle):
    """A repository on a server; make one with `open` or `create`. Safe between threads, not between forks."""

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

    def server_gate(self) -> RunningGate:
        """Give the gate as the server runs it."""
        return RunningGate(self._wire)

    def retention(self) -> Retention:
        """Give the rules of the server's garbage collection."""
        return Retention(self._wire)

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

    def collect_garbage(self, *, dry_run: bool = False, **_: object) -> Collected:
        """Remove what cut-off uploads left in a store on this machine; all else is for lakeFS's own collector.

        `BadInput` where the store is elsewhere; see `lake.engines.lakefs.unnamed`.
        """
        return sweep(self._wire, dry_run=dry_run)


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
