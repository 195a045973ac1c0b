"""A real lakeFS server for tests: found, or built from its published Go module, and started on a free port.

As a pytest plugin it gives the fixtures `lakefs_process` (one server a session), `lakefs_server` (the same, with its
keys in the environment of the test), `lakefs_location` (an unused repository location), `lakefs_repo` (a new
repository) and `lakefs_mortal` (a server of its own, for a test that kills it). Without a program and without Go these
tests are skipped and the summary says so; with `EMLAKE_REQUIRE_LAKEFS=1` they fail. `python -m lake.testing.server`
builds ahead and prints where the program is.

lakeFS's own go.mod replaces a module, so `go install pkg@version` is refused; a module of one's own that repeats the
replacement builds it as a tool. The checksum service does not know two of its forks: their published hashes are here,
and Go compares everything else with that service.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import lake
from lake import server
from lake.errors import ConflictError, LakeError, NotFound, StorageError
from lake.repository import Repository
from lake.server import ServerState

VERSION = "1.84.0"
CACHE_SETTING = "EMLAKE_LAKEFS_CACHE"
REQUIRED_SETTING = "EMLAKE_REQUIRE_LAKEFS"
_PACKAGE = "github.com/treeverse/lakefs/cmd/lakefs"
_GO_MOD = f"""module emlake.invalid/lakefs-server

go 1.26.4

replace github.com/csimplestring/delta-go => github.com/treeverse/delta-go v0.0.0-20260323095047-d2f80252d945

tool {_PACKAGE}
"""
_GO_SUM = """\
github.com/treeverse/delta-go v0.0.0-20260323095047-d2f80252d945 h1:lNeK0Ja041ImXOLqHard7vdeunaIAAUFtAgbNzYvLxw=
github.com/treeverse/delta-go v0.0.0-20260323095047-d2f80252d945/go.mod h1:E7uPCvF9rw8UQt6uDMN05snxpD45/I/UXAZxzVIYTgI=
github.com/treeverse/secret-detector v0.0.0-20250429145544-8c655b974a5f h1:7FOJn/bWOYZWYVSnYqTWWQzrk//rYxVxoQIEJJMX3mA=
github.com/treeverse/secret-detector v0.0.0-20250429145544-8c655b974a5f/go.mod \
h1:hqKBnS0lrpUZlrQLecveNbK7WCQdlVOzWo1yVmDoyvs=
"""
_BUILD_S = 1800
_MISSING = "no real lakeFS server"


def cache_folder() -> Path:
    """Give the folder of this version: under `$EMLAKE_LAKEFS_CACHE`, else under the user's cache folder."""
    setting = os.environ.get(CACHE_SETTING)
    root = Path(setting) if setting else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emlake"
    return root.expanduser().absolute() / f"lakefs-{VERSION}"


