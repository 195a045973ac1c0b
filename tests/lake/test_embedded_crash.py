"""A killed process leaves the old state or the new one, whole, and nothing that the next one minds.

What is done and what must hold afterwards is in `lake.testing.crash_operations`, one entry for each operation.
"""

import shutil
import time

import pytest

import lake
from lake.testing import crash_operations
from lake.testing.crash import at_every_point, at_moments, passes_of, python, run

TABLE = crash_operations.__file__
OPERATIONS = crash_operations.OPERATIONS
CREATE = "import sys, lake; print('ready'); lake.create(sys.argv[1]); print('done')"
# How many kinds of points each passes at least; a tag is one transaction, there is no step to kill it at.
LEAST_POINTS = {
    "put": 4,
    "commit": 9,
    "workspace": 12,
    "merge": 6,
    "revert": 6,
    "cherry-pick": 8,
    "reset": 3,
    "branch": 4,
    "gc": 14,
}


@pytest.fixture
def fresh(fresh_folder):
    """Give a function that makes a fresh folder in the state before an operation."""
    return lambda name: fresh_folder(name, OPERATIONS[name].prepare)


@pytest.mark.parametrize(
    ("name", "point"), [("put", "put.object-kept"), ("commit", "commit.before-ref"), ("merge", "merge.ref-moved")]
)
def test_killed_around_its_last_step_an_operation_is_whole_or_was_never(fresh, name, point):
    at_every_point(TABLE, name, fresh, only=lambda at: at == f"{point}:1")


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST_POINTS)
def test_a_kill_between_two_durable_steps_leaves_the_old_state_or_the_new(name, fresh):
    passes = at_every_point(TABLE, name, fresh)
    assert len({each.partition(":")[0] for each in passes}) >= LEAST_POINTS[name], passes


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_moment_loses_nothing_acknowledged(name, fresh):
    print(at_moments(TABLE, name, fresh, 3, seed=1))


@pytest.mark.soak
@pytest.mark.parametrize("name", OPERATIONS)
def test_two_hundred_kills_at_any_moment_lose_nothing_acknowledged(name, fresh):
    print(at_moments(TABLE, name, fresh, 200, seed=time.time_ns()))


@pytest.mark.slow
def test_a_creation_that_is_killed_can_be_repeated(tmp_path):
    for at in passes_of(python(CREATE, tmp_path / "traced")):
        root = tmp_path / "repo"
        ended = run(python(CREATE, root), kill_at=at)
        assert ended.killed
        assert not root.exists(), at
        lake.create(root).close()
        shutil.rmtree(root)
