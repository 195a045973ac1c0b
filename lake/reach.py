"""Finding out within seconds that the server behind a location has gone.

Native libraries repeat a request for minutes, silently, and everything waits for ever where packets are swallowed or a
process is stopped; most have no setting for it. So the server is asked for its health before they start, and, where
they let one wait, every second until they are done: a slow server is waited for, a dead one is not. Where they do not
let one wait, their connections are watched (`lake.connections`), by a thread for each server: once one of them has no
answer and the server has none about its health either, all of them are ended, which every library reports.

What ends a piece of work makes others tidy up, and each would wait as long again. So whoever was found gone a moment
ago is asked briefly before anything more is sent there: the first error is out in five seconds with all that follows.
"""

import http.client
import os
import ssl
import threading
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from lake.connections import Connections, look_after_itself
from lake.errors import LakeError, ServerUnreachable
from lake.location import Location

#: Seconds without an answer after which a server is asked for its health, and again and again.
LOOK_EVERY_S = 0.8
# A server that is busy may miss one question; two in a row, and nobody is there.
_ANSWER_S = (1.2, 1.2)
_BRIEFLY_S = (0.4,)
_FRESH_S = 1.0
# A native library's requests are looked at more often: it repeats what was ended, and that takes its time too.
_WATCH_EVERY_S = 0.4
_FIX = "is the server running? see `emlake server status`"
# While a server is silent, what is sent there again is ended too, until nothing has been for so long.
_END_EVERY_S, _QUIET_S = 0.1, 3.0
_Times = dict[tuple[str | None, int | None], float]
_seen: _Times = {}
_lost: _Times = {}
_watched: dict[tuple[str | None, int | None], str] = {}
_lock = threading.Lock()


class Gone(TimeoutError):
    """A server that did not answer, nor tell its health when asked; the cause is what came instead."""


def check(location: Location, *, seen_s: float = _FRESH_S) -> None:
    """Raise `ServerUnreachable` if nothing answers behind a location, in under five seconds; a folder always does.

    A server that has answered within `seen_s` is not asked again.
    """
    if location.s3 is None:
        return
    endpoint = location.s3.endpoint
    _watch(endpoint)
    if _lately(_seen, endpoint, seen_s):
        return
    problem = silent(endpoint)
    if problem is not None:
        raise gone(location, f"{endpoint} does not answer: {problem}")


def silent(endpoint: str) -> Exception | None:
    """Ask a server whether it lives, and give what stands against it, within 2.4 s; None if it does."""
    problem: Exception | None = None
    for patience_s in _BRIEFLY_S if lately_lost(endpoint) else _ANSWER_S:
        problem = _ask(endpoint, patience_s)
        # A refusal is final; silence may be a moment of load.
        if not isinstance(problem, TimeoutError):
            break
    if problem is not None:
        lost(endpoint)
        return problem
    with _lock:
        _seen[_server(endpoint)] = time.monotonic()
        _lost.pop(_server(endpoint), None)
    return None


def lost(endpoint: str) -> None:
    """Note that a server was found gone just now."""
    with _lock:
        _lost[_server(endpoint)] = time.monotonic()
        _seen.pop(_server(endpoint), None)


def lately_lost(endpoint: str) -> bool:
    """Tell whether a server was found gone within the last second, and not alive since."""
    return _lately(_lost, endpoint, _FRESH_S)


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
            # Many may wait, and one of them asks for all; but never is one answer taken for two looks.
            check(location, seen_s=LOOK_EVERY_S / 2)


def lost_behind(error: Exception) -> LakeError | None:
    """Give `ServerUnreachable` if an error names a server that this process has used, and that is silent.

    For libraries that have as many words for a lost server as there are moments to lose it in.
    """
    text = " ".join(str(error).split())
    with _lock:
        named = [endpoint for endpoint in _watched.values() if endpoint.rstrip("/") in text]
    for endpoint in named:
        if (problem := silent(endpoint)) is not None:
            return ServerUnreachable(f"{endpoint} does not answer: {problem}; {text}", fix=_FIX)
    return None


def gone(location: Location, why: str) -> LakeError:
    """Make the error for a location whose server does not answer."""
    return ServerUnreachable(f"{location.uri}: {why}", fix=_FIX)


def _watch(endpoint: str) -> None:
    """Let a thread end the native libraries' connections to a server once it has gone, as long as the process lives."""
    server = _server(endpoint)
    with _lock:
        if server in _watched:
            return
        _watched[server] = endpoint
    threading.Thread(target=_keep_watch, args=(endpoint,), name=f"watch {endpoint}", daemon=True).start()


def _begin_anew() -> None:
    """In a fork no thread of the parent lives on, and what one of them had locked stays locked."""
    global _lock
    _lock = threading.Lock()
    _watched.clear()


os.register_at_fork(after_in_child=_begin_anew)


def _keep_watch(endpoint: str) -> None:
    url = urlsplit(endpoint)
    connections = Connections(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
    while True:
        time.sleep(_WATCH_EVERY_S)
        if connections.waiting(_WATCH_EVERY_S) and silent(endpoint) is not None:
            _end_all(connections, endpoint)


def _end_all(connections: Connections, endpoint: str) -> None:
    """End the connections to a silent server, and those that are made again, until it answers or nobody asks."""
    ended = time.monotonic()
    while (now := time.monotonic()) - ended < _QUIET_S:
        if connections.end():
            ended = now
        time.sleep(_END_EVERY_S)
        # Asked each time: what is sent to a server that is back must not be ended.
        if silent(endpoint) is None:
            return


def _server(endpoint: str) -> tuple[str | None, int | None]:
    url = urlsplit(endpoint)
    return url.hostname, url.port


def _lately(times: _Times, endpoint: str, within_s: float) -> bool:
    with _lock:
        return time.monotonic() - times.get(_server(endpoint), float("-inf")) < within_s


def _ask(endpoint: str, patience_s: float) -> Exception | None:
    """Ask for a server's health; any answer but a proxy's "nobody there" counts, a refused handshake too."""
    url = urlsplit(endpoint)
    # Never through a proxy: neither the engine nor a server on loopback is reached through one. Nothing secret is sent
    # and nothing is believed, so whose certificate it is does not matter.
    connection = (
        http.client.HTTPSConnection(url.hostname or "", url.port, timeout=patience_s, context=_any_certificate())
        if url.scheme == "https"
        else http.client.HTTPConnection(url.hostname or "", url.port, timeout=patience_s)
    )
    try:
        connection.connect()
        look_after_itself(connection.sock)
        connection.request("GET", "/_health")
        status = connection.getresponse().status
        if status in (502, 503, 504):
            return ConnectionError(f"HTTP {status}")
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as problem:
        return problem
    except ssl.SSLError:
        return None
    except (OSError, http.client.HTTPException) as problem:
        return problem
    finally:
        connection.close()
    return None


@cache
def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
