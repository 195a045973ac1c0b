"""Contract: branches, tags, commits, reference expressions, log, protection."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    InvalidName,
    NothingToCommit,
    ObjectNotFound,
    ProtectedBranch,
    RefNotFound,
)
from lake.repository import Repository
from lake.testing.trees import fork, save, stage, state, tree


class RefsContract:
    """Needs a fixture `repo` with a fresh repository; an engine of files or servers overrides `open_again`."""

    def open_again(self, repo: Repository) -> Repository:
        """Give another handle on the same repository, for threads and for what must outlive a handle."""
        return repo

    # -- branches -----------------------------------------------------------------------------------------------
    def test_a_new_repository_has_one_empty_commit_on_main(self, repo: Repository) -> None:
        assert list(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}
        assert tree(repo, "main") == {}
        first = repo.commit_info("main")
        assert (first.parents, len(first.id)) == ((), 64)
        assert list(repo.log("main")) == [first]

    def test_a_branch_starts_at_its_source_and_goes_its_own_way(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        assert repo.create_branch("work", "main") == first
        second = save(repo, "work", {"b": b"2"})
        assert repo.branches() == {"main": first, "work": second}
        assert repo.branches("wo") == {"work": second}
        assert (tree(repo, "main"), tree(repo, "work")) == ({"a": b"1"}, {"a": b"1", "b": b"2"})

    def test_a_branch_can_start_at_any_reference(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        save(repo, "main", {"a": b"2"})
        repo.create_tag("t", first)
        for number, source in enumerate([first, first[:20], "t", "main~1", "main^1"]):
            assert repo.create_branch(f"b{number}", source) == first

    def test_a_branch_made_from_a_dirty_one_starts_at_its_committed_head(self, repo: Repository) -> None:
        stage(repo, "main", {"a": b"staged"})
        repo.create_branch("work", "main")
        assert tree(repo, "work") == {}

    @pytest.mark.parametrize("name", ["", "a/b", "a.b", "a b", "-a", "a~1", "main@", "é"])
    def test_a_bad_branch_name_is_refused(self, repo: Repository, name: str) -> None:
        with pytest.raises(InvalidName) as caught:
            repo.create_branch(name, "main")
        assert repr(name) in str(caught.value)

    @pytest.mark.parametrize("name", ["", "a/b", "a..b", "a b", "a^b", "a.lock", "a~1", "a:b", "a.", "@"])
    def test_a_bad_tag_name_is_refused(self, repo: Repository, name: str) -> None:
        with pytest.raises(InvalidName) as caught:
            repo.create_tag(name, "main")
        assert repr(name) in str(caught.value)

    def test_branches_tags_and_commits_share_one_name_space(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        repo.create_branch("work", "main")
        repo.create_tag("r1", "main")
        before = state(repo)
        for name in ("work", "r1", commit):
            with pytest.raises(AlreadyExists, match=name):
                repo.create_branch(name, "main")
            with pytest.raises(AlreadyExists, match=name):
                repo.create_tag(name, "main")
        assert state(repo) == before

    def test_deleting_a_branch_keeps_its_commits_readable(self, repo: Repository) -> None:
        commit = fork(repo, "work", {"a": b"1"})
        stage(repo, "work", {"b": b"staged"})
        repo.delete_branch("work")
        assert list(repo.branches()) == ["main"]
        assert tree(repo, commit) == {"a": b"1"}
        repo.create_branch("work", commit)
        assert tree(repo, "work") == {"a": b"1"}, "what was staged went with the branch"

    def test_main_cannot_be_deleted(self, repo: Repository) -> None:
        with pytest.raises(ConflictError, match="main"):
            repo.delete_branch("main")
        assert list(repo.branches()) == ["main"]

    # -- tags ---------------------------------------------------------------------------------------------------
    def test_a_tag_stays_where_it_was_made(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        assert repo.create_tag("r1", "main") == first
        save(repo, "main", {"a": b"2"})
        repo.create_tag("old.but-good_1", "main~1")
        assert repo.tags() == {"old.but-good_1": first, "r1": first}
        assert repo.tags("r") == {"r1": first}
        assert tree(repo, "r1") == {"a": b"1"}

    def test_a_tag_can_be_removed_and_made_again(self, repo: Repository) -> None:
        repo.create_tag("r1", "main")
        repo.delete_tag("r1")
        assert dict(repo.tags()) == {}
        with pytest.raises(RefNotFound, match="r1"):
            repo.delete_tag("r1")
        commit = save(repo, "main", {"a": b"1"})
        assert repo.create_tag("r1", "main") == commit

    def test_of_many_who_make_one_tag_one_wins(self, repo: Repository) -> None:
        handles = [self.open_again(repo) for _ in range(8)]
        commits = [save(repo, "main", {"n": bytes([n])}) for n in range(8)]

        def make(number: int) -> str | None:
            try:
                return handles[number].create_tag("lock.main", commits[number])
            except AlreadyExists:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = [commit for commit in pool.map(make, range(8)) if commit]
        assert won == [repo.tags()["lock.main"]]

    # -- expressions --------------------------------------------------------------------------------------------
    def test_every_form_of_reference_resolves(self, repo: Repository) -> None:
        first = save(repo, "main", {"a": b"1"})
        second = save(repo, "main", {"a": b"2"})
        side = fork(repo, "side", {"b": b"1"}, first)
        merged = repo.merge("side", "main", "merge")
        repo.create_tag("r1", "main")
        expected = {
            merged: ["main", "main@", "r1", merged, merged[:12], "main~0", "main^0", "r1~0^0"],
            second: ["main~1", "main~", "main^1", "main^", "r1~1", merged + "~1", merged[:12] + "^"],
            side: ["main^2", "side", "side@", "r1^2"],
            first: ["main~2", "main~1~1", "main^1^1", "main^2~1", "main^2^", "side~"],
        }
        for commit, refs in expected.items():
            for ref in refs:
                assert repo.resolve(ref) == commit, ref
        assert repo.commit_info("main").parents == (second, side)

    def test_a_branch_hides_a_commit_prefix_and_a_commit_id_hides_everything(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        repo.create_branch(commit[:8], "main~1")
        assert repo.resolve(commit[:8]) == repo.resolve("main~1")
        assert repo.resolve(commit) == commit

    @pytest.mark.parametrize(
        "ref", ["mian", "main~5", "main^2", "main^9", "f" * 64, "main@~1", "main~x", "~1", "", "a b", "r1@", "main~1@"]
    )
    def test_what_leads_nowhere_is_not_found(self, repo: Repository, ref: str) -> None:
        repo.create_tag("r1", "main")
        with pytest.raises(RefNotFound):
            repo.resolve(ref)
        with pytest.raises(RefNotFound):
            repo.commit_info(ref)
        with pytest.raises(RefNotFound):
            list(repo.list(ref))
        with pytest.raises(RefNotFound):
            list(repo.log(ref))
        with pytest.raises(RefNotFound):
            repo.get(ref, "a")
        with pytest.raises(RefNotFound):
            repo.create_branch("work", ref)
        with pytest.raises(RefNotFound):
            repo.create_tag("t", ref)
        assert list(repo.branches()) == ["main"]

    def test_an_ambiguous_prefix_is_not_found(self, repo: Repository) -> None:
        # 17 commits: two of them share their first digit.
        commits = [save(repo, "main", {"n": bytes([n])}) for n in range(17)]
        digits = [commit[0] for commit in commits]
        ambiguous = next(digit for digit in digits if digits.count(digit) > 1)
        with pytest.raises(RefNotFound):
            repo.resolve(ambiguous)

    def test_an_unknown_name_is_answered_with_the_nearest(self, repo: Repository) -> None:
        repo.create_branch("cand-march", "main")
        repo.create_tag("release-one", "main")
        for wrong, right in (("cand-mrach", "cand-march"), ("release-on", "release-one")):
            with pytest.raises(RefNotFound) as caught:
                repo.resolve(wrong)
            assert wrong in caught.value.message
            assert right in caught.value.fix
        for call in (repo.delete_branch, repo.reset, lambda name: repo.put(name, "k", b"")):
            with pytest.raises(RefNotFound) as caught:
                call("cand-mrach")
            assert "cand-mrach" in caught.value.message
            assert "cand-march" in caught.value.fix

    def test_a_staging_area_is_no_commit(self, repo: Repository) -> None:
        with pytest.raises(BadInput, match=r"main\$"):
            repo.resolve("main$")
        with pytest.raises(BadInput):
            repo.create_tag("t", "main$")

    # -- commit and log -----------------------------------------------------------------------------------------
    def test_a_commit_tells_message_metadata_parents_and_time(self, repo: Repository) -> None:
        first = repo.resolve("main")
        commit = repo.commit_info(save(repo, "main", {"a": b"1"}, "why", {"run": "7", "é": "ü"}))
        assert (commit.message, dict(commit.metadata), commit.parents) == ("why", {"run": "7", "é": "ü"}, (first,))
        assert commit.committer
        assert commit.created.tzinfo is not None
        assert commit.created >= repo.commit_info(first).created
        assert repo.commit_info("main") == commit

    def test_metadata_that_is_not_text_is_refused(self, repo: Repository) -> None:
        stage(repo, "main", {"a": b"1"})
        with pytest.raises(BadInput, match="run"):
            repo.commit("main", "no", {"run": 7})  # type: ignore[dict-item]
        assert repo.commit_info("main").parents == ()

    def test_nothing_staged_is_nothing_to_commit(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        with pytest.raises(NothingToCommit, match="main"):
            repo.commit("main", "again")
        repo.put("main", "a", b"1")
        with pytest.raises(NothingToCommit):
            repo.commit("main", "the same bytes")
        assert repo.resolve("main") == head

    def test_an_empty_commit_is_made_on_request(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        empty = repo.commit("main", "sign of life", {"n": "1"}, allow_empty=True)
        assert repo.commit_info(empty).parents == (head,)
        assert tree(repo, empty) == {"a": b"1"}
        assert empty != repo.commit("main", "sign of life", {"n": "1"}, allow_empty=True)

    def test_log_goes_from_new_to_old(self, repo: Repository) -> None:
        commits = [repo.resolve("main")] + [save(repo, "main", {"n": bytes([n])}, f"c{n}") for n in range(5)]
        assert [commit.id for commit in repo.log("main")] == commits[::-1]
        assert [commit.id for commit in repo.log("main", limit=2)] == [commits[5], commits[4]]
        assert [commit.message for commit in repo.log("main~3", limit=1)] == ["c1"]
        stage(repo, "main", {"n": b"staged"})
        assert next(repo.log("main")).id == commits[5]

    def test_log_of_a_merge_holds_both_sides_children_first(self, repo: Repository) -> None:
        root = repo.resolve("main")
        left = save(repo, "main", {"a": b"1"})
        side = [fork(repo, "side", {"b": b"1"}, root), save(repo, "side", {"b": b"2"})]
        merged = repo.merge("side", "main", "merge")
        log = list(repo.log("main"))
        assert {commit.id for commit in log} == {root, left, merged, *side}
        place = {commit.id: number for number, commit in enumerate(log)}
        assert all(place[commit.id] < place[parent] for commit in log for parent in commit.parents)
        assert [commit.id for commit in repo.log("main", first_parent=True)] == [merged, left, root]

    # -- protection ---------------------------------------------------------------------------------------------
    def test_a_protected_branch_is_moved_by_merge_and_revert_only(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        fork(repo, "work", {"b": b"2"})
        assert repo.protected() == ()
        repo.protect("ma*")
        repo.protect("ma*")
        assert repo.protected() == ("ma*",)
        before = state(repo)
        refused: list[Callable[[], object]] = [
            lambda: repo.put("main", "c", b"3"),
            lambda: repo.delete("main", ["a"]),
            lambda: repo.commit("main", "no"),
            lambda: repo.commit("main", "no", allow_empty=True),
            lambda: repo.reset("main"),
        ]
        for call in refused:
            with pytest.raises(ProtectedBranch, match="main"):
                call()
        assert state(repo) == before
        repo.put("work", "c", b"3")
        merged = repo.merge("work", "main", "merge", expect_head=head)
        assert tree(repo, "main") == {"a": b"1", "b": b"2"}
        repo.revert("main", merged, parent=1)
        assert tree(repo, "main") == {"a": b"1"}

    def test_a_protected_branch_that_is_not_main_can_be_deleted(self, repo: Repository) -> None:
        repo.create_branch("cand-a", "main")
        repo.protect("cand-*")
        repo.delete_branch("cand-a")
        assert list(repo.branches()) == ["main"]

    @pytest.mark.parametrize("pattern", ["", "[", "a b", "a/b"])
    def test_a_malformed_pattern_is_refused(self, repo: Repository, pattern: str) -> None:
        with pytest.raises(InvalidName) as caught:
            repo.protect(pattern)
        assert repr(pattern) in str(caught.value)
        repo.put("main", "a", b"1")

    # -- reopening ----------------------------------------------------------------------------------------------
    def test_another_handle_sees_all_of_it(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        fork(repo, "work", {"b": b"2"})
        repo.create_tag("r1", "work")
        stage(repo, "work", {"a": None, "c": b"3"})
        again = self.open_again(repo)
        assert state(again) == state(repo)
        assert tree(again, "work") == {"b": b"2", "c": b"3"}
        with pytest.raises(ObjectNotFound):
            again.get("work", "a")
