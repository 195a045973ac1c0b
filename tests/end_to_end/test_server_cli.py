"""`emlake server`, with the real program."""

import json

import pytest

from lake.server import free_port
from lake.testing.server import program

pytestmark = [pytest.mark.lakefs, pytest.mark.slow]


def test_a_server_is_started_used_and_stopped(emlake, monkeypatch):
    monkeypatch.setenv("EMLAKE_LAKEFS_PROGRAM", str(program()))
    port = free_port()
    assert json.loads(emlake("server", "status", "--json").out)["running"] is False
    try:
        started = json.loads(emlake("server", "start", "--port", port, "--json").out)
        assert started["endpoint"] == f"http://127.0.0.1:{port}"
        location = f"lakefs://127.0.0.1:{port}/lab"
        assert emlake("init", location).code == 0
        assert emlake("release", "candidate", "r1", "--repo", location).code == 0
        answer = emlake("log", "--repo", f"lakefs://127.0.0.1:{port}/labb")
        assert (answer.code, "'lab'" in answer.err) == (4, True)
        again = json.loads(emlake("server", "start", "--json").out)
        assert again["pid"] == started["pid"]
        monkeypatch.setenv("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", "none")
        monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "none")
        wrong = emlake("log", "--repo", location)
        assert (wrong.code, wrong.err.startswith("error[not-authorized]")) == (6, True)
    finally:
        assert emlake("server", "stop").out == "stopped\n"
    assert emlake("server", "stop").out == "none was running\n"
