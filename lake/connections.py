"""TCP connections of this process to a server, whichever library made them: which of them wait, and how to end them.

Native libraries keep their sockets to themselves, and most have no setting that would end a wait. But a socket belongs
to the process: the kernel lists it, tells since when nothing has come or gone over it, and shuts it down for whoever
asks. The library then meets the end of the connection, and reports that.
"""

import os
import socket
import stat
import struct
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import cast

#: Seconds without a byte after which an answer that had begun is still waited for; then the connection counts as idle.
IDLE_S = 10.0
_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
# `struct tcp_info` of Linux: the state, the milliseconds since bytes were sent and received, and how many came at all.
_INFO = struct.Struct("=B43xI4xI72xQ")
_ESTABLISHED = 1

_own: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()
_lock = threading.Lock()
_looking = threading.Lock()  # one thread at a time, else each would meet the other's duplicates


def look_after_itself(connection: socket.socket) -> None:
    """Say that a socket's owner finds out by itself that the server has gone: it is neither looked at nor ended."""
    with _lock:
        _own.add(connection)


def _begin_anew() -> None:
    global _lock, _looking
    _lock, _looking = threading.Lock(), threading.Lock()  # threads of the parent may have held them


os.register_at_fork(after_in_child=_begin_anew)


class Connections:
    """The connections of this process to one server.

    Parameters
    ----------
    host, port : str, int
        The server; a name is resolved when a connection to this port and an unknown address is met.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._addresses: dict[str, bool] = {}

    def waiting(self, for_s: float) -> bool:
        """Tell whether any has been waited on for so long: a request without an answer, or an answer that broke off.

        Where the kernel does not tell (it is not Linux), every connection counts.
        """
        with self._held() as held:
            return any(_waits(connection, for_s) for connection in held)

    def end(self) -> int:
        """Shut all of them down, and tell how many there were."""
        ended = 0
        with self._held() as held:
            for connection in held:
                if sys.platform == "linux" and _info(connection)[0] != _ESTABLISHED:
                    continue  # ended before, and its owner has not looked since
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                    ended += 1
        return ended

    @contextmanager
    def _held(self) -> Iterator[list[socket.socket]]:
        """Lend duplicates of the sockets: a descriptor that is closed and given out anew meanwhile does no harm."""
        with _lock:
            own = {connection.fileno() for connection in _own}
        with _looking, ExitStack() as held:
            yield [
                held.enter_context(connection)
                for descriptor in _sockets()
                if descriptor not in own and (connection := self._duplicate(descriptor))
            ]

    def _duplicate(self, descriptor: int) -> socket.socket | None:
        with suppress(OSError):
            connection = socket.socket(fileno=os.dup(descriptor))
            if self._is_there(connection):
                return connection
            connection.close()
        return None

    def _is_there(self, connection: socket.socket) -> bool:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            peer: tuple[str, int] = connection.getpeername()[:2]
        except OSError:  # it listens, or is not connected yet
            return False
        address, port = peer
        if port != self._port:
            return False
        if address not in self._addresses:
            try:
                found = {str(one[4][0]) for one in socket.getaddrinfo(self._host, port, type=socket.SOCK_STREAM)}
            except OSError:  # no name service just now: it is asked again
                return False
            self._addresses |= dict.fromkeys(found, True)
            self._addresses.setdefault(address, address.removeprefix("::ffff:") in found)
        return self._addresses[address]


def _sockets() -> Iterator[int]:
    try:
        names = os.listdir(_FOLDER)
    except OSError:  # no descriptor is left to list them with: they are looked at the next time
        return
    for descriptor in map(int, names):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield descriptor


def _waits(connection: socket.socket, for_s: float) -> bool:
    if sys.platform != "linux":
        return True
    _, sent_ms, received_ms, received = _info(connection)
    quiet_s = min(sent_ms, received_ms) / 1000
    # The kernel's clock ticks every few milliseconds: what was sent and answered within one tick looks the same.
    return quiet_s >= for_s and (sent_ms < received_ms or received == 0 or quiet_s < IDLE_S)


def _info(connection: socket.socket) -> tuple[int, int, int, int]:
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    return cast("tuple[int, int, int, int]", _INFO.unpack(told))
