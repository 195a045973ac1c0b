"""A killed process leaves the old head or the new one, whole, and nothing that the next one minds."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

import lake
from lake.errors import NothingToCommit
from lake.testing.crash import check_whole, content, moments, passes_of, python, run

OPEN = "import sys, lake; repo = lake.open(sys.argv[1]); print('ready'); "
PUT = OPEN + "repo.put('main', 'fresh', b'f' * 100); print('done')"
COMMIT = OPEN + "print(repo.commit('main', 'second', {'n': '2'}))"
MERGE = OPEN + "print(repo.merge('side', 'main', 'joined'))"
REVERT = OPEN + "print(repo.revert('main', 'main'))"
OPENING = OPEN + "print(repo.workspace('main', 'volumes/').root); print(repo.location_of('main', 'volumes/').root)"
RESET = OPEN + "repo.reset('main'); print('done')"
DELETE = OPEN + "repo.delete_branch('side'); print('done')"
CREATE = "import sys, lake; print('ready'); lake.create(sys.argv[1]); print('done')"

BIG = bytes(range(256)) * 300  # above the size from which files are linked, not copied
OLD = {"loose": b"l", "gone": b"g", "volumes/em/info": b"{}", "volumes/em/big": BIG, "volumes/em/old": b"o"}
NEW = {
    "loose": b"changed",
    "volumes/em/info": b"{1}",
    "volumes/em/big": BIG + b"2",
    "volumes/em/new/0": b"n",
    "volumes/em/new/1": BIG[1:],
}
SIDE = {**OLD, "volumes/seg/info": b"s"}
AHEAD = {**OLD, "ahead": b"a"}


def save(repo, branch, new, old=()):
    for key, data in new.items():
        repo.put(branch, key, data)
    repo.delete(branch, [key for key in old if key not in new])
    return repo.commit(branch, "first")


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Repositories in the state before each operation."""
    root = tmp_path_factory.mktemp("templates")
    for name in ("plain", "pending", "diverged"):
        with_repo = lake.create(root / name)
        save(with_repo, "main", OLD)
        with_repo.create_branch("side", "main")
        if name == "pending":
            write_pending(with_repo)
        if name == "diverged":
            save(with_repo, "side", SIDE)
            save(with_repo, "main", AHEAD)
        with_repo.close()
    return root


def write_pending(repo):
    """Stage and write what takes OLD to NEW."""
    folder = repo.workspace("main", "volumes/em/").path
    (folder / "new").mkdir()
    for key, data in NEW.items():
        if not key.startswith("volumes/"):
            repo.put("main", key, data)
        elif OLD.get(key) != data:
            target = folder / key.removeprefix("volumes/em/")
            (folder / "tmp").write_bytes(data)
            (folder / "tmp").rename(target)
    (folder / "old").unlink()
    repo.delete("main", ["gone"])


@pytest.fixture
def fresh(templates, tmp_path):
    """Give a function that makes a fresh copy of a template."""

    def copy(name) -> Path:
        target = tmp_path / "repo"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(templates / name, target, symlinks=True)
        return target

    return copy


def after_put(root, ended):
    repo = lake.open(root)
    check_whole(repo)
    assert content(repo, "main@") == OLD
    seen = content(repo, "main")
    assert seen in (OLD, {**OLD, "fresh": b"f" * 100})
    if "done" in ended.told:
        assert "fresh" in seen
    repo.put("main", "fresh", b"f" * 100)
    repo.commit("main", "again")
    assert content(repo, "main") == {**OLD, "fresh": b"f" * 100}
    return repo


def after_commit(root, ended):
    repo = lake.open(root)
    commits = check_whole(repo)
    head = repo.commit_info("main")
    if ended.told[1:]:
        assert ended.told[1] == head.id
    assert (head.message, content(repo, "main@")) in (("first", OLD), ("second", NEW))
    assert len(commits) == (2 if head.message == "first" else 3)
    # What was pending is still pending, or is in: never half, never twice.
    if head.message == "first":
        repo.commit("main", "second")
    else:
        assert list(repo.uncommitted("main")) == []
        with pytest.raises(NothingToCommit):
            repo.commit("main", "third")
    assert content(repo, "main") == NEW
    folder = repo.workspace("main", "volumes/em/").path
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        key.removeprefix("volumes/em/") for key in NEW if key.startswith("volumes/")
    }
    return repo


def after_merge(root, ended):
    repo = lake.open(root)
    check_whole(repo)
    head = repo.commit_info("main")
    if ended.told[1:]:
        assert ended.told[1] == head.id
    if head.message == "joined":
        assert head.parents == (repo.resolve("main~1"), repo.resolve("side"))
    else:
        assert content(repo, "main") == AHEAD
        repo.merge("side", "main", "joined")
    assert content(repo, "main") == {**AHEAD, **SIDE}
    return repo


def after_revert(root, ended):
    repo = lake.open(root)
    check_whole(repo)
    if repo.commit_info("main").message.startswith("Revert"):
        assert content(repo, "main") == OLD
    else:
        assert content(repo, "main") == AHEAD
        assert not ended.told[1:]
        repo.revert("main", "main")
    assert content(repo, "main") == OLD
    return repo


