"""Trees: the content of a commit as a list of ranges, shared between commits wherever nothing changed.

A range ends at a boundary key (`ranges.is_boundary`), so how a tree is cut depends on its keys alone, not on the order
of edits: equal content gives an equal tree, and a change rewrites only the ranges it falls into.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Generic, TypeVar

from lake.engines.embedded.files import ahead
from lake.engines.embedded.ranges import cut, decode, differing, encode, is_boundary, number_of, pack, replaced
from lake.engines.embedded.store import Batch, Store

CACHED_ENTRIES = 300_000
T = TypeVar("T")
Records = tuple[list[bytes], list[bytes]]
Edits = Mapping[bytes, bytes | None]
Part = tuple[list[bytes], list[bytes | None]]  # edits of one range, sorted: their keys and their values
Delta = tuple[bytes, bytes | None, bytes | None]
Group = list[tuple[int, bytes]]  # ranges of the left (0) and right (1) tree, by digest


@dataclass(frozen=True, slots=True)
class Tree:
    """The ranges of one commit, in key order."""

    digest: bytes
    firsts: tuple[bytes, ...]
    lasts: tuple[bytes, ...]
    ranges: tuple[bytes, ...]  # digests
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class _Draft:
    """A tree under construction; its new ranges are written as they come."""

    batch: Batch
    firsts: list[bytes] = field(default_factory=list)
    lasts: list[bytes] = field(default_factory=list)
    ranges: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def keep(self, tree: Tree, start: int, end: int) -> None:
        self.firsts += tree.firsts[start:end]
        self.lasts += tree.lasts[start:end]
        self.ranges += tree.ranges[start:end]
        self.counts += tree.counts[start:end]

    def add(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self.firsts.append(keys[0])
        self.lasts.append(keys[-1])
        self.ranges.append(self.batch.add(encode(keys, values)))
        self.counts.append(len(keys))

    def replace(self, tree: Tree, which: int, digest: bytes) -> None:
        """Put a range with the same keys in the place of one."""
        self.keep(tree, which, which + 1)
        self.ranges[-1] = digest

    def finish(self) -> Tree:
        values = [pack(*item) for item in zip(self.ranges, self.counts, self.firsts, strict=True)]
        # The tree names its ranges, but means nothing before a commit names it: all get their names at once.
        digest = self.batch.add(encode(self.lasts, values))
        return Tree(digest, tuple(self.firsts), tuple(self.lasts), tuple(self.ranges), tuple(self.counts))


class _Cache(Generic[T]):
    """The most recently used values, up to a total weight."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._items: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: bytes) -> bool:
        return key in self._items

    def get(self, key: bytes, load: Callable[[], tuple[T, int]]) -> T:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        value, weight = load()
        with self._lock:
            if key not in self._items:
                self._items[key] = (value, weight)
                self._total += weight
            while self._total > self._limit and len(self._items) > 1:
                _, (_, lighter) = self._items.popitem(last=False)
                self._total -= lighter
        return value


