"""Where blocks are computed: in this process, or in several. The serial executor is the default and the oracle.

An executor is told tasks and tells outcomes; it neither retries nor orders anything, so that what a run decides does
not depend on where it runs. Both give byte-equal outputs: every worker computes one block at a time on one thread.
"""

import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Protocol

from lake.errors import BadInput, nearest

# Set before numpy, torch and OpenCV are first imported in a worker: floats must not depend on the number of cores.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "NUMEXPR_MAX_THREADS"), "1"
)


class WorkerDied(Exception):
    """A worker process ended while it computed a block: killed, out of memory, or crashed in native code."""


@dataclass(frozen=True, slots=True)
class Done:
    """One finished task: its key, and its value or its error."""

    key: str
    value: Any = None
    error: BaseException | None = None


class Executor(Protocol):
    """Computes tasks, in any order."""

    name: str
    capacity: int  # tasks it likes to hold at a time: enough to keep every worker busy, no more

    @property
    def in_flight(self) -> int:
        """Tasks submitted and not yet told by `next`."""
        ...

    def submit(self, key: str, function: Callable[[Any], Any], task: Any) -> None:
        """Take a task; `function` and `task` must survive pickling."""
        ...

    def next(self) -> Done:
        """Wait for one task to end and tell its outcome; a worker that dies gives `WorkerDied` for its task."""
        ...

    def close(self) -> None:
        """Stop the workers; what is in flight is lost."""
        ...

    def __enter__(self) -> "Executor":
        """Hold the workers for the length of a `with` block."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


class _Closing:
    def close(self) -> None:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SerialExecutor(_Closing):
    """Computes in this process, in the order given."""

    name = "serial"
    capacity = 1

    def __init__(self) -> None:
        self._tasks: deque[tuple[str, Callable[[Any], Any], Any]] = deque()

    def __enter__(self) -> "SerialExecutor":
        return self

    @property
    def in_flight(self) -> int:
        """Tasks not yet computed."""
        return len(self._tasks)

    def submit(self, key: str, function: Callable[[Any], Any], task: Any) -> None:
        """Put a task at the end of the line."""
        self._tasks.append((key, function, task))

    def next(self) -> Done:
        """Compute the first task in line."""
        key, function, task = self._tasks.popleft()
        try:
            return Done(key, function(task))
        except Exception as error:
            return Done(key, error=error)

    def close(self) -> None:
        """Forget what was not computed."""
        self._tasks.clear()


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    key: str | None = None


class ProcessExecutor(_Closing):
    """Computes in `workers` processes of its own; one that dies is replaced and its task reported.

    Workers are spawned, not forked: TensorStore, DuckDB, polars and torch all keep threads that a fork would lose.
    The standard pool is not used because it fails every task in flight when one worker dies, so the block that kills
    its worker could not be told from its neighbours.
    """

    name = "processes"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cores()
        # One task waits in the pipe of each worker's queue, so that it never idles while the parent records.
        self.capacity = self.workers * 2
        self._waiting: deque[tuple[str, Callable[[Any], Any], Any]] = deque()
        self._pool: list[_Worker] = []
        self._ended: deque[Done] = deque()

    def __enter__(self) -> "ProcessExecutor":
        return self

    @property
    def in_flight(self) -> int:
        """Tasks waiting, being computed, or ended and not yet told."""
        return len(self._waiting) + len(self._ended) + sum(worker.key is not None for worker in self._pool)

    def submit(self, key: str, function: Callable[[Any], Any], task: Any) -> None:
        """Hand the task to an idle worker, or keep it for the next one."""
        self._waiting.append((key, function, task))
        self._feed()

    def next(self) -> Done:
        """Wait for the first worker to answer or to die."""
        while not self._ended:
            busy = [worker for worker in self._pool if worker.key is not None]
            ready = set(wait([w.pipe for w in busy] + [w.process.sentinel for w in busy]))
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    self._ended.append(self._collect(worker))
            self._feed()
        return self._ended.popleft()

    def close(self) -> None:
        """Stop every worker at once: a block is done only when its record is written, so nothing is half kept."""
        for worker in self._pool:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._pool:
            worker.process.join()
            worker.process.close()
        self._pool.clear()
        self._waiting.clear()
        self._ended.clear()

    def _feed(self) -> None:
        while self._waiting:
            idle = next((worker for worker in self._pool if worker.key is None), None)
            if idle is None:
                if len(self._pool) >= self.workers:
                    return
                idle = self._start()
            key, function, task = self._waiting.popleft()
            idle.key = key
            try:
                idle.pipe.send((function, task))
            except (BrokenPipeError, ConnectionResetError):
                self._ended.append(self._collect(idle))

    def _collect(self, worker: _Worker) -> Done:
        key = worker.key or ""
        worker.key = None
        try:
            # The pipe first: a worker may answer and then be killed.
            if worker.pipe.poll():
                value, error = worker.pipe.recv()
                return Done(key, value, error)
        except (EOFError, OSError):
            pass
        self._pool.remove(worker)
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return Done(key, error=WorkerDied(f"the worker computing {key} was {how}"))

    def _start(self) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        # The child reads its environment before any import; ours is put back at once.
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        worker = _Worker(process, ours)
        self._pool.append(worker)
        return worker


def _serve(pipe: Connection, parent: int) -> None:
    """Compute one task after another until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it then closes us
    _die_with(parent)
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, BaseException | None] = (function(task), None)
        except Exception as error:
            answer = (None, error)
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # what cannot be pickled is told in words
            pipe.send((None, RuntimeError(f"{type(answer[1] or answer[0]).__name__} {answer[1]}: {error}")))


def _die_with(parent: int) -> None:
    """Have the kernel kill this worker when its parent dies: an orphan would write beside whoever resumes the run."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; Linux alone has it
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_executor(name: str, workers: int | None = None) -> Executor:
    """Give the executor called `name` ("serial", "processes"), or raise `BadInput`."""
    if name == "serial":
        return SerialExecutor()
    if name == "processes":
        return ProcessExecutor(workers)
    raise BadInput(f"there is no executor {name!r}", fix=nearest(name, ["serial", "processes"]))
