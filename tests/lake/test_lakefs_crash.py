"""On a real lakeFS server: a killed client leaves no half commit, a killed server loses nothing that it acknowledged.

The operations are those that the embedded engine is killed in, as far as they need the contract alone.
"""

import random
import time
import uuid

import pytest

from lake.testing import crash_operations
from lake.testing.crash import moments, on_a_server

TABLE = crash_operations.__file__
OPERATIONS = crash_operations.OPERATIONS
KILLS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)]
pytestmark = [pytest.mark.lakefs, pytest.mark.xdist_group("lakefs-crash")]


def each_moment(state, name, count):
    """Give (time to kill after, location of a prepared repository)."""
    for moment in moments(random.Random(1 if count == 1 else time.time_ns()), count, OPERATIONS[name].longest_s):
        location = state.location(f"r-{uuid.uuid4().hex[:12]}")
        OPERATIONS[name].prepare(location)
        yield moment, location


@pytest.mark.parametrize("name", crash_operations.ON_A_SERVER)
@pytest.mark.parametrize("count", KILLS)
def test_a_killed_client_leaves_no_half_commit(lakefs_server, name, count):
    for moment, location in each_moment(lakefs_server, name, count):
        print(on_a_server(TABLE, name, location, moment))


@pytest.mark.parametrize("name", crash_operations.ON_A_SERVER)
@pytest.mark.parametrize("count", KILLS)
def test_a_killed_server_has_all_that_it_acknowledged(lakefs_mortal, name, count):
    for moment, location in each_moment(lakefs_mortal.state, name, count):
        print(on_a_server(TABLE, name, location, moment, kill=lakefs_mortal.kill, restart=lakefs_mortal.restart))
