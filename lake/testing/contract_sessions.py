"""Contract: one writer, one commit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from lake.errors import BadInput, ConflictError, DirtyBranch, NothingToCommit, ObjectNotFound, RefNotFound, SessionLost
from lake.locks import TIDYING_S, break_lock, locks, read_lock
from lake.opening import open_session, sweep
from lake.repository import Repository
from lake.testing.trees import ended_process, fork, save, stage, state, tree


def _before(monkeypatch: pytest.MonkeyPatch, repo: Repository, method: str, happens: Callable[[], object]) -> None:
    """Let something happen, once, just before the next call of `method` reaches the repository."""
    real = getattr(repo, method)

    def call(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(repo, method, real)
        happens()
        return real(*args, **options)

    monkeypatch.setattr(repo, method, call)


class SessionsContract:
    """Needs a fixture `repo` with a fresh repository."""

    def open_again(self, repo: Repository) -> Repository:
        """Give another handle on the same repository; see `RefsContract.open_again`."""
        return repo

    # -- landing ------------------------------------------------------------------------------------------------
    def test_a_session_leaves_exactly_one_commit_with_one_parent(self, repo: Repository) -> None:
        base = fork(repo, "work", {"a": b"1", "gone": b"1"})
        with repo.session("work", owner="ada") as session:
            assert (session.branch, session.base, session.owner, session.resumed) == ("work", base, "ada", False)
            session.put("b", b"2")
            session.checkpoint("half of it")
            session.put("tables/t/1", b"3", content_type="text/plain", metadata={"n": "1"})
            session.delete(["gone", "never"])
            assert [entry.key for entry in session.list()] == ["a", "b", "tables/t/1"]
            assert session.get("b") == b"2"
            commit = session.commit("all of it", {"run": "7"})
        info = repo.commit_info("work")
        assert (info.id, info.parents, info.message) == (commit, (base,), "all of it")
        assert dict(info.metadata) == {"run": "7", "session": session.id}
        assert tree(repo, "work") == {"a": b"1", "b": b"2", "tables/t/1": b"3"}
        assert repo.stat("work", "tables/t/1").content_type == "text/plain"
        assert sorted(repo.branches()) == ["main", "work"]
        assert dict(repo.tags()) == {}
        assert locks(repo) == ()

    def test_nothing_shows_on_the_branch_before_the_commit(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        with repo.session("main") as session:
            session.put("a", b"2")
            session.checkpoint()
            session.put("b", b"3")
            assert tree(repo, "main") == {"a": b"1"}
            assert list(repo.uncommitted("main")) == []
            assert tree(repo, session.work) == {"a": b"2", "b": b"3"}
            with pytest.raises(ObjectNotFound, match="nothing"):
                session.get("nothing")
            assert session.stat("b").size == 1
            session.commit("now")
        assert tree(repo, "main@") == {"a": b"2", "b": b"3"}

    def test_sessions_are_how_a_protected_branch_is_written(self, repo: Repository) -> None:
        repo.create_branch("cand-a", "main")
        repo.protect("cand-*")
        for number in range(2):
            with repo.session("cand-a") as session:
                session.put("n", bytes([number]))
                session.commit(f"c{number}")
        assert [commit.message for commit in repo.log("cand-a", limit=2)] == ["c1", "c0"]
        assert repo.get("cand-a", "n") == b"\x01"

    def test_an_empty_session_is_nothing_to_commit_and_stays_open(self, repo: Repository) -> None:
        head = save(repo, "main", {"a": b"1"})
        with repo.session("main") as session:
            session.put("a", b"1")
            session.checkpoint()
            with pytest.raises(NothingToCommit):
                session.commit("nothing")
            session.put("a", b"2")
            session.put("a", b"1")
            with pytest.raises(NothingToCommit):
                session.commit("back to where it was")
            assert repo.resolve("main") == head
            session.put("b", b"1")
            session.commit("something")
        assert tree(repo, "main") == {"a": b"1", "b": b"1"}

    def test_an_empty_session_may_land_on_request(self, repo: Repository) -> None:
        head = repo.resolve("main")
        with repo.session("main") as session:
            commit = session.commit("a mark", allow_empty=True)
        assert repo.commit_info(commit).parents == (head,)

    def test_metadata_must_be_text_and_the_work_is_kept(self, repo: Repository) -> None:
        with repo.session("main") as session:
            session.put("a", b"1")
            with pytest.raises(BadInput, match="run"):
                session.commit("no", {"run": 7})  # type: ignore[dict-item]
            session.commit("yes", {"run": "7"})
        assert tree(repo, "main") == {"a": b"1"}

    def test_staged_changes_on_the_branch_itself_stop_the_landing(self, repo: Repository) -> None:
        with repo.session("main") as session:
            session.put("a", b"1")
            stage(repo, "main", {"b": b"by another way"})
            with pytest.raises(DirtyBranch, match="main"):
                session.commit("no")
            repo.reset("main")
            session.commit("yes")
        assert tree(repo, "main") == {"a": b"1"}

    def test_a_landing_whose_answer_never_came_is_not_repeated(self, repo: Repository) -> None:
        session = repo.session("main")
        session.put("a", b"1")
        session.checkpoint()
        told = {"session": session.id}
        landed = repo.merge(session.work, "main", "all", told, squash=True, expect_head=session.base)
        assert session.commit("all") == landed
        assert [commit.message for commit in repo.log("main", limit=1)] == ["all"]
        assert sorted(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}

    # -- leaving without a commit -------------------------------------------------------------------------------
    def test_an_abandoned_session_leaves_nothing(self, repo: Repository) -> None:
        save(repo, "main", {"a": b"1"})
        before = state(repo)
        session = repo.session("main")
        session.put("b", b"2")
        session.checkpoint()
        session.put("c", b"3")
        session.abandon()
        session.abandon()
        assert state(repo) == before

    def test_a_block_that_ends_or_raises_without_commit_leaves_nothing(self, repo: Repository) -> None:
        before = state(repo)
        with repo.session("main") as session:
            session.put("a", b"1")
        assert state(repo) == before
        with suppress(ZeroDivisionError), repo.session("main") as session:
            session.put("a", b"1")
            session.put("b", bytes([1 // 0]))
        assert state(repo) == before

    def test_a_closed_session_takes_no_more_work(self, repo: Repository) -> None:
        session = repo.session("main")
        session.put("a", b"1")
        session.commit("done")
        for call in (
            lambda: session.put("b", b"2"),
            lambda: session.delete(["a"]),
            lambda: session.commit("again"),
            session.checkpoint,
            session.suspend,
        ):
            with pytest.raises(BadInput, match="closed"):
                call()
        assert tree(repo, "main") == {"a": b"1"}

    def test_there_is_no_session_on_a_branch_that_does_not_exist(self, repo: Repository) -> None:
        commit = fork(repo, "work", {"a": b"1"})
        repo.create_tag("r1", commit)
        for name in ("wrok", "r1", commit, "work~0"):
            with pytest.raises(RefNotFound):
                repo.session(name)
        assert sorted(repo.branches()) == ["main", "work"]
        assert list(repo.tags()) == ["r1"]

    # -- two writers --------------------------------------------------------------------------------------------
    def test_a_second_session_is_refused_by_name_and_changes_nothing(self, repo: Repository) -> None:
        with repo.session("main", owner="first"):
            before = state(repo)
            with pytest.raises(ConflictError, match=r"'first'.* on .* ago") as caught:
                repo.session("main", owner="second")
            assert type(caught.value) is ConflictError
            assert "main" in caught.value.message
            assert "--break-lock main" in caught.value.fix
            assert state(repo) == before
            (lock,) = locks(repo)
            assert (lock.branch, lock.process.owner, lock.state) == ("main", "first", "held")
            assert lock == read_lock(repo, "main")
        with repo.session("main", owner="second") as session:
            assert session.owner == "second"

    def test_sessions_on_two_branches_do_not_meet(self, repo: Repository) -> None:
        # One name is the beginning of the other.
        repo.create_branch("cand-a", "main")
        repo.create_branch("cand-ab", "main")
        with repo.session("cand-a") as one, repo.session("cand-ab") as two:
            one.put("k", b"one")
            two.put("k", b"two")
            one.commit("one")
            assert list(repo.tags()) == ["lock.cand-ab"]
            two.commit("two")
        assert (repo.get("cand-a", "k"), repo.get("cand-ab", "k")) == (b"one", b"two")

    def test_of_many_who_open_at_once_one_gets_the_branch(self, repo: Repository) -> None:
        handles = [self.open_again(repo) for _ in range(8)]

        def attempt(handle: Repository) -> object:
            try:
                return handle.session("main")
            except ConflictError as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(attempt, handles))
        (won,) = [result for result in results if not isinstance(result, ConflictError)]
        assert sorted(repo.branches()) == ["main", won.work]  # type: ignore[attr-defined]
        assert list(repo.tags()) == ["lock.main"]

    def test_writers_that_wait_come_one_after_the_other_and_lose_nothing(self, repo: Repository) -> None:
        save(repo, "main", {"n": b""})
        handles = [self.open_again(repo) for _ in range(4)]

        def add(handle: Repository) -> None:
            with handle.session("main", wait_s=60.0) as session:
                session.put("n", session.get("n") + b"x")
                session.commit("one more")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, handles))
        assert repo.get("main", "n") == b"xxxx"
        assert [commit.message for commit in repo.log("main", limit=4)] == ["one more"] * 4

    def test_waiting_ends_when_the_writer_does_or_the_time_is_up(self, repo: Repository) -> None:
        session = repo.session("main", owner="slow")
        began = time.monotonic()
        with pytest.raises(ConflictError, match="slow"):
            repo.session("main", wait_s=0.2)
        assert time.monotonic() - began >= 0.2
        other = self.open_again(repo)
        timer = threading.Timer(0.3, session.abandon)
        timer.start()
        with other.session("main", wait_s=60.0):
            assert time.monotonic() - began < 30
        timer.join()

    # -- between two steps --------------------------------------------------------------------------------------
    def test_a_branch_that_moves_in_the_last_moment_stops_the_landing(
        self, repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = repo.session("main")
        session.put("a", b"1")
        _before(monkeypatch, repo, "merge", lambda: save(repo, "main", {"b": b"by another way"}))
        with pytest.raises(SessionLost):
            session.commit("no")
        assert tree(repo, "main") == {"b": b"by another way"}
        assert tree(repo, session.work) == {"a": b"1"}

    def test_a_session_that_lands_while_the_next_one_opens_is_seen_by_it(
        self, repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def land_another() -> None:
            with self.open_again(repo).session("main") as other:
                other.put("a", b"other")
                other.commit("other")

        _before(monkeypatch, repo, "create_tag", land_another)
        with repo.session("main", wait_s=10.0) as session:
            assert session.get("a") == b"other"
            session.put("b", b"1")
            session.commit("on top")
        assert tree(repo, "main") == {"a": b"other", "b": b"1"}
        assert (list(repo.branches()), dict(repo.tags())) == (["main"], {})

    @pytest.mark.parametrize("lands", [True, False])
    def test_a_dead_session_that_another_ends_while_it_is_claimed_is_not_continued(
        self, repo: Repository, monkeypatch: pytest.MonkeyPatch, lands: bool
    ) -> None:
        dead = open_session(repo, "main", process=ended_process("the late ada"))
        dead.put("a", b"1")

        def end_it() -> None:
            with self.open_again(repo).session("main") as other:
                assert other.resumed
                if lands:
                    other.commit("other")

        _before(monkeypatch, repo, "create_tag", end_it)
        with repo.session("main", wait_s=10.0) as session:
            assert not session.resumed
            session.put("b", b"1")
            session.commit("on top")
        assert tree(repo, "main") == ({"a": b"1", "b": b"1"} if lands else {"b": b"1"})
        assert (list(repo.branches()), dict(repo.tags())) == (["main"], {})

    def test_whoever_landed_removes_its_own_lock_only(self, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        first, later = repo.session("main", owner="first"), []
        first.put("a", b"1")

        def break_and_open() -> None:
            break_lock(repo, "main")
            later.append(repo.session("main", owner="second"))

        _before(monkeypatch, repo, "delete_branch", break_and_open)
        first.commit("landed")
        assert [lock.process.owner for lock in locks(repo)] == ["second"]
        later[0].put("b", b"2")
        later[0].commit("landed too")
        assert tree(repo, "main") == {"a": b"1", "b": b"2"}

    # -- locks broken, branches moved ---------------------------------------------------------------------------
    def test_a_writer_whose_lock_was_broken_is_refused_and_its_work_is_kept(self, repo: Repository) -> None:
        base = save(repo, "main", {"a": b"1"})
        slow = repo.session("main", owner="slow")
        slow.put("a", b"slow")
        broken = break_lock(repo, "main")
        assert broken is not None
        assert (broken.process.owner, broken.session) == ("slow", slow.id)
        with repo.session("main", owner="quick") as quick:
            with pytest.raises(SessionLost, match="slow") as caught:
                slow.commit("too late")
            assert slow.work in caught.value.fix
            assert repo.resolve("main") == base
            assert tree(repo, slow.work) == {"a": b"slow"}
            quick.put("a", b"quick")
            quick.commit("mine")
        with pytest.raises(SessionLost):
            slow.commit("still too late")
        slow.abandon()
        assert tree(repo, "main") == {"a": b"quick"}
        assert tree(repo, slow.work) == {"a": b"slow"}

    def test_breaking_a_lock_that_is_not_there_breaks_nothing(self, repo: Repository) -> None:
        assert break_lock(repo, "main") is None

    def test_a_branch_that_moved_under_a_session_stops_its_landing(self, repo: Repository) -> None:
        session = repo.session("main", owner="ada")
        session.put("a", b"1")
        moved = save(repo, "main", {"b": b"by another way"})
        with pytest.raises(SessionLost, match=moved):
            session.commit("no")
        session.abandon()
        assert repo.resolve("main") == moved
        assert tree(repo, session.work) == {"a": b"1"}
        with repo.session("main", owner="bob") as following:
            assert (following.resumed, following.base) == (False, moved)
            following.put("a", session.get("a"))
            following.commit("replayed")
        assert tree(repo, "main") == {"a": b"1", "b": b"by another way"}
        assert tree(repo, session.work) == {"a": b"1"}
        assert dict(repo.tags()) == {}

    def test_a_lock_left_by_a_living_process_that_landed_holds_nobody_up_for_long(
        self, repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = repo.session("main", owner="ada")
        session.put("a", b"1")
        session.checkpoint()
        repo.merge(session.work, "main", "all", {"session": session.id}, squash=True, expect_head=session.base)
        with pytest.raises(ConflictError, match="ada"):
            repo.session("main")
        monkeypatch.setattr("lake.locks.TIDYING_S", -TIDYING_S)
        with repo.session("main") as following:
            assert not following.resumed
            assert sorted(repo.branches()) == ["main", following.work]

    def test_sweeping_removes_what_nobody_can_use_and_nothing_else(self, repo: Repository) -> None:
        repo.create_branch("work", "main")
        alive, kept = repo.session("main"), open_session(repo, "work")
        kept.suspend()
        repo.create_tag("lock.deleted-branch", "main")
        repo.create_tag("lock.main.claim-0123456789abcdef", "main")
        repo.create_tag("r1", "main")
        assert sweep(repo) == ("lock.deleted-branch", "lock.main.claim-0123456789abcdef")
        assert sweep(repo) == ()
        assert {"r1", "lock.main", "lock.work"} <= set(repo.tags())
        assert sorted(repo.branches()) == sorted(["main", "work", alive.work, kept.work])
