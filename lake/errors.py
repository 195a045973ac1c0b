"""Every error that emlake raises on purpose, as one tree.

::

    LakeError                        kind            exit  what the handler does
    |- BadInput                      bad-input         2   correct the request
    |  |- InvalidName                invalid-name
    |  |- UnrepresentableKey         unrepresentable-key
    |  |- SchemaMismatch             schema
    |  |- RootCollision              root-collision
    |  |- QueryRefused               query-refused
    |  `- FormatTooNew               format-too-new
    |- GateRefused                   gate              3   read the verdict
    |- NotFound                      not-found         4   look at what exists
    |  |- RepositoryNotFound         repository-not-found
    |  |- RefNotFound                ref-not-found
    |  |- ObjectNotFound             object-not-found
    |  `- TableNotFound              table-not-found
    |- ConflictError                 conflict          5   re-read, then decide
    |  |- AlreadyExists              already-exists
    |  |- NothingToCommit            nothing-to-commit
    |  |- DirtyBranch                dirty-branch
    |  |- ProtectedBranch            protected-branch
    |  `- SessionLost                session-lost
    |- StorageError                  storage           6   repair the machine or the connection
    |  |- NoRoom                     no-room
    |  |- CorruptObject              corrupt-object
    |  |- ServerUnreachable          server-unreachable
    |  |- NotAuthorized              not-authorized
    |  |  `- ReadOnlyRepository      read-only
    |  `- UnsupportedFileSystem      unsupported-file-system
    `- StageFailed                   stage-failed      7   read the run's record

Errors of libraries are translated where they enter (`lake/engines`, `lake/tables.py`, `lake/volumes.py`,
`lake/query.py`); nothing outside `lake` handles a foreign storage error.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class LakeError(Exception):
    """Base of the tree: a message with the values in it, and what to do now.

    Parameters
    ----------
    message : str
        What happened, with the offending values.
    fix : str
        What the reader should do; empty only where nothing can be done.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (process executor); keyword-only `fix` needs telling to pickle.
        return (_rebuild, (type(self), self.__dict__.copy()))

    def to_json(self) -> dict[str, object]:
        """Give the one JSON shape in which every command reports an error."""
        return {"error": self.kind, "message": self.message, "fix": self.fix}


def _rebuild(cls: type[LakeError], state: dict[str, object]) -> LakeError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class BadInput(LakeError):
    """The request cannot be carried out as it was put."""

    kind = "bad-input"
    exit_code = 2


class InvalidName(BadInput):
    """A branch, tag, repository, release or key name breaks the naming rules."""

    kind = "invalid-name"


class UnrepresentableKey(BadInput):
    """A key under this prefix cannot be a file in a folder (`a` beside `a/b`, `..`, `a//b`)."""

    kind = "unrepresentable-key"


class SchemaMismatch(BadInput):
    """Rows do not fit the table they were meant for."""

    kind = "schema"


class RootCollision(BadInput):
    """Two different sets of voxels were given one root id."""

    kind = "root-collision"


class QueryRefused(BadInput):
    """A SQL statement would write, read outside the snapshot, or change a setting."""

    kind = "query-refused"


class FormatTooNew(BadInput):
    """The repository was written by a newer version of emlake."""

    kind = "format-too-new"


class GateRefused(LakeError):
    """A release gate said no."""

    kind = "gate"
    exit_code = 3


class NotFound(LakeError):
    """What was asked for does not exist."""

    kind = "not-found"
    exit_code = 4


class RepositoryNotFound(NotFound):
    """There is no repository at this location."""

    kind = "repository-not-found"


class RefNotFound(NotFound):
    """No branch, tag or commit answers to this expression."""

    kind = "ref-not-found"


class ObjectNotFound(NotFound):
    """The key is not in this commit or branch."""

    kind = "object-not-found"


class TableNotFound(NotFound):
    """There is no such Delta table at this commit."""

    kind = "table-not-found"


class ConflictError(LakeError):
    """Somebody else's change stands in the way.

    Attributes
    ----------
    units : tuple of str
        Merge units (`tables/<name>/`, ...) changed on both sides, sorted.
    keys : tuple of str
        Single objects outside units in conflict, sorted.
    """

    kind = "conflict"
    exit_code = 5

    def __init__(self, message: str, *, fix: str = "", units: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        super().__init__(message, fix=fix)
        self.units = tuple(units)
        self.keys = tuple(keys)

    def to_json(self) -> dict[str, object]:
        """Add the units and keys in conflict."""
        return {**super().to_json(), "units": list(self.units), "keys": list(self.keys)}


class AlreadyExists(ConflictError):
    """The name is taken."""

    kind = "already-exists"


class NothingToCommit(ConflictError):
    """A commit, merge or revert would change nothing."""

    kind = "nothing-to-commit"


class DirtyBranch(ConflictError):
    """The destination of a merge or revert has staged changes."""

    kind = "dirty-branch"


class ProtectedBranch(ConflictError):
    """The branch is moved by merges and reverts only."""

    kind = "protected-branch"


class SessionLost(ConflictError):
    """The session's lock was broken, or the branch moved under it; its work is kept, not landed."""

    kind = "session-lost"


class StorageError(LakeError):
    """The disk, the server or the connection failed."""

    kind = "storage"
    exit_code = 6


class NoRoom(StorageError):
    """The disk is full, a quota is used up, or a file may not grow as large as it must.

    Attributes
    ----------
    needed : int
        Bytes that the operation needs in all, as far as that is known; 0 if it is not.
    free : int
        Bytes that were free on the disk when it had given up; a quota may leave fewer.
    code : int
        ENOSPC, EDQUOT or EFBIG.
    """

    kind = "no-room"

    def __init__(
        self, message: str, *, fix: str = "", needed: int = 0, free: int = 0, code: int = errno.ENOSPC
    ) -> None:
        super().__init__(message, fix=fix)
        self.needed = needed
        self.free = free
        self.code = code

    def to_json(self) -> dict[str, object]:
        """Add the bytes that are needed and free."""
        return {**super().to_json(), "needed": self.needed, "free": self.free}


class CorruptObject(StorageError):
    """Bytes differ from the digest that was recorded for them."""

    kind = "corrupt-object"


class ServerUnreachable(StorageError):
    """Nothing answers at the server's address, or the connection broke."""

    kind = "server-unreachable"


class NotAuthorized(StorageError):
    """The server refuses these credentials, or the system this user."""

    kind = "not-authorized"


class ReadOnlyRepository(NotAuthorized):
    """A repository's folder may be read by this user and not written."""

    kind = "read-only"


class UnsupportedFileSystem(StorageError):
    """The embedded engine cannot keep its promises on this file system."""

    kind = "unsupported-file-system"


class StageFailed(LakeError):
    """A stage raised, or a run ended incomplete."""

    kind = "stage-failed"
    exit_code = 7


#: Errors that say nothing about the data. Whoever reads many things and notes which of them are damaged or missing lets
#: these through: a server that was away for a second must not be told as damage.
OF_THE_MACHINE = (NoRoom, ServerUnreachable, NotAuthorized)


def nearest(name: str, known: Iterable[str]) -> str:
    """Phrase the closest known name as a question to put into a `fix`, or list what is known."""
    options = sorted(known)
    close = get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(options) if options else "there are none yet"
