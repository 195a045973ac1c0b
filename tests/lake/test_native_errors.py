"""What TensorStore, delta-rs and polars raise is one of ours, and comes soon."""

import socket
import time

import numpy as np
import pytest

from lake import tables
from lake.box import Box
from lake.errors import NoRoom, NotAuthorized, ServerUnreachable, StorageError
from lake.kv import list_keys, storage_error
from lake.location import Location, S3Access
from lake.volumes import VolumeSpec, create_volume, open_volume

EDGE = {"supervoxel_id": 1, "root_id": 2, "run_id": "r"}


@pytest.fixture
def nowhere(tmp_path) -> Location:
    """A place on a server that does not answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("credentials", "config"):
        (tmp_path / name).write_text("[p]\naws_access_key_id = A\naws_secret_access_key = S\n")
    access = S3Access(
        f"http://127.0.0.1:{port}", "A", "S", "p", str(tmp_path / "credentials"), str(tmp_path / "config")
    )
    return Location("repo/main/v", access, writable=True)


@pytest.mark.slow
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
    ],
    ids=["open", "list", "create", "read", "exists", "append", "digest"],
)
def test_a_server_that_does_not_answer_is_reported_within_seconds(nowhere, use) -> None:
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match="repo/main/v") as caught:
        use(nowhere)
    assert time.monotonic() - begun < 20
    assert "server status" in caught.value.fix
    assert "\x1b" not in caught.value.message


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
    # A folder whose name has digits in it is no refusal.
    assert type(storage_error(OSError("Input/output error: /data/403/x"), Location("/data/403"))) is StorageError
    assert type(storage_error(OSError("No space left on device: /data/403/x"), Location("/data/403"))) is NoRoom
