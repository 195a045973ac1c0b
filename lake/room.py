"""Room on the disk: what an operation needs, what there is, and the one error for when it is not enough.

Every layer meets a full disk in its own dress: an `errno` from the operating system, an error code from SQLite, a
sentence from TensorStore, delta-rs or DuckDB. All become `NoRoom`, with the bytes that the *operation* needs, as far as
they are known, and those that are free once it has given back what it had taken.
"""

import errno
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from lake.errors import LakeError, NoRoom

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TRANSACTION = 128 * 1024  # bytes: SQLite's shared index (32 KiB), the log of a small change, and the new pages
_PAGE = 4096
# SQLite tells a full disk apart from a used-up quota or a file size limit no further than "a write failed".
_WRITE_FAILED = frozenset({"SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN", "SQLITE_CANTOPEN"})
_SIGNS = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


def allocated(sizes: Iterable[int]) -> int:
    """Give the bytes that files of these sizes take on a disk, in whole pages."""
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)


def free_below(path: Path | str) -> tuple[Path, int]:
    """Give the nearest folder that exists at or above `path`, and the bytes this user may still write there."""
    folder = Path(path)
    while not folder.is_dir():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free


def refusal(path: Path | str, size: int = TRANSACTION) -> int:
    """Write `size` bytes to a file without a name at or above `path`; give ENOSPC, EDQUOT or EFBIG if that fails, or 0.

    Of a quota only trying tells: what a file system says is free is free to others.
    """
    try:
        with tempfile.TemporaryFile(dir=free_below(path)[0], buffering=0) as file:
            left = memoryview(bytes(size))
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        return error.errno if error.errno in NO_ROOM else 0
    return 0


def no_room(path: Path | str, needed: int, code: int = errno.ENOSPC) -> NoRoom:
    """Make the error for lack of room.

    Parameters
    ----------
    needed : int
        Bytes that the operation needs in all; 0 if nobody knows.
    code : errno
        ENOSPC, EDQUOT or EFBIG: the disk, the user's quota, or the size of one file.
    """
    folder, free = free_below(path)
    amount = wanted(needed)
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        told = (
            f"this process may write files of {limit:,} bytes" if limit >= 0 else "the file system takes no larger file"
        )
        what = f"a file below {folder} would be too large: {amount}, {told}"
        way = "raise the limit (`ulimit -f unlimited`)"
    elif code == errno.EDQUOT:
        what = f"the quota for {folder} is used up: {amount}; of the disk itself {free:,} are free"
        more = f" by {needed:,} bytes" if needed else ""
        way = f"raise the quota{more} or remove files that count towards it"
    else:
        what = f"no room left in {folder}: {amount}, {free:,} are free"
        way = f"free at least {needed - free:,} bytes there" if needed > free else "make room there"
    fix = f"{way}, then repeat the command: it goes on from what is whole"
    return NoRoom(what, fix=fix, needed=needed, free=free, code=code)


def wanted(needed: int) -> str:
    """Say how many bytes an operation needs; 0 if nobody knows."""
    return f"about {needed:,} bytes are needed" if needed else "more is needed than there is"


def code_of(error: BaseException, root: Path | str) -> int:
    """Give the errno behind an error that comes from lack of room, or 0."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in NO_ROOM else 0
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            return errno.ENOSPC
        if name not in _WRITE_FAILED:
            return 0
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] >= 0:
            return errno.EFBIG
        return refusal(root)
    return code_in(str(error))


def code_in(text: str) -> int:
    """Give the errno that a sentence about lack of room stands for, or 0."""
    lowered = text.lower()
    return next((code for sign, code in _SIGNS.items() if sign in lowered), 0)


class Room:
    """What an operation below `root` needs, for the error that ends it when there is not enough.

    ::

        with Room(root) as room:
            room.need([len(data)])
            ...                         # whatever says that the disk is full leaves here as `NoRoom` with the sum
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self.needed = TRANSACTION

    def need(self, sizes: Iterable[int]) -> None:
        """Add files of these sizes."""
        self.needed += allocated(sizes)

    def keep_for_transaction(self) -> None:
        """Raise `NoRoom` while it is early enough if the transaction that ends the operation would find none left."""
        if code := refusal(self.root):
            raise no_room(self.root, self.needed, code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, NoRoom):
            code, needed = error.code, max(self.needed, error.needed)
        elif isinstance(error, LakeError) or not isinstance(error, OSError | sqlite3.Error):
            return
        else:
            code, needed = code_of(error, self.root), self.needed
        if code:
            raise no_room(self.root, needed, code) from error
