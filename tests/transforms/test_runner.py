"""A run: plan, compute, record, audit, land; the same bytes wherever it is computed."""

import json

import polars as pl
import pytest

from lake import tables
from lake.box import Box
from lake.errors import BadInput, ConflictError, StageFailed
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume
from transforms import ledger as book
from transforms.dispatch import Retry
from transforms.executors import ProcessExecutor, SerialExecutor
from transforms.index import reindex
from transforms.recorder import code_version
from transforms.runner import run
from transforms.testing.repos import toy_pipeline, toy_repository

QUICK = Retry(attempts=3, pause_s=0.01)


@pytest.fixture
def repo(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    yield repo
    repo.close()


@pytest.fixture(scope="module")
def processes():
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete run, for tests that only look."""
    repo = toy_repository(tmp_path_factory.mktemp("finished") / "repo")
    report = run(repo, toy_pipeline(), "work")
    yield repo, report
    repo.close()


def ops(repo, query):
    with repo.snapshot("work") as snapshot:
        return snapshot.sql(query).rows()


def test_a_run_lands_as_one_commit_with_its_outputs_and_its_record(finished):
    repo, report = finished
    assert report.state == "complete"
    head = repo.commit_info("work")
    assert report.commit == head.id
    assert len(head.parents) == 1
    assert head.metadata["run_id"] == report.run_id
    assert head.metadata["merkle_root"] == report.merkle_root
    names = [stat.key for stat in repo.list("work", f"_runs/{report.run_id}/")]
    assert [name.rpartition("/")[2] for name in names] == ["blocks.parquet", "inputs.parquet", "run.json"]
    with repo.snapshot("work") as snapshot:
        volume = snapshot.volume("segmentation")
        labels = volume.read(volume.box)
        roots = snapshot.table("agglomeration").collect()["root_id"].unique()
        assert set(labels.ravel().tolist()) == set(roots.to_list())
        assert snapshot.table("meshes").collect()["bytes"].sum() > 0
        assert snapshot.volume("em").read(Box((0, 0, 0), (8, 8, 8)), scale=1).any()


def test_a_run_that_has_nothing_to_do_writes_nothing(finished):
    repo, report = finished
    before = repo.resolve("work")
    again = run(repo, toy_pipeline(), "work")
    assert again.state == "unchanged"
    assert again.commit == report.commit == repo.resolve("work") == before
    assert again.merkle_root == report.merkle_root
    assert again.computed == 0


def test_every_executor_gives_the_same_digests(finished, processes, repo):
    _, serial = finished
    parallel = run(repo, toy_pipeline(), "work", executor=processes)
    assert parallel.merkle_root == serial.merkle_root
    with repo.snapshot("work") as one, finished[0].snapshot("work") as other:
        for name in ("supervoxels", "agglomeration", "meshes"):
            digests = {tables.content_digest(s.location(f"tables/{name}/"), name) for s in (one, other)}
            assert len(digests) == 1, name


def test_rows_say_which_run_and_block_made_them(finished):
    repo, report = finished
    with repo.snapshot("work") as snapshot:
        rows = snapshot.table("supervoxels").select("block", "run_id", "region").unique().collect()
    assert set(rows["run_id"]) == {report.run_id}
    assert set(rows["block"]) == {"cut/0_0_0", "cut/0_0_1", "cut/0_1_0", "cut/0_1_1"}
    assert all(block.endswith(region) for block, region in rows.select("block", "region").iter_rows())


def test_lineage_names_the_blocks_that_overlap_and_no_other(finished, tmp_path):
    repo, _ = finished
    query = "select input_id from ops.block_inputs where block = ? and kind = 'block' order by 1"
    with repo.snapshot("work") as snapshot:
        near = [row[0] for row in snapshot.sql(query, ["cut/0_0_1"]).rows()]
        halo = [row[0] for row in snapshot.sql(query, ["smooth/0_0_1"]).rows()]
    assert near == ["smooth/0_0_1"]
    assert halo == ["paint/0_0_0", "paint/0_0_1", "paint/0_1_0", "paint/0_1_1"]
    wide = toy_repository(tmp_path / "wide")
    run(wide, toy_pipeline("smooth", paint={"shape": [8, 8, 24]}), "work")
    with wide.snapshot("work") as snapshot:
        assert [row[0] for row in snapshot.sql(query, ["smooth/0_0_2"]).rows()] == ["paint/0_0_1", "paint/0_0_2"]


def test_ops_holds_a_row_per_stage_block_and_input(finished):
    repo, report = finished
    rows = ops(repo, "select stage, state, blocks, computed, accepted_voxels, output_commit from ops.runs order by 1")
    assert [(row[0], row[1]) for row in rows] == [(s, "complete") for s in sorted(s.stage for s in report.stages)]
    assert all(row[2] == row[3] for row in rows)
    assert {row[5] for row in rows} == {report.commit}
    assert {row[0]: row[4] for row in rows}["paint"] == 8 * 16 * 16
    blocks = ops(
        repo, "select block, output, min_x, max_x, min_z, max_z from ops.blocks where stage = 'paint' order by 1"
    )
    assert blocks[1] == ("paint/0_0_1", "volumes/em", 64.0, 128.0, 0.0, 128.0)
    assert ops(repo, "select count(*) from ops.blocks where stage = 'cut'") == [(8,)]


def test_only_what_depends_on_a_change_is_computed_again(repo):
    pipeline = toy_pipeline(paint={"shape": [8, 8, 32]})
    first = run(repo, pipeline, "work")
    again = run(repo, toy_pipeline(paint={"shape": [8, 8, 32], "odd_block": "0_0_3"}), "work")
    counts = {stage.stage: (stage.computed, stage.unchanged) for stage in again.stages}
    # Parameters are part of every block's fingerprint; but three of four blocks come out as before.
    assert counts["paint"] == (4, 0)
    assert counts["smooth"] == (2, 2)
    assert counts["cut"] == (2, 2)
    assert again.merkle_root != first.merkle_root
    query = "select block, changed, reused from ops.blocks where run_id = '{}' and stage = 'smooth' order by 1"
    changed = ops(repo, query.format(again.run_id))
    assert [row[1:] for row in changed] == [(None, True), (None, True), ("inputs", False), ("inputs", False)]
    with repo.snapshot("work") as snapshot:
        rows = snapshot.table("supervoxels").collect()
        assert rows["block"].n_unique() == 4
        assert rows["supervoxel_id"].is_unique().all()
        assert rows.filter(pl.col("block") == "cut/0_0_0")["run_id"].unique().to_list() == [first.run_id]


def test_a_record_says_which_parameter_changed(repo):
    run(repo, toy_pipeline("paint"), "work")
    report = run(repo, toy_pipeline("paint", paint={"seed": 7}), "work")
    told = ops(repo, f"select distinct changed from ops.blocks where run_id = '{report.run_id}'")
    assert told == [("params: seed 0 -> 7",)]


def test_what_another_branch_has_computed_is_copied_and_keeps_its_maker(repo):
    first = run(repo, toy_pipeline(), "work")
    repo.create_branch("other", "main")
    second = run(repo, toy_pipeline(), "other")
    assert second.computed == 0
    assert second.merkle_root == first.merkle_root
    assert {stage.copied for stage in second.stages} == {1, 4}
    with repo.snapshot("other") as snapshot:
        assert snapshot.table("supervoxels").collect()["run_id"].unique().to_list() == [first.run_id]
        made = snapshot.sql(f"select distinct made_by, reused from ops.blocks where run_id = '{second.run_id}'").rows()
    assert made == [(first.run_id, True)]
    # The copy explains itself: its run folder holds the inputs too.
    inputs = book.read_inputs(repo.get("other", f"_runs/{second.run_id}/inputs.parquet"))
    assert inputs.height > 0


def test_a_copy_that_is_not_what_was_recorded_is_computed_instead(repo):
    run(repo, toy_pipeline("paint"), "work")
    records = [{**row, "output_digest": "0" * 64} for row in pl.read_parquet(_blocks_file(repo, "work")).to_dicts()]
    run_id = next(iter(book.runs_in(_Objects(repo, "work"))))
    # A record that lies about its output, under the fingerprint that the other branch looks for.
    repo.create_branch("liar", "work")
    sink = pl.DataFrame(records)
    path = repo.location_of("liar", "_runs/").path.parent / "lie.parquet"
    sink.write_parquet(path)
    repo.put("liar", f"_runs/{run_id}/blocks.parquet", path.read_bytes())
    commit = repo.commit("liar", "a lie")
    location = repo.location_of("ops", "tables/runs/")
    rows = tables.read(location).collect().with_columns(output_commit=pl.lit(commit))
    with repo.session("ops") as session:
        tables.overwrite(session.workspace("tables/runs/"), "runs", rows)
        session.commit("point to the lie")
    repo.create_branch("other", "main")
    report = run(repo, toy_pipeline("paint"), "other")
    assert report.computed == 4


class _Objects:
    def __init__(self, repo, ref):
        self.get = lambda key: repo.get(ref, key)
        self.list = lambda prefix="": repo.list(ref, prefix)


def _blocks_file(repo, ref):
    run_id = next(iter(book.runs_in(_Objects(repo, ref))))
    return repo.location_of(ref, f"_runs/{run_id}/").path / "blocks.parquet"


def test_a_kernel_that_always_raises_is_a_dead_letter_and_the_rest_is_kept(repo):
    calls = []
    with pytest.raises(StageFailed, match="paint/0_1_0: ZeroDivisionError: the toy was told to fail") as caught:
        run(
            repo, toy_pipeline(paint={"fail_at": "0_1_0"}), "work", retry=QUICK,
            progress=lambda *told: calls.append(told),
        )  # fmt: skip
    assert caught.value.exit_code == 7
    assert calls[-1][:3] == ("paint", 3, 4)
    head = repo.resolve("work")
    (branch,) = repo.branches("session-")
    (dead,) = [s.key for s in repo.list(branch, "_runs/") if "/dead/" in s.key]
    letter = json.loads(repo.get(branch, dead))
    assert (letter["block"], letter["attempts"]) == ("0_1_0", 3)
    assert "ZeroDivisionError" in letter["trace"]
    failed = ops(repo, "select stage, state, reason, output_commit from ops.runs")
    assert [row[:2] for row in failed] == [("paint", "failed")]
    assert "fail" in failed[0][2]
    assert failed[0][3] is None
    assert repo.resolve("work") == head
    # The cause is corrected: finished blocks are checked, and their parameters say that they are stale.
    report = run(repo, toy_pipeline("paint"), "work")
    assert report.resumed
    assert report.taken_over == 3


def test_an_error_that_passes_is_tried_again(repo, tmp_path):
    flaky = tmp_path / "flaky"
    flaky.touch()
    report = run(repo, toy_pipeline("paint", paint={"flaky_file": str(flaky)}), "work", retry=QUICK)
    assert report.state == "complete"
    assert ops(repo, "select block, attempts from ops.blocks where attempts > 1") == [("paint/0_0_0", 2)]
    assert report.stages[0].wasted_s > 0


def test_a_wrong_request_stops_at_once_and_says_so_itself(repo):
    with pytest.raises(BadInput, match="the toy refuses its input"):
        run(repo, toy_pipeline(paint={"refuse_at": "0_0_0"}), "work", retry=QUICK)
    assert run(repo, toy_pipeline("paint"), "work").state == "complete"


def test_a_block_that_kills_its_worker_is_poison_and_its_neighbours_are_not(repo, processes):
    with pytest.raises(StageFailed, match=r"1 block failed.*paint/0_0_1: WorkerDied.*SIGKILL"):
        run(repo, toy_pipeline("paint", paint={"die_at": "0_0_1"}), "work", executor=processes, retry=QUICK)
    (branch,) = repo.branches("session-")
    done = [s.key for s in repo.list(branch, "_runs/") if "/blocks/" in s.key]
    assert len(done) == 3


def test_a_failed_run_that_is_not_wanted_any_more_is_thrown_away(repo):
    with pytest.raises(StageFailed):
        run(repo, toy_pipeline("paint", paint={"fail_at": "0_1_0"}), "work", retry=QUICK)
    report = run(repo, toy_pipeline("paint"), "work", fresh=True)
    assert not report.resumed
    assert report.taken_over == 0
    assert not repo.branches("session-")


def test_two_runs_on_one_branch_the_second_is_told_who_writes(repo):
    with repo.session("work", owner="the first"), pytest.raises(ConflictError, match="the first"):
        run(repo, toy_pipeline("paint"), "work")


def test_rows_that_could_not_be_written_are_added_by_the_next_run(repo, monkeypatch):
    monkeypatch.setattr("transforms.runner.index_run", lambda *a, **k: False)
    first = run(repo, toy_pipeline("paint"), "work")
    assert not first.indexed
    assert ops(repo, "select count(*) from ops.runs") == [(0,)]
    monkeypatch.undo()
    assert run(repo, toy_pipeline("paint"), "work").state == "unchanged"
    assert ops(repo, "select run_id, output_commit from ops.runs") == [(first.run_id, first.commit)]
    assert reindex(repo) == []


def test_a_repository_without_ops_runs_too(tmp_path):
    repo = toy_repository(tmp_path / "repo")
    repo.delete_branch("ops")
    report = run(repo, toy_pipeline("paint"), "work")
    assert report.state == "complete"
    assert not report.indexed


def test_a_volume_of_another_extent_takes_the_old_ones_place(repo):
    run(repo, toy_pipeline("smooth"), "work")
    run(repo, toy_pipeline("smooth", paint={"shape": [8, 8, 24]}), "work")
    with repo.snapshot("work") as snapshot:
        assert snapshot.volume("smooth").box.shape == (8, 8, 24)
        assert snapshot.volume("smooth").missing_chunks() == []
    keys = {stat.key for stat in repo.list("work", "volumes/smooth/")}
    assert len([key for key in keys if "/c/" in key]) == 3


def test_a_missing_chunk_is_noticed_and_fetched_from_where_it_was(repo):
    run(repo, toy_pipeline("smooth"), "work")
    victim = next(stat.key for stat in repo.list("work", "volumes/smooth/") if "/c/" in stat.key)
    repo.delete("work", [victim])
    repo.commit("work", "an accident")
    report = run(repo, toy_pipeline("smooth"), "work")
    assert {s.stage: (s.computed, s.copied) for s in report.stages} == {"paint": (0, 0), "smooth": (0, 1)}
    repo.stat("work", victim)


def test_a_run_with_gaps_is_not_called_complete(repo, monkeypatch):
    monkeypatch.setattr("transforms.stage_run.coarse_cells", lambda spec, boxes: [])
    with pytest.raises(StageFailed, match="not complete: 1 gaps, first: paint: volumes/em scale 1 lacks chunk"):
        run(repo, toy_pipeline("paint"), "work")
    monkeypatch.undo()
    head = repo.resolve("work")
    assert not list(repo.list(head, "_runs/"))
    report = run(repo, toy_pipeline("paint"), "work")
    assert (report.state, report.taken_over) == ("complete", 4)


def test_voxels_that_no_run_made_are_an_input_by_their_digest(repo):
    spec = VolumeSpec("em", "image", "uint8", (8, 8, 16), (16.0, 8.0, 8.0), chunk_zyx=(8, 8, 8))
    with repo.session("work") as session:
        volume = create_volume(session.workspace("volumes/em/"), spec)
        volume.write(volume.box, pl.Series(range(1024)).to_numpy().astype("uint8").reshape(8, 8, 16))
        session.commit("an imported volume")
    pipeline = toy_pipeline("smooth")
    pipeline = type(pipeline)("later", pipeline.steps[1:], stages=pipeline.stages)
    report = run(repo, pipeline, "work")
    assert report.computed == 2
    kinds = ops(repo, "select kind, input_id from ops.block_inputs where block = 'smooth/0_0_0' order by 2")
    assert kinds == [("source", "volumes/em/0_0_0"), ("source", "volumes/em/0_0_1")]
    assert run(repo, pipeline, "work").state == "unchanged"


def test_a_pipeline_can_begin_where_another_one_ended(repo):
    first = run(repo, toy_pipeline("paint"), "work")
    pipeline = toy_pipeline("smooth")
    later = type(pipeline)("later", pipeline.steps[1:], stages=pipeline.stages)
    run(repo, later, "work")
    kinds = ops(repo, "select distinct kind, input_run_id from ops.block_inputs where block like 'smooth/%'")
    assert kinds == [("block", first.run_id)]


def test_progress_is_told_after_every_block(repo):
    calls = []
    run(repo, toy_pipeline("smooth"), "work", executor=SerialExecutor(), progress=lambda *told: calls.append(told))
    assert calls == [
        *(("paint", n, 4, n * 512) for n in range(5)),
        *(("smooth", n, 4, n * 512) for n in range(5)),
    ]


def test_the_code_version_is_a_commit_or_a_release():
    assert len(code_version()) in (40, 64) or code_version()[0].isdigit()
