"""Contract: diff, three-way merge object by object, squash, guards, concurrency."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from lake.errors import BadInput, ConflictError, DirtyBranch, NothingToCommit, RefNotFound
from lake.repository import Repository, Strategy
from lake.testing.trees import fork, kinds, save, stage, state, tree

CONFLICT = "conflict"


class Row(NamedTuple):
    """One object in the three trees, and what a merge makes of it (None: absent)."""

    base: str | None
    source: str | None
    dest: str | None
    plain: str | None
    source_wins: str | None
    dest_wins: str | None
    three_dot: str | None


TABLE = (
    Row("B", "B", "B", "B", "B", "B", None),
    Row("B", "B", "A", "A", "A", "A", None),
    Row("B", "B", None, None, None, None, None),
    Row("B", "A", "B", "A", "A", "A", "changed"),
    Row("B", "A", "A", "A", "A", "A", None),
    Row("B", "A", "C", CONFLICT, "A", "C", "conflict"),
    Row("B", "A", None, CONFLICT, "A", None, "conflict"),
    Row("B", None, "B", None, None, None, "removed"),
    Row("B", None, "A", CONFLICT, None, "A", "conflict"),
    Row("B", None, None, None, None, None, None),
    Row(None, None, "A", "A", "A", "A", None),
    Row(None, "A", None, "A", "A", "A", "added"),
    Row(None, "A", "A", "A", "A", "A", None),
    Row(None, "A", "C", CONFLICT, "A", "C", "conflict"),
)
CLEAN = {f"row-{n:02}": row for n, row in enumerate(TABLE) if row.plain != CONFLICT}
TORN = {f"row-{n:02}": row for n, row in enumerate(TABLE) if row.plain == CONFLICT}


def _bytes(key: str, value: str | None) -> bytes | None:
    # Every object has its own bytes: what equal bytes under two keys do is a test of its own.
    return None if value is None else f"{key} {value}".encode()


def _lay_out(repo: Repository, rows: dict[str, Row]) -> None:
    """Make `main` (destination) and `side` (source) from their common base."""
    save(repo, "main", {"anchor": b"", **{key: _bytes(key, row.base) for key, row in rows.items()}})
    fork(repo, "side", {"only-source": b"1", **{key: _bytes(key, row.source) for key, row in rows.items()}})
    save(repo, "main", {"only-dest": b"1", **{key: _bytes(key, row.dest) for key, row in rows.items()}})


def _expected(rows: dict[str, Row], column: str) -> dict[str, bytes]:
    found = {key: _bytes(key, getattr(row, column)) for key, row in rows.items()}
    return {
        "anchor": b"",
        "only-dest": b"1",
        "only-source": b"1",
        **{key: data for key, data in found.items() if data is not None},
    }


class MergeContract:
    """Needs a fixture `repo` with a fresh repository."""

    def open_again(self, repo: Repository) -> Repository:
        """Give another handle on the same repository; see `RefsContract.open_again`."""
        return repo

    # -- the table ----------------------------------------------------------------------------------------------
    def test_what_one_side_changed_or_both_alike_is_merged(self, repo: Repository) -> None:
        _lay_out(repo, CLEAN)
        head, side = repo.resolve("main"), repo.resolve("side")
        merged = repo.merge("side", "main", "merge", {"release": "r1"})
        assert tree(repo, merged) == _expected(CLEAN, "plain")
        info = repo.commit_info(merged)
        assert (info.parents, info.message, dict(info.metadata)) == ((head, side), "merge", {"release": "r1"})
        assert repo.resolve("main") == merged
        assert repo.resolve("side") == side

    @pytest.mark.parametrize("key", TORN)
    def test_what_both_sides_changed_differently_is_a_conflict(self, repo: Repository, key: str) -> None:
        _lay_out(repo, {**CLEAN, key: TORN[key]})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert type(caught.value) is ConflictError
        assert (caught.value.units, caught.value.keys) == ((), (key,))
        assert key in str(caught.value)
        assert state(repo) == before

    def test_all_keys_in_conflict_are_named_in_order(self, repo: Repository) -> None:
        _lay_out(repo, dict(reversed(TORN.items())))
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert caught.value.keys == tuple(TORN)

    @pytest.mark.parametrize("squash", [False, True])
    @pytest.mark.parametrize(("strategy", "column"), [("source-wins", "source_wins"), ("dest-wins", "dest_wins")])
    def test_a_strategy_decides_conflicts_and_nothing_else(
        self, repo: Repository, strategy: Strategy, column: str, squash: bool
    ) -> None:
        rows = {**CLEAN, **TORN}
        _lay_out(repo, rows)
        merged = repo.merge("side", "main", "merge", strategy=strategy, squash=squash)
        assert tree(repo, merged) == _expected(rows, column)
        assert len(repo.commit_info(merged).parents) == (1 if squash else 2)

    def test_equal_bytes_under_neighbouring_keys_are_merged_each_for_itself(self, repo: Repository) -> None:
        # A lakeFS 1.84 server, left to itself, loses `b` here: once one side has no more keys, its merge compares
        # what the other side added with the base's *next* key, by content alone, and takes `b` for the removed `c`.
        # (Its three-dot diff is right.)
        save(repo, "main", {"a": b"1", "c": b"same"})
        fork(repo, "side", {"c": None})
        save(repo, "main", {"b": b"same"})
        assert kinds(repo.diff("main", "side", three_dot=True)) == {"c": "removed"}
        assert tree(repo, repo.merge("side", "main", "merge")) == {"a": b"1", "b": b"same"}

    def test_equal_bytes_under_the_next_key_do_not_hide_a_conflict(self, repo: Repository) -> None:
        # The same fault where both sides added one key: lakeFS's plain merge answers 200 and drops the source's.
        save(repo, "main", {"a": b"1", "c": b"same"})
        fork(repo, "side", {"b": b"same"})
        save(repo, "main", {"b": b"other"})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert caught.value.keys == ("b",)
        assert state(repo) == before

    def test_equal_bytes_under_the_next_key_do_not_mislead_a_strategy(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1", "c": b"same"})
        fork(repo, "side", {"b": b"same"})
        save(repo, "main", {"b": b"other"})
        repo.merge("side", "main", "merge", strategy="source-wins")
        assert tree(repo, "main") == {"a": b"1", "b": b"same", "c": b"same"}

    def test_content_type_and_metadata_take_part_in_a_merge(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1", "b": b"1"})
        repo.create_branch("side", "main")
        repo.put("side", "a", b"1", content_type="text/plain")
        repo.commit("side", "type")
        repo.put("main", "b", b"1", metadata={"n": "1"})
        repo.commit("main", "metadata")
        repo.merge("side", "main", "merge")
        assert repo.stat("main", "a").content_type == "text/plain"
        assert dict(repo.stat("main", "b").metadata) == {"n": "1"}

    # -- diff ---------------------------------------------------------------------------------------------------
    def test_a_two_dot_diff_compares_two_trees(self, repo: Repository) -> None:
        rows = {**CLEAN, **TORN}
        _lay_out(repo, rows)
        expected = {"only-dest": "removed", "only-source": "added"}
        for key, row in rows.items():
            if row.source != row.dest:
                expected[key] = "added" if row.dest is None else "removed" if row.source is None else "changed"
        assert kinds(repo.diff("main", "side")) == expected
        assert list(kinds(repo.diff("main", "side"))) == sorted(expected)
        assert list(repo.diff("main", "main")) == []

    def test_a_three_dot_diff_tells_what_a_merge_would_meet(self, repo: Repository) -> None:
        rows = {**CLEAN, **TORN}
        _lay_out(repo, rows)
        expected = {key: row.three_dot for key, row in rows.items() if row.three_dot} | {"only-source": "added"}
        assert kinds(repo.diff("main", "side", three_dot=True)) == expected
        assert kinds(repo.diff("main", "side", three_dot=True, prefix="row-0")) == {
            key: kind for key, kind in expected.items() if key.startswith("row-0")
        }
        assert list(repo.diff("side", "side", three_dot=True)) == []

    def test_a_diff_takes_any_reference_and_is_cut_by_prefix(self, repo: Repository) -> None:
        first = save(repo, "main", {"a/1": b"1", "b/1": b"1"})
        save(repo, "main", {"a/1": b"2", "b/1": None, "b/2": b"2"})
        repo.create_tag("r1", first)
        assert kinds(repo.diff("r1", "main")) == {"a/1": "changed", "b/1": "removed", "b/2": "added"}
        assert kinds(repo.diff("main", first, prefix="b/")) == {"b/1": "added", "b/2": "removed"}
        with pytest.raises(RefNotFound, match="r2"):
            list(repo.diff("r2", "main"))

    # -- nothing to merge, dirty, guarded -----------------------------------------------------------------------
    def test_merging_what_is_there_already_is_nothing_to_commit(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        merged = repo.merge("side", "main", "merge")
        for source in ("side", "main", "main~1", merged):
            with pytest.raises(NothingToCommit):
                repo.merge(source, "main", "again")
        assert repo.resolve("main") == merged
        side = repo.resolve("side")
        empty = repo.merge("side", "main", "again", allow_empty=True)
        assert repo.commit_info(empty).parents == (merged, side)
        assert tree(repo, empty) == {"a": b"1"}

    def test_a_source_that_came_back_to_the_base_is_nothing_to_commit(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        fork(repo, "side", {"a": b"2"})
        save(repo, "side", {"a": b"1"})
        head = save(repo, "main", {"b": b"1"})
        with pytest.raises(NothingToCommit):
            repo.merge("side", "main", "no")
        assert repo.resolve("main") == head

    def test_a_source_that_made_the_same_changes_is_merged_without_a_change(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        head = save(repo, "main", {"a": b"1"})
        merged = repo.merge("side", "main", "same")
        assert repo.commit_info(merged).parents == (head, repo.resolve("side"))
        assert list(repo.diff(head, merged)) == []

    def test_a_merge_always_makes_a_commit_of_its_own(self, repo: Repository) -> None:
        head, side = repo.resolve("main"), fork(repo, "side", {"a": b"1"})
        assert repo.commit_info(repo.merge("side", "main", "no fast-forward")).parents == (head, side)

    def test_a_dirty_destination_is_refused(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        stage(repo, "main", {"b": b"staged"})
        before = state(repo)
        with pytest.raises(DirtyBranch, match="main"):
            repo.merge("side", "main", "merge")
        with pytest.raises(DirtyBranch):
            repo.merge("main", "main", "nothing to merge either")
        assert state(repo) == before
        repo.reset("main")
        repo.merge("side", "main", "merge")
        assert tree(repo, "main") == {"a": b"1"}

    def test_staged_bytes_equal_to_the_head_do_not_make_a_branch_dirty(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        fork(repo, "side", {"b": b"1"})
        stage(repo, "main", {"a": b"1"})
        repo.merge("side", "main", "merge")
        assert tree(repo, "main") == {"a": b"1", "b": b"1"}

    def test_what_is_staged_on_the_source_is_ignored_and_stays(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        stage(repo, "side", {"a": b"staged", "b": b"staged"})
        repo.merge("side", "main", "merge")
        assert tree(repo, "main") == {"a": b"1"}
        assert kinds(repo.uncommitted("side")) == {"a": "changed", "b": "added"}

    def test_the_source_may_be_any_reference_the_destination_is_a_branch(self, repo: Repository) -> None:
        first = fork(repo, "side", {"a": b"1"})
        save(repo, "side", {"b": b"2"})
        repo.create_tag("r1", "side")
        repo.create_branch("other", "main")
        repo.merge(first[:20], "main", "by prefix")
        assert tree(repo, "main") == {"a": b"1"}
        repo.merge("r1", "main", "by tag")
        assert tree(repo, "main") == {"a": b"1", "b": b"2"}
        repo.merge("side~1", "other", "by expression")
        assert tree(repo, "other") == {"a": b"1"}
        for source, dest, name in (("sied", "main", "sied"), ("side", "mian", "mian"), ("side", "r1", "r1")):
            with pytest.raises(RefNotFound, match=name):
                repo.merge(source, dest, "no")

    def test_an_unknown_strategy_is_refused(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        with pytest.raises(BadInput, match="theirs"):
            repo.merge("side", "main", "merge", strategy="theirs")  # type: ignore[arg-type]

    def test_an_expected_head_must_be_the_head(self, repo: Repository) -> None:
        judged = save(repo, "main", {"a": b"1"})
        fork(repo, "side", {"b": b"1"})
        moved = save(repo, "main", {"c": b"1"})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "late", expect_head=judged)
        assert type(caught.value) is ConflictError
        assert judged in str(caught.value)
        assert moved in str(caught.value)
        assert state(repo) == before
        merged = repo.merge("side", "main", "in time", expect_head=moved)
        assert repo.commit_info(merged).parents[0] == moved

    # -- squash -------------------------------------------------------------------------------------------------
    def test_a_squash_leaves_one_commit_with_one_parent(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        fork(repo, "side", {"b": b"1"})
        save(repo, "side", {"a": b"2"})
        squashed = repo.merge("side", "main", "all of it", {"k": "v"}, squash=True, expect_head=head)
        info = repo.commit_info(squashed)
        assert (info.parents, info.message, dict(info.metadata)) == ((head,), "all of it", {"k": "v"})
        assert tree(repo, squashed) == {"a": b"2", "b": b"1"}

    def test_squashing_again_makes_an_empty_commit_and_then_conflicts_with_itself(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        fork(repo, "side", {"a": b"2"})
        first = repo.merge("side", "main", "one", squash=True)
        assert list(repo.diff(first, repo.merge("side", "main", "two", squash=True))) == []
        save(repo, "side", {"a": b"3"})
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "three", squash=True)
        assert caught.value.keys == ("a",)

    # -- histories ----------------------------------------------------------------------------------------------
    def test_a_branch_is_merged_again_with_only_its_new_commits(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        repo.merge("side", "main", "one")
        save(repo, "main", {"a": b"main"})
        save(repo, "side", {"b": b"2"})
        repo.merge("side", "main", "two")
        assert tree(repo, "main") == {"a": b"main", "b": b"2"}

    def test_main_is_merged_into_a_branch_and_back(self, repo: Repository) -> None:
        fork(repo, "side", {"a": b"1"})
        save(repo, "main", {"b": b"1"})
        repo.merge("main", "side", "refresh")
        assert list(repo.diff("side", "main", three_dot=True)) == []
        repo.merge("side", "main", "publish")
        assert list(repo.diff("side", "main")) == []
        assert tree(repo, "main") == {"a": b"1", "b": b"1"}

    def test_concurrent_merges_all_arrive(self, repo: Repository) -> None:
        names = [f"side{number}" for number in range(6)]
        for name in names:
            fork(repo, name, {name: b"1"})
        handles = [self.open_again(repo) for _ in names]
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda pair: pair[0].merge(pair[1], "main", "merge"), zip(handles, names, strict=True)))
        assert tree(repo, "main") == dict.fromkeys(names, b"1")

    def test_of_many_merges_that_expect_one_head_one_arrives(self, repo: Repository) -> None:
        head = repo.resolve("main")
        names = [f"side{number}" for number in range(6)]
        for name in names:
            fork(repo, name, {name: b"1"})
        handles = [self.open_again(repo) for _ in names]

        def merge(pair: tuple[Repository, str]) -> str | None:
            try:
                pair[0].merge(pair[1], "main", "merge", expect_head=head)
            except ConflictError:
                return None
            return pair[1]

        with ThreadPoolExecutor(len(names)) as pool:
            won = [name for name in pool.map(merge, zip(handles, names, strict=True)) if name]
        assert len(won) == 1
        assert tree(repo, "main") == {won[0]: b"1"}
