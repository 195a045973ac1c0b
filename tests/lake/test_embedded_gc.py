"""The collector removes what nobody needs, says what it is, and takes nothing from a reader or a writer."""

import hashlib
import multiprocessing
import os
import sqlite3
import threading
import time

import pytest

import lake
import lake.engines.embedded.gc
from lake.clones import Move
from lake.engines.embedded import commits
from lake.engines.embedded.gc import FORGOTTEN, LEFTOVERS, UNREFERENCED, VIEWS
from lake.errors import ConflictError, CorruptObject, RefNotFound
from lake.testing.clocks import Ahead, Behind
from lake.testing.crash import check_whole, content

BIG = bytes(range(256)) * 400  # 100 KiB: shown as a link
WEEK_S = 7 * 86_400.0


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


def save(repo, branch, files, source="main"):
    if branch not in repo.branches():
        repo.create_branch(branch, source)
    for key, data in files.items():
        repo.put(branch, key, data)
    return repo.commit(branch, f"{len(files)} files")


def stored(repo, store="objects"):
    return {path.parent.name + path.name: path.stat().st_size for path in (repo.root / store).glob("*/*")}


def total(repo):
    return sum(stored(repo).values()) + sum(stored(repo, "manifests").values())


def test_what_a_deleted_branch_alone_held_goes_and_what_others_share_stays(repo):
    save(repo, "main", {"shared": b"s" * 100})
    gone = save(repo, "side", {"mine": b"m" * 1000, "again": b"s" * 100})
    before = total(repo)
    repo.delete_branch("side")
    found = repo.collect_garbage(grace_s=0)
    assert (found.commits_kept, found.commits_removed) == (2, 1)
    assert found.removed[FORGOTTEN].count == 3  # the object, its range and its tree
    assert found.freed == found.removed[FORGOTTEN].size == before - total(repo) > 1000
    assert content(repo, "main") == {"shared": b"s" * 100}
    with pytest.raises(RefNotFound):
        repo.resolve(gone)
    again = repo.collect_garbage(grace_s=0)
    assert (again.commits_removed, again.freed) == (0, 0)
    assert not (repo.root / "trash").exists()


def test_grace_counts_from_when_a_tag_gave_the_commit_up(repo, monkeypatch):
    tagged = save(repo, "side", {"old": b"o" * 500})
    repo.create_tag("r1", tagged)
    repo.delete_branch("side")
    now = lake.engines.embedded.gc.time.time()
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now + 3 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S).kept["tags"].count == 3
    check_grace(repo, monkeypatch, now, tagged, lambda: repo.delete_tag("r1"))


def check_grace(repo, monkeypatch, now, commit, give_up):
    """Give up, three weeks from `now`, a commit that was made then: it stays for a week."""
    with monkeypatch.context() as later:
        later.setattr("lake.engines.embedded.history.time.time", lambda: now + 3 * WEEK_S)
        give_up()
    assert repo.collect_garbage(grace_s=WEEK_S).kept["grace"].count == 3
    assert repo.get(commit, "old") == b"o" * 500
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now + 5 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S).commits_removed == 1
    with pytest.raises(RefNotFound):
        repo.get(commit, "old")


def move_away(repo, commit):
    repo.importer().move([Move("side", repo.resolve("main"), commit)])


@pytest.mark.parametrize(
    "give_up",
    [
        lambda repo, commit: repo.delete_branch("side"),
        lambda repo, commit: repo.reset_to("side", "main"),
        move_away,
    ],
    ids=["deleted", "reset", "moved by a clone"],
)
def test_grace_counts_from_when_a_branch_gave_the_commit_up(repo, monkeypatch, give_up):
    made = save(repo, "side", {"old": b"o" * 500})
    now = lake.engines.embedded.gc.time.time()
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now + 3 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S).kept["branches"].count > 3
    check_grace(repo, monkeypatch, now, made, lambda: give_up(repo, made))


