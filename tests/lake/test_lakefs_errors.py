"""Every way a server can fail is an error of ours: by status, by broken connection, by killed server."""

import contextlib
import io
import json
import os
import select
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import lakefs.exceptions
import lakefs_sdk.exceptions
import pytest
import urllib3.exceptions

import lake
from lake import server
from lake.engines.lakefs.failures import from_exception, from_status, may_have_arrived, may_repeat
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    CorruptObject,
    GateRefused,
    LakeError,
    NotAuthorized,
    NotFound,
    ProtectedBranch,
    ServerUnreachable,
    StorageError,
)
from lake.testing.server import freeze as stop_at_once
from lake.testing.server import kill, program

EXPECTED = {
    400: BadInput,
    401: NotAuthorized,
    403: ProtectedBranch,
    404: NotFound,
    409: ConflictError,
    410: CorruptObject,
    412: GateRefused,
    416: BadInput,
    423: ConflictError,
    429: ServerUnreachable,
    500: StorageError,
    501: StorageError,
    502: ServerUnreachable,
    503: ServerUnreachable,
    504: ServerUnreachable,
}


# -- translation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("status", "kind"), EXPECTED.items())
def test_each_status_has_its_error(status, kind):
    error = from_status(status, "the server's words", "merge 'a' into 'b'")
    assert type(error) is kind
    assert str(error) == "merge 'a' into 'b': the server's words"
    assert error.fix


def test_any_other_status_is_a_storage_error_that_names_it():
    for status in set(range(300, 600)) - EXPECTED.keys():
        error = from_status(status, "", "get 'a'")
        assert type(error) is StorageError
        assert str(status) in str(error)


def families(*roots: type[BaseException]) -> list[type[BaseException]]:
    found: list[type[BaseException]] = []
    queue = list(roots)
    while queue:
        cls = queue.pop()
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found


NETWORK = [
    cls
    for cls in families(urllib3.exceptions.HTTPError, ConnectionError, TimeoutError, socket.gaierror)
    if not issubclass(cls, Warning)
]


@pytest.mark.parametrize("cls", NETWORK, ids=lambda cls: cls.__name__)
def test_whatever_the_network_raises_is_server_unreachable(cls):
    problem = cls.__new__(cls)
    Exception.__init__(problem, "broke")
    # What their own texts are made of.
    vars(problem).update(reason=None, partial=0, expected=0, length=b"", response=io.BytesIO())
    error = from_exception(problem, "get 'a'", "http://h:1")
    assert type(error) is ServerUnreachable
    assert "http://h:1" in str(error)
    assert error.fix


@pytest.mark.parametrize("cls", families(lakefs_sdk.exceptions.ApiException), ids=lambda cls: cls.__name__)
def test_whatever_the_client_raises_is_read_by_its_status(cls):
    for status, kind in EXPECTED.items():
        problem = cls(status=status, reason="r")
        problem.body = '{"message": "the server\'s\\n\\twords"}'
        error = from_exception(problem, "x", "http://h:1")
        assert type(error) is kind
        assert str(error) == "x: the server's words"


def test_a_failed_tls_handshake_is_server_unreachable_and_not_tried_again():
    error = from_exception(
        lakefs_sdk.exceptions.ApiException(status=0, reason="SSLError\nbad cert"), "x", "https://h:1"
    )
    assert type(error) is ServerUnreachable
    assert not may_repeat(error, safe=True)


def test_the_high_level_client_raises_nothing_that_is_not_of_these_families():
    # The engine calls the generated client, whose errors the tests above enumerate; should the high-level one ever be
    # called, this list says what it would raise.
    names = {cls.__name__ for cls in families(lakefs.exceptions.LakeFSException)}
    assert "ServerException" in names


@pytest.mark.parametrize(
    ("problem", "arrived", "again_if_safe", "again_if_not"),
    [
        (urllib3.exceptions.NewConnectionError(None, "refused"), False, True, True),
        (urllib3.exceptions.ConnectTimeoutError(None, "slow"), False, False, False),
        (urllib3.exceptions.ReadTimeoutError(None, "", "slow"), True, False, False),
        (urllib3.exceptions.ProtocolError("cut"), True, True, False),
        (ConnectionResetError("reset"), True, True, False),
    ],
)
def test_only_what_cannot_do_harm_is_sent_again(problem, arrived, again_if_safe, again_if_not):
    error = from_exception(problem, "x", "http://h:1")
    assert may_have_arrived(error) is arrived
    assert may_repeat(error, safe=True) is again_if_safe
    assert may_repeat(error, safe=False) is again_if_not


