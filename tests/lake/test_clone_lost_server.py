"""A clone whose server is lost, at either end, says so at once, moves nothing, and goes on when it is back."""

from datetime import timedelta

import pytest

import lake
from lake.clone import clone
from lake.testing.cloning import build, check_clone
from lake.testing.crash import check_whole
from lake.testing.lost import lose

pytestmark = [pytest.mark.lakefs, pytest.mark.slow, pytest.mark.xdist_group("lakefs-crash")]
POINTS = [1, pytest.param(40, marks=pytest.mark.soak)]


def commits(repo, destination):
    """Compare a clone with its source, and count the objects of each cloned commit."""
    dest = lake.open(destination)
    try:
        check_whole(dest)
        check_clone(repo, dest, {}, within=timedelta(seconds=1))
        # In the log commits of one second come in any order.
        return sorted((commit.message, len(list(dest.list(commit.id)))) for commit in dest.log("main"))
    finally:
        dest.close()


@pytest.mark.parametrize("points", POINTS)
def test_into_a_server(points, lakefs_mortal, tmp_path):
    source = build(lake.create(tmp_path / "source"))
    lose(
        lakefs_mortal,
        lambda number: lakefs_mortal.state.location(f"clone-{number}"),
        lambda destination: clone(source, destination),
        lambda destination: commits(source, destination),
        points,
    )
    source.close()


@pytest.mark.parametrize("points", POINTS)
def test_from_a_server(points, lakefs_mortal, tmp_path):
    source = build(lake.create(lakefs_mortal.state.location("source")))
    lose(
        lakefs_mortal,
        lambda number: tmp_path / f"clone-{number}",
        lambda destination: clone(source, destination),
        lambda destination: commits(source, destination),
        points,
    )
    source.close()
