"""Bit rot: change stored bytes as a failing disk does, behind everybody's back."""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from lake.engines.embedded import EmbeddedRepository


def flip(path: str | Path, at: int = 0, bit: int = 0) -> None:
    """Flip one bit; neither the file's times nor its mode change."""
    stat = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0] ^ (1 << bit)
        file.seek(at)
        file.write(bytes([byte]))
    os.chmod(path, stat.st_mode)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def used_bytes(database: bytes) -> Iterator[int]:
    """Yield the offsets in a SQLite file that are not in the unused middle of a page.

    A page holds a header (8 or 12 bytes; on page 1 after the file's own 100), an array of two bytes per cell, room, and
    from the offset in its header on, cells.
    """
    size = struct.unpack_from(">H", database, 16)[0]
    for start in range(0, len(database), size):
        head = start + (100 if start == 0 else 0)
        kind, _, cells, content = struct.unpack_from(">BHHH", database, head)
        if kind not in {2, 5, 10, 13}:
            yield from range(start, start + size)
            continue
        end = head + (12 if kind in {2, 5} else 8) + 2 * cells
        yield from range(start, end)
        yield from range(start + (content or 65536), start + size)


def write_each_kind(repo: EmbeddedRepository, large: bytes) -> None:
    """Fill a new repository so that it has a file of each kind: a commit on branch `work`, and something staged."""
    repo.create_branch("work", "main")
    repo.put("work", "small", b"a few bytes")
    repo.put("work", "v/large", large)
    repo.put("work", "v/typed", b"text", content_type="text/plain", metadata={"by": "me"})
    repo.commit("work", "one", {"why": "test"})
    repo.location_of("work", "v/")  # a view, made of links
    repo.workspace("work", "")  # a workspace; small files are copies
    repo.put("work", "staged", b"staged bytes")
    copied = next((repo.root / "views").glob("*/*/v/typed"))
    shutil.copy2(copied, f"{copied}.tmp")
    os.replace(f"{copied}.tmp", copied)  # as where links cannot be made


def files(repo: EmbeddedRepository, pattern: str) -> list[Path]:
    """List the files of a repository that match a pattern and are not empty, sorted."""
    return sorted(path for path in repo.root.glob(pattern) if path.is_file() and path.stat().st_size)
