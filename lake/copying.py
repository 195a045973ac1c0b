"""Copies the objects of commits from one repository to another, each content once, and compares digests.

Engines record different checksums (sha256 embedded, md5 on lakeFS), so every content that is copied is compared with
the checksum its source recorded, and with the one its destination recorded; what the two called it is kept, so that
whole trees can be compared afterwards without reading them again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from types import MappingProxyType

import lake
from lake.clones import Held, Importer
from lake.errors import CorruptObject
from lake.repository import Change, CommitId, ObjectStat, Progress, Repository
from lake.wording import counted

_REQUESTS = 8  # at a time, to or from a server
_FILES = 3  # between folders: more only wait for one another
_BATCH = 512
_BATCH_BYTES = 256 << 20  # objects of a server are held in memory while they are on their way
_FEW = 16  # so many are looked up one by one; more by listing
_CHUNK = 1 << 20

Identity = tuple[int, str, str, tuple[tuple[str, str], ...]]


def same_place(left: str, right: str) -> bool:
    """Tell whether two locations are one, be it by a link."""
    if any(place.startswith(lake.SERVER_SCHEME) for place in (left, right)):
        return left == right
    return Path(left).samefile(right)


@dataclass(slots=True)
class Count:
    """What was copied, or would be."""

    objects: int = 0
    contents: int = 0
    bytes: int = 0


def algorithm(checksum: str) -> str:
    """Name the digest a checksum is: "sha256", "md5", or "" for one that cannot be computed from the bytes."""
    plain = all(digit in "0123456789abcdef" for digit in checksum)
    return {64: "sha256", 32: "md5"}.get(len(checksum), "") if plain else ""


def digest_of(data: bytes | Path, name: str) -> str:
    """Give the digest `name` of bytes or of a file, hexadecimal."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, name).hexdigest()
    return hashlib.new(name, data, usedforsecurity=False).hexdigest()


def stats_of(repo: Repository, commit: CommitId, keys: Sequence[str]) -> Iterator[ObjectStat]:
    """Describe the objects `keys` (in byte order) of a commit, by as few requests as their places allow."""
    at = singly = 0
    while at < len(keys):
        yield repo.stat(commit, keys[at])
        at += 1
        singly -= 1
        if singly > 0 or len(keys) - at < _FEW:
            continue
        # Neighbours of what was just looked up are cheaper listed, as long as the listing keeps meeting wanted keys.
        wanted = set(keys[at : at + 1000])
        met = 0
        for stat in repo.list(commit, after=keys[at - 1], limit=1000):
            if stat.key in wanted:
                yield stat
                met += 1
        at += met
        singly = 0 if met > _FEW else _FEW


