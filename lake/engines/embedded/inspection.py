"""Inspects a repository's folder: marker, database, manifests, objects, and every copy of an object.

A content is named by its sha256, and its slot is the first eight bytes of that. Its birth is the sequence number of the
commit that first held it. Files of views and workspaces that are links to the object are the object; those that are
copies (small files, second copies, other file systems) are read together with it.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.engines.embedded.audit import UNREADABLE, audit
from lake.engines.embedded.copies import Copy, copies_in_views, copies_in_workspaces
from lake.engines.embedded.engine import Engine
from lake.engines.embedded.files import guarded, is_sealed
from lake.engines.embedded.healing import heal_commit, heal_content, heal_copies
from lake.engines.embedded.history import Node, node_of
from lake.engines.embedded.layout import FORMAT, MARKER, marker_text
from lake.engines.embedded.manifests import Manifests
from lake.engines.embedded.store import HEAL
from lake.integrity import RESTORE, RESTORE_MANIFEST, CannotHeal, Fault, Inventory, Offer, Part
from lake.repository import Commit, CommitId, Progress
from lake.wording import counted

_BLOCK = 1 << 20


class FolderInspector:
    """See `lake.integrity.Inspector`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._nodes: list[Node] = []  # in the order of their making
        self._manifests = Manifests(engine.manifests)
        self._names: NDArray[np.uint8] = np.empty((0, 32), np.uint8)
        self._sizes: NDArray[np.int64] = np.empty(0, np.int64)
        self._births: NDArray[np.int64] = np.empty(0, np.int64)
        self._copies: dict[bytes, list[Copy]] = {}
        self._staged: dict[bytes, tuple[int, str]] = {}
        self._writable = True  # a damaged database may lose more when it is written

    @property
    def root(self) -> Path:
        """The repository's folder."""
        return self._engine.root

    @property
    def place(self) -> str:
        """The folder of the objects by its inode: a copy of the repository has another one."""
        return f"folder-{(self._engine.root / 'objects').stat().st_ino}"

    # -- structure ----------------------------------------------------------------------------------------------------
    @guarded
    def structure(self, progress: Progress) -> Sequence[Part]:
        """Check marker, database and manifests; find out which contents there are."""
        parts = [self._marker(), *self._database()]
        faults = self._manifests.read([(node.seq, node.tree) for node in self._nodes], progress)
        parts.append(Part("manifest", self._manifests.count, self._manifests.bytes, tuple(faults)))
        parts.append(self._folders(progress))
        return parts

    def _marker(self) -> Part:
        path = self._engine.root / MARKER
        text = path.read_bytes()
        if text in {marker_text(version).encode() for version in range(1, FORMAT + 1)}:
            return Part("repository", 1, len(text))
        fault = Fault("repository", MARKER, f"{path} is not what a repository's marker says: {text[:80]!r}", RESTORE)
        return Part("repository", 1, len(text), (fault,))

    def _database(self) -> Iterator[Part]:
        db = self._engine.db
        copy = "copy the folder before anything is written, then " + RESTORE
        refs: list[Fault] = []
        commits: list[Fault] = []
        for what, sentence in audit(db, read_only=bool(self._engine.refused)):
            if what:
                commits.append(Fault("commit", what, sentence, RESTORE_MANIFEST))
            else:
                refs.append(Fault("refs", db.path.name, sentence, copy))
        known = 0
        try:
            with db.read() as con:
                for row in con.execute("SELECT seq, id, body FROM commits ORDER BY seq"):
                    known += 1
                    with suppress(ValueError, KeyError, TypeError):
                        self._nodes.append(node_of(*row))
                query = "SELECT key, value FROM staging WHERE value IS NOT NULL UNION SELECT key, value FROM shown"
                for key, value in con.execute(query):
                    if value is not None and len(value) >= 40:
                        size = int.from_bytes(value[32:40], "little")
                        self._staged[value[:32]] = (size, bytes(key).decode(errors="replace"))
        except UNREADABLE as error:
            refs.append(Fault("refs", db.path.name, f"{db.path} cannot be read: {error}", copy))
        self._writable = not refs
        yield Part("refs", 1, db.path.stat().st_size, tuple(refs))
        yield Part("commit", known, 0, tuple(commits))

    def _folders(self, progress: Progress) -> Part:
        """Look which files in views and workspaces are copies, and whether views are whole."""
        faults: list[Fault] = []
        files = 0
        engine = self._engine
        for found in (
            copies_in_views(engine, {node.commit.id: node for node in self._nodes}),
            copies_in_workspaces(engine),
        ):
            for item in found:
                files += 1
                if files % 1000 == 0:
                    progress("views and workspaces", files, 0)
                if isinstance(item, Fault):
                    faults.append(item)
                elif item is not None:
                    self._copies.setdefault(item.digest, []).append(item)
        return Part("copy", files, 0, tuple(faults))

    # -- contents -----------------------------------------------------------------------------------------------------
    @guarded
    def inventory(self) -> Inventory:
        """List what commits hold, what is staged, and what lies in the store besides."""
        names, sizes, births = self._manifests.contents()
        extra = self._besides(names)
        if extra:
            more = np.frombuffer(b"".join(extra), np.uint8).reshape(-1, 32)
            names = np.concatenate([names, more])
            sizes = np.concatenate([sizes, np.array(list(extra.values()), np.int64)])
            # What is staged may be gone tomorrow: it is checked in each run, and no record is kept of it.
            loose = np.array([-1 if digest in self._staged else 0 for digest in extra], np.int64)
            births = np.concatenate([births, loose])
        self._names, self._sizes, self._births = names, sizes, births
        until = max((node.seq for node in self._nodes), default=0) + 1
        slots = np.ascontiguousarray(names[:, :8]).view(">u8").ravel().astype(np.uint64)
        return Inventory(slots, sizes, births, until)

    def _besides(self, names: NDArray[np.uint8]) -> dict[bytes, int]:
        """Find contents that no commit holds: staged ones, and leftovers, which a later put would take for sound."""
        flat = names.tobytes()
        held = {flat[at : at + 32] for at in range(0, len(flat), 32)}
        extra = {digest: size for digest, (size, _) in self._staged.items() if digest not in held}
        for folder in os.scandir(self._engine.root / "objects"):
            for entry in os.scandir(folder.path):
                try:
                    digest = bytes.fromhex(folder.name + entry.name)
                except ValueError:
                    continue
                if len(digest) == 32 and digest not in held and digest not in extra:
                    with suppress(FileNotFoundError):
                        extra[digest] = entry.stat().st_size
        for digest, copies in self._copies.items():
            if digest not in held and digest not in extra:
                extra[digest] = copies[0].size
        return extra

    def _digest(self, which: int) -> bytes:
        return bytes(self._names[which])

    def name(self, which: int) -> str:
        """Give the digest in hexadecimal."""
        return self._digest(which).hex()

    def check(self, which: int) -> Sequence[Fault]:
        """Hash the object, or the staged content, and the copies of it."""
        digest = self._digest(which)
        size = int(self._sizes[which])
        faults = []
        path = self._engine.objects.locate(digest)
        sentence = _compare(path, digest, size)
        if sentence and not os.path.exists(path):
            # Committed meanwhile: it has just moved from the staged contents into the store.
            path = self._engine.objects.locate(digest)
            sentence = _compare(path, digest, size)
        if sentence and not os.path.exists(path) and self._may_be_gone(digest, which):
            sentence = None
        if sentence:
            staged = digest in self._staged
            key = (self._staged[digest][1],) if staged else ()
            fix = "put it again, or reset the branch" if staged and not self._is_stored(digest) else HEAL
            kind = "staged" if staged and not self._is_stored(digest) else "object"
            faults.append(Fault(kind, digest.hex(), f"{path} {sentence}", fix, keys=key))
        for copy in self._copies.get(digest, ()):
            sentence = _compare(copy.path, digest, copy.size)
            if sentence is None:
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                # A workspace's file that was written meanwhile is somebody's work, and one that has gone is no damage.
                stat = os.stat(copy.path)
                if copy.workspace and not is_sealed(stat, digest, copy.size):
                    continue
                faults.append(Fault("copy", digest.hex(), f"{copy.path} {sentence}", copy.fix, keys=(copy.key,)))
        return faults

    def _may_be_gone(self, digest: bytes, which: int) -> bool:
        """Tell whether a missing file is nobody's loss: a leftover that was swept, or staged and put over or reset."""
        if digest in self._staged:
            return digest not in self._engine.staged_digests()
        return bool(self._births[which] == 0)

    def _is_stored(self, digest: bytes) -> bool:
        return os.path.exists(self._engine.objects.path(digest))

    # -- who is hit ---------------------------------------------------------------------------------------------------
    @guarded
    def attribute(self, faults: Sequence[Fault]) -> Sequence[Fault]:
        """Look the damaged things up in all manifests."""
        contents = {bytes.fromhex(fault.name) for fault in faults if fault.kind in {"object", "copy", "staged"}}
        blocks = {bytes.fromhex(fault.name) for fault in faults if fault.kind == "manifest"}
        hits = self._manifests.holders(contents, blocks)
        heads, now = self._heads(), self._commits_now()
        by_tree: dict[bytes, list[Commit]] = {}
        for node in self._nodes:
            by_tree.setdefault(node.tree, []).append(node.commit)
        order = {node.commit.id: node.seq for node in self._nodes}
        answer = []
        keys: tuple[str, ...]
        for fault in faults:
            if fault.kind == "commit":
                commits, keys = self._descendants(fault.name), ()
            elif fault.kind in {"object", "copy", "staged", "manifest"}:
                trees, found = hits.get(bytes.fromhex(fault.name), (set(), set()))
                commits = sorted((c for tree in trees for c in by_tree.get(tree, ())), key=lambda c: order[c.id])
                keys = tuple(key.decode(errors="replace") for key in found)
            else:
                answer.append(fault)
                continue
            kept = [commit for commit in commits if commit.id in now]
            if not kept and fault.kind in {"object", "manifest"} and self._is_gone(fault):
                continue  # a collector has removed it together with the commits that held it
            commits = kept
            ids = {commit.id for commit in commits} | ({fault.name} if fault.kind == "commit" else set())
            answer.append(fault.held_by(commits, keys, [ref for ref, head in heads.items() if head in ids]))
        return answer

    def _commits_now(self) -> set[CommitId]:
        with suppress(*UNREADABLE), self._engine.db.read() as con:
            return {commit for (commit,) in con.execute("SELECT id FROM commits")}
        return {node.commit.id for node in self._nodes}

    def _is_gone(self, fault: Fault) -> bool:
        store = self._engine.manifests if fault.kind == "manifest" else self._engine.objects
        return not os.path.exists(store.locate(bytes.fromhex(fault.name)))

    def _heads(self) -> dict[str, CommitId]:
        heads: dict[str, CommitId] = {}
        with suppress(*UNREADABLE), self._engine.db.read() as con:
            for query in ("SELECT name, head FROM branches", "SELECT name, target FROM tags"):
                heads |= dict(con.execute(query))
        return heads

    def _descendants(self, commit: CommitId) -> list[Commit]:
        """Give a commit, if it can be read, and all that descend from it."""
        hit = {commit}
        found = []
        for node in self._nodes:
            if node.commit.id in hit or hit.intersection(node.commit.parents):
                hit.add(node.commit.id)
                found.append(node.commit)
        return found

    @guarded
    def heal(self, fault: Fault, offers: Iterable[Offer]) -> bool:
        """Heal a file of the store, what a commit says, or the copies of an object."""
        if fault.kind == "copy":
            return heal_copies(self._engine, fault.name, self._copies.get(bytes.fromhex(fault.name), ()))
        if fault.kind != "commit":
            return heal_content(self._engine, fault.kind, fault.name, offers)
        if not self._writable:
            raise CannotHeal("refs are damaged, and writing could make it worse")
        return heal_commit(self._engine, fault.name, offers)

    def learned(self) -> Sequence[dict[str, Any]]:
        """Nothing: every content's name is its digest."""
        return ()


def _compare(path: str | Path, digest: bytes, size: int) -> str | None:
    """Read a file from the disk and say how it differs from its digest; None if it does not."""
    try:
        with open(path, "rb", buffering=0) as file:
            fd = file.fileno()
            # What the system keeps in memory is not what the disk will give after the next start.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            found = hashlib.file_digest(file, "sha256").digest()
            length = os.fstat(fd).st_size
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if length != size:
        return f"has {counted(length, 'byte')}, not {size:,}"
    if found != digest:
        return f"has other bytes than its digest {digest.hex()[:16]} says (sha256 {found.hex()[:16]})"
    return None
