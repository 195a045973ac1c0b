"""A publication or rollback whose disk fills up happened whole or not at all; the same command finishes it."""

import shutil
from pathlib import Path

import pytest

from lake.testing.crash import load
from lake.testing.small_disk import run_out
from releases.publish import publish

TABLE = Path(__file__).with_name("crash_table.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["publish", "rollback"])
@pytest.mark.parametrize("points", [5, pytest.param(60, marks=pytest.mark.soak)])
def test_wherever_room_ends_it_is_done_or_not_done(name, points, cramped, repo, make, tmp_path):
    make("r1")
    if name == "rollback":
        publish(repo, "r1", user="ann")
    repo.close()
    shutil.copytree(repo.location, tmp_path / "template" / "repo")
    run_out(load(TABLE)[name], cramped, tmp_path / "template", points)
