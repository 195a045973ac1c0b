"""What a long command shows while it works: bars on a terminal, one line a step elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Screen:
    """Steps and bars. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, object] = {}

    @contextmanager
    def step(self, title: str) -> Iterator["Screen"]:
        """Show a step while it runs, and how long it took."""
        started = time.monotonic()
        if sys.stderr.isatty():
            columns = (
                TextColumn("  {task.description:16}"),
                BarColumn(30),
                MofNCompleteColumn(),
            )
            with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as self._bars:
                self._console.print(f"[bold]{title}[/bold]")
                try:
                    yield self
                finally:
                    self._bars, self._tasks = None, {}
        else:
            yield self
        self._console.print(f"{title}: {time.monotonic() - started:.1f} s", markup=False)

    def blocks(self, stage: str, done: int, total: int, voxels: int = 0) -> None:
        """Move the bar of a stage; fits the runner's and QC's progress callbacks. Total 0: nobody knows how many."""
        del voxels
        if self._bars is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)
