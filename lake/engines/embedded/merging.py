"""Three-way merge of trees, by whole units: what both `merge` and `revert` do."""

from collections.abc import Collection
from dataclasses import dataclass

from lake.engines.embedded.trees import Tree, Trees
from lake.engines.embedded.workspaces import Values
from lake.names import conflict, contested_units, unit_of
from lake.repository import Strategy


@dataclass(frozen=True, slots=True)
class Rules:
    """How a merge decides.

    Parameters
    ----------
    ours, theirs : str
        Names of the two sides, for the error.
    strategy : "source-wins", "dest-wins" or None
        Decides single objects changed on both sides.
    contested : tuple of prefixes
        Units below them are treated as single objects.
    """

    ours: str
    theirs: str
    strategy: Strategy | None = None
    contested: tuple[str, ...] = ()


def changes(trees: Trees, base: Tree, tree: Tree) -> Values:
    """Map each key that differs from `base` to its new value, None for a removal."""
    return {key: after for key, _, after in trees.delta(base, tree)}


def merged(trees: Trees, base: Tree, ours: Tree, theirs: Tree, rules: Rules) -> Values:
    """Give the edits that bring into `ours` what `theirs` changed since `base`, or raise `ConflictError`."""
    right = changes(trees, base, theirs)
    if base.digest == ours.digest:
        return right
    left = changes(trees, base, ours)
    units, keys = _contested(left, right, rules.contested)
    if units or (keys and rules.strategy is None):
        raise conflict((rules.ours, rules.theirs), units, () if rules.strategy else keys)
    lost = {key.encode() for key in keys} if rules.strategy == "dest-wins" else set()
    return {key: value for key, value in right.items() if key not in lost}


def _contested(left: Values, right: Values, free: Collection[str]) -> tuple[list[str], list[str]]:
    """Name the units, and the keys outside them, that both sides changed to different content."""
    both = {unit_of(key.decode()) for key in right} & {unit_of(key.decode()) for key in left} - {None}
    # A unit counts as a whole: all that either side changed in it is compared.
    sides = [
        {key.decode(): value for key, value in side.items() if unit_of(key.decode()) in both} for side in (left, right)
    ]
    units = [unit for unit in contested_units(*sides) if not unit.startswith(tuple(free))]
    taken = set(units)
    keys = [key.decode() for key in left.keys() & right.keys() if left[key] != right[key]]
    return units, sorted(key for key in keys if unit_of(key) not in taken)