def test_a_new_commit_has_its_grace_period_whoever_gave_it_up(repo, monkeypatch):
    made = save(repo, "side", {"young": b"y" * 500})
    repo.delete_branch("side")
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        con.execute("DELETE FROM departed")  # an early version kept no note of what branches gave up
    con.close()
    assert repo.collect_garbage(grace_s=WEEK_S).kept["grace"].count == 3
    assert repo.get(made, "young") == b"y" * 500
    now = lake.engines.embedded.gc.time.time()
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now + 2 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S).commits_removed == 1


def test_what_a_wrong_clock_dated_in_the_future_grows_old_from_when_a_collector_meets_it(repo, monkeypatch):
    """One commit of 2036 dates all that is made upon it after itself, so the whole line used to stay until then."""
    now = lake.engines.embedded.gc.time.time()

    with monkeypatch.context() as wrong:
        wrong.setattr("lake.engines.embedded.history.datetime", Ahead)
        save(repo, "side", {"ahead": b"a" * 500})
    save(repo, "side", {"upon": b"u" * 500})
    with monkeypatch.context() as wrong:
        wrong.setattr("lake.engines.embedded.history.time.time", lambda: now + 500 * WEEK_S)
        repo.delete_branch("side")
    for weeks, removed in ((0, 0), (0.5, 0), (2, 2), (4, 0)):
        monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda weeks=weeks: now + weeks * WEEK_S)
        assert repo.collect_garbage(grace_s=WEEK_S).commits_removed == removed
    assert stored(repo) == {}


def test_a_commit_of_the_future_that_no_branch_gave_up_has_one_grace_period_and_no_more(repo, monkeypatch):
    made = save(repo, "side", {"young": b"y" * 500})
    repo.delete_branch("side")
    with sqlite3.connect(repo.root / "refs.sqlite") as con:
        con.execute("DELETE FROM departed")
    con.close()
    now = lake.engines.embedded.gc.time.time()
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now - 4 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S, dry_run=True).kept["grace"].count == 3
    assert repo.collect_garbage(grace_s=WEEK_S).kept["grace"].count == 3
    assert repo.get(made, "young") == b"y" * 500
    monkeypatch.setattr("lake.engines.embedded.gc.time.time", lambda: now - 2 * WEEK_S)
    assert repo.collect_garbage(grace_s=WEEK_S).commits_removed == 1


def test_what_tags_sessions_staging_and_workspaces_need_stays(repo):
    repo.create_tag("r1", save(repo, "side", {"tagged": b"t" * 99}))
    repo.delete_branch("side")
    session = repo.session("main")
    session.put("worked", b"w" * 99)
    session.checkpoint()
    folder = repo.workspace("main", "volumes/").path
    (folder / "open").write_bytes(b"o" * 99)
    repo.put("main", "staged", b"s" * 99)
    # Staged bytes that are stored already lie in the store alone.
    save(repo, "other", {"held": b"h" * 99})
    repo.put("main", "borrowed", b"h" * 99)
    repo.delete_branch("other")
    found = repo.collect_garbage(grace_s=0)
    assert [found.kept[reason].count for reason in ("tags", "sessions", "staged")] == [3, 3, 2]
    repo.commit("main", "all")
    assert content(repo, "main") == {"volumes/open": b"o" * 99, "staged": b"s" * 99, "borrowed": b"h" * 99}
    assert repo.get("r1", "tagged") == b"t" * 99
    assert session.get("worked") == b"w" * 99
    session.abandon()
    check_whole(repo)


def test_the_commit_that_a_workspace_was_filled_from_stays_when_its_branch_has_left_it(repo):
    start = repo.resolve("main")
    base = save(repo, "work", {"volumes/a": b"a" * 99})
    folder = repo.workspace("work", "volumes/").path
    repo.reset_to("work", start)
    repo.collect_garbage(grace_s=0)
    assert repo.commit_info(base).id == base
    # What is written is compared with it, so that what was not written goes with the branch.
    (folder / "b").write_bytes(b"b" * 99)
    repo.commit("work", "written")
    assert content(repo, "work") == {"volumes/b": b"b" * 99}
    assert repo.collect_garbage(grace_s=0).commits_removed == 1
    check_whole(repo)


