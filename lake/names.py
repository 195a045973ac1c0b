"""Naming rules and merge units, the same on every engine (they are lakeFS's rules, plus our reserved words)."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lake.errors import BadInput, ConflictError, InvalidName

_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# A tag follows git's rules for a reference; `lock.cand-a` must pass, `a.lock` must not.
_TAG = re.compile(r"(?!.*(\.\.|@\{|\.lock(/|$)))[^\s/~^:?*\[\\\x00-\x1f\x7f.$@-][^\s/~^:?*\[\\\x00-\x1f\x7f$@]*(?<!\.)")
_PATTERN = re.compile(r"[A-Za-z0-9_*?-]+")
_COMMIT = re.compile(r"[0-9a-f]{64}")
MAIN = "main"  # the branch where releases live
RESERVED_PREFIXES = ("cand-", "session-", "lock.")
UNIT_ROOTS = ("tables", "volumes", "meshes", "skeletons")
MAX_KEY_BYTES = 1024
_NAMED = 5  # of what two sides changed, in a message


def check_branch(name: str) -> str:
    """Return `name`, or raise `InvalidName`: letters, digits, `_`, `-`, not starting with `-`."""
    if not _BRANCH.fullmatch(name):
        raise InvalidName(f"branch name {name!r} is not valid", fix="use letters, digits, '_' and '-'")
    return name


def check_tag(name: str) -> str:
    """Return `name`, or raise `InvalidName`: git's rules for a reference, without slashes."""
    if not _TAG.fullmatch(name):
        raise InvalidName(f"tag name {name!r} is not valid", fix="use letters, digits, '.', '_' and '-'")
    return name


def check_pattern(pattern: str) -> str:
    """Return `pattern`, or raise `InvalidName` if it is no glob of branch names (`*` and `?`, no brackets)."""
    # lakeFS accepts a malformed pattern and then answers every write with an internal error: refuse it at the door.
    if not _PATTERN.fullmatch(pattern):
        raise InvalidName(f"pattern {pattern!r} is not valid", fix="use letters, digits, '_', '-', '*' and '?'")
    return pattern


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a copy, or raise `BadInput` naming the entry that is not text (a server would refuse it late)."""
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadInput(f"metadata {name!r}: {value!r} is not text", fix="convert names and values to str")
    return dict(metadata)


def check_release(name: str) -> str:
    """Return `name`, or raise `InvalidName` if it cannot name a release (reserved prefixes included)."""
    if not _RELEASE.fullmatch(name) or name.startswith(RESERVED_PREFIXES) or name in {"main", "archive", "ops"}:
        raise InvalidName(
            f"release name {name!r} is not valid",
            fix="use letters, digits, '_' and '-'; not main, archive, ops, nor cand-, session-, lock. in front",
        )
    return name


def check_content(data: object) -> None:
    """Raise `BadInput` naming the type of what is neither bytes nor a `Path`."""
    if not isinstance(data, bytes | bytearray | memoryview | Path):
        raise BadInput(
            f"what is put is of type {type(data).__name__}", fix="give bytes (text.encode()), or the Path of a file"
        )


def check_key(key: str) -> str:
    """Return `key`, or raise `InvalidName`: 1 to 1024 bytes of UTF-8, anything else goes."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidName(f"key {key!r} is not valid UTF-8", fix="encode the key as UTF-8") from error
    if not 1 <= size <= MAX_KEY_BYTES:
        raise InvalidName(f"key {key[:60]!r} has {size} bytes", fix=f"use 1 to {MAX_KEY_BYTES} bytes")
    return key


def check_paths(objects: Collection[str], prefixes: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Give the paths that a log is asked for, None if it is not; `InvalidName` for one that no key can be or begin."""
    if isinstance(objects, str) or isinstance(prefixes, str):
        raise BadInput(f"paths {objects or prefixes!r} are one text", fix="give a list of keys or prefixes")
    found = tuple(map(check_key, objects)), tuple(map(check_key, prefixes))
    return found if any(found) else None


def is_commit_id(text: str) -> bool:
    """Tell whether `text` has the form of a full commit id (64 hexadecimal digits)."""
    return _COMMIT.fullmatch(text) is not None


def unit_of(key: str) -> str | None:
    """Name the merge unit that holds `key` (`tables/synapses/`), or None for a key outside units."""
    parts = key.split("/", 2)
    if len(parts) == 3 and parts[0] in UNIT_ROOTS and parts[1]:
        return f"{parts[0]}/{parts[1]}/"
    return None


def conflict(sides: tuple[str, str], units: Sequence[str], keys: Sequence[str]) -> ConflictError:
    """Make the error for units and other keys that two sides (destination first) changed to different content."""
    named = [*units, *keys]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ConflictError(
        f"{sides[0]!r} and {sides[1]!r} both changed {', '.join(named[:_NAMED])}{more}",
        fix="no strategy decides a table or a volume: revert it on one side, or merge it as `contested` and write it "
        "whole again"
        if units
        else "take one side, or replace what both changed and try again",
        units=units,
        keys=keys,
    )


def contested_units(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Name the units that both sides changed, to different content.

    Parameters
    ----------
    ours, theirs : mapping of key to identity
        What each side changed since the base; None stands for a removal.
    """
    by_side: list[dict[str, dict[str, object]]] = []
    for changes in (ours, theirs):
        units: dict[str, dict[str, object]] = {}
        for key, identity in changes.items():
            unit = unit_of(key)
            if unit is not None:
                units.setdefault(unit, {})[key] = identity
        by_side.append(units)
    left, right = by_side
    return sorted(unit for unit in left.keys() & right.keys() if left[unit] != right[unit])
