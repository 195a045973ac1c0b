"""Puts good bytes in the place of damaged ones, and finds good ones for other repositories.

What takes the place is written under a temporary name, compared with the digest, put on the disk and renamed: a kill
leaves the damaged file or the good one.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lake.durable import point, sync_path
from lake.engines.embedded.copies import Copy
from lake.engines.embedded.engine import Engine
from lake.engines.embedded.files import copy_new, flocked, hash_file, is_sealed, remove, seal, write_new
from lake.engines.embedded.history import commit_id
from lake.engines.embedded.store import Store
from lake.integrity import CannotHeal, Offer
from lake.room import Room


def content(engine: Engine, kind: str, name: str) -> Offer | None:
    """Give what the repository keeps under a digest; see `lake.integrity.ContentAddressed`."""
    if kind == "commit":
        with engine.db.read() as con:
            row = con.execute("SELECT body FROM commits WHERE id = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None
    path = Path(_store(engine, kind).locate(bytes.fromhex(name)))
    return path if path.is_file() else None


def _store(engine: Engine, kind: str) -> Store:
    return engine.manifests if kind == "manifest" else engine.objects


def heal_content(engine: Engine, kind: str, name: str, offers: Iterable[Offer]) -> bool:
    """Heal an object, a staged content or a manifest where it lies."""
    digest = bytes.fromhex(name)
    with engine.turns.working(), Room(engine.root) as room:
        path = Path(_store(engine, kind).locate(digest))
        if _is_good(path, digest):
            return True
        for offer in offers:
            room.need([_size(offer)])
            fresh = engine.scratch.new()
            try:
                if _write(offer, fresh) != digest:
                    continue
                seal(fresh, fresh.stat(), digest)
                _replace(fresh, path)
            except FileNotFoundError:
                raise CannotHeal("it was moved while it was being healed: run it again") from None
            finally:
                remove([str(fresh)])
            return True
    return False


def _size(offer: Offer) -> int:
    return len(offer) if isinstance(offer, bytes) else offer.stat().st_size if offer.exists() else 0


def _write(offer: Offer, fresh: Path) -> bytes:
    """Write what is offered; gives its digest, or nothing if it cannot be read."""
    if isinstance(offer, bytes):
        os.close(write_new(fresh, offer))
        return hashlib.sha256(offer).digest()
    try:
        return copy_new(offer, fresh)
    except OSError as error:
        # The other disk may fail too.
        if error.errno == errno.EIO or not os.access(offer, os.R_OK):
            return b""
        raise


def _replace(fresh: Path, path: Path) -> None:
    point("heal.written")
    sync_path(fresh)
    point("heal.synced")
    os.replace(fresh, path)
    point("heal.replaced")
    sync_path(path.parent)


def _is_good(path: str | Path, digest: bytes) -> bool:
    with suppress(OSError):
        return hash_file(path) == digest
    return False


def heal_commit(engine: Engine, name: str, offers: Iterable[Offer]) -> bool:
    """Heal what a commit says; the caller knows that the database is sound otherwise."""
    with engine.db.read() as con:
        row = con.execute("SELECT body FROM commits WHERE id = ?", (name,)).fetchone()
    if row is None or commit_id(bytes(row[0])) == name:
        raise CannotHeal("refs.sqlite lacks a commit: restore the folder from a copy of the repository")
    for body in offers:
        if isinstance(body, bytes) and commit_id(body) == name:
            with engine.db.write() as con:
                con.execute("UPDATE commits SET body = ? WHERE id = ?", (body, name))
                point("heal.before-commit")
            engine.history.forget([name])
            return True
    return False


def heal_copies(engine: Engine, name: str, copies: Sequence[Copy]) -> bool:
    """Make the copies of an object in views and workspaces again, those that are damaged."""
    digest = bytes.fromhex(name)
    for copy in copies:
        with flocked(engine.root / "locks" / _token(engine, copy)), engine.turns.working(), Room(engine.root) as room:
            if _is_good(copy.path, digest):
                continue
            if not engine.objects.holds_bytes(digest, copy.size):
                raise CannotHeal("the object that it is a copy of is damaged too")
            room.need([copy.size])
            fresh = engine.scratch.name()
            make = engine.objects.lend if copy.workspace else engine.objects.link_out
            try:
                make(digest, copy.size, fresh, copy.key)
                # What somebody has written meanwhile is their work.
                if not copy.workspace or is_sealed(os.lstat(copy.path), digest, copy.size):
                    _replace(Path(fresh), Path(copy.path))
            except FileNotFoundError:
                continue  # the view was collected, the file removed
            finally:
                remove([fresh])
    return True


def _token(engine: Engine, copy: Copy) -> str:
    """Name the lock of who may change the file: its branch's, or for a view one that nobody else holds."""
    if not copy.workspace:
        return ".healing"
    return Path(copy.path).relative_to(engine.workspaces.root).parts[0]
