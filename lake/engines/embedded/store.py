"""The content-addressed store: one file per content, named by its sha256, never rewritten.

A name in the store implies that its bytes were on the disk before the name was: bytes are synced under a temporary name
(or in the workspace where they were written), then renamed or linked, then the folder is synced.

A disk that rots leaves size and seal as they are, so a name does not imply that its bytes are there now. Whoever writes
(puts, commits a workspace, clones, makes a manifest) and finds the content stored has it read and compared, once per
content and commit, and replaced if it is damaged (`Store.holds_bytes`): what was just acknowledged does not rest on a
file that nobody looked at. Everything else trusts the seal until a scrub reads the bytes: unchanged files of a
workspace, what a merge or revert takes over, what was put (and compared then) until it is committed, and the links of
views.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lake.durable import point, sync_path
from lake.engines.embedded.files import (
    SMALL,
    clone,
    copy_new,
    flocked,
    hash_file,
    is_sealed,
    remove,
    seal,
    seal_if_ours,
    sync_files,
    write_new,
)
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.sharing import make_folder
from lake.engines.embedded.trash import Trash
from lake.errors import ConflictError, CorruptObject
from lake.integrity import ACCEPT
from lake.room import NO_ROOM, Room

R = TypeVar("R")
#: A new key, since a commit that changes no key is refused.
HEAL = (
    "`emlake scrub --heal-from LOCATION` restores it from a copy or a clone of the repository; or put the same bytes "
    f"under a new key and commit; {ACCEPT}"
)
_LOOKS = 4  # a content moves at most from the staged ones to the store, to the trash and back while one looks for it
_FALL_BACK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP})


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a workspace with what it holds now."""

    path: str
    digest: bytes
    size: int
    stat: os.stat_result
    copy: str | None = None  # a copy among the temporary files, made while hashing; None for a large file