def test_a_view_in_use_keeps_its_commit_and_one_that_is_not_goes_with_its_bytes(repo):
    commit = save(repo, "side", {"v/big": BIG, "v/small": b"s"})
    view = repo.location_of(commit, "v/").path
    repo.delete_branch("side")
    assert repo.collect_garbage(grace_s=0).kept["views"].count == 4
    assert (view / "big").read_bytes() == BIG
    assert repo.get(commit, "v/small") == b"s"
    repo.close()
    repo = lake.open(repo.location)
    assert repo.collect_garbage(grace_s=WEEK_S).removed[VIEWS].count == 0, "somebody asked for it this week"
    found = repo.collect_garbage(grace_s=0)
    assert (found.removed[VIEWS].count, found.removed[VIEWS].size) == (1, len(BIG) + 1)
    assert found.freed == found.removed[FORGOTTEN].size > len(BIG), "view and object are one file, freed once"
    assert not view.exists()
    assert not list((repo.root / "views").glob("[0-9a-f]*"))
    repo.close()


def hold_view(location, commit, told, release):
    repo = lake.open(location)
    told.send(str(repo.location_of(commit, "v/").path))
    release.recv()


def test_a_view_is_in_use_while_another_process_that_asked_for_it_lives(repo):
    commit = save(repo, "main", {"v/big": BIG})
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe(duplex=False)
    wait, release = context.Pipe(duplex=False)
    child = context.Process(target=hold_view, args=(repo.location, commit, tell, wait))
    child.start()
    view = told.recv()
    assert repo.collect_garbage(grace_s=0).removed[VIEWS].count == 0
    assert os.path.exists(view)
    child.kill()
    child.join()
    assert repo.collect_garbage(grace_s=0).removed[VIEWS].count == 1
    assert not os.path.exists(view)
    release.close()


def test_a_dry_run_says_what_the_run_will_do_and_does_nothing(repo):
    save(repo, "main", {"kept": b"k" * 100, "v/x": BIG})
    side = save(repo, "side", {"v/x": BIG[1:], "v/y": BIG})
    repo.location_of(side, "v/")
    repo.location_of("main", "v/")
    repo.delete_branch("side")
    repo.close()
    repo = lake.open(repo.location)
    # Adopted by a commit that was killed: no commit speaks of it.
    repo._engine.objects.put_bytes(b"orphan" * 100)
    before = {path: path.stat().st_nlink for path in repo.root.rglob("*") if "tmp" not in path.parts}
    forecast = repo.collect_garbage(grace_s=0, dry_run=True)
    assert {path: path.stat().st_nlink for path in before} == before
    done = repo.collect_garbage(grace_s=0)
    assert forecast.removed == done.removed
    assert (forecast.freed, forecast.commits_removed, forecast.kept) == (done.freed, done.commits_removed, done.kept)
    assert done.removed[UNREFERENCED].size == 600
    assert done.removed[VIEWS].count == 2
    assert done.freed == done.removed[UNREFERENCED].size + done.removed[FORGOTTEN].size
    assert done.removed[LEFTOVERS].count == 0
    repo.close()


def test_a_damaged_manifest_stops_the_collector_before_anything_goes(repo):
    save(repo, "main", {"a": b"1"})
    save(repo, "side", {"b": b"2"})
    repo.delete_branch("side")
    before = stored(repo)
    tree = repo._engine.tree_of(repo.resolve("main"))
    path = repo._engine.manifests.path(tree.ranges[0])
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"X")
    with pytest.raises(CorruptObject, match=tree.ranges[0].hex()):
        repo.collect_garbage(grace_s=0)
    assert stored(repo) == before


def test_two_collectors_at_once_are_one_too_many(repo):
    other = lake.open(repo.location)
    refused = []

    def second(step, done, total):
        if not refused:
            with pytest.raises(ConflictError, match="another collector"):
                other.collect_garbage()
            refused.append(step)

    repo.collect_garbage(progress=second)
    assert refused
    other.close()


