"""Objects on a real server: what headers, pages and batches would spoil."""

import hashlib

import pytest

from lake.errors import BadInput, InvalidName, NotFound, RefNotFound

pytestmark = pytest.mark.lakefs


@pytest.mark.parametrize(
    "metadata",
    [
        {"run": "1"},
        {"Run": "A", "run": "b"},
        {"größe": "3 µm"},
        {"text": "two\nlines"},
        {"space": " around "},
        {"empty": ""},
        {"a b": "c", "x:y": "z"},
        {"long": "x" * 5000},
    ],
)
def test_metadata_arrive_as_they_were_given(lakefs_repo, metadata):
    stat = lakefs_repo.put("main", "a", b"1", metadata=metadata)
    assert dict(stat.metadata) == metadata
    assert dict(lakefs_repo.stat("main", "a").metadata) == metadata
    assert [dict(entry.metadata) for entry in lakefs_repo.list("main")] == [metadata]
    commit = lakefs_repo.commit("main", "one", metadata)
    assert dict(lakefs_repo.commit_info(commit).metadata) == metadata


@pytest.mark.parametrize("content_type", ["", "text", "multipart/form-data; boundary=x", "a/b\r\nX-Evil: 1", "a b/c"])
def test_a_content_type_that_the_server_would_stumble_over_is_refused(lakefs_repo, content_type):
    with pytest.raises(BadInput):
        lakefs_repo.put("main", "a", b"1", content_type=content_type)
    assert list(lakefs_repo.list("main")) == []


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain; charset=utf-8", "application/vnd.x+json"])
def test_a_content_type_is_kept(lakefs_repo, content_type):
    assert lakefs_repo.put("main", "a", b"1", content_type=content_type).content_type == content_type
    assert lakefs_repo.stat("main", "a").content_type == content_type


def test_a_file_is_streamed_and_left_alone(lakefs_repo, tmp_path):
    path = tmp_path / "tile.bin"
    data = hashlib.shake_256(b"tile").digest(3 << 20)
    path.write_bytes(data)
    before = path.stat()
    stat = lakefs_repo.put("main", "raw/tile", path)
    assert (stat.size, stat.checksum) == (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())
    assert lakefs_repo.get("main", "raw/tile") == data
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize("make", [lambda path: path / "missing", lambda path: path])
def test_a_file_that_cannot_be_read_is_named(lakefs_repo, tmp_path, make):
    with pytest.raises(NotFound, match=str(tmp_path)):
        lakefs_repo.put("main", "a", make(tmp_path))


def test_putting_where_no_branch_is_is_refused_before_bytes_travel(lakefs_repo):
    commit = lakefs_repo.commit("main", "empty", allow_empty=True)
    lakefs_repo.create_tag("r1", "main")
    for branch in ("mian", "r1", commit, commit[:8], "main~1", "main@", "a/b", ""):
        with pytest.raises(RefNotFound):
            lakefs_repo.put(branch, "a", b"1")
        with pytest.raises(RefNotFound):
            lakefs_repo.delete(branch, ["a"])
    with pytest.raises(InvalidName):
        lakefs_repo.put("main", "", b"1")


def test_a_delete_of_more_than_a_batch_deletes_all(lakefs_repo, monkeypatch):
    monkeypatch.setattr("lake.engines.lakefs.objects.PAGE", 3)
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        lakefs_repo.put("main", key, b"1")
    lakefs_repo.commit("main", "eight")
    lakefs_repo.delete("main", [*keys[1:], "never there", "x" * 2000, ""])
    assert [entry.key for entry in lakefs_repo.list("main")] == ["k0"]


def test_pages_join_without_a_gap_or_a_double(lakefs_repo, monkeypatch):
    monkeypatch.setattr("lake.engines.lakefs.wire.PAGE", 4)
    keys = sorted(f"{folder}/{number}" for folder in ("a", "a-b", "b") for number in range(5))
    for key in keys:
        lakefs_repo.put("main", key, b"1")
    assert [change.key for change in lakefs_repo.uncommitted("main")] == keys
    commit = lakefs_repo.commit("main", "fifteen")
    assert [entry.key for entry in lakefs_repo.list(commit)] == keys
    assert [entry.key for entry in lakefs_repo.list(commit, "a/")] == [f"a/{n}" for n in range(5)]
    assert [entry.key for entry in lakefs_repo.list(commit, after="a/1", limit=6)] == [k for k in keys if k > "a/1"][:6]
    assert [change.key for change in lakefs_repo.diff("main~1", "main")] == keys
    for number in range(9):
        lakefs_repo.create_tag(f"t{number}", "main")
        lakefs_repo.commit("main", f"c{number}", allow_empty=True)
    assert list(lakefs_repo.tags()) == [f"t{number}" for number in range(9)]
    assert [commit.message for commit in lakefs_repo.log("main", limit=9)] == [f"c{n}" for n in range(8, -1, -1)]
