"""A server of one's own: started, found again, stopped; its secrets stay secret and its repositories stay."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lake
from lake import server
from lake.errors import BadInput, ConflictError, NotAuthorized, NotFound, ServerUnreachable, StorageError
from lake.server import ServerState
from lake.testing.server import kill, program


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def own(emlake_home: Path, lakefs_process: ServerState):
    """Start a server under the test's own home; whether there is a program was settled by `lakefs_process`."""
    state = server.start(port=server.free_port(), program=program())
    yield state
    server.stop()


# -- finding the program (no server needed) ---------------------------------------------------------------------------
def fake(path: Path, text: str = "#!/bin/sh\necho no such luck >&2\nexit 3\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_setting_comes_before_path(tmp_path, monkeypatch):
    on_path, by_setting = fake(tmp_path / "bin" / "lakefs"), fake(tmp_path / "other")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv(server.PROGRAM_SETTING, raising=False)
    assert server.find_program() == on_path
    monkeypatch.setenv(server.PROGRAM_SETTING, str(by_setting))
    assert server.find_program() == by_setting


def test_a_setting_that_is_no_program_is_refused_not_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv(server.PROGRAM_SETTING, str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="missing is not a program"):
        server.find_program()


def test_what_python_m_lakefs_installs_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv(server.PROGRAM_SETTING, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert server.find_program() is None
    at_home = fake(tmp_path / "user" / ".lakefs" / "bin" / "lakefs")
    assert server.find_program() == at_home
    in_venv = fake(tmp_path / "venv" / "bin" / "lakefs")
    assert server.find_program() == in_venv


def test_without_a_program_start_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "find_program", lambda: None)
    with pytest.raises(NotFound) as caught:
        server.start(home=tmp_path)
    assert "python -m lakefs" in caught.value.fix


def test_a_program_that_dies_is_reported_with_its_last_words(tmp_path):
    with pytest.raises(StorageError, match="no such luck"):
        server.start(home=tmp_path, port=server.free_port(), program=fake(tmp_path / "lakefs"))
    assert server.status(home=tmp_path) is None


def test_a_process_that_only_has_the_same_id_is_not_ours(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    record = {"pid": str(os.getpid()), "birth": "another boot 1", "port": "1", "program": "lakefs"}
    (folder / "running.json").write_text(json.dumps(record))
    (folder / "settings.json").write_text(json.dumps({"access_key_id": "a", "secret_access_key": "b"}))
    assert server.status(home=tmp_path) is None
    assert server.stop(home=tmp_path) is False


def test_without_a_server_status_is_none_and_stop_does_nothing(tmp_path):
    assert server.status(home=tmp_path) is None
    assert server.stop(home=tmp_path) is False


def test_a_taken_port_is_named(tmp_path):
    with server.socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port} is taken"):
            server.start(port=port, home=tmp_path, program=fake(tmp_path / "lakefs"))


# -- the real thing ---------------------------------------------------------------------------------------------------
@pytest.mark.lakefs
def test_a_started_server_is_found_by_location_alone(own):
    assert own.endpoint.startswith("http://127.0.0.1:")
    repo = lake.create(own.location("first"))
    assert repo.location == own.location("first")
    assert lake.open(own.location("first")).branches() == repo.branches()


@pytest.mark.lakefs
def test_starting_twice_gives_the_same_server_and_another_port_is_refused(own):
    assert server.start() == own
    assert server.status() == own
    with pytest.raises(ConflictError, match=f"runs on port {own.port}"):
        server.start(port=own.port + 1)


@pytest.mark.lakefs
def test_secrets_lie_in_files_of_mode_0600_and_in_no_text(own, emlake_home):
    folder = emlake_home / "server"
    secret = own.secret_access_key
    assert mode(folder) == 0o700
    holders = [path for path in folder.iterdir() if path.is_file() and secret in path.read_text(errors="replace")]
    assert holders == [folder / "settings.json"]
    assert mode(folder / "settings.json") == mode(folder / "server.log") == 0o600
    location = lake.create(own.location("keys")).location_of("main", "volumes/em/")
    assert mode(Path(location.s3.credentials_file)) == 0o600
    assert mode(Path(location.s3.credentials_file).parent) == 0o700
    assert secret not in repr(own) + repr(location) + json.dumps(own.to_json())
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(own.pid)], capture_output=True, text=True, check=True)
    assert secret not in shown.stdout


@pytest.mark.lakefs
def test_it_listens_on_loopback_only(own):
    addresses = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False).stdout
    if not addresses:
        addresses = _listening(own.pid)
    assert f"127.0.0.1:{own.port}" in addresses
    assert f"0.0.0.0:{own.port}" not in addresses
    assert f"*:{own.port}" not in addresses


def _listening(pid: int) -> str:
    """Read the listening sockets of this machine from /proc, for where there is no `ss`."""
    rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    found = []
    for row in rows:
        address, state = row.split()[1], row.split()[3]
        if state == "0A":
            host, port = address.split(":")
            found.append(".".join(str(byte) for byte in bytes.fromhex(host)[::-1]) + f":{int(port, 16)}")
    return "\n".join(found)


@pytest.mark.lakefs
def test_a_restart_keeps_port_keys_and_repositories(own):
    repo = lake.create(own.location("kept"))
    repo.put("main", "a", b"1")
    head = repo.commit("main", "one")
    repo.put("main", "b", b"staged")
    assert server.stop() is True
    assert server.status() is None
    again = server.start(program=Path(own.program))
    assert (again.port, again.access_key_id) == (own.port, own.access_key_id)
    assert again.pid != own.pid
    assert repo.resolve("main") == head
    assert [change.key for change in repo.uncommitted("main")] == ["b"]


@pytest.mark.lakefs
def test_wrong_keys_are_named_as_such(lakefs_server, monkeypatch):
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(NotAuthorized) as caught:
        lake.open(lakefs_server.location("any"))
    assert "wrong" not in str(caught.value)


@pytest.mark.lakefs
def test_a_dead_server_is_reported_in_under_five_seconds(own):
    repo = lake.create(own.location("dead"))
    kill(own.pid)
    for attempt in (lambda: repo.get("main", "a"), lambda: repo.commit("main", "x"), lambda: lake.open(repo.location)):
        began = time.monotonic()
        with pytest.raises((ServerUnreachable, NotAuthorized)) as caught:
            attempt()
        assert time.monotonic() - began < 5
        assert caught.value.fix


@pytest.mark.lakefs
def test_nothing_is_left_of_a_server_that_is_killed_or_stopped(lakefs_mortal):
    first = lakefs_mortal.state.pid
    lakefs_mortal.kill()
    assert not Path(f"/proc/{first}").exists()
    lakefs_mortal.restart()
    second = lakefs_mortal.state.pid
    lakefs_mortal.stop()
    assert not Path(f"/proc/{second}").exists()


# -- without a server -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("required", "code", "said"), [("0", 0, "were SKIPPED"), ("1", 1, "EMLAKE_REQUIRE_LAKEFS=1")])
def test_without_program_and_go_tests_are_skipped_loudly_or_fail_on_request(tmp_path, required, code, said):
    (tmp_path / "test_one.py").write_text("def test_one(lakefs_repo): pass\n")
    environment = {
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "EMLAKE_LAKEFS_CACHE": str(tmp_path / "cache"),
        "EMLAKE_REQUIRE_LAKEFS": required,
        "PYTHONPATH": str(Path(lake.__file__).parent.parent),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lake.testing.server", "-p", "no:cacheprovider", "."]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == code, answer.stdout
    assert said in answer.stdout
    assert "there is no lakeFS program, and no Go to build it" in answer.stdout
