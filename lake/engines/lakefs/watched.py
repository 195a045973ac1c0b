"""Sockets on which one waits for a server as long as it lives, and connections of `urllib3` that are made of them.

A time limit cannot tell a server that works on a merge of 100,000 objects from one that was stopped. So while there is
no answer, or nothing more of a request is taken, the server is asked for its health by another connection
(`lake.reach`): one that tells it is waited for, up to the limit of the call; one that does not is given up, `Gone`.
"""

import io
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from lake import reach
from lake.connections import look_after_itself

# Without any progress, by a server that is well all the while.
_SEND_S = 60.0


class _Watched:
    """What both kinds of socket do while they wait; sits in front of `socket.socket` in the order of classes."""

    #: The server at the other end; nothing is asked before it is set.
    origin = ""
    _limit_s: float | None = None

    def watch(self, origin: str, limit_s: float | None) -> None:
        """Look after the server at the other end from now on."""
        self.origin = origin
        look_after_itself(cast("socket.socket", self))
        self.settimeout(limit_s)

    def settimeout(self, value: float | None) -> None:
        """Set the longest wait for an answer; None: as long as the server lives."""
        self._limit_s = value
        looks = reach.LOOK_EVERY_S if self.origin else value
        cast("Any", super()).settimeout(looks if value is None or looks is None else min(value, looks))

    def recv(self, *arguments: Any) -> bytes:
        """Receive, patiently."""
        return cast("bytes", self._wait(cast("Any", super()).recv, *arguments, limit_s=self._limit_s))

    def recv_into(self, *arguments: Any) -> int:
        """Receive, patiently."""
        return cast("int", self._wait(cast("Any", super()).recv_into, *arguments, limit_s=self._limit_s))

    def sendall(self, data: Any, *flags: int) -> None:
        """Send all, patiently; the limit is for each part that leaves."""
        send = cast("Any", super()).send
        left = memoryview(data).cast("B")
        while left:
            left = left[self._wait(send, left, *flags, limit_s=_SEND_S) :]

    def _wait(self, step: Callable[..., Any], *arguments: Any, limit_s: float | None) -> Any:
        began = None
        while True:
            # No `select` in front: each call that lets go of the interpreter's lock waits for it among all the threads.
            try:
                return step(*arguments)
            except TimeoutError:
                now = time.monotonic()
                began = now - reach.LOOK_EVERY_S if began is None else began
                if not self.origin or (limit_s is not None and now - began >= limit_s):
                    raise
                self._look()

    def _look(self) -> None:
        problem = reach.silent(self.origin)
        if problem is not None:
            raise reach.Gone(f"{self.origin} does not answer: {problem}") from problem


class WatchedSocket(_Watched, socket.socket):
    """A TCP connection."""

    @classmethod
    def over(cls, plain: socket.socket, origin: str, limit_s: float | None = None) -> "WatchedSocket":
        """Take a connected socket over."""
        made = cls(plain.family, plain.type, plain.proto, fileno=plain.detach())
        made.watch(origin, limit_s)
        return made

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a part of a file, patiently; returns how much of it there was."""
        end = offset + (file.seek(0, io.SEEK_END) if count is None else count)
        start, began = offset, time.monotonic()
        while offset < end:
            file.seek(offset)
            try:
                return offset - start + super().sendfile(file, offset, end - offset)
            except TimeoutError:
                # The position tells how much had left.
                if file.tell() > offset:
                    offset, began = file.tell(), time.monotonic()
                elif time.monotonic() - began >= _SEND_S:
                    raise
                self._look()
        return offset - start


class _WatchedTLS(_Watched, ssl.SSLSocket):
    """A TLS connection."""


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return WatchedSocket.over(super()._new_conn(), _origin("http", self), cast("float", self.timeout))


class _ConnectionTLS(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, _WatchedTLS)
        self.sock.watch(_origin("https", self), cast("float", self.timeout))


def _origin(scheme: str, connection: HTTPConnection) -> str:
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    return f"{scheme}://{host}:{connection.port}"


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _PoolTLS(urllib3.HTTPSConnectionPool):
    ConnectionCls = _ConnectionTLS


def watched_pool(*, secure: bool, ca_certs: str | None, connections: int) -> urllib3.PoolManager:
    """Make a pool of watched connections that repeats nothing by itself.

    Parameters
    ----------
    secure : bool
        Over TLS; without it 25 ms are saved, which reading the system's certificates takes.
    ca_certs : str
        A file of the certificates that are trusted; None: those of the system.
    """
    tls = None
    if secure:
        tls = urllib3.util.ssl_.create_urllib3_context()
        if ca_certs is None:
            tls.load_default_certs()
        tls.sslsocket_class = _WatchedTLS
    pool = urllib3.PoolManager(
        num_pools=2,
        maxsize=connections,
        # Retrying is decided call by call: urllib3 would repeat a PUT or DELETE whose answer was lost.
        retries=False,
        blocksize=1 << 20,
        cert_reqs="CERT_REQUIRED",
        ca_certs=ca_certs,
        ssl_context=tls,
    )
    pool.pool_classes_by_scheme = {"https": _PoolTLS} if secure else {"http": _Pool}
    return pool
