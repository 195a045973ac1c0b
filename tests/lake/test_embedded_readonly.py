"""Repositories that may be read and not written: another user's, a read-only mount, a backup; and those of a group."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

import lake
from lake import tables
from lake.engines.embedded.sharing import DEFAULT, has_default, share
from lake.errors import NotAuthorized, ReadOnlyRepository, StorageError
from lake.testing import other_user
from lake.testing.other_user import GROUP, MISSING, ROOT, SOMEBODY, give_away, state_of, take_back
from lake.volumes import VolumeSpec, create_volume

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
needs_root = pytest.mark.skipif(not ROOT, reason="only root can give files to another user")


def fill_with_everything(repo):
    """History, branches, tags, protection, staged objects, a table, a volume, a workspace with unsaved work."""
    repo.put("main", "t/a", b"1")
    repo.put("main", "t/large", b"2" * 100_000)
    repo.commit("main", "first")
    rows = [
        {"pre_root_id": 1, "post_root_id": post, "synapses": n, "size": 1.0, "run_id": "r"}
        for post, n in ((2, 3), (3, 4))
    ]
    tables.append(repo.workspace("main", "tables/connections/"), "connections", rows)
    spec = VolumeSpec(
        name="em", kind="image", dtype="uint8", shape_zyx=(8, 8, 8), voxel_nm_zyx=(16, 8, 8), chunk_zyx=(8, 8, 8)
    )
    volume = create_volume(repo.workspace("main", "volumes/em/"), spec)
    volume.write(volume.box, np.full((8, 8, 8), 5, np.uint8))
    repo.commit("main", "second")
    repo.create_tag("v1", "main")
    repo.create_branch("work", "main~1")
    repo.put("work", "t/staged", b"3")
    (repo.workspace("work", "u/").path / "x").write_bytes(b"4")
    repo.protect("main")


READ = """
import sys, lake, hashlib
from pathlib import Path
repo = lake.open(sys.argv[1])
def everything(repo):
    print(sorted(repo.branches().items()), sorted(repo.tags().items()), repo.protected())
    for name in sorted(repo.branches()):
        print([c.id for c in repo.log(name)], list(repo.uncommitted(name)))
        for stat in repo.list(name):
            print(stat.key, stat.size, hashlib.sha256(repo.get(name, stat.key)).hexdigest(), repo.stat(name, stat.key))
    print(list(repo.diff("main~1", "main")))
everything(repo)
"""


@pytest.fixture
def folder(tmp_path):
    """A closed repository with history, a table, a volume, staged objects and a workspace, that is somebody else's."""
    path = tmp_path / "repo"
    repo = lake.create(path)
    fill_with_everything(repo)
    repo.close()
    yield path
    take_back(path)


def test_another_users_repository_reads_as_its_owner_reads_it_and_is_left_as_it_is(folder):
    owner = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, check=True).stdout
    give_away(folder)
    before = state_of(folder)
    assert other_user.run(READ, folder) == owner
    assert state_of(folder) == before


VIEWS = """
import sys, os, lake
from pathlib import Path
repo = lake.open(sys.argv[1])
with repo.snapshot("main") as main:
    print(main.sql("SELECT count(*), sum(synapses) FROM connections").rows())
    print(main.table("connections").collect().height)
    print(int(main.volume("em").read(lake.Box.parse("0:8,0:8,0:8")).sum()))
    place = main.location("tables/connections/").path
    assert Path(os.environ["EMLAKE_HOME"]) in place.parents, place
    try:
        main.sql(f"SELECT * FROM read_parquet('{sys.argv[1]}/objects/*/*')")
    except lake.errors.LakeError as error:
        print(error.kind)
repo.close()
print(sorted(os.listdir(Path(os.environ["EMLAKE_HOME"]) / "reading")))
"""


def test_tables_and_volumes_are_read_through_links_that_go_with_the_process(folder):
    give_away(folder)
    counted, rows, total, refused, left = other_user.run(VIEWS, folder).splitlines()
    assert (counted, rows, total, refused) == ("[(2, 7)]", "2", str(8**3 * 5), "query-refused")
    assert left == "['.sweep']"


WRITES = """
import sys, lake, json
from lake.errors import LakeError
from lake.repository import Commit
repo = lake.open(sys.argv[1])
head = repo.resolve("main")
attempts = {
    "put": lambda: repo.put("work", "k", b"1"), "delete": lambda: repo.delete("work", ["t/a"]),
    "commit": lambda: repo.commit("work", "m"), "reset": lambda: repo.reset("work"),
    "reset_to": lambda: repo.reset_to("work", "main"), "merge": lambda: repo.merge("work", "main", "m"),
    "revert": lambda: repo.revert("work", "main"), "cherry_pick": lambda: repo.cherry_pick("work", "main"),
    "workspace": lambda: repo.workspace("work", "t/"), "create_branch": lambda: repo.create_branch("b", "main"),
    "delete_branch": lambda: repo.delete_branch("work"), "create_tag": lambda: repo.create_tag("t", "main"),
    "delete_tag": lambda: repo.delete_tag("v1"), "protect": lambda: repo.protect("x"),
    "gc": lambda: repo.collect_garbage(), "session": lambda: repo.session("work", owner="me").__enter__(),
    "import": lambda: repo.importer().commit("work", repo.commit_info("main")),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except LakeError as error:
        print(name, error.kind, error.exit_code, error.message, "| " + error.fix)
    else:
        print(name, "went through")
"""


