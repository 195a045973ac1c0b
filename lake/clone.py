"""Copies a repository to another place, on the same or on another engine, with its history.

All commits behind branches and tags are rebuilt, parents first, merges as merges: the same tree, message, metadata,
committer and time (lakeFS keeps seconds; `cloned_time` then holds the rest). What differs is the id, and that each
carries `cloned_from`; see `lake.clones`. Then branches, tags and protection follow. What is staged, hidden branches of
sessions and their locks are not copied. What a server cannot rebuild so is asked before anything is copied, and told in
the result: see `lake.rebuild.PlainRebuilder`. A clone of such a clone, where commits can be rebuilt as they were, has
the parents, committers and times again; the server's own first commit stays below the first one.

::

    commits, one by one, on work branches `session-clone-*`   killed: the next run finds them by `cloned_from`,
                                                              and what was sent for the one that was not finished
    -> heads compared with the source by digest -> branches -> tags -> protection -> work branches removed

Until the comparison has passed no branch of the destination has moved. A second run copies what is new; it deletes
nothing, and leaves alone (and names) a branch that has moved on by itself at the destination.
"""

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import lake
from lake.clone_plan import LANE, Plan, make_plan, public_heads
from lake.clones import Importer, Importing, Move, PlainImporter
from lake.copying import Copier, Count, compare, same_place, stats_of
from lake.durable import point
from lake.errors import BadInput, ConflictError, RepositoryNotFound
from lake.locks import Lock, read_lock, remove_branch
from lake.names import MAIN
from lake.rebuild import PlainRebuilder, Rebuilder, changes_of
from lake.repository import CommitId, Progress, Repository
from lake.session import Session

WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Cloned:
    """What was done, or with `dry_run` what would be.

    Parameters
    ----------
    commits, objects : int
        Commits rebuilt, and the changes of objects in them.
    contents, bytes : int
        Contents sent and their bytes: each is sent once. A dry run does not know what the destination holds already.
    made, moved, tags, rules : tuple of str
        Branches made and moved forward, tags made, protection patterns added.
    gone : tuple of str
        Branches and tags on cloned commits that the source has not, or no longer; kept.
    refused : mapping of name to reason
        Branches and tags left alone.
    staged : tuple of str
        Source branches with staged changes, which were not copied.
    compared : int
        Objects compared at the end.
    comparison : str
        "recorded": by the checksums both engines recorded, and by reading the source where these are of different
        kinds; "read": by reading both sides.
    plain : str
        Why the destination cannot be given commits as they are; empty if it can, if nothing is new, and in a dry run
        into a repository that is not there yet. Committer and time are then in the metadata of each.
    lost : mapping of commit id to reason
        Merges of the source whose clone has the first parent alone.
    """

    source: str
    destination: str
    commits: int
    objects: int
    contents: int
    bytes: int
    made: tuple[str, ...]
    moved: tuple[str, ...]
    tags: tuple[str, ...]
    rules: tuple[str, ...]
    gone: tuple[str, ...]
    refused: dict[str, str]
    staged: tuple[str, ...]
    compared: int
    comparison: str
    plain: str
    lost: dict[CommitId, str]
    dry_run: bool

    def to_json(self) -> dict[str, object]:
        """Give what `emlake clone --json` prints."""
        return asdict(self)


