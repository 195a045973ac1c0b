"""The road for uploads: what it carries whole, what it refuses, and how it finds out that nobody is there."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import lake
from lake import server
from lake.engines.lakefs.lane import Answer, Lane
from lake.errors import ServerUnreachable, StorageError
from lake.testing.server import freeze, program


class Scripted:
    """Reads each request to its end and says the next of the given answers; counts connections."""

    def __init__(self, *answers: bytes) -> None:
        self.answers, self.seen, self.connections = list(answers), [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as stream:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = stream.readline()
                    if not line:
                        return
                    head += line
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.seen.append((head, stream.read(size)))
                answer = self.answers.pop(0)
                # In pieces: a reader must not take one packet for one answer.
                for start in range(0, len(answer), 7):
                    client.sendall(answer[start : start + 7])
                if b"close" in answer:
                    return


@pytest.fixture
def lanes() -> Iterator[list[Lane]]:
    made: list[Lane] = []
    yield made
    for lane in made:
        lane.close()


def talk(lanes: list[Lane], *answers: bytes) -> tuple[Scripted, Lane]:
    other = Scripted(*answers)
    lanes.append(Lane(f"http://127.0.0.1:{other.port}", 1.0))
    return other, lanes[-1]


OK = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"


def test_one_connection_carries_many_requests(lanes):
    other, lane = talk(lanes, OK, OK, OK)
    for number in range(3):
        assert lane.send("POST", f"/{number}", {"X-A": "b"}, b"body", 4) == Answer(201, b"{}")
    assert other.connections == 1
    assert [body for _, body in other.seen] == [b"body"] * 3
    assert other.seen[2][0].startswith(b"POST /2 HTTP/1.1\r\n")
    assert b"X-A: b\r\n" in other.seen[0][0]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (3 << 20) + 17])
def test_bytes_and_files_arrive_whole(lanes, tmp_path, size):
    other, lane = talk(lanes, OK, OK)
    data = os.urandom(size)
    file = tmp_path / "file"
    file.write_bytes(data)
    lane.send("POST", "/a", {}, data, size)
    lane.send("POST", "/b", {}, file, size)
    assert [body for _, body in other.seen] == [data, data]


def test_an_answer_in_chunks_is_read_whole_and_the_connection_kept(lanes):
    chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n"
    other, lane = talk(lanes, chunked, OK)
    assert lane.send("POST", "/", {}, b"", 0).data == b"hello, world"
    assert lane.send("POST", "/", {}, b"", 0).data == b"{}"
    assert other.connections == 1


def test_a_connection_that_the_server_closes_is_not_used_again(lanes):
    other, lane = talk(lanes, b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", OK)
    assert lane.send("POST", "/", {}, b"", 0).status == 400
    assert lane.send("POST", "/", {}, b"", 0).status == 201
    assert other.connections == 2


def test_what_is_to_be_sent_once_is_not_sent_again_when_the_server_has_closed_the_connection(lanes):
    other, lane = talk(lanes, OK, b"close", OK, b"close")
    lane.send("POST", "/", {}, b"1", 1)
    assert lane.send("POST", "/", {}, b"2", 1).status == 201
    with pytest.raises(ConnectionError):
        lane.send("POST", "/", {}, b"3", 1, once=True)
    assert [body for _, body in other.seen] == [b"1", b"2", b"2", b"3"]


@pytest.mark.parametrize("answer", [b"SSH-2.0 close\r\n\r\n", b"HTTP/1.1 twelve close\r\n\r\n", b"close"])
def test_what_is_no_http_is_a_broken_connection(lanes, answer):
    _, lane = talk(lanes, answer)
    with pytest.raises(ConnectionError):
        lane.send("POST", "/", {}, b"", 0)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_that_changes_its_size_meanwhile_is_refused(lanes, tmp_path, by):
    size = 1 << 20
    _, lane = talk(lanes, OK)
    file = tmp_path / "file"
    file.write_bytes(bytes(size + by))
    with pytest.raises(StorageError, match="no longer the"):
        lane.send("POST", "/", {}, file, size)


@pytest.mark.lakefs
def test_a_server_that_was_stopped_takes_no_upload_and_is_reported_in_under_five_seconds(emlake_home):
    own = server.start(port=server.free_port(), program=program())
    try:
        repo = lake.create(own.location("stopped"))
        repo.put("main", "a", b"1")
        for size in (1, 32 << 20):
            freeze(own.pid)
            begun = time.monotonic()
            with pytest.raises(ServerUnreachable, match="did not answer in time"):
                repo.put("main", "b", bytes(size))
            assert time.monotonic() - begun < 5
            os.kill(own.pid, signal.SIGCONT)
            assert repo.put("main", "c", b"2").size == 1
        repo.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(own.pid, signal.SIGCONT)
        server.stop()
