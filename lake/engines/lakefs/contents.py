"""What a repository on a server holds under keys: staged and read object by object, or opened by native libraries."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from lake.engines.lakefs import objects
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.protection import Protection
from lake.engines.lakefs.references import References
from lake.engines.lakefs.uploads import Uploads
from lake.engines.lakefs.wire import Wire
from lake.errors import (
    BadInput,
    NotFound,
    ObjectNotFound,
    ProtectedBranch,
    RefNotFound,
    StorageError,
    nearest,
)
from lake.location import Location, S3Access
from lake.names import check_branch, check_content, check_key, check_metadata, is_commit_id
from lake.refs import parse
from lake.repository import NO_METADATA, Metadata, ObjectStat


class Contents(References):
    """Objects and locations of one repository; see `lake.repository.Repository`."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._protection = Protection(wire)
        self._uploads = Uploads(wire)
        self._s3: S3Access | None = None

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


def _folder(key: str) -> str:
    return key[: key.rfind("/") + 1]