def test_every_write_to_another_users_repository_is_one_clear_error(folder):
    give_away(folder)
    before = state_of(folder)
    told = other_user.run(WRITES, folder).splitlines()
    assert len(told) == 17
    for line in told:
        assert f"read-only 6 {folder}: the repository is read-only for you: {folder}" in line, line
        assert "emlake clone" in line
    assert state_of(folder) == before


def test_a_read_only_mount_is_read_and_says_why_it_is_not_written(small_disk):
    path = small_disk.root / "repo"
    repo = lake.create(path)
    fill_with_everything(repo)
    heads = dict(repo.branches())
    repo.close()
    _remount(small_disk, "ro")
    try:
        with closing(lake.open(path)) as reader:
            assert dict(reader.branches()) == heads
            assert reader.get("main", "t/a") == b"1"
            assert (reader.location_of("main", "t/").path / "a").read_bytes() == b"1"
            with pytest.raises(ReadOnlyRepository, match="mounted read-only"):
                reader.put("work", "k", b"1")
    finally:
        _remount(small_disk, "rw")


def _remount(disk, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk.root)], check=True)


# -- the states in which a database is found ---------------------------------------------------------------------------
FOLLOW = """
import sys, lake
repo = lake.open(sys.argv[1])
for line in sys.stdin:
    print(repo.get("work", "k").decode(), flush=True)
"""