def test_a_branch_that_is_deleted_while_its_leftovers_are_measured_is_no_error(repo, monkeypatch):
    save(repo, "side", {"x": b"1"})
    (repo.workspace("side", "w/").path / "file").write_bytes(b"w")
    real = os.lstat

    def lstat(path, **options):
        if str(path).endswith("w/file"):
            monkeypatch.setattr(os, "lstat", real)
            repo._engine.workspaces.discard(os.path.relpath(path, repo._engine.workspaces.root).split("/")[0])
        return real(path, **options)

    token = next(path.name for path in repo._engine.workspaces.root.iterdir())
    with repo._engine.db.write() as con:
        con.execute("DELETE FROM branches WHERE token = ?", (token,))
    monkeypatch.setattr(os, "lstat", lstat)
    assert repo.collect_garbage(grace_s=0).removed[LEFTOVERS].count == 0


# -- beside writers ---------------------------------------------------------------------------------------------------
class Paused:
    """A thread that stops inside a piece of work, at the first call of a function."""

    def __init__(self, monkeypatch, target, name, work):
        self.reached, self.go = threading.Event(), threading.Event()
        real = getattr(target, name)

        def pause(*args, **kwargs):
            if threading.current_thread() is self.thread:
                self.reached.set()
                assert self.go.wait(30)
            return real(*args, **kwargs)

        monkeypatch.setattr(target, name, pause)
        self.result = []
        self.thread = threading.Thread(target=lambda: self.result.append(work()))
        self.thread.start()
        assert self.reached.wait(30)

    def finish(self):
        self.go.set()
        self.thread.join()
        return self.result[0]


def collect_beside(repo, paused):
    """Collect while a writer is stopped; it goes on once its contents are condemned."""
    real = repo._engine.turns.begin_new

    def begin_new(wait_s):
        paused.go.set()
        return real(wait_s)

    repo._engine.turns.begin_new = begin_new
    return repo.collect_garbage(grace_s=0)


def test_a_content_that_a_commit_has_found_stored_is_not_taken_from_it(repo, monkeypatch):
    save(repo, "side", {"x": BIG, "y": b"small"})
    repo.delete_branch("side")
    writer = lake.open(repo.location)
    folder = writer.workspace("main", "v/").path
    (folder / "x").write_bytes(BIG)
    writer.put("main", "y", b"small")
    paused = Paused(monkeypatch, commits, "commit_body", lambda: writer.commit("main", "found them stored"))
    found = collect_beside(repo, paused)
    commit = paused.finish()
    assert content(repo, commit) == {"v/x": BIG, "y": b"small"}
    assert found.commits_removed == 1
    check_whole(repo)
    writer.close()


def test_a_put_that_has_found_its_bytes_stored_keeps_them(repo, monkeypatch):
    save(repo, "side", {"x": b"x" * 300})
    repo.delete_branch("side")
    writer = lake.open(repo.location)
    paused = Paused(monkeypatch, writer._engine.stager, "stage", lambda: writer.put("main", "again", b"x" * 300))
    collect_beside(repo, paused)
    paused.finish()
    assert repo.get("main", "again") == b"x" * 300
    repo.commit("main", "again")
    assert content(repo, "main") == {"again": b"x" * 300}
    writer.close()


def test_what_is_condemned_can_be_read_and_committed_again_while_the_collector_waits(repo, monkeypatch):
    save(repo, "side", {"x": BIG, "y": b"small"})
    repo.delete_branch("side")
    writer, other = lake.open(repo.location), lake.open(repo.location)
    paused = Paused(monkeypatch, writer._engine.stager, "stage", lambda: writer.put("main", "slow", b"1"))
    seen, threads = [], []
    real = repo._engine.turns.begin_new

    def begin_new(wait_s):
        assert hashlib.sha256(BIG).hexdigest() not in stored(repo)
        assert other._engine.objects.read(hashlib.sha256(BIG).digest(), "condemned") == BIG
        # Work of the new turn: it begins and ends while the collector waits for the slow put.
        thread = threading.Thread(target=lambda: seen.append(save(other, "new", {"x": BIG, "y": b"small"})))
        thread.start()
        threads.append(thread)
        threading.Timer(0.3, paused.go.set).start()
        return real(wait_s)

    monkeypatch.setattr(repo._engine.turns, "begin_new", begin_new)
    repo.collect_garbage(grace_s=0)
    paused.finish()
    threads[0].join()
    assert len(seen) == 1
    assert content(repo, "new") == {"x": BIG, "y": b"small"}
    check_whole(repo)
    writer.close()
    other.close()