class Copier:
    """Copies objects into work branches of `dest`."""

    def __init__(
        self,
        source: Repository,
        dest: Repository,
        importer: Importer,
        progress: Progress,
        parts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.total = Count()
        self._progress = progress
        self._parts = parts  # keys that an earlier run has sent, and the branches of `dest` where they are staged
        self.source, self.dest, self._importer = source, dest, importer
        self._held: dict[Identity, Held] = {}
        self._fresh: list[Identity] = []
        self._same: set[tuple[int, str, str]] = set()
        self._lock = Lock()

    def stage(self, branch: str, commit: CommitId, changes: Sequence[Change]) -> None:
        """Stage on `branch` what `changes` say of `commit`."""
        done = 0
        if removed := [change.key for change in changes if change.kind == "removed"]:
            self.dest.delete(branch, removed)
            done = len(removed)
        stats = stats_of(self.source, commit, [change.key for change in changes if change.kind != "removed"])
        remote = any(side.location.startswith(lake.SERVER_SCHEME) for side in (self.source, self.dest))
        with ThreadPoolExecutor(_REQUESTS if remote else _FILES) as pool:
            for batch in _batches(stats):
                # Of equal contents one is sent; the others then find it here.
                first = {stat.identity: stat for stat in reversed(batch) if stat.identity not in self._held}
                again = [stat for stat in batch if first.get(stat.identity) is not stat]
                for group in (list(first.values()), again):
                    for stat, held in zip(group, pool.map(partial(self._place, branch, commit), group), strict=True):
                        self._note(stat, held)
                done += len(batch)
                self._progress("objects", done, len(changes))
        self.total.objects += done

    def settle(self, commit: CommitId) -> None:
        """Note that what was staged is at `commit` now: the work branch moves on."""
        for identity in self._fresh:
            self._held[identity] = replace(self._held[identity], ref=commit)
        self._fresh.clear()

    def is_same(self, commit: CommitId, stat: ObjectStat, clone: CommitId, copy: ObjectStat, *, reread: bool) -> bool:
        """Tell whether `copy` at `clone` holds the bytes of `stat` at `commit`.

        By recorded checksums if both are of one kind or this run has sent the content; else by reading the source,
        and with `reread` by reading both.
        """
        pair = (stat.size, stat.checksum, copy.checksum)
        if pair not in self._same:
            if not reread and stat.checksum == copy.checksum and algorithm(stat.checksum):
                return True
            held = self._held.get(stat.identity)
            if not reread and held is not None:
                return held.checksum == copy.checksum
            data = bytes_of(self.source, commit, stat)
            if reread or not algorithm(copy.checksum):
                sides = (data, bytes_of(self.dest, clone, copy))
                same = digest_of(sides[0], "sha256") == digest_of(sides[1], "sha256")
            else:
                same = same_content(stat, copy, data)
            if not same:
                return False
            self._same.add(pair)
        return True

    def _note(self, stat: ObjectStat, held: Held | None) -> None:
        # What is found by its checksum alone need not be remembered.
        if held is not None and not (held.checksum == stat.checksum and self._importer.content_addressed):
            self._held[stat.identity] = held
            self._fresh.append(stat.identity)

    def _sent(self, stat: ObjectStat) -> Held | None:
        """Find what an earlier run has sent under this key, if that is the content, told without a transfer."""
        if (branch := self._parts.get(stat.key)) is None:
            return None
        copy = self.dest.stat(branch, stat.key)
        if copy.size != stat.size:
            return None
        if stat.checksum != copy.checksum or not algorithm(stat.checksum):
            # The two record different digests: the side that lies on this machine is read.
            data: bytes | Path | None = _file_of(stat)
            if data is None and not self.dest.location.startswith(lake.SERVER_SCHEME):
                data = self.dest.get(branch, stat.key)
            if data is None or not same_content(stat, copy, data):
                return None
        return Held(branch, stat.key, copy.size, copy.checksum)

    def _place(self, branch: str, commit: CommitId, stat: ObjectStat) -> Held | None:
        """Stage one object: from what the destination has, if it does (then None), else by sending it."""
        here = self._held.get(stat.identity) or self._sent(stat) or Held("", stat.key, stat.size, stat.checksum)
        if self._importer.reuse(branch, stat.key, here, stat.content_type, stat.metadata):
            return None
        data = bytes_of(self.source, commit, stat)
        made = self.dest.put(branch, stat.key, data, content_type=stat.content_type, metadata=stat.metadata)
        if made.size != stat.size or not same_content(stat, made, data):
            raise CorruptObject(
                f"{stat.key!r} at {commit[:12]} does not have the size and checksum recorded for it: "
                f"{counted(stat.size, 'byte')}, {stat.checksum}",
                fix="restore it at the source, then clone again; what was copied is kept",
            )
        with self._lock:
            self.total.contents += 1
            self.total.bytes += stat.size
        return Held(branch, stat.key, made.size, made.checksum)


def bytes_of(repo: Repository, commit: CommitId, stat: ObjectStat) -> bytes | Path:
    """Give an object as the file it lies in, where it is one on this machine, else its bytes."""
    return _file_of(stat) or repo.get(commit, stat.key)


def _file_of(stat: ObjectStat) -> Path | None:
    place = Path(stat.address)
    return place if stat.address and place.is_absolute() and place.is_file() else None


def same_content(left: ObjectStat, right: ObjectStat, data: bytes | Path) -> bool:
    """Tell whether both recorded checksums are those of `data`, of which one side may have computed its own."""
    names = {name for stat in (left, right) if (name := algorithm(stat.checksum))}
    if left.checksum == right.checksum and names:
        return True
    digests = {name: digest_of(data, name) for name in names}
    return all(stat.checksum == digests.get(algorithm(stat.checksum), stat.checksum) for stat in (left, right))


def compare(copier: Copier, commit: CommitId, clone: CommitId, *, reread: bool) -> int:
    """Compare a whole tree with that of its clone, by key, size, type, metadata and digest; returns its objects.

    Raises `CorruptObject` naming the first object that differs.
    """
    count = 0
    for stat, copy in zip_longest(copier.source.list(commit), copier.dest.list(clone)):
        told = [side and (side.key, side.size, side.content_type, dict(side.metadata)) for side in (stat, copy)]
        if told[0] != told[1] or not copier.is_same(commit, stat, clone, copy, reread=reread):
            raise CorruptObject(
                f"{(stat or copy).key!r} at {commit[:12]} is not the same in its clone {clone[:12]}",
                fix="see with `emlake scrub` which side is damaged; no branch was moved",
            )
        count += 1
    return count


def _batches(stats: Iterable[ObjectStat]) -> Iterator[list[ObjectStat]]:
    batch: list[ObjectStat] = []
    size = 0
    for stat in stats:
        if batch and (len(batch) >= _BATCH or size + stat.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(stat)
        size += stat.size
    if batch:
        yield batch
