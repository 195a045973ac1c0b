"""A commit that returned survives a power cut: all that engine and SQLite do to files is recorded and replayed.

An operation runs under strace (`lake.testing.tracing`). What the folder may look like if the power fails after any of
its calls is rebuilt (`lake.testing.powercut`, which says what is taken to last and what may be lost) and opened as
after a new boot. Every commit that had returned must be there, whole; the next is there whole or not at all; what was
only staged or written in a folder is there, or is said to be lost, but is never taken half for work.

SQLite is not trusted: its frames in the write-ahead log and its pages in the database are calls like all others, which
may be cut at any byte or missing in any choice back to its last `fdatasync`.
"""

import random
import shutil
import time
from contextlib import suppress

import pytest

import lake
from lake.engines.embedded import files
from lake.errors import CorruptObject
from lake.testing import crash_operations
from lake.testing.crash import OPENS_WITHIN_S, check_whole, python, working
from lake.testing.losses import File
from lake.testing.powercut import Disk
from lake.testing.tracing import can_record, record

TABLE = crash_operations.__file__
OPERATIONS = crash_operations.OPERATIONS
NAMES = ("commit", "workspace", "merge", "revert", "tag", "reset", "branch", "gc")
ROUNDS = 3
REASON = can_record()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=f"no power cut is replayed: {REASON}")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Give a function (name) -> (disk before, events) of a few rounds of an operation."""
    base = tmp_path_factory.mktemp("recorded")
    found = {}

    def give(name):
        if name not in found:
            root, before = base / name, base / f"{name}-before"
            OPERATIONS[name].prepare(str(root))
            shutil.copytree(root, before)
            events = record(working(TABLE, name, root, count=ROUNDS))
            found[name] = (root, before, events)
        root, before, events = found[name]
        return Disk(before, root), root, events

    return give


@pytest.fixture
def new_boot(tmp_path, monkeypatch):
    """Let the engine believe that the machine was started again."""
    (tmp_path / "boot_id").write_text("00000000-0000-4000-8000-000000000000\n")
    monkeypatch.setattr(files, "BOOT_ID", tmp_path / "boot_id")


def acknowledged(disk):
    return max(0, disk.told.count(b"\n") - 1)


def lines_of(repo):
    """Give the commits behind each branch and tag."""
    return {ref: {c.id for c in repo.log(head)} for ref, head in [*repo.branches().items(), *repo.tags().items()]}


def check_after_cut(name, root, told):
    """Open the folder, look at what is there, and go on."""
    operation = OPERATIONS[name]
    began = time.monotonic()
    repo = lake.open(root)
    assert time.monotonic() - began < OPENS_WITHIN_S
    try:
        landed = operation.landed(repo)
        assert landed in (told, told + 1), f"{told} acknowledged, {landed} there"
        commits = check_whole(repo, pending=False)
        lines = lines_of(repo)
        operation.check_committed(repo, landed)
        for stat in repo.list("main"):
            with suppress(CorruptObject):  # it says that it was lost; other bytes it never gives
                repo.get("main", stat.key)
        try:
            operation.round(repo, landed)
        except CorruptObject:  # something staged was lost, and the commit says so
            repo.reset("main")
            repo.reset("side")
            operation.round(repo, landed)
        assert operation.landed(repo) == landed + 1
        operation.check_clean(repo, landed + 1)
        stay = commits.keys()
        if name == "gc":  # the round removes a branch and collects what only that branch held
            stay = set().union(*(lines[ref] for ref in lines.keys() & lines_of(repo).keys()))
        assert stay <= check_whole(repo).keys()
    finally:
        repo.close()
    return landed


def cuts(events, disk, chosen):
    """Apply all events, stopping after those of the folder whose number is chosen."""
    number = 0
    for event in events:
        told = acknowledged(disk)
        if disk.apply(event) or acknowledged(disk) != told:
            number += 1
            if chosen(number):
                yield number


def replay(name, recorded, tmp_path, per_kind, seed):
    """Cut at random calls with random losses, and at every acknowledgement and sync with all of it lost."""
    disk, _, events = recorded(name)
    total = sum(1 for _ in cuts(events, disk, lambda number: True))
    rng = random.Random(seed)
    random_cuts = {rng.randint(1, total) for _ in range(per_kind)}
    disk, _, events = recorded(name)
    looked = seen = 0
    target = tmp_path / "cut"
    for number in cuts(events, disk, lambda number: True):
        fresh = acknowledged(disk) > seen
        seen = acknowledged(disk)
        losses = (["most", "random"] if fresh else []) + (
            [rng.choice(["most", "random", "random", "random"])] if number in random_cuts else []
        )
        for loss in losses:
            disk.rebuild(target, rng, loss)
            try:
                check_after_cut(name, target, seen)
            except Exception as error:
                raise AssertionError(f"{name}: cut after call {number} of {total}, loss {loss}, seed {seed}") from error
            shutil.rmtree(target)
            looked += 1
    assert seen == ROUNDS
    return f"{name}: {looked} cuts among {total} calls on files survived"


@pytest.mark.parametrize("name", ["workspace", "merge"])
def test_the_record_of_what_was_done_to_files_is_complete(recorded, name):
    disk, root, events = recorded(name)
    for event in events:
        disk.apply(event)
    seen = {path: bytes(node.now) for path, node in disk.nodes() if isinstance(node, File)}
    there = {f"/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {p: d for p, d in seen.items() if "-shm" not in p} == {p: d for p, d in there.items() if "-shm" not in p}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.soak)])
def test_what_was_committed_survives_a_power_cut_after_any_call(recorded, new_boot, tmp_path, name, count):
    print(replay(name, recorded, tmp_path, count, seed=1 if count == 8 else time.time_ns()))


def test_a_sync_that_is_left_out_is_found(recorded, new_boot, tmp_path):
    disk, _, events = recorded("commit")
    for event in events:
        if event.call not in {"fsync", "fdatasync", "syncfs"}:
            disk.apply(event)
    disk.rebuild(tmp_path / "cut", random.Random(1), "most")
    with pytest.raises(AssertionError, match="3 acknowledged, 0 there"):
        check_after_cut("commit", tmp_path / "cut", acknowledged(disk))


def test_a_repository_that_was_made_survives_a_power_cut(new_boot, tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "here").mkdir()
    code = "import sys, lake; print('ready'); lake.create(sys.argv[1]); print('done')"
    events = record(python(code, tmp_path / "here" / "repo"))
    disk = Disk(tmp_path / "before", tmp_path / "here")
    rng = random.Random(2)
    total = sum(1 for _ in cuts(events, Disk(tmp_path / "before", tmp_path / "here"), lambda number: True))
    chosen = {*rng.sample(range(1, total), 5), *range(total - 5, total + 1)}
    opened = 0
    for number in cuts(events, disk, chosen.__contains__):
        target = tmp_path / "cut"
        disk.rebuild(target, rng, "most" if number == total else "random")
        if not (target / "repo").exists():
            assert not acknowledged(disk)
            lake.create(target / "repo").close()
        repo = lake.open(target / "repo")
        repo.put("main", "a", b"1")
        repo.commit("main", "first")
        check_whole(repo)
        repo.close()
        opened += 1
        shutil.rmtree(target)
    assert acknowledged(disk) == 1
    assert opened == len(chosen)
