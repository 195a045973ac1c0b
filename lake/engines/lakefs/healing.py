"""Puts good bytes in the place of a damaged object's file, in the block store of a server on this machine.

lakeFS gives each upload a file of its own name, writes it once, and opens it anew for each reader: a rename in its
place is safe beside a running server. Ranges are not healed so: the server holds copies of them.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lake.durable import point, sync_path
from lake.engines.lakefs.checksums import fits
from lake.integrity import CannotHeal, Offer

_PIECE = 1 << 20


def replace_file(path: Path, size: int, sha256: str | None, checksum: str, offers: Iterable[Offer]) -> bool:
    """Give a file the first of `offers` that has the recorded digest, durably; False if none has.

    Parameters
    ----------
    sha256 : str or None
        What was recorded of the bytes; where nothing was, the server's checksum tells.
    """
    fresh = path.with_name(f".{path.name}.healing")
    try:
        for offer in offers:
            with suppress(FileNotFoundError):  # what was offered has gone
                _write(offer, fresh)
            try:
                if not fresh.exists() or not _is_recorded(fresh, size, sha256, checksum):
                    continue
                _as_its_like(fresh, path)
                point("heal.written")
                os.replace(fresh, path)
                point("heal.replaced")
                sync_path(path.parent)
                return True
            finally:
                fresh.unlink(missing_ok=True)
    except PermissionError as error:
        raise CannotHeal(f"{error.filename} cannot be written: heal it as the user who runs the server") from error
    return False


def _write(offer: Offer, fresh: Path) -> None:
    fresh.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as file:
        for piece in [offer] if isinstance(offer, bytes) else _pieces(offer):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _is_recorded(path: Path, size: int, sha256: str | None, checksum: str) -> bool:
    if path.stat().st_size != size:
        return False
    if sha256 is None:
        return fits(checksum, size, lambda: _pieces(path)) is True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _as_its_like(fresh: Path, path: Path) -> None:
    """Give a file the owner of the one that it replaces, or of the folder if that is missing, and its mode."""
    there = path.exists()
    like = (path if there else path.parent).stat()
    if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(fresh, like.st_uid, like.st_gid)
    os.chmod(fresh, like.st_mode & 0o777 if there else 0o644)
