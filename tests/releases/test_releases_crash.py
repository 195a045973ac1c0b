"""After a killed publication or rollback main has moved whole or not at all; the same command finishes it."""

import shutil
import time
from pathlib import Path

import pytest

from lake.testing.crash import at_every_point, at_moments
from releases.publish import publish

TABLE = Path(__file__).with_name("crash_table.py")
NAMES = ("publish", "rollback")
OURS = ("publish.", "rollback.", "session.")


@pytest.fixture
def fresh(fresh_folder, repo, make):
    """Give a function that makes a fresh folder in the state before an operation."""

    def prepare(name, location):
        make("r1")
        if name == "rollback":
            publish(repo, "r1", user="ann")
        repo.close()
        shutil.copytree(repo.location, location)

    return lambda name: fresh_folder(name, lambda location: prepare(name, location))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_kill_between_two_steps_leaves_it_done_or_not_done(name, fresh):
    passes = at_every_point(TABLE, name, fresh, only=lambda at: at.startswith(OURS))
    assert len(passes) >= {"publish": 18, "rollback": 8}[name], passes


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_kill_at_any_durable_step_of_the_engine_leaves_it_done_or_not_done(name, fresh):
    at_every_point(TABLE, name, fresh, only=lambda at: not at.startswith(OURS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.soak)])
def test_a_kill_at_any_moment_leaves_it_done_or_not_done(name, count, fresh):
    print(at_moments(TABLE, name, fresh, count, seed=1 if count == 3 else time.time_ns()))
