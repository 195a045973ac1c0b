"""Reads SQLite's write-ahead log, as its file format describes it, to tell a damaged log from an old one.

SQLite ends a log at the first frame whose checksum is wrong, without a word: a flipped bit there takes back the
transactions that follow. But what follows the end of a sound log looks almost the same: frames of earlier rounds, and
of transactions that were rolled back or killed. So a frame beyond the end is a sign of damage only if it cannot be
one of those::

    header  magic version page-size round salt1 salt2 checksum1 checksum2             8 x u32, big-endian
    frame   page-number pages-after-commit salt1 salt2 checksum1 checksum2 | page     6 x u32, then the page

A round has two new salts, of which the first counts up. A frame of a transaction that did not end has no commit mark
(`pages-after-commit` is 0).
"""

import struct
import sys
from array import array

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_VERSION = 3007000


def fault_in(log: bytes) -> str | None:
    """Say what is wrong with a log file; None if nothing is. An empty log is sound."""
    if len(log) <= _HEADER.size:
        return None
    magic, version, page, _, salt1, salt2, *check = _HEADER.unpack_from(log)
    little = magic == _MAGIC
    if magic & ~1 != _MAGIC or version != _VERSION or _checksum((0, 0), log[:24], little) != tuple(check):
        return "its header has the wrong checksum, so all that is in it is ignored"
    if not 512 <= page <= 65536:
        return f"its header says that pages have {page} bytes"
    chain = (check[0], check[1])
    at, size = _HEADER.size, _FRAME.size + page
    number = 0
    while at + size <= len(log):
        number += 1
        found = _Frame(log, at, page)
        chain = found.checksum(chain, little)
        if (found.salt1, found.salt2) != (salt1, salt2) or chain != found.stored:
            break
        at += size
    else:
        return None
    for start in range(at, len(log) - size + 1, size):
        if _cannot_be_left_over(_Frame(log, start, page), salt1, salt2):
            return f"frame {number} is damaged, so all transactions from there on are ignored"
    first = _Frame(log, at, page)
    if (first.salt1, first.salt2) == (salt1, salt2) and _lost_its_mark(first, log, at, size, little):
        return f"frame {number} is damaged: its transaction counts as one that did not end"
    return None


class _Frame:
    def __init__(self, log: bytes, at: int, page: int) -> None:
        fields: tuple[int, ...] = _FRAME.unpack_from(log, at)
        self.number, self.mark, self.salt1, self.salt2, one, two = fields
        self.stored = (one, two)
        self._head = log[at : at + 8]
        self._page = log[at + _FRAME.size : at + _FRAME.size + page]

    def checksum(self, chain: tuple[int, int], little: bool, mark: int | None = None) -> tuple[int, int]:
        head = self._head if mark is None else struct.pack(">2I", self.number, mark)
        return _checksum(_checksum(chain, head, little), self._page, little)


def _cannot_be_left_over(frame: _Frame, salt1: int, salt2: int) -> bool:
    if frame.salt1 == salt1 and frame.salt2 == salt2:
        return frame.mark != 0
    # Both salts change from round to round.
    return frame.salt1 == salt1 or frame.salt2 == salt2


def _lost_its_mark(frame: _Frame, log: bytes, at: int, size: int, little: bool) -> bool:
    """Tell whether the frame would be sound with a commit mark: the flipped bit was the mark's only one."""
    chain = _FRAME.unpack_from(log, at - size)[4:] if at > _HEADER.size else _HEADER.unpack_from(log)[6:]
    return any(frame.checksum((chain[0], chain[1]), little, 1 << bit) == frame.stored for bit in range(32))


def _checksum(chain: tuple[int, int], data: bytes, little: bool) -> tuple[int, int]:
    words = array("I", data)
    if little != (sys.byteorder == "little"):
        words.byteswap()
    one, two = chain
    for at in range(0, len(words), 2):
        one = (one + words[at] + two) & 0xFFFFFFFF
        two = (two + words[at + 1] + one) & 0xFFFFFFFF
    return one, two
