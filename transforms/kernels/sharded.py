"""Many small objects in few files, read by id: neuroglancer's `neuroglancer_uint64_sharded_v1`, bytes to bytes.

::

    <shard>.shard = [index: start, end of each minishard's index][data ...][minishard indices]
    minishard index (3, n) uint64 = id minus the one before | gap before its data | bytes of its data

    shard and minishard of an id = its lowest bits                  (hash "identity")

Ids here are root ids, sums of splitmix64 hashes: hashing them again would spread them no better.

Format: google/neuroglancer, `datasource/precomputed/sharded.md`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lake.errors import BadInput


@dataclass(frozen=True, slots=True)
class Sharding:
    """How ids are spread over files.

    Parameters
    ----------
    minishard_bits, shard_bits : int
        2^minishard_bits indices in each of 2^shard_bits files.
    """

    minishard_bits: int = 0
    shard_bits: int = 0

    def __post_init__(self) -> None:
        if min(self.minishard_bits, self.shard_bits) < 0 or self.minishard_bits + self.shard_bits > 63:
            raise BadInput(f"{self} does not fit 63 bits", fix="give non-negative bits, 63 in all at most")

    @classmethod
    def for_count(cls, n: int) -> "Sharding":
        """Choose for `n` objects: about 64 a minishard, 16,384 a file."""
        bits = max(0, int(np.ceil(np.log2(max(n, 1) / 64))))
        return cls(min(bits, 8), max(0, bits - 8))

    def to_json(self) -> dict[str, str | int]:
        """Give the `sharding` member of an `info` file."""
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": 0,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "raw",
            "data_encoding": "raw",
        }

    def minishard_of(self, key: int) -> int:
        """Number of the index that lists `key`."""
        return key & ((1 << self.minishard_bits) - 1)

    def file_of(self, key: int) -> str:
        """Name of the file that holds `key`."""
        shard = key >> self.minishard_bits & ((1 << self.shard_bits) - 1)
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: `data` is found by id; `before` lies in front of it and is found from it (mesh fragments)."""

    data: bytes
    before: bytes = b""


def write_shards(entries: Mapping[int, Entry], sharding: Sharding) -> dict[str, bytes]:
    """Lay entries out in files.

    Parameters
    ----------
    entries : id -> Entry
        Ids in [0, 2^63).

    Returns
    -------
    dict of file name to bytes
        Only files that hold something, by name; the same entries give the same bytes in any order.
    """
    files: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(entries):
        if not 0 <= key < 2**63:
            raise BadInput(f"id {key} is not in 0..2^63", fix="give root or supervoxel ids")
        files[sharding.file_of(key)][sharding.minishard_of(key)].append(key)
    return {name: _shard(entries, files[name], sharding) for name in sorted(files)}


def _shard(entries: Mapping[int, Entry], minishards: Mapping[int, list[int]], sharding: Sharding) -> bytes:
    body: list[bytes] = []
    tables: dict[int, bytes] = {}
    at = 0
    for number in sorted(minishards):
        keys = minishards[number]
        table = np.zeros((3, len(keys)), "<u8")
        end = 0  # the first gap counts from the end of the shard index
        for column, key in enumerate(keys):
            entry = entries[key]
            start = at + len(entry.before)
            table[:, column] = key - (keys[column - 1] if column else 0), start - end, len(entry.data)
            body += [entry.before, entry.data]
            at = end = start + len(entry.data)
        tables[number] = table.tobytes()
    index = np.zeros((1 << sharding.minishard_bits, 2), "<u8")
    for number, raw in tables.items():
        index[number] = at, at + len(raw)
        body.append(raw)
        at += len(raw)
    return index.tobytes() + b"".join(body)


def read_entry(shard: bytes, key: int, sharding: Sharding) -> tuple[bytes, int] | None:
    """Find one object in a file's bytes.

    Returns
    -------
    (data, start) or None
        The object and where it starts in the file, so that what lies before it can be read.
    """
    head = 16 << sharding.minishard_bits
    index = np.frombuffer(shard[:head], "<u8").reshape(-1, 2)
    start, end = (int(v) + head for v in index[sharding.minishard_of(key)])
    table = np.frombuffer(shard[start:end], "<u8").reshape(3, -1)
    keys = np.cumsum(table[0])
    found = np.flatnonzero(keys == key)
    if not len(found):
        return None
    column = int(found[0])
    offset = head + int(table[1][: column + 1].sum() + table[2][:column].sum())
    return shard[offset : offset + int(table[2][column])], offset
