"""Reads every manifest there is, checks it against its name, and tells what commits hold, and which.

Ranges are shared between commits, so each block is read once, whatever the number of commits; its records are taken
from the block's bytes as one array, with no Python object per entry.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lake.engines.embedded.ranges import FIXED, decode, digest_of, fixed_of
from lake.engines.embedded.store import Store
from lake.integrity import RESTORE_MANIFEST, Fault
from lake.repository import Progress

_COMPACT = 4_000_000  # records; above this, what is known of each content is merged
Rows = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
_NOTHING: Rows = (np.empty((0, 32), np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
Holders = tuple[set[bytes], set[bytes]]  # trees, keys


class Manifests:
    """All blocks below `manifests/`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[bytes] = set()
        self._bad: set[bytes] = set()
        self._trees: dict[bytes, None] = {}
        self._rows: list[Rows] = []
        self._pending = 0
        self.count = 0
        self.bytes = 0

    def read(self, trees: Sequence[tuple[int, bytes]], progress: Progress) -> list[Fault]:
        """Check the trees of all commits (sequence number, digest), their ranges, and what lies there besides."""
        faults: list[Fault] = []
        for done, (seq, tree) in enumerate(trees, 1):
            progress("manifests", done, len(trees))
            if tree in self._trees or tree in self._bad:
                continue
            block = self._check(tree, faults)
            if block is None:
                continue
            self._trees[tree] = None
            for value in decode(block, tree.hex())[1]:
                digest = digest_of(value)
                if digest in self._seen or digest in self._bad:
                    continue
                records = self._check(digest, faults)
                if records is not None:
                    self._seen.add(digest)
                    self._add(_fixed(records, digest), seq)
        self._leftovers(faults)
        return faults

    def _check(self, digest: bytes, faults: list[Fault]) -> bytes | None:
        path = self._path(digest)
        try:
            try:
                block = path.read_bytes()
            except FileNotFoundError:
                path = self._path(digest)  # a collector has just condemned it, or put it back
                block = path.read_bytes()
        except OSError as error:
            wrong = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        else:
            self.count += 1
            self.bytes += len(block)
            if hashlib.sha256(block).digest() == digest:
                return block
            wrong = "has other bytes than its digest says"
        self._bad.add(digest)
        faults.append(Fault("manifest", digest.hex(), f"{path} {wrong}", RESTORE_MANIFEST))
        return None

    def _path(self, digest: bytes) -> Path:
        return Path(self._store.locate(digest))

    def _leftovers(self, faults: list[Fault]) -> None:
        """Check manifests that no commit names: a later commit would take them for sound."""
        for folder in os.scandir(self._store.root):
            for name in os.listdir(folder.path):
                try:
                    digest = bytes.fromhex(folder.name + name)
                except ValueError:
                    continue
                if digest not in self._seen and digest not in self._trees and digest not in self._bad:
                    lost: list[Fault] = []
                    self._check(digest, lost)
                    # One that has gone meanwhile was nobody's.
                    faults += lost if os.path.exists(self._store.locate(digest)) else []

    # -- contents -----------------------------------------------------------------------------------------------------
    def _add(self, records: NDArray[np.uint8], seq: int) -> None:
        sizes = np.ascontiguousarray(records[:, 32:FIXED]).view("<i8").ravel().astype(np.int64)
        self._rows.append((records[:, :32], sizes, np.full(len(records), seq, np.int64)))
        self._pending += len(records)
        if self._pending > _COMPACT:
            self._rows = [_merged(self._rows)]
            self._pending = 0

    def contents(self) -> Rows:
        """Give digests (n, 32), sizes and births, each content once, sorted by digest."""
        self._rows = [_merged(self._rows)] if self._rows else [_NOTHING]
        return self._rows[0]

    # -- who holds what -----------------------------------------------------------------------------------------------
    def holders(self, contents: Collection[bytes], blocks: Collection[bytes]) -> dict[bytes, Holders]:
        """Find the trees that hold damaged contents or name damaged blocks, and the keys of the contents."""
        found: dict[bytes, Holders] = {name: (set(), set()) for name in (*contents, *blocks)}
        if not found:
            return found
        for block in blocks:
            found[block][0].add(block)  # a damaged tree is that of its commits
        heads = np.array([int.from_bytes(name[:8], "big") for name in contents], np.uint64)
        in_range: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for tree in self._trees:
            for value in self._values(tree):
                digest = digest_of(value)
                if digest in blocks:
                    found[digest][0].add(tree)
                if digest not in in_range:
                    in_range[digest] = self._records_of(digest, contents, heads)
                for name, key in in_range[digest]:
                    found[name][0].add(tree)
                    found[name][1].add(key)
        return found

    def _values(self, tree: bytes) -> list[bytes]:
        """Give what a tree names; nothing if it was collected meanwhile."""
        with suppress(FileNotFoundError):
            return decode(self._path(tree).read_bytes(), tree.hex())[1]
        return []

    def _records_of(
        self, digest: bytes, contents: Collection[bytes], heads: NDArray[np.uint64]
    ) -> list[tuple[bytes, bytes]]:
        """Give (content, key) for the wanted contents in a range."""
        if digest in self._bad:
            return []
        try:
            block = self._path(digest).read_bytes()
        except FileNotFoundError:
            return []
        first = np.ascontiguousarray(_fixed(block, digest)[:, :8]).view(">u8").ravel().astype(np.uint64)
        if not np.isin(first, heads).any():
            return []
        return [(value[:32], key) for key, value in _pairs(block, digest) if value[:32] in contents]


def _fixed(block: bytes, digest: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(fixed_of(block, digest.hex()), np.uint8).reshape(-1, FIXED)


def _pairs(block: bytes, digest: bytes) -> Iterable[tuple[bytes, bytes]]:
    return zip(*decode(block, digest.hex()), strict=True)


def _merged(rows: Sequence[Rows]) -> Rows:
    """Merge rows, keeping of each digest the lowest birth."""
    names = np.ascontiguousarray(np.concatenate([row[0] for row in rows]))
    sizes, births = (np.concatenate([row[at] for row in rows]) for at in (1, 2))
    words = names.view(">u8")
    order = np.lexsort((births, words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    words = words[order]
    first = np.ones(len(order), bool)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    kept = order[first]
    return names[kept], sizes[kept], births[kept]
