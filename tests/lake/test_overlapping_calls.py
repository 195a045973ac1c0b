"""The order of calls that overlap: one that the kernel can have taken, and no sync that covers more than it did."""

import random
import shutil

import pytest

from lake.testing.crash import python
from lake.testing.losses import File
from lake.testing.powercut import Disk
from lake.testing.syscalls import NotYetError
from lake.testing.tracing import can_record, events, record

THREADS = """
import os, sys, threading
root = sys.argv[1]
def work(number):
    for turn in range(60):
        path = f"{root}/tmp-{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"%d %d" % (number, turn))
        os.close(fd)
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        os.makedirs(f"{root}/{turn}", exist_ok=True)
        os.rename(path, f"{root}/{turn}/{number}")
        for folder in (root, f"{root}/{turn}"):
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that share a core are torn from it at any call
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def text(value):
    return '"' + "".join(f"\\x{byte:02x}" for byte in str(value).encode()) + '"'


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "root").mkdir()
    return Disk(tmp_path / "root", tmp_path / "root")


@pytest.fixture
def at(tmp_path):
    """Give a function (name in the folder) -> how strace writes its path."""
    return lambda name: text(tmp_path / "root" / name)


def play(disk, *lines):
    for event in events(lines):
        disk.apply(event)


def left(disk, tmp_path):
    """Say what is left if all that was not synced is lost."""
    target = tmp_path / "left"
    disk.rebuild(target, random.Random(0), "most")
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def made(at, name, number):
    return f"1 openat(AT_FDCWD, {at(name)}, O_WRONLY|O_CREAT|O_EXCL, 0444) = {number}"


def synced_folder(disk, tmp_path):
    play(disk, f"1 openat(AT_FDCWD, {text(tmp_path / 'root')}, O_RDONLY) = 9", "1 fsync(9) = 0", "1 close(9) = 0")


def test_a_number_belongs_to_who_got_it_though_the_close_that_freed_it_returns_later(disk, at, tmp_path):
    play(
        disk,
        made(at, "a", 5),
        "1 close(5 <unfinished ...>",
        f"2 openat(AT_FDCWD, {at('b')}, O_WRONLY|O_CREAT, 0444) = 5",
        "1 <... close resumed>) = 0",
        f"2 write(5, {text('two')}, 3) = 3",
        "2 fsync(5) = 0",
    )
    synced_folder(disk, tmp_path)
    assert left(disk, tmp_path) == {"a": b"", "b": b"two"}


def test_a_file_is_moved_into_a_folder_whose_making_returns_later(disk, at, tmp_path):
    play(
        disk,
        made(at, "a", 5),
        f"1 mkdir({at('inner')}, 0777 <unfinished ...>",
        f"2 rename({at('a')}, {at('inner/a')}) = 0",
        "1 <... mkdir resumed>) = 0",
    )
    assert {path for path, node in disk.nodes() if isinstance(node, File)} == {"/inner/a"}


def test_a_file_is_there_for_others_though_its_making_returns_later_and_its_number_is_not(disk, at, tmp_path):
    play(
        disk,
        made(at, "a", 5),
        f"2 openat(AT_FDCWD, {at('b')}, O_WRONLY|O_CREAT, 0444 <unfinished ...>",
        f"1 rename({at('b')}, {at('c')}) = 0",
        f"1 write(5, {text('one')}, 3) = 3",
        "1 close(5) = 0",
        "2 <... openat resumed>) = 5",
        f"2 write(5, {text('two')}, 3) = 3",
    )
    assert {path: bytes(node.now) for path, node in disk.nodes() if isinstance(node, File)} == {
        "/a": b"one",
        "/c": b"two",
    }


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "syncfs"])
def test_a_sync_does_not_put_on_the_disk_what_was_written_after_it_began(call, disk, at, tmp_path):
    play(disk, made(at, "a", 5), f"1 write(5, {text('before')}, 6) = 6")
    synced_folder(disk, tmp_path)
    play(
        disk,
        f"1 {call}(5 <unfinished ...>",
        f"2 write(5, {text(', after')}, 7) = 7",
        f"2 openat(AT_FDCWD, {at('late')}, O_WRONLY|O_CREAT, 0444) = 6",
        f"1 <... {call} resumed>) = 0",
    )
    assert left(disk, tmp_path) == {"a": b"before"}
    play(disk, f"1 {call}(5) = 0")
    shutil.rmtree(tmp_path / "left")
    assert left(disk, tmp_path)["a"] == b"before, after"


def test_nothing_is_on_the_disk_before_the_sync_has_ended(disk, at, tmp_path):
    play(disk, made(at, "a", 5), f"1 write(5, {text('bytes')}, 5) = 5")
    synced_folder(disk, tmp_path)
    begun, ended = events(
        ["1 fsync(5 <unfinished ...>", f"2 write(1, {text('x')}, 1) = 1", "1 <... fsync resumed>) = 0"]
    )[::2]
    disk.apply(begun)
    assert left(disk, tmp_path) == {"a": b""}
    disk.apply(ended)
    shutil.rmtree(tmp_path / "left")
    assert left(disk, tmp_path) == {"a": b"bytes"}


def test_a_sync_that_ends_late_takes_nothing_back_from_one_that_began_after_it(disk, at, tmp_path):
    play(disk, made(at, "a", 5))
    synced_folder(disk, tmp_path)
    play(
        disk,
        "1 fsync(5 <unfinished ...>",
        f"2 write(5, {text('bytes')}, 5) = 5",
        "2 fsync(5) = 0",
        "1 <... fsync resumed>) = 0",
    )
    assert left(disk, tmp_path) == {"a": b"bytes"}


def test_a_call_that_cannot_have_succeeded_is_refused(disk, at):
    with pytest.raises(NotYetError, match="there is no folder inner"):
        play(disk, made(at, "a", 5), f"1 rename({at('a')}, {at('inner/a')}) = 0")


@pytest.mark.slow
@pytest.mark.skipif(bool(can_record()), reason=f"nothing is recorded: {can_record()}")
def test_what_threads_do_at_once_and_sync_is_all_on_the_disk(disk, tmp_path):
    found = record(python(THREADS, tmp_path / "root"))
    assert any(event.begun for event in found), "no two calls overlapped"
    for event in found:
        disk.apply(event)
    expected = {f"{turn}/{number}": b"%d %d" % (number, turn) for number in range(4) for turn in range(60)}
    assert left(disk, tmp_path) == expected
