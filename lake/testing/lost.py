"""A server that is killed in the middle of a command, right before any of its requests, and started again.

::

    lose(mortal, fresh, act, outcome, points=3)

What comes natively counts as a request too: the kill then falls between the look whether the server lives and what
TensorStore, delta-rs or polars ask it for, or while they wait.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar
from unittest.mock import patch

from lake import reach
from lake.engines.lakefs.wire import Wire
from lake.errors import ServerUnreachable
from lake.testing.server import MortalServer

WITHIN_S = 5.0
Target = TypeVar("Target")


def lose(
    mortal: MortalServer,
    fresh: Callable[[int], Target],
    act: Callable[[Target], object],
    outcome: Callable[[Target], object],
    points: int,
    *,
    stop: bool = False,
) -> list[ServerUnreachable | None]:
    """Kill the server at points all through a command, start it again, and run the same command again.

    Parameters
    ----------
    stop : bool
        Stop the server first, so that it takes connections and answers nothing; it is killed once that was told.
    fresh : callable
        Takes the number of the try and gives something new to work on; the first, 0, is not disturbed.
    act : callable
        The command, from opening its repository to closing it.
    outcome : callable
        What it has led to: must be the same as without a loss.

    Returns
    -------
    What each try raised; None where all had landed before, and only tidying was left.
    """
    undisturbed = fresh(0)
    with _before_each_request(lambda number: None) as numbers:
        act(undisturbed)
    total, expected = next(numbers) - 1, outcome(undisturbed)
    told = []
    for point in range(points):
        at = 1 + total * (2 * point + 1) // (2 * points)
        target = fresh(point + 1)
        try:
            told.append(_lose_at(mortal, mortal.freeze if stop else mortal.kill, target, act, at))
            mortal.kill()
            mortal.restart()
            act(target)
            assert outcome(target) == expected
        except Exception as error:
            error.add_note(f"lost before request {at} of {total}")
            raise
    assert any(told), "no try met the loss"
    return told


def _lose_at(
    mortal: MortalServer, lose_it: Callable[[], None], target: Target, act: Callable[[Target], object], at: int
) -> ServerUnreachable | None:
    killed: list[float] = []

    def kill(number: int) -> None:
        if number == at:
            lose_it()
            killed.append(time.monotonic())

    told = None
    with _before_each_request(kill):
        try:
            act(target)
        except ServerUnreachable as error:
            told = error
        took = time.monotonic() - killed[0]
    assert took < WITHIN_S, f"it took {took:.1f} s to say: {told}"
    if told is not None:
        assert told.exit_code == 6
        assert f":{mortal.state.port}" in told.message
        assert "server" in told.fix
    return told


@contextmanager
def _before_each_request(see: Callable[[int], None]) -> Iterator[Iterator[int]]:
    """Call `see` with the number of each request of this process, before it is sent or waited for."""
    numbers = count(1)
    attempt, settle, check = Wire._attempt, reach.settle, reach.check

    def seen_attempt(*arguments: Any, **options: Any) -> Any:
        see(next(numbers))
        return attempt(*arguments, **options)

    def seen_settle(future: Any, location: Any) -> Any:
        if location.s3 is not None:
            see(next(numbers))
        return settle(future, location)

    def seen_check(location: Any, **options: Any) -> None:
        check(location, **options)
        if location.s3 is not None:
            see(next(numbers))

    with (
        patch.object(Wire, "_attempt", seen_attempt),
        patch.object(reach, "settle", seen_settle),
        patch.object(reach, "check", seen_check),
    ):
        yield numbers