class Trees:
    """Reads, edits and compares trees in a store of manifests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ranges: _Cache[Records] = _Cache(CACHED_ENTRIES)
        self._trees: _Cache[Tree] = _Cache(CACHED_ENTRIES)

    # -- reading ------------------------------------------------------------------------------------------------------
    def load(self, digest: bytes) -> Tree:
        """Read a tree."""

        def read() -> tuple[Tree, int]:
            keys, values = decode(self._store.read(digest, "manifest"), digest.hex())
            tree = Tree(
                digest,
                tuple(value[40:] for value in values),
                tuple(keys),
                tuple(value[:32] for value in values),
                tuple(number_of(value) for value in values),
            )
            return tree, len(keys) + 1

        return self._trees.get(digest, read)

    def records(self, digest: bytes) -> Records:
        """Read a range: its keys and its values."""

        def read() -> tuple[Records, int]:
            keys, values = decode(self._store.read(digest, "manifest range"), digest.hex())
            return (keys, values), len(keys)

        return self._ranges.get(digest, read)

    def find(self, tree: Tree, key: bytes) -> bytes | None:
        """Give the value of a key, or None."""
        which = bisect_left(tree.lasts, key)
        if which == len(tree.lasts) or key < tree.firsts[which]:
            return None
        keys, values = self.records(tree.ranges[which])
        at = bisect_left(keys, key)
        return values[at] if at < len(keys) and keys[at] == key else None

    def items(self, tree: Tree, prefix: bytes = b"", after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the records whose key starts with `prefix` and is greater than `after`, sorted."""
        low = max(prefix, after)
        for which in range(bisect_left(tree.lasts, low), len(tree.lasts)):
            first = tree.firsts[which]
            if first > low and not first.startswith(prefix):
                return
            keys, values = self.records(tree.ranges[which])
            start = bisect_right(keys, after) if after >= prefix and after else bisect_left(keys, prefix)
            if tree.lasts[which].startswith(prefix):
                yield from zip(islice(keys, start, None), islice(values, start, None), strict=True)
                continue
            for at in range(start, len(keys)):
                if not keys[at].startswith(prefix):
                    return
                yield keys[at], values[at]

    # -- comparing ----------------------------------------------------------------------------------------------------
    def delta(self, left: Tree, right: Tree, prefix: bytes = b"") -> Iterator[Delta]:
        """Yield (key, value in left, value in right) where they differ, sorted; ranges in both are never read."""
        if left.digest == right.digest:
            return
        both = set(left.ranges).intersection(right.ranges)
        spans = [
            (first, last, side, digest)
            for side, tree in enumerate((left, right))
            for first, last, digest in zip(tree.firsts, tree.lasts, tree.ranges, strict=True)
            if digest not in both and last >= prefix and (first <= prefix or first.startswith(prefix))
        ]
        spans.sort()
        groups: list[Group] = []
        reach = b""
        for first, last, side, digest in spans:
            # Only ranges that overlap can hold the same key.
            if groups and first <= reach:
                groups[-1].append((side, digest))
            else:
                groups.append([(side, digest)])
            reach = max(reach, last)
        for found in ahead(self._delta_of, groups):
            yield from (item for item in found if item[0].startswith(prefix))

    def _delta_of(self, group: Group) -> Sequence[Delta]:
        left_right = [digest for _, digest in sorted(group)]
        if len(group) == 2 and group[0][0] != group[1][0] and not all(digest in self._ranges for digest in left_right):
            blocks = [self._store.read(digest, "manifest range") for digest in left_right]
            found = differing(*blocks)
            if found is not None:
                return found
        sides: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
        for side, digest in group:
            sides[side].update(zip(*self.records(digest), strict=True))
        left, right = sides
        return [
            (key, left.get(key), right.get(key)) for key in sorted({key for key, _ in left.items() ^ right.items()})
        ]

    # -- editing ------------------------------------------------------------------------------------------------------
    def empty(self) -> Tree:
        """Give the tree without objects, storing it."""
        with self._store.batch() as batch:
            return _Draft(batch).finish()

    def edit(self, tree: Tree, edits: Edits, made: tuple[Tree, Tree] | None = None) -> Tree:
        """Give the tree with `edits` applied (None removes), stored durably; the same tree if nothing changes.

        Parameters
        ----------
        made : (Tree, Tree)
            A base and what these very edits made of it: where `tree` still holds a range of the base, the range that
            came of it is taken as it is.
        """
        if not edits:
            return tree
        with self._store.batch() as batch:
            draft = _Draft(batch)
            self._edit(tree, edits, draft, _Made(*made) if made else None)
            return draft.finish()

    def _edit(self, tree: Tree, edits: Edits, draft: _Draft, taken: "_Made | None") -> None:
        # The records that wait for a boundary: their range's own one was removed, or never was (the last range).
        waiting: Records = ([], [])
        done = 0
        parts = list(_by_range(tree, edits))
        swapped = ahead(lambda item: self._replaced(tree, *item, draft.batch, taken), parts)
        for (which, part), digest in zip(parts, swapped, strict=True):
            if which > done and waiting[0]:
                done, waiting = self._settle(tree, draft, done, which, waiting)
            draft.keep(tree, done, which)
            done = which + 1
            if taken and not waiting[0] and (there := taken.instead_of(tree, which, part[0][0])) is not None:
                draft.keep(taken.tree, there, there + 1)
                continue
            if digest is not None:
                if not waiting[0]:
                    draft.replace(tree, which, digest)
                    continue
                draft.batch.drop(digest)
            old = self.records(tree.ranges[which]) if which < len(tree.ranges) else ([], [])
            merged = _apply(old, part)
            if not waiting[0] and which < len(tree.ranges) - 1 and merged[0] is old[0]:
                draft.add(*merged)  # the same keys are cut as they were
                continue
            waiting = _emit(draft, (waiting[0] + merged[0], waiting[1] + merged[1]))
        if waiting[0]:
            done, waiting = self._settle(tree, draft, done, len(tree.ranges), waiting)
        draft.keep(tree, done, len(tree.ranges))
        if waiting[0]:
            draft.add(*waiting)

    def _replaced(self, tree: Tree, which: int, part: Part, batch: Batch, taken: "_Made | None") -> bytes | None:
        """Change values alone, in the bytes of a range that is not decoded yet; None if that cannot be done."""
        if which >= len(tree.ranges) or tree.ranges[which] in self._ranges:
            return None
        if taken and taken.instead_of(tree, which, part[0][0]) is not None:
            return None
        block = replaced(self._store.read(tree.ranges[which], "manifest range"), *part)
        return None if block is None else batch.add(block)

    def _settle(self, tree: Tree, draft: _Draft, done: int, until: int, waiting: Records) -> tuple[int, Records]:
        """Let waiting records run into the unedited ranges that follow, until a boundary ends them."""
        while waiting[0] and done < until:
            keys, values = self.records(tree.ranges[done])
            waiting = _emit(draft, (waiting[0] + keys, waiting[1] + values))
            done += 1
        return done, waiting


