"""What the checksum that a lakeFS server keeps for an object says about its bytes.

An object that came in one piece has the md5 of its bytes. One that came by multipart upload (every large file through
the S3 gateway) has the md5 of the md5s of its parts, and looks just the same: 32 hexadecimal digits. The sizes of the
parts are not kept, but clients cut into equal parts of whole MiB or MB, of at least 5 MiB, so the likely sizes are
tried, the usual ones first. What fits none of them is damaged, or was cut in a way that nobody uses.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

MIB = 1 << 20
SMALLEST_PART = 5 * MIB
_USUAL = (5, 8, 10, 16, 64, 32, 100, 128, 25, 50, 256, 512)
# Trying all costs some hundred times the md5 of an object, for those alone that are damaged.
_LIKELY = ((MIB, (*_USUAL, *range(5, 129))), (10**6, range(5, 129)))
PART_SIZES = tuple(dict.fromkeys(unit * number for unit, numbers in _LIKELY for number in numbers))
_MD5 = re.compile(r"[0-9a-f]{32}")
Pieces = Callable[[], Iterable[bytes | memoryview]]  # reads the object again, in pieces of any size


def fits(checksum: str, size: int, pieces: Pieces, *, whole: str = "") -> bool | None:
    """Tell whether bytes have a checksum: yes, no, or None where it is no md5.

    Parameters
    ----------
    pieces : callable
        Gives the bytes from the start; it is called again for each way in which they may have been cut.
    whole : str
        Their md5, if it was computed already.
    """
    if not _MD5.fullmatch(checksum):
        return None
    whole = whole or _md5(pieces()).hexdigest()
    if checksum in {whole, hashlib.md5(bytes.fromhex(whole), usedforsecurity=False).hexdigest()}:
        return True
    if size <= SMALLEST_PART:
        return False
    return any(_of_parts(pieces(), part) == checksum for part in PART_SIZES if part < size)


def _md5(pieces: Iterable[bytes | memoryview]) -> "hashlib._Hash":
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest


def _of_parts(pieces: Iterable[bytes | memoryview], part: int) -> str:
    digests = b"".join(_md5([piece]).digest() for piece in _recut(pieces, part))
    return hashlib.md5(digests, usedforsecurity=False).hexdigest()


def _recut(pieces: Iterable[bytes | memoryview], part: int) -> Iterator[bytes]:
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= part:
            yield bytes(held[:part])
            del held[:part]
    if held:
        yield bytes(held)
