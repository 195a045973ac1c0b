"""Contract: cherry-pick, hard reset, and the log of a path."""

from collections.abc import Callable
from typing import Any

import pytest

from lake.errors import BadInput, ConflictError, DirtyBranch, InvalidName, NothingToCommit, ProtectedBranch, RefNotFound
from lake.repository import Repository
from lake.testing.trees import fork, kinds, save, stage, state, tree


def _messages(repo: Repository, ref: str = "main", **options: Any) -> list[str]:
    return [commit.message for commit in repo.log(ref, **options)]


class HistoryContract:
    """Needs a fixture `repo` with a fresh repository."""

    # -- cherry-pick --------------------------------------------------------------------------------------------
    def test_a_cherry_pick_brings_what_one_commit_changed(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1", "gone": b"1"})
        fork(repo, "side", {"before": b"1"})
        picked = save(repo, "side", {"a": b"2", "new": b"1", "gone": None}, "why", {"run": "7"})
        save(repo, "side", {"after": b"1"})
        head = save(repo, "main", {"m": b"1"})
        made = repo.cherry_pick("main", picked)
        info, origin = repo.commit_info(made), repo.commit_info(picked)
        assert tree(repo, "main") == {"a": b"2", "m": b"1", "new": b"1"}
        assert (info.parents, info.message, repo.resolve("main")) == ((head,), "why", made)
        assert dict(info.metadata) == {
            "run": "7",
            "cherry-pick-origin": picked,
            "cherry-pick-committer": origin.committer,
        }
        assert repo.commit_info(picked) == origin, "the picked commit stays as it is"
        assert kinds(repo.diff(f"{picked}~1", picked)) == {"a": "changed", "gone": "removed", "new": "added"}

    def test_a_commit_can_be_picked_many_times_and_read_afterwards(self, repo: Repository) -> None:
        # A bare lakeFS 1.84 spoils its cache of the picked commit when it is given no metadata, and answers 404 then.
        picked = fork(repo, "side", {"s": b"1"})
        origin = repo.commit_info(picked)
        for name in ("one", "two", "three"):
            fork(repo, name, {name: b"1"})
            repo.cherry_pick(name, picked)
            assert tree(repo, name) == {name: b"1", "s": b"1"}
            assert repo.commit_info(picked) == origin
        assert tree(repo, picked) == {"s": b"1"}

    def test_a_cherry_pick_takes_any_reference_a_message_and_metadata(self, repo: Repository) -> None:
        picked = fork(repo, "side", {"s": b"1"})
        repo.create_tag("fix", "side")
        for number, ref in enumerate(["side", "fix", picked[:20], "side~0"]):
            branch = f"b{number}"
            repo.create_branch(branch, "main")
            info = repo.commit_info(repo.cherry_pick(branch, ref, parent=1, message="hot fix", metadata={"k": "v"}))
            assert (info.message, info.metadata["k"], info.metadata["cherry-pick-origin"]) == ("hot fix", "v", picked)
            assert tree(repo, branch) == {"s": b"1"}
        repo.create_branch("bare", "main")
        info = repo.commit_info(repo.cherry_pick("bare", "side", metadata={}))
        assert sorted(info.metadata) == ["cherry-pick-committer", "cherry-pick-origin"]

    def test_picking_a_merge_needs_to_know_which_parent(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"0"})
        fork(repo, "side", {"s": b"1"})
        save(repo, "main", {"m": b"1"})
        merged = repo.merge("side", "main", "merge")
        repo.create_branch("one", "main~2")
        repo.create_branch("two", "main~2")
        for parent in (None, 0, 3):
            with pytest.raises(BadInput, match=merged):
                repo.cherry_pick("one", merged, parent=parent)
        repo.cherry_pick("one", merged, parent=1)
        repo.cherry_pick("two", merged, parent=2)
        assert (tree(repo, "one"), tree(repo, "two")) == ({"a": b"0", "s": b"1"}, {"a": b"0", "m": b"1"})

    def test_what_the_branch_holds_otherwise_is_a_conflict(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"0", "b": b"0"})
        fork(repo, "side", {"a": b"1"})
        picked = save(repo, "side", {"a": b"2", "b": None, "c": b"2"})
        save(repo, "main", {"c": b"other"})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.cherry_pick("main", picked)
        assert type(caught.value) is ConflictError
        # `a` is 1 before the picked commit and 0 here: what it builds on is missing.
        assert (caught.value.units, caught.value.keys) == ((), ("a", "c"))
        assert state(repo) == before

    def test_a_cherry_pick_takes_units_whole_or_not_at_all(self, repo: Repository) -> None:
        save(repo, "main", {"tables/t/0": b"0"})
        fork(repo, "side", {"tables/t/1": b"1"})
        later = save(repo, "side", {"tables/t/2": b"2", "volumes/v/1": b"1"})
        save(repo, "main", {"tables/u/1": b"1"})
        before = state(repo)
        # Object by object this "succeeds", and leaves a table whose log has a gap.
        with pytest.raises(ConflictError) as caught:
            repo.cherry_pick("main", later)
        assert (caught.value.units, caught.value.keys) == (("tables/t/",), ())
        assert state(repo) == before
        repo.cherry_pick("main", "side~1")
        repo.cherry_pick("main", later)
        assert {key: data for key, data in tree(repo, "main").items() if key != "tables/u/1"} == tree(repo, "side")

    def test_what_the_branch_holds_already_is_nothing_to_commit(self, repo: Repository) -> None:
        save(repo, "main", {"anchor": b""})
        picked = fork(repo, "side", {"a": b"1"})
        empty = repo.commit("side", "empty", allow_empty=True)
        first = list(repo.log("main"))[-1].id
        made = repo.cherry_pick("main", picked)
        for ref in (picked, empty, first):
            with pytest.raises(NothingToCommit):
                repo.cherry_pick("main", ref)
        with pytest.raises(BadInput):
            repo.cherry_pick("main", first, parent=1)
        assert repo.resolve("main") == made

    def test_a_dirty_branch_takes_no_cherry_pick(self, repo: Repository) -> None:
        picked = fork(repo, "side", {"a": b"1"})
        stage(repo, "main", {"b": b"staged"})
        before = state(repo)
        with pytest.raises(DirtyBranch, match="main"):
            repo.cherry_pick("main", picked)
        assert state(repo) == before

    def test_picking_what_or_where_nothing_is_is_not_found(self, repo: Repository) -> None:
        picked = fork(repo, "side", {"a": b"1"})
        with pytest.raises(RefNotFound, match="nobody"):
            repo.cherry_pick("main", "nobody")
        for branch in ("mian", picked):
            with pytest.raises(RefNotFound, match=branch):
                repo.cherry_pick(branch, picked)

    def test_equal_bytes_under_the_next_key_do_not_lose_what_is_picked(self, repo: Repository) -> None:
        # Picked by a lakeFS 1.84 server itself, main loses its `b` (see `contract_merge`).
        save(repo, "main", {"a": b"1", "c": b"same"})
        picked = fork(repo, "side", {"c": None})
        save(repo, "main", {"b": b"same"})
        made = repo.commit_info(repo.cherry_pick("main", picked, message="pick"))
        assert tree(repo, "main") == {"a": b"1", "b": b"same"}
        assert (len(made.parents), made.message, made.metadata["cherry-pick-origin"]) == (1, "pick", picked)

    def test_equal_bytes_under_the_next_key_do_not_hide_a_conflict_of_a_pick(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1", "c": b"same"})
        picked = fork(repo, "side", {"b": b"same"})
        save(repo, "main", {"b": b"other"})
        with pytest.raises(ConflictError) as caught:
            repo.cherry_pick("main", picked)
        assert caught.value.keys == ("b",)

    def test_a_picked_commit_is_reverted_and_picked_again(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"0"})
        picked = fork(repo, "side", {"a": b"1", "tables/t/0": b"0"})
        made = repo.cherry_pick("main", picked)
        repo.revert("main", made)
        assert tree(repo, "main") == {"a": b"0"}
        repo.cherry_pick("main", picked)
        assert list(repo.diff("main", picked)) == []

    # -- hard reset ---------------------------------------------------------------------------------------------
    def test_a_branch_is_moved_back_on_and_elsewhere(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        second = save(repo, "main", {"a": b"2"})
        side = fork(repo, "side", {"s": b"1"}, first)
        repo.create_tag("r1", second)
        for ref, commit in (("main~1", first), (second[:20], second), ("side", side), ("r1", second)):
            assert repo.reset_to("main", ref) == commit
            assert repo.resolve("main") == commit
            assert list(repo.diff(commit, "main")) == []
            assert list(repo.uncommitted("main")) == []
        assert repo.reset_to("main", "main") == second

    def test_what_a_moved_branch_left_behind_is_readable_by_id(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        left = save(repo, "main", {"a": b"2"})
        repo.reset_to("main", first)
        assert (repo.get(left, "a"), repo.get("main", "a")) == (b"2", b"1")
        assert [commit.id for commit in repo.log("main", limit=1)] == [first]
        other = save(repo, "main", {"b": b"1"})
        assert repo.commit_info(other).parents == (first,)
        repo.merge(left, "main", "bring it back")
        assert tree(repo, "main") == {"a": b"2", "b": b"1"}

    def test_a_dirty_branch_is_not_moved(self, repo: Repository) -> None:
        # A bare lakeFS moves it, and what was staged is staged on another commit then.
        first = save(repo, "main", {"a": b"1"})
        save(repo, "main", {"a": b"2"})
        stage(repo, "main", {"b": b"staged"})
        before = state(repo)
        with pytest.raises(DirtyBranch, match="main"):
            repo.reset_to("main", first)
        assert state(repo) == before
        repo.reset("main")
        repo.reset_to("main", first)
        assert tree(repo, "main") == {"a": b"1"}

    def test_a_branch_is_not_moved_to_what_is_not_there(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        for branch, ref, name in (
            ("main", "nobody", "nobody"),
            ("mian", "main", "mian"),
            ("main", "main~9", "leads nowhere|main~9"),
            (head, "main", head),
        ):
            with pytest.raises(RefNotFound, match=name):
                repo.reset_to(branch, ref)
        with pytest.raises(BadInput, match=r"main\$"):
            repo.reset_to("main", "main$")
        assert repo.resolve("main") == head

    # -- protection ---------------------------------------------------------------------------------------------
    def test_protection_stops_a_hard_reset_and_no_cherry_pick(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        picked = fork(repo, "side", {"b": b"1"})
        repo.protect("main")
        with pytest.raises(ProtectedBranch, match="main"):
            repo.reset_to("main", "main~1")
        repo.cherry_pick("main", picked)
        assert tree(repo, "main") == {"a": b"1", "b": b"1"}

    def test_a_branch_that_was_dirty_when_it_was_protected_is_stuck(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        side = fork(repo, "side", {"b": b"1"})
        stage(repo, "main", {"c": b"staged"})
        repo.protect("main")
        before = state(repo)
        refused: list[Callable[[], object]] = [
            lambda: repo.commit("main", "no"),
            lambda: repo.reset("main"),
            lambda: repo.reset_to("main", side),
        ]
        for call in refused:
            with pytest.raises(ProtectedBranch):
                call()
        dirty: list[Callable[[], object]] = [
            lambda: repo.merge("side", "main", "no"),
            lambda: repo.revert("main", commit),
            lambda: repo.cherry_pick("main", side),
        ]
        for call in dirty:
            with pytest.raises(DirtyBranch):
                call()
        assert state(repo) == before
        repo.create_branch("way-out", "main")
        repo.merge("main", "side", "its staging is no part of it", allow_empty=True)
        assert tree(repo, "side") == {"a": b"1", "b": b"1"}

    # -- the log of a path --------------------------------------------------------------------------------------
    def test_the_log_of_a_path_holds_what_changed_it(self, repo: Repository) -> None:
        save(repo, "main", {"p/1": b"1", "q": b"1"}, "both")
        save(repo, "main", {"p/2": b"1"}, "p2")
        save(repo, "main", {"p/1": b"2"}, "p1 again")
        repo.commit("main", "empty", allow_empty=True)
        save(repo, "main", {"p/1": None, "pp": b"1"}, "p1 gone")
        repo.put("main", "q", b"1", content_type="text/plain")
        repo.commit("main", "q is text")
        assert _messages(repo, objects=["p/1"]) == ["p1 gone", "p1 again", "both"]
        assert _messages(repo, objects=["p"]) == [], "a whole key, not the beginning of one"
        assert _messages(repo, objects=["p/"]) == []
        assert _messages(repo, prefixes=["p/"]) == ["p1 gone", "p1 again", "p2", "both"]
        assert _messages(repo, prefixes=["pp", "p/2"]) == ["p1 gone", "p2"]
        assert _messages(repo, objects=["q"], prefixes=["p/2"]) == ["q is text", "p2", "both"]
        assert _messages(repo, objects=["q", "nothing"], limit=1) == ["q is text"]
        assert _messages(repo, "main~1", objects=["q"]) == ["both"]
        assert _messages(repo, objects=["nothing"], prefixes=["no/"]) == []

    def test_the_log_of_a_path_holds_the_merge_that_brought_it(self, repo: Repository) -> None:
        # A bare lakeFS leaves out every merge, so it cannot say which release changed a path.
        save(repo, "main", {"a": b"1"}, "start")
        repo.create_branch("side", "main")
        save(repo, "side", {"p/1": b"1"}, "on the side")
        save(repo, "main", {"b": b"1"}, "elsewhere")
        repo.merge("side", "main", "release")
        save(repo, "side", {"c": b"1"}, "c")
        undone = repo.merge("side", "main", "later release")
        repo.revert("main", "main~1", parent=1, message="rollback")
        fork(repo, "squashed", {"p/2": b"1"})
        repo.merge("squashed", "main", "squash", squash=True)
        by_path: list[dict[str, Any]] = [{"prefixes": ["p/"]}, {"objects": ["p/1", "p/2"]}]
        for paths in by_path:
            assert _messages(repo, first_parent=True, **paths) == ["squash", "rollback", "release"]
            assert _messages(repo, **paths) == ["squash", "rollback", "release", "on the side"]
            assert _messages(repo, limit=3, **paths) == ["squash", "rollback", "release"]
        assert _messages(repo, undone, objects=["c"]) == ["later release", "c"]
        assert _messages(repo, objects=["b"]) == ["elsewhere"], "the merge did not change it on main"
        assert _messages(repo, "side", objects=["b"]) == []

    def test_a_path_that_no_key_can_be_is_refused(self, repo: Repository) -> None:
        wrong: list[dict[str, Any]] = [{"objects": [""]}, {"prefixes": [""]}, {"prefixes": ["k" * 1025]}]
        for paths in wrong:
            with pytest.raises(InvalidName):
                _messages(repo, **paths)
        with pytest.raises(BadInput, match="p/"):
            _messages(repo, prefixes="p/")
        with pytest.raises(RefNotFound):
            _messages(repo, "nobody", objects=["a"])

    def test_strange_keys_have_a_log(self, repo: Repository) -> None:
        for key in ("a b", "a?b=c#d", "x\ny", "é/ü", "..", "a&objects=b"):
            save(repo, "main", {key: b"1"}, key)
        for key in ("a b", "a?b=c#d", "x\ny", "é/ü", "..", "a&objects=b"):
            assert _messages(repo, objects=[key]) == [key]
            assert _messages(repo, prefixes=[key]) == [key]
