"""A thin road to a real server that answers some requests itself, as an older or a stricter server would.

As a pytest plugin it gives the fixture `lakefs_behind`.
"""

import http.client
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from lake.server import ServerState

#: What rebuilding a commit exactly takes, and what rebuilding a merge takes without.
RECORDS = r"^POST /api/v1/repositories/[^/]+/commits$"
MERGES = r"^POST /api/v1/repositories/[^/]+/refs/[^/]+/merge/session-clone-"
HOST = "127.0.0.1"
#: What names one hop of a road and not its end.
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_TIMEOUT_S = 120
#: Added to a status: the request goes to the server first, and its answer is lost on the way.
LATE = 1000
Refusals = Mapping[str, int]  # "METHOD path", as a regular expression, to the status it is answered with


@contextmanager
def proxy(endpoint: str, refusals: Refusals, *, once: bool = False) -> Iterator[str]:
    """Stand before the server at `endpoint`; gives the endpoint of the proxy. With `once` each refusal is made once.

    Requests that match none of `refusals` go to the server, and its answers come back, as they are. It is a process of
    its own: native libraries wait for an answer with the interpreter's lock in their hands.
    """
    command = [sys.executable, "-m", __name__, urlsplit(endpoint).netloc, json.dumps(dict(refusals)), "once" * once]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://{HOST}:{int(process.stdout.readline())}"
        finally:
            process.terminate()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: str
    rules: dict[re.Pattern[str], int]
    once: bool
    _server: http.client.HTTPConnection | None = None

    def _pass(self) -> None:
        body = self._body()
        asked = f"{self.command} {urlsplit(self.path).path}"
        match = next((pattern for pattern in self.rules if pattern.search(asked)), None)
        refused = None if match is None else self.rules.pop(match, None) if self.once else self.rules[match]
        if refused is not None:
            if refused > LATE:
                self._forward(body).read()
            told = [("Content-Type", "application/json")]
            self._answer(refused % LATE, "", told, b'{"message": "not offered here"}')
            return
        answer = self._forward(body)
        data = answer.read()
        self._answer(answer.status, answer.reason, answer.getheaders(), data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> http.client.HTTPResponse:
        if self._server is None:
            self._server = http.client.HTTPConnection(self.upstream, timeout=_TIMEOUT_S)
        # The name the client asked for is part of what it signed.
        self._server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                self._server.putheader(name, value)
        if body or self.command in ("POST", "PUT", "PATCH"):
            self._server.putheader("Content-Length", str(len(body)))
        self._server.endheaders(body or None)
        return self._server.getresponse()

    def _answer(self, status: int, reason: str, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status, reason or None)
        length = len(data)
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = int(value)
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked is gone
            self.wfile.write(data)

    def finish(self) -> None:
        """Close both connections."""
        if self._server is not None:
            self._server.close()
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until it is ended; the first line says at which port."""
    upstream, refusals = sys.argv[1], json.loads(sys.argv[2])
    _Handler.once = sys.argv[3] == "once"
    _Handler.upstream = upstream
    _Handler.rules = {re.compile(pattern): status for pattern, status in refusals.items()}
    server = ThreadingHTTPServer((HOST, 0), _Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


@pytest.fixture
def lakefs_behind(lakefs_server: ServerState, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Give a function that takes refusals: an unused location on the session's server, behind a proxy that makes them.

    The environment of the test holds the keys to the last one that was given.
    """
    with ExitStack() as roads:

        def location(refusals: Refusals, *, once: bool = False) -> str:
            endpoint = roads.enter_context(proxy(lakefs_server.endpoint, refusals, once=once))
            monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", endpoint)
            return f"lakefs://{urlsplit(endpoint).netloc}/r-{uuid.uuid4().hex[:12]}"

        yield location


if __name__ == "__main__":
    main()
