"""Files and folders as programs see them and as they are on the disk, and what may be left of the difference."""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

Loss = Literal["most", "least", "random"]
State = tuple[int, int, bytes, int, int]  # when, how many changes came before, content, mode, time of modification
_times = count(1)


@dataclass(eq=False)
class File:
    """A file: `now` as programs see it, `safe` as it is on the disk, `late` what was written since it was synced."""

    now: bytearray
    mode: int
    mtime: int
    safe: bytes = b""
    safe_mode: int = 0o600
    safe_mtime: int = 0
    late: list[tuple[int, bytes] | int] = field(default_factory=list)  # (offset, bytes), or a new length
    _changes: int = 0
    _safe_changes: int = 0
    _synced: int = 0

    def state(self) -> State:
        """Give what a sync that begins now puts on the disk."""
        return next(_times), self._changes, bytes(self.now), self.mode, self.mtime

    def sync(self, state: State) -> None:
        """Put on the disk what it was when the sync began, unless one that began later has ended before."""
        began, changes, content, mode, mtime = state
        if began > self._synced:
            self.safe, self.safe_mode, self.safe_mtime = content, mode, mtime
            del self.late[: changes - self._safe_changes]
            self._safe_changes, self._synced = changes, began

    def change(self, what: tuple[int, bytes] | int) -> None:
        """Write bytes or change the length."""
        _change(self.now, what)
        self.late.append(what)
        self._changes += 1
        self.mtime += 1_000  # later than before; the exact time matters to nobody

    def left(self, rng: random.Random, loss: Loss) -> bytes:
        """Give what may be found of it after a cut."""
        if loss == "least" or not self.late:
            return bytes(self.now)
        if loss == "most":
            return self.safe
        left = bytearray(self.safe)
        kind = rng.choice(("nothing", "all", "torn", "torn", "some", "zeros"))
        if kind == "all":
            return bytes(self.now)
        if kind == "zeros":
            return self.safe[: len(self.now)].ljust(len(self.now), b"\0")
        if kind == "some":
            for what in self.late:
                if rng.random() < 0.5:
                    _change(left, what)
        if kind == "torn":
            whole = rng.randrange(len(self.late))
            for what in self.late[:whole]:
                _change(left, what)
            last = self.late[whole]
            if not isinstance(last, int):
                _change(left, (last[0], last[1][: rng.randrange(len(last[1]) + 1)]))
        return bytes(left)


def _change(content: bytearray, what: tuple[int, bytes] | int) -> None:
    if isinstance(what, int):
        del content[what:]
        content.extend(bytes(what - len(content)))
        return
    offset, data = what
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@dataclass(eq=False)
class Folder:
    """A folder: its names as programs see them, and as they are on the disk."""

    now: "dict[str, File | Folder]" = field(default_factory=dict)
    safe: "dict[str, File | Folder]" = field(default_factory=dict)


Node = File | Folder
Naming = list[tuple[Folder, str, Node | None]]  # done together or not at all
Names = dict[Folder, dict[str, Node]]
ON_DISK: Names = {}
_MEMORY = "-shm"


def settle(naming: Naming, kept: Names) -> None:
    """Let a change of names last: in copies of the folders if some are given, else on the disk."""
    for folder, name, node in naming:
        names = folder.safe
        if kept is not ON_DISK:
            names = kept.setdefault(folder, dict(folder.safe))
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def lay_down(top: Folder, late: Iterable[Naming], target: Path, rng: random.Random, loss: Loss) -> None:
    """Write a folder as it may be found after a cut, with any choice of the `late` changes of names."""
    kept: Names = {}
    share = {"most": 0.0, "least": 1.0, "random": rng.choice((0.1, 0.5, 0.9))}[loss]
    for naming in late:
        if rng.random() < share:
            settle(naming, kept)
    _lay_down(top, target, rng, loss, (kept, {}, set()))


def _lay_down(
    folder: Folder,
    target: Path,
    rng: random.Random,
    loss: Loss,
    state: tuple[Names, dict[File, Path], set[Folder]],
) -> None:
    kept, written, seen = state
    seen.add(folder)
    target.mkdir()
    for name, node in kept.get(folder, folder.safe).items():
        path = target / name
        if isinstance(node, Folder):
            if node not in seen:  # it was renamed twice, and one of the two is lost
                _lay_down(node, path, rng, loss, state)
        elif node in written:
            os.link(written[node], path)
        elif not name.endswith(_MEMORY):
            path.write_bytes(node.left(rng, loss))
            safe = loss == "most" or (loss == "random" and rng.random() < 0.5)
            path.chmod(node.safe_mode if safe else node.mode)
            os.utime(path, ns=(0, node.safe_mtime if safe else node.mtime))
            written[node] = path
