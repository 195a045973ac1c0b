"""Inspects a repository on a server, through its interface and, for a server of one's own, in its store.

What protects what:

- the bytes of an object: the sha256 that a release, the table of tiles or an earlier scrub recorded; else the server's
  checksum (`checksums`). Where that is no md5 of the whole, the sha256 seen is recorded and holds from the next run on;
- a commit: its id is the sha256 of what it says, and is computed again;
- trees: the files of its ranges, where its store lies on this machine (`tree_files`), and the copies in its cache. The
  server itself takes a range that it cannot read for an empty one and says nothing. Elsewhere that is noticed where a
  commit has another tree than its parent and is said to change nothing.

The server's own database, of refs, commits and staging, it alone can read. Bits flipped in it while it was down made it
refuse to start (checksums), or lose commits that branches name, which is found here; while it runs, it works on what it
holds in memory.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import numpy as np

from lake.engines.lakefs import known, local_store
from lake.engines.lakefs.checksums import SMALLEST_PART, fits
from lake.engines.lakefs.healing import replace_file
from lake.engines.lakefs.identity import identity_of
from lake.engines.lakefs.references import COMMIT_FIELDS, References, commit_from
from lake.engines.lakefs.tree_files import RESTORE_RANGE, TreeFiles
from lake.engines.lakefs.wire import Wire, segment
from lake.errors import OF_THE_MACHINE, CorruptObject, LakeError, NotFound, ServerUnreachable
from lake.integrity import ACCEPT, CannotHeal, Fault, Inventory, Offer, Part
from lake.repository import Commit, CommitId, ObjectStat, Progress, Repository
from lake.wording import counted

_PIECE = 8 << 20
_SKEW_S = 3  # a commit dated further ahead is none of this moment
_FEW = 64  # changed keys that are looked up one by one; more are taken from a listing
RESTORE = (
    "restore the object's file in the server's block store (on its machine `emlake scrub --heal-from LOCATION` does "
    f"it from a copy or a clone), or revert to a commit without it; {ACCEPT}"
)


@dataclass(slots=True)
class _Content:
    ref: str  # a commit that holds it, or the branch on which it is staged
    key: str
    address: str
    checksum: str
    size: int
    birth: int
    keys: set[str] | None = None


class ServerInspector:
    """See `lake.integrity.Inspector`.

    A content is named by its address. Its birth is the second of the commit that first held it, or that in which its
    bytes came, if this is later: a clone is as old as its original.
    """

    def __init__(self, repo: Repository, names: References, wire: Wire) -> None:
        self._repo, self._names, self._wire = repo, names, wire
        self._about = wire.json("", fields=("storage_namespace", "creation_date"), doing="look at the repository")
        self._commits: dict[CommitId, Commit] = {}
        self._trees: dict[CommitId, str] = {}  # id of the commit's metarange
        self._contents: dict[str, _Content] = {}
        self._order: list[_Content] = []
        self._known: known.Digests = known.Digests()
        self._learned: list[dict[str, Any]] = []
        self._until = 0

    @property
    def place(self) -> str:
        """The storage namespace, which a server gives out once, and when that was."""
        return f"server-{self._about['storage_namespace']}-{self._about['creation_date']}"

    # -- structure ----------------------------------------------------------------------------------------------------
    def structure(self, progress: Progress) -> Sequence[Part]:
        """Read every commit, compare it with its parent, and find out which contents there are."""
        faults = self._read_commits()
        parts = [Part("commit", len(self._commits), 0, tuple(faults))]
        torn: list[Fault] = []
        commits = sorted(self._commits.values(), key=lambda commit: commit.created)
        for done, commit in enumerate(commits, 1):
            progress("manifests", done, len(commits))
            try:
                for stat in self._introduced(commit):
                    born = max(int(commit.created.timestamp()), local_store.arrival(stat.address))
                    # Dated in the future, it is new to each run until then: checked too often, never too rarely.
                    self._add(stat, commit.id, min(born, self._until - 1))
            except OF_THE_MACHINE:
                raise
            except LakeError as error:
                what = f"the tree of commit {commit.id}, or of its parent, cannot be read: {error.message}"
                torn.append(Fault("manifest", self._trees[commit.id], what, RESTORE_RANGE))
        for branch in self._names.branches():
            self._add_staged(branch)
        torn += list(self._read_heads())
        files, size, damaged = self._check_tables()
        parts.append(Part("manifest", max(files, len(set(self._trees.values()))), size, (*torn, *damaged)))
        self._known = known.digests(self._repo, self.place, list(self._commits.values()))
        return parts

    def _read_commits(self) -> list[Fault]:
        """Read all commits reachable from branches and tags, none of which may be joined by others unnoticed."""
        faults: list[Fault] = []
        while True:
            # Births count seconds: the run is made when the second of the newest commit is over. For one that a wrong
            # clock dated in the future, or that was cloned from such a place, nobody waits.
            answer = self._wire.request("GET", "", doing="ask for the time")
            now = parsedate_to_datetime(answer.headers["Date"]) if "Date" in answer.headers else datetime.now(UTC)
            self._until = int(now.timestamp())
            heads = {**self._names.branches(), **self._names.tags()}
            for ref, head in heads.items():
                self._walk(ref, head, faults)
            now_s = range(self._until, self._until + _SKEW_S)
            if not any(int(commit.created.timestamp()) in now_s for commit in self._commits.values()):
                return faults
            time.sleep(0.3)

    def _walk(self, ref: str, head: CommitId, faults: list[Fault]) -> None:
        waiting = {head} - self._commits.keys()
        if not waiting:
            return
        try:
            for entry in self._wire.pages(
                f"/refs/{segment(head)}/commits", {}, fields=COMMIT_FIELDS, doing=f"log {ref}"
            ):
                if entry["id"] not in self._commits:
                    commit = commit_from(entry)
                    self._commits[commit.id] = commit
                    self._trees[commit.id] = str(entry.get("meta_range_id", ""))
                    waiting |= set(commit.parents) - self._commits.keys()
                    if entry.get("version") == 1 and identity_of(entry) != commit.id:
                        what = f"commit {commit.id} does not have the content that its id says"
                        faults.append(Fault("commit", commit.id, what, "restore the server's database from a copy"))
                waiting.discard(entry["id"])
                if not waiting:
                    return
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            what = f"the history of {ref} cannot be read: {error.message}"
            faults.append(Fault("commit", head, what, "restore the server's database from a copy"))

    def _introduced(self, commit: Commit) -> Iterator[ObjectStat]:
        """Yield the objects of a commit that its first parent lacks or has otherwise."""
        if not commit.parents:
            yield from self._repo.list(commit.id)
            return
        changes = list(self._repo.diff(commit.parents[0], commit.id))
        if not changes and self._trees[commit.id] != self._trees.get(commit.parents[0]):
            raise CorruptObject("it is another tree than its parent's, and the server finds no difference")
        keys = [change.key for change in changes if change.kind in {"added", "changed"}]
        yield from self._look_up(commit.id, keys)

    def _look_up(self, ref: str, keys: Sequence[str]) -> Iterator[ObjectStat]:
        if len(keys) > _FEW:
            wanted = set(keys)
            prefix = _common_folder(min(keys), max(keys))
            yield from (stat for stat in self._repo.list(ref, prefix) if stat.key in wanted)
            return
        for key in keys:
            try:
                yield self._repo.stat(ref, key)
            except NotFound:
                if ref in self._commits:
                    raise

    def _add_staged(self, branch: str) -> None:
        with suppress(NotFound):  # the branch of a session that has just ended
            changes = self._repo.uncommitted(branch)
            keys = [change.key for change in changes if change.kind in {"added", "changed"}]
            for stat in self._look_up(branch, keys):
                self._add(stat, branch, -1)

    def _add(self, stat: ObjectStat, ref: str, birth: int) -> None:
        held = self._contents.get(stat.address)
        if held is None:
            self._contents[stat.address] = _Content(ref, stat.key, stat.address, stat.checksum, stat.size, birth)
        elif held.key != stat.key:
            held.keys = {*(held.keys or {held.key}), stat.key}

    def _read_heads(self) -> Iterator[Fault]:
        """Read the first page of each head's tree: what an analyst reads must be readable, whatever its parents are."""
        for ref, head in {**self._names.branches(), **self._names.tags()}.items():
            try:
                next(iter(self._repo.list(head, limit=1)), None)
            except OF_THE_MACHINE:
                raise
            except LakeError as error:
                yield Fault(
                    "manifest", self._trees.get(head, head), f"{ref} cannot be listed: {error.message}", RESTORE_RANGE
                )

    # -- the store on this machine ------------------------------------------------------------------------------------
    def _check_tables(self) -> tuple[int, int, list[Fault]]:
        """Check the files of ranges and metaranges, and the server's cached copies, where they lie on this machine."""
        store = self._tree_files()
        return (0, 0, []) if store is None else store.check()

    def _tree_files(self) -> TreeFiles | None:
        folder = self._store_folder()
        return None if folder is None else TreeFiles(folder, {*self._trees.values()} - {""})

    def _store_folder(self) -> Path | None:
        """Give the folder of the repository's block store if it lies on this machine."""
        if not self._wire.address.on_loopback:
            return None
        for content in self._contents.values():
            if place := local_store.place_of(content.address):
                folder, _ = place
                return folder if (folder / "_lakefs").is_dir() else None
        return None

    # -- contents -----------------------------------------------------------------------------------------------------
    def inventory(self) -> Inventory:
        """List what commits hold and what is staged."""
        self._order = list(self._contents.values())
        slots = [
            int.from_bytes(hashlib.sha256(content.address.encode()).digest()[:8], "big") for content in self._order
        ]
        return Inventory(
            np.array(slots, np.uint64),
            np.array([content.size for content in self._order], np.int64),
            np.array([content.birth for content in self._order], np.int64),
            self._until,
        )

    def name(self, which: int) -> str:
        """Give the address."""
        return self._order[which].address

    def check(self, which: int) -> Sequence[Fault]:
        """Read an object through the server and compare it with the best that is known of it."""
        content = self._order[which]
        kind = "staged" if content.birth < 0 else "object"
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        try:
            for piece in self._pieces(content):
                sha256.update(piece)
                md5.update(piece)
                size += len(piece)
            wrong = self._judge(content, size, sha256.hexdigest(), md5.hexdigest())
        except ServerUnreachable as error:
            # A file that was cut makes the server break off its answer: then it answers the next question.
            self._wire.json("", doing="see whether the server is there")
            wrong = f"cannot be read to its end: {error.message}"
        except NotFound:
            if kind == "staged":
                return ()  # committed, reset or put over meanwhile
            wrong = "is gone"
        except LakeError as error:
            wrong = f"cannot be read: {error.message}"
        if wrong is None:
            return ()
        keys = tuple(sorted(content.keys or {content.key}))
        return (Fault(kind, content.address, f"{content.key!r} ({content.address}) {wrong}", RESTORE, keys=keys),)

    def _pieces(self, content: _Content) -> Iterator[bytes]:
        path = f"/refs/{segment(content.ref)}/objects"
        for start in range(0, content.size, _PIECE):
            end = min(start + _PIECE, content.size) - 1
            headers = {"Range": f"bytes={start}-{end}"}
            doing = f"get {content.key!r} at {content.ref!r}"
            yield self._wire.request("GET", path, {"path": content.key}, doing=doing, headers=headers).data

    def _judge(self, content: _Content, size: int, sha256: str, md5: str) -> str | None:
        if size != content.size:
            return f"has {counted(size, 'byte')}, not {content.size:,}"
        recorded = self._known.find(content.address, content.key, content.size, content.checksum)
        if recorded:
            return None if recorded == sha256 else f"has sha256 {sha256}, {recorded} is recorded"
        verdict = fits(content.checksum, size, lambda: self._pieces(content), whole=md5)
        if verdict is False:
            return f"has md5 {md5}, the server recorded {content.checksum}" + (
                "" if size <= SMALLEST_PART else " (nor is that the checksum of an upload in parts of a usual size)"
            )
        if content.checksum != md5 and content.birth >= 0:
            row = {"address": content.address, "bytes": size, "checksum": content.checksum, "sha256": sha256}
            self._learned.append(row)
        return None

    def learned(self) -> Sequence[dict[str, Any]]:
        """Give what was seen of objects that no md5 covers, once."""
        rows, self._learned = self._learned, []
        return rows

    def heal(self, fault: Fault, offers: Iterable[Offer]) -> bool:
        """Replace the file of an object where the block store lies on this machine; nothing else is safe to."""
        if fault.kind not in {"object", "staged"}:
            raise CannotHeal("only a copy of the server's own files has it")
        content = self._contents[fault.name]
        folder, path = self._store_folder(), Path(content.address.removeprefix("local://"))
        if folder is None or not path.is_relative_to(folder):
            raise CannotHeal("the server's block store is not on this machine: heal it there, or put the bytes again")
        recorded = self._known.find(content.address, content.key, content.size, content.checksum)
        return replace_file(path, content.size, recorded, content.checksum, offers)

    # -- who is hit ---------------------------------------------------------------------------------------------------
    def attribute(self, faults: Sequence[Fault]) -> Sequence[Fault]:
        """Ask for each damaged object which commits hold it, and for each tree whose it is."""
        heads = {**self._names.branches(), **self._names.tags()} if faults else {}
        return [self._attributed(fault, heads) for fault in faults]

    def _attributed(self, fault: Fault, heads: dict[str, CommitId]) -> Fault:
        if fault.kind in {"object", "staged"}:
            found = self._holding(self._contents[fault.name])
        elif fault.kind == "manifest":
            store = self._tree_files()
            fault, trees = (fault, set[str]()) if store is None else store.told(fault)
            found = {commit for commit, tree in self._trees.items() if tree in {fault.name, *trees}}
        elif fault.kind == "commit":
            found = self._descendants(fault.name)
        else:
            return fault
        commits = sorted((self._commits[c] for c in found if c in self._commits), key=lambda commit: commit.created)
        return fault.held_by(commits, (), [ref for ref, head in heads.items() if head in found])

    def _holding(self, content: _Content) -> set[CommitId]:
        keys = sorted(content.keys or {content.key})

        def holds(commit: CommitId) -> bool:
            for key in keys:
                try:
                    if self._repo.stat(commit, key).address == content.address:
                        return True
                except OF_THE_MACHINE:
                    raise
                except LakeError:
                    continue
            return False

        with ThreadPoolExecutor(8) as pool:
            ids = list(self._commits)
            return {commit for commit, held in zip(ids, pool.map(holds, ids), strict=True) if held}

    def _descendants(self, commit: CommitId) -> set[CommitId]:
        hit = {commit}
        for child in sorted(self._commits.values(), key=lambda c: c.created):
            if hit.intersection(child.parents):
                hit.add(child.id)
        return hit


def _common_folder(first: str, last: str) -> str:
    """Give the longest prefix that ends in a slash and that two keys share."""
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        shared += 1
    return first[: first.rfind("/", 0, shared) + 1]
