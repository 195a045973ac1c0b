"""What may pass is tried again, what never will is given up, what is wrong stops everything."""

import pytest

from lake.errors import (
    BadInput,
    ConflictError,
    CorruptObject,
    NoRoom,
    NotAuthorized,
    NotFound,
    ServerUnreachable,
    StorageError,
)
from transforms.dispatch import Failed, Finished, Job, Retry, classify, dispatch
from transforms.executors import SerialExecutor, WorkerDied

QUICK = Retry(attempts=3, pause_s=0.001)


class Flaky:
    """Fails a given number of times, then gives its name."""

    def __init__(self, **failures):
        self.failures = failures
        self.calls = []

    def __call__(self, key):
        self.calls.append(key)
        left = self.failures.get(key, [])
        if left:
            raise left.pop(0)
        return key


def outcomes(work, keys, retry=QUICK):
    jobs = (Job(key, work, key) for key in keys)
    return {done.key: done for done in dispatch(SerialExecutor(), jobs, retry)}


def test_every_job_is_told_once_with_its_value():
    work = Flaky()
    found = outcomes(work, "abc")
    assert {key: done.value for key, done in found.items()} == {"a": "a", "b": "b", "c": "c"}
    assert work.calls == ["a", "b", "c"]


def test_a_transient_error_is_tried_again_after_the_others_had_their_turn():
    work = Flaky(a=[OSError("disk"), WorkerDied("killed")])
    found = outcomes(work, "abc")
    assert isinstance(found["a"], Finished)
    assert found["a"].attempts == 3
    assert found["a"].wasted_s > 0
    assert sorted(work.calls) == ["a", "a", "a", "b", "c"]


def test_attempts_are_capped_and_the_last_cause_is_told():
    work = Flaky(b=[StorageError(str(n)) for n in range(9)])
    found = outcomes(work, "abc")
    assert isinstance(found["b"], Failed)
    assert (found["b"].kind, found["b"].attempts, found["b"].cause) == ("poison", 3, "StorageError: 2")
    assert isinstance(found["c"], Finished)


def test_a_fatal_error_is_not_tried_again_and_nothing_new_begins():
    work = Flaky(b=[BadInput("wrong", fix="right")])
    found = outcomes(work, "abcd")
    assert found["b"].kind == "fatal"
    assert work.calls == ["a", "b"]
    assert set(found) == {"a", "b"}


def test_pauses_double_up_to_a_limit():
    retry = Retry(attempts=9, pause_s=1.0, longest_s=5.0)
    assert [retry.pause(n) for n in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jobs_are_drawn_as_workers_become_free():
    drawn = []

    def jobs():
        for number in range(1000):
            drawn.append(number)
            yield Job(str(number), str, number)

    running = dispatch(SerialExecutor(), jobs(), QUICK)
    next(running)
    assert len(drawn) <= 2
    running.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("x"), "transient"),
        (CorruptObject("x"), "transient"),
        (WorkerDied("x"), "transient"),
        (MemoryError("x"), "transient"),
        (ValueError("x"), "poison"),
        (ZeroDivisionError("x"), "poison"),
        (BadInput("x"), "fatal"),
        (NotFound("x"), "fatal"),
        (ConflictError("x"), "fatal"),
        (NotAuthorized("x"), "fatal"),
        (NoRoom("x"), "fatal"),
        (ServerUnreachable("x"), "fatal"),
    ],
)
def test_errors_are_told_apart(error, kind):
    assert classify(error) == kind
