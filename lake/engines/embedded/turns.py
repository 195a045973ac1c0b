"""Who is in the middle of writing, and how to wait for all of them while others go on.

Whoever makes something refer to stored content (a put, a commit, a merge) does it inside a *piece of work*, from the
first look at what is stored to the transaction that refers to it. A sweeper that may only act while there is none takes
a moment `alone`. The collector cannot wait for such a moment, which may never come: it begins a new *turn* and waits
for the work of earlier turns alone, while new work starts and ends as it likes.

Two lock files take turns. Work holds a shared lock on the file whose turn it is; a collector makes it the other file's
turn and waits for the exclusive lock on the first. Which one's turn it is, one more file says by being there or not: a
name can be made and removed atomically, and no copying program turns it into something else.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock

from lake.durable import point
from lake.engines.embedded.files import flocked
from lake.engines.embedded.sharing import open_shared

_POLL_S = (0.001, 0.1)  # first and longest pause between looks at a lock


class OneByOne:
    """Lets one thread of this process through at a time, where they would only be in each other's way.

    A call of the system lets go of the interpreter's lock and then waits for it among all threads that want it. A small
    put makes some twenty such calls: 16 threads that put 4 KiB each took 2.2 times as long side by side as in line.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # A fork may have copied a lock that a thread of the parent holds.
        self._owner, self._lock = os.getpid(), Lock()

    @contextmanager
    def through(self) -> Iterator[None]:
        """Wait for those before."""
        if self._owner != os.getpid():
            self._begin()
        with self._lock:
            yield


class Turns:
    """The two lock files `<root>/.turn-0` and `.turn-1`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._odd = str(root / ".turn-odd")
        self._files = (str(root / ".turn-0"), str(root / ".turn-1"))

    def _now(self) -> bool:
        return os.path.exists(self._odd)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do a piece of work; never waits longer than a sweeper's moment."""
        while True:
            turn = self._now()
            fd = open_shared(self._files[turn])
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                # The turn may have passed between the look and the lock: then nobody waits for this file any more.
                if self._now() == turn:
                    yield
                    return
            finally:
                os.close(fd)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep all work away; gives False, and keeps nobody away, if some is being done."""
        with ExitStack() as stack:
            locks = (flocked(Path(path), wait=False) for path in self._files)
            yield all(stack.enter_context(lock) for lock in locks)

    def begin_new(self, wait_s: float) -> bool:
        """Begin a new turn and wait until all work of earlier turns has ended; False if it has not after `wait_s`.

        One caller at a time, who holds the collector's lock.
        """
        deadline = time.monotonic() + wait_s
        turn = self._now()
        # Work of the turn before may still go on if the collector that ended it was killed.
        if not _wait_for(self._files[not turn], deadline):
            return False
        if turn:
            os.unlink(self._odd)
        else:
            os.close(open_shared(self._odd))
        point("gc.new-turn")
        return _wait_for(self._files[turn], deadline)


def _wait_for(path: str, deadline: float) -> bool:
    """Wait until nobody holds the lock on a file; False if somebody still does at the deadline."""
    pause, longest = _POLL_S
    fd = open_shared(path)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN}:
                    raise
            else:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, longest)
    finally:
        os.close(fd)
