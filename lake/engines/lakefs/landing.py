"""Moving a branch so that it is known afterwards whether it moved.

Every commit, merge and revert carries a random mark in its metadata. When the answer is lost the log tells by the mark
whether the request was carried out; a revert, whose answer holds no commit id, is found by it; and two commits of the
same content within a second stay two (lakeFS's commit id is a hash of the commit, whose time counts seconds).

The server remembers by a branch's *name* which action files it holds. A branch that lost them, or that was deleted and
made anew elsewhere, is answered 404 on everything that moves it until that memory has faded; so a 404 is asked again.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lake.engines.lakefs.failures import UNSURE, is_lost, may_have_arrived
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import LakeError, NotFound, ServerUnreachable
from lake.repository import CommitId, Metadata

_MARK = ".emlake.mark"
_PRIVATE = (".lakefs.", ".emlake.")
_SEARCHED = 200
_PATIENCE_S = (0.0, 0.2, 0.6)
# lakeFS keeps the list of action files for 5 s and up to 2.5 s of jitter, each file as long again.
_ACTIONS_REMEMBERED_S = 16.0
_ACTIONS_PAUSE_S = 0.5


def public_metadata(metadata: Metadata | None) -> dict[str, str]:
    """Drop what lakeFS (the merge strategy) and this module add on their own."""
    return {name: value for name, value in (metadata or {}).items() if not name.startswith(_PRIVATE)}


def land(
    wire: Wire, branch: str, head: CommitId, metadata: Metadata, send: Callable[[dict[str, str]], CommitId | None]
) -> CommitId:
    """Send a request that moves `branch`, which is at `head`, and give the commit that it made.

    Parameters
    ----------
    send : callable
        Takes the metadata with the mark; gives the new commit, or None if the answer does not tell.

    Raises
    ------
    ServerUnreachable
        The answer was lost; the message says where the branch is, or how to find out.
    """
    mark = secrets.token_hex(8)
    try:
        made = _send_until_forgotten(wire, branch, lambda: send({**metadata, _MARK: mark}))
    except ServerUnreachable as error:
        told = error.message.removesuffix(UNSURE)
        if not may_have_arrived(error):
            raise ServerUnreachable(
                f"{told}; nothing was sent: {branch!r} is where it was, at {head}", fix=error.fix
            ) from error
        if is_lost(error):  # it would be asked in vain
            raise ServerUnreachable(f"{told}; {_unknown(branch, head, mark)}", fix=error.fix) from error
        found = _search_patiently(wire, branch, head, mark)
        if found is not None:
            return found
        raise ServerUnreachable(f"{told}; {_aftermath(wire, branch, head, mark)}", fix=error.fix) from error
    if made is None:
        with after_landing(branch, f"its new commit has metadata {_MARK}={mark}"):
            made = _search(wire, branch, mark)
    if made is None:
        raise NotFound(f"the new commit is not among the last {_SEARCHED} of {branch!r}", fix="look at the log")
    return made


def _send_until_forgotten(wire: Wire, branch: str, send: Callable[[], CommitId | None]) -> CommitId | None:
    """Send again while a branch that is there is answered 404: nothing was done, see above."""
    forgotten = time.monotonic() + _ACTIONS_REMEMBERED_S
    while True:
        try:
            return send()
        except NotFound as error:
            try:
                wire.json(f"/branches/{segment(branch)}", fields=("commit_id",), doing=f"look up branch {branch!r}")
            except NotFound:
                raise error from None
            if time.monotonic() > forgotten:
                raise
            time.sleep(_ACTIONS_PAUSE_S)


@contextmanager
def after_landing(branch: str, where: str) -> Iterator[None]:
    """Let the error of a server that is lost now say that the branch has moved, and where to."""
    try:
        yield
    except ServerUnreachable as error:
        raise ServerUnreachable(
            f"{error.message}; this came after it had landed on {branch!r}: {where}. Whether somebody else moved the "
            "branch at the same moment could not be seen any more",
            fix=error.fix,
        ) from error


def _search(wire: Wire, branch: str, mark: str) -> CommitId | None:
    pages = wire.pages(
        f"/refs/{segment(branch)}/commits",
        {"first_parent": "true"},
        fields=("id", "metadata"),
        doing=f"look for the new commit on {branch!r}",
        limit=_SEARCHED,
    )
    return next((str(entry["id"]) for entry in pages if _marked(entry, mark)), None)


def _marked(entry: Mapping[str, Any], mark: str) -> bool:
    return (entry["metadata"] or {}).get(_MARK) == mark


def _search_patiently(wire: Wire, branch: str, head: CommitId, mark: str) -> CommitId | None:
    # The connection may have broken while the server goes on working; a moment later the branch has moved.
    for pause in _PATIENCE_S:
        time.sleep(pause)
        try:
            found = _search(wire, branch, mark)
        except LakeError:
            return None
        if found is not None:
            return found
    return None


def _aftermath(wire: Wire, branch: str, head: CommitId, mark: str) -> str:
    try:
        now = str(wire.json(f"/branches/{segment(branch)}", fields=("commit_id",), doing="look")["commit_id"])
    except NotFound:
        return f"{branch!r} was at {head} and is gone now"
    except LakeError:
        return _unknown(branch, head, mark)
    return f"{branch!r} is at {now} (it was at {head}): nothing of this landed, and what was staged is still staged"


def _unknown(branch: str, head: CommitId, mark: str) -> str:
    return (
        f"{branch!r} was at {head}: when the server is back, its log either holds a commit with metadata "
        f"{_MARK}={mark} (it landed) or does not (nothing landed, and what was staged is still staged)"
    )
