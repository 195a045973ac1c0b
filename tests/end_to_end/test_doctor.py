"""`emlake doctor`: machine, folder, gate, in one table."""

import json
import os

import pytest

import lake
from lake.testing.rot import flip


@pytest.fixture
def place(emlake, tmp_path):
    assert emlake("init", tmp_path / "repo").code == 0
    return tmp_path / "repo"


def test_doctor_looks_at_the_machine_the_folder_and_the_gate(emlake, place):
    answer = emlake("doctor", "--repo", place, "--json")
    assert answer.code == 0
    found = {finding["what"]: finding["state"] for finding in json.loads(answer.out)["findings"]}
    assert found["format"] == "ok"
    assert found["refs"] == "twice"
    assert "hard links" in found
    assert found["gate"] == "ok"


def test_doctor_prints_a_table_with_straight_columns(emlake, place):
    answer = emlake("doctor", "--repo", place)
    found = json.loads(emlake("doctor", "--repo", place, "--json").out)["findings"]
    state = max(len(finding["what"]) for finding in found) + 2
    detail = state + max(len(finding["state"]) for finding in found) + 2
    table = [(line[:state].rstrip(), line[state:detail].rstrip()) for line in answer.out.splitlines()]
    assert table == [(finding["what"], finding["state"]) for finding in found]


def test_doctor_ends_with_0_where_all_is_ok_or_advice(emlake, place, monkeypatch, tmp_path):
    answer = emlake("doctor", "--repo", place)
    assert (answer.code, answer.err) == (0, "")
    assert "no scrub has read them back" in answer.out, "advice"
    lake.open(place).session("ops", owner="somebody")
    assert emlake("doctor", "--repo", place).code == 0, "somebody works"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert emlake("doctor").code == 0, "there is no repository to be wrong"


def test_doctor_ends_with_6_and_names_what_is_wrong(emlake, tmp_path):
    repo = lake.create(tmp_path / "bare")
    for branch in ("archive", "ops"):
        repo.create_branch(branch, "main")
    answer = emlake("doctor", "--repo", tmp_path / "bare")
    assert answer.code == 6
    assert "protection" in answer.out
    assert "protection missing, gate missing" in answer.err
    told = emlake("doctor", "--repo", tmp_path / "bare", "--json")
    assert (told.code, json.loads(told.err)["error"]) == (6, "storage")
    assert ("gate", "missing") in [(found["what"], found["state"]) for found in json.loads(told.out)["findings"]]


def test_doctor_ends_with_6_while_stored_bytes_are_damaged(emlake, place):
    path = lake.open(place).stat("main", "_policy/release.toml").address
    os.chmod(path, 0o644)
    flip(path, 10)
    assert emlake("scrub", "--all", "--repo", place).code == 6
    assert emlake("doctor", "--repo", place).code == 6
    flip(path, 10)
    assert emlake("scrub", "--all", "--repo", place).code == 0
    assert emlake("doctor", "--repo", place).code == 0
