"""Contract: whole units, reverts, and releasing again what was rolled back."""

import pytest

from lake.errors import BadInput, ConflictError, DirtyBranch, NothingToCommit, RefNotFound
from lake.repository import Repository
from lake.testing.trees import fork, save, stage, state, tree


def _append(repo: Repository, branch: str, version: int, table: str = "synapses") -> str:
    """Do to a table what a Delta append does: one data file, one log entry that nobody wrote before."""
    return save(
        repo,
        branch,
        {
            f"tables/{table}/part-{branch}-{version}.parquet": f"rows of {branch}".encode(),
            f"tables/{table}/_delta_log/{version:020}.json": f"add by {branch}".encode(),
        },
        f"append {version}",
    )


class UnitsContract:
    """Needs a fixture `repo` with a fresh repository."""

    # -- merge by whole units -----------------------------------------------------------------------------------
    def test_a_unit_changed_on_one_side_is_taken_whole(self, repo: Repository) -> None:
        _append(repo, "main", 0)
        _append(repo, "main", 0, "edges")
        repo.create_branch("side", "main")
        _append(repo, "side", 1)
        save(repo, "side", {"tables/synapses/part-main-0.parquet": None, "volumes/em/info": b"{}"})
        _append(repo, "main", 1, "edges")
        side, main = tree(repo, "side"), tree(repo, "main")
        repo.merge("side", "main", "merge")
        merged = tree(repo, "main")
        for unit, expected in (("tables/synapses/", side), ("volumes/em/", side), ("tables/edges/", main)):
            assert {k: v for k, v in merged.items() if k.startswith(unit)} == {
                k: v for k, v in expected.items() if k.startswith(unit)
            }

    @pytest.mark.parametrize("root", ["tables", "volumes", "meshes", "skeletons"])
    def test_a_unit_changed_on_both_sides_is_a_conflict_though_no_object_is(self, repo: Repository, root: str) -> None:
        fork(repo, "side", {f"{root}/x/1": b"1", "free": b"1"})
        save(repo, "main", {f"{root}/x/2": b"2", f"{root}/y/2": b"2"})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert type(caught.value) is ConflictError
        assert (caught.value.units, caught.value.keys) == ((f"{root}/x/",), ())
        assert f"{root}/x/" in str(caught.value)
        assert state(repo) == before

    def test_two_appends_to_one_table_conflict_whatever_the_strategy(self, repo: Repository) -> None:
        _append(repo, "main", 0)
        repo.create_branch("side", "main")
        _append(repo, "side", 1)
        _append(repo, "main", 1)
        before = state(repo)
        for strategy in (None, "source-wins", "dest-wins"):
            with pytest.raises(ConflictError) as caught:
                repo.merge("side", "main", "merge", strategy=strategy)
            assert caught.value.units == ("tables/synapses/",)
        assert state(repo) == before

    def test_a_unit_changed_alike_on_both_sides_is_no_conflict(self, repo: Repository) -> None:
        edit = {"tables/t/1": b"1", "tables/t/old": None}
        save(repo, "main", {"tables/t/old": b"0"})
        fork(repo, "side", {**edit, "side": b"1"})
        save(repo, "main", {**edit, "main": b"1"})
        repo.merge("side", "main", "merge")
        assert tree(repo, "main") == {"main": b"1", "side": b"1", "tables/t/1": b"1"}

    def test_a_unit_removed_on_one_side_and_changed_on_the_other_is_a_conflict(self, repo: Repository) -> None:
        save(repo, "main", {"volumes/v/1": b"1", "volumes/v/2": b"2"})
        fork(repo, "side", {"volumes/v/1": None, "volumes/v/2": None})
        save(repo, "main", {"volumes/v/3": b"3"})
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert caught.value.units == ("volumes/v/",)

    def test_units_and_single_objects_in_conflict_are_named_together(self, repo: Repository) -> None:
        fork(repo, "side", {"tables/b/1": b"1", "volumes/a/2": b"1", "z": b"1", "m": b"1", "tables/loose": b"1"})
        save(repo, "main", {"tables/b/2": b"2", "volumes/a/2": b"2", "z": b"2", "m": b"2", "tables/loose": b"2"})
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert caught.value.units == ("tables/b/", "volumes/a/")
        # A file right under tables/ is in no unit; one that a unit in conflict holds is told by the unit.
        assert caught.value.keys == ("m", "tables/loose", "z")
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge", strategy="source-wins")
        assert (caught.value.units, caught.value.keys) == (("tables/b/", "volumes/a/"), ())
        assert "no strategy decides a table or a volume" in caught.value.fix

    def test_a_contested_unit_is_decided_object_by_object(self, repo: Repository) -> None:
        save(repo, "main", {"tables/qc_a/both": b"0", "tables/t/1": b"1"})
        fork(repo, "side", {"tables/qc_a/both": b"side", "tables/qc_a/side": b"1", "tables/t/2": b"2"})
        head = save(repo, "main", {"tables/qc_a/both": b"main", "tables/qc_a/main": b"1", "_qc/x": b"1"})
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge", strategy="dest-wins")
        assert caught.value.units == ("tables/qc_a/",)
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge", contested=["tables/qc_", "_qc/"])
        assert (caught.value.units, caught.value.keys) == ((), ("tables/qc_a/both",))
        assert repo.resolve("main") == head
        repo.merge("side", "main", "merge", strategy="dest-wins", contested=["tables/qc_", "_qc/"])
        assert tree(repo, "main") == {
            "_qc/x": b"1",
            "tables/qc_a/both": b"main",
            "tables/qc_a/main": b"1",
            "tables/qc_a/side": b"1",
            "tables/t/1": b"1",
            "tables/t/2": b"2",
        }

    def test_contested_frees_only_the_units_it_names(self, repo: Repository) -> None:
        fork(repo, "side", {"tables/qc_a/1": b"1", "tables/t/1": b"1"})
        save(repo, "main", {"tables/qc_a/2": b"2", "tables/t/2": b"2"})
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge", strategy="dest-wins", contested=["tables/qc_"])
        assert caught.value.units == ("tables/t/",)

    # -- revert -------------------------------------------------------------------------------------------------
    def test_a_revert_is_a_new_commit_with_the_old_tree(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1", "tables/t/0": b"0"})
        second = save(repo, "main", {"a": b"2", "b": b"1", "tables/t/1": b"1"})
        undone = repo.revert("main", second)
        info = repo.commit_info(undone)
        assert (info.parents, info.message) == ((second,), f"Revert {second}")
        assert list(repo.diff(first, undone)) == []
        assert tree(repo, second) == {"a": b"2", "b": b"1", "tables/t/0": b"0", "tables/t/1": b"1"}
        assert repo.resolve("main") == undone

    def test_a_revert_takes_any_reference_a_message_and_metadata(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        commit = repo.commit_info(repo.revert("main", "main", message="undo", metadata={"rollback_of": "r1"}))
        assert (commit.message, dict(commit.metadata)) == ("undo", {"rollback_of": "r1"})
        assert repo.commit_info(repo.revert("main", "main~0", parent=1)).message == "Revert main~0"
        assert tree(repo, "main") == {"a": b"1"}

    def test_reverting_a_merge_needs_to_know_which_parent(self, repo: Repository) -> None:
        base = save(repo, "main", {"a": b"0"})
        side = fork(repo, "side", {"s": b"1"})
        head = save(repo, "main", {"m": b"1"})
        merged = repo.merge("side", "main", "merge")
        for parent in (None, 3):
            with pytest.raises(BadInput, match=merged):
                repo.revert("main", merged, parent=parent)
        assert repo.resolve("main") == merged
        undone = repo.revert("main", merged, parent=1)
        assert repo.commit_info(undone).parents == (merged,)
        assert list(repo.diff(head, undone)) == []
        repo.create_branch("other", merged)
        assert list(repo.diff(side, repo.revert("other", merged, parent=2))) == []
        assert tree(repo, base) == {"a": b"0"}

    def test_an_older_commit_is_reverted_if_nothing_later_touched_the_same(self, repo: Repository) -> None:
        old = save(repo, "main", {"a": b"1", "tables/t/1": b"1"})
        save(repo, "main", {"b": b"2", "tables/u/1": b"1"})
        repo.revert("main", old)
        assert tree(repo, "main") == {"b": b"2", "tables/u/1": b"1"}

    def test_what_a_later_commit_changed_cannot_be_reverted(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"0"})
        old = save(repo, "main", {"a": b"1", "b": b"1"})
        save(repo, "main", {"a": b"2"})
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.revert("main", old)
        assert type(caught.value) is ConflictError
        assert (caught.value.units, caught.value.keys) == ((), ("a",))
        assert state(repo) == before

    def test_an_older_append_cannot_be_reverted_and_nothing_changes(self, repo: Repository) -> None:
        # Object by object this "succeeds": log entry 1 goes, 2 stays, and the table is destroyed without a word.
        _append(repo, "main", 0)
        old = _append(repo, "main", 1)
        _append(repo, "main", 2)
        before = state(repo)
        with pytest.raises(ConflictError) as caught:
            repo.revert("main", old)
        assert caught.value.units == ("tables/synapses/",)
        assert state(repo) == before
        repo.revert("main", "main")
        repo.revert("main", old)
        assert list(repo.diff("main", f"{old}~1")) == []

    def test_what_is_undone_already_is_nothing_to_commit(self, repo: Repository) -> None:
        save(repo, "main", {"anchor": b""})
        commit = save(repo, "main", {"a": b"1"})
        undone = repo.revert("main", commit)
        empty = repo.commit("main", "empty", allow_empty=True)
        for ref in (commit, empty):
            with pytest.raises(NothingToCommit):
                repo.revert("main", ref)
        assert repo.resolve("main") == empty
        assert repo.commit_info(empty).parents == (undone,)

    def test_a_dirty_branch_is_not_reverted(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        stage(repo, "main", {"b": b"staged"})
        before = state(repo)
        with pytest.raises(DirtyBranch, match="main"):
            repo.revert("main", commit)
        assert state(repo) == before

    def test_reverting_what_or_where_nothing_is_is_not_found(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        with pytest.raises(RefNotFound, match="nobody"):
            repo.revert("main", "nobody")
        with pytest.raises(RefNotFound, match="mian"):
            repo.revert("mian", commit)

    # -- release, roll back, release again ----------------------------------------------------------------------
    def test_a_rolled_back_branch_merged_again_leaves_most_of_it_out(self, repo: Repository) -> None:
        save(repo, "main", {"anchor": b""})
        fork(repo, "cand", {"a": b"1", "volumes/v/1": b"2"})
        released = repo.merge("cand", "main", "release")
        repo.revert("main", released, parent=1)
        with pytest.raises(NothingToCommit):
            repo.merge("cand", "main", "release again")
        save(repo, "cand", {"late": b"3"})
        repo.merge("cand", "main", "release again")
        assert tree(repo, "main") == {"anchor": b"", "late": b"3"}, "the trap: only the new object arrives"

    def test_a_rolled_back_squash_is_released_again_whole(self, repo: Repository) -> None:
        save(repo, "main", {"anchor": b""})
        fork(repo, "cand", {"a": b"1", "volumes/v/1": b"2"})
        released = repo.merge("cand", "main", "release", squash=True)
        repo.revert("main", released)
        assert tree(repo, "main") == {"anchor": b""}
        repo.merge("cand", "main", "release again", squash=True)
        assert list(repo.diff(released, "main")) == [], "no merge base lies beyond the rollback: there is no trap"

    def test_main_merged_into_a_rolled_back_branch_takes_the_work_away(self, repo: Repository) -> None:
        save(repo, "main", {"anchor": b""})
        work = fork(repo, "cand", {"a": b"1", "volumes/v/1": b"2"})
        repo.revert("main", repo.merge("cand", "main", "release"), parent=1)
        repo.merge("main", "cand", "refresh")
        assert tree(repo, "cand") == {"anchor": b""}
        assert tree(repo, work) == {"a": b"1", "anchor": b"", "volumes/v/1": b"2"}

    def test_reverting_the_revert_on_a_fresh_branch_releases_all_of_it_again(self, repo: Repository) -> None:
        save(repo, "main", {"before": b"1", "tables/t/0": b"0"})
        fork(repo, "cand", {"a": b"1", "tables/t/1": b"1", "tables/t/0": None})
        released = repo.merge("cand", "main", "release")
        undone = repo.revert("main", released, parent=1, metadata={"rollback_of": "r1"})
        repo.create_branch("again", "main")
        repo.revert("again", undone)
        repo.merge("again", "main", "release again")
        assert list(repo.diff(released, "main")) == []
        repo.revert("main", "main", parent=1)
        assert list(repo.diff(undone, "main")) == []

    def test_a_later_release_of_the_same_unit_stands_in_the_way(self, repo: Repository) -> None:
        fork(repo, "cand", {"tables/t/1": b"1"})
        undone = repo.revert("main", repo.merge("cand", "main", "release"), parent=1)
        save(repo, "main", {"tables/t/1": b"other"})
        repo.create_branch("again", "main")
        with pytest.raises(ConflictError) as caught:
            repo.revert("again", undone)
        assert caught.value.units == ("tables/t/",)

    def test_whoever_reads_a_rolled_back_release_keeps_its_bytes(self, repo: Repository) -> None:
        save(repo, "main", {"v": b"1"})
        fork(repo, "cand", {"v": b"2"})
        released = repo.merge("cand", "main", "release")
        repo.create_tag("r2", released)
        repo.revert("main", released, parent=1)
        repo.delete_branch("cand")
        assert (repo.get("r2", "v"), repo.get(released, "v"), repo.get("main", "v")) == (b"2", b"2", b"1")
