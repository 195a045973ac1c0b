"""Somebody moves the branch between the check and the deed: on a server that compares no heads, by us or not at all."""

import pytest

from lake.errors import ConflictError, DirtyBranch
from lake.testing.trees import save, tree

pytestmark = pytest.mark.lakefs


@pytest.fixture
def repo(lakefs_repo):
    save(lakefs_repo, "main", {"a": b"1", "tables/t/0": b"1"})
    for branch in ("side", "other"):
        lakefs_repo.create_branch(branch, "main")
    save(lakefs_repo, "side", {"b": b"side", "tables/t/1": b"side"})
    return lakefs_repo


def intrude(repo, function_name: str, dest: str, act) -> list[str]:
    """Let `act` happen once, right before the request that moves `dest` is sent."""
    real, done = repo._wire.call, []

    def call(function, *arguments, **options):
        if function.__name__ == function_name and dest in arguments and not done:
            done.append("yes")
            act()
        return real(function, *arguments, **options)

    repo._wire.call = call
    return done


def test_a_merge_that_expected_another_head_is_undone_and_told(repo):
    head = repo.resolve("main")
    done = intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"c": b"late"}))
    with pytest.raises(ConflictError, match=f"moved from {head}"):
        repo.merge("side", "main", "merge", expect_head=head)
    assert done
    assert tree(repo, "main") == {"a": b"1", "c": b"late", "tables/t/0": b"1"}


def test_a_squash_that_was_undone_can_be_done_again(repo):
    head = repo.resolve("main")
    intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"c": b"late"}))
    with pytest.raises(ConflictError, match="was reverted"):
        repo.merge("side", "main", "land", expect_head=head, squash=True)
    repo.merge("side", "main", "land", expect_head=repo.resolve("main"), squash=True)
    assert tree(repo, "main")["b"] == b"side"


def test_a_merge_that_expected_nothing_stands_beside_what_came_in(repo):
    done = intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"c": b"late"}))
    merged = repo.merge("side", "main", "merge")
    assert done
    assert repo.resolve("main") == merged
    assert tree(repo, "main") == {
        "a": b"1",
        "b": b"side",
        "c": b"late",
        "tables/t/0": b"1",
        "tables/t/1": b"side",
    }


def test_a_unit_that_came_in_meanwhile_is_not_torn(repo):
    done = intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"tables/t/2": b"late"}))
    with pytest.raises(ConflictError) as caught:
        repo.merge("side", "main", "merge")
    assert done
    assert caught.value.units == ("tables/t/",)
    assert tree(repo, "main", "tables/") == {"tables/t/0": b"1", "tables/t/2": b"late"}


def test_equal_bytes_that_came_in_meanwhile_do_not_swallow_an_object(repo):
    # The fault of lakeFS's merge that `lake.engines.lakefs.threeway` tells of, met by a merge that seemed straight:
    # the base holds `z`, main loses it and gains `y` with the same bytes.
    save(repo, "main", {"z": b"same"})
    repo.create_branch("late", "main")
    save(repo, "late", {"z": None})
    done = intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"y": b"same"}))
    with pytest.raises(ConflictError, match="was reverted"):
        repo.merge("late", "main", "merge")
    assert done
    assert tree(repo, "main")["y"] == b"same"


def test_an_object_in_conflict_that_came_in_meanwhile_is_named(repo):
    done = intrude(repo, "merge_into_branch", "main", lambda: save(repo, "main", {"b": b"late"}))
    with pytest.raises(ConflictError) as caught:
        repo.merge("side", "main", "merge")
    assert done
    assert caught.value.keys == ("b",)
    assert tree(repo, "main")["b"] == b"late"


@pytest.mark.parametrize("function", ["merge_into_branch", "revert_branch"])
def test_what_was_staged_meanwhile_makes_it_dirty(repo, function):
    done = intrude(repo, function, "main", lambda: repo.put("main", "staged", b"late"))
    with pytest.raises(DirtyBranch, match="staged"):
        repo.merge("side", "main", "merge") if function == "merge_into_branch" else repo.revert("main", "main")
    assert done
    assert [change.key for change in repo.uncommitted("main")] == ["staged"]


def test_a_revert_beside_what_came_in_undoes_its_own_commit_only(repo):
    commit = save(repo, "main", {"a": b"2"})
    done = intrude(repo, "revert_branch", "main", lambda: save(repo, "main", {"c": b"late"}))
    undone = repo.revert("main", commit)
    assert done
    assert repo.resolve("main") == undone
    assert tree(repo, "main") == {"a": b"1", "c": b"late", "tables/t/0": b"1"}


def test_a_revert_of_what_was_changed_meanwhile_is_refused(repo):
    commit = save(repo, "main", {"a": b"2"})
    done = intrude(repo, "revert_branch", "main", lambda: save(repo, "main", {"a": b"3"}))
    with pytest.raises(ConflictError) as caught:
        repo.revert("main", commit)
    assert done
    assert caught.value.keys == ("a",)
    assert tree(repo, "main")["a"] == b"3"


def test_a_revert_of_a_unit_that_was_appended_to_meanwhile_leaves_it_whole(repo):
    commit = save(repo, "main", {"tables/t/1": b"append"})
    done = intrude(repo, "revert_branch", "main", lambda: save(repo, "main", {"tables/t/2": b"late"}))
    with pytest.raises(ConflictError) as caught:
        repo.revert("main", commit)
    assert done
    assert caught.value.units == ("tables/t/",)
    assert sorted(tree(repo, "main", "tables/")) == ["tables/t/0", "tables/t/1", "tables/t/2"]
