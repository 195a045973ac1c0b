"""Each SQL check passes clean data and finds the fault it is made for, and names the row."""

import polars as pl
import pytest
from deltalake import write_deltalake

from lake.tables import overwrite
from qc.checks import graph_checks

CHECKS = {check.name: check for check in graph_checks()}


def faults(repo, ref: str) -> dict[str, list[tuple]]:
    """The rows of every check that finds any."""
    with repo.snapshot(ref) as snapshot:
        found = {name: snapshot.sql(check.text).rows() for name, check in CHECKS.items()}
    return {name: rows for name, rows in found.items() if rows}


@pytest.fixture(scope="module")
def frames(clean) -> dict[str, pl.DataFrame]:
    with clean.repo.snapshot("cand-r1") as snapshot:
        return {name: snapshot.table(name).collect() for name in snapshot.tables()}


def test_clean_data_break_no_rule(clean) -> None:
    assert len(CHECKS) >= 6
    assert faults(clean.repo, "cand-r1") == {}


def test_a_supervoxel_without_root_and_one_with_two(clean, change, frames) -> None:
    rows = frames["agglomeration"].sort("supervoxel_id")

    def edit(session) -> None:
        place = session.workspace("tables/agglomeration/")
        overwrite(place, "agglomeration", rows[1:])
        # The lake itself refuses this; another program that writes Delta tables does not.
        write_deltalake(place.uri, rows[-1:].with_columns(root_id=pl.lit(clean.a)), mode="append")

    found = faults(clean.repo, change(edit))
    ids = rows["supervoxel_id"].to_list()
    assert sorted(found["graph_one_root"]) == [(ids[0], 0), (ids[-1], 2)]


def test_a_root_that_is_not_the_sum_of_its_voxel_hashes(clean, spoil, frames) -> None:
    other = pl.when(pl.col("root_id") == clean.a).then(clean.a + 1).otherwise(pl.col("root_id")).alias("root_id")
    moved = {name: frames[name].with_columns(other) for name in ("agglomeration", "segments")}
    found = faults(clean.repo, spoil(**moved))
    assert found["graph_root_hash"] == [(clean.a + 1, clean.a)]
    assert "graph_segments_match" not in found


def test_an_edge_to_nowhere_and_one_that_is_turned_round(clean, spoil, frames) -> None:
    edges = frames["edges"].sort("a")
    known = edges.row(2, named=True)
    turned = edges[2:].with_columns(a=pl.lit(known["b"], pl.Int64), b=pl.lit(known["a"], pl.Int64))
    nowhere = edges[:1].with_columns(b=pl.lit(2**40, pl.Int64))
    found = faults(clean.repo, spoil(edges=pl.concat([nowhere, edges[1:2], turned])))
    expected = [(nowhere["a"][0], 2**40), (known["b"], known["a"])]
    assert sorted(found["graph_edges_known"]) == sorted(expected)


def test_a_segment_of_another_size_one_too_few_and_one_too_many(clean, spoil, frames) -> None:
    segments = frames["segments"].sort("voxels")
    wrong = segments.with_columns(
        root_id=pl.when(pl.col("root_id") == clean.c).then(77).otherwise(pl.col("root_id")),
        voxels=pl.when(pl.col("root_id") == clean.a).then(1).otherwise(pl.col("voxels")),
    )
    found = faults(clean.repo, spoil(segments=wrong))
    assert {row[0] for row in found["graph_segments_match"]} == {77, clean.a, clean.c}


def test_a_synapse_bound_to_the_wrong_root(clean, spoil, frames) -> None:
    wrong = frames["synapses"].with_columns(
        post_pt_root_id=pl.when(pl.col("id") == 1).then(clean.c).otherwise(pl.col("post_pt_root_id"))
    )
    found = faults(clean.repo, spoil(synapses=wrong))
    assert found["graph_synapses_bound"] == [(1,)]


def test_connections_that_do_not_add_up(clean, spoil, frames) -> None:
    extra = pl.DataFrame({"pre_root_id": [clean.b], "post_root_id": [clean.a], "synapses": [1], "size": [1.0]})
    more = frames["connections"].with_columns(synapses=pl.lit(5, pl.Int64))
    both = pl.concat([more, extra.with_columns(run_id=pl.lit("run")).select(more.columns)])
    found = faults(clean.repo, spoil(connections=both))
    assert sorted(found["graph_connections_add_up"]) == sorted([(clean.a, clean.b, 5, 1), (clean.b, clean.a, 1, None)])
