"""Runs a lakeFS server of one's own: on loopback, with local storage and random keys, one per `$EMLAKE_HOME`.

::

    $EMLAKE_HOME/server/
        settings.json   port, keys and secrets; made once, mode 0600 (a lost encryption secret is a lost server)
        running.json    process id and birth of the process that serves, while one does
        server.log      what the program says
        metadata/ data/ cache/

A process is recognised by its id *and* the moment it was born, so a re-used id is never signalled. Nothing here needs
the lakeFS client.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lake.errors import BadInput, ConflictError, NotFound, StorageError
from lake.home import home as default_home
from lake.home import write_private

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
PROGRAM_SETTING = "EMLAKE_LAKEFS_PROGRAM"
_START_S = 60.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, repr=False)
class ServerState:
    """A running server."""

    endpoint: str
    port: int
    pid: int
    program: str
    folder: str
    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        # The secret must not reach a log or a traceback.
        return f"ServerState(endpoint={self.endpoint!r}, pid={self.pid})"

    def location(self, name: str) -> str:
        """Give the location of repository `name` on this server, as `lake.open` takes it."""
        return f"lakefs://{HOST}:{self.port}/{name}"

    def environment(self) -> dict[str, str]:
        """Give the variables with which lakeFS's own tools reach this server."""
        return {
            "LAKECTL_SERVER_ENDPOINT_URL": self.endpoint,
            "LAKECTL_CREDENTIALS_ACCESS_KEY_ID": self.access_key_id,
            "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def to_json(self) -> dict[str, object]:
        """Describe the server without its secret."""
        return {
            "endpoint": self.endpoint,
            "port": self.port,
            "pid": self.pid,
            "program": self.program,
            "folder": self.folder,
            "access_key_id": self.access_key_id,
        }


def find_program() -> Path | None:
    """Find the lakeFS program: `$EMLAKE_LAKEFS_PROGRAM`, `lakefs` on PATH, what `python -m lakefs` installs.

    Raises `BadInput` if the setting names something that is no program.
    """
    setting = os.environ.get(PROGRAM_SETTING)
    if setting:
        path = Path(setting).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise BadInput(f"{PROGRAM_SETTING}={setting} is not a program", fix="correct or unset it")
        return path.absolute()
    on_path = shutil.which("lakefs")
    if on_path:
        return Path(on_path).absolute()
    # The `lakefs` package downloads into the environment's bin folder, or, if that is not writable, below the home.
    for folder in (Path(sys.exec_prefix) / "bin", Path.home() / ".lakefs" / "bin"):
        candidate = folder / "lakefs"
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def start(port: int | None = None, home: Path | None = None, program: Path | None = None) -> ServerState:
    """Start the server, or give the one that runs already.

    Parameters
    ----------
    port : int or None
        None: the port it had before, else 8000, else any free one.
    home : path or None
        Other folder than `$EMLAKE_HOME`.
    program : path or None
        None: what `find_program` finds.

    Raises
    ------
    NotFound
        There is no lakeFS program.
    ConflictError
        It runs on another port than asked for, or the port is taken.
    StorageError
        It did not become healthy; the message holds the end of its log.
    """
    folder = _folder(home)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):
        running = _running(folder)
        if running is not None:
            if port not in (None, running.port):
                raise ConflictError(
                    f"the server runs on port {running.port} already, not on {port}", fix="`emlake server stop` first"
                )
            return running
        program = program or find_program()
        if program is None:
            raise NotFound(
                "there is no lakeFS program",
                fix=f"run `python -m lakefs --version` (downloads it), put `lakefs` on PATH, or set {PROGRAM_SETTING}",
            )
        settings = _settings(folder, port)
        return _launch(folder, program, settings)


def stop(home: Path | None = None) -> bool:
    """Stop the server and tell whether one ran; its repositories stay."""
    folder = _folder(home)
    if not folder.is_dir():
        return False
    with _locked(folder):
        running = _running(folder)
        if running is None:
            return False
        birth = _birth(running.pid)
        for number, patience in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, number)
            if _gone(running.pid, birth, patience):
                (folder / "running.json").unlink(missing_ok=True)
                return True
        raise StorageError(f"process {running.pid} does not end", fix="end it by hand")


def status(home: Path | None = None) -> ServerState | None:
    """Give the running server, or None. Whether it answers is `healthy`'s question."""
    return _running(_folder(home))


def healthy(endpoint: str) -> bool:
    """Tell whether a lakeFS server answers at `endpoint`."""
    try:
        # Loopback is never behind a proxy, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{endpoint}/_health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _folder(home: Path | None) -> Path:
    return (home if home is not None else default_home()) / "server"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# -- settings and state -----------------------------------------------------------------------------------------------