def test_a_merge_of_a_bare_commit_that_is_collected_meanwhile_is_refused(repo, monkeypatch):
    bare = save(repo, "side", {"x": BIG})
    save(repo, "main", {"m": b"1"})
    repo.delete_branch("side")
    head = repo.resolve("main")
    writer = lake.open(repo.location)

    def merge():
        with pytest.raises(RefNotFound, match=bare):
            writer.merge(bare, "main", "too late")

    paused = Paused(monkeypatch, commits, "commit_body", merge)
    collect_beside(repo, paused)
    paused.finish()
    assert repo.resolve("main") == head
    assert not list((repo.root / "trash").glob("*")), "and its objects are gone"
    check_whole(repo)
    writer.close()


def test_a_branch_made_between_marking_and_forgetting_keeps_all_that_its_commits_hold(repo, monkeypatch):
    bare = save(repo, "side", {"x": BIG})
    repo.delete_branch("side")
    writer = lake.open(repo.location)
    forget = lake.engines.embedded.gc._Collection._forget

    def late(collection, live):
        writer.create_branch("back", bare)
        return forget(collection, live)

    monkeypatch.setattr(lake.engines.embedded.gc._Collection, "_forget", late)
    assert repo.collect_garbage(grace_s=0).commits_removed == 0
    assert content(repo, "back") == {"x": BIG}
    check_whole(repo)
    writer.close()


def test_what_is_made_and_given_up_while_it_marks_stays_for_this_time_though_a_clock_is_put_back(repo, monkeypatch):
    writer = lake.open(repo.location)
    forget = lake.engines.embedded.gc._Collection._forget
    made = []

    def late(collection, live):
        with monkeypatch.context() as wrong:
            hours_ago = time.time() - 7200
            wrong.setattr("lake.engines.embedded.history.time.time", lambda: hours_ago)
            wrong.setattr("lake.engines.embedded.history.datetime", Behind)
            made.append(save(writer, "side", {"x": b"x" * 99}))
            writer.delete_branch("side")
        return forget(collection, live)

    monkeypatch.setattr(lake.engines.embedded.gc._Collection, "_forget", late)
    assert repo.collect_garbage(grace_s=0).commits_removed == 0
    assert content(repo, made[0]) == {"x": b"x" * 99}
    writer.close()


def test_the_lock_of_a_session_whose_work_has_gone_still_tells_who_holds_it(repo):
    session = repo.session("main", owner="ann")
    session.put("worked", b"w")
    repo.delete_branch(session.work)
    repo.collect_garbage(grace_s=0)
    with pytest.raises(ConflictError, match="ann"):
        repo.session("main", owner="bob")


def test_work_that_does_not_end_lets_the_collector_give_up_and_everything_stays(repo, monkeypatch):
    save(repo, "side", {"x": b"x" * 300})
    repo.delete_branch("side")
    before = stored(repo)
    writer = lake.open(repo.location)
    paused = Paused(monkeypatch, writer._engine.stager, "stage", lambda: writer.put("main", "slow", b"1"))
    with pytest.raises(ConflictError, match=r"more than 0\.05 s"):
        repo.collect_garbage(grace_s=0, wait_s=0.05)
    assert stored(repo) == before
    assert not (repo.root / "trash").exists()
    # The turn it began has not ended: the next collector waits for the same work.
    with pytest.raises(ConflictError, match=r"more than 0\.05 s"):
        repo.collect_garbage(grace_s=0, wait_s=0.05)
    paused.finish()
    assert repo.collect_garbage(grace_s=0).removed[UNREFERENCED].count == 3
    assert repo.get("main", "slow") == b"1"
    writer.close()
