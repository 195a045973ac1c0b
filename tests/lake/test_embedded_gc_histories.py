"""Whatever happens while a collector works, and wherever it is killed: nothing that can be reached is collected."""

import multiprocessing
import pickle
import random
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lake
from lake.errors import AlreadyExists, ConflictError, RefNotFound
from lake.testing.crash import check_whole, content, moments, passes_of, python, run

# Few contents, small and large (linked, not copied): what one branch drops another is about to use.
VALUES = (b"", b"a", b"b" * 200, bytes(range(256)) * 300, bytes(reversed(range(256))) * 300)
KEYS = ("a", "b/c", "b/d", "v/x", "v/y")
steps = st.lists(
    st.tuples(
        st.sampled_from(["save", "write", "drop", "branch", "tag", "untag", "merge", "view", "session", "reset"]),
        st.sampled_from(KEYS),
        st.sampled_from(VALUES),
        st.booleans(),
    ),
    min_size=4,
    max_size=14,
)


class Writer:
    """Works on a branch and a tag of its own and remembers what each commit held."""

    def __init__(self, repo, name):
        self.repo, self.name = repo, name
        self.side, self.label = f"side-{name}", f"tag-{name}"
        self.held, self.values = {}, {}
        for branch in (name, self.side):
            repo.create_branch(branch, "main")

    def step(self, kind, key, data, flag):
        with suppress(ConflictError, RefNotFound, AlreadyExists):
            getattr(self, kind)(key, data, flag)

    def note(self, commit):
        # Under the commit's own id: what it holds now it must hold as long as anything reaches it. Equal values are
        # kept once: ten minutes make tens of thousands of commits.
        held = content(self.repo, commit)
        self.held[commit] = {key: self.values.setdefault(value, value) for key, value in held.items()}

    def save(self, key, data, on_side):
        branch = self.side if on_side else self.name
        self.repo.put(branch, key, data)
        self.note(self.repo.commit(branch, key))

    def write(self, key, data, on_side):
        branch = self.side if on_side else self.name
        file = self.repo.workspace(branch, "").path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".__lock").write_bytes(data)
        file.with_suffix(".__lock").rename(file)
        self.note(self.repo.commit(branch, key))

    def drop(self, *_):
        self.repo.delete_branch(self.side)

    def branch(self, *_):
        self.repo.create_branch(self.side, self.name)

    def tag(self, key, data, on_side):
        self.repo.create_tag(self.label, self.side if on_side else self.name)

    def untag(self, *_):
        self.repo.delete_tag(self.label)

    def merge(self, key, data, squash):
        self.note(self.repo.merge(self.side, self.name, "merge", strategy="source-wins", squash=squash))

    def view(self, key, data, on_side):
        ref = self.repo.resolve(self.side if on_side else self.name)
        expected = {k: v for k, v in content(self.repo, ref).items() if k.startswith("v/")}
        folder = self.repo.location_of(ref, "v/").path
        assert {f"v/{p.name}": p.read_bytes() for p in folder.iterdir()} == expected

    def session(self, key, data, land):
        with self.repo.session(self.name) as session:
            session.put(key, data)
            session.checkpoint()
            if land:
                self.note(session.commit("landed"))

    def reset(self, key, data, on_side):
        branch = self.side if on_side else self.name
        self.repo.put(branch, key, data)
        self.repo.reset(branch)


def check(repo, held):
    """All that can be reached reads as it was written."""
    reached = check_whole(repo)
    for commit in held.keys() & reached.keys():
        assert content(repo, commit) == held[commit]
    assert set(repo.branches().values()) <= reached.keys()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(steps=steps, when=st.lists(st.integers(0, 13), max_size=4))
def test_nothing_that_can_be_reached_is_collected_in_any_history(steps, when):
    with tempfile.TemporaryDirectory() as folder:
        repo = lake.create(Path(folder) / "repo")
        writer = Writer(repo, "one")
        for number, step in enumerate(steps):
            writer.step(*step)
            if number in when:
                repo.collect_garbage(grace_s=0)
                check(repo, writer.held)
        repo.collect_garbage(grace_s=0)
        check(repo, writer.held)
        kept = repo.collect_garbage(grace_s=0, dry_run=True)
        assert kept.commits_removed == 0
        assert kept.freed == 0
        repo.close()


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(mine=steps, other=steps)
def test_nothing_that_can_be_reached_is_collected_beside_two_writers(mine, other):
    with tempfile.TemporaryDirectory() as folder:
        repo = lake.create(Path(folder) / "repo")
        writers = [Writer(lake.open(repo.location), name) for name in ("one", "two")]
        failed = []

        def work(writer, steps):
            try:
                for step in steps:
                    writer.step(*step)
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=work, args=pair) for pair in zip(writers, (mine, other), strict=True)]
        for thread in threads:
            thread.start()
        rounds = 0
        while any(thread.is_alive() for thread in threads) or rounds < 2:
            repo.collect_garbage(grace_s=0)
            rounds += 1
        for thread in threads:
            thread.join()
        assert not failed
        check(repo, writers[0].held | writers[1].held)
        for handle in (repo, *(writer.repo for writer in writers)):
            handle.close()


