"""The embedded engine: a versioned repository in a folder, with lakeFS's semantics and no server."""

import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

from lake import admission
from lake.durable import point
from lake.engines.embedded import commits
from lake.engines.embedded.access import refused
from lake.engines.embedded.engine import Engine, kind_of, writing
from lake.engines.embedded.examine import examine
from lake.engines.embedded.files import SMALL, guarded, guarded_items, translate
from lake.engines.embedded.folders import check_prefix
from lake.engines.embedded.gc import GRACE_S, WAIT_S, collect
from lake.engines.embedded.healing import content
from lake.engines.embedded.history import Branch, check_unprotected, read_staging, unstage
from lake.engines.embedded.importing import EmbeddedImporter
from lake.engines.embedded.inspection import FolderInspector
from lake.engines.embedded.layout import check_openable, make_folders, make_repository
from lake.engines.embedded.merging import Rules, changes
from lake.engines.embedded.ranges import digest_of, pack_object, unpack_object
from lake.engines.embedded.references import References
from lake.engines.embedded.touching import touches
from lake.engines.embedded.trees import Tree, overlay
from lake.engines.embedded.workspaces import State, Values, save_state
from lake.errors import BadInput, CorruptObject, NoRoom, ObjectNotFound
from lake.garbage import Collected
from lake.integrity import Offer
from lake.location import Location
from lake.names import check_content, check_key, check_metadata, check_paths
from lake.repository import NO_METADATA, Change, Commit, CommitId, Handle, Metadata, ObjectStat, Progress, Strategy
from lake.room import Room


