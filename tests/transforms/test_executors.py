"""Executors: the same outcomes wherever a task runs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lake.errors import BadInput
from transforms.executors import Executor, ProcessExecutor, SerialExecutor, WorkerDied, make_executor
from transforms.testing import tasks


def drain(executor: Executor) -> dict[str, object]:
    outcomes: dict[str, object] = {}
    while executor.in_flight:
        done = executor.next()
        outcomes[done.key] = done.error or done.value
    return outcomes


@pytest.fixture(scope="module")
def processes():
    with ProcessExecutor(2) as executor:
        yield executor


def test_both_executors_give_the_same_outcomes(processes):
    results = []
    for executor in (SerialExecutor(), processes):
        for number in range(6):
            executor.submit(str(number), tasks.square, number)
        results.append(drain(executor))
    assert results[0] == results[1] == {str(n): n * n for n in range(6)}


def test_an_error_in_a_task_comes_back_as_itself_with_its_fix(processes):
    processes.submit("bad", tasks.refuse, "value")
    error = drain(processes)["bad"]
    assert isinstance(error, BadInput)
    assert error.fix == "give another value"


def test_a_worker_that_dies_is_replaced_and_only_its_own_task_fails(processes):
    processes.submit("killer", tasks.die, None)
    for number in range(5):
        processes.submit(str(number), tasks.square, number)
    outcomes = drain(processes)
    assert isinstance(outcomes.pop("killer"), WorkerDied)
    assert outcomes == {str(n): n * n for n in range(5)}


def test_a_worker_computes_on_one_thread(processes):
    processes.submit("threads", tasks.thread_settings, None)
    settings = drain(processes)["threads"]
    assert settings
    assert set(settings.values()) == {"1"}


PARENT = """
import time
from transforms.executors import ProcessExecutor
from transforms.testing import tasks
if __name__ == "__main__":
    executor = ProcessExecutor(1)
    executor.submit("pid", tasks.my_pid, None)
    print(executor.next().value, flush=True)
    executor.submit("sleep", time.sleep, 60)
    time.sleep(60)
"""


def test_a_worker_does_not_outlive_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(worker)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_unknown_executor_is_refused_with_the_nearest_name():
    with pytest.raises(BadInput, match="'serail'") as caught:
        make_executor("serail")
    assert "serial" in caught.value.fix
