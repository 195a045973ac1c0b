"""A scrub of a repository on a real server, with bits flipped in the server's store."""

import hashlib
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import lake
from lake import server
from lake.engines.lakefs.checksums import MIB
from lake.engines.lakefs.identity import identity_of
from lake.engines.lakefs.sstable import Damaged, blocks, ranges
from lake.errors import ServerUnreachable
from lake.scrub import scrub
from lake.testing.example import write_example
from lake.testing.rot import flip
from lake.testing.server import program, upload_in_parts


def path_of(repo, ref, key):
    return Path(repo.stat(ref, key).address.removeprefix("local://"))


def store_of(repo, ref, key):
    """The folder of the repository in the server's block store."""
    return path_of(repo, ref, key).parents[2]


def commit(repo, files, branch="main", **metadata):
    for key, data in files.items():
        repo.put(branch, key, data)
    return repo.commit(branch, "files", metadata)


# -- without a server --------------------------------------------------------------------------------------------------
def test_a_commit_id_is_computed_from_the_commit():
    entry = {
        "committer": "admin",
        "creation_date": 1795704934,
        "id": "89f7b8f5890741d05438aed26b62d1548d9446efd332c2846dc0fcfe919af8a0",
        "message": "two",
        "meta_range_id": "dbc8506bc4d3f62b015bc6af87ab3ad00fea901b42fb7bb7ce0423a8e095f442",
        "metadata": {".emlake.mark": "d9f4e199a068491f"},
        "parents": ["0b99027a04fb524a6104f7cc12bdbd2aca20723306b5f01da85dcd191b47872e"],
    }
    assert identity_of(entry) == entry["id"]
    for field in ("committer", "message", "meta_range_id"):
        assert identity_of({**entry, field: entry[field] + "x"}) != entry["id"]
    assert identity_of({**entry, "metadata": {}}) != entry["id"]


# -- on a server -------------------------------------------------------------------------------------------------------
@pytest.fixture
def repo(lakefs_repo):
    lakefs_repo.create_branch("ops", "main")
    return lakefs_repo


@pytest.mark.lakefs
def test_the_example_lake_on_a_server_is_whole(lakefs_repo):
    write_example(lakefs_repo)
    report = scrub(lakefs_repo, budget=None)
    assert report.ok, report.faults
    assert report.recorded
    counted = {part.kind: part.items for part in report.parts}
    assert counted["table"] == 16
    assert counted["manifest"] > 5  # the store lies on this machine
    with lakefs_repo.snapshot("main") as snapshot:
        [(share, never)] = snapshot.sql("SELECT share, never_objects FROM v_integrity WHERE days = 1").rows()
    assert (share, never) == (1.0, 0)


@pytest.mark.lakefs
def test_flipped_bits_in_objects_of_a_server_are_found_with_who_is_hit(repo):
    first = commit(repo, {"tables/t/part": os.urandom(3000), "other": b"x"}, release="r1")
    repo.create_tag("r1", first)
    repo.delete("main", ["tables/t/part"])
    repo.commit("main", "gone")
    flip(path_of(repo, first, "tables/t/part"), 1234, 3)
    [fault] = [fault for fault in scrub(repo, budget=None).faults if fault.kind == "object"]
    assert fault.keys == ("tables/t/part",)
    assert (fault.first, fault.last, fault.commits) == (first, first, 1)
    assert (fault.releases, fault.refs, fault.tables) == (("r1",), ("r1",), ("t",))
    # Known by now: it is looked at whatever the budget, until it is whole.
    assert [f.kind for f in scrub(repo, budget=1).faults if f.kind == "object"] == ["object"]
    flip(path_of(repo, first, "tables/t/part"), 1234, 3)
    report = scrub(repo, budget=1)
    assert [f for f in report.faults if f.kind == "object"] == []
    assert any(name.startswith("object ") for name in report.healed)


@pytest.mark.lakefs
def test_a_commit_dated_in_the_future_is_scrubbed_and_not_waited_for(repo):
    like = repo.commit_info(commit(repo, {"early": b"e" * 100}))
    repo.create_branch("ahead", "main")
    repo.put("ahead", "late", b"l" * 100)
    hours = timedelta(hours=5)
    repo.importer().commit("ahead", replace(like, parents=(like.id,), created=datetime.now(UTC) + hours))
    report = scrub(repo, budget=None)
    assert report.ok
    assert report.never == 0
    flip(path_of(repo, "ahead", "late"), 7)
    assert [fault.keys for fault in scrub(repo, budget=None).faults] == [("late",)]


@pytest.mark.lakefs
def test_an_object_that_is_cut_or_gone_is_found(repo):
    made = commit(repo, {"cut": b"0123456789", "gone": b"abc"})
    os.truncate(path_of(repo, made, "cut"), 5)
    path_of(repo, made, "gone").unlink()
    found = scrub(repo, budget=None).faults
    assert sorted(fault.keys for fault in found) == [("cut",), ("gone",)]


