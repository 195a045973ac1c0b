"""Contract: objects, keys, listing, staging."""

from pathlib import Path

import pytest

from lake.errors import BadInput, InvalidName, NotFound, NothingToCommit, ObjectNotFound, RefNotFound
from lake.repository import Change, Repository
from lake.testing.trees import fork, kinds, save, stage, tree

# All of these are different objects, whatever a file system makes of them.
STRANGE = (
    "a",
    "a/",
    "a/b",
    "a//b",
    "/lead",
    "..",
    "../up",
    ".",
    "x\ny",
    "a b",
    "a%2Fb",
    "a+b",
    "a?b=c#d",
    "é",
    "日本",
    "~",
    "A",
)


class KeysContract:
    """Needs a fixture `repo` with a fresh repository."""

    # -- objects ------------------------------------------------------------------------------------------------
    def test_what_was_put_is_read_back(self, repo: Repository) -> None:
        for key, data in (("empty", b""), ("text", b"hello"), ("binary", bytes(range(256)) * 300)):
            stat = repo.put("main", key, data)
            assert (stat.key, stat.size) == (key, len(data))
            assert repo.get("main", key) == data
            assert repo.stat("main", key).identity == stat.identity

    def test_a_file_is_copied_and_left_alone(self, repo: Repository, tmp_path: Path) -> None:
        source = tmp_path / "tile.raw"
        source.write_bytes(b"pixels")
        before = source.stat()
        repo.put("main", "raw/tile", source)
        commit = repo.commit("main", "a tile")
        after = source.stat()
        assert (before.st_mtime_ns, before.st_mode, before.st_ino) == (after.st_mtime_ns, after.st_mode, after.st_ino)
        source.write_bytes(b"changed")
        assert repo.get(commit, "raw/tile") == b"pixels"

    def test_a_missing_file_is_named_and_nothing_is_staged(self, repo: Repository, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            repo.put("main", "k", tmp_path / "nowhere.raw")
        assert list(repo.uncommitted("main")) == []

    def test_content_type_and_metadata_are_kept(self, repo: Repository) -> None:
        repo.put("main", "k", b"1", content_type="text/plain", metadata={"voxel-nm": "8", "unit": "nm"})
        for ref in ("main", repo.commit("main", "one")):
            stat = repo.stat(ref, "k")
            assert (stat.content_type, dict(stat.metadata)) == ("text/plain", {"voxel-nm": "8", "unit": "nm"})
            assert [entry.identity for entry in repo.list(ref)] == [stat.identity]
        assert repo.stat("main", "k") == repo.stat("main@", "k")

    def test_the_default_content_type_is_plain_bytes(self, repo: Repository) -> None:
        assert repo.put("main", "info.json", b"{}").content_type == "application/octet-stream"
        assert repo.stat("main", "info.json").content_type == "application/octet-stream"

    def test_equal_bytes_are_no_change_but_another_type_or_metadata_is(self, repo: Repository) -> None:
        repo.put("main", "k", b"1", metadata={"a": "1"})
        repo.commit("main", "one")
        repo.put("main", "k", b"1", metadata={"a": "1"})
        assert list(repo.uncommitted("main")) == []
        with pytest.raises(NothingToCommit):
            repo.commit("main", "the same")
        repo.put("main", "k", b"1", content_type="text/plain", metadata={"a": "1"})
        assert list(repo.uncommitted("main")) == [Change("k", "changed")]
        repo.put("main", "k", b"1", metadata={"a": "2"})
        assert list(repo.uncommitted("main")) == [Change("k", "changed")]
        repo.put("main", "k", b"1", metadata={"a": "1"})
        assert list(repo.uncommitted("main")) == []

    def test_a_missing_object_is_not_found_on_get_and_stat(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a/b": b"1"})
        for ref in ("main", commit):
            for key in ("a", "a/", "a/b/", "a/c"):
                with pytest.raises(ObjectNotFound) as caught:
                    repo.get(ref, key)
                assert repr(key) in str(caught.value)
                with pytest.raises(ObjectNotFound):
                    repo.stat(ref, key)

    def test_writing_goes_to_branches_only(self, repo: Repository) -> None:
        commit = save(repo, "main", {"a": b"1"})
        repo.create_tag("r1", "main")
        for ref in ("nobody", "r1", commit, "main~0", "main@"):
            with pytest.raises(RefNotFound):
                repo.put(ref, "k", b"1")
            with pytest.raises(RefNotFound):
                repo.delete(ref, ["a"])
            with pytest.raises(RefNotFound):
                repo.commit(ref, "no")
            with pytest.raises(RefNotFound):
                repo.reset(ref)
            with pytest.raises(RefNotFound):
                list(repo.uncommitted(ref))
        assert tree(repo, "r1") == {"a": b"1"}

    # -- keys ---------------------------------------------------------------------------------------------------
    def test_keys_that_no_folder_can_hold_live_side_by_side_in_byte_order(self, repo: Repository) -> None:
        commit = save(repo, "main", {key: key.encode() for key in STRANGE})
        expected = sorted(STRANGE, key=str.encode)
        for ref in ("main", commit):
            assert [entry.key for entry in repo.list(ref)] == expected
            assert tree(repo, ref) == {key: key.encode() for key in expected}
        assert list(kinds(repo.diff("main~1", "main"))) == expected

    def test_strange_keys_are_deleted_one_by_one(self, repo: Repository) -> None:
        save(repo, "main", dict.fromkeys(STRANGE, b"1"))
        left = sorted(STRANGE, key=str.encode)
        while left:
            repo.delete("main", [left.pop(len(left) // 2)])
            assert [entry.key for entry in repo.list("main")] == left
        repo.commit("main", "all gone")
        assert tree(repo, "main") == {}

    def test_a_key_has_1_to_1024_bytes_not_characters(self, repo: Repository) -> None:
        for key in ("k" * 1024, "é" * 512):
            repo.put("main", key, b"long")
            assert repo.get("main", key) == b"long"
        for key in ("", "k" * 1025, "é" * 513, "\ud800"):
            with pytest.raises(InvalidName):
                repo.put("main", key, b"1")
        assert len(list(repo.list("main"))) == 2

    # -- listing ------------------------------------------------------------------------------------------------
    def test_listing_is_cut_by_prefix_after_and_limit(self, repo: Repository) -> None:
        keys = ["a", "a/1", "a/2", "a/3", "b/1", "é"]
        commit = save(repo, "main", dict.fromkeys(keys[:3], b""))
        stage(repo, "main", dict.fromkeys(keys[3:], b""))

        def listed(ref: str = "main", prefix: str = "", after: str = "", limit: int | None = None) -> list[str]:
            return [entry.key for entry in repo.list(ref, prefix, after=after, limit=limit)]

        assert listed() == keys
        assert listed(commit) == keys[:3]
        assert listed(prefix="a/") == ["a/1", "a/2", "a/3"]
        assert listed(prefix="a/", after="a/1") == ["a/2", "a/3"]
        assert listed(prefix="a/", after="a/15") == ["a/2", "a/3"]
        assert listed(prefix="a/", after="a/1", limit=1) == ["a/2"]
        assert listed(after="a/3") == ["b/1", "é"]
        assert listed(prefix="b/", after="a") == ["b/1"]
        assert listed(prefix="a/", after="b") == []
        assert listed(limit=0) == []
        assert listed(prefix="zzz") == []
        assert listed(limit=99) == keys

    # -- staging ------------------------------------------------------------------------------------------------
    def test_a_branch_name_shows_what_is_staged_and_everything_else_the_head(self, repo: Repository) -> None:
        head = save(repo, "main", {"kept": b"1", "gone": b"1", "new": b"old"})
        stage(repo, "main", {"gone": None, "new": b"2", "added": b"3"})
        committed = {"gone": b"1", "kept": b"1", "new": b"old"}
        staged = {"added": b"3", "kept": b"1", "new": b"2"}
        for ref in ("main", "main$"):
            assert tree(repo, ref) == staged
            with pytest.raises(ObjectNotFound):
                repo.get(ref, "gone")
        for ref in ("main@", "main~0", "main^0", head, head[:20]):
            assert tree(repo, ref) == committed
        repo.create_tag("t", "main")
        assert tree(repo, "t") == committed
        assert repo.resolve("main") == head
        assert list(repo.diff(head, "main")) == []

    def test_uncommitted_names_what_a_commit_would_change(self, repo: Repository) -> None:
        save(repo, "main", {"a/changed": b"1", "a/gone": b"1", "kept": b"1"})
        stage(repo, "main", {"a/changed": b"2", "a/gone": None, "b/new": b"3", "kept": b"1"})
        stage(repo, "main", {"short": b"lived"})
        stage(repo, "main", {"short": None, "never": None})
        expected = {"a/changed": "changed", "a/gone": "removed", "b/new": "added"}
        assert kinds(repo.uncommitted("main")) == expected
        assert list(kinds(repo.uncommitted("main"))) == sorted(expected)
        assert kinds(repo.uncommitted("main", "b/")) == {"b/new": "added"}
        repo.commit("main", "all of it")
        assert list(repo.uncommitted("main")) == []
        assert kinds(repo.diff("main~1", "main")) == expected

    def test_deleting_what_is_not_there_changes_nothing(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        repo.delete("main", ["nothing", "a/"])
        repo.delete("main", [])
        assert list(repo.uncommitted("main")) == []
        with pytest.raises(NothingToCommit):
            repo.commit("main", "no")

    def test_a_deleted_key_can_be_put_again(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        stage(repo, "main", {"a": None})
        stage(repo, "main", {"a": b"2"})
        assert kinds(repo.uncommitted("main")) == {"a": "changed"}
        assert tree(repo, repo.commit("main", "two")) == {"a": b"2"}

    def test_reset_drops_what_is_staged_on_this_branch_only(self, repo: Repository) -> None:
        head = fork(repo, "work", {"a": b"1"})
        stage(repo, "work", {"a": None, "b": b"2"})
        stage(repo, "main", {"c": b"3"})
        repo.reset("work")
        assert tree(repo, "work") == {"a": b"1"}
        assert list(repo.uncommitted("work")) == []
        assert repo.resolve("work") == head
        assert kinds(repo.uncommitted("main")) == {"c": "added"}
        repo.reset("work")

    def test_staged_objects_of_two_branches_do_not_mix(self, repo: Repository) -> None:
        fork(repo, "work", {"a": b"1"})
        stage(repo, "work", {"k": b"work"})
        stage(repo, "main", {"k": b"main"})
        assert (repo.get("work", "k"), repo.get("main", "k")) == (b"work", b"main")
        repo.commit("work", "one")
        assert (tree(repo, "work@"), tree(repo, "main@")) == ({"a": b"1", "k": b"work"}, {})

    def test_what_is_neither_bytes_nor_a_path_is_bad_input_and_its_type_is_named(self, repo: Repository) -> None:
        for data, name in (("text", "str"), (7, "int"), (None, "NoneType"), ([1], "list")):
            with pytest.raises(BadInput, match=name):
                repo.put("main", "k", data)  # type: ignore[arg-type]
        assert list(repo.uncommitted("main")) == []