class Batch:
    """Contents on their way into a store. Threads may add at the same time."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._full: OSError | None = None
        self.digests: list[bytes] = []
        self.sizes: list[int] = []
        self.fresh: list[tuple[str, bytes]] = []  # written here under a temporary name: path and digest

    def add(self, blob: bytes) -> bytes:
        """Write a content, if it is not stored, so that nobody need keep it in memory; returns its digest."""
        digest = hashlib.sha256(blob).digest()
        self.digests.append(digest)
        self.sizes.append(len(blob))
        if self._full is None and not self._store.holds_bytes(digest, len(blob)):
            try:
                self.fresh.append((self._store.write(blob, digest), digest))
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                # What does not fit is still counted: the error at the end says what all of it needs.
                self._full = error
        return digest

    def drop(self, digest: bytes) -> None:
        """Leave out what was added once and is not wanted after all."""
        remove(path for path, each in self.fresh if each == digest)
        self.fresh = [item for item in self.fresh if item[1] != digest]
        self.digests.remove(digest)

    def check_room(self) -> None:
        """Raise what `add` met on a full disk."""
        if self._full is not None:
            raise self._full


class Store:
    """Contents by digest, below `root/<first two digits>/<the other 62>`."""

    def __init__(self, root: Path, scratch: Scratch, *, fix: str = HEAL, symbolic: bool = False) -> None:
        self.root = root
        self._symbolic = symbolic  # whether a read-only folder shows an object by its name
        self._fix = fix  # what to do about a damaged content
        self._text = str(root)
        self._scratch = scratch
        self._can_clone = True  # until the file system says no
        self.trash = Trash(str(root.parent / "trash" / root.name), self._text)
        self.elsewhere: Callable[[bytes], str | None] = lambda digest: None  # finds contents that are not stored yet

    @staticmethod
    def make(root: Path) -> None:
        """Make the folders of a store, those that are not there."""
        make_folder(root)
        there = set(os.listdir(root))
        for name in (f"{number:02x}" for number in range(256)):
            if name not in there:
                make_folder(root / name)

    def path(self, digest: bytes) -> str:
        """Say where the object with this digest lies."""
        name = digest.hex()
        return f"{self._text}/{name[:2]}/{name[2:]}"

    def locate(self, digest: bytes) -> str:
        """Say where the content with this digest lies: committed, staged, or condemned."""
        path = self.path(digest)
        return path if os.path.exists(path) else self.elsewhere(digest) or self._condemned(digest) or path

    def _condemned(self, digest: bytes) -> str | None:
        return self.trash.find(digest.hex())

    def holds(self, digest: bytes, size: int) -> bool:
        """Tell whether the object is there and sound, by its seal or, if that is broken, by its bytes.

        Whoever acts on a yes does so inside a piece of work (`Turns.working`), and commits or stages in it what refers
        to the object: until then a collector may condemn it, but not remove it.
        """
        path = self.path(digest)
        with suppress(FileNotFoundError):
            if self._is_sound(path, digest, size):
                return True
        with suppress(FileNotFoundError):
            return self.trash.rescue(digest.hex()) and self._is_sound(path, digest, size)
        return False

    def holds_bytes(self, digest: bytes, size: int) -> bool:
        """Tell like `holds`, by the bytes in any case: rot leaves a seal as it is, and whoever puts wants it healed."""
        return self.holds(digest, size) and self._from(digest, "stored before", hash_file) == digest

    @staticmethod
    def _is_sound(path: str, digest: bytes, size: int) -> bool:
        stat = os.stat(path)
        if is_sealed(stat, digest, size):
            return True
        if stat.st_size != size or hash_file(path) != digest:
            return False
        seal_if_ours(path, stat, digest)
        return True

    def check(self, digest: bytes, size: int, what: str) -> None:
        """Raise `CorruptObject` if the object is missing or damaged."""
        if not self._from(digest, what, lambda path: self._is_sound(path, digest, size)):
            raise self.corrupt(digest, what)

    def corrupt(self, digest: bytes, what: str) -> CorruptObject:
        """Make the error that names a damaged object."""
        state = "damaged" if os.path.exists(self.path(digest)) else "missing"
        return CorruptObject(
            f"object {digest.hex()} ({what}) is {state}: {self.path(digest)}",
            fix=self._fix,
        )

    # -- in -----------------------------------------------------------------------------------------------------------
    def put_bytes(self, data: bytes) -> bytes:
        """Store bytes durably; returns their digest."""
        with self.batch() as batch:
            return batch.add(data)

    @contextmanager
    def batch(self) -> Iterator["Batch"]:
        """Store many contents durably, with as few waits for the disk as that takes: all at the end, or none."""
        batch = Batch(self)
        with Room(self.root.parent) as room:
            try:
                yield batch
                batch.check_room()
                if batch.fresh:
                    point("store.written")
                sync_files((path for path, _ in batch.fresh), self.root)
            except BaseException:
                remove(path for path, _ in batch.fresh)
                raise
            finally:
                room.need(batch.sizes)
        for path, digest in batch.fresh:
            point("store.synced")
            os.replace(path, self.path(digest))
        point("store.named")
        self.sync_folders(batch.digests)

    def write(self, blob: bytes, digest: bytes) -> str:
        """Write a sealed temporary file, not yet synced; returns its path."""
        path = self._scratch.name()
        fd = write_new(path, blob)
        try:
            seal(fd, os.fstat(fd), digest)
        finally:
            os.close(fd)
        return path

    def sync_folders(self, digests: Sequence[bytes]) -> None:
        """Put the names of these objects on the disk, those that another process has just made too."""
        sync_files({f"{self._text}/{digest[:1].hex()}" for digest in digests}, self.root)

    def survey(self, path: str, known: set[bytes]) -> Found:
        """Hash a workspace's file; a small one is copied on the way.

        Not if its content is in `known`: what this commit has copied, or has found stored and read. One that is not is
        looked for, and added.
        """
        before = os.stat(path)
        copy: str | None = None
        if before.st_size < SMALL:
            data = _read(path)
            digest = hashlib.sha256(data).digest()
            if len(data) == before.st_size and digest not in known:
                # Two threads may both get here with one content: the second copy replaces the first, which is the same.
                copy = None if self.holds_bytes(digest, len(data)) else self.write(data, digest)
                known.add(digest)
        else:
            digest = hash_file(path)
            if digest not in known and self.holds_bytes(digest, before.st_size):
                known.add(digest)
        after = os.stat(path)
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            remove([copy] if copy is not None else [])
            raise ConflictError(
                f"{path} was written while it was being committed", fix="finish writing, then commit again"
            )
        return Found(path, digest, after.st_size, after, copy)

    def sync_found(self, found: Sequence[Found], names: Iterable[str]) -> None:
        """Seal what is about to be linked; put its bytes, and the `names` in the workspace, on the disk."""
        paths: list[str] = [*names]
        for item in found:
            if item.copy is not None:
                paths.append(item.copy)
            elif item.size >= SMALL and item.stat.st_nlink == 1:
                # Another user's file cannot be sealed; `adopt` then copies it.
                with suppress(PermissionError):
                    seal(item.path, item.stat, item.digest)
                    os.chmod(item.path, 0o444)
        sync_files(paths, self.root)

    def adopt(self, found: Sequence[Found], known: set[bytes]) -> None:
        """Give the synced files of a workspace their names in the store, but for contents that are `known`."""
        # Copies first: a small file without one has the content of another that has.
        for item in sorted(found, key=lambda item: item.copy is None):
            if item.copy is not None:
                os.replace(item.copy, self.path(item.digest))
            elif item.digest not in known or not self.holds(item.digest, item.size):
                self._link_in(item)
                known.add(item.digest)
            point("store.adopted")
        self.sync_folders([item.digest for item in found])
        for item in found:
            # From here on the workspace's file is known as unchanged by its seal.
            if not is_sealed(os.stat(item.path), item.digest, item.size):
                seal_if_ours(item.path, item.stat, item.digest)

    def _link_in(self, item: Found) -> None:
        path = self._scratch.new()
        try:
            os.link(item.path, path)
            stat = os.stat(path)
            if not is_sealed(stat, item.digest, item.size):
                # Linked from elsewhere, or not ours to seal: a copy leaves that file alone.
                path.unlink()
                raise OSError(errno.EPERM, "not sealed", item.path)
        except OSError as error:
            if error.errno not in _FALL_BACK:
                raise
            if copy_new(item.path, path) != item.digest:
                path.unlink()
                raise ConflictError(
                    f"{item.path} was written while it was being committed", fix="finish writing, then commit again"
                ) from error
            seal(path, path.stat(), item.digest)
            sync_path(path)
        os.replace(path, self.path(item.digest))

    # -- out ----------------------------------------------------------------------------------------------------------
    def _from(self, digest: bytes, what: str, action: Callable[[str], R]) -> R:
        """Do something with the file of an object; `CorruptObject` if there is none."""
        for _ in range(_LOOKS):
            # A commit may give it its name in the store between look and action, a collector take it and put it back.
            for find in (self.path, self.elsewhere, self._condemned):
                path = find(digest)
                if path is not None:
                    with suppress(FileNotFoundError):
                        return action(path)
        if os.path.exists(self.path(digest)):
            return action(self.path(digest))
        raise self.corrupt(digest, what)

    def read(self, digest: bytes, what: str) -> bytes:
        """Read an object and check its bytes, or raise `CorruptObject`."""
        data = self._from(digest, what, _read)
        if hashlib.sha256(data).digest() != digest:
            raise self.corrupt(digest, what)
        return data

    def link_out(self, digest: bytes, size: int, target: str, what: str) -> None:
        """Make `target` a link to an object; a copy where links cannot be made."""
        link = _link_by_name if self._symbolic else os.link
        try:
            self._from(digest, what, lambda source: link(source, target))
        except OSError as error:
            if error.errno == errno.EMLINK:
                self._from(digest, what, lambda source: self._link_to_second_copy(source, digest, target))
            elif error.errno in _FALL_BACK:
                self.copy_out(digest, size, target, what, mode=0o444)
            else:
                raise
        if not self._is_sound(target, digest, size):
            os.unlink(target)
            raise self.corrupt(digest, what)

    def lend(self, digest: bytes, size: int, target: str, what: str) -> None:
        """Make `target` a writable file with an object's content: a copy if small, else shared extents, else a link."""
        if size < SMALL:
            self.copy_out(digest, size, target, what)
            return
        if self._can_clone:
            self._can_clone = self._clone_out(digest, size, target, what)
        if not self._can_clone:
            self.link_out(digest, size, target, what)

    def _clone_out(self, digest: bytes, size: int, target: str, what: str) -> bool:
        self.check(digest, size, what)
        reader = self._from(digest, what, lambda path: open(path, "rb", buffering=0))  # noqa: SIM115 - closed below
        with reader as source, open(target, "xb", buffering=0) as copy:
            if not clone(source.fileno(), copy.fileno()):
                os.unlink(target)
                return False
            seal(copy.fileno(), os.fstat(copy.fileno()), digest)
        return True

    def copy_out(self, digest: bytes, size: int, target: str, what: str, mode: int = 0o666) -> None:
        """Make `target` a sealed copy of an object, sharing extents where the file system can."""
        if size < SMALL:
            fd = write_new(Path(target), self.read(digest, what), mode)
            try:
                seal(fd, os.fstat(fd), digest)
            finally:
                os.close(fd)
            return
        copied = self._from(digest, what, lambda path: copy_new(path, Path(target), mode))
        if copied != digest:
            os.unlink(target)
            raise self.corrupt(digest, what)
        seal(target, os.stat(target), digest)

    def _link_to_second_copy(self, source: str, digest: bytes, target: str) -> None:
        """Link an object that has as many links as the file system allows (ext4: 65,000), by a copy in its place."""
        with flocked(self._scratch.root / ".renew"):
            with suppress(OSError):
                # Somebody else may have been here first.
                os.link(source, target)
                return
            path = self._scratch.new()
            if copy_new(source, path) != digest:
                path.unlink()
                raise self.corrupt(digest, "while a second copy was made")
            seal(path, path.stat(), digest)
            sync_path(path)
            os.replace(path, source)
            sync_path(os.path.dirname(source))
            os.link(source, target)


def _link_by_name(source: str, target: str) -> None:
    os.stat(source)  # a link to nothing can be made, too
    os.symlink(source, target)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
