"""Metrics as functions: each figure by hand, and what must not read as fine when it is not known."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.box import Box
from lake.schemas import TABLES
from qc import metrics as m
from qc.regions import Grid

GRID = Grid((8, 8, 8), (1, 1, 2), (16.0, 8.0, 8.0), Box((0, 0, 0), (8, 8, 24)))
BOX = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


def by_name(found: list[m.Metric], scope: str = "global") -> dict[str, float | None]:
    return {x.metric: x.value for x in found if x.scope == scope}


def tiles(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    given = {
        "path": [f"t{i}" for i in range(n)], "status": ["ok"] * n, "shape_x": [10] * n, "focus": [1.0] * n,
        "saturation": [0.0] * n,
    }  # fmt: skip
    return pl.DataFrame({**given, **columns}, schema_overrides={"shape_x": pl.Int64, "focus": pl.Float64})


def sections(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    given = {
        "section": list(range(n)), "residual_px": [0.5] * n, "coverage": [1.0] * n, "holes": [0] * n, "ncc": [0.9] * n,
        "alignment_residual_px": [0.4] * n, "folds": [0] * n,
    }  # fmt: skip
    integers = {"holes": pl.Int64, "folds": pl.Int64, "ncc": pl.Float64}
    return pl.DataFrame({**given, **columns}, schema_overrides=integers)


def synapses(ends: list[tuple[int, int]], region: str = "0_0_0") -> pl.DataFrame:
    schema = {"region": pl.String, "pre_pt_root_id": pl.Int64, "post_pt_root_id": pl.Int64}
    return pl.DataFrame([(region, *pair) for pair in ends], schema=schema, orient="row")


def segments(*rows: tuple[int, int, int | None]) -> pl.DataFrame:
    schema = {"root_id": pl.Int64, "voxels": pl.Int64, "boundary_faces": pl.Int64}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


# -- rows ---------------------------------------------------------------------------------------------------------
def test_every_row_fits_the_table_and_says_its_unit_and_definition() -> None:
    row = m.Metric("vi_split", "region", "0_0_0", 0.5, box=BOX).row()
    assert set(row) == {c.name for c in TABLES["qc_metrics"].columns} - {"data_commit", "run_id"}
    assert (row["value"], row["unit"], row["status"], row["reason"]) == (0.5, "bits", "ok", None)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_value_that_is_no_number_is_unknown_with_a_reason(value: float | None) -> None:
    row = m.everywhere("vi_split", value).row()
    assert (row["value"], row["status"]) == (None, "unknown")
    assert row["reason"]


def test_every_global_metric_has_a_definition() -> None:
    assert set(m.GLOBAL_METRICS) <= set(m.DEFINITIONS)
    assert len(set(m.GLOBAL_METRICS)) == len(m.GLOBAL_METRICS)


# -- tiles and sections ---------------------------------------------------------------------------------------------
def test_tiles_in_quarantine_count_only_as_such() -> None:
    frame = tiles(status=["ok", "ok", "ok", "quarantined"], focus=[1.0, 0.8, 2.0, 0.0])
    found = by_name(m.tile_metrics(frame, {}))
    assert found["tile_integrity"] == 1.0
    assert found["tile_focus_min"] == 0.8
    assert found["tile_quarantine_share"] == 0.25


def test_a_damaged_tile_lowers_integrity_and_is_named() -> None:
    found = m.tile_metrics(tiles(path=["a", "b", "c", "d"], shape_x=[1, 1, 1, None]), {"b": "sha256 differs"})
    assert by_name(found)["tile_integrity"] == 0.5
    assert [(x.scope_id, x.value) for x in found if x.scope == "tile"] == [("b", 0.0)]


def test_an_archive_without_a_tile_in_use_is_unknown() -> None:
    assert set(by_name(m.tile_metrics(tiles(status=["quarantined"]), {})).values()) == {None}


def test_sections_give_the_worst_of_each() -> None:
    frame = sections(coverage=[1.0, 0.7], holes=[0, 3], residual_px=[0.2, 5.0], folds=[1, 2], ncc=[None, 0.9])
    found = by_name(m.section_metrics(frame))
    assert found["coverage_min"] == 0.7
    assert found["coverage_holes"] == 3
    assert found["stitch_residual_p95"] == 5.0
    assert found["alignment_folds"] == 3


def test_a_section_nobody_looked_at_for_folds_makes_the_sum_unknown() -> None:
    found = m.section_metrics(sections(folds=[0, None]))
    assert by_name(found)["alignment_folds"] is None
    assert [x.scope_id for x in found if x.metric == "alignment_folds" and x.scope == "section"] == ["0"]


def test_one_bad_seam_between_sections_is_an_outlier_and_slow_drift_is_none() -> None:
    drift = [0.9 - 0.005 * i for i in range(30)]
    assert by_name(m.section_metrics(sections(ncc=[None, *drift])))["alignment_outliers"] == 0
    drift[12] = 0.4
    assert by_name(m.section_metrics(sections(ncc=[None, *drift])))["alignment_outliers"] == 1


# -- graph ----------------------------------------------------------------------------------------------------------
def test_an_orphan_is_large_inside_and_without_synapse() -> None:
    frame = segments((1, 5000, 0), (2, 5000, 1), (3, 999, 0), (4, 5000, 0), (5, 5000, None))
    assert sorted(m.orphans(frame, synapses([(4, 9)]))) == [1, 5]


def test_orphans_are_shared_out_by_region() -> None:
    sizes = pl.DataFrame({"region": ["0_0_0", "0_0_0", "0_0_1"], "root_id": [1, 2, 1], "voxels": [100, 300, 100]})
    found = m.orphan_metrics(sizes, pl.Series([1]), lambda region: BOX)
    assert by_name(found)["orphan_share"] == 0.4
    assert {x.scope_id: x.value for x in found if x.scope == "region"} == {"0_0_0": 0.25, "0_0_1": 1.0}


def test_segments_that_touch_many_faces_or_fill_the_volume_are_suspect() -> None:
    frame = segments(*((n, 100, 0) for n in range(18)), (20, 100, 5), (21, 400, 0))
    found = by_name(m.size_metrics(frame))
    assert found == {"largest_segment_share": 400 / 2300, "merge_suspects": 2.0}
    assert set(by_name(m.size_metrics(frame.clear())).values()) == {None}


def test_binding_counts_ends_and_autapses() -> None:
    found = by_name(m.binding_metrics(synapses([(1, 2), (1, 1), (0, 2), (3, 0)]), lambda region: BOX))
    assert found == {"synapse_binding": 0.5, "autapse_share": 0.5, "synapses": 4.0}


def test_no_synapse_at_all_is_unknown_but_for_their_number() -> None:
    found = by_name(m.binding_metrics(synapses([]), lambda region: BOX))
    assert found == {"synapse_binding": None, "autapse_share": None, "synapses": 0.0}


def test_detection_by_region_counts_a_match_where_it_was_found() -> None:
    true = np.array([[0.0, 0.0, 120.0], [0.0, 0.0, 180.0]])
    found = np.array([[0.0, 0.0, 136.0], [0.0, 0.0, 20.0]])
    pairs = np.array([[1, 2], [3, 4]])
    scores = m.synapse_region_metrics(found, pairs, true, np.array([[1, 2], [5, 6]]), GRID)
    # x 0..128 nm is region 0_0_0, 128..256 is 0_0_1: the match is found in the second, and the miss lies there too.
    assert {x.scope_id: x.value for x in scores} == {"0_0_0": 0.0, "0_0_1": 2 / 3}


def test_without_known_synapses_detection_is_unknown() -> None:
    none = np.zeros((0, 3)), np.zeros((0, 2), np.int64)
    assert set(by_name(m.synapse_metrics(np.zeros((1, 3)), np.array([[1, 2]]), *none)).values()) == {None}


# -- planes and regions ---------------------------------------------------------------------------------------------
def test_agreement_leaves_unlabelled_voxels_out() -> None:
    assert m.agreement(np.array([1, 1, 0, 2, 0]), np.array([1, 3, 2, 0, 0])) == (1, 2)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_a_plane_agrees_with_itself(labels: list[int]) -> None:
    plane = np.array(labels)
    same, both = m.agreement(plane, plane)
    assert same == both == int((plane != 0).sum())


def test_a_region_is_cut_at_the_volume() -> None:
    assert GRID.box_nm("0_0_1") == (128.0, 0.0, 0.0, 192.0, 64.0, 128.0)
    assert GRID.region_of((0, 1, 3)) == "0_1_1"


@given(st.tuples(*(st.floats(0, 1000, exclude_max=True) for _ in range(3))))
def test_a_point_lies_in_the_box_of_its_region(point: tuple[float, float, float]) -> None:
    grid = Grid((8, 8, 8), (2, 1, 1), (16.0, 8.0, 8.0))
    x0, y0, z0, x1, y1, z1 = grid.box_nm(grid.regions_at(np.array([point]))[0])
    assert all(a <= v < b for v, a, b in zip(point, (z0, y0, x0), (z1, y1, x1), strict=True))