def _settings(folder: Path, port: int | None) -> dict[str, str]:
    path = folder / "settings.json"
    settings = _read(path)
    if not settings:
        settings = {
            "access_key_id": "AKIA" + secrets.token_hex(8).upper(),
            "secret_access_key": secrets.token_urlsafe(30),
            "signing_secret": secrets.token_hex(32),
            "encrypt_secret": secrets.token_hex(32),
        }
    wanted = port or int(settings.get("port", 0)) or DEFAULT_PORT
    if _taken(wanted):
        # A location holds the port, so a port that was given, or served before, is not exchanged in silence.
        if port or "port" in settings:
            raise ConflictError(f"port {wanted} is taken by another program", fix="give another port, or free it")
        wanted = free_port()
    settings["port"] = str(wanted)
    write_private(path, json.dumps(settings, indent=1))
    return settings


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}", fix="restore it; it holds the keys to the server"
        ) from error
    return {str(name): str(value) for name, value in content.items()}


def _running(folder: Path) -> ServerState | None:
    record = _read(folder / "running.json")
    # A record without a birth is of a program that died before it was looked at.
    if not record or not record["birth"] or _birth(int(record["pid"])) != record["birth"]:
        return None
    settings = _read(folder / "settings.json")
    return ServerState(
        endpoint=f"http://{HOST}:{record['port']}",
        port=int(record["port"]),
        pid=int(record["pid"]),
        program=record["program"],
        folder=str(folder),
        access_key_id=settings["access_key_id"],
        secret_access_key=settings["secret_access_key"],
    )


# -- the process ------------------------------------------------------------------------------------------------------
def _launch(folder: Path, program: Path, settings: dict[str, str]) -> ServerState:
    log = folder / "server.log"
    begin = log.stat().st_size if log.exists() else 0
    # An own, empty configuration file keeps ./config.yaml, ~/.lakefs.yaml and /etc/lakefs out of it.
    config = folder / "lakefs.yaml"
    config.write_text("# Set by the environment; see lake/server.py.\nlogging:\n  level: WARN\n", encoding="utf-8")
    output = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # posix_spawn, not Popen: the server outlives this process and nobody shall wait for it or warn about it.
    pid = os.posix_spawn(
        program,
        [str(program), "run", "--config", str(config)],
        _environment(folder, settings),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), output, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    birth = _birth(pid)
    record = {"pid": str(pid), "birth": birth, "port": settings["port"], "program": str(program)}
    write_private(folder / "running.json", json.dumps(record, indent=1))
    endpoint, deadline = f"http://{HOST}:{settings['port']}", time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if healthy(endpoint):
            state = _running(folder)
            if state is not None:
                return state
        if _gone(pid, birth, 0.05):
            break
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _gone(pid, birth, 5.0)
    (folder / "running.json").unlink(missing_ok=True)
    with log.open("rb") as stream:
        stream.seek(max(begin, log.stat().st_size - 1500))
        said = " ".join(stream.read().decode(errors="replace").split())
    raise StorageError(f"{program} did not start: {said or 'it said nothing'}", fix=f"see {log}")


def _environment(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LAKEFS_")}
    return inherited | {
        "LAKEFS_LISTEN_ADDRESS": f"{HOST}:{settings['port']}",
        "LAKEFS_DATABASE_TYPE": "local",
        "LAKEFS_DATABASE_LOCAL_PATH": str(folder / "metadata"),
        "LAKEFS_BLOCKSTORE_TYPE": "local",
        "LAKEFS_BLOCKSTORE_LOCAL_PATH": str(folder / "data"),
        "LAKEFS_BLOCKSTORE_SIGNING_SECRET_KEY": settings["signing_secret"],
        "LAKEFS_AUTH_ENCRYPT_SECRET_KEY": settings["encrypt_secret"],
        "LAKEFS_INSTALLATION_USER_NAME": "admin",
        "LAKEFS_INSTALLATION_ACCESS_KEY_ID": settings["access_key_id"],
        "LAKEFS_INSTALLATION_SECRET_ACCESS_KEY": settings["secret_access_key"],
        "LAKEFS_COMMITTED_LOCAL_CACHE_DIR": str(folder / "cache"),
        # With one client the default delay of 3 ms per batch is most of the time of an upload.
        "LAKEFS_GRAVELER_MAX_BATCH_DELAY": "50us",
        "LAKEFS_STATS_ENABLED": "false",
        "LAKEFS_EMAIL_SUBSCRIPTION_ENABLED": "false",
        "LAKEFS_SECURITY_CHECK_LATEST_VERSION": "false",
        "LAKEFS_SECURITY_AUDIT_CHECK_URL": "",
    }


def _birth(pid: int) -> str:
    """Give a text that no other process with this id has had; empty if there is no such process."""
    try:
        # Field 2 is the program's name in brackets and may hold anything; state is field 3, start time 22.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        if Path("/proc/self").exists():
            return ""
        asked = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        state, _, birth = (
            subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().partition(" ")
        )
        return "" if state.startswith("Z") else birth.strip()
    return "" if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"


def _gone(pid: int, birth: str, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        now = _birth(pid)
        if now != birth if now else _reaped(pid):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _reaped(pid: int) -> bool:
    """Let a dead process go if this one started it, which would stay a zombie; False while parts of it still die."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OverflowError as error:
            raise BadInput(f"port {port} is not valid", fix="give 1 to 65535") from error
        except OSError:
            return True
    return False


def free_port() -> int:
    """Give a port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
