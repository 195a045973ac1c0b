"""A publication or rollback whose server is lost says so at once; the same command finishes it, or finds it done."""

import pytest

import lake
from lake.testing.crash import check_sessions_swept, check_whole
from lake.testing.lost import lose
from releases.history import history
from releases.publish import publish, rollback
from releases.setup import init
from releases.verify import verify

pytestmark = [pytest.mark.lakefs, pytest.mark.slow, pytest.mark.xdist_group("lakefs-crash")]
POINTS = [1, pytest.param(40, marks=pytest.mark.soak)]


@pytest.fixture
def repo(lakefs_mortal):
    made = init(lakefs_mortal.state.location("releases"), block_zyx=(4, 4, 4))
    yield made
    made.close()


def state_of(repo, name):
    """Everything that must be as without a loss: the release, its tag, and one row for each decision."""
    check_whole(repo)
    check_sessions_swept(repo)
    release = {release.name: release for release in history(repo)}[name]
    assert repo.tags()[name] == release.merge
    assert verify(repo, name).ok
    with repo.snapshot("main") as snapshot:
        decisions = snapshot.sql(f"SELECT kind FROM ops.decisions WHERE release = '{name}' ORDER BY kind").rows()
        rows = snapshot.sql(f"SELECT count(*) FROM ops.releases WHERE release = '{name}'").rows()
    differs = list(repo.diff(release.previous_main if release.undone_by else release.merge, "main"))
    return decisions, rows, bool(release.undone_by), differs


def command(repo, work):
    """Give `work` as a command: from opening the repository to closing it."""

    def act(name):
        own = lake.open(repo.location)
        try:
            return work(own, name)
        finally:
            own.close()

    return act


@pytest.mark.parametrize("stop", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("points", POINTS)
def test_a_publication(points, stop, lakefs_mortal, repo, make):
    def fresh(number):
        make(f"r{number}")
        return f"r{number}"

    act = command(repo, lambda own, name: publish(own, name, user="ann"))
    lose(lakefs_mortal, fresh, act, lambda name: state_of(repo, name), points, stop=stop)


@pytest.mark.parametrize("points", POINTS)
def test_a_rollback(points, lakefs_mortal, repo, make):
    def fresh(number):
        make(f"r{number}")
        publish(repo, f"r{number}", user="ann")
        return f"r{number}"

    act = command(repo, lambda own, name: rollback(own, name, user="ann", reason="a drill"))
    lose(lakefs_mortal, fresh, act, lambda name: state_of(repo, name), points)
