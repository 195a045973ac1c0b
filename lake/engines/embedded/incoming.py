"""Contents that were put and are not committed yet: safe from a kill, not yet from a power cut.

A put must survive its process, a commit must survive the machine. So a put writes a file and does not wait for the
disk; the commit that takes it syncs all its objects at once, and only then gives them their names in the store. Files
lie under the id of the current boot: after a power cut, what an earlier boot left is believed only when its bytes have
been hashed again.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from lake.durable import point
from lake.engines.embedded.files import (
    SMALL,
    boot_id,
    copy_new,
    hash_file,
    is_sealed,
    seal,
    seal_if_ours,
    sync_files,
    write_new,
)
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.sharing import make_folder
from lake.engines.embedded.store import Store
from lake.engines.embedded.turns import Turns
from lake.errors import CorruptObject, NotFound


class Incoming:
    """Contents by digest, below `incoming/<boot>/`.

    A content is kept and staged in one piece of work (`Turns.working`): in between, nobody knows that it is wanted.
    """

    def __init__(self, root: Path, store: Store, scratch: Scratch, turns: Turns) -> None:
        self.root = root
        self._turns = turns
        self._store = store
        self._scratch = scratch
        self._folder = root / boot_id()
        self._text = str(self._folder)

    def put_bytes(self, digest: bytes, data: bytes) -> None:
        """Keep bytes with this digest."""
        if self.holds_bytes(digest, len(data)):
            return
        path = self._scratch.name()
        fd = write_new(path, data)
        try:
            seal(fd, os.fstat(fd), digest)
        finally:
            os.close(fd)
        self._name(path, digest)

    def put_file(self, source: Path) -> tuple[bytes, int]:
        """Keep a copy of a file; returns digest and size."""
        try:
            data = _whole_if_small(source)
            if data is None:
                return self._put_large(source)
        except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
            raise NotFound(f"{source} cannot be read: {error.strerror}", fix="give a readable file") from error
        digest = hashlib.sha256(data).digest()
        self.put_bytes(digest, data)
        return digest, len(data)

    def _put_large(self, source: Path) -> tuple[bytes, int]:
        path = self._scratch.name()
        digest = copy_new(source, path)
        stat = os.stat(path)
        if self.holds_bytes(digest, stat.st_size):
            os.unlink(path)
        else:
            seal(path, stat, digest)
            self._name(path, digest)
        return digest, stat.st_size

    def _place(self, digest: bytes) -> str:
        return f"{self._text}/{digest.hex()}"

    def holds_bytes(self, digest: bytes, size: int) -> bool:
        """Tell whether the content is here, or in the store, by its bytes: to put a damaged one again heals it."""
        if self._store.holds_bytes(digest, size):
            return True
        with suppress(FileNotFoundError):
            path = self._place(digest)
            return os.stat(path).st_size == size and hash_file(path) == digest
        return False

    def _name(self, path: str, digest: bytes) -> None:
        point("put.written")
        target = self._place(digest)
        try:
            os.replace(path, target)
        except FileNotFoundError:
            make_folder(self._folder)
            os.replace(path, target)

    def find(self, digest: bytes) -> str | None:
        """Say where the content lies, whatever boot it is from; None if it is not here."""
        name, target = digest.hex(), self._place(digest)
        if os.path.exists(target):
            return target
        try:
            boots = os.listdir(self.root)
        except FileNotFoundError:  # a copy of a repository, to be read alone
            return None
        found = [f"{self.root}/{boot}/{name}" for boot in boots if boot != self._folder.name]
        return next((path for path in found if os.path.exists(path)), None)

    def bring_in(self, wanted: Mapping[bytes, tuple[int, str]]) -> None:
        """Put contents (digest -> size, key) on the disk, then give them their names in the store.

        Raises `CorruptObject` for one that is damaged or was lost in a power cut.
        """
        moves: dict[bytes, str] = {}
        for digest, (size, key) in wanted.items():
            here = self._place(digest)
            if _is_sealed(here, digest, size):
                moves[digest] = here
                continue
            path = self.find(digest)
            if path is None or hash_file(path) != digest:
                # Nothing is here of what was compared with the store when it was put. And what a power cut tore is no
                # loss if the same bytes have come into the store another way.
                if not (self._store.holds if path is None else self._store.holds_bytes)(digest, size):
                    raise _lost(digest, key)
                continue
            seal_if_ours(path, os.stat(path), digest)
            moves[digest] = path
        sync_files(moves.values(), self.root)
        point("commit.staged-synced")
        for digest, path in moves.items():
            try:
                os.replace(path, self._store.path(digest))
            except FileNotFoundError:
                # Another branch staged the same bytes and has just committed them.
                if not self._store.holds(*_sized(digest, wanted)):
                    raise
            point("commit.staged-named")
        self._store.sync_folders(list(wanted))

    def sweep(self, staged: Callable[[], set[bytes]]) -> None:
        """Remove what nobody stages: left by a kill, a reset, or a put that was put over.

        Nothing is done while somebody is putting; `staged` is asked for digests only if there is something to judge.
        """
        boots = [entry for entry in self.root.iterdir() if entry.is_dir()]
        if not any(any(boot.iterdir()) or boot != self._folder for boot in boots):
            return
        with self._turns.alone() as alone:
            kept = {digest.hex() for digest in staged()} if alone else set()
            for boot in boots if alone else ():
                for name in os.listdir(boot):
                    if name not in kept:
                        os.unlink(boot / name)
                if boot != self._folder and not any(boot.iterdir()):
                    boot.rmdir()


def _whole_if_small(source: Path) -> bytes | None:
    """Read a file that is not worth sharing extents, or a buffer, for; None for a larger one."""
    with open(source, "rb", buffering=0) as file:
        data = file.read(SMALL)
    return data if len(data) < SMALL else None


def _is_sealed(path: str, digest: bytes, size: int) -> bool:
    try:
        return is_sealed(os.stat(path), digest, size)
    except FileNotFoundError:
        return False


def _sized(digest: bytes, wanted: Mapping[bytes, tuple[int, str]]) -> tuple[bytes, int]:
    return digest, wanted[digest][0]


def _lost(digest: bytes, key: str) -> CorruptObject:
    return CorruptObject(
        f"the staged object {digest.hex()} ({key}) is missing or damaged",
        fix="put it again, or reset the branch: what was staged and not committed may be lost in a power cut",
    )
