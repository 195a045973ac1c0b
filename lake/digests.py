"""Digests that do not depend on codec, chunking, engine, key order or row order. All are sha256 in hexadecimal."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box
from lake.errors import BadInput


def canonical_json(obj: object) -> bytes:
    """Write JSON in the one form that is digested: sorted keys, no spaces, UTF-8, shortest floats, no NaN.

    numpy scalars, tuples and `Path` are accepted (as number, array, text); anything else that JSON lacks, and
    keys that are not text, are `BadInput`.
    """
    _check_keys(obj)
    try:
        text = json.dumps(
            obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"cannot be written as canonical JSON: {error}", fix="use numbers, text, lists and maps"
        ) from error
    return text.encode()


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _check_keys(obj: object) -> None:
    # json.dumps turns 1, True and None into text keys by itself: two maps that differ would digest alike.
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise BadInput(f"key {key!r} is not text", fix="use text keys in what is digested")
            _check_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_keys(value)


def json_digest(obj: object) -> str:
    """Digest canonical JSON."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def bytes_digest(data: bytes) -> str:
    """Digest bytes."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Digest a file's bytes without reading it whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_digest(array: NDArray[Any], box: Box) -> str:
    """Digest shape, dtype, box and the decoded bytes in C order, little-endian.

    Parameters
    ----------
    array : (z, y, x) or (c, z, y, x)
        What was read or is to be written; its memory layout does not count.
    box : Box
        Where it lies, global voxels at its scale.
    """
    if array.shape[-3:] != box.shape:
        raise BadInput(f"array has shape {array.shape}, its box {box} has {box.shape}", fix="give the array's own box")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(canonical_json([list(array.shape), array.dtype.name, str(box)]) + b"\n")
    if little.flags.c_contiguous:
        digest.update(little.data if little.size else b"")
    else:
        # One z plane (or channel) at a time: a whole copy in C order would double the memory of a block.
        for part in little:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def merkle_root(rows: Iterable[Sequence[object]]) -> str:
    """Give the root of the binary hash tree over `rows` in sorted order; it does not depend on the order given.

    Leaves are sha256(0x00 + canonical JSON of the row), inner nodes sha256(0x01 + left + right), an odd node moves up
    unchanged (as in RFC 6962), so neither a leaf nor a shorter list can pass for an inner node. No rows: sha256 of
    nothing.
    """
    level = [hashlib.sha256(b"\0" + line).digest() for line in sorted(canonical_json(list(row)) for row in rows)]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        paired = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + (level[-1:] if len(level) % 2 else [])
    return level[0].hex()
