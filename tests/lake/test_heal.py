"""Damaged files are healed from a copy, a clone or an origin: by digest, in one step each, and no others."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import lake
from lake.clone import clone
from lake.errors import BadInput
from lake.heal import heal
from lake.scrub import scrub
from lake.testing.crash import python, run
from lake.testing.rot import files, flip, write_each_kind

LARGE = os.urandom(100_000)


@pytest.fixture
def repo(tmp_path):
    """A repository with at least one file of each kind."""
    repo = lake.create(tmp_path / "repo")
    repo.create_branch("ops", "main")
    write_each_kind(repo, LARGE)
    yield repo
    repo.close()


@pytest.fixture
def copy(repo, tmp_path):
    """A copy of the folder, made while all was well."""
    shutil.copytree(repo.root, tmp_path / "copy")
    with closing(lake.open(tmp_path / "copy")) as there:
        yield there


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("objects/*/*", "object"),
        ("manifests/*/*", "manifest"),
        ("incoming/*/*", "staged"),
        ("views/*/*/v/typed", "copy"),
        ("workspaces/*/small", "copy"),
    ],
)
@pytest.mark.parametrize("change", ["flipped", "cut", "gone"])
def test_every_kind_of_file_is_healed_from_a_copy_of_the_folder(repo, copy, pattern, kind, change):
    if change != "flipped" and kind == "copy":
        pytest.skip("a file of a folder that was cut or removed is somebody's work, or made again")
    for path in files(repo, pattern):
        before, stat = path.read_bytes(), path.stat()
        if change == "flipped":
            flip(path, len(before) // 2, 3)
        elif change == "cut":
            path.chmod(0o644)
            os.truncate(path, len(before) - 1)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        else:
            path.unlink()
        healed = heal(repo, copy, budget=None)
        assert healed.ok, (path, healed.left)
        if pattern.startswith("incoming") and change == "gone":
            assert repo.get("work", "staged") == before  # wherever it lies now
        else:
            assert path.read_bytes() == before
        assert kind in {fault.kind for fault in healed.cured}
    assert scrub(repo, budget=None).ok


def test_the_links_of_views_and_workspaces_to_a_healed_object_are_healed_too(repo, copy):
    [view] = (repo.root / "views").glob("*/*/v/large")
    [workspace] = (repo.root / "workspaces").glob("*/v/large")
    flip(repo.stat("work", "v/large").address, 50_000)
    assert (view.read_bytes() == LARGE, workspace.read_bytes() == LARGE) in {(False, True), (False, False)}
    healed = heal(repo, copy, budget=None)
    assert healed.ok, healed.left
    assert view.read_bytes() == workspace.read_bytes() == LARGE
    assert list(repo.uncommitted("work", "v/")) == []


def test_what_was_healed_is_recorded_and_a_later_scrub_is_clean(repo, copy):
    flip(repo.stat("work", "small").address, 3)
    assert not scrub(repo, budget=None).ok
    healed = heal(repo, copy, budget=1)  # what is known to be damaged is looked at whatever the budget
    assert [fault.keys for fault in healed.cured if fault.kind == "object"] == [("small",)]
    assert healed.report.recorded
    with repo.snapshot("main") as snapshot:
        [(damaged,)] = snapshot.sql("SELECT DISTINCT damaged FROM v_integrity").rows()
        states = snapshot.sql("SELECT state FROM ops.scrub_faults ORDER BY ts").rows()
    assert damaged == 0
    assert states[-1] == ("healed",)
    assert scrub(repo, budget=1).healed == ()


def test_it_heals_without_a_branch_for_records_too(tmp_path):
    repo = lake.create(tmp_path / "plain")
    repo.put("main", "k", b"data")
    repo.commit("main", "one")
    shutil.copytree(repo.root, tmp_path / "copy")
    flip(repo.stat("main", "k").address)
    with closing(lake.open(tmp_path / "copy")) as there:
        healed = heal(repo, there, budget=None)
    assert (healed.ok, len(healed.cured), healed.report.recorded) == (True, 1, False)
    assert repo.get("main", "k") == b"data"
    repo.close()


def test_a_damaged_tree_its_ranges_and_their_objects_are_healed_in_one_go(repo, copy):
    for path in [*files(repo, "manifests/*/*"), *files(repo, "objects/*/*")]:
        flip(path, path.stat().st_size // 2, 2)
    repo.close()
    with closing(lake.open(repo.location)) as again:
        healed = heal(again, copy, budget=None)
        assert healed.ok, healed.left
        assert again.get("work", "v/large") == LARGE
        assert {fault.kind for fault in healed.cured} >= {"manifest", "object"}


def test_an_object_that_is_gone_below_a_damaged_manifest_is_found_and_healed_in_the_same_run(repo, copy):
    # Nobody can miss it before the manifest that names it is whole.
    lost = Path(repo.stat("work", "v/large").address)
    for path in files(repo, "manifests/*/*"):
        flip(path, path.stat().st_size // 2)
    lost.unlink()
    repo.close()
    with closing(lake.open(repo.location)) as again:
        healed = heal(again, copy, budget=None)
        assert healed.ok, healed.left
        assert lost.read_bytes() == LARGE


def test_what_a_commit_says_is_healed(repo, copy):
    with closing(sqlite3.connect(repo.root / "refs.sqlite")) as con, con:
        [(damaged, body)] = con.execute("SELECT id, body FROM commits WHERE CAST(body AS TEXT) LIKE '%\"one\"%'")
        con.execute("UPDATE commits SET body = ? WHERE id = ?", (body.replace(b'"one"', b'"onf"'), damaged))
    repo.close()
    with closing(lake.open(repo.location)) as again:
        healed = heal(again, copy, budget=None)
        assert [(fault.kind, fault.name) for fault in healed.cured] == [("commit", damaged)]
        assert healed.ok
        assert again.commit_info("work").message == "one"


# -- from where --------------------------------------------------------------------------------------------------------
def damage_objects(repo):
    paths = [Path(stat.address) for stat in repo.list("work@")]
    for path in paths:
        flip(path, path.stat().st_size // 2)
    return paths


def test_a_clone_heals_its_origin_and_an_origin_its_clone(repo, tmp_path):
    clone(repo, str(tmp_path / "clone"))
    with closing(lake.open(tmp_path / "clone")) as there:
        for here, source in ((repo, there), (there, repo)):
            damage_objects(here)
            largest = max(files(here, "manifests/*/*"), key=lambda path: path.stat().st_size)
            flip(largest, 60)
            healed = heal(here, source, budget=None)
            assert healed.ok, healed.left
            assert {"object", "manifest"} <= {fault.kind for fault in healed.cured}
            assert here.get("work@", "v/large") == LARGE


@pytest.mark.lakefs
def test_a_clone_on_a_server_heals_its_origin_and_an_origin_its_clone(repo, lakefs_server):
    where = lakefs_server.location(f"r-{os.urandom(6).hex()}")
    repo.reset("work")
    clone(repo, where)
    with closing(lake.open(where)) as there:
        damage_objects(repo)
        healed = heal(repo, there, budget=None)
        assert healed.ok, healed.left
        assert scrub(repo, budget=None).ok
        paths = [Path(stat.address.removeprefix("local://")) for stat in there.list("work")]
        modes = [path.stat().st_mode for path in paths]
        flip(paths[0], 1)
        os.truncate(paths[1], 5)
        paths[2].unlink()
        healed = heal(there, repo, budget=None)
        assert healed.ok, healed.left
        assert len(healed.cured) == 3
        assert there.get("work", "v/large") == LARGE
        assert [path.stat().st_mode for path in paths] == modes
        assert not [path for path in paths[0].parent.iterdir() if path.name.startswith(".")]
        assert scrub(there, budget=None).ok


@pytest.mark.lakefs
def test_an_object_whose_first_commit_the_other_place_never_had_is_found_by_its_last(repo, lakefs_server):
    where = lakefs_server.location(f"r-{os.urandom(6).hex()}")
    repo.reset("work")
    repo.create_branch("own", "work")
    for branch in ("own", "work"):
        repo.put(branch, "late", b"late bytes")
        repo.commit(branch, branch)
    repo.delete_branch("own")
    clone(repo, where)
    flip(repo.stat("work", "late").address, 1)
    with closing(lake.open(where)) as there:
        healed = heal(repo, there, budget=None)
    assert healed.ok, healed.left
    assert repo.get("work", "late") == b"late bytes"


# -- what cannot be healed ---------------------------------------------------------------------------------------------
def test_what_the_other_place_lacks_or_holds_damaged_is_left_as_it_is_and_told(repo, copy):
    small, large, typed = (Path(stat.address) for stat in repo.list("work@"))
    rotten = []
    for path in (small, typed, large):
        flip(path, 2, 1)
        rotten.append(path.read_bytes())
    (copy.root / small.relative_to(repo.root)).unlink()
    flip(copy.root / typed.relative_to(repo.root), 1, 7)
    healed = heal(repo, copy, budget=None)
    assert not healed.ok
    assert [small.read_bytes(), typed.read_bytes()] == rotten[:2]
    assert large.read_bytes() == LARGE
    why = {fault.keys: why for fault, why in healed.left if fault.kind == "object"}
    assert "is damaged or missing too" in why[("small",)]
    assert "is damaged or missing too" in why[("v/typed",)]
    assert healed.to_json()["ok"] is False


def test_a_place_that_never_held_it_is_said_not_to(repo, tmp_path):
    flip(repo.stat("work", "small").address, 1)
    with closing(lake.create(tmp_path / "other")) as other:
        [(_, why)] = [left for left in heal(repo, other, budget=None).left if left[0].kind == "object"]
    assert "does not hold it" in why


def test_refs_and_the_marker_are_not_healed_and_a_commit_not_while_refs_are_damaged(repo, copy):
    with closing(sqlite3.connect(repo.root / "refs.sqlite")) as con, con:
        [(damaged, body)] = con.execute("SELECT id, body FROM commits WHERE CAST(body AS TEXT) LIKE '%\"one\"%'")
        con.execute("UPDATE commits SET body = ? WHERE id = ?", (body.replace(b'"one"', b'"onf"'), damaged))
        con.execute("INSERT INTO tags (name, target) VALUES ('lost', 'nothing')")
    healed = heal(repo, copy, budget=None)
    why = {fault.kind: why for fault, why in healed.left}
    assert "could make it worse" in why["commit"]
    assert "does not tell" in why["refs"]
    assert not healed.cured


def test_a_commit_whose_parent_is_lost_is_left_and_told_what_helps(repo, copy):
    for name in ("lost", "child"):
        repo.put("ops", name, b"1")
        commit = repo.commit("ops", name)
    lost = repo.resolve(f"{commit}~1")
    with closing(sqlite3.connect(repo.root / "refs.sqlite")) as con, con:
        con.execute("DELETE FROM commits WHERE id = ?", (lost,))
    healed = heal(repo, copy, budget=None)
    why = {why for fault, why in healed.left if fault.kind == "commit"}
    assert why == {"refs.sqlite lacks a commit: restore the folder from a copy of the repository"}
    assert not healed.cured


def test_a_repository_is_not_healed_from_itself(repo, tmp_path):
    (tmp_path / "link").symlink_to(repo.root)
    with closing(lake.open(tmp_path / "link")) as same, pytest.raises(BadInput, match="itself"):
        heal(repo, same, budget=None)


def test_a_file_that_somebody_wrote_in_a_workspace_is_not_healed_away(repo, copy):
    folder = repo.workspace("work", "").path
    (folder / "small").write_bytes(b"better")
    flip(repo.stat("work@", "small").address, 1)
    assert heal(repo, copy, budget=None).ok
    assert (folder / "small").read_bytes() == b"better"


def test_a_file_written_in_a_workspace_after_it_was_found_damaged_is_not_healed_away(repo, copy):
    path = repo.workspace("work", "").path / "small"
    flip(path, 1)
    found = path.read_bytes()

    def write(step, done, total):
        if step == "contents" and done >= total and path.read_bytes() == found:
            path.write_bytes(b"better")

    healed = heal(repo, copy, budget=None, progress=write)
    assert [fault.kind for fault in healed.cured] == ["copy"], "it was found before it was written"
    assert path.read_bytes() == b"better"


# -- killed ------------------------------------------------------------------------------------------------------------
_HEAL = """
import sys
import lake
from lake.heal import heal
assert heal(lake.open(sys.argv[1]), lake.open(sys.argv[2]), budget=None).ok
"""


@pytest.mark.parametrize("point", ["heal.written", "heal.synced", "heal.replaced", "heal.written:2", "heal.replaced:3"])
def test_killed_at_any_point_nothing_is_worse_and_the_next_run_goes_on(repo, copy, point):
    before = {path: path.read_bytes() for path in [*files(repo, "objects/*/*"), *files(repo, "manifests/*/*")]}
    repo.close()
    rotten = {}
    for path in before:
        flip(path, path.stat().st_size // 2)
        rotten[path] = path.read_bytes()
    assert run(python(_HEAL, repo.location, copy.location), kill_at=point).killed
    assert all(path.read_bytes() in (before[path], rotten[path]) for path in before)
    with closing(lake.open(repo.location)) as again:
        assert heal(again, copy, budget=None).ok
        assert all(path.read_bytes() == before[path] for path in before)
        assert not [path for path in (again.root / "tmp").rglob("t*") if path.is_file()]
