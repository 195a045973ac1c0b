"""Room kept aside, so that a repository on a full disk can still be read, and be made smaller.

SQLite cannot read without a shared index of 32 KiB beside the database, nor remove anything without writing a log. So
a file of a quarter of a megabyte lies in the repository, given up when the disk is full, and filled again when it is
not.
"""

import os
from contextlib import suppress
from pathlib import Path

from lake.engines.embedded.files import sync_file_system
from lake.engines.embedded.mounts import may_have_quota
from lake.engines.embedded.sharing import open_shared
from lake.room import free_below, refusal

NAME = "spare"
SIZE = 256 * 1024  # bytes
_STEP = 64 * 1024
_FAR = 64 << 20  # bytes; with more than this free, no other writer can use up the rest between two looks
_EASY = 8  # times what is needed; with as much, what writing takes beside the bytes is no surprise
_PLENTY = 16 * SIZE  # with less than this free, what is left is for the work


class Spare:
    """The file `spare` of a repository."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME
        self._given = False
        self._quota = may_have_quota()

    def keep(self) -> None:
        """Set the room aside, if it is not, and the disk has plenty."""
        with suppress(OSError):  # no room after all, a read-only disk, a limit: then there is none aside
            if self._held() < SIZE and free_below(self._path.parent)[1] > _PLENTY:
                self._fill(SIZE)

    def give(self, amount: int = _STEP) -> bool:
        """Give up so many bytes; False if nothing was left."""
        with suppress(OSError):
            if held := self._held():
                os.truncate(self._path, max(held - amount, 0))
                self._given = True
                return True
        return False

    def give_if_full(self, needed: int) -> None:
        """Give up everything if there are fewer than `needed` bytes."""
        if refusal(self._path.parent, needed):
            self.give(SIZE)

    def ensure(self, needed: int, *, giving: bool) -> None:
        """See by writing them that there are `needed` bytes, `giving` up what it takes; `OSError` if there are not."""
        folder = self._path.parent
        if self._far_from_full() or not refusal(folder, needed):
            return
        sync_file_system(folder)  # btrfs counts what was removed until then
        while code := refusal(folder, needed):
            if not (giving and self.give()):
                raise OSError(code, os.strerror(code), str(folder))
            sync_file_system(folder)

    def settle(self, needed: int) -> None:
        """Let what was just written count in full, if there may not be much more room than is `needed`.

        btrfs counts what writing takes beside the bytes only then: room that `ensure` has seen would be gone.
        """
        folder = self._path.parent
        if not self._far_from_full() and refusal(folder, _EASY * needed):
            sync_file_system(folder)

    def _far_from_full(self) -> bool:
        """Ask, where that tells: trying costs ten times as much."""
        return not self._quota and free_below(self._path.parent)[1] > _FAR

    def keep_again(self) -> None:
        """Set aside again what was given up here, once the disk has plenty."""
        if self._given:
            self.keep()
            self._given = self._held() < SIZE

    def take_back(self) -> None:
        """Set aside again what was given up here, as far as it is still there."""
        if not self._given:
            return
        for size in range(SIZE, 0, -_STEP):
            with suppress(OSError):
                self._fill(size)
                return

    def _held(self) -> int:
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return 0
        # A copied repository may hold a file of holes.
        return min(stat.st_size, stat.st_blocks * 512)

    def _fill(self, size: int) -> None:
        fd = open_shared(self._path)
        try:
            held = os.fstat(fd).st_size
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.ftruncate(fd, min(held, size))
                raise
        finally:
            os.close(fd)
