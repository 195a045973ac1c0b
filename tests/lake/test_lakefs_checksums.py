"""What a server's checksum says of an object's bytes."""

import hashlib
import os

import pytest

from lake.engines.lakefs.checksums import MIB, fits
from lake.errors import CorruptObject
from lake.testing.rot import flip
from lake.testing.server import upload_in_parts


def test_a_checksum_of_parts_is_recognised_and_a_small_object_cannot_hide_behind_one():
    data = os.urandom(11 * MIB)

    def md5(piece):
        return hashlib.md5(piece)

    parts = md5(md5(data[: 5 * MIB]).digest() + md5(data[5 * MIB : 10 * MIB]).digest() + md5(data[10 * MIB :]).digest())
    odd = md5(md5(data[: 7 * MIB]).digest() + md5(data[7 * MIB :]).digest()).hexdigest()
    assert fits(md5(data).hexdigest(), len(data), lambda: [data]) is True
    assert fits(parts.hexdigest(), len(data), lambda: [data[:100], data[100:]]) is True
    assert fits(odd, len(data), lambda: [data]) is True
    assert fits(odd, len(data), lambda: [data[:-1] + bytes([data[-1] ^ 1])]) is False
    assert fits(md5(b"x").hexdigest(), 3, lambda: [b"abc"]) is False
    assert fits("some other checksum", 3, lambda: [b"abc"]) is None


@pytest.mark.lakefs
def test_objects_uploaded_in_parts_are_read_and_a_damaged_one_is_not(lakefs_repo, lakefs_server):
    data = os.urandom(7 * MIB)
    upload_in_parts(lakefs_server, lakefs_repo.location, "usual", data[: 5 * MIB], data[5 * MIB :])
    upload_in_parts(lakefs_server, lakefs_repo.location, "one", data[:100])
    upload_in_parts(lakefs_server, lakefs_repo.location, "odd", data, b"tail")
    made = lakefs_repo.commit("main", "large")
    assert lakefs_repo.get(made, "usual") == data
    assert lakefs_repo.get(made, "one") == data[:100]
    assert lakefs_repo.get(made, "odd") == data + b"tail"
    flip(lakefs_repo.stat(made, "usual").address.removeprefix("local://"), 6 * MIB)
    with pytest.raises(CorruptObject, match="usual"):
        lakefs_repo.get(made, "usual")
