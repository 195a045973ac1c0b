"""Read-only folders of hard links, one per commit and prefix, made whole or not at all.

A view is *live* while a process that asked for it runs and has the repository open: it says so in a file of its own
below `.readers/`, which it holds a lock on, so that whatever ends the process ends the claim. A view that nobody claims
and that nobody asked for since some time is stale; so is one of an earlier boot, which is never handed out again.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lake.durable import point
from lake.engines.embedded.files import boot_id, flocked
from lake.engines.embedded.folders import check_prefix, check_representable, fill
from lake.engines.embedded.readers import Readers
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.sharing import make_folder
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Tree, Trees
from lake.repository import CommitId

_LOCK = ".lock"
_READERS = ".readers"


@dataclass(frozen=True, slots=True)
class View:
    """A view: `<commit>/<digest of prefix>-<boot>` below `views/`."""

    commit: CommitId
    name: str
    path: Path
    live: bool


def name_of(prefix: bytes) -> str:
    """Name the views of a prefix."""
    return hashlib.sha256(prefix).hexdigest()[:16]


def fill_view(store: Store, trees: Trees, scratch: Scratch, tree: Tree, prefix: str) -> Path:
    """Make a temporary folder with the objects of a tree under `prefix`."""
    head = prefix.encode()
    check_representable(key for key, _ in trees.items(tree, head))
    fresh = scratch.new()
    try:
        (fresh / prefix).mkdir(parents=True)
        fill(store, fresh, trees.items(tree, head), writable=False)
    except BaseException:
        scratch.discard(fresh)
        raise
    return fresh


class Views:
    """Makes and finds views below `views/<commit>/<digest of prefix>-<boot>/<prefix>`."""

    def __init__(self, root: Path, store: Store, trees: Trees, scratch: Scratch) -> None:
        self.root = root
        self._store = store
        self._trees = trees
        self._scratch = scratch
        self._readers = Readers(root / _READERS)

    def folder(self, commit: CommitId, tree: Tree, prefix: str) -> Path:
        """Give the folder with the objects under `prefix`; the first call links them, later ones find it."""
        head = check_prefix(prefix)
        name = name_of(head)
        # Nothing here is synced, so what an earlier boot left may lack files after a power cut: it is made again.
        view = self.root / commit / f"{name}-{boot_id()[:8]}"
        content = view / prefix
        if self._claim(view):
            return content
        if view.parent.exists():
            for entry in os.listdir(view.parent):
                if entry.startswith(name) and entry != view.name:
                    self._scratch.discard(view.parent / entry)
        fresh = fill_view(self._store, self._trees, self._scratch, tree, prefix)
        point("view.filled")
        if not self._claim(view, fresh):
            # Somebody else was faster, and made the same.
            self._scratch.discard(fresh)
        return content

    def _claim(self, view: Path, fresh: Path | None = None) -> bool:
        """Say that this process uses a view; `fresh` is its content if it is not there yet.

        False if there is no such view, or, with `fresh`, if there was one already.
        """
        with flocked(self.root / _LOCK, shared=True):
            there = view.exists()
            if fresh is not None and not there:
                make_folder(view.parent)
                try:
                    fresh.rename(view)
                except OSError:
                    if not view.exists():
                        raise
                    there = True
            if there or fresh is not None:
                self._readers.claim(f"{view.parent.name}/{view.name}")
                with suppress(PermissionError):
                    os.utime(view)
            return there if fresh is None else not there

    # -- what the collector asks --------------------------------------------------------------------------------------
    def survey(self, since: float) -> list[View]:
        """List all views; those claimed, or asked for after `since` (seconds since 1970), are live."""
        with flocked(self.root / _LOCK):
            claimed = self._readers.claimed()
        found: list[View] = []
        for commit in sorted(os.listdir(self.root)):
            if commit.startswith("."):
                continue
            for name in sorted(os.listdir(self.root / commit)):
                path = self.root / commit / name
                found.append(View(commit, name, path, self._is_live(path, claimed, since)))
        return found

    @staticmethod
    def _is_live(view: Path, claimed: set[str], since: float) -> bool:
        if f"{view.parent.name}/{view.name}" in claimed:
            return True
        return view.name.endswith(f"-{boot_id()[:8]}") and since < view.stat().st_mtime <= time.time()

    def remove(self, view: View, since: float) -> tuple[int, int] | None:
        """Remove a view unless it has come to life; gives its bytes and those of them that nothing else holds."""
        gone = self._scratch.new()
        with flocked(self.root / _LOCK):
            # Whoever asks for it from now on finds it claimed before, or makes it again.
            if not view.path.exists() or self._is_live(view.path, self._readers.claimed(), since):
                return None
            view.path.rename(gone)
            with suppress(OSError):
                view.path.parent.rmdir()
        point("gc.view-moved")
        links = count_links([gone])
        size = sum(stat.st_size * count for stat, count in links.values())
        freed = sum(stat.st_size for stat, count in links.values() if stat.st_nlink == count)
        shutil.rmtree(gone)
        return size, freed

    def close(self) -> None:
        """Give up what this process claims."""
        self._readers.close()


def count_links(folders: Iterable[Path]) -> dict[tuple[int, int], tuple[os.stat_result, int]]:
    """Find the files below folders, and how many of the links to each are there; somebody may be removing them."""
    found: dict[tuple[int, int], tuple[os.stat_result, int]] = {}
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                try:
                    stat = os.lstat(f"{where}/{name}")
                except FileNotFoundError:
                    continue
                inode = stat.st_dev, stat.st_ino
                found[inode] = stat, found[inode][1] + 1 if inode in found else 1
    return found
