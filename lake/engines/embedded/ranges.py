"""How sorted records are cut and written: the block format of manifests.

A *record* is a key and a value; a value is 40 fixed bytes (a digest and a number) and a variable rest. In a range that
is object key -> sha256, size, attributes; in a tree it is last key -> digest of a range, its entries, its first key.
Keys are UTF-8, so sorted bytes are sorted code points, and 0xff (in no UTF-8 text) separates them::

    "EMB1" | records u32 | key bytes u64 | distinct rests u32 | rest bytes u64 | keys, 0xff between
           | records x 40 fixed bytes | if there are rests: records x u32 index (0 = empty) | rests, 0xff between

Integers are little-endian. A block is a pure function of its records, so equal content has an equal digest.
"""

import json
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lake.errors import CorruptObject
from lake.repository import Metadata, ObjectStat

FIXED = 40
MEAN_ENTRIES = 3072
DEFAULT_TYPE = "application/octet-stream"
_HEAD = struct.Struct("<4sIQIQ")
_MAGIC = b"EMB1"
_SEPARATOR = b"\xff"
_LIMIT = (1 << 32) // MEAN_ENTRIES
_SPREAD = 0x9E3779B1


def pack(digest: bytes, number: int, rest: bytes = b"") -> bytes:
    """Make a value."""
    return digest + number.to_bytes(8, "little") + rest


def digest_of(value: bytes) -> bytes:
    """Give the digest in a value."""
    return value[:32]


def number_of(value: bytes) -> int:
    """Give the number in a value: bytes of an object, or entries of a range."""
    return int.from_bytes(value[32:40], "little")


def pack_object(digest: bytes, size: int, content_type: str, metadata: Metadata) -> bytes:
    """Make the value of an object; the usual content type without metadata takes no room."""
    if content_type == DEFAULT_TYPE and not metadata:
        return pack(digest, size)
    rest = json.dumps([content_type, dict(sorted(metadata.items()))], separators=(",", ":"))
    return pack(digest, size, rest.encode())


def unpack_object(key: bytes, value: bytes, address: str) -> ObjectStat:
    """Describe the object behind a record."""
    size, checksum, rest = number_of(value), value[:32].hex(), value[FIXED:]
    if not rest:
        return ObjectStat(key.decode(), size, checksum, address=address)
    content_type, metadata = json.loads(rest)
    return ObjectStat(key.decode(), size, checksum, content_type, metadata, address)


