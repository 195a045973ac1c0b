"""Which contents were read back when, in a few rows whatever their number.

A content is a point: its slot (a number that depends on its name alone) and its birth (the commit that first held
it). What a run has checked is a set of rectangles in that plane; all of them together cover it without overlap::

        slot
     ffff..|      :                 :         |
           |      :    1 March      : never   |     a row per rectangle: slots low..high, births since..until,
           | 9 Feb:-----------------:         |     when it was checked (NULL: never), how much lies in it
           |      :    3 March      :         |
     0000..|______:_________________:_________|_ birth
           0     410               912      1050

A run takes the oldest rectangle and works upward through its slots; where the budget ends, it cuts. What was committed
since the last run lies right of everything, so it is never taken for checked, whatever its slot. Rectangles of one run
that touch are joined. A million new objects are one row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from lake.integrity import Inventory

LOWEST, HIGHEST = 0, 2**64 - 1


@dataclass(frozen=True, slots=True)
class Region:
    """Contents with slots `low..high` (inclusive) and births `since..until` (half-open), and when they were checked."""

    low: int
    high: int
    since: int
    until: int
    checked: datetime | None

    def below(self, slot: int) -> "Region":
        """Give the part up to `slot`, inclusive."""
        return replace(self, high=slot)

    def above(self, slot: int) -> "Region | None":
        """Give the part beyond `slot`, or None if nothing is left."""
        return replace(self, low=slot + 1) if slot < self.high else None


def extended(regions: Sequence[Region], until: int) -> list[Region]:
    """Add what was committed since the last run, as never checked."""
    since = max((region.until for region in regions), default=0)
    fresh = [Region(LOWEST, HIGHEST, since, until, None)] if until > since else []
    return [*regions, *fresh]


def by_age(regions: Iterable[Region]) -> list[Region]:
    """Sort: what was never checked first, then what was checked longest ago."""
    return sorted(regions, key=lambda r: (r.checked is not None, r.checked or datetime.min, r.since, r.low))


def not_after(regions: Iterable[Region], now: datetime) -> list[Region]:
    """Take checks that a wrong clock dated in the future for ones of now: else their turn comes when that day has."""
    return [replace(r, checked=now) if r.checked is not None and r.checked > now else r for r in regions]


def members(region: Region, inventory: Inventory) -> NDArray[np.intp]:
    """Give the contents that lie in a region, by slot."""
    inside = (inventory.slots >= np.uint64(region.low)) & (inventory.slots <= np.uint64(region.high))
    inside &= (inventory.births >= region.since) & (inventory.births < region.until)
    which = np.flatnonzero(inside)
    return which[np.argsort(inventory.slots[which], kind="stable")]


def joined(regions: Sequence[Region]) -> list[Region]:
    """Join regions that were checked at one time and touch, until none do."""
    todo = list(regions)
    while True:
        for along in (_beside, _on_top):
            todo, fewer = _join(todo, along)
            if fewer:
                break
        else:
            return todo


def _join(regions: Sequence[Region], along: "_Along") -> tuple[list[Region], bool]:
    found: list[Region] = []
    for region in sorted(regions, key=along.key):
        if found and found[-1].checked == region.checked and along.touch(found[-1], region):
            found[-1] = along.one(found[-1], region)
        else:
            found.append(region)
    return found, len(found) < len(regions)


class _Along:
    """A direction in which regions touch."""

    def __init__(self, *, births: bool) -> None:
        self._births = births

    def key(self, region: Region) -> tuple[object, ...]:
        age = (region.checked is not None, region.checked or datetime.min)
        if self._births:
            return (*age, region.low, region.high, region.since)
        return (*age, region.since, region.until, region.low)

    def touch(self, left: Region, right: Region) -> bool:
        if self._births:
            return (left.low, left.high, left.until) == (right.low, right.high, right.since)
        return (left.since, left.until, left.high + 1) == (right.since, right.until, right.low)

    def one(self, left: Region, right: Region) -> Region:
        return replace(left, until=right.until) if self._births else replace(left, high=right.high)


_beside, _on_top = _Along(births=True), _Along(births=False)
