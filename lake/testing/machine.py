"""Any engine against the model: random histories, the same answer or the same error, and no old commit ever changes.

::

    def test_random_histories(tmp_path):
        run_machine(make_a_fresh_one, reopen=lambda repo: MyRepository.open(repo.location),
                    examples=40, steps=50)
"""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from lake.errors import LakeError, RefNotFound
from lake.replay import ORIGIN
from lake.repository import CommitId, Repository
from lake.testing.bases import one_merge_base
from lake.testing.draws import (
    BRANCHES,
    TAGS,
    branches,
    edits,
    files,
    keys,
    merge_options,
    paths,
    suffixes,
    values,
)
from lake.testing.sides import Collector, Opener, Reopener, Sides
from lake.testing.trees import kinds

PLAIN = "application/octet-stream"


class RepositoryMachine(Sides):
    """Drives a repository and the model through the same steps."""

    commits = Bundle("commits")
    undoable = st.one_of(commits, st.sampled_from(["main", "main", "one", "two", "main~1", "one~1", "two~2"]))

    # -- writing ------------------------------------------------------------------------------------------------
    @initialize(target=commits, edit=edits)
    def begin(self, edit: dict[str, bytes | None]) -> Any:
        self.made.append((self.model.resolve("main"), self.repo.resolve("main")))
        # No tree is ever empty: lakeFS has two ways to write the empty tree and takes them for different.
        saved = self.save("main", {**edit, "anchor": b""}, True)
        for name in BRANCHES[1:3]:
            self.branch(name, "main")
        self.tag(TAGS[0], saved)
        return multiple(0, saved)

    @rule(branch=branches, edit=edits, plain=st.booleans())
    def write(self, branch: str, edit: dict[str, bytes | None], plain: bool) -> None:
        content_type = "text/plain" if plain else "application/octet-stream"
        for key, data in edit.items():
            if key in self.written[branch]:
                continue
            self.put[branch].add(key)
            if data is None:
                self._both(lambda repo, _, key=key: repo.delete(branch, [key]))  # type: ignore[misc]
            else:
                put = {"key": key, "data": self._salt(key) + data, "content_type": content_type}
                self._both(lambda repo, _, put=put: repo.put(branch, **put).size)  # type: ignore[misc]

    def _salt(self, key: str) -> bytes:
        return key.encode() if self.salted else b""

    @rule(branch=branches, key=files, data=st.one_of(st.none(), values), wide=st.booleans())
    def write_a_file(self, branch: str, key: str, data: bytes | None, wide: bool) -> None:
        """Write or remove a file in the branch's folder; what the model, and a server, have instead is a put."""
        if not self.folders:
            self.write(branch, {key: data}, False)
        elif key not in self.put[branch]:
            parts = key.split("/")
            prefix = "/".join(parts[: 1 if wide else 2]) + "/"

            def act(repo: Repository, side: int) -> None:
                if side:
                    write_file(repo.workspace(branch, prefix).path / key.removeprefix(prefix), data)
                elif data is None:
                    repo.delete(branch, [key])
                else:
                    # A file with the bytes that the object has is no change: it keeps the object's content type.
                    there = [entry for entry in repo.list(f"{branch}@", key) if entry.key == key]
                    same = [entry.content_type for entry in there if repo.get(f"{branch}@", key) == data]
                    repo.put(branch, key, data, content_type=same[0] if same else PLAIN)

            if self._both(act) is not None:
                self.written[branch].add(key)

    def _settled(self, branch: str) -> None:
        self.put[branch], self.written[branch] = set(), set()

    @rule(target=commits, branch=branches, edit=edits, allow_empty=st.booleans())
    def save(self, branch: str, edit: dict[str, bytes | None], allow_empty: bool) -> Any:
        self.write(branch, edit, False)
        return self.commit(branch, allow_empty)

    @rule(target=commits, branch=branches, allow_empty=st.booleans())
    def commit(self, branch: str, allow_empty: bool) -> Any:
        metadata = {"n": str(len(self.made))}
        pair = self._both(lambda repo, _: repo.commit(branch, "commit", metadata, allow_empty=allow_empty))
        if pair is not None:
            self._settled(branch)
        return self._committed(pair)

    @rule(branch=branches)
    def reset(self, branch: str) -> None:
        if self._both(lambda repo, _: repo.reset(branch)) is not None:
            self._settled(branch)

    @rule(target=commits, branch=branches, edit=edits, land=st.booleans())
    def session(self, branch: str, edit: dict[str, bytes | None], land: bool) -> Any:
        def work(repo: Repository, _: int) -> CommitId | None:
            with repo.session(branch, owner="machine") as session:
                for key, data in edit.items():
                    session.delete([key]) if data is None else session.put(key, self._salt(key) + data)
                return session.commit("landed") if land else None

        pair = self._both(work)
        if pair is None or not land:
            return multiple()
        # A session's id is random, so the metadata differ: compare the rest.
        expected, found = (repo.commit_info(commit) for repo, commit in zip(self._sides(), pair, strict=True))
        assert (expected.message, list(expected.metadata)) == (found.message, list(found.metadata))
        assert (expected.parents[0], found.parents[0]) in self.made
        return self._noted(pair)

    # -- refs ---------------------------------------------------------------------------------------------------
    @rule(name=branches, source=st.one_of(branches, commits))
    def branch(self, name: str, source: str | int) -> None:
        self._both(lambda repo, side: repo.create_branch(name, self._named(source, side)) and name)

    @rule(name=st.sampled_from(BRANCHES[2:]))
    def delete_branch(self, name: str) -> None:
        if self._both(lambda repo, _: repo.delete_branch(name)) is not None:
            self._settled(name)

    @rule(name=st.sampled_from(TAGS), source=st.one_of(branches, commits))
    def tag(self, name: str, source: str | int) -> None:
        self._both(lambda repo, side: repo.create_tag(name, self._named(source, side)) and name)

    @rule(name=st.sampled_from(TAGS))
    def delete_tag(self, name: str) -> None:
        self._both(lambda repo, _: repo.delete_tag(name))

    # -- merging ------------------------------------------------------------------------------------------------
    @rule(
        target=commits,
        source=st.one_of(branches, st.sampled_from(TAGS), commits),
        dest=branches,
        options=merge_options,
        expect=st.sampled_from([None, "", "~1"]),
    )
    def merge_any(self, source: str | int, dest: str, options: dict[str, Any], expect: str | None) -> Any:
        return self.merge(source, dest, expect, **options)

    def merge(self, source: str | int, dest: str, expect: str | None = None, **options: Any) -> Any:
        if not self._one_merge_base(source, dest):
            return multiple()

        def merge(repo: Repository, side: int) -> CommitId:
            head = None if expect is None else repo.resolve(dest + expect)
            return repo.merge(self._named(source, side), dest, "merge", expect_head=head, **options)

        return self._committed(self._both(merge))

    @rule(
        target=commits,
        pair=st.permutations(BRANCHES[:3]),
        edits=st.tuples(edits, edits),
        options=merge_options,
        pick=st.booleans(),
    )
    def clash(
        self, pair: list[str], edits: tuple[dict[str, bytes | None], ...], options: dict[str, Any], pick: bool
    ) -> Any:
        """Change two branches and bring one into the other: the case that random steps seldom come to."""
        source, dest = pair[:2]
        saved = [self.save(branch, edit, True) for branch, edit in zip((source, dest), edits, strict=True)]
        met = self.cherry_pick(dest, source, None, True) if pick else self.merge(source, dest, **options)
        return multiple(*[n for n in (*saved, met) if isinstance(n, int)])

    def _one_merge_base(self, source: str | int, dest: str) -> bool:
        """Leave out the histories in which engines may choose different bases."""
        try:
            left, right = self.model.resolve(self._named(source, 0)), self.model.resolve(dest)
        except LakeError:
            return True
        return one_merge_base(self.model, left, right)

    @rule(target=commits, branch=branches, undone=undoable, parent=st.sampled_from([None, 1, 1, 2]))
    def revert(self, branch: str, undone: str | int, parent: int | None) -> Any:
        message = f"undo {undone}"
        return self._committed(
            self._both(
                lambda repo, side: repo.revert(branch, self._named(undone, side), parent=parent, message=message)
            )
        )

    @rule(target=commits, branch=branches, picked=undoable, parent=st.sampled_from([None, 1, 1, 2]), own=st.booleans())
    def cherry_pick(self, branch: str, picked: str | int, parent: int | None, own: bool) -> Any:
        options: dict[str, Any] = {"message": "pick", "metadata": {"n": str(len(self.made))}} if own else {}
        pair = self._both(
            lambda repo, side: repo.cherry_pick(branch, self._named(picked, side), parent=parent, **options)
        )
        if pair is not None:
            origins = [
                repo.commit_info(commit).metadata[ORIGIN] for repo, commit in zip(self._sides(), pair, strict=True)
            ]
            assert tuple(origins) in self.made
        return self._committed(pair)

    @rule(branch=branches, ref=undoable)
    def move(self, branch: str, ref: str | int) -> None:
        pair = self._both(lambda repo, side: repo.reset_to(branch, self._named(ref, side)))
        assert pair is None or pair in self.made

    # -- reading ------------------------------------------------------------------------------------------------
    @rule(base=st.one_of(branches, st.sampled_from(TAGS)), suffix=suffixes)
    def resolve(self, base: str, suffix: str) -> None:
        pair = self._both(lambda repo, _: repo.resolve(base + suffix))
        assert pair is None or pair in self.made

    @rule(left=st.one_of(branches, commits), right=st.one_of(branches, commits), three_dot=st.booleans())
    def diff(self, left: str | int, right: str | int, three_dot: bool) -> None:
        if three_dot and not self._one_merge_base(left, self._named(right, 0)):
            return
        pair = self._both(
            lambda repo, side: repo.diff(self._named(left, side), self._named(right, side), three_dot=three_dot)
        )
        assert pair is None or pair[0] == pair[1]

    @rule(branch=branches)
    def look_at_staging(self, branch: str) -> None:
        pair = self._both(lambda repo, _: list(kinds(repo.uncommitted(branch)).items()))
        if pair is not None:
            assert pair[0] == pair[1]
            if not self.written[branch]:  # what is written in a folder shows at commit
                self._same_tree(branch, branch)

    @rule(branch=branches, prefix=st.sampled_from(["", "a", "a/", "tables/"]), after=keys, limit=st.integers(1, 4))
    def look_at_a_part(self, branch: str, prefix: str, after: str, limit: int) -> None:
        if self.written[branch]:
            return
        pair = self._both(lambda repo, _: [entry.key for entry in repo.list(branch, prefix, after=after, limit=limit)])
        assert pair is None or pair[0] == pair[1]

    @rule(branch=branches, first_parent=st.booleans(), paths=paths)
    def look_at_the_log(self, branch: str, first_parent: bool, paths: dict[str, Any]) -> None:
        pair = self._both(
            lambda repo, _: [commit.id for commit in repo.log(branch, first_parent=first_parent, **paths)]
        )
        if pair is not None:
            known = dict(self.made)
            assert {known[commit] for commit in pair[0] if commit in known} <= set(pair[1])
            assert len(pair[0]) == len(pair[1])

    @rule()
    def reopen(self) -> None:
        self._reopen()

    @rule()
    def collect_garbage(self) -> None:
        """What a branch or tag holds must stay; of the rest the model keeps what the engine still needs."""
        if self.collector is None:
            return
        self.collector(self.repo)
        needed = {commit.id for name in (*self.model.branches(), *self.model.tags()) for commit in self.model.log(name)}
        for pair in self.made:
            if pair[0] not in needed and pair not in self.collected and self._is_gone(pair[1]):
                self.model.graph.forget(pair[0])
                self.collected.add(pair)

    def _is_gone(self, commit: CommitId) -> bool:
        try:
            self.repo.resolve(commit)
        except RefNotFound:
            return True
        return False


