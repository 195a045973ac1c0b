"""A file of the records on `ops` that no copy holds stops publish and rollback until somebody accepts its loss."""

import os

import pytest

from lake.errors import LakeError
from lake.losses import accept
from lake.scrub import scrub
from releases.history import standing
from releases.publish import publish, rollback
from releases.setup import init
from releases.verify import verify


@pytest.fixture(params=["folder", pytest.param("server", marks=[pytest.mark.lakefs, pytest.mark.slow])])
def repo(request, tmp_path):
    where = str(tmp_path / "repo") if request.param == "folder" else request.getfixturevalue("lakefs_location")
    made = init(where, block_zyx=(4, 4, 4))
    yield made
    made.close()


def lose(repo, table, ending):
    """Remove a file of a table on `ops`; gives its name."""
    [stat] = [stat for stat in repo.list("ops", f"tables/{table}/") if stat.key.endswith(ending)]
    os.remove(stat.address.removeprefix("local://"))
    return stat.address if repo.location.startswith("lakefs:") else stat.checksum


def rows_of(repo, table):
    with repo.snapshot("main") as now:
        return now.sql(f"SELECT * FROM ops.{table} ORDER BY ts").polars()


@pytest.mark.parametrize("table", ["decisions", "releases"])
@pytest.mark.parametrize("ending", [".parquet", ".json"])
def test_publish_and_rollback_go_on_where_they_were_stopped(repo, make, table, ending):
    make("r1")
    publish(repo, "r1", user="ann")
    name = lose(repo, table, ending)
    make("r2", merge=True)

    def drill():
        publish(repo, "r2", user="ann")
        return rollback(repo, "r2", user="ann", reason="a drill")

    def drill_and_read():
        drill()
        # A server takes new rows beside a lost data file; only who reads the old ones is stopped.
        rows_of(repo, table)

    with pytest.raises(LakeError):
        drill_and_read()
    assert [fault.name for fault in scrub(repo, budget=None).faults if fault.kind == "object"] == [name]
    [mended] = accept(repo, [name], user="ann", reason="the disk died").mended
    gone = ending == ".parquet"
    assert (mended.table, mended.rows, mended.rebuilt) == (table, int(gone), not gone)
    assert drill().restored == "r1"
    assert [release.name for release in standing(repo)] == ["r1"]
    for release in ("r1", "r2"):
        assert verify(repo, release).ok
    releases = rows_of(repo, "releases").select("release").rows()
    decisions = rows_of(repo, "decisions").select("kind", "release").rows()
    lost = {"releases": ("r1",), "decisions": ("publish", "r1")}[table] if gone else None
    assert releases == [row for row in [("r1",), ("r2",)] if row != lost]
    all_of_it = [("publish", "r1"), ("publish", "r2"), ("rollback", "r2")]
    assert decisions == [row for row in all_of_it if row != lost]
    report = scrub(repo, budget=None)
    assert report.ok, report.faults
    assert [loss.fault.name for loss in report.accepted] == [name]
