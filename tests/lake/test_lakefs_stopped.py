"""A server that was stopped takes connections and answers nothing: it is given up soon, a slow one is waited for."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

import lake
from lake import reach
from lake.engines.lakefs.watched import watched_pool
from lake.errors import ServerUnreachable
from lake.testing.crash import check_whole, content
from lake.testing.server import freeze

WITHIN_S = 5.0

READS = {
    "resolve": lambda repo, own: repo.resolve(own),
    "branches": lambda repo, own: repo.branches(),
    "tags": lambda repo, own: repo.tags(),
    "get": lambda repo, own: repo.get(own, "a"),
    "stat": lambda repo, own: repo.stat(own, "a"),
    "list": lambda repo, own: list(repo.list(own)),
    "uncommitted": lambda repo, own: list(repo.uncommitted(own)),
    "log": lambda repo, own: list(repo.log(own)),
    "diff": lambda repo, own: list(repo.diff("main", own)),
    "protected": lambda repo, own: repo.protected(),
}
#: Each works on a branch of its own, which has a commit more than main.
WRITES = {
    "put": lambda repo, own: repo.put(own, "new", b"1"),
    "large put": lambda repo, own: repo.put(own, "new", bytes(16 << 20)),
    "delete": lambda repo, own: repo.delete(own, ["a"]),
    "create_branch": lambda repo, own: repo.create_branch(own + "-more", own),
    "delete_branch": lambda repo, own: repo.delete_branch(own),
    "create_tag": lambda repo, own: repo.create_tag("t", own),
    "delete_tag": lambda repo, own: repo.delete_tag("old"),
    "reset": lambda repo, own: repo.reset(own),
    "reset_to": lambda repo, own: repo.reset_to(own, "main"),
}
LANDINGS = {
    "commit": lambda repo, own: repo.commit(own, "empty", allow_empty=True),
    "merge": lambda repo, own: repo.merge("main", own, "m"),
    "revert": lambda repo, own: repo.revert(own, own),
    "cherry_pick": lambda repo, own: repo.cherry_pick(own, "main"),
}


@pytest.fixture
def stopped(lakefs_mortal):
    """Give (repository, function that stops the server); it goes on in the end."""
    repo = lake.create(lakefs_mortal.state.location("stopped"))
    repo.put("main", "a", b"1")
    repo.commit("main", "one")
    repo.create_tag("old", "main")
    yield repo, lambda: freeze(lakefs_mortal.state.pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(lakefs_mortal.state.pid, signal.SIGCONT)
    repo.close()


@pytest.mark.lakefs
@pytest.mark.slow
def test_whatever_a_server_was_asked_before_it_stopped_is_given_up_soon(stopped, lakefs_mortal, monkeypatch):
    repo, stop = stopped
    calls = {**READS, **WRITES, **LANDINGS}
    own = {name: f"b{number}" for number, name in enumerate(calls)}
    for branch in own.values():
        repo.create_branch(branch, "main")
        repo.put(branch, "b", branch.encode())
        repo.commit(branch, "two")
    repo.put("main", "c", b"3")
    repo.commit("main", "three")
    began = []
    everybody = threading.Barrier(len(calls), action=lambda: (stop(), began.append(time.monotonic())))
    here = threading.local()
    real = repo._wire._attempt

    def attempt(send, **options):
        name = here.name
        # Landings are rehearsed on a branch with another name.
        due = name in READS or (options["changes"] and (name in WRITES or repr(own[name]) in options["doing"]))
        if due and not here.waited:
            here.waited = True
            everybody.wait(20)
        return real(send, **options)

    def ask(name):
        here.waited, here.name = False, name
        try:
            calls[name](repo, own[name])
        except ServerUnreachable as error:
            return error, time.monotonic() - began[0]
        raise AssertionError(f"{name} went through")

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(calls)) as pool:
        patch.setattr(repo._wire, "_attempt", attempt)
        outcomes = dict(zip(calls, pool.map(ask, calls), strict=True))
    for name, (error, took) in outcomes.items():
        assert took < WITHIN_S, f"{name}: {error}"
        assert "did not answer in time" in error.message, name
        assert ("is not known" in error.message) == (name in WRITES), error.message
        assert ("either holds a commit with metadata" in error.message) == (name in LANDINGS), error.message
        assert "server" in error.fix
    os.kill(lakefs_mortal.state.pid, signal.SIGCONT)
    check_whole(repo)
    repo.put("main", "d", b"4")
    assert content(repo, "main") == {"a": b"1", "c": b"3", "d": b"4"}


@pytest.mark.lakefs
@pytest.mark.slow
def test_a_merge_that_takes_its_time_on_a_server_that_lives_is_waited_for(lakefs_repo):
    held = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(5)  # longer than it takes to give a silent server up
            held.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        action = f"""
            name: slow
            on: {{pre-merge: {{branches: [main]}}}}
            hooks:
              - id: slow
                type: webhook
                properties: {{url: "http://127.0.0.1:{http.server_address[1]}/", timeout: 30s}}
        """
        lakefs_repo.put("main", "_lakefs_actions/slow.yaml", action.encode())
        lakefs_repo.commit("main", "a slow hook")
        lakefs_repo.create_branch("side", "main")
        lakefs_repo.put("side", "a", b"1")
        lakefs_repo.commit("side", "one")
        lakefs_repo.merge("side", "main", "m")
        http.shutdown()
    assert len(held) == 1
    assert lakefs_repo.get("main", "a") == b"1"


# -- over TLS ---------------------------------------------------------------------------------------------------------
class SlowTLS:
    """Takes two seconds for each answer but that about its health, and can stop shaking hands."""

    def __init__(self, certificate: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.context, self.stopped, self.asked = context, threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.origin = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self.stopped.is_set():
                client, _ = self.listener.accept()
                threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(client, server_side=True) as secure:
            head = secure.recv(1 << 16)
            if b"/_health" not in head:
                self.asked.set()
                time.sleep(2)
            if self.stopped.wait(0):
                threading.Event().wait(20)
            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def slow(tmp_path):
    made = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made, "-out", tmp_path / "half"],
        check=True,
        capture_output=True,
    )
    made.write_bytes(made.read_bytes() + (tmp_path / "half").read_bytes())
    server = SlowTLS(str(made))
    server.pool = watched_pool(secure=True, ca_certs=str(tmp_path / "half"), connections=2)
    yield server
    server.pool.clear()
    server.listener.close()


@pytest.mark.slow
def test_over_tls_a_slow_server_is_waited_for_and_a_stopped_one_is_not(slow):
    assert slow.pool.request("GET", slow.origin + "/x", timeout=urllib3.Timeout(connect=3, read=30)).data == b"{}"
    slow.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(slow.pool.request, "POST", slow.origin + "/x", timeout=30.0)
        assert slow.asked.wait(10)
        slow.stopped.set()
        socket.create_connection(slow.listener.getsockname()).close()  # it still waits for one
        began = time.monotonic()
        error = answer.exception(timeout=20)
    assert time.monotonic() - began < WITHIN_S
    assert isinstance(error, urllib3.exceptions.ReadTimeoutError)
    assert isinstance(error.__cause__, reach.Gone)


def test_the_limit_of_a_call_holds_for_a_server_that_lives(slow):
    with pytest.raises(urllib3.exceptions.ReadTimeoutError) as caught:
        slow.pool.request("GET", slow.origin + "/x", timeout=urllib3.Timeout(connect=3, read=0.3))
    assert not isinstance(caught.value.__cause__, reach.Gone)


def test_a_certificate_that_nobody_vouches_for_is_refused_as_before(slow):
    with pytest.raises(urllib3.exceptions.SSLError):
        watched_pool(secure=True, ca_certs=None, connections=1).request("GET", slow.origin + "/x", timeout=3.0)
