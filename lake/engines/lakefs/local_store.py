"""The block store of a server on this machine: bytes are copied into it here, and the server is told that they came.

::

    GET staging/backing   -> the place of the new object, signed for this branch and key
    copy, hashed on the way; looked at: all bytes there
    PUT staging/backing   -> the server names the place; only now is there anything to see

Nobody points at the file before that, so a killed client, a full disk or a lost server leave at most an unnamed file,
as an upload that breaks off inside the server does. What failed here, was refused at the first asking, or was never
asked is removed. Where the answer was lost the file stays: the server may have named it. If it has not, `emlake gc`
finds and removes it (`unnamed`).

The bytes are not synced: neither are those that the server writes, nor the record that names them, without which
synced bytes would be lost all the same.

Whether a store is this machine's is not taken from its path, which may be that of a container or of the far end of a
tunnel: `find` looks for an object which the server has just stored itself, under a name that no other store has.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from lake.durable import point
from lake.engines.lakefs import objects
from lake.engines.lakefs.failures import may_have_arrived, may_repeat, status_of
from lake.engines.lakefs.threeway import head_of, hidden_branch
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import LakeError, ServerUnreachable, StorageError
from lake.names import MAIN
from lake.repository import Metadata, ObjectStat
from lake.room import Room

_SCHEME = "local://"
_PLACE = re.compile(r"local://(?P<root>/.+)/(?P<name>data/[^/]+/[^/]+)")
_XID = re.compile(r"([0-9a-v]{20})(,.*)?")
_COMPARED = 1 << 20
# Read, hashed and written while in the processor's cache. Each waits for the interpreter's lock three times,
# so that files of 64 MiB take a tenth longer with pieces of 256 KiB.
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalStore:
    """The folder of one repository in the server's block store, and what the server calls it."""

    root: Path
    namespace: str

    def put(
        self, wire: Wire, branch: str, key: str, data: bytes | Path, size: int, content_type: str, metadata: Metadata
    ) -> ObjectStat | None:
        """Stage `size` bytes, or a file of that size, under `key`; None if the server stores elsewhere by now.

        Raises
        ------
        NoRoom
            The disk under the store is full.
        StorageError
            The file changed meanwhile, or the store cannot be written.
        """
        doing = f"put {key!r} on {branch!r}"
        path, query = f"/branches/{segment(branch)}/staging/backing", {"path": key}
        given = wire.read(wire.send("GET", path, query, doing=doing), fields=("physical_address",), doing=doing)
        address = str(given["physical_address"])
        place = place_of(address)
        if place is None or place[0] != self.root:
            return None
        point("put.place-given")
        _, name = place
        file = self.root / name
        checksum = self._copy(data, size, file, doing)
        point("put.bytes-placed")
        told = {
            # The namespace's form: the server checks its signature, and the object moves with the store.
            "staging": {"physical_address": f"{self.namespace}/{name}"},
            "checksum": checksum,
            "size_bytes": size,
            "content_type": content_type,
            "user_metadata": dict(metadata),
        }
        body, headers = json.dumps(told).encode(), {"Content-Type": "application/json"}
        try:
            answer = wire.send("PUT", path, query, body, len(body), headers, doing=doing, once=True)
        except LakeError as error:
            unasked = isinstance(error, ServerUnreachable) and not may_have_arrived(error)
            if 400 <= status_of(error) < 500 or unasked:
                file.unlink(missing_ok=True)
                raise
            if not may_repeat(error, safe=True):
                raise
            answer = wire.send("PUT", path, query, body, len(body), headers, doing=doing)
        wire.read(answer, fields=("path", "checksum"), doing=doing)
        point("put.linked")
        return ObjectStat(key, size, checksum, content_type, dict(metadata), address)

    def _copy(self, data: bytes | Path, size: int, file: Path, doing: str) -> str:
        """Write a new file of `size` bytes and give their md5."""
        try:
            with Room(self.root) as room:
                room.need([size])
                return _write(file, data, size, doing)
        except OSError as error:
            raise StorageError(
                f"{doing}: {error.filename or file}: {error.strerror}",
                fix="see who may write in the folder of the server's block store, and read what is put",
            ) from error


