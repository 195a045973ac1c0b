"""Every way a lakeFS server or the road to it can fail, as an error of `lake.errors`.

========  ===================================================  ==========================================
status    when (lakeFS 1.84)                                   becomes (unless the caller knows more)
========  ===================================================  ==========================================
400       bad name, dirty branch, no changes                   `BadInput`
401       keys unknown, or not allowed                         `NotAuthorized`
403       protected branch, read-only repository               `ProtectedBranch`
404       no such repository, ref, object                      `NotFound`
409       conflict, name taken                                 `ConflictError`
410       the object's bytes are gone from the block store     `CorruptObject`
412       a hook said no, or a precondition failed             `GateRefused`
416       range outside the object                             `BadInput`
423       branch locked by a commit                            `ConflictError`
429       too many requests                                    `ServerUnreachable`
500, 501  broken action file, bad expression, lost race        `StorageError`
400, 500  its own disk is full, its quota used up              `NoRoom`
502-504   a proxy in front lost the server, or found none      `ServerUnreachable`
(none)    refused, reset, timed out, not even a health         `ServerUnreachable`
========  ===================================================  ==========================================

The text of an answer is shown, not tested: it changes between versions. The exception is lack of room, for which the
server has no status: what the operating system says is in the text of its 400 (a commit) or 500.
"""

import json
import socket
from typing import Any

import urllib3
from lakefs_sdk.exceptions import ApiException
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as NoAnswerInTime

from lake import reach
from lake.errors import (
    BadInput,
    ConflictError,
    CorruptObject,
    GateRefused,
    LakeError,
    NoRoom,
    NotAuthorized,
    NotFound,
    ProtectedBranch,
    ServerUnreachable,
    StorageError,
)
from lake.room import code_in, wanted

_BY_STATUS: dict[int, tuple[type[LakeError], str]] = {
    400: (BadInput, "correct the request"),
    401: (NotAuthorized, "check the keys (LAKECTL_ environment, ~/.lakectl.yaml) and what they may do"),
    403: (ProtectedBranch, "work on another branch; a protected one is moved by merge and revert"),
    404: (NotFound, "check the name"),
    409: (ConflictError, "read the branch again, then decide"),
    410: (CorruptObject, "restore the object's file in the server's block store, or revert to a commit without it"),
    412: (GateRefused, "read what the hook says and meet it"),
    416: (BadInput, "ask for bytes inside the object"),
    423: (ConflictError, "wait for the other commit and try again"),
    429: (ServerUnreachable, "try again with fewer requests at a time"),
    502: (ServerUnreachable, "see whether the lakeFS server behind the proxy runs"),
    503: (ServerUnreachable, "wait until the server is ready"),
    504: (ServerUnreachable, "see whether the lakeFS server behind the proxy runs"),
}


#: Ends the message of a request that changes something, where it may have been carried out without an answer.
UNSURE = "; whether it was carried out is not known"
_ARRIVED = frozenset({"sent", "slow", "silent"})
_FROM_IN_FRONT = frozenset({502, 503, 504})
_START = "start the server (`emlake server start`) or correct the address"
#: Reasons why no answer came, the first that fits; the last word says how far the request went.
_NO_ANSWER: tuple[tuple[type | tuple[type, ...], str, str, str], ...] = (
    (SSLError, "{origin}: {reason}", "check the certificate and the port", "refused"),
    (str, "{origin}: {reason}", "check the certificate and the port", "refused"),
    (NameResolutionError, "the name in {origin} is not known", "correct the address", "refused"),
    (NewConnectionError, "nothing answers at {origin}", _START, "unsent"),
    (ConnectTimeoutError, "{origin} did not answer in time", _START, "refused"),
    (socket.gaierror, "the name in {origin} is not known", "correct the address", "refused"),
    (ConnectionRefusedError, "nothing answers at {origin}", _START, "unsent"),
    (
        reach.Gone,
        "{origin} did not answer in time, nor when it was asked whether it lives",
        f"look at the server's process and the network; {_START}",
        "silent",
    ),
    (
        (NoAnswerInTime, TimeoutError),
        "{origin} did not answer in time",
        "look whether the server is overloaded",
        "slow",
    ),
    ((HTTPError, OSError), "the connection to {origin} broke: {reason}", _START, "sent"),
)