class EmbeddedRepository(References, Handle):
    """A repository in a folder. Safe between threads, processes and forks; see `Engine` for what lies where."""

    # -- opening ------------------------------------------------------------------------------------------------------
    @classmethod
    def open(cls, path: Path) -> "EmbeddedRepository":
        """Open the repository in a folder, removing what dead processes left.

        One that this process may not write to is opened for reading: every change of it is a `ReadOnlyRepository`.
        """
        root = path.expanduser().absolute()
        try:
            check_openable(root)
            why = refused(root)
            engine = Engine(root, why)
            if not why:
                make_folders(root)
                engine.sweep()
        except (OSError, sqlite3.Error) as error:
            raise translate(error, root) from error
        return cls(engine)

    @classmethod
    def create(cls, path: Path) -> "EmbeddedRepository":
        """Make a repository with one empty commit on `main`; whole, or not at all."""
        root = path.expanduser().absolute()
        try:
            make_repository(root)
        except (OSError, sqlite3.Error) as error:
            raise translate(error, root) from error
        return cls.open(root)

    @property
    def location(self) -> str:
        """The repository's folder, as `lake.open` takes it."""
        return str(self._engine.root)

    @guarded
    def examine(self) -> Sequence[tuple[str, str, str]]:
        """Give (what, state, detail) of what the file system here can and cannot do, for `emlake doctor`."""
        return examine(self._engine)

    @writing
    def collect_garbage(
        self,
        *,
        grace_s: float = GRACE_S,
        dry_run: bool = False,
        wait_s: float = WAIT_S,
        progress: Progress = lambda step, done, total: None,
    ) -> Collected:
        """Remove what no branch, tag, session, view or grace period needs, beside readers and writers; see `gc`."""
        return collect(self._engine, grace_s=grace_s, dry_run=dry_run, wait_s=wait_s, progress=progress)

    def inspector(self) -> FolderInspector:
        """Begin an inspection of the folder's bytes; see `lake.integrity`."""
        return FolderInspector(self._engine)

    @guarded
    def content(self, kind: str, name: str) -> Offer | None:
        """Give an object, a manifest or a commit by its digest; see `lake.integrity.ContentAddressed`."""
        return content(self._engine, kind, name)

    def importer(self) -> EmbeddedImporter:
        """Give the part that rebuilds commits of another repository here."""
        return EmbeddedImporter(self._engine)

    def close(self) -> None:
        """Close the database and remove this process's temporary files."""
        self._engine.close()

    # -- objects ------------------------------------------------------------------------------------------------------
    @writing
    def put(
        self,
        branch: str,
        key: str,
        data: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        metadata: Metadata = NO_METADATA,
    ) -> ObjectStat:
        """Stage bytes, or the content of a file; when it returns they survive a kill, once committed a power cut."""
        name = check_key(key).encode()
        check_content(data)
        metadata = check_metadata(metadata)
        size = (data.stat().st_size if data.is_file() else 0) if isinstance(data, Path) else len(data)
        with self._engine.small_puts.through() if size < SMALL else nullcontext():
            self._writable(branch)
            incoming = self._engine.incoming
            try:
                with self._engine.turns.working(), Room(self.root) as room:
                    room.need([size])
                    if isinstance(data, Path):
                        digest, size = incoming.put_file(data)
                    else:
                        digest = hashlib.sha256(data).digest()
                        incoming.put_bytes(digest, data)
                    point("put.object-kept")
                    if size >= SMALL:
                        self._engine.db.settle()
                    value = pack_object(digest, size, content_type, metadata)
                    self._engine.stager.stage(branch, {name: value}, "put")
            except NoRoom:
                # What was kept and could not be staged.
                self._engine.tidy()
                raise
        return unpack_object(name, value, self._engine.objects.path(digest))

    @writing
    def delete(self, branch: str, keys: Collection[str]) -> None:
        """Stage the removal of `keys`."""
        self._writable(branch)
        # A removal is staged even where nothing is: a commit that runs now may be about to bring the key in.
        removals: Values = {name: None for key in keys if (name := _key_bytes(key)) is not None}
        self._engine.stager.stage(branch, removals, "delete")

    def _writable(self, branch: str) -> Branch:
        with self._engine.db.read() as con:
            found = self._history.branch(con, branch)
            check_unprotected(con, branch)
        return found

    @guarded
    def get(self, ref: str, key: str) -> bytes:
        """Read an object and check its bytes."""
        found = self._find(ref, key)
        try:
            return self._engine.objects.read(digest_of(found), key)
        except CorruptObject:
            # Put over, and swept, between the two? Then the second look finds the new one.
            with self._engine.working():
                if (now := self._find(ref, key)) == found:
                    raise
                return self._engine.objects.read(digest_of(now), key)

    @guarded
    def stat(self, ref: str, key: str) -> ObjectStat:
        """Describe an object."""
        value = self._find(ref, key)
        return unpack_object(key.encode(), value, self._engine.objects.path(digest_of(value)))

    def _find(self, ref: str, key: str) -> bytes:
        name = _key_bytes(key)
        with self._engine.db.read() as con:
            branch = self._history.staged_branch(con, ref)
            if branch is not None:
                row = con.execute("SELECT value FROM staging WHERE token = ? AND key = ?", (branch.token, name))
                if staged := row.fetchone():
                    if staged[0] is None:
                        raise self._no_object(ref, key)
                    return bytes(staged[0])
            commit = branch.head if branch else self._history.resolve(con, ref)
            digest = self._history.node(con, commit).tree
        value = None if name is None else self._engine.trees.find(self._engine.trees.load(digest), name)
        if value is None:
            raise self._no_object(ref, key)
        return value

    def _no_object(self, ref: str, key: str) -> ObjectNotFound:
        folder = key.rpartition("/")[0]
        near = [item.key for item in self.list(ref, folder + "/" if folder else "", limit=1000)] if key else []
        close = get_close_matches(key, near, n=1, cutoff=0.5)
        return ObjectNotFound(
            f"no object {key!r} at {ref!r}", fix=f"did you mean {close[0]!r}?" if close else "list what is there"
        )

    @guarded
    def list(self, ref: str, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[ObjectStat]:
        """Yield objects in byte order, from the state at the time of the call."""
        head, start = prefix.encode(errors="replace"), after.encode(errors="replace")
        with self._engine.db.read() as con:
            branch = self._history.staged_branch(con, ref)
            staged = read_staging(con, branch.token, head)[0] if branch else {}
            commit = branch.head if branch else self._history.resolve(con, ref)
            digest = self._history.node(con, commit).tree
        tree = self._engine.trees.load(digest)
        over = [(key, value) for key, value in staged.items() if key > start and key.startswith(head)]
        items = islice(overlay(self._engine.trees.items(tree, head, start), over), limit)
        address = self._engine.objects.path
        return guarded_items((unpack_object(key, value, address(value[:32])) for key, value in items), self.root)

    @guarded
    def location_of(self, ref: str, prefix: str) -> Location:
        """Give a read-only folder with the objects under `prefix`."""
        commit = self.resolve(ref)
        return Location(str(self._engine.views.folder(commit, self._tree(commit), prefix)))

    @writing
    def workspace(self, branch: str, prefix: str) -> Location:
        """Give a writable folder that starts with the branch's content under `prefix`."""
        head = check_prefix(prefix)
        self._writable(branch)
        with self._engine.locked(branch) as found, self._engine.turns.working():
            return Location(str(self._engine.workspaces.open(found, head)), writable=True)

    # -- history ------------------------------------------------------------------------------------------------------
    @guarded
    def uncommitted(self, branch: str, prefix: str = "") -> Iterator[Change]:
        """Yield what a commit of `branch` would change."""
        with self._engine.locked(branch) as found:
            unsaved = self._engine.unsaved(self._engine.pending(found))
        return iter([change for change in unsaved if change.key.startswith(prefix)])

    @writing
    def commit(
        self, branch: str, message: str, metadata: Metadata = NO_METADATA, *, allow_empty: bool = False
    ) -> CommitId:
        """Turn what is pending into one commit; when it returns it survives a power cut."""
        entries = check_metadata(metadata)
        return commits.commit(self._engine, branch, message, entries, self._admit(branch), allow_empty=allow_empty)

    @writing
    def reset(self, branch: str) -> None:
        """Drop what is pending on `branch`."""
        engine = self._engine
        self._writable(branch)
        with engine.locked(branch) as found, engine.turns.working():
            pending = engine.pending(found)
            if pending.state:
                engine.workspaces.restore(found, pending.state)
            with engine.db.write() as con:
                check_unprotected(con, branch)
                unstage(con, found.token)
                if pending.state:
                    save_state(con, found.token, State(found.head, pending.state.prefixes, {}))
        if pending.staged:
            engine.tidy()

    @writing
    def reset_to(self, branch: str, ref: str) -> CommitId:
        """Move the head of a clean branch to the commit behind `ref`."""
        return commits.reset_to(self._engine, branch, ref)

    @guarded
    def log(
        self,
        ref: str,
        *,
        limit: int | None = None,
        first_parent: bool = False,
        objects: Collection[str] = (),
        prefixes: Collection[str] = (),
    ) -> Iterator[Commit]:
        """Yield commits, newest first; with paths, those that differ from their first parent at one of them."""
        paths = check_paths(objects, prefixes)
        found = self._history.log(self.resolve(ref), first_parent=first_parent)
        if paths:
            found = filter(touches(self._engine, *paths), found)
        return guarded_items(islice(found, limit), self.root)

    @guarded
    def diff(self, left: str, right: str, *, three_dot: bool = False, prefix: str = "") -> Iterator[Change]:
        """Yield changes from `left` to `right`, sorted by key."""
        with self._engine.db.read() as con:
            ours, theirs = self._history.resolve(con, left), self._history.resolve(con, right)
            base = self._history.merge_base(con, ours, theirs) if three_dot else None
        head = prefix.encode(errors="replace")
        if not three_dot:
            found = self._two_dot(self._tree(ours), self._tree(theirs), head)
        else:
            start = self._engine.trees.load(base.tree) if base else self._engine.trees.empty()
            found = self._three_dot(start, self._tree(ours), self._tree(theirs), head)
        return guarded_items(found, self.root)

    def _two_dot(self, left: Tree, right: Tree, prefix: bytes) -> Iterator[Change]:
        for key, before, after in self._engine.trees.delta(left, right, prefix):
            yield Change(key.decode(), kind_of(before, after))

    def _three_dot(self, base: Tree, ours: Tree, theirs: Tree, prefix: bytes) -> Iterator[Change]:
        left = changes(self._engine.trees, base, ours)
        for key, before, after in self._engine.trees.delta(base, theirs, prefix):
            if key not in left:
                yield Change(key.decode(), kind_of(before, after))
            elif left[key] != after:
                yield Change(key.decode(), "conflict")

    def _tree(self, commit: CommitId) -> Tree:
        return self._engine.tree_of(commit)

    @writing
    def merge(
        self,
        source: str,
        dest: str,
        message: str,
        metadata: Metadata = NO_METADATA,
        *,
        strategy: Strategy | None = None,
        squash: bool = False,
        allow_empty: bool = False,
        expect_head: CommitId | None = None,
        contested: Collection[str] = (),
    ) -> CommitId:
        """Merge `source` into branch `dest` by whole units."""
        if strategy is not None and strategy not in get_args(Strategy):
            raise BadInput(f"strategy {strategy!r} is unknown", fix="use 'source-wins', 'dest-wins' or none")
        entries = check_metadata(metadata)

        def admit(head: CommitId, theirs: CommitId) -> None:
            if admission.watched(self, dest, head, theirs):
                admission.check_merge(self, head, theirs, entries, squash=squash)

        return commits.merge(
            self._engine,
            Rules(dest, source, strategy, tuple(contested)),
            message,
            entries,
            admit,
            squash=squash,
            allow_empty=allow_empty,
            expect_head=expect_head,
        )

    @writing
    def revert(
        self, branch: str, ref: str, *, parent: int | None = None, message: str = "", metadata: Metadata = NO_METADATA
    ) -> CommitId:
        """Undo commit `ref` on `branch` by a new commit."""
        return commits.revert(self._engine, branch, ref, parent, message, check_metadata(metadata))

    @writing
    def cherry_pick(
        self,
        branch: str,
        ref: str,
        *,
        parent: int | None = None,
        message: str = "",
        metadata: Metadata | None = None,
    ) -> CommitId:
        """Bring what commit `ref` changed into `branch` by a new commit."""
        given = None if metadata is None else check_metadata(metadata)
        return commits.cherry_pick(self._engine, branch, ref, parent, message, given, self._admit(branch))

    def _admit(self, branch: str) -> commits.Admit:
        return partial(admission.check_commit, self, branch)


def _key_bytes(key: str) -> bytes | None:
    """Give the bytes of a key; None for text that no key can be."""
    try:
        return key.encode()
    except UnicodeEncodeError:
        return None
