"""Tries a stage's tasks until each is done or given up; tells apart what may pass, what must stop, and what never will.

::

    transient   the disk, a worker that died: again, after a pause
    poison      the same block raised every time it was tried: recorded with its cause; the others go on
    fatal       the request itself is wrong (bad input, no permission, somebody else's lock), or the disk is full or
                the server gone, which every other block would find too: stop at once

A kernel's own exception is tried again too, without a pause: it may have been the machine. If it is not, the block is
poison after `attempts` tries.
"""

import heapq
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lake.errors import OF_THE_MACHINE, BadInput, ConflictError, LakeError, NotFound, StorageError
from transforms.executors import Executor, WorkerDied

ErrorClass = Literal["transient", "poison", "fatal"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a block is tried, and the pause before the second attempt, which doubles from then on (seconds)."""

    attempts: int = 3
    pause_s: float = 0.5
    longest_s: float = 30.0

    def pause(self, failed: int) -> float:
        """Give the pause after `failed` attempts."""
        return min(self.pause_s * 2.0 ** (failed - 1), self.longest_s)


@dataclass(frozen=True, slots=True)
class Job:
    """One task with its key."""

    key: str
    function: Callable[[Any], Any]
    task: Any


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that is done: its value, the attempts it took and the seconds that failed ones cost."""

    key: str
    value: Any
    attempts: int
    wasted_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that was given up: poison, or the fatal error that stops the stage."""

    key: str
    kind: ErrorClass
    error: BaseException
    attempts: int
    wasted_s: float

    @property
    def cause(self) -> str:
        """The error in one line."""
        return f"{type(self.error).__name__}: {self.error}"

    @property
    def trace(self) -> str:
        """Where it was raised, as far as is known."""
        return "".join(traceback.format_exception(self.error))[-4000:]


def classify(error: BaseException) -> ErrorClass:
    """Tell whether an error may pass, never will, or concerns the request itself."""
    if isinstance(error, (*OF_THE_MACHINE, BadInput, NotFound, ConflictError)):
        return "fatal"
    if isinstance(error, StorageError | OSError | WorkerDied | MemoryError):
        return "transient"
    return "fatal" if isinstance(error, LakeError) else "poison"


def dispatch(executor: Executor, jobs: Iterable[Job], retry: Retry) -> Iterator[Finished | Failed]:
    """Carry out every job; yield each once, as it ends.

    After a fatal failure no job is begun any more, and those in flight are finished and yielded. Jobs are drawn from
    `jobs` only as workers become free, so a million of them cost no memory.
    """
    waiting = iter(jobs)
    again: deque[Job] = deque()
    later: list[tuple[float, int, Job]] = []
    known: dict[str, tuple[Job, int, float, float]] = {}  # job, failures, seconds wasted, when it was begun
    stopping = False
    while True:
        while later and later[0][0] <= time.monotonic():
            again.append(heapq.heappop(later)[2])
        while not stopping and executor.in_flight < executor.capacity:
            job = again.popleft() if again else next(waiting, None)
            if job is None:
                break
            _, failures, wasted, _ = known.get(job.key, (job, 0, 0.0, 0.0))
            known[job.key] = (job, failures, wasted, time.monotonic())
            executor.submit(job.key, job.function, job.task)
        if not executor.in_flight:
            if stopping or not (again or later):
                return
            if not again:
                time.sleep(max(0.0, later[0][0] - time.monotonic()))
            continue
        done = executor.next()
        job, failures, wasted, begun = known.pop(done.key)
        if done.error is None:
            yield Finished(done.key, done.value, failures + 1, wasted)
            continue
        failures, wasted = failures + 1, wasted + time.monotonic() - begun
        kind = classify(done.error)
        if kind == "fatal" or failures >= retry.attempts:
            stopping = stopping or kind == "fatal"
            yield Failed(done.key, "fatal" if kind == "fatal" else "poison", done.error, failures, wasted)
            continue
        known[job.key] = (job, failures, wasted, begun)
        if kind == "transient":
            heapq.heappush(later, (time.monotonic() + retry.pause(failures), len(known) + failures, job))
        else:
            again.append(job)
