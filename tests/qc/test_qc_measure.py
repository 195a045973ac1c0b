"""Measuring a small lake: every figure is known by heart, every fault shows, nothing unknown reads as fine."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lake.location import Location
from lake.repository import Repository
from lake.tables import overwrite
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume
from qc.measure import labels_at, measure
from qc.metrics import GLOBAL_METRICS, Metric

Found = dict[tuple[str, str, str], Metric]


def measured(repo: Repository, ref: str) -> Found:
    with repo.snapshot(ref) as snapshot:
        found = measure(snapshot)
    keyed = {(x.metric, x.scope, x.scope_id): x for x in found}
    assert len(keyed) == len(found)
    return keyed


@pytest.fixture(scope="module")
def figures(clean) -> Found:
    return measured(clean.repo, "cand-r1")


def test_the_split_shows_in_its_region_and_nowhere_else(figures: Found) -> None:
    regions = {name: figures["vi_split", "region", name].value for name in ("0_0_0", "0_0_1", "0_1_0", "0_1_1")}
    assert regions == {"0_0_0": 0.0, "0_0_1": 0.0, "0_1_0": 0.0, "0_1_1": 1.0}
    assert figures["vi_merge", "global", ""].value == 0.0


def test_global_vi_is_that_of_the_whole_and_leaves_the_unlabelled_plane_out(figures: Found) -> None:
    # Half of the labelled voxels are body 2, of which a quarter went to C.
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert figures["vi_split", "global", ""].value == pytest.approx(entropy / 2)
    assert figures["labelled_voxels", "global", ""].value == 7 * 16 * 16


def test_a_region_knows_its_place(figures: Found) -> None:
    assert figures["vi_split", "region", "0_1_1"].box == (64.0, 64.0, 0.0, 128.0, 128.0, 128.0)


def test_synapses_are_scored_against_the_truth_under_their_ends(figures: Found) -> None:
    assert figures["synapses", "global", ""].value == 2
    assert figures["synapse_binding", "global", ""].value == 0.5
    # Both detections lie at the one true synapse: one matches it, the other is one too many.
    assert figures["synapse_precision", "global", ""].value == 0.5
    assert figures["synapse_recall", "global", ""].value == 1.0
    assert figures["synapse_f1", "region", "0_0_0"].value == pytest.approx(2 / 3)


def test_a_clean_lake_has_no_violation_and_nothing_missing(figures: Found) -> None:
    assert figures["graph_violations", "global", ""].value == 0
    assert figures["missing_blocks", "global", ""].value == 0
    assert figures["tile_integrity", "global", ""].value == 1


def test_all_that_is_promised_is_measured(figures: Found) -> None:
    assert {name for name, scope, _ in figures if scope == "global"} == set(GLOBAL_METRICS)
    assert all(x.row()["status"] == "ok" for x in figures.values())


def test_an_empty_lake_gives_every_global_metric_as_unknown_with_its_reason(empty: Repository) -> None:
    found = measured(empty, "cand-r1")
    assert {name for name, scope, _ in found if scope == "global"} == set(GLOBAL_METRICS)
    assert {x.row()["status"] for x in found.values()} == {"unknown"}
    assert all("nothing to measure" not in x.row()["reason"] for x in found.values())


@pytest.mark.parametrize(
    ("table", "metrics"),
    [
        ("sections", {"coverage_min", "alignment_folds", "stitch_residual_p95"}),
        ("agglomeration", {"graph_violations", "orphan_share"}),
        ("ground_truth_synapses", {"synapse_f1", "synapse_recall"}),
        ("synapses", {"synapse_binding", "synapse_f1", "orphan_share", "graph_violations"}),
    ],
)
def test_a_table_that_is_gone_makes_what_needs_it_unknown(clean, spoil, table: str, metrics: set[str]) -> None:
    found = measured(clean.repo, spoil(**{table: None}))
    assert all(found[name, "global", ""].value is None for name in metrics)
    assert all(table in found[name, "global", ""].reason for name in metrics)
    assert found["vi_split", "global", ""].value is not None


def test_without_truth_the_scores_are_unknown_and_the_rest_is_measured(clean, change) -> None:
    branch = change(lambda s: s.delete([stat.key for stat in s.list("volumes/ground_truth/")]))
    found = measured(clean.repo, branch)
    assert found["vi_split", "global", ""].value is None
    assert found["synapse_f1", "global", ""].value is None
    assert found["block_continuity", "global", ""].value is not None


@pytest.mark.parametrize("fault", ["flipped", "gone"])
def test_tiles_are_read_again_and_the_damaged_one_is_named(with_tiles: Repository, fault: str) -> None:
    path = "raw/acq/0/t1.tif"
    if fault == "gone":
        with_tiles.delete("archive", [path])
    else:
        with_tiles.put("archive", path, b"\x01" * 49 + b"\x03")
    with_tiles.commit("archive", "a fault")
    found = measured(with_tiles, "cand-r1")
    assert found["tile_integrity", "global", ""].value == pytest.approx(2 / 3)
    assert [key[2] for key in found if key[:2] == ("tile_integrity", "tile")] == [path]


def test_a_chunk_that_is_gone_is_counted_and_its_region_is_unknown(clean, change) -> None:
    branch = change(lambda s: s.delete([chunks(s, "segmentation")[-1]]))
    found = measured(clean.repo, branch)
    assert found["missing_blocks", "global", ""].value == 1
    assert found["vi_split", "global", ""].value is None
    unknown = [key[2] for key, x in found.items() if key[:2] == ("vi_split", "region") and x.value is None]
    assert len(unknown) == 1


def chunks(session, name: str) -> list[str]:
    keys = [stat.key for stat in session.list(f"volumes/{name}/")]
    return sorted(key for key in keys if key.split("/")[-1][0].isdigit())


def test_a_broken_graph_is_counted_row_by_row(clean, change) -> None:
    def forget(session) -> None:
        rows = overwritten(session, "agglomeration")
        overwrite(session.workspace("tables/agglomeration/"), "agglomeration", rows.head(7))

    found = measured(clean.repo, change(forget))
    # One supervoxel without a root, its root C without supervoxels.
    assert found["graph_violations", "global", ""].value == 2


def overwritten(session, name: str) -> pl.DataFrame:
    from lake.tables import read

    return read(session.workspace(f"tables/{name}/")).sort("supervoxel_id").collect()


def test_progress_ends_at_the_total(clean) -> None:
    told: list[tuple[str, int, int]] = []
    with clean.repo.snapshot("cand-r1") as snapshot:
        measure(snapshot, lambda *step: told.append(step))
    assert ("tiles", 3, 3) in told
    assert told[-1] == ("segmentation", 4, 4)


def test_labels_are_read_under_points_and_are_zero_outside(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 99, (6, 10, 14)).astype(np.uint64)
    spec = VolumeSpec("v", "segmentation", "uint64", array.shape, (16.0, 8.0, 8.0), (2, 3, 5), chunk_zyx=(4, 4, 4))
    volume = create_volume(Location(str(tmp_path), writable=True), spec)
    volume.write(volume.box, array)
    voxels = np.argwhere(array)[::7]
    points = (voxels + (2, 3, 5) + 0.5) * (16.0, 8.0, 8.0)
    outside = [[0.0, 0.0, 0.0], [1e6, 0.0, 0.0], [-1.0, 30.0, 50.0]]
    found = labels_at(volume, np.concatenate([points, outside]), block=4)
    assert found.tolist() == [*array[tuple(voxels.T)].tolist(), 0, 0, 0]
    assert labels_at(volume, np.zeros((0, 3))).shape == (0,)
