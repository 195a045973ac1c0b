"""`emlake scrub` as its user meets it: output, exit codes, the record."""

import json
import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

import lake
from lake.errors import CorruptObject
from lake.ops import append_rows
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


def test_a_loss_that_is_accepted_is_exit_code_0_and_new_damage_is_6(folder, emlake):
    path = Path(damage(folder))
    name = path.parent.name + path.name
    shown = emlake("scrub", "--all")
    assert f"object     {name}" in shown.out
    assert "--accept-loss" in shown.out
    answer = emlake("scrub", "--accept-loss", name[:12], "--reason", "the disk died", "--user", "ann", "--json")
    assert answer.code == 0
    said = json.loads(answer.out)
    assert (said["ok"], said["faults"]) == (True, [])
    assert (said["acceptance"]["objects"], said["acceptance"]["tables"]) == ([name], [])
    [loss] = said["accepted"]
    assert (loss["object"], loss["accepted_by"], loss["reason"]) == (name, "ann", "the disk died")
    assert loss["keys"] == ["_policy/release.toml"]
    shown = emlake("scrub")
    assert shown.code == 0
    assert "DAMAGED" not in shown.out
    assert "LOST         object" in shown.out
    assert "by ann: the disk died" in shown.out
    assert "these heads stay as they are" in shown.out
    found = {f["what"]: f for f in json.loads(emlake("doctor", "--json").out)["findings"]}["stored bytes"]
    assert found["state"] == "ok"
    assert "1 object accepted as lost" in found["detail"]
    with closing(lake.open(folder)) as repo:
        other = next(stat for stat in repo.list("main") if stat.key.startswith("_lakefs_actions/"))
    flip(other.address, 5)
    shown = emlake("scrub", "--all")
    assert shown.code == 6
    assert shown.out.count("DAMAGED") == shown.out.count("LOST") == 1
    assert "1 thing is damaged" in shown.err


def test_a_table_that_has_lost_rows_is_told_and_takes_rows_again(folder, emlake):
    def add(day):
        with closing(lake.open(folder)) as repo:
            moment = datetime(2026, 1, day, tzinfo=UTC)
            words = dict.fromkeys(("waiver_id", "release", "gate", "scope", "scope_id", "owner", "reason"), "x")
            append_rows(repo, "ops", {"waivers": [{**words, "expires": moment, "ts": moment}]}, message="waiver")
            return [Path(stat.address) for stat in repo.list("ops", "tables/waivers/") if stat.key.endswith("parquet")]

    [path] = add(1)
    path.unlink()
    with pytest.raises(CorruptObject) as raised:
        add(2)
    assert "--accept-loss" in raised.value.fix
    shown = emlake("scrub", "--accept-loss", path.parent.name + path.name, "--reason", "the disk died")
    assert shown.code == 0
    assert "mended       table waivers on ops: 1 row gone from it; older commits are as they were" in shown.out
    assert len(add(3)) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--accept-loss", "SOUND", "--reason", "x"), 2, "is sound"),
        (("--accept-loss", "SOUND"), 2, "give both"),
        (("--accept-loss", "SOUND", "--reason", " "), 2, "give both"),
        (("--reason", "x"), 2, "give both"),
        (("--accept-loss", "SOUND", "--reason", "x", "--user", ""), 2, "who accepts"),
        (("--accept-loss", "SOUND", "--reason", "x", "--heal-from", "."), 2, "heal first"),
        (("--accept-loss", "main", "--reason", "x"), 2, "structure"),
        (("--accept-loss", "f" * 40, "--reason", "x"), 4, "nothing stored is called"),
    ],
)
def test_a_loss_that_is_none_is_refused(folder, emlake, arguments, code, told):
    with closing(lake.open(folder)) as repo:
        sound, before = repo.stat("main", "_policy/release.toml").checksum, repo.resolve("ops")
    answer = emlake("scrub", *(sound if argument == "SOUND" else argument for argument in arguments))
    assert (answer.code, answer.out) == (code, "")
    assert told in answer.err
    with closing(lake.open(folder)) as repo:
        assert repo.resolve("ops") == before


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
