"""The life of a release, on the embedded engine, with real tables and chosen QC values."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import lake
from lake.admission import refusal
from lake.box import Box
from lake.errors import (
    AlreadyExists,
    BadInput,
    ConflictError,
    GateRefused,
    InvalidName,
    NotFound,
    ProtectedBranch,
)
from releases.candidates import candidate, refresh
from releases.diff import release_diff
from releases.gate import judge
from releases.history import current, history, standing
from releases.publish import plan_rollback, publish, rollback
from releases.verify import verify
from releases.waivers import waive


def test_the_first_release_has_no_baseline_and_is_judged_by_absolute_limits(repo, make):
    make("r1")
    verdict = judge(repo, "r1")
    assert verdict.status == "pass"
    assert verdict.baseline is None
    assert all(result.baseline is None for result in verdict.results)
    done = publish(repo, "r1", user="ann")
    assert done.made
    assert repo.tags()["r1"] == repo.resolve("main") == done.release.merge
    assert current(repo).name == "r1"


def test_a_first_release_beyond_the_absolute_limit_is_refused(repo, make):
    make("r1", vi_split=2.5)
    with pytest.raises(GateRefused, match=r"vi_split is 2.5 bits \(no baseline, limit 2\)"):
        publish(repo, "r1", user="ann")
    assert current(repo) is None


def test_main_holds_exactly_the_judged_tree_and_the_release_files(repo, make):
    q = make("r1")
    publish(repo, "r1", user="ann")
    late = [change.key for change in repo.diff(q, "main")]
    assert late
    assert all(key.startswith(("_qc/", "_releases/r1/")) for key in late)
    assert json.loads(repo.get("main", f"_qc/{q}.json"))["status"] == "pass"


def test_a_regression_in_one_region_is_refused_with_metric_region_and_both_values(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    before = repo.resolve("main")
    make("r2", merge=True, vi_split__0_0_1=1.9)
    with pytest.raises(GateRefused, match=r"vi_split_region: vi_split in region 0_0_1 is 1.9 bits \(baseline 0.3"):
        publish(repo, "r2", user="ann")
    assert repo.resolve("main") == before
    assert "r2" not in repo.tags()


def test_a_metric_that_could_not_be_computed_blocks(repo, make):
    make("r1", synapse_f1=None)
    verdict = judge(repo, "r1")
    assert verdict.status == "unknown"
    with pytest.raises(GateRefused, match="synapse_f1 is unknown: it could not be computed"):
        publish(repo, "r1", user="ann")


def test_data_changed_after_qc_is_unknown(repo, make):
    make("r1")
    with repo.session("cand-r1", owner="late") as session:
        session.put("volumes/em/info", b"changed")
        session.commit("late change")
    assert judge(repo, "r1").status == "unknown"
    with pytest.raises(GateRefused, match="has no QC"):
        publish(repo, "r1", user="ann")


def test_a_waiver_lets_a_failing_gate_pass_until_it_expires(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True, vi_split__0_0_1=1.9)
    waive(repo, "r2", "vi_split_region", owner="bob", reason="known, wanted for the drill", days=3)
    assert judge(repo, "r2").status == "waived"
    assert judge(repo, "r2", now=datetime.now(UTC) + timedelta(days=4)).status == "fail"
    assert publish(repo, "r2", user="ann").verdict == "waived"
    manifest = json.loads(repo.get("main", "_releases/r2/manifest.json"))
    assert any("0_0_1" in issue for issue in manifest["known_issues"])
    assert "bob: known, wanted for the drill" in repo.get("main", "_releases/r2/notes.md").decode()


def test_a_waiver_for_another_region_does_not_help(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True, vi_split__0_0_1=1.9)
    waive(repo, "r2", "vi_split_region", owner="bob", reason="a reason of some length", scope_id="0_0_0")
    assert judge(repo, "r2").status == "fail"


@pytest.mark.parametrize(
    ("gate", "changes", "message"),
    [
        ("vi_splt", {}, "no gate 'vi_splt'"),
        ("graph_integrity", {}, "cannot be waived"),
        ("vi_split", {"owner": " "}, "owner"),
        ("vi_split", {"reason": "short"}, "short"),
        ("vi_split", {"days": 0}, "0 days"),
    ],
)
def test_a_bad_waiver_is_refused_and_not_recorded(repo, gate, changes, message):
    candidate(repo, "r1")
    before = repo.resolve("ops")
    with pytest.raises(BadInput, match=message):
        waive(repo, "r1", gate, **{"owner": "bob", "reason": "a reason of some length", **changes})
    assert repo.resolve("ops") == before


def test_rollback_gives_main_the_old_tree_and_readers_keep_the_bad_release(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    bad = publish(repo, "r2", user="ann").release
    reader = repo.snapshot("r2")
    done = rollback(repo, "r2", user="ann", reason="splits in one region")
    assert (done.release, done.restored) == ("r2", "r1")
    assert list(repo.diff("r1", "main")) == []
    assert reader.volume("em").read(Box((0, 0, 0), (1, 1, 1))) == sum(b"r2") % 256
    assert reader.table("segments").collect().height == 1
    assert repo.tags()["r2"] == bad.merge
    rows = repo.snapshot("main").sql("SELECT kind, release, target FROM ops.decisions ORDER BY ts").rows()
    assert rows[-1] == ("rollback", "r2", "r1")


def test_rolling_back_the_only_release_leaves_main_without_one(repo, make):
    before = repo.resolve("main")
    make("r1")
    publish(repo, "r1", user="ann")
    assert rollback(repo, user="ann", reason="wrong tissue").restored is None
    assert list(repo.diff(before, "main")) == []
    assert standing(repo) == []


def test_an_older_release_lists_the_newer_ones_to_undo_first(repo, make):
    for name in ("r1", "r2", "r3"):
        make(name, merge=name == "r2")
        publish(repo, name, user="ann")
    before = repo.resolve("main")
    with pytest.raises(ConflictError, match="r3, r2 would go with it"):
        rollback(repo, "r1", user="ann", reason="bad")
    assert repo.resolve("main") == before
    assert plan_rollback(repo)[0].name == "r3"


def test_rolling_back_twice_does_nothing_more(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    first = rollback(repo, "r1", user="ann", reason="bad")
    again = rollback(repo, "r1", user="ann", reason="bad")
    assert (again.made, again.commit) == (False, first.commit)


def test_a_rolled_back_release_is_made_again_whole_under_a_new_name(repo, make, judge_with):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    publish(repo, "r2", user="ann")
    rollback(repo, "r2", user="ann", reason="too early")
    candidate(repo, "r3", again="r2")
    assert repo.snapshot("cand-r3").table("segments").collect().height == 1
    judge_with("r3")
    publish(repo, "r3", user="ann")
    changed = {change.key.split("/")[0] for change in repo.diff("r2", "main")}
    assert changed <= {"_qc", "_releases", "tables"}
    assert list(repo.diff("r2", "main", prefix="tables/segments/")) == []
    assert [r.name for r in standing(repo)] == ["r1", "r3"]


def test_a_rolled_back_candidate_cannot_be_published_again_by_its_old_branch(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    rollback(repo, "r1", user="ann", reason="bad")
    assert publish(repo, "r1", user="ann").made is False
    assert standing(repo) == []


def test_again_is_for_rolled_back_releases_only(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    with pytest.raises(BadInput, match="was not rolled back"):
        candidate(repo, "r2", again="r1")
    assert "cand-r2" not in repo.branches()


def test_of_two_candidates_side_by_side_the_second_is_refreshed_or_refused(repo, side_by_side, judge_with):
    with pytest.raises(ConflictError, match="main holds what cand-b lacks") as caught:
        publish(repo, "b", user="ann")
    assert "emlake release refresh b" in caught.value.fix
    refresh(repo, "b")
    assert judge(repo, "b").status == "unknown"
    judge_with("b")
    assert publish(repo, "b", user="ann").made
    assert [r.name for r in standing(repo)] == ["a", "b"]


def test_refresh_names_the_units_that_both_sides_changed(repo, make):
    make("a")
    make("b", merge=True)
    publish(repo, "a", user="ann")
    before = repo.resolve("cand-b")
    with pytest.raises(ConflictError) as caught:
        refresh(repo, "b")
    assert "tables/segments/" in caught.value.units
    assert repo.resolve("cand-b") == before


def test_a_published_candidate_is_never_refreshed(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    with pytest.raises(ConflictError, match="was published"):
        refresh(repo, "r1")


@pytest.mark.parametrize("name", ["main", "cand-x", "a b", "", "-x", "lock.a", "session-1"])
def test_a_name_that_cannot_name_a_release_is_refused(repo, name):
    with pytest.raises(InvalidName):
        candidate(repo, name)


def test_a_release_name_is_used_once_ever(repo, make):
    make("r1")
    with pytest.raises(AlreadyExists):
        candidate(repo, "r1")
    publish(repo, "r1", user="ann")
    rollback(repo, "r1", user="ann", reason="bad")
    with pytest.raises(AlreadyExists):
        candidate(repo, "r1")


def test_nobody_writes_to_main_or_a_candidate_directly(repo, make):
    make("r1")
    for branch in ("main", "cand-r1"):
        with pytest.raises(ProtectedBranch):
            repo.put(branch, "x", b"")


def test_an_unknown_candidate_gets_the_nearest_name(repo, make):
    make("april")
    with pytest.raises(NotFound) as caught:
        judge(repo, "aprl")
    assert "cand-april" in caught.value.fix


def test_a_candidate_that_changes_gate_and_data_is_refused_by_the_client(repo, make, judge_with):
    candidate(repo, "r1")
    with repo.session("cand-r1", owner="x") as session:
        session.put("_policy/release.toml", repo.get("main", "_policy/release.toml") + b"\n# looser\n")
        session.put("params/align/default/1.json", b"{}")
        session.commit("both")
    judge_with("r1")
    with pytest.raises(GateRefused, match=r"together with params/align/default/1\.json"):
        publish(repo, "r1", user="ann")
    assert current(repo) is None


def test_a_candidate_that_changes_the_policy_alone_is_judged_by_the_old_one(repo, judge_with):
    candidate(repo, "p2")
    text = repo.get("main", "_policy/release.toml").replace(b"limit = 4.0", b"limit = 3.0")
    with repo.session("cand-p2", owner="x") as session:
        session.put("_policy/release.toml", text)
        session.commit("a stricter stitch residual")
    judge_with("p2", stitch_residual_p95=3.5)
    assert publish(repo, "p2", user="ann").made
    assert b"limit = 3.0" in repo.get("main", "_policy/release.toml")


def test_the_client_gate_refuses_a_moved_destination_and_a_forged_verdict(repo, make):
    q = make("r1")
    head = repo.resolve("main")
    good = {"release": "r1", "qc": q, "expect_dest": head}
    assert "no QC verdict" in refusal(repo, "cand-r1", good)
    assert "main has moved" in refusal(repo, "cand-r1", {**good, "expect_dest": "0" * 64})
    with repo.session("cand-r1", owner="forger") as session:
        verdict = {"status": "pass", "commit": q, "dest": head}
        session.put(f"_qc/{q}.json", json.dumps(verdict).encode())
        session.put("volumes/em/info", b"other bytes than were judged")
        session.commit("forged", {"judged": q, "dest": head})
    assert "changed after QC: volumes/em/info" in refusal(repo, "cand-r1", good)


def test_verify_accepts_a_whole_release_and_finds_one_flipped_byte(repo, make):
    make("r1")
    done = publish(repo, "r1", user="ann").release
    assert verify(repo, "r1").ok
    chunk = next(stat for stat in repo.list(done.merge, "volumes/em/") if not stat.key.endswith("info"))
    stored = next(
        p
        for p in Path(repo.location, "objects").rglob("*")
        if p.name.endswith(chunk.checksum[2:]) or p.name == chunk.checksum
    )
    data = bytearray(stored.read_bytes())
    data[17] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(bytes(data))
    result = verify(lake.open(repo.location), "r1")
    assert not result.ok
    assert [fault.count(chunk.key) for fault in result.faults if chunk.key in fault] == [1]


def test_a_diff_counts_roots_by_their_voxels(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    diff = release_diff(repo, "r1", "cand-r2")
    assert (diff.roots_created, diff.roots_retired, diff.roots_kept) == (1, 2, 0)
    assert diff.tables["supervoxels"] == {"old": 4, "new": 4, "added": 0, "removed": 0}
    assert {r.region: r.rebound_supervoxels for r in diff.regions} == {"0_0_0": 2, "0_0_1": 2}


def test_publishing_hashes_only_what_is_new(repo, make, monkeypatch):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", data=False)
    hashed = []
    import releases.objects as objects

    real = objects.hash_objects
    monkeypatch.setattr(
        objects, "hash_objects", lambda r, c, stats: hashed.extend(s.key for s in stats) or real(r, c, stats)
    )
    publish(repo, "r2", user="ann")
    assert hashed
    assert not any(key.startswith("volumes/") for key in hashed)


SLOW = pytest.mark.slow
STEPS = (pytest.param("judged", marks=SLOW), "files-committed", "merged", pytest.param("tagged", marks=SLOW))


@pytest.mark.parametrize("step", STEPS)
def test_publish_killed_after_any_step_and_run_again_gives_one_whole_release(repo, make, step):
    make("r1")
    before = repo.resolve("main")
    code = "import sys, lake; from releases.publish import publish; publish(lake.open(sys.argv[1]), 'r1', user='ann')"
    killed = subprocess.run(
        [sys.executable, "-c", code, repo.location],
        env={**os.environ, "EMLAKE_KILL_AT": f"publish.{step}"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    again = lake.open(repo.location)
    assert (again.resolve("main") == before) == (step in {"judged", "files-committed"})
    publish(again, "r1", user="ann")
    assert [r.name for r in history(again)] == ["r1"]
    assert again.tags()["r1"] == again.resolve("main")
    assert again.snapshot("main").sql("SELECT count(*) FROM ops.releases").rows() == [(1,)]
    assert verify(again, "r1").ok


def test_rollback_killed_after_the_revert_is_recorded_when_run_again(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    code = (
        "import sys, lake; from releases.publish import rollback; "
        "rollback(lake.open(sys.argv[1]), user='a', reason='bad')"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, repo.location],
        env={**os.environ, "EMLAKE_KILL_AT": "rollback.reverted"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    again = lake.open(repo.location)
    assert rollback(again, "r1", user="a", reason="bad").made is False
    kinds = again.snapshot("main").sql("SELECT kind FROM ops.decisions ORDER BY ts").rows()
    assert kinds == [("publish",), ("rollback",)]
