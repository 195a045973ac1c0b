"""Tables and volumes whose objects are sound and which still cannot be read."""

import json

import pytest

import lake
from lake import tables
from lake.errors import CorruptObject
from lake.scrub import scrub
from lake.testing.rot import flip


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    repo.create_branch("work", "main")
    for number in range(3):
        place = repo.workspace("work", "tables/waivers/")
        tables.append(place, "waivers", [_waiver(number)])
        repo.commit("work", f"append {number}")
    yield repo
    repo.close()


def _waiver(number):
    from datetime import UTC, datetime

    when = datetime(2026, 1, 1, tzinfo=UTC)
    fields = dict.fromkeys(("waiver_id", "release", "gate", "scope", "scope_id", "owner", "reason"), str(number))
    return {**fields, "expires": when, "ts": when}


def faults(repo, kind="table"):
    report = scrub(repo, budget=None)
    assert all(fault.kind == kind for fault in report.faults)
    return report.faults


def keys(repo, ending):
    return [stat.key for stat in repo.list("work", "tables/waivers/") if stat.key.endswith(ending)]


def test_a_whole_table_has_no_fault(repo):
    assert faults(repo) == ()


def test_a_data_file_that_the_log_speaks_of_and_that_is_gone_is_found(repo):
    gone = keys(repo, ".parquet")[0]
    repo.delete("work", [gone])
    head = repo.commit("work", "torn")
    [fault] = faults(repo)
    assert gone.removeprefix("tables/waivers/") in fault.what
    assert (fault.units, fault.tables, fault.refs) == (("tables/waivers/",), ("waivers",), ("work",))
    assert (fault.first, fault.commits) == (head, 1)


def test_a_data_file_of_another_size_is_found(repo):
    key = keys(repo, ".parquet")[1]
    repo.put("work", key, repo.get("work", key) + b"\0")
    repo.commit("work", "grown")
    [fault] = faults(repo)
    assert "the log says" in fault.what


def test_a_gap_in_the_log_is_found(repo):
    repo.delete("work", [keys(repo, "1.json")[0]])
    repo.commit("work", "gap")
    assert any("version 1 is missing" in fault.what for fault in faults(repo))


def test_a_log_line_that_is_no_json_is_found(repo):
    repo.put("work", keys(repo, "2.json")[0], b'{"add": {')
    repo.commit("work", "cut")
    assert any("00002.json cannot be read" in fault.what for fault in faults(repo))


def test_a_table_without_a_log_is_found(repo):
    repo.delete("work", keys(repo, ".json"))
    repo.commit("work", "no log")
    [fault] = faults(repo)
    assert "no log" in fault.what


def test_a_checkpoint_that_cannot_be_read_is_found(repo):
    repo.put("work", "tables/waivers/_delta_log/00000000000000000002.checkpoint.parquet", b"PAR1 and no more")
    repo.commit("work", "checkpoint")
    [fault] = faults(repo)
    assert "checkpoint.parquet cannot be read" in fault.what


def test_a_table_that_two_heads_share_is_one_fault_with_both(repo):
    repo.delete("work", keys(repo, ".parquet")[:1])
    repo.commit("work", "torn")
    repo.create_tag("t1", "work")
    [fault] = faults(repo)
    assert fault.refs == ("t1", "work")


def test_metadata_of_a_volume_must_be_there_and_must_be_json(repo):
    repo.put("work", "volumes/em/info", json.dumps({"type": "image"}).encode())
    repo.put("work", "volumes/em/1_1_1/0-64", b"chunk")
    repo.commit("work", "volume")
    assert faults(repo) == ()
    repo.put("work", "volumes/em/info", b'{"type"')
    repo.put("work", "volumes/bare/0-64", b"chunk")
    repo.commit("work", "torn")
    found = faults(repo, "volume")
    assert sorted(fault.name for fault in found) == ["volumes/bare/", "volumes/em/"]
    assert any("info is not JSON" in fault.what for fault in found)


def test_a_damaged_log_object_names_its_table_even_where_the_budget_does_not_reach_it(repo):
    stat = repo.stat("work", keys(repo, "1.json")[0])
    flip(stat.address, 20)
    with pytest.raises(CorruptObject):
        repo.get("work", stat.key)
    report = scrub(repo, budget=1)
    assert any(fault.kind == "table" and fault.tables == ("waivers",) for fault in report.faults)


@pytest.mark.slow
def test_a_volume_whose_names_cannot_be_read_is_told_as_a_damaged_manifest(repo):
    place = repo.workspace("work", "volumes/v/").path
    for number in range(8000):  # more than one range of names
        (place / f"{number:05}").write_bytes(b"x")
    (place / "info").write_text("{}")
    repo.commit("work", "a volume")
    manifests = sorted(path for path in repo.root.glob("manifests/*/*") if path.stat().st_size > 50_000)
    assert len(manifests) >= 2
    for path in manifests:
        flip(path, 1000, 3)
        again = lake.open(repo.location)  # nothing is known from before
        assert path.parent.name + path.name in {fault.name for fault in scrub(again, budget=1).faults}
        again.close()
        flip(path, 1000, 3)
