"""An ingest or a run whose server is lost says so at once, and the same command goes on when it is back."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

import lake
from lake import tables
from lake.testing.crash import check_whole
from lake.testing.lost import lose
from transforms.ingest import ImportPlan, ingest_array, ingest_tiles
from transforms.runner import run
from transforms.synthetic.acquisition import acquire
from transforms.testing.repos import toy_pipeline, toy_repository

pytestmark = [pytest.mark.lakefs, pytest.mark.slow, pytest.mark.xdist_group("lakefs-crash")]
POINTS = [2, pytest.param(40, marks=pytest.mark.soak)]


@pytest.fixture
def opened(lakefs_mortal):
    """Give a function that opens a repository on the server by its name."""
    made = []

    def open_named(name):
        made.append(lake.open(lakefs_mortal.state.location(name)))
        return made[-1]

    yield open_named
    for repo in made:
        repo.close()


@pytest.mark.parametrize("points", POINTS)
def test_an_ingest_of_tiles(points, lakefs_mortal, opened, tmp_path):
    noise = np.random.default_rng(0).normal(size=(2, 100, 110)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (1, 2, 2))
    acquire(np.clip(128 + 40 * smooth / smooth.std(), 10, 245).astype(np.uint8), tmp_path / "acq", 2)

    def fresh(number):
        repo = lake.create(lakefs_mortal.state.location(f"tiles-{number}"))
        repo.create_branch("archive", "main")
        repo.close()
        return f"tiles-{number}"

    def outcome(name):
        repo = opened(name)
        check_whole(repo)
        rows = tables.read(repo.location_of("archive@", "tables/tiles/")).collect().drop("ingested", "run_id")
        raw = [(stat.key, stat.checksum) for stat in repo.list("archive@", "raw/")]
        assert len(raw) == len(rows)
        return rows.sort("path").to_dicts(), raw, len(list(repo.log("archive")))

    lose(lakefs_mortal, fresh, lambda name: ingest_tiles(opened(name), Path(tmp_path / "acq")), outcome, points)


@pytest.mark.parametrize("points", [pytest.param(15, marks=pytest.mark.soak)])
def test_an_ingest_of_a_volume(points, lakefs_mortal, opened):
    grey = np.random.default_rng(1).integers(0, 255, (16, 32, 32), np.uint8)
    toy_repository(lakefs_mortal.state.location("volumes")).close()

    def fresh(number):
        opened("volumes").create_branch(f"b{number}", "main")
        return f"b{number}"

    def act(branch):
        plan = ImportPlan(voxel_nm=(16.0, 8.0, 8.0), chunk=(8, 16, 16))
        return ingest_array(opened("volumes"), grey, "em", branch, source="a test", plan=plan)

    def outcome(branch):
        repo = opened("volumes")
        check_whole(repo)
        with repo.snapshot(branch) as snapshot:
            volume = snapshot.volume("em")
            return volume.read(volume.box).tobytes(), len(list(repo.log(branch)))

    lose(lakefs_mortal, fresh, act, outcome, points)


@pytest.mark.parametrize("stop", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("executor", ["serial", pytest.param("processes", marks=pytest.mark.soak)])
@pytest.mark.parametrize("points", POINTS)
def test_a_run(points, executor, stop, lakefs_mortal, opened):
    toy_repository(lakefs_mortal.state.location("runs")).close()
    pipeline = toy_pipeline("label", paint={"shape": [8, 8, 16]})

    def fresh(number):
        opened("runs").create_branch(f"b{number}", "main")
        return f"b{number}"

    def act(branch):
        return run(opened("runs"), pipeline, branch, executor=executor)

    def outcome(branch):
        repo = opened("runs")
        check_whole(repo)
        report = run(repo, pipeline, branch)  # which also adds the rows that a landed run could not
        assert report.state == "unchanged"
        rows = tables.read(repo.location_of("ops@", "tables/runs/")).filter(pl.col("branch") == branch).collect()
        return report.merkle_root, sorted(rows["stage"]), set(rows["state"]), len(list(repo.log(branch)))

    lose(lakefs_mortal, fresh, act, outcome, points, stop=stop)
