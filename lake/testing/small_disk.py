"""A file system of a few megabytes that can be filled to the byte: what a full disk does, tried and not imagined.

::

    def test_...(small_disk):                       # skipped with the reason where nothing can be mounted
        small_disk.leave(8192)                      # 8 KiB are free from here on
        with pytest.raises(NoRoom): ...
        small_disk.leave(None)                      # somebody made room

It is a tmpfs, whose size can be changed while it is in use: no filler file takes part, so whatever an operation gives
back is seen as free.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

import lake
from lake.errors import LakeError, NoRoom
from lake.repository import Repository
from lake.testing import crash
from lake.testing.crash import check_whole, content

SIZE = 256 << 20  # of memory at most, and only what is written
PAGE = os.sysconf("SC_PAGE_SIZE")
_MISSING = "no small file system"
_LATE_S = 20.0  # how long TensorStore may go on writing what has failed, on a machine with other work


class SmallDisk:
    """A mounted tmpfs of adjustable size."""

    #: A file takes its whole pages and nothing else, and a removal takes nothing.
    exact = True
    #: How the error for lack of room begins.
    says = "no room left in"

    def __init__(self, root: Path, size: int = SIZE) -> None:
        self.root = root
        self._size = size

    def used(self) -> int:
        """Give the bytes in use, whole pages."""
        state = os.statvfs(self.root)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def free(self) -> int:
        """Give the bytes that can still be written."""
        return shutil.disk_usage(self.root).free

    def leave(self, room: int | None) -> None:
        """Let so many bytes be free, rounded up to whole pages; None: as many as there were in the beginning."""
        pages = self._size // PAGE if room is None else (self.used() + room + PAGE - 1) // PAGE
        _mount("-o", f"remount,size={max(pages, 1) * PAGE}", str(self.root))


def _mount(*arguments: str) -> None:
    answer = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise OSError(f"mount {' '.join(arguments)}: {answer.stderr.strip()}")


@contextmanager
def mounted(root: Path, size: int = SIZE) -> Iterator[SmallDisk]:
    """Mount a small disk on a new folder, and take it away again; `OSError` where that is not allowed."""
    root.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size},mode=0755", "emlake-small-disk", str(root))
    try:
        yield SmallDisk(root, size)
    finally:
        # A failed test may leave a file open there: the mount goes when it is closed.
        subprocess.run(["umount", "--lazy", str(root)], check=True)


# -- an operation that meets a full disk at every point ---------------------------------------------------------------
State = dict[str, object]


@dataclass(frozen=True)
class Operation:
    """Something that writes to a repository.

    Parameters
    ----------
    act : callable
        Does it, on an open repository.
    prepare : callable
        Brings a fresh repository to where it can be done, with plenty of room.
    steps : bool
        It is made of several steps, of which an error knows one: what it asks for need not be enough for all.
    """

    act: Callable[[Repository], object]
    prepare: Callable[[Repository], object] = lambda repo: None
    steps: bool = False


def state_of(repo: Repository) -> State:
    """Read all that a repository promises: refs, and what every branch holds, committed and pending."""
    state: State = {"tags": sorted(repo.tags())}
    for branch in repo.branches():
        if not branch.startswith("session-"):
            state[branch] = (
                content(repo, f"{branch}@"),
                content(repo, branch),
                sorted((change.key, change.kind) for change in repo.uncommitted(branch)),
            )
    return state


@dataclass(frozen=True)
class Trial:
    """One try with little room: how much, and the error, or None if it was enough."""

    room: int
    error: NoRoom | None


class FullDisk:
    """Tries one operation again and again on a small disk, with less room than it needs.

    Parameters
    ----------
    template : folder
        An embedded repository that every try starts from.
    """

    def __init__(self, disk: SmallDisk, template: Path, operation: Operation) -> None:
        self._disk = disk
        self._template = template
        self._operation = operation

    def _fresh(self) -> Repository:
        root = self._disk.root / "repo"
        self._disk.leave(None)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self._template, root, symlinks=True)
        repo = lake.open(root)
        self._operation.prepare(repo)
        return repo

    def needed(self) -> tuple[int, State]:
        """Carry the operation out with plenty of room; give the bytes it took and the state it leads to."""
        repo = self._fresh()
        before = self._disk.used()
        self._operation.act(repo)
        took = self._disk.used() - before
        state = state_of(repo)
        repo.close()
        return took, state

    def try_with(self, room: int, outcome: State) -> Trial:
        """Carry the operation out with `room` bytes and hold it against its promise.

        It is done, or it is `NoRoom` and nothing has changed, seen by a process that opens the repository while the
        disk is still full; what was taken is given back; and with the room that the message asks for it goes through.
        A disk that is not exact may need room to be read and to remove: there it is seen once there is some, and what
        could not be removed goes with its process.
        """
        repo = self._fresh()
        before, held = state_of(repo), self._held()
        self._disk.leave(room)
        try:
            self._operation.act(repo)
        except NoRoom as error:
            failed = error
        else:
            if not self._disk.exact:
                self._disk.leave(None)
            assert state_of(repo) == outcome
            repo.close()
            return Trial(room, None)
        self._check_told(failed)
        if not self._disk.exact:
            self._disk.leave(None)
        elif not self._operation.steps:
            assert self._held() <= held, f"of {room} bytes some were not given back"
        reader = self._open_again(repo.location, held)
        assert reader, f"of {room} bytes some were not given back when it was opened again"
        assert check_whole(reader)
        assert state_of(reader) == before
        reader.close()
        self._disk.leave(failed.needed if self._disk.exact and not self._operation.steps else None)
        self._operation.act(repo)
        assert state_of(repo) == outcome
        check_whole(repo)
        repo.close()
        return Trial(room, failed)

    def _open_again(self, location: str, held: int) -> Repository | None:
        """Open as the next process does, and see all given back; None if that does not come about.

        TensorStore reports the first chunk that fails while others are still being written, and cannot be asked when
        the last one is: one may come after its session was thrown away, even after the repository was opened again, and
        even after this has looked. It goes when the repository is opened after that.
        """
        until = time.monotonic() + _LATE_S
        while time.monotonic() < until:
            reader = lake.open(location)
            if not self._disk.exact or self._held() <= held:
                return reader
            reader.close()
            time.sleep(0.1)
        return None

    def _held(self) -> int:
        """Sum up what lies where only work under way and pending work may be.

        Contents that are stored already are not given back: the same command, again, finds them there.
        """
        folders = [self._disk.root / "repo" / name for name in ("tmp", "incoming", "views", "workspaces")]
        return sum(path.stat().st_blocks * 512 for folder in folders for path in folder.rglob("*") if path.is_file())

    def _check_told(self, failed: NoRoom) -> None:
        assert failed.exit_code == 6
        assert failed.needed > 0
        assert failed.message.startswith(self._disk.says)
        assert f"{failed.needed:,} bytes are needed" in failed.message
        assert f"{failed.free:,} are free" in failed.message
        assert "repeat" in failed.fix

    def try_all(self, points: int) -> list[Trial]:
        """Try with no room, and with ever more, to almost all that is needed; at least one try must fail."""
        took, outcome = self.needed()
        trials = [self.try_with(took * number // points, outcome) for number in range(points)]
        assert any(trial.error is not None for trial in trials), f"it needs {took} bytes and was never stopped"
        return trials


# -- whole commands ---------------------------------------------------------------------------------------------------
def run_out(operation: crash.Operation, disk: SmallDisk, template: Path, points: int) -> list[NoRoom | None]:
    """Let room end at points all through an operation of `lake.testing.crash`, and check the promise of a kill.

    Parameters
    ----------
    template : folder
        Holds `repo`, a repository that is prepared, and what the operation reads beside it.

    Returns
    -------
    What each try raised, None where the room was enough; at least one was not.
    """
    repo = _copied(disk, template)
    used = disk.used()
    operation.round(repo, 0)
    took = disk.used() - used
    repo.close()
    errors = [_run_out_at(operation, disk, template, took * number // points) for number in range(points)]
    assert any(errors), f"it needs {took} bytes and was never stopped"
    return errors


def _copied(disk: SmallDisk, template: Path) -> Repository:
    _emptied(disk, lambda: shutil.copytree(template, disk.root, symlinks=True, dirs_exist_ok=True))
    return lake.open(disk.root / "repo")


def _run_out_at(operation: crash.Operation, disk: SmallDisk, template: Path, room: int) -> NoRoom | None:
    repo = _copied(disk, template)
    disk.leave(room)
    failed: NoRoom | None = None
    try:
        operation.round(repo, 0)
    except NoRoom as error:
        failed = error
        if not disk.exact:
            disk.leave(None)
        reader = lake.open(repo.location)
        assert check_whole(reader)
        reader.close()
    repo.close()
    assert failed is None or failed.message.startswith(disk.says)
    disk.leave(None)
    try:
        crash.survives(operation, disk.root / "repo", int(failed is None))
    except (AssertionError, LakeError) as error:
        raise AssertionError(f"with {room} bytes of room: {error}") from error
    return failed


Target = TypeVar("Target")


def exhaust(
    disk: SmallDisk,
    fresh: Callable[[], Target],
    act: Callable[[Target], object],
    outcome: Callable[[Target], object],
    points: int,
) -> list[NoRoom | None]:
    """Let room end at points all through a command, make room again, and run the same command again.

    Parameters
    ----------
    fresh : callable
        Gives something new to work on, where nothing lies on the disk.
    act : callable
        The command, from opening its repository to closing it.
    outcome : callable
        What it has led to: must be the same as with plenty of room.

    Returns
    -------
    What each try raised, None where the room was enough; at least one was not.
    """
    target = _emptied(disk, fresh)
    used = disk.used()
    act(target)
    took, expected = disk.used() - used, outcome(target)
    errors: list[NoRoom | None] = []
    for number in range(points):
        room = took * (2 * number + 1) // (2 * points)
        target = _emptied(disk, fresh)
        disk.leave(room)
        try:
            try:
                act(target)
                errors.append(None)
            except NoRoom as error:
                errors.append(error)
            disk.leave(None)
            act(target)
            assert outcome(target) == expected
        except Exception as error:
            error.add_note(f"with {room} bytes of room")
            raise
    assert any(errors), f"it needs {took} bytes and was never stopped"
    for failed in filter(None, errors):
        assert failed.message.startswith(disk.says)
        assert f"{failed.free:,} are free" in failed.message
    return errors


def _emptied(disk: SmallDisk, fresh: Callable[[], Target]) -> Target:
    disk.leave(None)
    for entry in disk.root.iterdir():
        shutil.rmtree(entry)
    return fresh()


# -- pytest plugin ----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk for one test; skipped where nothing can be mounted."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip(f"{_MISSING}: mounting one takes root")
    yield from or_skipped(mounted(tmp_path / "disk"), _MISSING)


def or_skipped(context: AbstractContextManager[Target], missing: str) -> Iterator[Target]:
    """Give what a context gives; skipped, because of what is `missing`, where it cannot be entered (`OSError`)."""
    with ExitStack() as stack:
        try:
            given = stack.enter_context(context)
        except OSError as error:
            pytest.skip(f"{missing}: {error}")
        yield given
