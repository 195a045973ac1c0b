"""What a power cut may leave of a folder: every file operation is recorded, and replayed up to a cut with losses.

::

    events = tracing.record(command)        # each system call on files, with its bytes, SQLite's too
    disk = Disk(before, root)               # what is in memory, what is on the disk, what is on its way
    for event in events:
        disk.apply(event)
        disk.rebuild(target, rng, "random") # as it may look if the power fails now

Calls of two threads that overlap may have been done in either order. A close is done when it begins (its number may be
given away at once), all else when it ends, or before another call that could not have succeeded without it: a file is
moved into a folder whose `mkdir` has not returned yet.

What is taken to last, once the sync has ended, is what was there when it began:

- the bytes, size, mode and times of a file: at `fsync` or `fdatasync` of it;
- the names in a folder (made, linked, renamed, removed): at `fsync` of that folder, not at that of the file;
- everything: at `syncfs`.

What was not synced may last too, in any choice: bytes whole, cut at any byte, any of the writes without the others, or
zeros up to the new length, whatever the file's size and times say; names in any subset. One thing is granted that a
journal gives (ext4, xfs, btrfs): a rename is done or not done, also between two folders. `refs.sqlite-shm` is left out:
it is memory that SQLite makes anew.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from lake.testing.losses import Loss, Node, lay_down
from lake.testing.syscalls import Asked, FileSystem, NotYetError, Opened
from lake.testing.tracing import Event

_NAMING = ("open", "creat", "mkdir", "rename", "link", "unlink", "rmdir")
_SYNCS = {"fsync", "fdatasync", "syncfs"}


class Disk:
    """A folder through a recorded run.

    Parameters
    ----------
    before : Path
        A copy of the folder as it was before, all of it taken to be on the disk.
    root : Path
        Where the recorded process had it.
    """

    def __init__(self, before: Path, root: Path) -> None:
        self._files = FileSystem(before, root)
        self._begun: dict[int, Event] = {}
        self._early: dict[int, Opened | None] = {}  # calls done before they ended, with what they opened
        self._asked: dict[int, Asked] = {}

    @property
    def told(self) -> bytes:
        """What the process has printed."""
        return self._files.told

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """Yield every path below the root with what programs see there."""
        return self._files.nodes()

    # -- one call -----------------------------------------------------------------------------------------------------
    def apply(self, event: Event) -> bool:
        """Do what a call did; False if nothing was done, or not in the folder."""
        if not event.begun:
            return self._do_with_others(event)
        if event.begun in self._asked:
            asked = self._asked.pop(event.begun)
            self._files.put_on_disk(asked)
            return any(asked)
        if event.begun in self._begun:
            del self._begun[event.begun]
            return self._do_with_others(event)
        if event.begun in self._early:
            if opened := self._early.pop(event.begun):
                self._files.opened[event.result] = opened
            return False
        if event.call == "close":
            self._early[event.begun] = None
            return self._files.do(event)
        if event.call in _SYNCS:
            self._asked[event.begun] = self._files.would_sync(event)
        else:
            self._begun[event.begun] = event
        return False

    def _do_with_others(self, event: Event) -> bool:
        """Do a call, and before it what other threads had begun, if it could not have succeeded without."""
        while True:
            try:
                return self._files.do(event)
            except NotYetError:
                if not any(self._do_early(other) for other in list(self._begun.values())):
                    raise

    def _do_early(self, event: Event) -> bool:
        """Do a call that has begun, if it changes names; nobody knows the number of what it opens before its end."""
        if not event.call.startswith(_NAMING):
            return False
        opened = dict(self._files.opened)
        try:
            self._files.do(event)
        except NotYetError:
            return False
        del self._begun[event.begun]
        self._early[event.begun] = self._files.opened[event.result] if event.call.startswith("open") else None
        self._files.opened = opened
        return True

    # -- after the cut ------------------------------------------------------------------------------------------------
    def rebuild(self, target: Path, rng: random.Random, loss: Loss) -> None:
        """Write the folder as it may be found if the power fails now.

        Parameters
        ----------
        target : Path
            An unused path.
        loss : {"most", "least", "random"}
            All that was not synced is lost; nothing is; or any choice of it.
        """
        lay_down(self._files.top, self._files.late, target, rng, loss)
