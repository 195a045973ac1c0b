"""Which connections of this process wait for their server, and that they can be ended whoever made them."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from lake import connections as connections_module
from lake import reach
from lake.connections import Connections, look_after_itself
from lake.errors import ServerUnreachable
from lake.location import Location, S3Access

A_MOMENT_S = 0.1


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def connect(server) -> Iterator:
    """Give a function that connects, and gives both ends."""
    with ExitStack() as stack:

        def pair() -> tuple[socket.socket, socket.socket]:
            near = stack.enter_context(socket.create_connection(server.getsockname()))
            near.settimeout(5)
            return near, stack.enter_context(server.accept()[0])

        yield pair


@pytest.fixture
def connections(server) -> Connections:
    return Connections("localhost", server.getsockname()[1])


def test_a_request_without_an_answer_waits_and_an_answered_one_does_not(connections, connect, monkeypatch) -> None:
    monkeypatch.setattr("lake.connections.IDLE_S", A_MOMENT_S)
    near, far = connect()
    near.sendall(b"?")
    assert not connections.waiting(60)
    time.sleep(2 * A_MOMENT_S)
    assert connections.waiting(A_MOMENT_S)
    far.sendall(b"!")
    assert near.recv(9) == b"!"
    time.sleep(2 * A_MOMENT_S)
    assert not connections.waiting(A_MOMENT_S)
    near.sendall(b"?")
    time.sleep(2 * A_MOMENT_S)
    assert connections.waiting(A_MOMENT_S)


def test_an_answer_that_broke_off_is_waited_for_until_it_counts_as_idle(connections, connect) -> None:
    near, far = connect()
    near.sendall(b"?")
    time.sleep(A_MOMENT_S)
    far.sendall(b"hal")
    time.sleep(2 * A_MOMENT_S)
    assert connections.waiting(A_MOMENT_S)


def test_only_connections_to_the_server_that_nobody_looks_after_are_ended(connections, connect) -> None:
    ends = [connect() for _ in range(3)]
    look_after_itself(ends[1][0])
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()) as elsewhere,
        other.accept()[0] as there,
    ):
        assert connections.end() == 2
        assert connections.end() == 0
        assert [near.recv(9) for near, _ in (ends[0], ends[2])] == [b"", b""]
        for near, far in (ends[1], (elsewhere, there)):
            far.sendall(b"!")
            assert near.recv(9) == b"!"


@pytest.mark.slow
def test_a_slow_answer_is_waited_for_and_the_wait_ends_once_the_server_is_silent(server) -> None:
    endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    place = Location("repo/main", S3Access(endpoint, "A", "S", "p", "credentials", "config"))
    alive = True

    def serve() -> None:
        """Answer what is asked about health while alive, and nothing else ever."""
        with ExitStack() as held, suppress(OSError):
            while True:
                client = held.enter_context(server.accept()[0])
                if alive and b"/_health" in client.recv(1 << 16):
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    reach.check(place)
    with socket.create_connection(server.getsockname()) as waiting:
        waiting.settimeout(4.5)
        waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):  # longer than it takes to give a silent server up
            waiting.recv(9)
        alive = False
        begun = time.monotonic()
        assert waiting.recv(9) == b""
        assert time.monotonic() - begun < 5
    server.shutdown(socket.SHUT_RDWR)
    serving.join(10)


def test_a_fork_keeps_a_watch_of_its_own(server) -> None:
    """The watching thread stays behind in the parent, with the lock that it may hold at that moment."""
    place = Location("repo/main", S3Access(f"http://127.0.0.1:{server.getsockname()[1]}", "A", "S", "p", "c", "c"))
    with pytest.raises(ServerUnreachable):
        reach.check(place)
    with reach._lock, connections_module._lock, connections_module._looking:
        child = os.fork()
        if child == 0:
            try:
                reach.check(place)
            except ServerUnreachable:
                os._exit(17 if any(thread.name.startswith("watch") for thread in threading.enumerate()) else 1)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_many_watches_leave_no_descriptors(connections, connect) -> None:
    """Each looks at duplicates: of those of the others it must see none, or they would grow without end."""
    ends = [os.fstat(connect()[0].fileno()).st_ino for _ in range(20)]

    def held() -> int:
        found = 0
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                found += os.fstat(int(name)).st_ino in ends
        return found

    most = 0
    with ThreadPoolExecutor(16) as pool:
        looks = [pool.submit(connections.waiting, 60) for _ in range(400)]
        while not all(look.done() for look in looks):
            most = max(most, held())
    assert most < 3 * len(ends)  # counting takes its time too
    assert held() == len(ends)
    assert not any(look.result() for look in looks)
