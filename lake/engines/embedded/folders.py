"""Objects as files: which keys a folder can hold, and folders filled with links."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lake.engines.embedded.ranges import digest_of, number_of
from lake.engines.embedded.store import Store
from lake.errors import BadInput, InvalidName, UnrepresentableKey

# What writers leave when they die: TensorStore's file driver (`0_0.__lock`, then renamed), the object_store crate under
# delta-rs (`part-0.parquet#1`, then renamed), and delta-rs's own log commits. Narrow on purpose: a raw tile called
# `tile#1` is data.
_LEFTOVER = re.compile(r"\.__lock$|\.(?:parquet|json|crc)#\d+$|(?:^|/)_commit_[^/]*\.json\.tmp$")


def is_leftover(path: str) -> bool:
    """Tell whether a file is the temporary file of a storage library: never committed."""
    return _LEFTOVER.search(path) is not None


def check_prefix(prefix: str) -> bytes:
    """Return `prefix` as bytes, or raise: it must end in `/` and name a folder below the root (empty: all)."""
    if prefix and not prefix.endswith("/"):
        raise BadInput(f"prefix {prefix!r} does not end in '/'", fix=f"use {prefix + '/'!r}")
    for part in prefix.split("/")[:-1]:
        _check_part(part, prefix)
    return prefix.encode()


def _check_part(part: str, key: str) -> None:
    if part in {"", ".", ".."} or "\0" in part or len(part.encode()) > 255:
        raise UnrepresentableKey(
            f"key {key!r} cannot be a file: {part[:40]!r} is no name for one",
            fix="read it with `get`, or store it under another key",
        )


def check_representable(keys: Iterable[bytes]) -> None:
    """Raise `UnrepresentableKey` if some keys, as paths, are no files or stand in each other's way."""
    files: set[bytes] = set()
    folders: set[bytes] = set()
    for key in keys:
        files.add(key)
        folder, _, name = key.rpartition(b"/")
        if name in {b"", b".", b".."} or len(name) > 255 or b"\0" in name:
            _check_part(name.decode(), key.decode())
        if folder and folder not in folders:
            for part in folder.split(b"/"):
                _check_part(part.decode(), key.decode())
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition(b"/")[0]
    if both := files & folders:
        clash = min(both).decode()
        raise UnrepresentableKey(
            f"key {clash!r} cannot be a file, because there are keys below {clash + '/'!r}",
            fix="read it with `get`, or store it under another key",
        )


def fill(store: Store, folder: Path, items: Iterable[tuple[bytes, bytes]], *, writable: bool) -> None:
    """Put objects into a folder under their keys, which must be representable.

    A read-only folder gets links alone. A writable one gets copies where the file system can share extents, and of
    small files: what is written into a copy harms nobody.
    """
    root = str(folder)
    made: set[str] = set()
    for key, value in items:
        name = key.decode()
        target = f"{root}/{name}"
        parent = target.rpartition("/")[0]
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        place(store, target, name, value, writable=writable)


def place(store: Store, target: str, key: str, value: bytes, *, writable: bool) -> None:
    """Put one object at `target`, where nothing is yet."""
    if writable:
        store.lend(digest_of(value), number_of(value), target, key)
    else:
        store.link_out(digest_of(value), number_of(value), target, key)


def walk(root: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (key, entry) of every file below `root/prefix`; `BadInput` for what is neither file nor folder."""
    pending = [prefix]
    while pending:
        folder = pending.pop()
        try:
            entries = os.scandir(f"{root}/{folder}")
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                key = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(key + "/")
                elif entry.is_file(follow_symlinks=False):
                    yield key, entry
                else:
                    raise BadInput(
                        f"{entry.path} is a link or a device, not a file", fix="remove it, or put a copy in its place"
                    )


def names_in(folder: Path) -> list[str]:
    """List a folder, sorted; a copy of a repository that is read alone may lack empty ones."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def encode_key(key: str) -> bytes:
    """Give the bytes of a key that came from a file name."""
    try:
        return key.encode()
    except UnicodeEncodeError:
        shown = key.encode(errors="surrogateescape")
        raise InvalidName(f"file name {shown!r} is not valid UTF-8", fix="rename the file") from None