# -- processes --------------------------------------------------------------------------------------------------------
def write_on(location, name, seed, until, told):
    rng = random.Random(seed)
    repo = lake.open(location)
    writer = Writer(repo, name)
    kinds = ["save", "write", "drop", "branch", "tag", "untag", "merge", "view", "session", "reset"]
    while time.time() < until:
        writer.step(rng.choice(kinds), rng.choice(KEYS), rng.choice(VALUES), rng.random() < 0.5)
    repo.close()
    Path(told).write_bytes(pickle.dumps(writer.held))


def collect_beside_processes(root, seconds, seed):
    repo = lake.create(root)
    context = multiprocessing.get_context("spawn")
    until = time.time() + seconds
    told = [root.with_name(f"held-{n}") for n in range(3)]
    writers = [
        context.Process(target=write_on, args=(repo.location, f"w{n}", seed + n, until, told[n])) for n in range(3)
    ]
    for writer in writers:
        writer.start()
    removed = rounds = 0
    while any(writer.is_alive() for writer in writers):
        found = repo.collect_garbage(grace_s=0)
        removed += found.commits_removed
        rounds += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    for path in told:
        check(repo, pickle.loads(path.read_bytes()))
    repo.close()
    assert removed > 0
    return rounds


@pytest.mark.slow
def test_three_writing_processes_and_a_collector_lose_nothing(tmp_path):
    assert collect_beside_processes(tmp_path / "repo", 8.0, 1) > 3


@pytest.mark.soak
def test_three_writing_processes_and_a_collector_lose_nothing_in_ten_minutes(tmp_path):
    collect_beside_processes(tmp_path / "repo", 600.0, int(time.time()))


# -- kills ------------------------------------------------------------------------------------------------------------
COLLECT = """
import hashlib, sys, lake
from pathlib import Path
from lake.engines.embedded.ranges import pack
repo, other = lake.open(Path(sys.argv[1])), lake.open(Path(sys.argv[1]))
print('open')
data = b'b' * 200
put = other._engine.turns.working()
put.__enter__()
assert other._engine.objects.holds(hashlib.sha256(data).digest(), len(data))
real = repo._engine.turns.begin_new
def begin_new(wait_s):
    # A put that found its bytes stored before they were condemned ends now, and is acknowledged.
    other._engine.stager.stage('main', {b'again': pack(hashlib.sha256(data).digest(), len(data))}, 'put')
    put.__exit__(None, None, None)
    print('put')
    return real(wait_s)
repo._engine.turns.begin_new = begin_new
repo.collect_garbage(grace_s=0)
print('done')
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository where a deleted branch shares some of its contents with main, and a view that nobody uses."""
    root = tmp_path_factory.mktemp("template") / "repo"
    repo = lake.create(root)
    repo.put("main", "kept", VALUES[1])
    repo.put("main", "v/x", VALUES[3])
    repo.commit("main", "kept")
    repo.create_branch("side", "main")
    for key, data in (("gone", VALUES[2]), ("v/y", VALUES[4])):
        repo.put("side", key, data)
        repo.commit("side", key)
    repo.location_of("side", "v/")
    repo.delete_branch("side")
    repo.close()
    return root


def check_after_kill(root, told):
    repo = lake.open(root)
    assert not (root / "trash").exists(), "what was condemned and not removed is put back on opening"
    check_whole(repo)
    expected = {"kept": VALUES[1], "v/x": VALUES[3]}
    assert content(repo, "main@") == expected
    if "put" in told:
        expected["again"] = VALUES[2]
    assert content(repo, "main").keys() - {"again"} == {"kept", "v/x"}
    seen = content(repo, "main")
    assert seen == expected or ("again" in seen and seen == {**expected, "again": VALUES[2]})
    repo.commit("main", "the rest", allow_empty=True)
    assert content(repo, "main@") == seen
    repo.collect_garbage(grace_s=0)
    check_whole(repo)
    left = repo.collect_garbage(grace_s=0, dry_run=True)
    assert (left.commits_removed, left.freed) == (0, 0)
    repo.close()


@pytest.mark.slow
def test_a_collector_killed_between_two_steps_has_taken_nothing_that_is_needed(template, tmp_path):
    root = tmp_path / "repo"

    def fresh():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        return python(COLLECT, root)

    passes = [each for each in passes_of(fresh()) if each.startswith("gc.")]
    assert {each.partition(":")[0] for each in passes} == {
        *("gc.before-forgotten", "gc.commits-forgotten", "gc.view-moved", "gc.condemned", "gc.new-turn", "gc.alone"),
        *("gc.put-back", "gc.removed"),
    }
    for at in passes:
        ended = run(fresh(), kill_at=at)
        assert ended.killed, at
        check_after_kill(root, ended.told)


def kill_at_moments(template, root, count, seed):
    for moment in moments(random.Random(seed), count, 0.1):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        check_after_kill(root, run(python(COLLECT, root), kill_after_s=moment).told)


@pytest.mark.slow
def test_a_collector_killed_at_any_moment_has_taken_nothing_that_is_needed(template, tmp_path):
    kill_at_moments(template, tmp_path / "repo", 3, 1)


@pytest.mark.soak
def test_a_collector_killed_two_hundred_times_has_taken_nothing_that_is_needed(template, tmp_path):
    kill_at_moments(template, tmp_path / "repo", 200, int(time.time()))
