"""Computes the id of a lakeFS commit from what the server says of it, as the server did when it was made.

The id is the sha256 over the fields, each with a byte for its type and its length (lakeFS `pkg/ident`, commit version
1). So whatever flips in a stored commit, its id no longer fits.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

_BYTES, _STRING, _INT, _STRINGS, _MAP, _INNER = (bytes([number]) for number in range(6))


def identity_of(entry: Mapping[str, Any]) -> str:
    """Compute the id of a commit, given as the server's JSON: what it has, or must have to be taken (`importing`)."""
    parents = [_string(parent) for parent in entry["parents"] or ()]
    inner = hashlib.sha256(_STRINGS + _int(len(parents)) + b"".join(parents)).digest()
    metadata = entry.get("metadata") or {}
    pairs = [_string(name) + _string(metadata[name]) for name in sorted(metadata, key=str.encode)]
    fields = [
        _string("commit:v1"),
        _string(entry["committer"]),
        _string(entry["message"]),
        _string(entry["meta_range_id"]),
        _int(int(entry["creation_date"])),
        _MAP + _int(len(pairs)) + b"".join(pairs),
        _INNER + _BYTES + _int(len(inner)) + inner,
    ]
    return hashlib.sha256(b"".join(fields)).hexdigest()


def _int(value: int) -> bytes:
    return _INT + bytes([8]) + value.to_bytes(8, "big", signed=True)


def _string(text: str) -> bytes:
    data = text.encode()
    return _STRING + _int(len(data)) + data