@pytest.mark.lakefs
def test_a_staged_object_of_a_server_is_checked(repo):
    stat = repo.put("main", "staged", b"not yet committed")
    assert scrub(repo, budget=None).ok
    flip(stat.address.removeprefix("local://"), 2)
    [fault] = scrub(repo, budget=1).faults
    assert (fault.kind, fault.keys, fault.commits) == ("staged", ("staged",), 0)


@pytest.mark.lakefs
def test_objects_uploaded_in_parts_are_covered(repo, lakefs_server):
    usual, odd = os.urandom(5 * MIB), os.urandom(7 * MIB)
    upload_in_parts(lakefs_server, repo.location, "usual", usual, b"tail")
    upload_in_parts(lakefs_server, repo.location, "odd", odd, b"tail")
    made = repo.commit("main", "large")
    flip(path_of(repo, made, "usual"), 5 * MIB + 1)
    assert [fault.keys for fault in scrub(repo, budget=None).faults] == [("usual",)]
    with repo.snapshot("main") as snapshot:
        [(seen,)] = snapshot.sql("SELECT sha256 FROM ops.scrub_digests").rows()
    assert seen == hashlib.sha256(odd + b"tail").hexdigest()
    flip(path_of(repo, made, "odd"), 77)
    found = {fault.keys: fault.what for fault in scrub(repo, budget=None).faults}
    assert found.keys() == {("usual",), ("odd",)}
    assert seen in found[("odd",)]  # compared with what the first scrub saw