def encode(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Write sorted records as a block."""
    joined = _SEPARATOR.join(keys)
    fixed = b"".join(values)
    rests: dict[bytes, int] = {}
    parts = [joined, fixed]
    if len(fixed) != FIXED * len(values):
        parts[1] = b"".join([value[:FIXED] for value in values])
        rests = {b"": 0}
        index = array("I", [rests.setdefault(value[FIXED:], len(rests)) for value in values])
        if sys.byteorder == "big":
            index.byteswap()
        del rests[b""]
        parts += [index.tobytes(), _SEPARATOR.join(rests)]
    rest_bytes = len(parts[3]) if rests else 0
    return b"".join([_HEAD.pack(_MAGIC, len(keys), len(joined), len(rests), rest_bytes), *parts])


def decode(block: bytes, name: str) -> tuple[list[bytes], list[bytes]]:
    """Read a block back, or raise `CorruptObject` if its parts do not add up."""
    count, body, rest_count, rest_at = _parts(block, name)
    if not count:
        return [], []
    index_at = body + count * FIXED
    keys = block[_HEAD.size : body].split(_SEPARATOR)
    values = [block[at : at + FIXED] for at in range(body, index_at, FIXED)]
    if rest_count:
        index = array("I", block[index_at:rest_at])
        if sys.byteorder == "big":
            index.byteswap()
        rests = [b"", *block[rest_at:].split(_SEPARATOR)]
        values = [value + rests[which] if which else value for value, which in zip(values, index, strict=True)]
    return keys, values


def fixed_of(block: bytes, name: str) -> memoryview:
    """Give the 40 fixed bytes of all records of a block, one after another, without reading anything else."""
    count, body, _, _ = _parts(block, name)
    return memoryview(block)[body : body + count * FIXED]


def _parts(block: bytes, name: str) -> tuple[int, int, int, int]:
    """Give the count of records, where their fixed bytes begin, the count of rests, and where those begin."""
    if len(block) < _HEAD.size or not block.startswith(_MAGIC):
        raise CorruptObject(f"manifest {name} is not a manifest", fix="restore it from a copy of the repository")
    _, count, key_bytes, rest_count, rest_bytes = _HEAD.unpack_from(block)
    body = _HEAD.size + key_bytes
    rest_at = body + count * FIXED + (4 * count if rest_count else 0)
    if len(block) != rest_at + rest_bytes:
        raise CorruptObject(f"manifest {name} has the wrong length", fix="restore it from a copy of the repository")
    return count, body, rest_count, rest_at


def differing(left: bytes, right: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """Give (key, value left, value right) where two blocks of the same keys differ; None if they must be decoded.

    Blocks that an edit of values has made from one another are compared as bytes, without an object per record.
    """
    if len(left) != len(right) or (shape := _plain(left)) is None or left[: shape[1]] != right[: shape[1]]:
        return None
    count, body = shape
    one, two = (np.frombuffer(block, np.uint8, count * FIXED, body) for block in (left, right))
    # As words of eight bytes, five a record.
    places = np.unique(np.flatnonzero((one != two).view(np.uint64)) // (FIXED // 8))
    edges = np.concatenate([[_HEAD.size - 1], _separators(left, _HEAD.size, body) + _HEAD.size, [body]])
    starts, stops, at = edges[places] + 1, edges[places + 1], body + places * FIXED
    return [
        (left[start:stop], left[v : v + FIXED], right[v : v + FIXED])
        for start, stop, v in zip(starts.tolist(), stops.tolist(), at.tolist(), strict=True)
    ]


def replaced(block: bytes, keys: Sequence[bytes], values: Sequence[bytes | None]) -> bytes | None:
    """Give a block with other values for keys that it holds, sorted; None if it must be decoded for that.

    The same bytes as decoding, changing and encoding it give, without an object per record.
    """
    if (shape := _plain(block)) is None:
        return None
    body = shape[1]
    there = b"".join([_SEPARATOR, block[_HEAD.size : body], _SEPARATOR])
    whole = memoryview(block)
    parts: list[bytes | memoryview] = []
    at = place = done = 0
    for key, value in zip(keys, values, strict=True):
        found = there.find(b"".join([_SEPARATOR, key, _SEPARATOR]), at)
        if found < 0 or value is None or len(value) != FIXED:
            return None
        place += int(np.count_nonzero(np.frombuffer(there, np.uint8, found - at, at) == _SEPARATOR[0]))
        at = found
        parts += whole[done : body + place * FIXED], value
        done = body + (place + 1) * FIXED
    return b"".join([*parts, whole[done:]])


def _separators(block: bytes, start: int, end: int) -> NDArray[np.intp]:
    """Say where the separators lie between two places in a block, counted from the first."""
    return np.flatnonzero(np.frombuffer(block, np.uint8, end - start, start) == _SEPARATOR[0])


def _plain(block: bytes) -> tuple[int, int] | None:
    """Give the count of records and where their values begin; None for an empty block or values with rests."""
    if len(block) < _HEAD.size or not block.startswith(_MAGIC):
        return None
    _, count, key_bytes, rest_count, _ = _HEAD.unpack_from(block)
    body = _HEAD.size + key_bytes
    if rest_count or not count or len(block) != body + count * FIXED:
        return None
    return count, body


def is_boundary(key: bytes) -> bool:
    """Tell whether a range ends after `key`: about one key in 3,072, whatever stands around it."""
    # The high bits of the product depend on all bits of the checksum, which alone is linear in the key.
    return (crc32(key) * _SPREAD) & 0xFFFFFFFF < _LIMIT


def cut(keys: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the half-open index ranges into which sorted keys are cut; only the last may lack a boundary."""
    start = 0
    sums = np.fromiter(map(crc32, keys), np.uint32, len(keys))
    for end in (np.flatnonzero(sums * np.uint32(_SPREAD) < _LIMIT) + 1).tolist():
        yield start, end
        start = end
    if start < len(keys):
        yield start, len(keys)