def clone(
    source: Repository,
    destination: str | Path,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    reread: bool = False,
) -> Cloned:
    """Clone `source` into the repository at `destination`, which is made if there is none.

    Parameters
    ----------
    progress : callable
        Takes what is counted ("commits", "objects" of the present commit, "compared" heads), how many are done and how
        many there are.
    dry_run : bool
        Change nothing; say what would be done.
    reread : bool
        Compare by reading every object of the new heads on both sides, instead of by recorded checksums.

    Raises
    ------
    ConflictError
        The destination is neither empty nor an earlier clone of `source`, or somebody writes to it. It is unchanged.
    CorruptObject
        An object does not have the checksum recorded for it. What was copied is kept, no branch has moved.
    """
    where = str(destination)
    dest = _open(where)
    if dest is not None and same_place(dest.location, source.location):
        raise BadInput(f"{where} is the source itself", fix="give another destination")
    if dest is None and _is_within(where, source):
        raise BadInput(f"{where} is inside the source, {source.location}", fix="give a folder outside it")
    try:
        plan = make_plan(source, dest)
        owner = f"clone of {source.location}"
        if dry_run or (plan.empty and (dest is None or _left(dest, owner) is None)):
            plain = "" if dest is None or not plan.todo else _plain(_importer(dest))
            foreseen = _foresee(source, plan)
            return _result(source, where, plan, foreseen, 0, plain, {}, reread=reread, dry_run=dry_run)
        if dest is None:
            dest = lake.create(where)
            plan = make_plan(source, dest)
        # The lock of main keeps out other clones, publications and rollbacks.
        with _lock(dest, owner):
            if public_heads(dest) != plan.heads:
                raise ConflictError(f"{where} moved just now", fix="run the clone again")
            importer = _importer(dest)
            work = _Work(source, dest, importer, plan, progress or (lambda what, done, total: None))
            compared = work.run(reread=reread)
        count, plain = work.copier.total, _plain(importer)
        return _result(source, where, plan, count, compared, plain, work.lost, reread=reread, dry_run=False)
    finally:
        if dest is not None:
            dest.close()


def _is_within(where: str, source: Repository) -> bool:
    """Tell whether a folder to be made would be a part of the source's own."""
    if any(place.startswith(lake.SERVER_SCHEME) for place in (where, source.location)):
        return False
    return Path(where).resolve().is_relative_to(Path(source.location).resolve())


def _open(where: str) -> Repository | None:
    try:
        return lake.open(where)
    except RepositoryNotFound:
        return None


def _left(dest: Repository, owner: str) -> Lock | None:
    """Give the lock that a killed clone has left."""
    left = read_lock(dest, MAIN)
    return left if left is not None and left.state == "dead" and left.process.owner == owner else None


def _lock(dest: Repository, owner: str) -> Session:
    if (left := _left(dest, owner)) is not None:
        # A killed clone leaves no work in its session, only a branch off a main that may have moved since.
        remove_branch(dest, left.work)
    return dest.session(MAIN, owner=owner, wait_s=WAIT_S, resume=False)


def _importer(dest: Repository) -> Importer:
    if not isinstance(dest, Importing):
        raise BadInput(f"{dest.location} cannot be cloned into", fix="use a folder or a lakeFS server")
    return dest.importer()


def _plain(importer: Importer) -> str:
    return importer.why if isinstance(importer, PlainImporter) else ""


def _result(
    source: Repository,
    where: str,
    plan: Plan,
    count: Count,
    compared: int,
    plain: str,
    lost: dict[CommitId, str],
    *,
    reread: bool,
    dry_run: bool,
) -> Cloned:
    return Cloned(
        source.location,
        where,
        len(plan.todo),
        count.objects,
        count.contents,
        count.bytes,
        tuple(move.branch for move in plan.moves if move.expected is None or move.branch in plan.blank),
        tuple(move.branch for move in plan.moves if move.expected is not None and move.branch not in plan.blank),
        tuple(plan.tags),
        plan.rules,
        plan.gone,
        plan.refused,
        plan.staged,
        compared,
        "read" if reread else "recorded",
        plain,
        lost,
        dry_run,
    )


def _foresee(source: Repository, plan: Plan) -> Count:
    """Count what rebuilding the commits of `plan` takes."""
    count = Count()
    seen: set[object] = set()
    for commit in plan.todo:
        _, changes = changes_of(source, plan.history, plan.history[commit])
        count.objects += len(changes)
        for stat in stats_of(source, commit, [change.key for change in changes if change.kind != "removed"]):
            if stat.identity not in seen:
                seen.add(stat.identity)
                count.contents += 1
                count.bytes += stat.size
    return count


