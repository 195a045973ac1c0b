"""Removes what uploads into a local store left that were cut off: files that no commit and no branch names.

An upload copies its bytes into the store and then asks the server to name them (`local_store`). A client that is killed
in between, or a server that is lost, leaves a file which the server knows nothing of; no collector of lakeFS looks for
it where the store is local. Such a file is told by its name, which ends in a comma and the signature that it was given
out with, and by its age: the server names nothing that it gave out more than 24 hours ago.

What is named is read from the store itself: every range of every commit there ever was lies in its folder `_lakefs`, so
that whoever reads a commit by its id, on a branch or not, goes on reading it. What is staged is in the listings of the
branches. The order makes this safe beside writers::

    old files -> less those in ranges -> less those that branches list -> less those in ranges made meanwhile -> removed
                                         a commit of these in between is in the last; nothing old can be named anew

Where a range is damaged or missing nothing is removed.
"""

import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from lake.engines.lakefs import local_store, objects
from lake.engines.lakefs.local_store import LocalStore
from lake.engines.lakefs.references import commit_pages
from lake.engines.lakefs.sstable import Damaged, blocks, ranges_in
from lake.engines.lakefs.wire import Wire
from lake.errors import BadInput, CorruptObject, NotFound
from lake.garbage import Collected, Share
from lake.repository import CommitId

#: Seconds after which the server names no address any more (24 h), and an hour for clocks that differ.
EXPIRED_S = 25 * 3600.0
_NAME = re.compile(rb"[0-9a-v]{20},[\w-]{43}")
_DIGITS = 64
_PAUSES_S = (0.0, 0.2, 1.0)
NAMED, UNNAMED = "committed or staged", "cut-off uploads"


def sweep(wire: Wire, *, dry_run: bool = False, older_s: float = EXPIRED_S) -> Collected:
    """Remove the files of a local store that were placed there more than `older_s` ago and that nothing names.

    Raises
    ------
    BadInput
        The server's store is not on this machine, or is another user's.
    CorruptObject
        The store's trees are not whole.
    """
    store = _store(wire)
    until = time.time() - older_s
    placed = {path.name: path for path in (store.root / "data").glob("*/*") if _NAME.fullmatch(path.name.encode())}
    left = {name for name in placed if local_store.arrival(name) < until}
    before = _tables(store)
    left -= _named(store, before)
    if left:
        branches = _refs(wire, "/branches", {"show_hidden": "true"})
        for branch in branches:
            with suppress(NotFound):  # it has just gone, and what was staged on it too
                listed = objects.listing(wire, branch, "", "", None)
                left.difference_update(stat.address.rpartition("/")[2] for stat in listed)
        left -= _named(store, _tables(store) - before)
        _check_trees(wire, {*branches.values(), *_refs(wire, "/tags", {}).values()}, store)
    sizes = {name: _size(path) for name, path in placed.items()}
    if not dry_run:
        for name in left:
            placed[name].unlink(missing_ok=True)
    gone = sum(sizes[name] for name in left)
    kept = Share(len(placed) - len(left), sum(sizes.values()) - gone)
    return Collected(dry_run, 0, 0, {NAMED: kept}, {UNNAMED: Share(len(left), gone)}, gone)


def _store(wire: Wire) -> LocalStore:
    """Find the store by an object that the server puts there for this, on a branch that is gone afterwards."""
    data = secrets.token_bytes(32)
    with local_store.trial(wire, data) as stat:
        store = local_store.find(wire, stat, data)
    if store is None:
        raise BadInput(
            f"{wire.address.location} is on a lakeFS server, whose own collector removes objects; nothing was removed",
            fix="have its operator run lakeFS garbage collection (the lakefs-spark-client job, not for local storage); "
            "the retention rules that `emlake init` sets keep the branch of every release; `emlake doctor` checks them",
        )
    return store


def _refs(wire: Wire, path: str, query: dict[str, object]) -> dict[str, CommitId]:
    pages = wire.pages(path, query, fields=("id", "commit_id"), doing=f"list {path[1:]}")
    return {entry["id"]: entry["commit_id"] for entry in pages}


def _check_trees(wire: Wire, heads: set[CommitId], store: LocalStore) -> None:
    """Raise `CorruptObject` if the tree of a commit behind `heads` is not in the store."""
    waiting, seen = list(heads), set[CommitId]()
    while waiting:
        for entry in commit_pages(wire, waiting.pop(), first_parent=True):
            if entry["id"] in seen:
                break
            seen.add(entry["id"])
            waiting += entry["parents"][1:]
            tree = store.root / "_lakefs" / str(entry.get("meta_range_id") or "")
            if not tree.exists():
                raise _not_whole(tree, "it is missing")


def _tables(store: LocalStore) -> set[str]:
    return {path.name for path in (store.root / "_lakefs").glob("*") if len(path.name) == _DIGITS}


def _named(store: LocalStore, tables: set[str]) -> set[str]:
    """Give the names that stand in these files of trees, all of which must be whole and there."""
    found: set[str] = set()
    folder = store.root / "_lakefs"
    for name in tables:
        for block in _whole(folder / name):
            found.update(match.decode() for match in _NAME.findall(block))
            for part in ranges_in(block):
                if not Path(folder, part.id).exists():
                    raise _not_whole(folder / part.id, "it is missing")
    return found


def _whole(path: Path) -> list[bytes]:
    """Read the blocks of a sorted table, again if it is being written at this moment."""
    for pause_s in _PAUSES_S:
        time.sleep(pause_s)
        try:
            return list(blocks(path.read_bytes()))
        except Damaged as error:
            why = str(error)
    raise _not_whole(path, why)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # an upload has failed, and took its own away
        return 0


def _not_whole(path: Path, why: str) -> CorruptObject:
    return CorruptObject(
        f"{path}: {why}; what it names is not known, so nothing was removed",
        fix="run `emlake scrub`, and heal it first",
    )
