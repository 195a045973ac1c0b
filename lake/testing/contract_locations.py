"""Contract: places that native libraries open themselves; for engines that hand out folders or buckets."""

import pickle
from typing import Any

import pytest
import tensorstore as ts

from lake.errors import BadInput, ConflictError, DirtyBranch, ProtectedBranch, RefNotFound, UnrepresentableKey
from lake.location import Location
from lake.repository import Repository
from lake.testing.trees import kinds, save, stage, tree


def write_file(location: Location, name: str, data: bytes) -> None:
    """Write a file the way a program of the user's would: into the folder, or to the gateway."""
    if location.s3 is None:
        path = location.child(name).path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file under the name, as TensorStore, delta-rs and most programs do: links stay as they are.
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(data)
        fresh.replace(path)
    else:
        _store(location).write(name, data).result()


def read_file(location: Location, name: str) -> bytes | None:
    """Read a file, or None if there is none."""
    if location.s3 is None:
        path = location.child(name).path
        return path.read_bytes() if path.is_file() else None
    found = _store(location).read(name).result()
    return bytes(found.value) if found.state == "value" else None


def remove_file(location: Location, name: str) -> None:
    """Remove a file."""
    if location.s3 is None:
        location.child(name).path.unlink()
    else:
        _store(location).write(name, None).result()


def _store(location: Location) -> Any:
    return ts.KvStore.open(location.kvstore()).result()


