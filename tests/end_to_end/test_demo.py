"""The whole path, as `emlake demo` goes it, on both engines."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

import lake
from lake.box import Box
from releases.app import demo
from releases.app.demo import VOXEL_NM, Demo, run_demo
from releases.app.report import write_report
from releases.app.screen import Screen
from releases.app.story import FAST, GOOD, next_commands, read_story, tell
from releases.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


def demo_at(folder: Path) -> Demo:
    return Demo(folder, str(folder / "repo"), 0)


@pytest.fixture(scope="module")
def story(demo_folder):
    repo = lake.open(demo_folder / "repo")
    yield read_story(repo, demo_at(demo_folder))
    repo.close()


def check_story(story: dict, sample: Path) -> None:
    """What the demo promises for any seed."""
    good, fast = story["metrics"][GOOD], story["metrics"][FAST]
    vi = {
        name: m["vi_split"] + m["vi_merge"]
        for name, m in (("good", good), ("fast", fast), ("plain", story["baseline"]))
    }
    assert vi["good"] < vi["plain"] / 2
    assert vi["fast"] > vi["good"]
    assert good["synapse_f1"] >= 0.8
    assert damage_iou(story, sample) > 0.5
    assert story["affinity_cpu_s"][FAST] < story["affinity_cpu_s"][GOOD]
    assert story["refused"]
    assert all(r["outcome"] == "waived" and r["waiver"] for r in story["refused"])
    assert any(r["scope"] == "region" for r in story["refused"])
    assert story["main_holds"] == GOOD
    assert [d["kind"] for d in story["decisions"]] == ["publish", "publish", "rollback"]
    statuses = {t["status"]: t["tiles"] for t in story["tiles"]}
    assert sum(n for status, n in statuses.items() if status != "ok") == 3


def damage_iou(story: dict, sample: Path) -> float:
    """Overlap of the regions found with the truth, in the plane: both span all sections."""
    odd = json.loads((sample / "truth.odd.json").read_text())
    found = np.zeros((512, 512), bool)
    truth = np.zeros_like(found)
    for box in story["damage"]["boxes_nm"].values():
        x0, y0, x1, y1 = (round(box[i] / VOXEL_NM[2]) for i in (0, 1, 3, 4))
        found[y0:y1, x0:x1] = True
    truth[odd["start"][1] : odd["stop"][1], odd["start"][2] : odd["stop"][2]] = True
    return float((found & truth).sum() / (found | truth).sum())


def test_the_demo_keeps_its_promises(story, demo_folder):
    assert story["voxels"] >= 16_000_000
    check_story(story, demo_folder / "sample")


def test_a_second_run_computes_nothing_and_tells_the_same_story(story, demo_folder):
    started = time.monotonic()
    again = run_demo(demo_at(demo_folder), Screen(quiet=True))
    assert again["this_run"]["blocks"] == 0
    assert again["this_run"]["releases"] == []
    assert tell(again) == tell(story)
    assert again["digests"] == story["digests"]
    assert time.monotonic() - started < 120  # it takes a tenth of that on an idle machine


def test_newer_code_leaves_published_candidates_as_they_went_out(story, demo_folder, monkeypatch, capfd):
    repo = lake.open(demo_folder / "repo")
    before = repo.branches()
    monkeypatch.setattr(demo, "MODELS", {GOOD: "builtin:affinity-small", FAST: "builtin:affinity-large"})
    again = run_demo(demo_at(demo_folder), Screen())
    assert again["this_run"]["blocks"] == 0
    assert repo.branches() == before
    assert "make a new candidate" in "".join(capfd.readouterr())


def test_run_and_qc_on_a_published_candidate_are_refused(story, demo_folder, emlake):
    repo = lake.open(demo_folder / "repo")
    before = repo.branches()
    for command in (("run", "reconstruct", "--on", "cand-r1"), ("qc", "run", "cand-r1")):
        answer = emlake(*command, "--repo", demo_folder / "repo")
        assert answer.code == 5
        assert "'r1' was published" in answer.err
        assert "new candidate" in answer.err
    assert emlake("run", "reconstruct", "--on", "cand-r1", "--explain", "--repo", demo_folder / "repo").code == 0
    assert repo.branches() == before


def test_both_releases_verify(story, demo_folder):
    repo = lake.open(demo_folder / "repo")
    for name in (GOOD, FAST):
        result = verify(repo, name)
        assert result.ok, result.faults


def test_the_story_and_the_report_hold_the_figures(story, demo_folder, tmp_path):
    repo = lake.open(demo_folder / "repo")
    told = tell(story)
    assert f"{story['metrics'][GOOD]['synapse_f1']:.3f}" in told
    assert all(region in told for region in story["damage"]["regions"])
    page = write_report(repo, story, tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert len(page) < 5_000_000
    assert all(command.startswith("emlake ") for command in next_commands(repo, demo_at(demo_folder)))


def test_the_commands_to_try_next_work(story, demo_folder, emlake, tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    repo = lake.open(demo_folder / "repo")
    for command in next_commands(repo, demo_at(demo_folder)):
        answer = emlake(*shlex.split(command)[1:])
        assert answer.code == 0, (command, answer.err)
        assert answer.out


def test_the_report_of_qc_is_told_as_json_and_its_pages_name_all_that_was_judged(story, demo_folder, emlake, tmp_path):
    answer = emlake("qc", "report", "cand-r1", "--repo", demo_folder / "repo", "--out", tmp_path / "docs", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"branch": "cand-r1", "index": str(tmp_path / "docs" / "index.html")}
    assert answer.err == ""
    pages = "".join(page.read_text() for page in (tmp_path / "docs").rglob("*.html"))
    repo = lake.open(demo_folder / "repo")
    with repo.snapshot("cand-r1") as snapshot:
        suites = snapshot.table("qc_results").collect()["suite"].unique().to_list()
    assert suites
    assert all(suite in pages for suite in suites)


SAID = {"added": "added", "removed": "removed", "rebound": "re-bound"}


def test_the_six_questions_of_the_readme_have_answers(story, demo_folder):
    repo = lake.open(demo_folder / "repo")
    with repo.snapshot(GOOD, ops="ops") as good, repo.snapshot(FAST, ops="ops") as fast:
        # A segment in a corner of the volume: what lies in the other corners did not go into it.
        corner = "SELECT root_id FROM segments WHERE voxels > 1000 ORDER BY max_x + max_y LIMIT 1"
        root = good.sql(corner).rows()[0][0]
        tiles = good.sql("tiles_of_segment", {"root_id": root})
        everything = good.sql("SELECT count(*) FROM archive.tiles WHERE status = 'ok'").rows()[0][0]
        assert 0 < len({row[tiles.columns.index("path")] for row in tiles.rows()}) < everything
        model = story["damage"]["model"]
        assert len(fast.sql("blocks_of_model", {"model_digest": model})) > 0
        hub = good.sql("SELECT pre_root_id FROM connections GROUP BY 1 ORDER BY sum(synapses) DESC LIMIT 1").rows()[0][
            0
        ]
        assert len(good.sql("partners_of_neuron", {"root_id": hub})) > 0
        assert good.sql("orphans_by_region", {"min_voxels": 100}).columns
        changes = {row[0]: row[1] for row in fast.sql("changes_between_releases", attach={"old": good}).rows()}
        told = {what: story["diff"][f"synapses_{what}"] for what in ("added", "removed", "rebound")}
        assert told == {what: changes.get(f"synapses {say}", 0) for what, say in SAID.items()}
        assert changes["roots created"] == story["diff"]["roots_created"]
        carried = fast.sql("releases_with_model", {"model_digest": model}).rows()
        assert [row[0] for row in carried] == [FAST]


def test_a_pinned_reader_reads_voxels_of_the_release_that_was_rolled_back(story, demo_folder):
    repo = lake.open(demo_folder / "repo")
    box = Box((0, 0, 0), (64, 64, 64))
    with repo.snapshot(FAST) as fast, repo.snapshot("main") as main:
        assert not np.array_equal(fast.volume("segmentation").read(box), main.volume("segmentation").read(box)) or (
            fast.commit != main.commit
        )
        assert fast.table("segments").collect().height == story["reader"]["segments"]


@pytest.mark.lakefs
def test_a_server_gives_the_same_digests_and_verdicts_as_a_folder(story, lakefs_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo-on-server")
    location = f"lakefs://{lakefs_server.endpoint.split('://')[-1]}/demo-e2e"
    told = run_demo(Demo(folder, location, 0), Screen(quiet=True))
    assert told["digests"] == story["digests"]
    assert [v["status"] for v in told["verdicts"].values()] == [v["status"] for v in story["verdicts"].values()]
    check_story(told, folder / "sample")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
def test_other_seeds_keep_the_promises_too(seed, tmp_path):
    told = run_demo(Demo(tmp_path, str(tmp_path / "repo"), seed), Screen(quiet=True))
    check_story(told, tmp_path / "sample")
