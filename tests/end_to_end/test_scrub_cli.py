"""`emlake scrub` as its user meets it: output, exit codes, the record."""

import json
import shutil
from pathlib import Path

import pytest

import lake
from lake.testing.rot import flip


@pytest.fixture
def folder(tmp_path, emlake, monkeypatch):
    folder = tmp_path / "repo"
    assert emlake("init", folder).code == 0
    monkeypatch.setenv("EMLAKE_REPO", str(folder))
    return folder


def damage(folder):
    repo = lake.open(folder)
    path = repo.stat("main", "_policy/release.toml").address
    repo.close()
    flip(path, 10)
    return path


def test_a_sound_repository_is_exit_code_0_and_what_was_checked_can_be_asked(folder, emlake):
    answer = emlake("scrub", "--all", "--json")
    assert answer.code == 0
    said = json.loads(answer.out)
    assert said["ok"]
    assert said["recorded"]
    assert said["checked"]["object"]["items"] >= 3
    rows = json.loads(emlake("sql", "SELECT share, damaged FROM v_integrity WHERE days = 7", "--json").out)
    assert rows["rows"] in ([[1.0, 0]], [{"share": 1.0, "damaged": 0}])


def test_damage_is_exit_code_6_with_the_object_and_what_to_do_on_stdout(folder, emlake):
    path = damage(folder)
    answer = emlake("scrub", "--all")
    assert answer.code == 6
    assert "DAMAGED" in answer.out
    assert path in answer.out
    assert "_policy/release.toml" in answer.out
    assert "restore" in answer.out
    assert "error[corrupt-object]" in answer.err
    said = json.loads(emlake("scrub", "--budget", "1kB", "--json").out)
    assert [fault["keys"] for fault in said["faults"] if fault["kind"] == "object"] == [["_policy/release.toml"]]
    assert said["faults"][0]["first_commit"]
    assert "main" in said["faults"][0]["refs"]


def test_doctor_tells_what_scrubs_found(folder, emlake):
    def told() -> tuple[str, str]:
        findings = json.loads(emlake("doctor", "--json").out)["findings"]
        return next((f["state"], f["detail"]) for f in findings if f["what"] == "stored bytes")

    assert told()[0] == "never"
    emlake("scrub", "--all")
    assert told()[0] == "ok"
    path = Path(damage(folder))
    emlake("scrub", "--all")
    state, detail = told()
    assert state == "damaged"
    assert "emlake scrub" in detail
    flip(path, 10)
    emlake("scrub", "--all")
    assert told()[0] == "ok"


@pytest.mark.parametrize("budget", ["lots", "10 parsecs", "-5", "0"])
def test_a_budget_that_is_none_is_bad_input(folder, emlake, budget):
    answer = emlake("scrub", f"--budget={budget}")
    assert answer.code == 2
    assert budget in answer.err


def test_damage_is_healed_from_a_copy_or_told_why_not(folder, emlake, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = damage(folder)
    answer = emlake("scrub", "--all", "--heal-from", tmp_path / "copy")
    assert answer.code == 0
    assert f"healed       object {Path(path).parent.name}{Path(path).name}" in answer.out
    assert emlake("scrub", "--all").code == 0
    damage(folder)
    damage(tmp_path / "copy")
    answer = emlake("scrub", "--all", "--heal-from", tmp_path / "copy")
    assert answer.code == 6
    assert "not healed" in answer.out
    said = json.loads(emlake("scrub", "--heal-from", tmp_path / "copy", "--json").out)
    assert (said["ok"], said["healed"], said["healed_from"]) == (False, [], str(tmp_path / "copy"))
    assert "damaged or missing too" in said["faults"][0]["why_not_healed"]
    assert emlake("scrub", "--heal-from", folder).code == 2
    assert emlake("scrub", "--heal-from", tmp_path / "nowhere").code == 4
