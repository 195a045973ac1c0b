"""Which contents are needed: marked range by range, each range once however many commits share it.

A mark is the first eight bytes of a digest, so a million contents take eight megabytes and are compared in one go. A
content that nobody needs and that shares eight bytes with one that somebody does stays (one in 10^12 at ten million
contents); the other way round cannot happen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lake.engines.embedded.ranges import FIXED, fixed_of
from lake.engines.embedded.store import Store
from lake.garbage import Share

Keys = NDArray[np.uint64]
_RECORD = np.dtype([("key", "<u8"), ("rest", "V24"), ("size", "<u8")])
_BATCH = 2_000_000  # records that wait to be merged into the marks


def keys_of(names: Sequence[str]) -> Keys:
    """Give the marks of names of 64 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex("".join([name[:16] for name in names])), "<u8")


class Marked:
    """A set of marks."""

    def __init__(self) -> None:
        self._keys: Keys = np.empty(0, np.uint64)

    def add(self, keys: Keys, sizes: Keys) -> Share:
        """Mark contents; tells how many were not marked before, and their bytes."""
        keys, first = np.unique(keys, return_index=True)
        fresh = ~self.holds(keys)
        self._keys = np.union1d(self._keys, keys)
        return Share(int(fresh.sum()), int(sizes[first][fresh].sum()))

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Tell which of these are marked."""
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.equal(self._keys[at], keys)


class Marks:
    """The marked objects and manifests of a repository."""

    def __init__(self, manifests: Store) -> None:
        self.objects = Marked()
        self.manifests: set[bytes] = set()  # digests of trees and ranges
        self._store = manifests

    def add_trees(self, trees: Iterable[bytes], tick: Callable[[], None] = lambda: None) -> Share:
        """Mark trees and all they hold, calling `tick` after each tree; tells what was not marked before.

        Raises `CorruptObject` for a manifest that is damaged or missing.
        """
        share = Share()
        waiting: list[NDArray[np.void]] = []
        for tree in trees:
            if tree not in self.manifests:
                top = self._read(tree)
                share += Share(1, len(top))
                for block in self._new_ranges(fixed_of(top, tree.hex())):
                    share += Share(1, len(block))
                    waiting.append(np.frombuffer(fixed_of(block, "range"), _RECORD))
                if sum(map(len, waiting)) > _BATCH:
                    share += self._add(np.concatenate(waiting))
                    waiting = []
            tick()
        return share + self._add(np.concatenate(waiting)) if waiting else share

    def _new_ranges(self, records: memoryview) -> Iterator[bytes]:
        """Yield those ranges of a tree that no tree before had."""
        for at in range(0, len(records), FIXED):
            digest = bytes(records[at : at + 32])
            if digest not in self.manifests:
                yield self._read(digest)

    def _read(self, digest: bytes) -> bytes:
        block = self._store.read(digest, "manifest")
        self.manifests.add(digest)
        return block

    def add_values(self, values: Iterable[bytes]) -> Share:
        """Mark the objects of single records."""
        return self._add(np.frombuffer(b"".join([value[:FIXED] for value in values]), _RECORD))

    def _add(self, records: NDArray[np.void]) -> Share:
        return self.objects.add(records["key"], records["size"])
