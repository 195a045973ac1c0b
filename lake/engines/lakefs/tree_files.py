"""The files in which a server on this machine keeps its trees: are they sound, and what would be lost with one.

A commit's tree is a metarange, a sorted table that names ranges; a range is a sorted table of up to some ten thousand
objects. Many commits share a range.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lake.engines.lakefs.sstable import Damaged, Range, blocks, ranges
from lake.integrity import Fault
from lake.wording import counted

RESTORE_RANGE = "restore that file in the server's block store, then remove the copy in its cache and restart it"
_RESTORE_TREE = (
    f"{RESTORE_RANGE}; without a copy of it these commits cannot be read again: go on from the newest commit that is "
    "whole, or from a clone of the repository"
)
_RESTART = "stop the server, remove that file, and start it again"
_DIGITS = 64


class TreeFiles:
    """The files of one repository in the block store.

    Parameters
    ----------
    folder : path
        The repository's folder in it.
    trees : collection of str
        Ids of the metaranges of all commits.
    """

    def __init__(self, folder: Path, trees: Collection[str]) -> None:
        self._folder, self._trees = folder, sorted(trees)
        self._cache = folder.parent.parent / "cache"

    def check(self) -> tuple[int, int, list[Fault]]:
        """Check every file of a range or metarange, and the server's cached copy; gives files, bytes and faults."""
        stored = {path.name: path for path in self._folder.glob("_lakefs/*") if len(path.name) == _DIGITS}
        size, faults = 0, []
        for name, path in sorted(stored.items()):
            data = path.read_bytes()
            size += len(data)
            if wrong := _fault_in(data):
                faults.append(Fault("manifest", name, f"{path}: {wrong}", RESTORE_RANGE))
            faults += [
                Fault("manifest", name, f"{copy}: {wrong}", _RESTART)
                for copy in self._copies(name)
                if copy.is_file() and (wrong := _fault_in(copy.read_bytes()))
            ]
        named = {part.id for tree in self._trees for part in self._ranges(tree)}
        faults += [
            Fault("manifest", name, f"{self._folder / '_lakefs' / name} is missing", RESTORE_RANGE)
            for name in sorted({*self._trees, *named} - stored.keys())
        ]
        return len(stored), size, faults

    def told(self, fault: Fault) -> tuple[Fault, set[str]]:
        """Say what a damaged file leads to, and in which trees it is.

        Of a range the metaranges that name it tell how many objects it holds, the first key and the last; of a
        metarange the copy in the server's cache does, if that is sound.
        """
        if fault.name in self._trees:
            return self._told_of_tree(fault), {fault.name}
        found: set[str] = set()
        held: Range | None = None
        for tree in self._trees:
            for part in self._ranges(tree):
                if part.id == fault.name:
                    found.add(tree)
                    held = part
        if held is None:
            return fault, found
        objects, keys = _between(held.count, held.first, held.last)
        return replace(fault, what=f"{fault.what}; it holds {objects}", keys=keys), found

    def _told_of_tree(self, fault: Fault) -> Fault:
        stored = self._folder / "_lakefs" / fault.name
        for path in (stored, *self._copies(fault.name)):
            with suppress(FileNotFoundError, Damaged):
                parts = list(ranges(path.read_bytes()))
                if not parts:
                    continue
                objects, keys = _between(sum(part.count for part in parts), parts[0].first, parts[-1].last)
                fix = fault.fix if path == stored else f"copy {path}, which is sound, to {stored}"
                what = f"{fault.what}; it is the whole tree of its commits, with {objects}"
                return replace(fault, what=what, fix=fix, keys=keys)
        what = f"{fault.what}; it is the whole tree of its commits, and no sound copy of it is on this machine"
        return replace(fault, what=what, fix=_RESTORE_TREE)

    def _copies(self, name: str) -> Iterator[Path]:
        """Give the places where the server may hold a copy of a file in its cache."""
        yield from (self._cache / kind / self._folder.name / name for kind in ("range", "meta-range"))

    def _ranges(self, tree: str) -> Iterator[Range]:
        with suppress(FileNotFoundError, Damaged):
            yield from ranges((self._folder / "_lakefs" / tree).read_bytes())


def _fault_in(table: bytes) -> str | None:
    try:
        for _ in blocks(table):
            pass
    except Damaged as error:
        return str(error)
    return None


def _between(count: int, first: bytes, last: bytes) -> tuple[str, tuple[str, ...]]:
    """Say how many objects there are from the first key to the last, and give these keys, sorted."""
    one, other = first.decode(errors="replace"), last.decode(errors="replace")
    return f"{counted(count, 'object')}, {one!r}" + (f" to {other!r}" if other != one else ""), tuple(
        sorted({one, other})
    )
