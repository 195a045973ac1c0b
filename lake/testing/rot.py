"""Bit rot: change stored bytes as a failing disk does, behind everybody's back."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path


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