class _Lanes:
    """Work branches of the destination; each stands at a clone, so that what a killed run made stays reachable."""

    def __init__(self, dest: Repository, clones: Iterable[CommitId]) -> None:
        self._dest = dest
        self._at: dict[CommitId, str] = {}
        # A name is never used again: a server remembers for seconds what a branch of that name held.
        self._run, self._count = secrets.token_hex(4), 0
        known = set(clones)
        #: What a run that was killed within a commit has sent for it: keys, and the branch where they are staged.
        self.parts: dict[str, str] = {}
        for name, head in dest.branches(LANE).items():
            if staged := list(dest.uncommitted(name)):
                self.parts |= {change.key: name for change in staged if change.kind != "removed"}
            elif head in known:
                self._at[head] = name
            else:
                # Killed within a commit on a server: go back to the last clone.
                last = next((commit.id for commit in dest.log(name, first_parent=True) if commit.id in known), None)
                if last is not None:
                    self.at(last)
                dest.delete_branch(name)

    def at(self, commit: CommitId) -> str:
        """Give a work branch that stands at `commit`."""
        if commit not in self._at:
            name = f"{LANE}{self._run}-{self._count}"
            self._count += 1
            self._dest.create_branch(name, commit)
            self._at[commit] = name
        return self._at[commit]

    def moved(self, before: CommitId, after: CommitId) -> None:
        """Note that the lane at `before` is at `after` now."""
        name = self._at.pop(before)
        if after in self._at:
            self._dest.delete_branch(name)
        else:
            self._at[after] = name

    def close(self) -> None:
        """Remove all: branches and tags hold the clones now."""
        for name in self._dest.branches(LANE):
            self._dest.delete_branch(name)


class _Work:
    """One run of a clone under the destination's lock."""

    def __init__(
        self, source: Repository, dest: Repository, importer: Importer, plan: Plan, progress: Progress
    ) -> None:
        self._source, self._dest, self._importer, self._plan = source, dest, importer, plan
        self._progress = progress
        self._lanes = _Lanes(dest, plan.known.values())
        self.copier = Copier(source, dest, importer, progress, self._lanes.parts)
        self._rebuilder = (
            PlainRebuilder(self.copier, importer, plan, self._lanes)
            if isinstance(importer, PlainImporter)
            else Rebuilder(self.copier, importer, plan, self._lanes)
        )
        self.lost: dict[CommitId, str] = {}

    def run(self, *, reread: bool) -> int:
        """Rebuild, compare, then let the refs show it; returns how many objects were compared."""
        plan = self._plan
        for done, commit in enumerate(plan.todo, 1):
            self._rebuilder.rebuild(plan.history[commit])
            point("clone.commit-rebuilt")
            self._progress("commits", done, len(plan.todo))
        compared = self._compare(reread=reread)
        point("clone.compared")
        # Main goes last: who sees it moved finds all else that it was cloned with.
        moves = sorted(plan.moves, key=lambda move: move.branch == MAIN)
        self._importer.move([Move(move.branch, plan.known[move.to], move.expected) for move in moves])
        point("clone.branches-moved")
        for name, target in plan.tags.items():
            self._dest.create_tag(name, plan.known[target])
        point("clone.tagged")
        if plan.rules:
            self._dest.protect(*plan.rules)
        point("clone.protected")
        self.lost = self._rebuilder.keep()
        self._lanes.close()
        return compared

    def _compare(self, *, reread: bool) -> int:
        plan = self._plan
        heads = dict.fromkeys([*(move.to for move in plan.moves), *plan.tags.values()])
        compared = 0
        for done, head in enumerate(heads, 1):
            compared += compare(self.copier, head, plan.known[head], reread=reread)
            self._progress("compared", done, len(heads))
        return compared