# -- a server that always says the same -------------------------------------------------------------------------------
class Stub:
    """Answers every request in one way, and counts them; what a proxy or a sick server says cannot be had otherwise."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b"{}", []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stub.asked.append(self.command)
                self.send_response(stub.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(stub.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(stub.body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def say(self, status: int, message: str = "the stub's words") -> None:
        self.status, self.body, self.asked = status, json.dumps({"message": message}).encode(), []

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def stub():
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def on_stub(stub, monkeypatch):
    monkeypatch.setenv("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("lake.engines.lakefs.wire._PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("lake.engines.lakefs.protection._PATIENCE_S", 0.05)
    stub.body = b'{"id": "demo"}'
    repo = lake.open(f"lakefs://127.0.0.1:{stub.port}/demo")
    yield repo
    repo.close()


CALLS = {
    "resolve": lambda repo: repo.resolve("main"),
    "commit_info": lambda repo: repo.commit_info("main~1"),
    "branches": lambda repo: repo.branches(),
    "create_branch": lambda repo: repo.create_branch("b", "main"),
    "delete_branch": lambda repo: repo.delete_branch("b"),
    "tags": lambda repo: repo.tags(),
    "create_tag": lambda repo: repo.create_tag("t", "main"),
    "delete_tag": lambda repo: repo.delete_tag("t"),
    "protect": lambda repo: repo.protect("main"),
    "protected": lambda repo: repo.protected(),
    "put": lambda repo: repo.put("main", "k", b"x"),
    "delete": lambda repo: repo.delete("main", ["k"]),
    "get": lambda repo: repo.get("main", "k"),
    "stat": lambda repo: repo.stat("main", "k"),
    "list": lambda repo: list(repo.list("main")),
    "location_of": lambda repo: repo.location_of("main", "volumes/"),
    "workspace": lambda repo: repo.workspace("main", "volumes/"),
    "uncommitted": lambda repo: list(repo.uncommitted("main")),
    "commit": lambda repo: repo.commit("main", "m"),
    "reset": lambda repo: repo.reset("main"),
    "log": lambda repo: list(repo.log("main")),
    "diff": lambda repo: list(repo.diff("main", "b")),
    "merge": lambda repo: repo.merge("b", "main", "m"),
    "revert": lambda repo: repo.revert("main", "main"),
    "retention": lambda repo: repo.retention().keep({"": 1}),
    "server_gate": lambda repo: [repo.server_gate().ran_for("0" * 64), repo.server_gate().refuses()],
    "cherry_pick": lambda repo: repo.cherry_pick("main", "main"),
    "reset_to": lambda repo: repo.reset_to("main", "main"),
}


def test_every_method_of_the_protocol_is_tried_here():
    methods = {name for name in vars(lake.repository.Repository) if not name.startswith("_")}
    assert methods - {"location", "close", "session", "snapshot"} == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_no_method_lets_a_foreign_error_out(call, stub, on_stub):
    for status in EXPECTED:
        stub.say(status)
        with pytest.raises(LakeError) as caught:
            CALLS[call](on_stub)
        assert caught.value.exit_code in (2, 3, 4, 5, 6)
        assert caught.value.fix


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_of_another_shape_is_a_storage_error(call, stub, on_stub):
    stub.say(200)
    for body in (b"<!doctype html><html></html>", b"{}", b"[]", b"3", b'"text"', b"", b'{"results": [3]}'):
        stub.body = body
        # What answers with nothing (a delete, a reset, rules) has no shape that could be wrong.
        with contextlib.suppress(StorageError):
            CALLS[call](on_stub)


def test_reads_are_tried_again_and_writes_that_may_have_happened_are_not(stub, on_stub):
    stub.say(503)
    with pytest.raises(ServerUnreachable):
        on_stub.get("main", "k")
    assert stub.asked == ["GET"] * 4
    stub.say(503)
    with pytest.raises(ServerUnreachable):
        on_stub._wire.call(
            on_stub._wire.sdk.commits_api.commit, "demo", "main", {"message": "m"}, doing="commit 'main'"
        )
    assert stub.asked == ["POST"]


def test_what_a_hook_says_reaches_the_reader_whole(stub, on_stub):
    stub.say(412, "pre-commit hook aborted:\n\t* hook 'judged' failed: no QC verdict on abc")
    with pytest.raises(GateRefused, match="no QC verdict on abc"):
        on_stub._wire.call(on_stub._wire.sdk.commits_api.commit, "demo", "main", {"message": "m"}, doing="commit")


def test_a_host_that_swallows_packets_is_reported_in_under_five_seconds(monkeypatch):
    monkeypatch.setenv("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as full:
        # A listener that never accepts: once its queue is full the kernel drops what else comes.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        began = time.monotonic()
        with pytest.raises(ServerUnreachable, match="in time"):
            lake.open(f"lakefs://127.0.0.1:{port}/demo")
        assert time.monotonic() - began < 5
        for one in waiting:
            one.close()


# -- a real server that goes away in the middle -----------------------------------------------------------------------
@pytest.fixture
def mortal(emlake_home, lakefs_process):
    state = server.start(port=server.free_port(), program=program())
    yield state
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGCONT)
    server.stop()


@pytest.mark.lakefs
@pytest.mark.parametrize("operation", ["commit", "merge", "revert"])
def test_a_server_killed_in_mid_request_leaves_the_old_head_and_the_message_names_it(mortal, operation):
    repo = lake.create(mortal.location("mortal"))
    repo.put("main", "a", b"1")
    first = repo.commit("main", "one")
    repo.create_branch("b", "main")
    repo.put("b", "b", b"2")
    repo.commit("b", "two")
    if operation == "commit":
        repo.put("main", "c", b"3")
    wire, caught = repo._wire, []
    real, frozen = wire.call, threading.Event()

    def freeze(function, *arguments, **options):
        if function.__name__ in ("commit", "merge_into_branch", "revert_branch"):
            stop_at_once(mortal.pid)  # from here on the request is sent and nobody answers
            frozen.set()
        return real(function, *arguments, **options)

    wire.call = freeze

    def attempt():
        try:
            {
                "commit": lambda: repo.commit("main", "three"),
                "merge": lambda: repo.merge("b", "main", "three"),
                "revert": lambda: repo.revert("main", "main", message="three"),
            }[operation]()
        except LakeError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    assert frozen.wait(10)
    time.sleep(0.3)
    kill(mortal.pid)
    thread.join(10)
    assert not thread.is_alive()
    (error,) = caught
    assert isinstance(error, ServerUnreachable)
    assert first in str(error)
    assert "when the server is back" in str(error)
    wire.call = real
    server.start(program=program())
    assert repo.resolve("main") == first
    assert [change.key for change in repo.uncommitted("main")] == (["c"] if operation == "commit" else [])
    assert repo.get("main", "a") == b"1"


class Cutter:
    """Stands before a server and cuts the connection when a marked request, or the answer to it, comes."""

    def __init__(self, port: int, mark: bytes, *, forward: bool = True) -> None:
        self.target, self.mark, self.forward, self.cut = port, mark, forward, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.relay, args=(client,), daemon=True).start()

    def relay(self, client: socket.socket) -> None:
        marked = False
        with client, socket.create_connection(("127.0.0.1", self.target)) as upstream:
            while True:
                ready, _, _ = select.select([client, upstream], [], [])
                if client in ready:
                    request = client.recv(1 << 20)
                    if not request:
                        return
                    marked = marked or self.mark in request
                    if marked and not self.forward and not self.cut:
                        self.cut = True
                        return
                    upstream.sendall(request)
                else:
                    answer = upstream.recv(1 << 20)
                    if marked and not self.cut:
                        self.cut = True
                        return
                    client.sendall(answer)

    def close(self) -> None:
        self.listener.close()


@pytest.mark.lakefs
@pytest.mark.parametrize(
    ("mark", "operation"),
    [
        (b"POST /api/v1/repositories/{name}/branches/main/commits", lambda repo: repo.commit("main", "three")),
        (b"/merge/main HTTP", lambda repo: repo.merge("b", "main", "three")),
        (b"/branches/main/revert", lambda repo: repo.revert("main", "main", message="three")),
    ],
    ids=["commit", "merge", "revert"],
)
def test_what_was_done_although_the_answer_was_lost_is_found(lakefs_server, monkeypatch, mark, operation):
    direct = lake.create(lakefs_server.location(f"lost-{time.monotonic_ns()}"))
    name = direct.location.rsplit("/", 1)[1]
    direct.put("main", "a", b"1")
    before = direct.commit("main", "one")
    direct.create_branch("b", "main")
    direct.put("b", "b", b"2")
    direct.commit("b", "two")
    if b"commits" in mark:
        direct.put("main", "c", b"3")
    if b"/merge/main" in mark:
        mark = b"POST /api/v1/repositories/" + name.encode() + b"/refs/" + direct.resolve("b").encode()
    cutter = Cutter(lakefs_server.port, mark.replace(b"{name}", name.encode()))
    monkeypatch.delenv("LAKECTL_SERVER_ENDPOINT_URL")
    repo = lake.open(f"lakefs://127.0.0.1:{cutter.port}/{name}")
    made = operation(repo)
    assert cutter.cut
    assert made == direct.resolve("main")
    assert direct.commit_info(made).parents[0] == before
    repo.close()
    cutter.close()


@pytest.mark.lakefs
def test_what_never_arrived_is_said_to_have_changed_nothing(lakefs_server, monkeypatch):
    direct = lake.create(lakefs_server.location(f"lost-{time.monotonic_ns()}"))
    name = direct.location.rsplit("/", 1)[1]
    before = direct.resolve("main")
    direct.put("main", "c", b"3")
    cutter = Cutter(lakefs_server.port, b"/branches/main/commits HTTP", forward=False)
    monkeypatch.delenv("LAKECTL_SERVER_ENDPOINT_URL")
    repo = lake.open(f"lakefs://127.0.0.1:{cutter.port}/{name}")
    with pytest.raises(ServerUnreachable, match=f"'main' is at {before}.*nothing of this landed"):
        repo.commit("main", "three")
    assert direct.resolve("main") == before
    assert [change.key for change in direct.uncommitted("main")] == ["c"]
    repo.close()
    cutter.close()


@pytest.mark.lakefs
def test_a_put_whose_answer_is_lost_is_sent_again(lakefs_server, monkeypatch):
    direct = lake.create(lakefs_server.location(f"lost-{time.monotonic_ns()}"))
    name = direct.location.rsplit("/", 1)[1]
    cutter = Cutter(lakefs_server.port, b"/branches/main/objects")
    monkeypatch.delenv("LAKECTL_SERVER_ENDPOINT_URL")
    repo = lake.open(f"lakefs://127.0.0.1:{cutter.port}/{name}")
    assert repo.put("main", "a", b"once").size == 4
    assert cutter.cut
    assert direct.get("main", "a") == b"once"
    repo.close()
    cutter.close()


# -- a real server that says no ---------------------------------------------------------------------------------------
@pytest.mark.lakefs
def test_a_name_that_was_used_before_is_told_so(lakefs_location):
    repo = lake.create(lakefs_location)
    with pytest.raises(AlreadyExists, match="exists"):
        lake.create(lakefs_location)
    repo._wire.call(repo._wire.sdk.repositories_api.delete_repository, repo._wire.name, doing="delete")
    # Neither while it is there nor after it was deleted.
    with pytest.raises(AlreadyExists) as caught:
        lake.create(lakefs_location)
    assert "never used" in caught.value.fix


@pytest.mark.lakefs
def test_bytes_that_were_damaged_in_the_store_are_found_out(lakefs_repo):
    stat = lakefs_repo.put("main", "a", b"as it was")
    commit = lakefs_repo.commit("main", "one")
    path = stat.address.removeprefix("local://")
    with open(path, "r+b") as stream:
        stream.write(b"AS")
    with pytest.raises(CorruptObject, match="recorded checksum"):
        lakefs_repo.get(commit, "a")
    os.unlink(path)
    with pytest.raises((CorruptObject, StorageError)):
        lakefs_repo.get(commit, "a")


@pytest.mark.lakefs
def test_a_batch_delete_that_the_server_half_refuses_raises(lakefs_repo):
    lakefs_repo.put("main", "a", b"1")
    lakefs_repo.commit("main", "one")
    lakefs_repo.protect("main")
    with pytest.raises(ProtectedBranch):
        lakefs_repo.delete("main", ["a", "b"])
    assert lakefs_repo.get("main", "a") == b"1"
