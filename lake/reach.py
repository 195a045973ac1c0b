"""Finding out within seconds that the server behind a location has gone.

Native libraries repeat a request for minutes, silently, and wait for ever where packets are swallowed or a process is
stopped; most have no setting for it. So the server is asked for its health before they start, and, where they let one
wait, every second until they are done: a slow server is waited for, a dead one is not.
"""

import http.client
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from lake.errors import LakeError, ServerUnreachable
from lake.location import Location

ANSWER_S = 1.7
_FRESH_S = 1.0
LOOK_EVERY_S = 1.0
# A server that is busy may miss one question; two in a row, and nobody is there.
_MISSES = 2
_seen: dict[str, float] = {}
_lock = threading.Lock()


def check(location: Location) -> None:
    """Raise `ServerUnreachable` if nothing answers behind a location, in under five seconds; a folder always does."""
    if location.s3 is None:
        return
    endpoint = location.s3.endpoint
    with _lock:
        if time.monotonic() - _seen.get(endpoint, -_FRESH_S) < _FRESH_S:
            return
    problem = silent(endpoint)
    if problem is not None:
        raise gone(location, f"{endpoint} does not answer: {problem}")
    with _lock:
        _seen[endpoint] = time.monotonic()


def silent(endpoint: str) -> Exception | None:
    """Ask a server whether it lives, and give what stands against it, within 3.4 s; None if it does."""
    for left in reversed(range(_MISSES)):
        problem = _ask(endpoint)
        # A refusal is final; silence may be a moment of load.
        if problem is None or not isinstance(problem, TimeoutError) or not left:
            return problem
    raise AssertionError("unreachable: the last miss returns")


def settle(future: Any, location: Location) -> Any:
    """Wait for a future of TensorStore as long as the server behind the location lives, and give its result."""
    if location.s3 is None:
        return future.result()
    while True:
        try:
            return future.result(timeout=LOOK_EVERY_S)
        except TimeoutError:
            if future.done():
                raise
            check(location)


def gone(location: Location, why: str) -> LakeError:
    """Make the error for a location whose server does not answer."""
    return ServerUnreachable(f"{location.uri}: {why}", fix="is the server running? see `emlake server status`")


def _ask(endpoint: str) -> Exception | None:
    """Ask for a server's health; any answer but a proxy's "nobody there" counts. Over TLS a connection will do."""
    url = urlsplit(endpoint)
    secure = url.scheme == "https"
    # Never through a proxy: neither the engine nor a server on loopback is reached through one.
    connection = http.client.HTTPConnection(url.hostname or "", url.port or (443 if secure else 80), timeout=ANSWER_S)
    try:
        connection.connect()
        if not secure:
            connection.request("GET", "/_health")
            status = connection.getresponse().status
            if status in (502, 503, 504):
                return ConnectionError(f"HTTP {status}")
    except (OSError, http.client.HTTPException) as problem:
        return problem
    finally:
        connection.close()
    return None