@needs_root
def test_what_the_owner_writes_is_seen_from_the_next_read_on(folder):
    give_away(folder)
    with subprocess.Popen(
        other_user.command(FOLLOW, folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def seen():
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        for number in range(3):
            with closing(lake.open(folder)) as owner:  # root, with its privileges
                owner.put("work", "k", str(number).encode())
                owner.commit("work", "next")
                assert seen() == str(number)
                owner.put("work", "k", b"staged")
                assert seen() == "staged"
                owner.reset("work")
            assert seen() == str(number)
        reader.stdin.close()


@pytest.mark.parametrize("beside", [("-wal",), ("-wal", "-shm")])
def test_a_backup_of_a_repository_in_use_shows_what_is_in_its_log(tmp_path, beside):
    """A log without its index cannot be read in place, and to pass it over would show an older state as the newest."""
    repo = lake.create(tmp_path / "repo")
    repo.put("main", "k", b"1")
    head = repo.commit("main", "in the log alone")
    backup = shutil.copytree(repo.root, tmp_path / "backup", symlinks=True)
    repo.close()
    for suffix in {"-wal", "-shm"} - set(beside):
        (backup / f"refs.sqlite{suffix}").unlink(missing_ok=True)
    for suffix in beside:
        assert (backup / f"refs.sqlite{suffix}").exists()
    give_away(backup)
    before = state_of(backup)
    told = other_user.run(
        "import sys, lake; r = lake.open(sys.argv[1]); print(r.resolve('main'), r.get('main', 'k'))", backup
    )
    assert told.split() == [head, "b'1'"]
    assert state_of(backup) == before


def test_a_copy_without_its_empty_folders_is_read_too(folder):
    for where, folders, files in os.walk(folder, topdown=False):
        if not folders and not files and where != str(folder):
            os.rmdir(where)
    for where in ("workspaces", "incoming", "views", "tmp", "locks"):
        shutil.rmtree(folder / where, ignore_errors=True)
    with sqlite3.connect(folder / "refs.sqlite") as con:
        con.execute("DELETE FROM staging")
    con.close()
    give_away(folder)
    assert other_user.run(READ, folder)
    code = "import sys, lake; from lake.scrub import scrub; print(scrub(lake.open(sys.argv[1]), budget=None).faults)"
    assert other_user.run(code, folder).strip() == "()"


# -- a group -----------------------------------------------------------------------------------------------------------
MAKE = """
import sys, os, lake
repo = lake.create(sys.argv[1])
repo.create_branch("work", "main")
repo.put("work", "t/a", b"1" * 100_000)
where = repo.workspace("work", "u/").path
(where / "x").write_bytes(b"2" * 100_000)
(where / "deep").mkdir()
(where / "deep" / "z").write_bytes(b"2" * 100)
repo.commit("work", "by the first")
repo.put("work", "t/staged", b"3")
repo.location_of("work", "t/")
os._exit(0)  # leaves what a dead process leaves
"""
WORK = """
import sys, lake
repo = lake.open(sys.argv[1])
print(repo.get("work", "t/staged"))
repo.commit("work", "what the first staged")
with repo.session("work", owner="second") as session:
    session.put("t/b", b"4")
    session.commit("by the second")
repo.put("work", "t/c", b"5")
where = repo.workspace("work", "u/").path
(where / "y").write_bytes(b"6" * 100_000)
(where / "x").unlink()  # a large file that was committed is a link, which nobody may write into
(where / "x").write_bytes(b"7")
(where / "deep" / "z").write_bytes(b"8")
repo.commit("work", "again")
print(repo.get("work", "u/x")[:1])
repo.merge("work", "main", "m")
print((repo.location_of("main", "t/").path / "a").stat().st_size)
repo.collect_garbage(grace_s=0)
repo.delete_branch("work")
repo.close()
"""


@needs_root
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_members_of_a_group_write_to_one_repository(tmp_path, umask):
    path = tmp_path / "repo"
    path.mkdir()
    os.chown(path, 0, GROUP)
    os.chmod(path, 0o2775)
    other_user.run(MAKE, path, umask=umask, group=True)
    give_away(path, gid=GROUP)
    if umask != 0o002 and not has_default(path):
        pytest.skip("this file system keeps no access lists: the umask decides")
    staged, kept, size = other_user.run(WORK, path, umask=umask, group=True).splitlines()
    assert (staged, kept, size) == ("b'3'", "b'7'", "100000")
    with closing(lake.open(path)) as repo:
        assert [stat.key for stat in repo.list("main")] == [
            "t/a",
            "t/b",
            "t/c",
            "t/staged",
            "u/deep/z",
            "u/x",
            "u/y",
        ]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o2775
    assert os.stat(path / "refs.sqlite").st_mode & 0o060 == 0o060


@needs_root
def test_doctor_says_where_a_group_depends_on_the_umask_of_its_members(tmp_path):
    path = tmp_path / "repo"
    path.mkdir()
    os.chmod(path, 0o2775)
    with closing(lake.create(path)) as repo:
        if not has_default(path):
            pytest.skip("this file system keeps no access lists")
        assert ("group", "ok") in [found[:2] for found in repo.examine()]
        os.removexattr(path, DEFAULT)
        [told] = [found for found in repo.examine() if found[0] == "group"]
        assert told[1] == "by umask"
        assert f"setfacl -R -d -m g::rwX {path}" in told[2]
    with closing(lake.create(tmp_path / "mine")) as repo:
        assert not any(found[0] == "group" for found in repo.examine())


def test_the_access_list_that_an_empty_folder_has_stays_with_the_repository_made_in_it(tmp_path):
    (tmp_path / "given").mkdir()
    share(tmp_path / "given")
    if not has_default(tmp_path / "given"):
        pytest.skip("this file system keeps no access lists")
    before = os.getxattr(tmp_path / "given", DEFAULT)
    lake.create(tmp_path / "given").close()
    assert os.getxattr(tmp_path / "given", DEFAULT) == before
    assert os.getxattr(tmp_path / "given" / "workspaces", DEFAULT) == before


@needs_root
def test_a_member_of_no_group_is_told_whose_the_repository_is(tmp_path):
    path = tmp_path / "repo"
    path.mkdir(mode=0o755)
    lake.create(path).close()
    give_away(path, gid=GROUP)
    code = """
import sys, lake
try: lake.open(sys.argv[1]).put("main", "k", b"1")
except lake.errors.LakeError as error: print(error.message)
"""
    assert f"{path} belongs to {SOMEBODY}:{GROUP} and is drwxr-xr-x" in other_user.run(code, path, group=True)


def test_an_empty_folder_keeps_its_mode_when_a_repository_is_made_in_it(tmp_path):
    (tmp_path / "private").mkdir(mode=0o700)
    lake.create(tmp_path / "private").close()
    assert stat.S_IMODE(os.stat(tmp_path / "private").st_mode) == 0o700


# -- gone --------------------------------------------------------------------------------------------------------------
def test_a_repository_that_is_moved_while_it_is_open_is_said_to_be_gone(tmp_path):
    repo = lake.create(tmp_path / "repo")
    repo.put("main", "k", b"1")
    repo.commit("main", "first")
    (tmp_path / "repo").rename(tmp_path / "moved")
    fresh = lake.open(tmp_path / "moved")
    fresh.close()
    for attempt in (
        lambda: repo.get("main", "k"),
        lambda: list(repo.list("main")),
        lambda: repo.put("main", "j", b"2"),
        lambda: repo.commit("main", "again", allow_empty=True),
        lambda: repo.location_of("main", ""),
    ):
        with pytest.raises(StorageError, match=f"no longer at {tmp_path / 'repo'}") as caught:
            attempt()
        assert not isinstance(caught.value, NotAuthorized)
    assert not (tmp_path / "repo").exists()
    repo.close()


def test_doctor_tells_the_format_of_the_repository_not_of_the_program(tmp_path, monkeypatch):
    from lake.engines.embedded import layout

    with closing(lake.create(tmp_path / "repo")) as repo:
        monkeypatch.setattr(layout, "FORMAT", 2)
        assert ("format", "ok", "1") in repo.examine()
