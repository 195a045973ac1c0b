"""Single bits are flipped in every kind of file of a repository in a folder; each is found."""

import hashlib
import os
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

import lake
from lake.engines.embedded.audit import audit
from lake.engines.embedded.database import SCHEMA, Database
from lake.engines.embedded.store import Store
from lake.engines.embedded.wal import fault_in
from lake.errors import LakeError
from lake.scrub import scrub
from lake.testing.rot import files, flip, used_bytes, write_each_kind


@pytest.fixture
def repo(tmp_path):
    """A repository with at least one file of each kind."""
    repo = lake.create(tmp_path / "repo")
    write_each_kind(repo, os.urandom(100_000))
    repo.create_tag("t1", "work")
    repo.protect("main")
    yield repo
    repo.close()


def kinds(report):
    return sorted({fault.kind for fault in report.faults})


@pytest.mark.parametrize(
    ("pattern", "kind", "least"),
    [
        ("objects/*/*", "object", 3),
        ("manifests/*/*", "manifest", 3),
        ("incoming/*/*", "staged", 1),
        ("views/*/*/v/typed", "copy", 1),
        ("workspaces/*/small", "copy", 1),
        ("emlake.json", "repository", 1),
    ],
)
def test_a_flipped_bit_in_a_file_is_found(repo, pattern, kind, least):
    assert scrub(repo, budget=None).ok
    rng = Random(pattern)
    found = files(repo, pattern)
    assert len(found) >= least
    for path in found:
        at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip(path, at, bit)
        report = scrub(repo, budget=None)
        assert kind in kinds(report), f"{path} at {at}, bit {bit}"
        assert any(path.name in fault.what for fault in report.faults)
        flip(path, at, bit)
    assert scrub(repo, budget=None).ok


