"""`emlake doctor`: machine, folder, gate, in one table."""

import json

import pytest


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
