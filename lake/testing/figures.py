"""Times of the same work done in several ways, in one table: medians with their range."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Figures:
    """Takes times and prints them; `ways` are the columns.

    A row is made by its first time. A way that does not do a row's work has no time there; the first way that does is
    what the others are compared with.
    """

    def __init__(self, title: str, *ways: str) -> None:
        self._title, self._ways = title, ways
        self._rows: dict[str, dict[str, list[float]]] = {}

    def timed(self, way: str, row: str, work: Callable[[], T]) -> T:
        """Do the work and note its seconds; give what it gave."""
        begun = time.perf_counter()
        result = work()
        self.note(way, row, time.perf_counter() - begun)
        return result

    def note(self, way: str, row: str, seconds: float) -> None:
        """Note a time that was taken elsewhere."""
        self._rows.setdefault(row, {}).setdefault(way, []).append(seconds)

    def median(self, way: str, row: str) -> float:
        """Give seconds; KeyError where there are none."""
        return statistics.median(self._rows[row][way])

    def ratio(self, way: str, row: str) -> float:
        """Tell how many times as long as the row's first way this one took."""
        first = next(name for name in self._ways if name in self._rows[row])
        return self.median(way, row) / self.median(first, row)

    def show(self, record: Callable[[str, object], None]) -> None:
        """Print the table, in ms, and hand each figure to pytest's `record_property`."""
        print(f"\n{self._title}: ms, median (range)")
        print(f"{'':30}" + "".join(f"{way:>28}" for way in self._ways) + f"{'n':>4}  times the first")
        for row, taken in self._rows.items():
            cells = [_cell(taken.get(way, ())) for way in self._ways]
            ratios = [f"{self.ratio(way, row):.2f}" for way in self._ways if way in taken][1:]
            rounds = max(len(seconds) for seconds in taken.values())
            print(f"{row:30}" + "".join(f"{cell:>28}" for cell in cells) + f"{rounds:>4}  {', '.join(ratios)}")
            for way, cell in zip(self._ways, cells, strict=True):
                record(f"{self._title}, {row}, {way}", cell)


def _cell(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    middle, least, most = (one * 1e3 for one in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"