class LocationContract:
    """Needs a fixture `repo` with a fresh repository."""

    #: False for an engine whose locations are buckets: there any key is as good as another.
    folders = True

    # -- reading ------------------------------------------------------------------------------------------------
    def test_a_location_holds_the_objects_under_its_prefix(self, repo: Repository) -> None:
        save(repo, "main", {"v/info": b"i", "v/deep/er/x": b"x", "v/empty": b"", "vv/other": b"no", "loose": b"no"})
        location = repo.location_of("main", "v/")
        assert not location.writable
        assert read_file(location, "info") == b"i"
        assert read_file(location, "deep/er/x") == b"x"
        assert read_file(location, "empty") == b""
        assert read_file(location.child("deep"), "er/x") == b"x"
        assert read_file(location, "other") is None
        assert read_file(location, "nothing") is None

    def test_tensorstore_reads_a_location_without_our_help(self, repo: Repository) -> None:
        save(repo, "main", {"v/info": b"i", "v/deep/x": b"x"})
        store = _store(repo.location_of("main", "v/"))
        assert sorted(store.list().result()) == [b"deep/x", b"info"]
        assert bytes(store.read("deep/x").result().value) == b"x"

    def test_a_location_is_pinned_to_the_commit_it_was_asked_for(self, repo: Repository) -> None:
        old = save(repo, "main", {"v/x": b"1", "v/y": b"1"})
        pinned = repo.location_of("main", "v/")
        stage(repo, "main", {"v/x": b"staged"})
        assert read_file(repo.location_of("main", "v/"), "x") == b"1", "a location shows what is committed"
        save(repo, "main", {"v/x": b"2", "v/y": None, "v/z": b"2"})
        for location in (pinned, repo.location_of(old, "v/"), repo.location_of("main~1", "v/")):
            assert [read_file(location, name) for name in "xyz"] == [b"1", b"1", None]
        assert [read_file(repo.location_of("main", "v/"), name) for name in "xyz"] == [b"2", None, b"2"]

    def test_a_location_travels_to_another_process(self, repo: Repository) -> None:
        save(repo, "main", {"v/x": b"1"})
        location = pickle.loads(pickle.dumps(repo.location_of("main", "v/")))
        assert read_file(location, "x") == b"1"

    def test_a_location_of_nothing_holds_nothing(self, repo: Repository) -> None:
        location = repo.location_of("main", "nothing/here/")
        assert read_file(location, "x") is None

    def test_places_that_cannot_be_are_refused(self, repo: Repository) -> None:
        commit = save(repo, "main", {"v/x": b"1"})
        with pytest.raises(RefNotFound, match="mian"):
            repo.location_of("mian", "v/")
        for branch in ("mian", commit):
            with pytest.raises(RefNotFound):
                repo.workspace(branch, "v/")
        for call in (repo.location_of, repo.workspace):
            with pytest.raises(BadInput, match="'v'"):
                call("main", "v")

    @pytest.mark.parametrize(
        "keys", [("v/a", "v/a/b"), ("v/..",), ("v/../x",), ("v/a//b",), ("v//x",), ("v/a/",), ("v/.",)]
    )
    def test_keys_that_no_folder_can_hold_are_refused_as_a_folder_only(
        self, repo: Repository, keys: tuple[str, ...]
    ) -> None:
        save(repo, "main", dict.fromkeys(keys, b"1") | {"w/fine": b"1"})
        if not self.folders:
            repo.location_of("main", "v/")
            return
        for call in (repo.location_of, repo.workspace):
            with pytest.raises(UnrepresentableKey, match="v/"):
                call("main", "v/")
        assert tree(repo, "main", "v/") == dict.fromkeys(sorted(keys), b"1")
        assert read_file(repo.location_of("main", "w/"), "fine") == b"1"

    # -- writing ------------------------------------------------------------------------------------------------
    def test_what_is_written_in_a_workspace_is_in_the_next_commit(self, repo: Repository) -> None:
        old = save(repo, "main", {"v/kept": b"1", "v/changed": b"1", "v/gone": b"1", "beside": b"1"})
        place = repo.workspace("main", "v/")
        assert place.writable
        assert [read_file(place, name) for name in ("kept", "changed", "gone")] == [b"1"] * 3
        write_file(place, "changed", b"two")
        write_file(place, "new/deep", b"3")
        remove_file(place, "gone")
        expected = {"v/changed": "changed", "v/gone": "removed", "v/new/deep": "added"}
        assert kinds(repo.uncommitted("main")) == expected
        assert list(kinds(repo.uncommitted("main"))) == sorted(expected)
        assert kinds(repo.uncommitted("main", "v/n")) == {"v/new/deep": "added"}
        commit = repo.commit("main", "by native means")
        assert tree(repo, commit) == {"beside": b"1", "v/changed": b"two", "v/kept": b"1", "v/new/deep": b"3"}
        assert tree(repo, old) == {"beside": b"1", "v/changed": b"1", "v/gone": b"1", "v/kept": b"1"}
        assert list(repo.uncommitted("main")) == []

    def test_a_workspace_goes_on_after_a_commit(self, repo: Repository) -> None:
        place = repo.workspace("main", "v/")
        for number in range(3):
            write_file(place, "x", bytes([number] * (number + 1)))
            write_file(place, f"n{number}", b"1")
            repo.commit("main", f"c{number}")
            place = repo.workspace("main", "v/")
        assert repo.get("main~2", "v/x") == b"\0"
        assert repo.get("main", "v/x") == b"\2\2\2"
        assert sorted(tree(repo, "main")) == ["v/n0", "v/n1", "v/n2", "v/x"]

    def test_two_workspaces_and_a_put_make_one_commit(self, repo: Repository) -> None:
        one, two = repo.workspace("main", "v/"), repo.workspace("main", "tables/t/")
        write_file(one, "x", b"1")
        write_file(two, "x", b"2")
        repo.put("main", "v/put", b"3")
        repo.put("main", "note", b"4")
        repo.commit("main", "all of it")
        assert tree(repo, "main") == {"note": b"4", "tables/t/x": b"2", "v/put": b"3", "v/x": b"1"}
        assert read_file(repo.workspace("main", "v/"), "put") == b"3"

    def test_a_workspace_shows_what_was_put_before_it_was_made(self, repo: Repository) -> None:
        save(repo, "main", {"v/x": b"1", "v/y": b"1"})
        stage(repo, "main", {"v/x": b"2", "v/y": None, "v/z": b"2"})
        place = repo.workspace("main", "v/")
        assert [read_file(place, name) for name in "xyz"] == [b"2", None, b"2"]
        write_file(place, "w", b"3")
        repo.commit("main", "both ways")
        assert tree(repo, "main") == {"v/w": b"3", "v/x": b"2", "v/z": b"2"}

    def test_an_object_deleted_through_the_repository_goes_although_a_workspace_holds_it(
        self, repo: Repository
    ) -> None:
        save(repo, "main", {"v/x": b"1", "v/y": b"1"})
        place = repo.workspace("main", "v/")
        write_file(place, "z", b"1")
        repo.delete("main", ["v/x"])
        repo.commit("main", "one less, one more")
        assert tree(repo, "main") == {"v/y": b"1", "v/z": b"1"}
        write_file(repo.workspace("main", "v/"), "w", b"1")
        repo.commit("main", "it does not come back")
        assert tree(repo, "main") == {"v/w": b"1", "v/y": b"1", "v/z": b"1"}

    def test_one_key_both_put_and_written_in_a_workspace_is_a_conflict(self, repo: Repository) -> None:
        """Where puts and writes are staged in one place, the earlier is gone: `lake.engines.lakefs` says why."""
        head = save(repo, "main", {"v/x": b"0"})
        write_file(repo.workspace("main", "v/"), "x", b"in the workspace")
        repo.put("main", "v/x", b"put")
        with pytest.raises(ConflictError, match="v/x") as caught:
            repo.commit("main", "which?")
        assert caught.value.keys == ("v/x",)
        assert repo.resolve("main") == head

    def test_reset_drops_what_was_written_in_a_workspace(self, repo: Repository) -> None:
        head = save(repo, "main", {"v/x": b"1"})
        place = repo.workspace("main", "v/")
        write_file(place, "x", b"two")
        write_file(place, "y", b"2")
        repo.reset("main")
        assert list(repo.uncommitted("main")) == []
        place = repo.workspace("main", "v/")
        assert [read_file(place, name) for name in "xy"] == [b"1", None]
        assert repo.resolve("main") == head

    def test_what_is_written_on_one_branch_stays_there(self, repo: Repository) -> None:
        save(repo, "main", {"v/x": b"1"})
        repo.create_branch("side", "main")
        place = repo.workspace("side", "v/")
        write_file(place, "x", b"two")
        assert read_file(repo.workspace("main", "v/"), "x") == b"1"
        repo.commit("side", "two")
        assert (repo.get("side", "v/x"), repo.get("main", "v/x")) == (b"two", b"1")

    def test_a_workspace_of_a_deleted_branch_is_gone_with_it(self, repo: Repository) -> None:
        save(repo, "main", {"v/x": b"1"})
        repo.create_branch("side", "main")
        write_file(repo.workspace("side", "v/"), "y", b"2")
        repo.delete_branch("side")
        repo.create_branch("side", "main")
        assert list(repo.uncommitted("side")) == []
        assert read_file(repo.workspace("side", "v/"), "y") is None

    def test_written_and_unwritten_files_count_for_a_dirty_destination(self, repo: Repository) -> None:
        repo.create_branch("side", "main")
        save(repo, "side", {"a": b"1"})
        place = repo.workspace("main", "v/")
        repo.merge("side", "main", "an untouched workspace is clean")
        place = repo.workspace("main", "v/")
        write_file(place, "x", b"1")
        with pytest.raises(ConflictError, match="main"):
            repo.revert("main", "main", parent=1)
        repo.commit("main", "clean")
        assert tree(repo, "main") == {"a": b"1", "v/x": b"1"}

    def test_a_workspace_follows_a_branch_that_was_merged_into(self, repo: Repository) -> None:
        save(repo, "main", {"v/x": b"1", "v/y": b"1"})
        repo.create_branch("side", "main")
        save(repo, "side", {"v/x": b"side", "v/y": None, "v/new": b"side"})
        repo.workspace("main", "v/")
        repo.merge("side", "main", "merge")
        place = repo.workspace("main", "v/")
        assert [read_file(place, name) for name in ("x", "y", "new")] == [b"side", None, b"side"]
        write_file(place, "z", b"main")
        repo.commit("main", "on top")
        assert tree(repo, "main") == {"v/new": b"side", "v/x": b"side", "v/z": b"main"}

    def test_a_workspace_follows_a_branch_that_was_moved(self, repo: Repository) -> None:
        first = save(repo, "main", {"volumes/em/a": b"1", "volumes/em/gone": b"1"})
        second = save(repo, "main", {"volumes/em/a": b"2", "volumes/em/b": b"2", "volumes/em/gone": None})
        repo.workspace("main", "volumes/em/")
        for commit in (first, second, first):
            repo.reset_to("main", commit)
            place, there = repo.workspace("main", "volumes/em/"), tree(repo, commit)
            for name in ("a", "b", "gone"):
                assert read_file(place, name) == there.get(f"volumes/em/{name}")
        write_file(place, "c", b"3")
        with pytest.raises(DirtyBranch):
            repo.reset_to("main", second)
        repo.commit("main", "on top of the first")
        assert tree(repo, "main") == {**tree(repo, first), "volumes/em/c": b"3"}

    def test_a_protected_branch_has_no_workspace(self, repo: Repository) -> None:
        repo.protect("main")
        with pytest.raises(ProtectedBranch, match="main"):
            repo.workspace("main", "v/")

    # -- sessions -----------------------------------------------------------------------------------------------
    def test_a_session_lands_volumes_and_objects_together(self, repo: Repository) -> None:
        base = save(repo, "main", {"volumes/v/x": b"1", "volumes/v/y": b"1"})
        with repo.session("main") as session:
            place = session.workspace("volumes/v/")
            write_file(place, "x", b"two")
            remove_file(place, "y")
            session.checkpoint()
            write_file(session.workspace("tables/t/"), "part", b"3")
            session.put("note", b"4")
            assert tree(repo, "main") == {"volumes/v/x": b"1", "volumes/v/y": b"1"}
            commit = session.commit("together")
        assert repo.commit_info(commit).parents == (base,)
        assert tree(repo, "main") == {"note": b"4", "tables/t/part": b"3", "volumes/v/x": b"two"}

    def test_what_a_suspended_session_wrote_in_a_workspace_is_there_afterwards(self, repo: Repository) -> None:
        with repo.session("main") as session:
            write_file(session.workspace("v/"), "x", b"1")
            session.suspend()
        with repo.session("main") as again:
            assert again.resumed
            assert read_file(again.workspace("v/"), "x") == b"1"
            again.commit("after a break")
        assert tree(repo, "main") == {"v/x": b"1"}

    def test_a_session_that_only_looked_at_a_workspace_has_nothing_to_commit(self, repo: Repository) -> None:
        head = save(repo, "main", {"v/x": b"1"})
        with repo.session("main") as session:
            assert read_file(session.workspace("v/"), "x") == b"1"
        assert repo.resolve("main") == head
        assert list(repo.branches()) == ["main"]