def program() -> Path:
    """Find a lakeFS program or build one; `NotFound` if there is neither a program nor Go."""
    found = server.find_program()
    if found is not None:
        return found
    folder = cache_folder()
    built = folder / "lakefs"
    if built.exists():
        return built
    if shutil.which("go") is None:
        raise NotFound(
            f"there is no lakeFS program, and no Go to build it ({built} is missing too)",
            fix="install Go, or run `python -m lakefs --version` once to download lakeFS",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test runs build once
        if not built.exists():
            build(built)
    return built


def build(target: Path) -> None:
    """Build lakeFS from its published Go module, 3 minutes on two cores, and move it to `target` when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as name:
        folder = Path(name)
        (folder / "go.mod").write_text(_GO_MOD, encoding="utf-8")
        (folder / "go.sum").write_text(_GO_SUM, encoding="utf-8")
        flags = f"-s -w -X github.com/treeverse/lakefs/pkg/version.Version={VERSION}"
        _go(folder, "get", "-tool", f"{_PACKAGE}@v{VERSION}")
        _go(folder, "build", "-trimpath", "-ldflags", flags, "-o", str(folder / "lakefs"), _PACKAGE)
        (folder / "lakefs").replace(target)


def _go(folder: Path, *arguments: str) -> None:
    # A workspace or vendor setting of the surroundings must not reach this module.
    environment = {**os.environ, "GOWORK": "off", "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    answer = subprocess.run(
        ["go", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )
    if answer.returncode:
        raise StorageError(
            f"go {arguments[0]} for lakeFS {VERSION} failed: {answer.stderr[-1500:]}",
            fix="see whether the Go module proxy can be reached",
        )


def upload_in_parts(state: ServerState, location: str, key: str, *parts: bytes) -> None:
    """Stage an object on main of a repository by multipart upload, as programs do with large files."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=state.endpoint,
        aws_access_key_id=state.access_key_id,
        aws_secret_access_key=state.secret_access_key,
        region_name="us-east-1",
    )
    where = {"Bucket": location.rpartition("/")[2], "Key": f"main/{key}"}
    upload = client.create_multipart_upload(**where)["UploadId"]
    sent = [
        {"PartNumber": n, "ETag": client.upload_part(**where, UploadId=upload, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": sent})
    client.close()


# -- pytest plugin ----------------------------------------------------------------------------------------------------
def _unavailable(reason: str) -> None:
    if os.environ.get(REQUIRED_SETTING) == "1":
        pytest.fail(f"{REQUIRED_SETTING}=1, but {reason}", pytrace=False)
    pytest.skip(f"{_MISSING}: {reason}")


@pytest.fixture(scope="session")
def lakefs_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """One server for the session, in a folder and on a port of its own."""
    try:
        found = program()
    except LakeError as error:
        _unavailable(f"{error.message}; {error.fix}")
        return
    home = tmp_path_factory.mktemp("lakefs")
    yield _start(home, found)
    server.stop(home=home)


def _start(home: Path, found: Path) -> ServerState:
    # Between looking for a free port and taking it another test run may be quicker.
    for _ in range(3):
        with suppress(ConflictError):
            return server.start(port=server.free_port(), home=home, program=found)
    return server.start(port=server.free_port(), home=home, program=found)


@pytest.fixture
def lakefs_server(lakefs_process: ServerState, monkeypatch: pytest.MonkeyPatch) -> ServerState:
    """Put the session's server and its keys into the environment of the test, where `lake.open` finds them."""
    for name, value in lakefs_process.environment().items():
        monkeypatch.setenv(name, value)
    return lakefs_process


@pytest.fixture
def lakefs_location(lakefs_server: ServerState) -> str:
    """Give the location of a repository that does not exist yet."""
    return lakefs_server.location(f"r-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def lakefs_repo(lakefs_location: str) -> Iterator[Repository]:
    """Make a new repository on the session's server."""
    repo = lake.create(lakefs_location)
    yield repo
    repo.close()


def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP; when it returns no thread of it runs. `SIGCONT` lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    # The signal takes effect thread by thread: on a busy machine one may answer a last request first.
    states = Path(f"/proc/{pid}/task")
    while any(stat.read_text().rpartition(")")[2].split()[0] not in "TZX" for stat in states.glob("*/stat")):
        time.sleep(0.001)


def kill(pid: int) -> None:
    """Kill a server with SIGKILL, or find that it has died; when it returns nothing is left of one we started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # another process started it
        state = Path(f"/proc/{pid}/stat")
        with suppress(OSError):
            while state.read_text().rpartition(")")[2].split()[0] not in "ZX":
                time.sleep(0.001)


class MortalServer:
    """A server that may be killed, and started again on the same folder and port."""

    def __init__(self, home: Path, found: Path) -> None:
        self._home = home
        self._program = found
        self.state = _start(home, found)

    def kill(self) -> None:
        """Kill the server with SIGKILL; when it returns it answers nobody."""
        kill(self.state.pid)

    def freeze(self) -> None:
        """Stop the server with SIGSTOP: it takes connections and answers nothing."""
        freeze(self.state.pid)

    def restart(self) -> None:
        """Start it again; a moment passes before the killed one lets go of its port."""
        for _ in range(50):
            with suppress(ConflictError):
                self.state = server.start(home=self._home, program=self._program)
                return
            time.sleep(0.1)
        self.state = server.start(home=self._home, program=self._program)

    def stop(self) -> None:
        """Stop it, if it runs."""
        server.stop(home=self._home)


@pytest.fixture
def lakefs_mortal(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[MortalServer]:
    """Start a server for this test alone, with its keys in the environment."""
    try:
        found = program()
    except LakeError as error:
        _unavailable(f"{error.message}; {error.fix}")
        return
    mortal = MortalServer(tmp_path_factory.mktemp("lakefs"), found)
    for name, value in mortal.state.environment().items():
        monkeypatch.setenv(name, value)
    yield mortal
    mortal.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, in red, that nothing was tried on a real server."""
    # With pytest-xdist the skip happens in another process: its report is what arrives here.
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    missing = [reason for reason in reasons if _MISSING in reason]
    if missing:
        terminalreporter.write_sep("!", f"{len(missing)} tests on a real lakeFS server were SKIPPED", red=True)
        terminalreporter.write_line(missing[0])


def main() -> int:
    """Find or build the program and print where it is."""
    try:
        sys.stdout.write(f"{program()}\n")
    except LakeError as error:
        sys.stderr.write(f"error[{error.kind}]: {error.message}\n  fix: {error.fix}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
