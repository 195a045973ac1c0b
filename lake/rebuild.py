"""Rebuilds the commits of a clone at its destination, one by one: exactly, or as far as a server lets it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from lake.clone_plan import KEPT, Plan, public_heads
from lake.clones import PARENTS, CannotMerge, Importer, PlainImporter, ancestry, clone_of
from lake.copying import Copier
from lake.errors import StorageError
from lake.names import MAIN
from lake.repository import Change, Commit, CommitId, Repository
from lake.wording import counted

_MANY = 16  # changes from which it pays to look for another commit with the same tree
_EARLIER = "in an earlier run"


def changes_of(
    source: Repository, history: dict[CommitId, Commit], commit: Commit
) -> tuple[CommitId | None, list[Change]]:
    """Choose a commit to build upon, and say what differs from it; None stands for the empty tree.

    Usually the first parent. A revert has the tree of its grandparent, and a release that of its second parent: then
    nothing need be copied.
    """
    changes = first_changes(source, commit)
    if not commit.parents:
        return None, changes
    first = commit.parents[0]
    if len(changes) >= _MANY:
        for other in (*commit.parents[1:], *history[first].parents):
            if next(iter(source.diff(other, commit.id)), None) is None:
                return other, []
    return first, changes


def first_changes(source: Repository, commit: Commit) -> list[Change]:
    """Say what a commit differs in from its first parent, or from the empty tree."""
    if not commit.parents:
        return [Change(stat.key, "added") for stat in source.list(commit.id)]
    return list(source.diff(commit.parents[0], commit.id))


def agree(wanted: Sequence[Change], found: Sequence[Change]) -> bool:
    """Tell whether a clone differs from another by exactly what the source's commits differ by."""
    # A source that tells the same bytes apart by how they were sent calls changed what is not changed here.
    lost = set(wanted).difference(found)
    return set(found) <= set(wanted) and all(change.kind == "changed" for change in lost)


class Lanes(Protocol):
    """Work branches of the destination."""

    def at(self, commit: CommitId) -> str:
        """Give a work branch that stands at `commit`."""
        ...

    def moved(self, before: CommitId, after: CommitId) -> None:
        """Note that the lane at `before` is at `after` now."""
        ...


class Rebuilder:
    """Rebuilds commits exactly: whatever a commit's parents are, it is built upon the tree that is nearest to it."""

    def __init__(self, copier: Copier, importer: Importer, plan: Plan, lanes: Lanes) -> None:
        self._copier, self._importer, self._plan, self._lanes = copier, importer, plan, lanes
        self._source, self._dest = copier.source, copier.dest

    def rebuild(self, commit: Commit) -> None:
        """Rebuild one commit, whose parents are rebuilt already."""
        known = self._plan.known
        upon, changes = changes_of(self._source, self._plan.history, commit)
        base = self._empty() if upon is None else known[upon]
        lane = self._lanes.at(base)
        self._copier.stage(lane, commit.id, changes)
        parents = tuple(known[parent] for parent in commit.parents)
        made = self._importer.commit(lane, clone_of(commit, parents, self._importer.precision))
        self._settle(commit, base, made, changes)

    def keep(self) -> dict[CommitId, str]:
        """Keep what no branch or tag leads to; returns the source's merges that have lost parents here, and why."""
        return {}

    def _settle(self, commit: Commit, base: CommitId, made: CommitId, changes: Sequence[Change]) -> None:
        """Check the clone of a commit that was built upon `base`, and note it."""
        found = list(self._dest.diff(base, made))
        if not agree(changes, found):
            raise StorageError(
                f"the clone {made} of {commit.id} has {counted(len(found), 'change')}, not {len(changes)}",
                fix="run the clone again; if it says the same, report it with the versions of both engines",
            )
        self._copier.settle(made)
        self._lanes.moved(base, made)
        self._plan.known[commit.id] = made

    def _empty(self) -> CommitId:
        """Give a commit of the destination without objects: where its main began."""
        *_, first = self._dest.log(MAIN, first_parent=True)
        if next(iter(self._dest.list(first.id, limit=1)), None) is not None:
            raise StorageError(
                f"the first commit of {self._dest.location} holds objects", fix="clone into a new repository"
            )
        return first.id


class PlainRebuilder(Rebuilder):
    """Rebuilds commits on a server that makes them its own way: on top of their first parent's clone.

    The first commit stands on the destination's own, empty one. A merge that the server's merge cannot give is a commit
    on the first parent's clone alone. It names all its parents in its metadata, each of them that nothing else leads to
    gets a branch `clone-kept-*`, and the result of the clone tells it.
    """

    _importer: PlainImporter

    def __init__(self, copier: Copier, importer: PlainImporter, plan: Plan, lanes: Lanes) -> None:
        super().__init__(copier, importer, plan, lanes)
        self._lost: dict[CommitId, str] = {}

    def rebuild(self, commit: Commit) -> None:
        """Rebuild one commit, whose parents are rebuilt already."""
        known, source = self._plan.known, self._source
        base = known[commit.parents[0]] if commit.parents else self._empty()
        changes = first_changes(source, commit)
        lane = self._lanes.at(base)
        made = self._merge(lane, commit, changes) if len(commit.parents) > 1 else None
        if made is None:
            like = clone_of(commit, (base,), self._importer.precision)
            if commit.id in self._lost:
                like = replace(like, metadata={PARENTS: ",".join(commit.parents), **like.metadata})
            self._copier.stage(lane, commit.id, changes)
            made = self._importer.commit(lane, like)
        self._settle(commit, base, made, changes)

    def _merge(self, lane: str, commit: Commit, changes: Sequence[Change]) -> CommitId | None:
        """Let the server merge; None if that does not give the commit."""
        parents = tuple(self._plan.known[parent] for parent in commit.parents)
        second = list(self._source.diff(commit.parents[1], commit.id))

        def fits(tree: CommitId) -> bool:
            return all(
                agree(wanted, list(self._dest.diff(parent, tree)))
                for parent, wanted in zip(parents, (changes, second), strict=True)
            )

        try:
            # Where a tree differs from each parent in other keys only, these differences say all of it.
            if len(parents) > 2 or {change.key for change in changes} & {change.key for change in second}:
                raise CannotMerge("its tree holds what none of its parents holds")
            return self._importer.merge(lane, parents[1], clone_of(commit, parents, self._importer.precision), fits)
        except CannotMerge as error:
            self._lost[commit.id] = str(error)
            return None

    def keep(self) -> dict[CommitId, str]:
        """Give a branch to each lost parent that nothing leads to; say which merges have lost any, and why."""
        known, dest = self._plan.known, self._dest
        held = ancestry(dest, public_heads(dest).values())
        lost: dict[CommitId, str] = {}
        for commit in self._plan.history.values():
            clone = held.get(known.get(commit.id, ""))
            if clone is None or len(clone.parents) >= len(commit.parents):
                continue
            lost[commit.id] = self._lost.get(commit.id, _EARLIER)
            for parent in commit.parents[1:]:
                left = known.get(parent)
                if left is not None and left not in held:
                    dest.create_branch(f"{KEPT}{parent[:12]}", left)
                    held |= ancestry(dest, [left])
        return lost
