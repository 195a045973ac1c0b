"""A publication on a real lakeFS server, whose client is killed, or the server under it."""

import random
import time
from pathlib import Path

import pytest

from lake.testing.crash import moments, on_a_server, run, working
from releases.setup import init

TABLE = Path(__file__).with_name("crash_table.py")
KILLS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)]
pytestmark = [pytest.mark.lakefs, pytest.mark.xdist_group("lakefs-crash")]


@pytest.fixture
def repo(lakefs_mortal):
    made = init(lakefs_mortal.state.location("releases"), block_zyx=(4, 4, 4))
    yield made
    made.close()


@pytest.mark.parametrize("victim", ["client", "server"])
@pytest.mark.parametrize("count", KILLS)
def test_a_publication_that_is_killed_happened_or_did_not(lakefs_mortal, repo, make, count, victim):
    killing = {"kill": lakefs_mortal.kill, "restart": lakefs_mortal.restart} if victim == "server" else {}
    make("r1")
    longest = run(working(TABLE, "publish", repo.location)).lasted_s  # on this machine, with this server
    for number, moment in enumerate(moments(random.Random(1 if count == 1 else time.time_ns()), count, longest), 1):
        make(f"r{number + 1}")
        print(on_a_server(TABLE, "publish", repo.location, moment, first=number, **killing))
