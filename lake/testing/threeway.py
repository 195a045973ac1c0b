"""The rule of every merge, on dictionaries: what two sides changed since a base, and what comes of it."""

from collections.abc import Mapping

from lake.names import conflict, contested_units, unit_of
from lake.repository import Change, ObjectStat, Strategy

Tree = Mapping[str, ObjectStat]


def identities(tree: Tree) -> dict[str, object]:
    """Map keys to what makes two objects the same."""
    return {key: entry.identity for key, entry in tree.items()}


def changes(old: Tree, new: Tree) -> dict[str, object]:
    """Map each key that differs to its new identity, None for a removal."""
    before, after = identities(old), identities(new)
    return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def two_way(old: Tree, new: Tree, prefix: str = "") -> list[Change]:
    """Tell two trees apart."""
    kinds = {
        key: "added" if key not in old else "removed" if identity is None else "changed"
        for key, identity in changes(old, new).items()
        if key.startswith(prefix)
    }
    return [Change(key, kinds[key]) for key in sorted(kinds)]  # type: ignore[arg-type]


def three_dot(base: Tree, ours: Tree, theirs: Tree, prefix: str) -> list[Change]:
    """Tell what a merge of `theirs` into `ours` would meet."""
    left, right = changes(base, ours), changes(base, theirs)
    return [
        Change(change.key, "conflict") if change.key in left else change
        for change in two_way(base, theirs, prefix)
        if change.key not in left or left[change.key] != right[change.key]
    ]


def three_way(
    base: Tree,
    ours: Tree,
    theirs: Tree,
    names: tuple[str, str],
    strategy: Strategy | None = None,
    contested: tuple[str, ...] = (),
) -> Tree:
    """Apply what `theirs` changed since `base` to `ours`, by whole units, or raise `ConflictError`."""
    left, right = changes(base, ours), changes(base, theirs)
    units = [unit for unit in contested_units(left, right) if not unit.startswith(contested)]
    keys = sorted(k for k in left.keys() & right.keys() if left[k] != right[k] and unit_of(k) not in units)
    if units or (keys and strategy is None):
        raise conflict(names, units, () if strategy else keys)
    result = dict(ours)
    for key in right.keys() - (set(keys) if strategy == "dest-wins" else set()):
        if right[key] is None:
            result.pop(key, None)
        else:
            result[key] = theirs[key]
    return result