def from_status(status: int, text: str, doing: str, size: int = 0) -> LakeError:
    """Make the error for an answer with this status.

    Parameters
    ----------
    doing : str
        What was asked, as in "commit 'work'".
    size : int
        Bytes that the server was to store; 0 if nobody knows.
    """
    if status in (400, 500) and (code := code_in(text)):
        return _no_room(status, text, doing, size, code)
    cls, fix = _BY_STATUS.get(status, (StorageError, "see the server's log"))
    error = cls(f"{doing}: {text}" if text else f"{doing}: the server answered {status}", fix=fix)
    error.status = status  # type: ignore[attr-defined]
    return error


def _no_room(status: int, text: str, doing: str, size: int, code: int) -> NoRoom:
    error = NoRoom(
        f"{doing}: the server has no room ({wanted(size)}): {text}",
        fix="make room on the server's disk, then repeat the command: it goes on from what is whole",
        needed=size,
        code=code,
    )
    error.status = status  # type: ignore[attr-defined]
    return error


def from_exception(problem: Exception, doing: str, origin: str, *, changes: bool = False) -> LakeError:
    """Translate what the client library or the network raised; `changes` says that the request is more than a read."""
    if isinstance(problem, ApiException) and problem.status:
        status, text = int(problem.status), text_of(problem.body)
        unsure = changes and status in _FROM_IN_FRONT
        return from_status(status, (text or f"the server answered {status}") + UNSURE if unsure else text, doing)
    reason: object = problem
    if isinstance(problem, ApiException):
        reason = problem.reason  # status 0: the client's way to report a failed TLS handshake
    elif isinstance(problem, MaxRetryError) and problem.reason is not None:
        reason = problem.reason
    reason = _gone_behind(problem) or reason
    error: LakeError
    for kinds, what, fix, went in _NO_ANSWER:
        if isinstance(reason, kinds):
            told = f"{doing}: {what.format(origin=origin, reason=_one_line(reason))}"
            error = ServerUnreachable(told + (UNSURE if changes and went in _ARRIVED else ""), fix=fix)
            error.reach = went  # type: ignore[attr-defined]
            return error
    return StorageError(
        f"{doing}: {type(problem).__name__}: {_one_line(problem)}",
        fix="report this; the server may be of a version this client does not know",
    )


def _gone_behind(problem: BaseException | None) -> reach.Gone | None:
    """Find what a watched socket raised below the errors that `urllib3` made of it."""
    while problem is not None and not isinstance(problem, reach.Gone):
        problem = problem.__cause__ or problem.__context__
    return problem


def unsent(problem: Exception, doing: str, origin: str) -> LakeError:
    """Make the error for a request that was not sent, because its server was found gone just before."""
    error = from_exception(problem, doing, origin)
    error.reach = "refused"  # type: ignore[attr-defined]
    return error


def status_of(error: LakeError) -> int:
    """Give the HTTP status behind an error, or 0."""
    return int(getattr(error, "status", 0))


def may_have_arrived(error: LakeError) -> bool:
    """Tell whether a request that got no answer may have been carried out all the same."""
    return status_of(error) in _FROM_IN_FRONT or getattr(error, "reach", "") in _ARRIVED


def may_repeat(error: LakeError, *, safe: bool) -> bool:
    """Tell whether a failed request may be sent again; `safe` requests do no harm when carried out twice."""
    if status_of(error):
        # 429 is given before anything is done; what stands in front of a server may say 502-504 after it was.
        return status_of(error) == 429 or (safe and status_of(error) in _FROM_IN_FRONT)
    went = getattr(error, "reach", "")
    # After a time-out the caller has waited long enough.
    return went == "unsent" or (safe and went == "sent")


def is_lost(error: LakeError) -> bool:
    """Tell whether an error says that the server is gone now, whatever became of the request."""
    return getattr(error, "reach", "") in ("unsent", "refused", "silent")


def text_of(body: Any) -> str:
    """Take the message out of an error body; hooks answer in several indented lines."""
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode(errors="replace")
    try:
        content = json.loads(body or "{}")
    except ValueError:
        return _one_line(body)
    message = content.get("message", "") if isinstance(content, dict) else ""
    return _one_line(message)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:2000]


#: What `urllib3` and the generated client may raise; anything else is a bug of ours and passes through.
FOREIGN: tuple[type[Exception], ...] = (ApiException, HTTPError, OSError, urllib3.exceptions.LocationValueError)