def write_file(path: Path, data: bytes | None) -> None:
    """Make `path` a new file with `data`, or none; never written in place: it may be a link to an object."""
    path.unlink(missing_ok=True)
    if data is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def run_machine(
    opener: Opener,
    *,
    reopen: Reopener | None = None,
    collect: Collector | None = None,
    examples: int,
    steps: int,
    derandomize: bool = True,
    shrink: bool = True,
    salted: bool = False,
    folders: bool = False,
) -> int:
    """Run random histories against fresh repositories that `opener` makes, or raise `AssertionError`.

    Gives the number of steps taken: fewer than `examples` times `steps`, since some histories end early.

    Parameters
    ----------
    reopen : callable
        Gives a fresh handle on the repository of the handle it takes.
    collect : callable
        Collects the garbage of the handle it takes, without a grace period.
    examples, steps : int
        Number of histories, and of steps in each.
    derandomize : bool
        The same histories every time.
    shrink : bool
        Look for the shortest history that shows a fault; this may take five minutes.
    salted : bool
        Give every key bytes of its own, for engines that equal bytes under two keys mislead.
    folders : bool
        The engine's workspaces are folders: write files in them too.
    """
    taken: list[int] = []

    def fresh() -> RepositoryMachine:
        return RepositoryMachine(opener, reopen, collect, salted=salted, folders=folders, report=taken.append)

    run_state_machine_as_test(
        fresh,  # type: ignore[arg-type]  # any callable will do
        settings=machine_settings(examples, steps, derandomize=derandomize, shrink=shrink),
    )
    return sum(taken)


def machine_settings(examples: int, steps: int, *, derandomize: bool = True, shrink: bool = True) -> settings:
    """Give the settings of `run_machine`."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[phase for phase in Phase if shrink or phase is not Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
