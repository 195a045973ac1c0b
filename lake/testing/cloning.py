"""A history worth cloning, what its clone must hold, and random histories that are cloned now and then."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis.stateful import rule, run_state_machine_as_test

import lake
from lake import copying
from lake.clone import Cloned, clone
from lake.repository import Commit, CommitId, Repository
from lake.testing.machine import RepositoryMachine, machine_settings
from lake.testing.trees import save

#: A program that clones, for tests that kill it.
CLONE = "import sys, lake; from lake.clone import clone; print('ready'); clone(lake.open(sys.argv[1]), sys.argv[2])"
ADDED = {"cloned_from", "cloned_before", "cloned_time"}


def build(repo: Repository) -> Repository:
    """Write a history with a merge, a revert, tags, a session, equal contents, types and metadata."""
    save(repo, "main", {"a": b"1", "same": b"1", "tables/t/0": b"t"}, "first", {"who": "ann"})
    repo.create_branch("side", "main")
    repo.put("side", "typed", b"x", content_type="text/plain", metadata={"Camera": "left"})
    many = {f"volumes/v/{n:03}": b"%d" % n for n in range(40)}
    save(repo, "side", {**many, "a": None}, "side")
    save(repo, "main", {"b": b"2"}, "on main")
    merged = repo.merge("side", "main", "merge", {"release": "r1"})
    repo.create_tag("r1", merged)
    repo.revert("main", merged, parent=1, metadata={"rollback_of": merged})
    repo.create_branch("ops", "main")
    with repo.session("ops", owner="tester") as session:
        session.put("log", b"done")
        session.commit("recorded", {"qc": merged})
    repo.protect("main", "ops")
    return repo


def content_of(repo: Repository, commit: CommitId) -> list[tuple[object, ...]]:
    """Read a whole tree: key, size, type, metadata, bytes."""
    return [
        (stat.key, stat.size, stat.content_type, dict(stat.metadata), repo.get(commit, stat.key))
        for stat in repo.list(commit)
    ]


def all_commits(repo: Repository) -> dict[CommitId, Commit]:
    """Read every commit behind branches and tags."""
    heads = {*repo.branches().values(), *repo.tags().values()}
    return {commit.id: commit for head in heads for commit in repo.log(head)}


def check_resumed_within_a_commit(
    source: Repository, place: str | Path, patch: pytest.MonkeyPatch, then: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Interrupt a clone after four of six objects of a new commit, change `then` in it; only what is left is sent."""
    patch.setattr(copying, "_BATCH", 2)
    made = {f"many/{n}": os.urandom(5) for n in range(6)}
    head = source.resolve("side")
    save(source, "side", made, "many")

    def stop(what: str, done: int, total: int) -> None:
        if (what, done, total) == ("objects", 4, 6):
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        clone(source, place, progress=stop)
        raise AssertionError("it was not interrupted")
    if then:
        source.reset_to("side", head)
        save(source, "side", {**made, **then}, "many otherwise")
    left = clone(source, place)
    assert left.commits == 1
    assert left.contents == 2 + len(then), "what was sent already is not sent again"


def check_clone(source: Repository, dest: Repository, refused: Mapping[str, str], *, within: timedelta) -> None:
    """Assert that `dest` has all that `source` has: refs, the graph of commits, what they say, and their trees."""
    by_origin = {commit.metadata.get("cloned_from"): commit for commit in all_commits(dest).values()}
    for ours, theirs in ((source.branches(), dest.branches()), (source.tags(), dest.tags())):
        names = {name for name in ours if not name.startswith(("session-", "lock.")) and name not in refused}
        assert names <= set(theirs)
        for name in names:
            assert dest.commit_info(theirs[name]).metadata["cloned_from"] == ours[name], name
            for commit in source.log(ours[name]):
                check_commit(source, dest, commit, by_origin, within)
    assert set(source.protected()) <= set(dest.protected())
    assert not [name for name in dest.branches() if name.startswith("session-")]
    assert not [name for name in dest.tags() if name.startswith("lock.")]


def check_commit(
    source: Repository,
    dest: Repository,
    commit: Commit,
    by_origin: Mapping[str | None, Commit],
    within: timedelta,
) -> None:
    """Assert that the clone of one commit says the same, has the clones of its parents, and the same tree."""
    copy = by_origin[commit.id]
    assert copy.parents == tuple(by_origin[parent].id for parent in commit.parents)
    assert (copy.message, copy.committer) == (commit.message, commit.committer)
    assert abs(commit.created - copy.created) < max(within, timedelta(microseconds=1))
    kept = {name: value for name, value in commit.metadata.items() if name not in ADDED}
    assert {name: value for name, value in copy.metadata.items() if name not in ADDED} == kept
    assert dest.resolve(commit.id) == copy.id, "the old id leads to the clone"
    assert content_of(dest, copy.id) == content_of(source, commit.id)


class CloningMachine(RepositoryMachine):
    """Random histories, cloned after any step and again after later ones."""

    place: str | Path
    within: timedelta

    def _clone(self) -> Cloned:
        cloned = clone(self.repo, self.place)
        dest = lake.open(self.place)
        try:
            check_clone(self.repo, dest, cloned.refused, within=self.within)
        finally:
            dest.close()
        return cloned

    @rule()
    def clone_now(self) -> None:
        self._clone()

    def teardown(self) -> None:
        """Clone what has become of it, and once more: then nothing is new."""
        if self.made:
            self._clone()
            again = self._clone()
            assert (again.commits, again.contents, again.made, again.moved, again.tags) == (0, 0, (), (), ())
        super().teardown()


def run_cloning_machine(
    make: Callable[[], tuple[Repository, str | Path]], *, examples: int, steps: int, within: timedelta = timedelta(0)
) -> None:
    """Run random histories against fresh repositories; `make` gives one, and where its clone shall be."""

    def machine() -> CloningMachine:
        repo, place = make()
        made = CloningMachine(lambda: repo)
        made.place, made.within = place, within
        return made

    run_state_machine_as_test(machine, settings=machine_settings(examples, steps, shrink=False))  # type: ignore[arg-type]
