"""A repository and the model, side by side: the same calls, the same answers, and what must hold after each of them."""

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant, multiple

from lake.errors import ConflictError, LakeError
from lake.replay import COMMITTER, ORIGIN
from lake.repository import CommitId, Repository
from lake.testing.draws import BRANCHES
from lake.testing.memory import MemoryRepository

PRIVATE = {ORIGIN, COMMITTER, "session"}

Opener = Callable[[], Repository]
Reopener = Callable[[Repository], Repository]
Collector = Callable[[Repository], object]


class Sides(RuleBasedStateMachine):
    """Two repositories in step, without the rules that move them.

    Commit ids differ between the two, so a commit is spoken of by its number in the order of making.
    """

    def __init__(
        self,
        opener: Opener,
        reopener: Reopener | None = None,
        collector: Collector | None = None,
        *,
        salted: bool = False,
        folders: bool = False,
        report: Callable[[int], object] = lambda steps: None,
    ) -> None:
        super().__init__()
        self.report = report
        self.steps = -1  # the invariants are looked at before the first step too
        self.salted = salted
        self.folders = folders
        self.model = MemoryRepository()
        self.repo = opener()
        self.reopener = reopener
        self.collector = collector
        self.made: list[tuple[CommitId, CommitId]] = []
        self.collected: set[tuple[CommitId, CommitId]] = set()
        self.turn = 0
        # A key both put and written in a workspace is a conflict that the model does not know: never both.
        self.put: dict[str, set[str]] = {name: set() for name in BRANCHES}
        self.written: dict[str, set[str]] = {name: set() for name in BRANCHES}

    def _both(self, call: Callable[[Repository, int], Any]) -> tuple[Any, Any] | None:
        """Do the same on both sides; the two results, or None if both raised the same error."""
        results = [self._outcome(call, side) for side in (0, 1)]
        expected, found = results
        if isinstance(expected, LakeError) or isinstance(found, LakeError):
            assert type(expected) is type(found), f"the model: {expected!r}; the engine: {found!r}"
        if not isinstance(expected, LakeError):
            return expected, found
        if isinstance(expected, ConflictError):
            assert (expected.units, expected.keys) == (found.units, found.keys)
        return None

    def _outcome(self, call: Callable[[Repository, int], Any], side: int) -> Any:
        try:
            result = call(self._sides()[side], side)
            return list(result) if isinstance(result, Iterator) else result
        except LakeError as error:
            return error

    def _sides(self) -> tuple[Repository, Repository]:
        return self.model, self.repo

    def _committed(self, pair: tuple[Any, Any] | None) -> Any:
        """Note a new commit: equal parents, message and tree on both sides."""
        if pair is None:
            return multiple()
        if pair in self.made:
            return multiple()
        expected, found = (repo.commit_info(commit) for repo, commit in zip(self._sides(), pair, strict=True))
        assert expected.message == found.message
        # What speaks of ids and users differs between the sides.
        assert [(name, name in PRIVATE or value) for name, value in sorted(expected.metadata.items())] == [
            (name, name in PRIVATE or value) for name, value in sorted(found.metadata.items())
        ]
        numbers = [tuple(made[side] for made in self.made) for side in (0, 1)]
        assert [numbers[0].index(parent) for parent in expected.parents] == [
            numbers[1].index(parent) for parent in found.parents
        ]
        return self._noted(pair)

    def _noted(self, pair: tuple[CommitId, CommitId]) -> int:
        self.made.append(pair)
        self._same_tree(*pair)
        return len(self.made) - 1

    def _same_tree(self, expected: str, found: str) -> None:
        sides = [
            [
                (entry.key, entry.size, entry.content_type, tuple(entry.metadata.items()), repo.get(ref, entry.key))
                for entry in repo.list(ref)
            ]
            for repo, ref in zip(self._sides(), (expected, found), strict=True)
        ]
        assert sides[0] == sides[1], f"{found} does not read as it was written"

    def _named(self, ref: str | int, side: int) -> str:
        """Say a commit by its id on this side; anything else by name."""
        return self.made[ref][side] if isinstance(ref, int) else ref

    def _reopen(self) -> None:
        if self.reopener is not None:
            self.repo = self.reopener(self.repo)

    # -- what must always hold ----------------------------------------------------------------------------------
    @invariant()
    def refs_agree(self) -> None:
        self.steps += 1
        for expected, found in ((self.model.branches(), self.repo.branches()), (self.model.tags(), self.repo.tags())):
            assert list(expected) == list(found)
            assert not self.made or all((expected[name], found[name]) in self.made for name in expected)

    @invariant()
    def an_old_commit_reads_as_ever(self) -> None:
        if self.made:
            self.turn = (self.turn + 1) % len(self.made)
            if self.made[self.turn] not in self.collected:
                self._same_tree(*self.made[self.turn])

    def teardown(self) -> None:
        """Read every commit once more, through a fresh handle where there is one."""
        self._reopen()
        for pair in self.made:
            if pair not in self.collected:
                self._same_tree(*pair)
        self.repo.close()
        self.report(self.steps)
