"""Contract: sessions that were left, dead or suspended, and who goes on with them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lake.errors import ConflictError, SessionLost
from lake.locks import break_lock, locks
from lake.opening import open_session, sweep
from lake.repository import Repository
from lake.session import Session
from lake.testing.trees import ended_process, process_elsewhere, save, tree


def _die_at_work(repo: Repository, branch: str = "main") -> Session:
    """Leave a session as a killed process would: something committed on the hidden branch, something staged."""
    session = open_session(repo, branch, process=ended_process("the late ada"))
    session.put("first", b"committed")
    session.checkpoint()
    session.put("second", b"staged")
    return session


class TakeoverContract:
    """Needs a fixture `repo` with a fresh repository."""

    def open_again(self, repo: Repository) -> Repository:
        """Give another handle on the same repository; see `RefsContract.open_again`."""
        return repo

    # -- dead ---------------------------------------------------------------------------------------------------
    def test_a_dead_holder_that_had_written_nothing_leaves_nothing_though_its_branch_moved(
        self, repo: Repository
    ) -> None:
        # A publication holds `lock.main` while it merges, and dies before it lets go.
        repo.create_branch("side", "main")
        save(repo, "side", {"a": b"1"})
        open_session(repo, "main", process=ended_process("the late ada"))
        repo.merge("side", "main", "published")
        with repo.session("main", resume=False) as session:
            assert not session.resumed
            assert sorted(repo.branches()) == ["main", session.work, "side"]
        assert sorted(repo.branches()) == ["main", "side"]
        assert dict(repo.tags()) == {}

    def test_a_dead_writers_work_is_continued_and_lands_as_one_commit(self, repo: Repository) -> None:
        base = save(repo, "main", {"a": b"1"})
        dead = _die_at_work(repo)
        assert [lock.state for lock in locks(repo)] == ["dead"]
        with repo.session("main", owner="grace") as session:
            assert (session.resumed, session.id, session.base) == (True, dead.id, base)
            assert [entry.key for entry in session.list()] == ["a", "first", "second"]
            session.put("third", b"grace")
            commit = session.commit("all of it")
        assert repo.commit_info(commit).parents == (base,)
        assert tree(repo, "main") == {"a": b"1", "first": b"committed", "second": b"staged", "third": b"grace"}
        assert list(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}

    def test_a_dead_writers_work_is_thrown_away_on_request(self, repo: Repository) -> None:
        dead = _die_at_work(repo)
        with repo.session("main", resume=False) as session:
            assert (session.resumed, session.id == dead.id) == (False, False)
            assert list(session.list()) == []
            assert sorted(repo.branches()) == ["main", session.work]
            session.put("fresh", b"1")
            session.commit("fresh")
        assert tree(repo, "main") == {"fresh": b"1"}
        assert list(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}

    def test_whoever_goes_on_is_the_one_writer(self, repo: Repository) -> None:
        _die_at_work(repo)
        with repo.session("main", owner="grace"):
            with pytest.raises(ConflictError, match="grace"):
                repo.session("main", owner="hedy")
            assert [(lock.process.owner, lock.state) for lock in locks(repo)] == [("grace", "held")]

    def test_a_dead_successor_is_succeeded(self, repo: Repository) -> None:
        dead = _die_at_work(repo)
        second = open_session(repo, "main", process=ended_process("the late grace"))
        second.put("third", b"grace")
        with repo.session("main", owner="hedy") as session:
            assert (session.resumed, session.id) == (True, dead.id)
            session.commit("all of it")
        assert sorted(tree(repo, "main")) == ["first", "second", "third"]
        assert dict(repo.tags()) == {}
        assert list(repo.branches()) == ["main"]

    def test_of_many_who_find_a_dead_writer_one_goes_on(self, repo: Repository) -> None:
        dead = _die_at_work(repo)
        handles = [self.open_again(repo) for _ in range(8)]

        def attempt(handle: Repository) -> Session | None:
            try:
                return handle.session("main")
            except ConflictError:
                return None

        with ThreadPoolExecutor(8) as pool:
            (won,) = [session for session in pool.map(attempt, handles) if session]
        assert won.resumed
        assert sorted(repo.branches()) == ["main", dead.work]
        won.commit("all of it")
        assert sorted(tree(repo, "main")) == ["first", "second"]
        assert dict(repo.tags()) == {}

    def test_a_writer_that_was_taken_for_dead_is_refused(self, repo: Repository) -> None:
        early = _die_at_work(repo)
        with repo.session("main", resume=False) as session:
            with pytest.raises(SessionLost, match="lock"):
                early.commit("I was only asleep")
            session.put("fresh", b"1")
            session.commit("fresh")
        assert tree(repo, "main") == {"fresh": b"1"}

    def test_a_dead_writer_that_had_landed_is_only_tidied(self, repo: Repository) -> None:
        dead = _die_at_work(repo)
        dead.checkpoint()
        told = {"session": dead.id}
        landed = repo.merge(dead.work, "main", "all", told, squash=True, expect_head=dead.base)
        with repo.session("main") as session:
            assert (session.resumed, session.base) == (False, landed)
            assert sorted(repo.branches()) == ["main", session.work]
        assert repo.resolve("main") == landed
        assert dict(repo.tags()) == {}

    def test_a_dead_writer_without_work_is_only_tidied(self, repo: Repository) -> None:
        dead = _die_at_work(repo)
        repo.delete_branch(dead.work)
        with repo.session("main") as session:
            assert not session.resumed
            session.put("fresh", b"1")
            session.commit("fresh")
        assert dict(repo.tags()) == {}

    def test_a_dead_writer_whose_branch_moved_does_not_hold_it_up_and_its_work_is_kept(
        self, repo: Repository, caplog: pytest.LogCaptureFixture
    ) -> None:
        dead = _die_at_work(repo)
        save(repo, "main", {"b": b"by another way"})
        with repo.session("main") as session:
            assert not session.resumed
            session.put("fresh", b"1")
            session.commit("fresh")
        assert sorted(tree(repo, "main")) == ["b", "fresh"]
        assert sorted(tree(repo, dead.work)) == ["first", "second"]
        assert dead.work in caplog.text

    def test_sweeping_keeps_what_can_be_continued_and_removes_what_cannot(self, repo: Repository) -> None:
        repo.create_branch("work", "main")
        dead, broken = _die_at_work(repo, "work"), _die_at_work(repo)
        break_lock(repo, "main")
        assert sweep(repo) == (broken.work,)
        assert sorted(repo.branches()) == sorted(["main", "work", dead.work])
        repo.delete_branch(dead.work)
        assert sweep(repo) == ("lock.work",)
        assert sorted(repo.branches()) == ["main", "work"]
        assert dict(repo.tags()) == {}

    # -- elsewhere ----------------------------------------------------------------------------------------------
    def test_a_writer_on_another_machine_is_alive_until_its_lease_is_over(self, repo: Repository) -> None:
        there = open_session(repo, "main", process=process_elsewhere("linus"))
        there.put("a", b"1")
        with pytest.raises(ConflictError, match=r"'linus'.*elsewhere"):
            repo.session("main")
        there.commit("landed from elsewhere")
        assert tree(repo, "main") == {"a": b"1"}

    def test_a_writer_on_another_machine_is_dead_when_its_lease_is_over(self, repo: Repository) -> None:
        there = open_session(repo, "main", process=process_elsewhere("linus"), lease_s=-1.0)
        there.put("a", b"1")
        with repo.session("main", owner="here") as session:
            assert (session.resumed, session.id) == (True, there.id)
            session.commit("landed from here")
        assert tree(repo, "main") == {"a": b"1"}

    # -- suspended ----------------------------------------------------------------------------------------------
    def test_a_suspended_session_is_continued_by_the_next(self, repo: Repository) -> None:
        with repo.session("main", owner="ada") as session:
            session.put("a", b"1")
            session.suspend()
        assert [(lock.process.owner, lock.state) for lock in locks(repo)] == [("ada", "suspended")]
        assert tree(repo, "main") == {}
        with repo.session("main", owner="ada") as again:
            assert (again.resumed, again.id) == (True, session.id)
            again.put("b", b"2")
            with pytest.raises(ConflictError):
                repo.session("main")
            again.suspend()
        with repo.session("main") as last:
            assert last.resumed
            last.commit("after two breaks")
        assert tree(repo, "main") == {"a": b"1", "b": b"2"}
        assert list(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}

    def test_a_suspended_session_is_thrown_away_on_request(self, repo: Repository) -> None:
        with repo.session("main") as session:
            session.put("a", b"1")
            session.suspend()
        with repo.session("main", resume=False) as fresh:
            assert not fresh.resumed
            assert list(fresh.list()) == []
        assert list(repo.branches()) == ["main"]
        assert dict(repo.tags()) == {}