def place_of(address: str) -> tuple[Path, str] | None:
    """Split the address of an object in a local store: the folder of its repository, and its name below that."""
    match = _PLACE.fullmatch(address)
    return None if match is None else (Path(match["root"]), match["name"])


def arrival(address: str) -> int:
    """Give the second in which the server gave out an address, or 0 if it did not make it up itself.

    The last part of one that it did is an xid: 20 digits to the base 32, of which the first 32 bits are the time. One
    that was given out to be linked ends in a comma and a signature.
    """
    match = _XID.fullmatch(address.rpartition("/")[2])
    return int(match[1], 32) >> 68 if match else 0


def find(wire: Wire, stat: ObjectStat, data: bytes | Path) -> LocalStore | None:
    """Give the store that an object has just been uploaded into, if it is a folder that is as good as ours.

    Parameters
    ----------
    stat : ObjectStat
        What the server says of the object; `data` is what it was made of.
    """
    place = place_of(stat.address)
    if not wire.address.on_loopback or place is None:
        return None
    root, within = place
    file = root / within
    try:
        about = file.stat()
        # Of another user's files the server might not be able to read ours, nor write beside them.
        ours = about.st_uid == os.geteuid() and os.access(root / "data", os.W_OK | os.X_OK)
        if not ours or about.st_size != stat.size or _beginning(file) != _beginning(data):
            return None
    except OSError:
        return None
    about_us = wire.json("", fields=("storage_namespace",), doing="look at the repository")
    namespace = str(about_us["storage_namespace"]).rstrip("/")
    name = namespace.removeprefix(_SCHEME)
    return LocalStore(root, namespace) if str(root).endswith(f"/{name}") and name != namespace else None


@contextmanager
def trial(wire: Wire, data: bytes) -> Iterator[ObjectStat]:
    """Upload bytes to a hidden branch that is gone afterwards, and so are they if they lie in reach."""
    with hidden_branch(wire, head_of(wire, MAIN)) as branch:
        stat = objects.put(wire, branch, "trial", data, "application/octet-stream", {})
        yield stat
    place = place_of(stat.address)
    if wire.address.on_loopback and place is not None:
        with suppress(OSError):
            place[0].joinpath(place[1]).unlink()


def _beginning(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:_COMPARED]
    with data.open("rb") as stream:
        return stream.read(_COMPARED)


def _write(file: Path, data: bytes | Path, size: int, doing: str) -> str:
    digest, written = hashlib.md5(usedforsecurity=False), 0
    with _create(file) as target:
        try:
            for piece in _pieces(data, size):
                digest.update(piece)
                left = piece
                while left:
                    left = left[target.write(left) :]
                written += len(piece)
            if not size == written == os.fstat(target.fileno()).st_size:
                raise StorageError(
                    f"{doing}: {written} of {size} bytes arrived", fix="keep the file unchanged while it is put"
                )
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    return digest.hexdigest()


def _create(file: Path) -> FileIO:
    try:
        return FileIO(file, "xb")
    except FileNotFoundError:
        # Modes as the server makes them; it begins a new folder every hour.
        file.parent.mkdir(mode=0o750, exist_ok=True)
        return FileIO(file, "xb")


def _pieces(data: bytes | Path, size: int) -> Iterator[memoryview]:
    """Give the content piece by piece; each is overwritten by the next."""
    if isinstance(data, bytes):
        whole = memoryview(data)
        yield from (whole[start : start + _PIECE] for start in range(0, len(data), _PIECE))
        return
    buffer = memoryview(bytearray(min(_PIECE, size)))
    with FileIO(data) as source:
        while count := source.readinto(buffer):
            yield buffer[:count]
