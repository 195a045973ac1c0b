"""The file operations that the engine's promises rest on, all in one place, with what fails when they fail.

An object carries a *seal*: the nanoseconds of its modification time are computed from its digest. A program that writes
into a stored object (as root, the mode 0444 stops nobody) moves the time and breaks the seal, so damage is noticed by
one `stat`, with no table of times to keep. A broken seal is a question, not a verdict: the bytes are hashed again, and
sealed again if they are sound (an archive unpacked with whole seconds looks like that).
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from lake.durable import sync_path
from lake.engines.embedded.sharing import open_shared, whose
from lake.errors import CorruptObject, LakeError, NotAuthorized, StorageError
from lake.room import NO_ROOM, TRANSACTION, code_of, no_room

SMALL = 64 * 1024  # bytes; below this a file crosses between store and workspace as a copy, never as a link
BLOCK = 1 << 20
FICLONE = 0x40049409  # linux/fs.h: share the extents of another file
WORKERS = min(8, os.cpu_count() or 1)
AHEAD = 64  # results that are computed before they are asked for, at most
_SYNC_FILE_RANGE_WRITE = 2
SYNC_EACH = 16  # up to this many files are synced one by one, more by one sync of the file system
_FALLBACK_BOOT = secrets.token_hex(8)
MARKER = "emlake.json"  # in the folder of every repository
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SECOND = 1_000_000_000
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Rooted(Protocol):
    """Something that lives in a folder."""

    @property
    def root(self) -> Path:
        """The folder."""
        ...


S = TypeVar("S", bound=Rooted)


def translate(error: OSError | sqlite3.Error, root: Path) -> LakeError:
    """Turn an error of the operating system or of SQLite into one of ours."""
    if code := code_of(error, root):
        return no_room(root, TRANSACTION, code)
    if isinstance(error, sqlite3.Error):
        if "locked" in str(error):
            return StorageError(
                f"the database of {root} stayed locked by another process", fix="repeat the command when it is done"
            )
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
            return _refused(f"the database of {root}", "it is read-only")
        return StorageError(f"the database of {root} failed: {error}", fix="check the disk, then open it again")
    if error.errno in _REFUSED:
        path = error.filename or root
        return _refused(str(path), f"{error.strerror} ({whose(path)})")
    return StorageError(f"{error.filename or root}: {error.strerror or error}", fix="check the disk, then repeat")


def _refused(what: str, why: str) -> NotAuthorized:
    return NotAuthorized(
        f"{what} is refused to you: {why}",
        fix="ask its owner for access; a group: chmod -R g+rwX for what is there, setfacl -R -d -m g::rwX for the rest",
    )


def _gone(root: Path) -> StorageError | None:
    """Make the error for a repository that is no longer where it was opened; None if it is there."""
    try:
        os.stat(root / MARKER)
    except (FileNotFoundError, NotADirectoryError):
        return StorageError(
            f"the repository is no longer at {root}: it was moved, removed or unmounted while it was open",
            fix="put it back or mount it again, or open it where it is now",
        )
    except OSError:
        pass  # it is there, or who knows: what failed tells more
    return None


def guarded(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let only errors of `lake.errors` out of a method."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (OSError, sqlite3.Error) as error:
            raise (_gone(self.root) or translate(error, self.root)) from error
        except CorruptObject as error:
            if lost := _gone(self.root):
                raise lost from error
            raise

    return cast("Callable[Concatenate[S, P], R]", call)


def guarded_items(items: Iterator[T], root: Path) -> Iterator[T]:
    """Let only errors of `lake.errors` out of an iterator."""
    try:
        yield from items
    except (OSError, sqlite3.Error) as error:
        raise (_gone(root) or translate(error, root)) from error
    except CorruptObject as error:
        if lost := _gone(root):
            raise lost from error
        raise


# -- seals ------------------------------------------------------------------------------------------------------------
def seal_of(digest: bytes) -> int:
    """Give the nanoseconds that seal an object, 1 to 999,999,999 (0 is what coarse copies leave)."""
    return int.from_bytes(digest[:8], "big") % (_SECOND - 1) + 1


def is_sealed(stat: os.stat_result, digest: bytes, size: int) -> bool:
    """Tell whether a file still has the size and the seal of the object it holds."""
    return stat.st_size == size and stat.st_mtime_ns % _SECOND == seal_of(digest)


def seal(target: str | Path | int, stat: os.stat_result, digest: bytes) -> None:
    """Set the seal, keeping the second in which the file was written."""
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns // _SECOND * _SECOND + seal_of(digest)))


def seal_if_ours(path: str, stat: os.stat_result, digest: bytes) -> None:
    """Set the seal, unless the file is another user's or cannot be written: then it is hashed again the next time."""
    try:
        seal(path, stat, digest)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


