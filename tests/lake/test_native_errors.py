"""What TensorStore, delta-rs and polars raise is one of ours, and comes soon."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

import lake
from lake import server, tables
from lake.box import Box
from lake.errors import NoRoom, NotAuthorized, ServerUnreachable, StorageError
from lake.kv import list_keys, storage_error
from lake.location import Location, S3Access
from lake.query import Database, Schema
from lake.testing.server import freeze, kill, program
from lake.volumes import VolumeSpec, create_volume, open_volume

EDGE = {"supervoxel_id": 1, "root_id": 2, "run_id": "r"}


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Connections are made, and nothing is ever said: a process that was stopped."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def swallowing() -> Iterator[int]:
    """Once its queue is full the kernel drops what else comes: a machine that has gone from the network."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(full.getsockname())
        yield full.getsockname()[1]


@pytest.fixture(
    params=[refusing, pytest.param(silent, marks=pytest.mark.slow), pytest.param(swallowing, marks=pytest.mark.slow)],
    ids=lambda how: how.__name__,
)
def nowhere(tmp_path, request) -> Iterator[Location]:
    """A place on a server that does not answer."""
    with request.param() as port:
        yield place_at(tmp_path, port)


def place_at(tmp_path, port: int) -> Location:
    for name in ("credentials", "config"):
        (tmp_path / name).write_text("[p]\naws_access_key_id = A\naws_secret_access_key = S\n")
    access = S3Access(
        f"http://127.0.0.1:{port}", "A", "S", "p", str(tmp_path / "credentials"), str(tmp_path / "config")
    )
    return Location("repo/main/v", access, writable=True)


@pytest.mark.parametrize(
    "use",
    [
        open_volume,
        list_keys,
        lambda place: create_volume(place, VolumeSpec("v", "image", "uint8", (4, 4, 4), (1, 1, 1))),
        tables.read,
        tables.table_exists,
        lambda place: tables.append(place, "agglomeration", [EDGE]),
        lambda place: tables.content_digest(place, "agglomeration"),
        lambda place: Database({"main": Schema({"agglomeration": place}, {})}, [], {}),
    ],
    ids=["open", "list", "create", "read", "exists", "append", "digest", "sql"],
)
def test_a_server_that_does_not_answer_is_reported_in_under_five_seconds(nowhere, use) -> None:
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match="repo/main/v") as caught:
        use(nowhere)
    assert time.monotonic() - begun < 5
    assert "server status" in caught.value.fix
    assert "\x1b" not in caught.value.message


@pytest.mark.lakefs
@pytest.mark.slow
@pytest.mark.parametrize("death", [freeze, kill], ids=["stopped", "killed"])
@pytest.mark.parametrize("use", ["read", "write", "exists", "append", "scan", "collect", "sql", "attach"])
@pytest.mark.parametrize("just_seen", [False, True], ids=["asked", "just seen"])
def test_a_server_that_goes_between_two_uses_of_what_is_open_is_reported_in_under_five_seconds(
    emlake_home, death, use, just_seen
) -> None:
    own = server.start(port=server.free_port(), program=program())
    try:
        repo = lake.create(own.location("mortal"))
        place = repo.workspace("main", "volumes/v/")
        volume = create_volume(place, VolumeSpec("v", "image", "uint8", (4, 4, 4), (1, 1, 1), chunk_zyx=(4, 4, 4)))
        volume.write(volume.box, np.ones((4, 4, 4), np.uint8))
        table = repo.workspace("main", "tables/agglomeration/")
        tables.append(table, "agglomeration", [EDGE])
        rows = tables.read(table)
        database = Database({"main": Schema({"agglomeration": table}, {})}, [], {})
        assert rows.collect().height == len(database.run("SELECT * FROM agglomeration")) == 1
        attempt = {
            "read": lambda: volume.read(volume.box),
            "write": lambda: volume.write(volume.box, np.zeros((4, 4, 4), np.uint8)),
            "exists": lambda: tables.table_exists(table),
            "append": lambda: tables.append(table, "agglomeration", [{**EDGE, "supervoxel_id": 2}]),
            "scan": lambda: tables.read(table).collect(),
            "collect": lambda: tables.collect(rows),
            "sql": lambda: database.run("SELECT sum(root_id) FROM agglomeration"),
            "attach": lambda: Database({"main": Schema({"agglomeration": table}, {})}, [], {}),
        }[use]
        attempt()
        if not just_seen:
            time.sleep(1.1)  # what was seen alive a moment ago is not asked again, and meets the loss itself
        death(own.pid)
        begun = time.monotonic()
        with pytest.raises(ServerUnreachable) as caught:
            attempt()
        assert time.monotonic() - begun < 5
        assert str(own.port) in caught.value.message
        assert caught.value.fix
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(own.pid, signal.SIGCONT)
        server.stop()


def test_a_chunk_that_cannot_be_decoded_is_a_storage_error(tmp_path) -> None:
    for driver in ("precomputed", "zarr3"):
        spec = VolumeSpec("v", "image", "uint8", (4, 4, 4), (1, 1, 1), chunk_zyx=(4, 4, 4), driver=driver)
        volume = create_volume(Location(str(tmp_path / driver), writable=True), spec)
        volume.write(volume.box, np.ones((4, 4, 4), np.uint8))
        (chunk,) = [path for path in (tmp_path / driver).rglob("*") if path.name in ("0-4_0-4_0-4", "0")][-1:]
        chunk.write_bytes(b"rubbish")
        with pytest.raises(StorageError, match=str(tmp_path)):
            volume.read(Box((0, 0, 0), (4, 4, 4)))


def test_causes_are_told_apart() -> None:
    place = Location("repo/main/v", S3Access("http://h", "A", "S", "p", "/c", "/d"))
    assert isinstance(storage_error(OSError("Connection refused (os error 111)"), place), ServerUnreachable)
    assert isinstance(storage_error(ConnectionResetError("x"), place), ServerUnreachable)
    assert isinstance(storage_error(ValueError("PERMISSION_DENIED: HTTP 403"), place), NotAuthorized)
    for told in ("[http_response_code='401']", "status code: 403 Forbidden", "AccessDenied", "got HTTP 403."):
        assert isinstance(storage_error(ValueError(f"ABORTED: {told}"), place), NotAuthorized)
    # Digits in the id of a request or in a key are no refusal.
    for told in ("[x-amzn-requestid='aa338675-3b69-4038-bb60-401b40346801']", 'writing "em/403/0_401"', "0-403_1-401"):
        assert type(storage_error(ValueError(f"ABORTED: {told}"), place)) is StorageError
    # A folder whose name has digits in it is no refusal.
    assert type(storage_error(OSError("Input/output error: /data/403/x"), Location("/data/403"))) is StorageError
    assert type(storage_error(OSError("No space left on device: /data/403/x"), Location("/data/403"))) is NoRoom
