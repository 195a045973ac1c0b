"""On a server, lakeFS's own collection is told what to keep, and `emlake doctor` says where it could lose a release."""

import json

import pytest
from typer.testing import CliRunner

import lake
from lake.engines.lakefs import address
from lake.errors import AlreadyExists, BadInput
from releases import retention
from releases.app.cli import app, main
from releases.publish import publish
from releases.setup import DAYS, init

pytestmark = pytest.mark.lakefs


@pytest.fixture
def repo(lakefs_location):
    repo = init(lakefs_location, block_zyx=(4, 4, 4))
    yield repo
    repo.close()


def wrong(repo):
    return [(state, detail) for _, state, detail in retention.examine(repo) if state != "ok"]


def test_init_sets_the_rules_and_longer_ones_stay(repo):
    assert repo.retention().days() == DAYS
    repo.retention().keep({"": 30, "other": 5})
    repo.retention().keep(DAYS)
    assert repo.retention().days() == {**DAYS, "": 30, "other": 5}
    assert wrong(repo) == []


def test_rules_that_are_missing_or_too_short_are_reported_and_set_by_init(repo):
    repo._wire.sdk.repositories_api.set_gc_rules(
        repo._wire.name, {"default_retention_days": 1, "branches": [{"branch_id": "main", "retention_days": 7}]}
    )
    found = wrong(repo)
    assert [state for state, _ in found] == ["short", "short", "missing", "missing"]
    assert "main: 7 days, 36500 are needed" in found[1][1]
    repo._wire.sdk.repositories_api.delete_gc_rules(repo._wire.name)
    assert [state for state, _ in wrong(repo)] == ["missing"] * 4
    init(repo.location).close()
    assert wrong(repo) == []
    with pytest.raises(AlreadyExists):
        init(repo.location)


@pytest.mark.slow
def test_a_release_that_no_branch_holds_is_reported(repo, make):
    make("r1")
    held = publish(repo, "r1", user="ann").release.parents[1]
    assert wrong(repo) == []
    repo.delete_branch("cand-r1")
    ((state, detail),) = wrong(repo)
    assert state == "not held"
    assert held in detail
    done = CliRunner().invoke(app, ["doctor", "--repo", repo.location, "--json"])
    told = {(f["what"], f["state"]) for f in json.loads(done.stdout)["findings"]}
    assert {("retention", "ok"), ("release", "not held")} <= told
    repo.create_branch("cand-r1", held)
    assert wrong(repo) == []


def test_gc_says_that_a_server_elsewhere_collects_itself(repo, monkeypatch, capsys):
    monkeypatch.setattr(address, "_LOOPBACK", frozenset())
    with pytest.raises(BadInput, match="lakeFS server"):
        lake.open(repo.location).collect_garbage()
    monkeypatch.setattr("sys.argv", ["emlake", "gc", "--repo", repo.location, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "retention rules" in capsys.readouterr().err


def test_gc_on_the_machine_of_a_server_says_what_cut_off_uploads_left(repo):
    done = CliRunner().invoke(app, ["gc", "--repo", repo.location])
    assert done.exit_code == 0
    firsts = [line.split()[0] for line in done.stdout.splitlines()]
    assert firsts == ["kept:", "committed", "removed:", "cut-off", "freed:"]
    told = CliRunner().invoke(app, ["gc", "--repo", repo.location, "--dry-run", "--json"])
    assert json.loads(told.stdout)["removed"] == {"cut-off uploads": {"count": 0, "size": 0}}
