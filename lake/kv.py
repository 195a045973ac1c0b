"""Keys and bytes below a `Location`, the same for a folder and for S3, without going through a repository."""

import re
from typing import Any

import tensorstore as ts

from lake import reach
from lake.errors import LakeError, NotAuthorized, StorageError
from lake.location import Location
from lake.room import code_of, no_room

# What TensorStore raises, by the status of the operation; most are plain ValueError.
NATIVE_ERRORS = (ValueError, OSError, NotImplementedError, IndexError, RuntimeError)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_GONE = ("connection refused", "error sending request", "could not connect", "connecterror", "curl error", "http error")
_UNTOLD = "internalerror"  # what a gateway says whose disk is full, for one
# A status stands alone; in the id of a request or in a key its digits are part of more.
_FORBIDDEN = re.compile(r"(?<![\w/.-])40[13](?![\w/-]|\.\w)|forbidden|unauthorized|accessdenied")


def open_kv(location: Location, context: "ts.Context | None" = None) -> Any:
    """Open the TensorStore key-value store; writing a key makes a file under a temporary name and renames it."""
    reach.check(location)
    return ts.KvStore.open(location.kvstore(), context=context).result()


def list_keys(location: Location) -> list[str]:
    """List the keys below a location, sorted; empty if there is nothing."""
    try:
        return sorted(key.decode() for key in reach.settle(open_kv(location).list(), location))
    except NATIVE_ERRORS as error:
        raise storage_error(error, location) from error


def clear(location: Location) -> None:
    """Remove everything below a writable location."""
    try:
        reach.settle(open_kv(location).delete_range(ts.KvStore.KeyRange()), location)
    except NATIVE_ERRORS as error:
        raise storage_error(error, location) from error


def storage_error(error: Exception, location: Location, needed: int = 0) -> LakeError:
    """Turn an error of a native library into ours. These libraries tell causes apart in their text alone.

    `needed` bytes were to be written, if that is known: what a full disk's error tells.
    """
    if location.s3 is None and (code := code_of(error, location.root)):
        return no_room(location.path, needed, code)
    text = " ".join(_COLOUR.sub("", str(error)).split())
    lowered = text.lower()
    lost = location.s3 is not None and reach.lately_lost(location.s3.endpoint)
    if lost or isinstance(error, ConnectionError) or any(sign in lowered for sign in _GONE):
        return reach.gone(location, text)
    if location.s3 is not None and _FORBIDDEN.search(lowered):
        return NotAuthorized(f"{location.uri}: {text}", fix="check LAKECTL_CREDENTIALS_* or ~/.lakectl.yaml")
    if location.s3 is not None and location.writable and _UNTOLD in lowered:
        # Costs 0.8 s to import, and is seldom needed.
        from lake.engines.lakefs.gateway import trouble_behind

        trouble = trouble_behind(location, location.s3, needed)
        if trouble is not None:
            return trouble
    return StorageError(f"{location.uri}: {text}", fix="check the disk and the connection, then try again")