def _by_range(tree: Tree, edits: Edits) -> Iterator[tuple[int, Part]]:
    """Group sorted edits by the range they fall into; what lies behind the last range goes with it."""
    keys = sorted(edits)
    # What is staged comes sorted: then there is nothing to look up.
    values = list(edits.values()) if keys == list(edits) else [edits[key] for key in keys]
    top = max(len(tree.lasts) - 1, 0)
    start = 0
    while start < len(keys):
        which = min(bisect_left(tree.lasts, keys[start]), top)
        end = len(keys) if which == top else bisect_right(keys, tree.lasts[which])
        yield which, (keys[start:end], values[start:end])
        start = end


class _Made:
    """What edits made of the ranges of a base."""

    def __init__(self, base: Tree, tree: Tree) -> None:
        self.tree = tree
        self._base = set(base.ranges)
        self._places = {ends: place for place, ends in enumerate(zip(tree.firsts, tree.lasts, strict=True))}

    def instead_of(self, tree: Tree, which: int, first_edit: bytes) -> int | None:
        """Say which range takes the place of one of `tree`, or None if that one must be edited."""
        # The last range may lack a boundary, and an edit before the first key may have moved the boundary before it.
        if which >= len(tree.ranges) - 1 or tree.ranges[which] not in self._base or first_edit < tree.firsts[which]:
            return None
        return self._places.get((tree.firsts[which], tree.lasts[which]))


def _apply(records: Records, part: Part) -> Records:
    """Apply edits to records; where they change values alone, the list of keys is the same one."""
    old, values = records
    fresh = [value for value in part[1] if value is not None]
    if len(fresh) == len(part[0]):
        if not old:
            return part[0], fresh
        places = [bisect_left(old, key) for key in part[0]] if len(fresh) <= len(old) else []
        if places and all(at < len(old) and old[at] == key for at, key in zip(places, part[0], strict=True)):
            changed = list(values)
            for at, replacement in zip(places, fresh, strict=True):
                changed[at] = replacement
            return old, changed
    merged = dict(zip(*records, strict=True))
    for key, value in zip(*part, strict=True):
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    keys = sorted(merged)
    return keys, [merged[key] for key in keys]


def _emit(draft: _Draft, records: Records) -> Records:
    """Add the ranges that end at a boundary; returns what is left waiting for one."""
    keys, values = records
    for start, end in cut(keys):
        if end == len(keys) and not is_boundary(keys[-1]):
            return keys[start:], values[start:]
        draft.add(keys[start:end], values[start:end])
    return [], []


def overlay(
    items: Iterator[tuple[bytes, bytes]], staged: Sequence[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes]]:
    """Merge sorted staged records (None removes) over sorted committed ones."""
    if not staged:
        yield from items
        return
    last: bytes | None = None
    both = heapq.merge(((key, 0, value) for key, value in staged), ((key, 1, value) for key, value in items))
    for key, _, value in both:
        if key != last and value is not None:
            yield key, value
        last = key
