"""Checks the files in which a lakeFS server keeps its trees, byte by byte, as it does not.

A range that is damaged in the store is not an error to the server: it lists the tree without it, and answers 200. So
where the store lies on this machine its files are read here. They are sorted tables (RocksDB's format 2)::

    block | block | ... | properties | metaindex | index | footer (53 bytes)

Every block ends in a byte for its compression and a masked crc32c of both. The footer says where index and metaindex
lie, these say where all others do. The blocks must fill the file without a gap, so no byte is left unchecked.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import google_crc32c
import pyarrow as pa

_FOOTER = 53
_TRAILER = 5
_ENDING = (2).to_bytes(4, "little") + bytes.fromhex("f7cff485b741e288")
_CRC32C, _PLAIN, _SNAPPY = 1, 0, 1
# An id of 64 digits behind its length, which Go doubles to leave room for a sign.
_ID, _NAMED, _HEX = 64, bytes.fromhex("8001"), re.compile(rb"[0-9a-f]{64}")
_FIRST, _LAST, _COUNT, _BYTES = 1, 2, 4, 2
Handle = tuple[int, int]  # offset and length of a block, without its trailer


@dataclass(frozen=True, slots=True)
class Range:
    """What a metarange says of a range: its id, its first and last key, and how many objects it holds."""

    id: str
    first: bytes
    last: bytes
    count: int


class Damaged(ValueError):
    """A table is not what was written; the message says where."""


def blocks(table: bytes) -> Iterator[bytes]:
    """Yield the content of every block of a table, or raise `Damaged` at the first that is not sound."""
    try:
        yield from _blocks(table)
    except (IndexError, pa.ArrowException, OSError, OverflowError) as error:
        raise Damaged(f"its index leads nowhere: {error}") from error


def ranges(metarange: bytes) -> Iterator[Range]:
    """Yield the ranges that a metarange names, in the order of their keys; nothing if the table is one of objects."""
    for block in blocks(metarange):
        yield from ranges_in(block)


def ranges_in(block: bytes) -> Iterator[Range]:
    """Yield the ranges that a block of a metarange names.

    A value is two strings, each behind its length: the id, and a protocol buffer of key, key, bytes and count.
    """
    for value in _values(block):
        if not value.startswith(_NAMED):
            continue
        name = value[len(_NAMED) : len(_NAMED) + _ID]
        if _HEX.fullmatch(name):
            _, at = _varint(value, len(_NAMED) + _ID)
            fields = _fields(value[at:])
            first, last, count = (fields.get(number) for number in (_FIRST, _LAST, _COUNT))
            if isinstance(first, bytes) and isinstance(last, bytes) and isinstance(count, int):
                yield Range(name.decode(), first, last, count)


def _fields(message: bytes) -> dict[int, bytes | int]:
    """Read a protocol buffer of numbers and strings: numbers of fields to what they hold."""
    found: dict[int, bytes | int] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, at = _varint(message, at)
        found[tag >> 3] = number
        if tag & 7 == _BYTES:
            found[tag >> 3] = message[at : at + number]
            at += number
        elif tag & 7:
            raise Damaged(f"it says of a range what is of the unknown kind {tag & 7}")
    return found


def _blocks(table: bytes) -> Iterator[bytes]:
    footer = table[-_FOOTER:]
    if len(footer) < _FOOTER or footer[-len(_ENDING) :] != _ENDING or footer[0] != _CRC32C:
        raise Damaged("it does not end as a table does")
    at = 1
    metaindex, at = _handle(footer, at)
    index, at = _handle(footer, at)
    if any(footer[at : -len(_ENDING)]):
        raise Damaged("its last bytes are not empty")
    heads = [_block(table, metaindex), _block(table, index)]
    named = [_handles(head) for head in heads]
    bodies = [_block(table, handle) for handle in (*named[0], *named[1])]
    yield from (*heads, *bodies)
    covered = {metaindex, index, *named[0], *named[1]}
    if not _fills(covered, table):
        # A large table has an index of indexes.
        inner = [handle for body in bodies[len(named[0]) :] for handle in _handles(body)]
        for handle in inner:
            yield _block(table, handle)
        if not _fills(covered.union(inner), table):
            raise Damaged("its blocks do not fill it")


def _fills(handles: Collection[Handle], table: bytes) -> bool:
    at = 0
    for offset, length in sorted(handles):
        if offset != at:
            return False
        at = offset + length + _TRAILER
    return at == len(table) - _FOOTER


def _handles(index: bytes) -> list[Handle]:
    return [_handle(value, 0)[0] for value in _values(index)]


def _block(table: bytes, handle: Handle) -> bytes:
    offset, length = handle
    end = offset + length
    if end + _TRAILER > len(table) - _FOOTER:
        raise Damaged(f"a block of {length} bytes at {offset} is said to be in {len(table)} bytes")
    crc = google_crc32c.value(table[offset : end + 1])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if masked != int.from_bytes(table[end + 1 : end + _TRAILER], "little"):
        raise Damaged(f"the block of {length} bytes at {offset} has the wrong checksum")
    data = table[offset:end]
    if table[end] == _PLAIN:
        return data
    if table[end] != _SNAPPY:
        raise Damaged(f"the block at {offset} has the unknown compression {table[end]}")
    size, _ = _varint(data, 0)
    return bytes(pa.Codec("snappy").decompress(data, size))


def _values(block: bytes) -> Iterator[bytes]:
    """Yield the values of a block: `shared unshared length | rest of key | value`, then an array of restarts."""
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    at = 0
    while at < end:
        _, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        yield block[at + rest : at + rest + length]
        at += rest + length


def _handle(data: bytes, at: int) -> tuple[Handle, int]:
    offset, at = _varint(data, at)
    length, at = _varint(data, at)
    return (offset, length), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte and shift:
                raise Damaged("a number in it is longer than it need be")
            return value, at
        shift += 7