@pytest.mark.lakefs
def test_flipped_bits_in_ranges_and_metaranges_of_the_store_are_found(repo):
    made = commit(repo, {"a": b"1"}, release="r1")
    commit(repo, {"b": b"2"})
    folder = store_of(repo, made, "a") / "_lakefs"
    assert scrub(repo, budget=None).ok
    files = [path for path in folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name)]
    assert len(files) >= 4
    for path in files:
        whole = path.read_bytes()
        flip(path, len(whole) // 3, 6)
        found = [fault for fault in scrub(repo, budget=1).faults if fault.kind == "manifest"]
        assert any(fault.name == path.name and path.name in fault.what for fault in found), path
        path.write_bytes(whole)  # not flipped back: the server may have written the same file again meanwhile
    data = bytearray(files[0].read_bytes())
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            with pytest.raises(Damaged):
                list(blocks(bytes(data)))
            data[at] ^= 1 << bit
    tree = repo.inspector()
    tree.structure(lambda kind, done, total: None)
    flip(folder / tree._trees[made], 100)
    [fault] = scrub(repo, budget=1).faults
    assert (fault.first, fault.releases) == (made, ("r1",))


def ranges_of(repo, commit):
    """The files of the ranges of a commit in the server's store, with what its metarange says of each."""
    inspector = repo.inspector()
    inspector.structure(lambda kind, done, total: None)
    folder = store_of(repo, commit, next(iter(repo.list(commit))).key) / "_lakefs"
    return [(folder / part.id, part) for part in ranges((folder / inspector._trees[commit]).read_bytes())]


@pytest.mark.lakefs
def test_a_damaged_range_names_the_keys_between_which_its_objects_are(repo):
    keys = [f"tables/t/{n:03}" for n in range(40)]
    made = commit(repo, {key: b"%d" % n for n, key in enumerate(keys)}, release="r1")
    [(path, held)] = ranges_of(repo, made)
    assert (held.first, held.last, held.count) == (keys[0].encode(), keys[-1].encode(), 40)
    flip(path, path.stat().st_size // 2, 1)
    [fault] = [f for f in scrub(repo, budget=1).faults if f.name == path.name and "cache" not in f.what]
    assert "it holds 40 objects, 'tables/t/000' to 'tables/t/039'" in fault.what
    assert (fault.keys, fault.tables, fault.releases) == ((keys[0], keys[-1]), ("t",), ("r1",))
    assert fault.first == made
    flip(path, path.stat().st_size // 2, 1)


@pytest.mark.lakefs
def test_a_damaged_metarange_names_who_is_hit_and_the_copy_that_heals_it(repo):
    made = commit(repo, {f"tables/t/{n:03}": b"%d" % n for n in range(40)}, release="r1")
    repo.create_tag("r1", made)
    repo.create_branch("side", "main")
    inspector = repo.inspector()
    inspector.structure(lambda kind, done, total: None)
    stored = store_of(repo, made, "tables/t/000") / "_lakefs" / inspector._trees[made]
    commit(repo, {"later": b"x"})
    whole = stored.read_bytes()
    flip(stored, len(whole) // 2, 1)
    [fault] = [f for f in scrub(repo, budget=1).faults if f.name == stored.name]
    assert (fault.commits, fault.first, fault.refs, fault.releases) == (1, made, ("r1", "side"), ("r1",))
    assert (fault.keys, fault.tables) == (("tables/t/000", "tables/t/039"), ("t",))
    assert "it is the whole tree of its commits, with 40 objects, 'tables/t/000' to 'tables/t/039'" in fault.what
    [copy] = (stored.parents[3] / "cache" / "meta-range").rglob(stored.name)
    assert fault.fix == f"copy {copy}, which is sound, to {stored}"
    shutil.copy(copy, stored)
    assert stored.read_bytes() == whole
    assert [f for f in scrub(repo, budget=1).faults if f.kind == "manifest"] == []


@pytest.mark.lakefs
def test_a_metarange_of_which_no_copy_is_left_names_who_is_hit_and_what_can_be_done(repo):
    made = commit(repo, {"tables/t/1": b"1"}, release="r1")
    inspector = repo.inspector()
    inspector.structure(lambda kind, done, total: None)
    stored = store_of(repo, made, "tables/t/1") / "_lakefs" / inspector._trees[made]
    commit(repo, {"later": b"x"})
    kept = stored.read_bytes()
    stored.unlink()
    [copy] = (stored.parents[3] / "cache" / "meta-range").rglob(stored.name)
    flip(copy, 30, 1)
    [fault] = [f for f in scrub(repo, budget=1).faults if f.name == stored.name and str(stored) in f.what]
    assert (fault.commits, fault.first, fault.releases, fault.keys) == (1, made, ("r1",), ())
    assert "no sound copy of it is on this machine" in fault.what
    assert "go on from the newest commit that is whole, or from a clone" in fault.fix
    flip(copy, 30, 1)
    stored.write_bytes(kept)


@pytest.mark.lakefs
def test_a_range_that_is_gone_from_the_store_is_found(repo):
    made = commit(repo, {"a/1": b"1", "a/2": b"2"})
    assert scrub(repo, budget=1).ok
    [(path, _)] = ranges_of(repo, made)
    kept = path.read_bytes()
    path.unlink()
    [fault] = scrub(repo, budget=1).faults
    assert (fault.name, fault.first, fault.keys) == (path.name, made, ("a/1", "a/2"))
    assert "is missing; it holds 2 objects, 'a/1' to 'a/2'" in fault.what
    path.write_bytes(kept)
    assert scrub(repo, budget=1).ok


@pytest.mark.lakefs
@pytest.mark.slow
def test_a_damaged_range_fails_to_be_read_by_a_server_that_starts_with_an_empty_cache(tmp_path, monkeypatch):
    port = server.free_port()
    state = server.start(port=port, home=tmp_path, program=program())
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    try:
        repo = lake.create(state.location("rotten"))
        made = commit(repo, {f"k{n}": b"x" for n in range(10)}, release="r1")
        files = [path for path in (store_of(repo, made, "k1") / "_lakefs").iterdir() if len(path.name) == 64]
        repo.close()
        server.stop(home=tmp_path)
        shutil.rmtree(tmp_path / "server" / "cache")
        for path in files:
            flip(path, 40, 2)
        server.start(port=port, home=tmp_path, program=program())
        repo = lake.open(state.location("rotten"))
        torn = [fault for fault in scrub(repo, budget=1).faults if fault.kind == "manifest"]
        assert made in {fault.last for fault in torn}
        assert ("r1",) in {fault.releases for fault in torn}
        repo.close()
    finally:
        server.stop(home=tmp_path)


@pytest.mark.lakefs
def test_a_server_that_goes_during_a_scrub_is_an_error_of_storage(repo):
    commit(repo, {"k": b"x"})
    inspector = repo.inspector()
    inspector.structure(lambda kind, done, total: None)
    inspector.inventory()
    repo._wire._base = repo._wire._base.replace(repo._wire.address.origin, "http://127.0.0.1:1")
    with pytest.raises(ServerUnreachable):
        inspector.check(0)


@pytest.mark.lakefs
@pytest.mark.parametrize("table", ["scrubs", "scrub_digests"])
@pytest.mark.parametrize("harm", [os.remove, lambda path: flip(path, 100)], ids=["lost", "flipped"])
def test_a_record_that_is_lost_on_a_server_is_told_and_begun_anew(repo, lakefs_server, table, harm):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(10)})
    upload_in_parts(lakefs_server, repo.location, "parts", os.urandom(7 * MIB), b"tail")
    repo.commit("main", "in parts")
    scrub(repo, budget=None)
    keys = [stat.key for stat in repo.list("ops", f"tables/{table}/") if stat.key.endswith(".parquet")]
    assert keys
    for key in keys:
        harm(path_of(repo, "ops", key))
    first = scrub(repo, budget=1000)
    assert f"tables/{table}/" in {fault.name for fault in first.faults if fault.kind == "table"}
    assert first.recorded
    second = scrub(repo, budget=None)
    assert (second.recorded, second.never) == (True, 0)
    assert "table" not in {fault.kind for fault in second.faults}
    assert {keys[0]} <= {key for fault in second.faults for key in fault.keys}


@pytest.mark.lakefs
def test_a_budget_on_a_server_takes_what_was_never_checked_first(repo):
    commit(repo, {f"k{n}": os.urandom(1000) for n in range(12)})
    first = scrub(repo, budget=6000)
    assert (first.never, first.left_objects) == (6, 6)
    assert scrub(repo, budget=6000).never < 12
    with lake.open(repo.location).snapshot("main") as snapshot:
        rows = snapshot.table("scrubs", schema="ops").filter(pl.col("kind") == "object").collect()
    assert rows.height >= 4
