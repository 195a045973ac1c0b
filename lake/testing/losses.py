"""Files and folders as programs see them and as they are on the disk, and what may be left of the difference."""

import random
from dataclasses import dataclass, field
from typing import Literal

Loss = Literal["most", "least", "random"]


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

    def sync(self) -> None:
        """Put it on the disk."""
        self.safe, self.safe_mode, self.safe_mtime = bytes(self.now), self.mode, self.mtime
        self.late = []

    def change(self, what: tuple[int, bytes] | int) -> None:
        """Write bytes or change the length."""
        _change(self.now, what)
        self.late.append(what)
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
