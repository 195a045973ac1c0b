"""Contract: nothing is cut where an engine pages; a server gives 1,000 entries at a time."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lake.errors import ConflictError
from lake.repository import Change, Repository
from lake.testing.trees import kinds

MANY = 10_050
PAGED = 1_050


def _in_threads(call: Callable[[str], object], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, names))


def _save(repo: Repository, branch: str, keys: Iterable[str], data: bytes) -> None:
    _in_threads(lambda key: repo.put(branch, key, data), keys)
    repo.commit(branch, "all of them")


class PagingContract:
    """Needs a fixture `repo` with a fresh repository."""

    @pytest.mark.slow
    def test_ten_thousand_objects_are_listed_compared_and_removed_whole(self, repo: Repository) -> None:
        keys = [f"k/{number:05}" for number in range(MANY)]
        _in_threads(lambda key: repo.put("main", key, b""), keys)
        assert [entry.key for entry in repo.list("main")] == keys
        assert list(repo.uncommitted("main")) == [Change(key, "added") for key in keys]
        repo.commit("main", "many")
        assert [entry.key for entry in repo.list("main@", "k/", after=keys[999])] == keys[1000:]
        assert [entry.key for entry in repo.list("main@", limit=MANY - 1)] == keys[:-1]
        assert list(repo.diff("main~1", "main")) == [Change(key, "added") for key in keys]
        assert kinds(repo.diff("main", "main~1", three_dot=True)) == {}
        assert kinds(repo.diff("main~1", "main", three_dot=True)) == dict.fromkeys(keys, "added")
        repo.delete("main", keys[25:])
        assert [entry.key for entry in repo.list("main")] == keys[:25]
        assert list(repo.uncommitted("main")) == [Change(key, "removed") for key in keys[25:]]
        removed = repo.commit("main", "few")
        repo.revert("main", removed)
        assert [entry.key for entry in repo.list("main@")] == keys
        assert [commit.message for commit in repo.log("main", objects=[keys[-1]])] == [
            f"Revert {removed}",
            "few",
            "many",
        ]
        nowhere = [f"nowhere/{number}" for number in range(MANY)]
        assert list(repo.log("main", objects=nowhere)) == []
        assert list(repo.log("main", prefixes=nowhere)) == []
        assert len(list(repo.log("main", objects=[*nowhere, keys[-1]]))) == 3

    @pytest.mark.slow
    def test_more_than_a_page_of_contested_units_is_named_whole(self, repo: Repository) -> None:
        keys = [f"tables/t{number:04}/part" for number in range(PAGED)]
        _save(repo, "main", keys, b"0")
        repo.create_branch("side", "main")
        _save(repo, "side", keys, b"1")
        _save(repo, "main", keys, b"2")
        with pytest.raises(ConflictError) as caught:
            repo.merge("side", "main", "merge")
        assert caught.value.units == tuple(key.removesuffix("part") for key in keys)

    @pytest.mark.slow
    def test_more_than_a_page_of_branches_tags_and_commits_is_whole(self, repo: Repository) -> None:
        names = [f"b{number:04}" for number in range(PAGED)]
        head = repo.resolve("main")
        _in_threads(lambda name: repo.create_branch(name, "main"), names)
        assert repo.branches() == dict.fromkeys([*names, "main"], head)
        assert list(repo.branches("b1")) == names[1000:]
        _in_threads(lambda name: repo.create_tag(f"t.{name}", "main"), names)
        assert repo.tags() == {f"t.{name}": head for name in names}
        assert list(repo.tags("t.b10")) == [f"t.{name}" for name in names[1000:]]
        made = [repo.commit("main", f"c{number}", allow_empty=True) for number in range(PAGED)]
        assert [commit.id for commit in repo.log("main")] == [*reversed(made), head]
        assert [commit.id for commit in repo.log("main", limit=PAGED)] == list(reversed(made))
        assert repo.resolve(f"main~{PAGED}") == head
