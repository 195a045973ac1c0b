"""Writes what is staged: callers that come at the same time share one transaction.

A transaction on the database costs more than what a small `put` writes, and only one can run at a time: SQLite lets the
others sleep and look again. So callers queue; whoever gets to write next takes along all who wait. Small puts of one
process do not meet here: they come in line (`turns.OneByOne`).
"""

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from lake.durable import point
from lake.engines.embedded.database import Database
from lake.engines.embedded.history import History, check_unprotected, stage
from lake.errors import LakeError


@dataclass(slots=True)
class _Request:
    """What one caller wants staged, and what became of it."""

    branch: str
    values: Mapping[bytes, bytes | None]
    operation: str
    done: bool = False
    refused: LakeError | None = None


class Stager:
    """Stages values on branches; when `stage` returns they survive a kill, and a power cut once committed."""

    def __init__(self, database: Database, history: History) -> None:
        self._db = database
        self._history = history
        self._begin()

    def _begin(self) -> None:
        # A fork may have copied locks that a thread of the parent holds, and requests that the parent will see to.
        self._owner = os.getpid()
        self._writing = Lock()
        self._waiting: deque[_Request] = deque()

    def stage(self, branch: str, values: Mapping[bytes, bytes | None], operation: str) -> None:
        """Stage values (None removes) on a branch that is not protected; `operation` names the crash points."""
        if self._owner != os.getpid():
            self._begin()
        request = _Request(branch, values, operation)
        self._waiting.append(request)
        with self._writing:
            if not request.done:
                taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
                try:
                    self._write(taken)
                except BaseException:
                    # Nothing of it was written; whoever comes next tries with the others.
                    self._waiting.extendleft(other for other in reversed(taken) if other is not request)
                    raise
        if request.refused is not None:
            raise request.refused
        point(f"{operation}.staged")

    def _write(self, requests: list[_Request]) -> None:
        with self._db.write_soon() as con:
            for request in requests:
                try:
                    found = self._history.branch(con, request.branch)
                    check_unprotected(con, request.branch)
                except LakeError as error:
                    request.refused = error
                else:
                    stage(con, found.token, request.values)
                    point(f"{request.operation}.before-staged")
        for request in requests:
            request.done = True
