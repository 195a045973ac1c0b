"""Garbage collection: removes what no branch, tag, session, view or grace period needs, beside readers and writers.

What is needed: every commit that can be reached from a branch, a tag, the lock or hidden branch of a session, the base
of a workspace, a live view, a head that a branch or tag gave up less than the grace period ago, or that was made less
than the grace period ago; the trees and objects of these commits; and whatever is staged. The rest goes, in this order:
commits, views that nobody uses, then manifests and objects.

Why nothing that is needed can go
---------------------------------
The danger is a writer that finds a content stored, so that it does not write it again, and a collector that removes it
before the writer's commit refers to it. Writers are never stopped. Instead:

1. *Commits first.* One transaction reads the refs again, decides, and removes the commits that nothing reaches. Whoever
   names a commit does so in a transaction of their own: before ours it makes the commit needed, after ours it finds
   none. Who had found it before ours and lands after ours (a merge of a bare commit id) is refused by `check_kept`. So
   from here on no removed commit can come back, and no content is needed because of one.
2. *Condemn.* Manifests and objects that no needed commit and no staged value holds are moved to the trash. From this
   moment the store does not hold them: who looks now, writes them again, or pulls them back (`Store.holds`).
3. *New turn.* We wait for all pieces of work (`Turns.working`) that began before: only these can have seen a condemned
   content in the store. When they have ended, what they refer to is in the database. Who began later has seen the
   store without the condemned, and pulls back what they need themselves.
4. *Look again.* What any commit made since then, or any staged value, refers to is put back.
5. *Remove.* The rest of the trash is deleted. Pulling back and deleting are each one operation on one name: if the
   deletion is first, the writer finds nothing and writes its own.

A reader never misses anything: what is condemned is still found in the trash, and what is deleted belongs to no commit
that can be named. A kill at any point leaves needless contents, or needed ones in the trash, where they are found and
from where the next opening puts them back; after a power cut the database, synced in step 1, may only know of less than
the files hold, never of more.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count

from lake.durable import point
from lake.engines.embedded.database import DEPARTED
from lake.engines.embedded.engine import COLLECTOR, Engine
from lake.engines.embedded.files import flocked
from lake.engines.embedded.marks import Marks, keys_of
from lake.engines.embedded.roots import MET, NOT_NEEDED, REASONS, Commits, read_roots
from lake.engines.embedded.store import Store
from lake.engines.embedded.views import View, count_links
from lake.errors import ConflictError, CorruptObject
from lake.garbage import Collected, Share
from lake.repository import CommitId, Progress

GRACE_S = 14 * 86_400.0
WAIT_S = 3600.0  # how long pieces of work that began before may take
STAGED = "staged"
FORGOTTEN, UNREFERENCED, VIEWS, LEFTOVERS = "unreachable commits", "unreferenced", "unused views", "leftovers"
_EACH = 1000  # names between two reports of progress


def collect(
    engine: Engine,
    *,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    wait_s: float = WAIT_S,
    progress: Progress = lambda step, done, total: None,
) -> Collected:
    """Remove what is not needed; see the module for what that is and why it is safe.

    Parameters
    ----------
    grace_s : float
        Seconds for which history stays after its branch or tag has gone, and views after they were last asked for.
    dry_run : bool
        Only look.
    wait_s : float
        Seconds to wait for pieces of writing that began before contents were condemned.
    progress : callable
        Called with a step, how much of it is done, and how much there is.

    Raises
    ------
    ConflictError
        Another collector works, or writing that began before goes on for longer than `wait_s`; no content was removed.
    CorruptObject
        A manifest that is needed is damaged, so that nobody can tell what it holds; nothing was removed.
    """
    with flocked(engine.root / "locks" / COLLECTOR, wait=False) as alone:
        if not alone:
            raise ConflictError(f"another collector is at work on {engine.root}", fix="wait for it")
        engine.put_back()
        return _Collection(engine, time.time() - grace_s, progress).run(dry_run=dry_run, wait_s=wait_s)


Look = Callable[[str], tuple[int, bool] | None]  # name -> size, and whether the bytes go with it; None if it is gone


class _Collection:
    """One run of the collector, which holds the collector's lock."""

    def __init__(self, engine: Engine, since: float, progress: Progress) -> None:
        self._engine = engine
        self._since = since
        self._now = time.time()
        self._progress = progress
        self._stores = (engine.manifests, engine.objects)
        self._commits = Commits()
        self._reasons = bytearray()
        self._marks = Marks(engine.manifests)
        self._gone = Marks(engine.manifests)  # what the commits hold that are not needed
        self._removed = {FORGOTTEN: Share(), UNREFERENCED: Share()}
        self._freed = 0

    def run(self, *, dry_run: bool, wait_s: float) -> Collected:
        views = self._engine.views.survey(self._since)
        stale = [view for view in views if not view.live]
        live = {view.commit for view in views if view.live}
        kept = self._mark(live)
        before = _leftovers(self._engine)
        if dry_run:
            forgotten = self._reasons.count(NOT_NEEDED)
            shown, left = self._look(stale), Share()
        else:
            forgotten = self._forget(live)
            shown = self._remove_views(stale)
            self._remove(wait_s)
            self._engine.sweep()
            left = _leftovers(self._engine)
        leftovers = Share(before.count - left.count, before.size - left.size)
        removed = {**self._removed, VIEWS: shown, LEFTOVERS: leftovers}
        freed = self._freed + leftovers.size
        return Collected(dry_run, len(self._commits) - forgotten, forgotten, kept, removed, freed)

    # -- what is needed -----------------------------------------------------------------------------------------------
    def _mark(self, live: set[CommitId]) -> dict[str, Share]:
        """Mark what is needed; gives it by reason."""
        with self._engine.db.read() as con:
            self._commits.read(con)
            roots = read_roots(con, self._since, live)
            staged = self._engine.staged_values(con)
        self._reasons = self._commits.reasons(roots, self._since, self._now)
        ticks = count(1)
        kept: dict[str, Share] = {}

        def tick() -> None:
            self._progress("marking", next(ticks), len(self._commits))

        for number, reason in enumerate(REASONS):
            kept[reason] = self._marks.add_trees(self._trees_with(number), tick)
        kept[STAGED] = self._marks.add_values(staged)
        with suppress(CorruptObject):  # only their objects are then counted as unreferenced
            self._gone.add_trees(self._trees_with(NOT_NEEDED), tick)
        return kept

    def _trees_with(self, reason: int) -> Iterator[bytes]:
        return (tree for tree, found in zip(self._commits.trees, self._reasons, strict=True) if found == reason)

    def _forget(self, live: set[CommitId]) -> int:
        """Remove the commits that are not needed, as seen under the lock of the database; gives their number."""
        known, before = len(self._commits), self._reasons
        with self._engine.db.write() as con:
            self._commits.read(con)
            roots = dict(read_roots(con, self._since, live))
            # What was made while we marked stays for this time, whoever refers to it.
            roots["grace"] = [*roots["grace"], *self._commits.ids[known:]]
            self._reasons = self._commits.reasons(roots, self._since, self._now)
            forgotten = [
                (commit,)
                for commit, reason in zip(self._commits.ids, self._reasons, strict=True)
                if reason == NOT_NEEDED
            ]
            con.executemany("DELETE FROM commits WHERE id = ?", forgotten)
            con.execute(DEPARTED)
            undated = self._commits.undated(self._reasons, roots[MET], self._now)
            con.execute("DELETE FROM departed WHERE since <= ?", (self._since,))
            # What a wrong clock dated in the future would never grow old.
            con.execute("UPDATE departed SET since = ? WHERE since > ?", (self._now, self._now))
            con.executemany("INSERT INTO departed VALUES (?, ?)", [(commit, self._now) for commit in undated])
            point("gc.before-forgotten")
        point("gc.commits-forgotten")
        self._engine.history.forget(commit for (commit,) in forgotten)
        before = before.ljust(len(self._commits), bytes([NOT_NEEDED]))
        self._marks.add_trees(
            tree
            for tree, now, then in zip(self._commits.trees, self._reasons, before, strict=True)
            if then == NOT_NEEDED != now
        )
        return len(forgotten)

    # -- what is not --------------------------------------------------------------------------------------------------
    def _unneeded(self, store: Store) -> list[str]:
        """List what a store holds and nobody needs."""
        found: list[str] = []
        shards = sorted(os.listdir(store.root))
        for done, shard in enumerate(shards, 1):
            names = [shard + rest for rest in os.listdir(store.root / shard) if len(rest) == 62]
            needed = _marked(self._marks, store, self._stores, names)
            found += [name for name, is_needed in zip(names, needed, strict=True) if not is_needed]
            self._progress(f"looking through {store.root.name}", done, len(shards))
        return found

    def _count(self, store: Store, names: Sequence[str], look: Look) -> None:
        """Count what goes, by why it is not needed."""
        was_held = _marked(self._gone, store, self._stores, names)
        for done, (name, held) in enumerate(zip(names, was_held, strict=True), 1):
            if (found := look(name)) is not None:
                self._removed[FORGOTTEN if held else UNREFERENCED] += Share(1, found[0])
                self._freed += found[0] if found[1] else 0
            if done % _EACH == 0 or done == len(names):
                self._progress(f"removing {store.root.name}", done, len(names))

    def _look(self, stale: Sequence[View]) -> Share:
        """Count what would go."""
        links = count_links(view.path for view in stale)
        self._freed += sum(stat.st_size for stat, here in links.values() if stat.st_nlink == here)
        for store in self._stores:

            def look(name: str, store: Store = store) -> tuple[int, bool] | None:
                try:
                    stat = os.lstat(store.path(bytes.fromhex(name)))
                except FileNotFoundError:
                    return None
                _, in_views = links.get((stat.st_dev, stat.st_ino), (stat, 0))
                return stat.st_size, stat.st_nlink == in_views + 1

            self._count(store, self._unneeded(store), look)
        return Share(len(stale), sum(stat.st_size * here for stat, here in links.values()))

    def _remove_views(self, stale: Sequence[View]) -> Share:
        shown = Share()
        for view in stale:
            if (found := self._engine.views.remove(view, self._since)) is not None:
                shown += Share(1, found[0])
                self._freed += found[1]
        return shown

    def _remove(self, wait_s: float) -> None:
        """Condemn, wait for who may have seen it in the store, put back what they refer to, remove the rest."""
        try:
            for store in self._stores:
                store.trash.condemn(self._unneeded(store))
                point("gc.condemned")
            if not self._engine.turns.begin_new(wait_s):
                raise ConflictError(
                    f"a put, commit or merge on {self._engine.root} has gone on for more than {wait_s:g} s; no object "
                    "was removed",
                    fix="run it again when that is done",
                )
            point("gc.alone")
            self._look_again()
        except BaseException:
            self._engine.put_back()
            raise
        for store in self._stores:
            self._count(store, store.trash.names(), store.trash.remove)
            point("gc.removed")
        self._engine.put_back()

    def _look_again(self) -> None:
        """Put back what is needed after all."""
        known = len(self._commits)
        with self._engine.db.read() as con:
            self._commits.read(con)
            staged = self._engine.staged_values(con)
        self._marks.add_trees(self._commits.trees[known:])
        self._marks.add_values(staged)
        for store in self._stores:
            names = store.trash.names()
            needed = _marked(self._marks, store, self._stores, names)
            store.trash.put_back(name for name, is_needed in zip(names, needed, strict=True) if is_needed)
            point("gc.put-back")


def _marked(marks: Marks, store: Store, stores: tuple[Store, Store], names: Sequence[str]) -> Sequence[bool]:
    """Tell which names of a store are marked."""
    if store is stores[0]:
        return [bytes.fromhex(name) in marks.manifests for name in names]
    return [bool(held) for held in marks.objects.holds(keys_of(names))]


def _leftovers(engine: Engine) -> Share:
    """Measure what deleted branches and unfinished puts have left, which `Engine.sweep` removes."""
    staged = {digest.hex() for digest in engine.staged_digests()}
    with engine.db.read() as con:
        tokens = {token for (token,) in con.execute("SELECT token FROM branches")}
    paths = [path for path in engine.incoming.root.glob("*/*") if path.name not in staged]
    folders = [folder for folder in engine.workspaces.root.iterdir() if folder.name not in tokens]
    links = count_links(folders)
    sizes = [stat.st_size for stat, here in links.values() if stat.st_nlink == here]
    for path in paths:
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return Share(len(sizes), sum(sizes))