# -- bytes ------------------------------------------------------------------------------------------------------------
def hash_file(path: str | Path) -> bytes:
    """Give the sha256 of a file."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").digest()


def start_writing(fd: int, size: int) -> None:
    """Let the disk begin with a large file at once, so that who syncs it later waits less; promises nothing."""
    if size < BLOCK:
        return
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin is not None:
        begin(fd, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def write_new(path: str | Path, data: bytes, mode: int = 0o444) -> int:
    """Write a new file and return its open descriptor, not yet synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        start_writing(fd, len(data))
    except OSError:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def copy_new(source: str | Path, path: str | Path, mode: int = 0o444) -> bytes:
    """Copy a file to a new one, sharing its extents where the file system can; return the sha256 of the copy.

    The copy is not yet synced.
    """
    digest = hashlib.sha256()
    with open(source, "rb", buffering=0) as reader:
        size = os.fstat(reader.fileno()).st_size
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if clone(reader.fileno(), fd):
                with open(fd, "rb", buffering=0, closefd=False) as copy:
                    return hashlib.file_digest(copy, "sha256").digest()
            check_room(fd, size)
            buffer = memoryview(bytearray(min(BLOCK, size) or BLOCK))  # some files do not tell their size
            while count := reader.readinto(buffer):
                digest.update(buffer[:count])
                left = buffer[:count]
                while left:
                    left = left[os.write(fd, left) :]
            start_writing(fd, size)
        except OSError:
            remove([str(path)])
            raise
        finally:
            os.close(fd)
    return digest.digest()


def check_room(fd: int, size: int) -> None:
    """Raise at once, not an hour later, if a large file cannot be written whole."""
    if size > BLOCK:
        state = os.fstatvfs(fd)
        if size > state.f_bavail * state.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def clone(source: int, target: int) -> bool:
    """Make `target` share the extents of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return False
    return True


def remove(paths: Iterable[str]) -> None:
    """Remove files, those that are there."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


# -- durability -------------------------------------------------------------------------------------------------------
def boot_id() -> str:
    """Name the time since the machine started: what was not synced in an earlier one may be torn."""
    # A system that does not name its boots has every process believe its own files only.
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else _FALLBACK_BOOT


def with_folders(paths: Iterable[str], root: str) -> set[str]:
    """Give paths with all folders between `root` and them: what must be synced for their names to last."""
    found = {root}
    for path in paths:
        found.add(path)
        folder = os.path.dirname(path)
        while folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found


def sync_files(paths: Iterable[str | Path], root: Path) -> None:
    """Put the content of many files on the disk: one by one if few, else the whole file system at once."""
    paths = list(paths)
    if len(paths) > SYNC_EACH and sync_file_system(root):
        return
    in_threads(sync_path, paths)


def sync_file_system(root: Path) -> bool:
    """Sync the file system that holds `root`; False where the C library has no such call."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(root))
    finally:
        os.close(fd)
    return True


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Map in threads, in order; the first failure is raised after all have ended."""
    items = list(items)
    if len(items) < 2 or WORKERS < 2:
        return [function(item) for item in items]
    waiting = iter(range(len(items)))  # shared: each thread takes the next, which costs less than a future per item
    results: dict[int, R] = {}
    failures: dict[int, Exception] = {}

    def work() -> None:
        for at in waiting:
            try:
                results[at] = function(items[at])
            except Exception as error:
                failures[at] = error

    with ThreadPoolExecutor(WORKERS) as pool:
        for worker in [pool.submit(work) for _ in range(WORKERS)]:
            worker.result()
    if failures:
        raise failures[min(failures)]
    return [results[at] for at in range(len(items))]


def ahead(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Map in threads, in order and a little ahead: the first by itself, then more at a time."""
    at, count = 0, 1
    while at < len(items):
        yield from in_threads(function, items[at : at + count])
        at += count
        count = min(2 * count, AHEAD)


@contextmanager
def flocked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a file: between threads and processes, gone when its holder dies.

    Gives False, without the lock, if somebody else has it and `wait` is not wanted.
    """
    fd = open_shared(path)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)
