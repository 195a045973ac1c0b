"""The command line on a repository that its user may read and not write."""

from contextlib import closing

import pytest
from typer.testing import CliRunner

import lake
from lake.testing import other_user
from lake.testing.other_user import MISSING, give_away, state_of, take_back
from releases.app.cli import app

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def folder(tmp_path):
    """What `emlake init` makes, somebody else's."""
    path = tmp_path / "repo"
    assert CliRunner().invoke(app, ["init", str(path), "--block", "64,64,64", "--voxel", "40,4,4"]).exit_code == 0
    with closing(lake.open(path)) as repo:
        repo.create_branch("work", "main")
        repo.put("work", "notes/a", b"1" * 100_000)
        repo.commit("work", "a note")
    give_away(path)
    yield path
    take_back(path)


COMMANDS = """
import sys, json
from typer.testing import CliRunner
from releases.app.cli import app
runner = CliRunner()
for line in sys.argv[2:]:
    answer = runner.invoke(app, [*line.split(), "--repo", sys.argv[1]] if "clone" not in line else line.split())
    print(line, "->", answer.exit_code, getattr(answer.exception, "kind", ""), answer.output)
"""


@pytest.mark.slow
def test_every_reading_command_works_on_another_users_repository(folder, tmp_path):
    before = state_of(folder)
    lines = ["log", "doctor", "scrub --all", "release list", "params list", "gc"]
    told = other_user.run(COMMANDS, folder, *lines, f"clone {folder} {tmp_path / 'clone'}")
    assert state_of(folder) == before
    for line in [*lines[:-1], f"clone {folder} {tmp_path / 'clone'}"]:
        assert f"{line} -> 0" in told, told
    assert "access" in told
    assert "not recorded: " in told
    assert "gc -> 1 read-only" in told
    copy = lake.open(tmp_path / "clone")
    source = lake.open(folder)
    assert [stat.checksum for stat in copy.list("main")] == [stat.checksum for stat in source.list("main")]
    copy.close()
    source.close()
