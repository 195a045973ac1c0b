"""The road for uploads: HTTP/1.1 over kept connections, with nothing between a file and the socket.

Of 4 KiB objects (16 threads, two cores shared with the server, medians of three) a general client took in 1,600 a
second, bare sockets 4,300: most of it is the interpreter's lock, so a request is few calls and no more. A file goes by
`sendfile`. Which uploads go this way says `uploads`.

Every wait is watched: a server that has stopped answers nothing, and is given up after seconds (`watched`).
"""

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lake.engines.lakefs.watched import WatchedSocket
from lake.errors import StorageError

_KEPT = 64
_ONE_PACKET = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    data: bytes


class Lane:
    """Kept connections to one plain-http server; safe between threads."""

    def __init__(self, origin: str, connect_s: float) -> None:
        url = urlsplit(origin)
        self._origin, self._connect_s = origin, connect_s
        self._address = (url.hostname or "", url.port or 80)
        self._host = url.netloc
        self._idle: list[WatchedSocket] = []
        self._lock = threading.Lock()
        # A repository that was never closed must not leave its connections to the collector.
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            _close_all(self._idle)

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Path = b"",
        size: int = 0,
        *,
        once: bool = False,
    ) -> Answer:
        """Send `size` bytes and read the answer.

        A request that does no harm twice is sent again if the server had closed the connection, unless `once`.

        Raises
        ------
        OSError
            No connection, or it broke; `Gone` if the server lives no more.
        StorageError
            The file changed meanwhile.
        """
        while True:
            connection, kept = self._take()
            try:
                self._send(connection, f"{method} {target}", headers, body, size)
                answer, keep = self._receive(connection)
            except BaseException as error:
                connection.close()
                if kept and not once and isinstance(error, ConnectionError):
                    continue
                raise
            self._give_back(connection, keep=keep)
            return answer

    def _take(self) -> tuple[WatchedSocket, bool]:
        """Give a connection, and whether it is an old one."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        made = socket.create_connection(self._address, timeout=self._connect_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return WatchedSocket.over(made, self._origin), False

    def _give_back(self, connection: WatchedSocket, *, keep: bool) -> None:
        with self._lock:
            if keep and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _send(
        self, connection: WatchedSocket, asked: str, headers: Mapping[str, str], body: bytes | Path, size: int
    ) -> None:
        lines = [f"{asked} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {size}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")
        # What refuses an upload may answer and close before it has read it all: then the answer is what counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if isinstance(body, Path):
                with body.open("rb") as stream:
                    connection.sendall(head)
                    sent = connection.sendfile(stream, 0, size) if size else 0
                    if sent != size or os.fstat(stream.fileno()).st_size != size:
                        raise _changed(body, size)
            elif size <= _ONE_PACKET:
                connection.sendall(head + body)
            else:
                connection.sendall(head)
                connection.sendall(body)

    def _receive(self, connection: WatchedSocket) -> tuple[Answer, bool]:
        reader = _Reader(connection)
        head = reader.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionError(f"this is no HTTP: {head[0]!r}")
        if fields.get("transfer-encoding", "").lower() == "chunked":
            data = b"".join(reader.chunks())
        else:
            data = reader.exactly(int(fields.get("content-length", "0")))
        return Answer(int(rest[:3]), data), version == "HTTP/1.1" and fields.get("connection", "").lower() != "close"


def _changed(file: Path, size: int) -> StorageError:
    return StorageError(f"{file} has no longer the {size} bytes it had", fix="keep a file unchanged while it is put")


def _close_all(connections: list[WatchedSocket]) -> None:
    while connections:
        connections.pop().close()


class _Reader:
    """Reads an answer."""

    def __init__(self, connection: WatchedSocket) -> None:
        self._connection, self._buffer = connection, b""

    def _more(self) -> None:
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._buffer += data

    def until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def chunks(self) -> list[bytes]:
        found = []
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            found.append(self.exactly(size))
            self.until(b"\r\n")
        self.until(b"\r\n")
        return found