def after_opening(root, ended):
    repo = lake.open(root)
    assert check_whole(repo)
    for folder in (repo.workspace("main", "volumes/").path, repo.location_of("main", "volumes/").path):
        assert str(folder) in ended.told or len(ended.told) < 3
        files = {f"volumes/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert files == {key: data for key, data in OLD.items() if key.startswith("volumes/")}
    assert list(repo.uncommitted("main")) == []
    return repo


def after_reset(root, ended):
    repo = lake.open(root)
    check_whole(repo)
    if "done" in ended.told:
        assert list(repo.uncommitted("main")) == []
    repo.reset("main")
    assert list(repo.uncommitted("main")) == []
    assert content(repo, "main") == OLD
    folder = repo.workspace("main", "volumes/em/").path
    assert sorted(os.listdir(folder)) == ["big", "info", "new", "old"][::1] or not (folder / "new").exists()
    return repo


def after_delete(root, ended):
    repo = lake.open(root)
    check_whole(repo)
    assert "side" not in repo.branches() or "done" not in ended.told
    assert len(os.listdir(root / "workspaces")) <= len(repo.branches())
    return repo


OPERATIONS = {
    "put": ("plain", PUT, after_put),
    "commit": ("pending", COMMIT, after_commit),
    "merge": ("diverged", MERGE, after_merge),
    "revert": ("diverged", REVERT, after_revert),
    "opening": ("plain", OPENING, after_opening),
    "reset": ("pending", RESET, after_reset),
    "delete": ("plain", DELETE, after_delete),
}


def verify(name, root, ended):
    repo = OPERATIONS[name][2](root, ended)
    repo.close()
    assert os.listdir(root / "tmp") == [".sweep"], "leftovers are swept on opening"


def kill_at_every_point(name, fresh):
    template, code, _ = OPERATIONS[name]
    passes = passes_of(python(code, fresh(template)))
    assert passes
    for at in passes:
        root = fresh(template)
        ended = run(python(code, root), kill_at=at)
        assert ended.killed, at
        verify(name, root, ended)
    return passes


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_between_two_durable_steps_leaves_the_old_state_or_the_new(name, fresh):
    passes = kill_at_every_point(name, fresh)
    assert len({each.partition(":")[0] for each in passes}) >= {"put": 4, "commit": 11, "merge": 4}.get(name, 1)


def test_a_commit_killed_before_or_after_its_branch_moves_is_whole_or_was_never(fresh):
    for point, message in (("commit.before-ref", "first"), ("commit.ref-moved", "second")):
        root = fresh("pending")
        ended = run(python(COMMIT, root), kill_at=point)
        assert ended.killed
        repo = lake.open(root)
        assert repo.commit_info("main").message == message
        repo.close()
        verify("commit", root, ended)


@pytest.mark.slow
def test_a_creation_that_is_killed_can_be_repeated(tmp_path):
    for at in passes_of(python(CREATE, tmp_path / "traced")):
        root = tmp_path / "repo"
        ended = run(python(CREATE, root), kill_at=at)
        assert ended.killed
        assert not root.exists(), at
        lake.create(root).close()
        shutil.rmtree(root)


# -- at any moment ----------------------------------------------------------------------------------------------------
LOOPS = {
    "put": OPEN
    + """
for n in range(10_000):
    repo.put('main', f'k/{n:05}', b'%d' % n * 1000)
    print(n)
""",
    "commit": OPEN
    + """
folder = repo.workspace('main', 'volumes/').path
for n in range(10_000):
    for i in range(5):
        (folder / 'tmp.__lock').write_bytes(b'%d.%d' % (n, i) * (30_000 if i == 2 else 10))
        (folder / 'tmp.__lock').rename(folder / f'{n % 3}.{i}')
    repo.put('main', f'k/{n:05}', b'%d' % n)
    repo.commit('main', f'{n}')
    print(n)
""",
    "merge": OPEN
    + """
for n in range(10_000):
    repo.put('side', f'volumes/v{n}/info', b'%d' % n); repo.commit('side', f's{n}')
    repo.put('main', f'k/{n:05}', b'%d' % n); repo.commit('main', f'm{n}')
    repo.merge('side', 'main', f'{n}')
    print(n)
""",
}


def check_loop(name, root, told):
    """Everything that was acknowledged is there, and at most one step more."""
    count = len(told) - 1
    repo = lake.open(root)
    check_whole(repo)
    if name == "put":
        staged = {key: data for key, data in content(repo, "main").items() if key not in OLD}
        assert len(staged) in (count, count + 1)
        assert staged == {f"k/{n:05}": b"%d" % n * 1000 for n in range(len(staged))}
    else:
        landed = [int(commit.message) for commit in repo.log("main", first_parent=True) if commit.message.isdigit()]
        assert landed == list(reversed(range(len(landed))))
        assert len(landed) in (count, count + 1)
        names = [key for key in content(repo, "main@") if key.startswith("k/")]
        assert len(names) - len(landed) in ((0,) if name == "commit" else (0, 1))
        repo.commit("main", "the rest", allow_empty=True)
    repo.close()
    assert os.listdir(root / "tmp") == [".sweep"]


def kill_at_moments(name, fresh, count, seed):
    for moment in moments(random.Random(seed), count, 1.5):
        root = fresh("plain")
        ended = run(python(LOOPS[name], root), kill_after_s=moment)
        assert ended.killed
        check_loop(name, root, ended.told)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_kill_at_any_moment_loses_nothing_acknowledged(name, fresh):
    kill_at_moments(name, fresh, 3, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("name", LOOPS)
def test_fifty_kills_at_any_moment_lose_nothing_acknowledged(name, fresh):
    kill_at_moments(name, fresh, 50, seed=int(time.time()))