@pytest.mark.parametrize("pattern", ["objects/*/*", "manifests/*/*", "views/*/*/v/typed"])
def test_a_file_that_is_cut_or_gone_is_found(repo, pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in files(repo, pattern):
        kept, stat = path.read_bytes(), path.stat()
        os.chmod(path, 0o644)
        for change in ("cut", "gone"):
            if change == "cut":
                os.truncate(path, len(kept) - 1)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            else:
                path.rename("kept")
            assert any(path.name in fault.what for fault in scrub(repo, budget=None).faults), path
            if not path.exists():
                Path("kept").rename(path)
            path.write_bytes(kept)  # in place: other names of the file are the same file
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scrub(repo, budget=None).ok


def found_in_marker(location):
    try:
        repo = lake.open(location)
    except LakeError as error:
        return location in error.message
    found = kinds(scrub(repo, budget=1))
    repo.close()
    return found == ["repository"]


@pytest.mark.slow
def test_every_bit_of_the_marker_is_found_when_it_is_opened_or_scrubbed(repo):
    marker = repo.root / "emlake.json"
    for at in range(marker.stat().st_size):
        for bit in range(8):
            flip(marker, at, bit)
            assert found_in_marker(repo.location), f"byte {at}, bit {bit}"
            flip(marker, at, bit)


def test_a_file_that_somebody_is_writing_in_a_workspace_is_no_damage(repo):
    folder = repo.workspace("work", "").path
    (folder / "small").write_bytes(b"better bytes")
    (folder / "new").write_bytes(b"new")
    assert scrub(repo, budget=None).ok


def test_a_leftover_that_no_commit_holds_is_checked_since_a_later_put_would_trust_it(repo):
    data = b"nobody holds this"
    name = hashlib.sha256(data).hexdigest()
    path = repo.root / "objects" / name[:2] / name[2:]
    path.write_bytes(data)
    assert scrub(repo, budget=None).ok
    flip(path, 4)
    [fault] = scrub(repo, budget=None).faults
    assert (fault.kind, fault.commits, fault.keys) == ("object", 0, ())


# -- the database ------------------------------------------------------------------------------------------------------
@pytest.fixture
def database(repo, tmp_path):
    """A copy of the database with everything in one file."""
    repo.delete("work", ["small"])
    target = tmp_path / "copy.sqlite"
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    shutil.copy(repo.root / "refs.sqlite", target)
    return target


def problems(path):
    db = Database(path)
    try:
        return list(audit(db))
    finally:
        db.close()


# Bytes of a database that say nothing about the repository, by their offset in page 1.
_CHANGES_ONLY = {
    **dict.fromkeys(range(24, 28), "counts changes of the file"),
    **dict.fromkeys(range(40, 44), "counts changes of the schema"),
    **dict.fromkeys(range(92, 96), "counts changes of the file"),
    **dict.fromkeys(range(96, 100), "version of the SQLite that wrote last"),
}


def check_flips(path, offsets, bits):
    """Flip bits; give those that went unnoticed."""
    raw = bytearray(path.read_bytes())
    unnoticed = []
    for at in offsets:
        for bit in bits(at):
            raw[at] ^= 1 << bit
            path.write_bytes(raw)
            if not problems(path):
                unnoticed.append((at, bit, _content(path)))
            raw[at] ^= 1 << bit
    path.write_bytes(raw)
    return unnoticed


def _content(path):
    """Everything that the engine reads from a database."""
    tables = ("commits", "branches", "tags", "protection", "staging", "workspaces", "prefixes", "shown")
    with sqlite3.connect(path) as con:
        rows = {
            table: con.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in tables
            if table != "protection"
        }
        rows["protection"] = con.execute("SELECT * FROM protection").fetchall()
    con.close()
    return rows


def assert_harmless(path, unnoticed):
    sound = _content(path)
    for at, bit, content in unnoticed:
        assert content == sound, f"byte {at}, bit {bit} changes what the repository says and is not found"


def test_flipped_bits_in_the_database_are_found_or_change_nothing(database):
    assert problems(database) == []
    used = list(used_bytes(database.read_bytes()))
    rng = Random(3)
    sample = sorted(rng.sample(used, 150))
    unnoticed = check_flips(database, sample, lambda at: [rng.randrange(8)])
    assert_harmless(database, unnoticed)
    assert len(unnoticed) < 15


@pytest.mark.slow
def test_every_used_byte_of_the_database_is_covered(database):
    used = list(used_bytes(database.read_bytes()))
    unnoticed = check_flips(database, used, lambda at: [at % 8])
    assert_harmless(database, unnoticed)
    # Beyond the counters in the header: numbers of rows in the schema, the highest number used, free bytes in cells.
    assert len([at for at, _, _ in unnoticed if at not in _CHANGES_ONLY]) < 40


@pytest.mark.soak
def test_every_bit_of_the_database_is_covered(database):
    size = database.stat().st_size
    assert_harmless(database, check_flips(database, range(size), lambda at: range(8)))


def test_a_database_of_an_early_repository_is_no_damage(tmp_path):
    path = tmp_path / "early.sqlite"
    with sqlite3.connect(path) as con:
        con.execute("PRAGMA journal_mode=WAL")
        con.executescript(SCHEMA)
    con.close()
    assert problems(path) == []


# -- the write-ahead log -----------------------------------------------------------------------------------------------
@pytest.fixture
def logged(repo, tmp_path):
    """The database of a repository whose process was killed: its last transactions are in the log alone."""
    for number in range(3):
        repo.put("work", f"k{number}", b"x")
    shutil.copy(repo.root / "refs.sqlite", tmp_path / "killed.sqlite")
    log = Path(f"{tmp_path / 'killed.sqlite'}-wal")
    shutil.copy(repo.root / "refs.sqlite-wal", log)
    return tmp_path / "killed.sqlite", log


def frames_of(log):
    """Give how many frames of the current round there are, and the size of one."""
    data = log.read_bytes()
    size = 24 + int.from_bytes(data[8:12], "big")
    salts = data[16:24]
    starts = range(32, len(data) - size + 1, size)
    count = sum(1 for at in starts if data[at + 8 : at + 16] == salts)
    return count, size


def test_a_sound_log_is_sound_and_so_is_one_with_frames_of_an_earlier_round(logged, tmp_path):
    _, log = logged
    assert fault_in(log.read_bytes()) is None
    path = tmp_path / "rounds.sqlite"
    con = sqlite3.connect(path, isolation_level=None)
    con.execute("PRAGMA journal_mode=WAL")
    con.execute("CREATE TABLE t (x)")
    for _ in range(30):
        con.execute("INSERT INTO t VALUES (randomblob(3000))")
    con.execute("PRAGMA wal_checkpoint(RESTART)")
    con.execute("INSERT INTO t VALUES (1)")
    assert fault_in(Path(f"{path}-wal").read_bytes()) is None
    # Rolled back after it had spilled into the log: frames without an end.
    con.execute("PRAGMA cache_size=5")
    con.execute("BEGIN")
    for _ in range(30):
        con.execute("INSERT INTO t VALUES (randomblob(3000))")
    con.execute("ROLLBACK")
    con.execute("INSERT INTO t VALUES (2)")
    assert fault_in(Path(f"{path}-wal").read_bytes()) is None
    con.close()


def test_a_log_cut_by_a_kill_is_sound(logged):
    _, log = logged
    data = log.read_bytes()
    count, size = frames_of(log)
    for cut in (32 + size * (count - 1) + 10, 32 + size * (count - 1) + 24 + 100):
        assert fault_in(data[:cut]) is None
    assert fault_in(b"") is None


def test_a_flipped_bit_in_the_log_is_found(logged):
    _, log = logged
    data = bytearray(log.read_bytes())
    count, size = frames_of(log)
    rng = Random(5)
    heads = [32 + frame * size + byte for frame in (0, count // 2, count - 1) for byte in range(24)]
    pages = rng.sample(range(32, 32 + count * size), 40)
    for at in (*range(32), *heads, *pages):
        for bit in range(8) if at < 32 or at in heads[-24:] else (rng.randrange(8),):
            data[at] ^= 1 << bit
            assert fault_in(bytes(data)) is not None, f"byte {at}, bit {bit}"
            data[at] ^= 1 << bit


def test_a_damaged_log_is_reported_and_not_written_to(repo):
    repo.create_branch("ops", "main")
    repo.put("work", "k", b"x")
    log = repo.root / "refs.sqlite-wal"
    flip(log, 40 + 4)
    size = log.stat().st_size
    report = scrub(repo, budget=None)
    assert "refs" in kinds(report)
    assert any("refs.sqlite-wal" in fault.what for fault in report.faults)
    assert not report.recorded
    assert log.stat().st_size == size
    assert "copy the folder" in next(fault.fix for fault in report.faults if fault.kind == "refs")


def test_a_damaged_commit_is_named_with_all_that_descend_from_it(repo):
    repo.put("work", "later", b"x")
    later = repo.commit("work", "two", {"release": "r9"})
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        [(damaged, body)] = con.execute("SELECT id, body FROM commits WHERE CAST(body AS TEXT) LIKE '%\"one\"%'")
        con.execute("UPDATE commits SET body = ? WHERE id = ?", (body.replace(b'"one"', b'"onf"'), damaged))
    con.close()
    [fault] = [fault for fault in scrub(repo, budget=None).faults if fault.kind == "commit"]
    assert fault.name == damaged
    assert (fault.first, fault.last, fault.commits) == (damaged, later, 2)
    assert fault.releases == ("r9",)
    assert set(fault.refs) >= {"work", "t1"}


def test_a_workspace_whose_branch_has_a_damaged_row_is_not_swept_away(repo):
    folder = repo.workspace("work", "").path
    (folder / "precious").write_bytes(b"a day's work")
    repo.close()
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        con.execute("UPDATE branches SET token = token || 'x' WHERE name = 'work'")
    con.close()
    again = lake.open(repo.location)
    assert (folder / "precious").read_bytes() == b"a day's work"
    assert "refs" in kinds(scrub(again, budget=1))
    again.close()


def test_writers_beside_a_scrub_are_no_damage(repo):
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            repo.put("work", f"n{number % 7}", os.urandom(2000))
            if number % 3 == 0:
                repo.reset("work")
            elif number % 3 == 1:
                (repo.workspace("work", "v/").path / f"w{number % 5}").write_bytes(os.urandom(3000))
            else:
                repo.commit("work", f"commit {number}")
                repo.location_of("work", "v/")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            reports = [scrub(repo, budget=None) for _ in range(12)]
        finally:
            stop.set()
        writer.result()
    assert [report.faults for report in reports] == [()] * 12


def test_what_is_collected_beside_a_scrub_is_no_damage(repo):
    inspector = repo.inspector()
    repo.create_branch("side", "work")
    for number in range(3):
        repo.put("side", f"s{number}", os.urandom(3000))
        repo.commit("side", f"side {number}")
    inspector.structure(lambda kind, done, total: None)
    inventory = inspector.inventory()
    repo.delete_branch("side")
    assert repo.collect_garbage(grace_s=0.0).commits_removed == 3
    found = [fault for which in range(len(inventory)) for fault in inspector.check(which)]
    assert len(found) == 3  # gone
    assert inspector.attribute(found) == []
    assert scrub(repo, budget=None).ok


def test_a_manifest_that_a_collector_moves_while_it_is_looked_for_is_no_damage(repo, monkeypatch):
    moved = set()
    locate = Store.locate

    def look(store, digest):
        found = locate(store, digest)
        if store.root == repo.root / "manifests" and digest not in moved:
            moved.add(digest)
            store.trash.condemn([digest.hex()])  # between the look and the reading
        return found

    monkeypatch.setattr(Store, "locate", look)
    parts = repo.inspector().structure(lambda kind, done, total: None)
    assert len(moved) >= 3
    assert [fault for part in parts for fault in part.faults] == []
