"""Objects of a lakeFS repository: bytes, listings, batches of deletes."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lake.engines.lakefs.checksums import fits
from lake.engines.lakefs.landing import public_metadata
from lake.engines.lakefs.wire import PAGE, Wire, segment
from lake.errors import BadInput, CorruptObject, NotFound, ProtectedBranch, StorageError
from lake.names import MAX_KEY_BYTES
from lake.repository import Metadata, ObjectStat

# Sent as headers, names lose their case and values may not hold control or non-ASCII characters.
_HEADER_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(\s*;\s*[\w!#$&^.+-]+=([\w!#$&^.+-]+|\"[\x20\x21\x23-\x7e]*\"))*")
STAT_FIELDS = ("path", "checksum")
_SMALL = 128 << 10


def stat_from(entry: dict[str, Any]) -> ObjectStat:
    """Read one entry of a listing."""
    return ObjectStat(
        key=entry["path"],
        size=int(entry.get("size_bytes") or 0),
        checksum=entry["checksum"],
        content_type=entry.get("content_type") or "application/octet-stream",
        metadata=public_metadata(entry.get("metadata")),
        address=entry.get("physical_address", ""),
    )


def put(wire: Wire, branch: str, key: str, data: bytes | Path, content_type: str, metadata: Metadata) -> ObjectStat:
    """Upload bytes or stream a file; names and branch are checked by the caller."""
    check_content_type(key, content_type)
    doing = f"put {key!r} on {branch!r}"
    headers = {"Content-Type": content_type}
    in_headers = all(_HEADER_NAME.fullmatch(n) and _HEADER_VALUE.fullmatch(v) for n, v in metadata.items())
    if in_headers:
        headers |= {f"X-Lakefs-Meta-{name}": value for name, value in metadata.items()}
    content, size = content_of(data)
    path = f"/branches/{segment(branch)}/objects"
    # Sending the same bytes to the same key twice is the same as once, so a broken connection is tried again.
    answer = wire.send("POST", path, {"path": key}, content, size, headers, doing=doing)
    stat = stat_from(wire.read(answer, fields=STAT_FIELDS, doing=doing))
    if stat.size != size:
        raise StorageError(
            f"{doing}: {stat.size} of {size} bytes arrived", fix="keep the file unchanged while it is put"
        )
    if metadata and not in_headers:
        wire.call(
            wire.sdk.objects_api.update_object_user_metadata,
            wire.name,
            branch,
            key,
            {"set": dict(metadata)},
            doing=doing,
            safe=True,
        )
        stat = describe(wire, branch, key, doing)
    return stat


def check_content_type(key: str, content_type: str) -> None:
    """Raise `BadInput` for a content type that the server would stumble over."""
    if not _MEDIA_TYPE.fullmatch(content_type) or content_type.lower().startswith("multipart/form-data"):
        raise BadInput(f"content type {content_type!r} of {key!r} is not valid", fix="give type/subtype")


def content_of(data: bytes | Path) -> tuple[bytes | Path, int]:
    """Give what is sent and its size; a small file is read here, one packet being faster than `sendfile`."""
    if not isinstance(data, Path):
        content = bytes(data)
        return content, len(content)
    try:
        with data.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _SMALL:
                return data, size
            content = stream.read()
            return content, len(content)
    except OSError as error:
        raise NotFound(f"{data} cannot be read: {error.strerror}", fix="give a readable file") from error


def get(wire: Wire, ref: str, key: str) -> bytes:
    """Read an object and compare it with the checksum that was recorded when it was written."""
    doing = f"get {key!r} at {ref!r}"
    answer = wire.request("GET", f"/refs/{segment(ref)}/objects", {"path": key}, doing=doing)
    data: bytes = answer.data
    checksum = answer.headers.get("ETag", "").strip('"')
    if fits(checksum, len(data), lambda: [data]) is False:
        raise CorruptObject(
            f"{doing}: the bytes do not have the recorded checksum {checksum}",
            fix="restore the object's file in the server's block store, or revert to a commit without it",
        )
    return data


def describe(wire: Wire, ref: str, key: str, doing: str) -> ObjectStat:
    """Describe one object."""
    return stat_from(wire.json(f"/refs/{segment(ref)}/objects/stat", {"path": key}, fields=STAT_FIELDS, doing=doing))


def listing(wire: Wire, ref: str, prefix: str, after: str, limit: int | None) -> Iterator[ObjectStat]:
    """Yield objects page by page."""
    pages = wire.pages(
        f"/refs/{segment(ref)}/objects/ls",
        {"prefix": prefix},
        fields=STAT_FIELDS,
        doing=f"list {ref!r}",
        after=after,
        limit=limit,
    )
    return (stat_from(entry) for entry in pages)


def delete(wire: Wire, branch: str, keys: Collection[str]) -> None:
    """Stage removals, 1,000 a request; the server answers 200 with an error per object, which is raised here."""
    # What cannot be a key cannot be there either; the server would refuse the whole batch.
    wanted = [key for key in keys if 1 <= len(key.encode(errors="surrogatepass")) <= MAX_KEY_BYTES]
    for start in range(0, len(wanted), PAGE):
        batch = wanted[start : start + PAGE]
        answer = wire.call(
            wire.sdk.objects_api.delete_objects,
            wire.name,
            branch,
            {"paths": batch},
            doing=f"delete from {branch!r}",
            safe=True,
        )
        errors = answer.errors or []
        if not errors:
            continue
        if any(error.status_code == 403 for error in errors):
            raise ProtectedBranch(f"branch {branch!r} is protected", fix="open a session, or merge into it")
        first = errors[0]
        raise StorageError(
            f"delete from {branch!r}: {len(errors)} of {len(batch)} objects refused, the first {first.path!r}: "
            f"{first.message}",
            fix="try again",
        )
