"""Completeness of what real runs leave: counted from the objects, superseded runs left out."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lake.errors import CorruptObject, NotFound
from lake.repository import Repository
from qc.completeness import missing_blocks
from transforms.ingest_volume import ImportPlan, ingest_array
from transforms.runner import run
from transforms.testing.repos import toy_pipeline, toy_repository


def missing(repo: Repository, ref: str) -> int:
    with repo.snapshot(ref) as snapshot:
        return missing_blocks(snapshot)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Two runs: the second made one block of the first again, and all that hangs on it."""
    repo = toy_repository(tmp_path_factory.mktemp("toys") / "repo")
    run(repo, toy_pipeline("label"), "work", executor="serial")
    repo.create_branch("first", "work")
    run(repo, toy_pipeline("label", paint={"odd_block": "0_1_1"}), "work", executor="serial")
    yield repo
    repo.close()


@pytest.fixture
def without(toys: Repository) -> Callable[..., str]:
    """Delete the keys that a test chooses on a branch off `work`."""
    branches = iter(f"damaged-{n}" for n in range(10_000) if f"damaged-{n}" not in toys.branches())

    def build(*chosen: str, text: dict[str, bytes] | None = None) -> str:
        name = next(branches)
        toys.create_branch(name, "work")
        with toys.session(name, owner="fault") as session:
            if chosen:
                session.delete(list(chosen))
            for key, data in (text or {}).items():
                session.put(key, data)
            session.commit("a fault")
        return name

    return build


def keys(repo: Repository, prefix: str, ref: str = "work") -> list[str]:
    return [stat.key for stat in repo.list(ref, prefix)]


def newest_run(repo: Repository) -> str:
    runs = {key.split("/")[1]: json.loads(repo.get("work", key)) for key in keys(repo, "_runs/") if "run.json" in key}
    return max(runs, key=lambda run_id: runs[run_id]["started"])


def test_an_ingest_has_no_blocks_that_could_be_missing(toys: Repository) -> None:
    toys.create_branch("ingested", "work")
    plan = ImportPlan(voxel_nm=(1, 1, 1), chunk=(8, 8, 8))
    assert ingest_array(toys, np.ones((8, 8, 8), np.uint8), "other", "ingested", source="here", plan=plan).commit
    assert missing(toys, "ingested") == 0


def test_nothing_is_missing_after_a_run_nor_after_the_one_that_supersedes_it(toys: Repository) -> None:
    assert missing(toys, "first") == 0
    assert missing(toys, "work") == 0


def test_a_chunk_at_any_scale_counts(toys: Repository, without) -> None:
    chunks = [key for key in keys(toys, "volumes/em/") if key.split("/")[-1][0].isdigit()]
    scales = {key.split("/")[2] for key in chunks}
    assert len(scales) == 2
    for scale in scales:
        assert missing(toys, without(next(key for key in chunks if key.split("/")[2] == scale))) == 1


def test_a_lost_object_counts_for_the_block_that_left_it(toys: Repository, without) -> None:
    assert missing(toys, without(keys(toys, "meshes/segmentation/")[0])) == 1


def test_a_table_that_is_gone_counts_for_each_block_that_wrote_it(toys: Repository, without) -> None:
    assert missing(toys, without(*keys(toys, "tables/supervoxels/"))) == 4


def test_files_that_a_later_run_replaced_may_go(toys: Repository, without) -> None:
    new = set(keys(toys, "tables/agglomeration/")) - set(keys(toys, "tables/agglomeration/", "first"))
    old = [key for key in keys(toys, "tables/agglomeration/", "first") if key.endswith(".parquet")]
    part = [key for key in new if key.endswith(".parquet")]
    assert len(part) == 1
    assert missing(toys, without(*(key for key in old if "_delta_log" not in key))) == 0
    assert missing(toys, without(*part)) == 1


def test_a_volume_that_is_gone_counts_for_each_block_that_wrote_it(toys: Repository, without) -> None:
    assert missing(toys, without(*keys(toys, "volumes/smooth/"))) == 4


def test_a_planned_block_without_a_record_counts(toys: Repository, without) -> None:
    key = f"_runs/{newest_run(toys)}/run.json"
    told = json.loads(toys.get("work", key))
    told["stages"][0]["blocks"] += 3
    assert missing(toys, without(text={key: json.dumps(told).encode()})) == 3


@pytest.mark.parametrize("name", ["run.json", "blocks.parquet"])
@pytest.mark.parametrize("data", [None, b"{}"])
def test_a_run_folder_that_cannot_be_read_is_an_error_not_a_zero(toys, without, name: str, data: bytes | None) -> None:
    key = f"_runs/{newest_run(toys)}/{name}"
    branch = without(key) if data is None else without(text={key: data})
    with pytest.raises(CorruptObject, match=name):
        missing(toys, branch)


def test_a_tree_without_runs_and_volumes_has_nothing_to_be_complete(empty: Repository) -> None:
    with pytest.raises(NotFound, match="neither a run nor a volume"):
        missing(empty, "cand-r1")
