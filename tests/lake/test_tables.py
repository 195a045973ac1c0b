"""Delta tables: checked rows in, one commit of parts, the same digest whatever the layout."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

from lake import tables
from lake.columns import TableSpec
from lake.errors import BadInput, CorruptObject, RootCollision, SchemaMismatch, StorageError, TableNotFound
from lake.location import Location
from lake.rows import conform, ids_below_2_63, rows_digest
from lake.schemas import TABLES, table_spec
from lake.tables import Part


def place(folder: Path, name: str = "t") -> Location:
    return Location(str(folder / name), writable=True)


def edges(region: str, n: int, start: int = 0, run: str = "r") -> pl.DataFrame:
    a = np.arange(start, start + n)
    return pl.DataFrame(
        {
            "region": [region] * n,
            "block": [f"watershed/{region}"] * n,
            "a": a,
            "b": a + 1,
            "sum_affinity": a * 7 % 255,
            "count": a % 5,
            "contact_area": a / 3,
            "run_id": [run] * n,
        }
    )


def agglomeration(ids: list[int], roots: list[int], run: str = "r") -> pl.DataFrame:
    return pl.DataFrame({"supervoxel_id": ids, "root_id": roots, "run_id": [run] * len(ids)})


def value_of(column: str, kind: str) -> object:
    return {
        "int64": 3, "float64": 0.5, "string": column, "bool": True, "timestamp": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "list<int64>": [1, 2], "list<string>": ["a", "b"], "list<float64>": [0.5],
    }[kind]  # fmt: skip


def full_row(spec: TableSpec) -> dict[str, object]:
    return {column.name: value_of(column.name, column.type) for column in spec.columns}


# -- round trips --------------------------------------------------------------------------------------------------
def test_every_table_stores_and_returns_a_full_and_a_sparse_row(tmp_path) -> None:
    for name, spec in TABLES.items():
        where = place(tmp_path, name)
        full = full_row(spec)
        sparse = {column.name: full[column.name] for column in spec.columns if not column.nullable}
        for row in (full, sparse):
            tables.overwrite(where, name, [row])
            (back,) = tables.read(where).collect().to_dicts()
            assert {key: back[key] for key in row} == row, name
            assert all(back[column.name] is None for column in spec.columns if column.name not in row), name


def test_declarations_are_whole() -> None:
    for name, spec in TABLES.items():
        assert spec.name == name
        assert set(spec.sort_key) | set(spec.partition_by) <= set(spec.names)
        assert len(set(spec.names)) == len(spec.names)
        assert all(column.doc for column in spec.columns)
        assert spec.branch in ("data", "archive", "ops")
        assert all(spec[column].type == "string" for column in spec.partition_by)


def test_appends_add_overwrites_replace_and_versions_count(tmp_path) -> None:
    where = place(tmp_path)
    assert not tables.table_exists(where)
    assert tables.append(where, "edges", edges("0_0_0", 3)) == 0
    assert tables.append(where, "edges", edges("0_0_1", 2, 100)) == 1
    assert tables.table_exists(where)
    assert tables.read(where).collect().height == tables.table_rows(where) == 5
    assert tables.overwrite(where, "edges", edges("0_0_0", 1)) == 2 == tables.version(where)
    assert tables.table_rows(where) == 1


def test_a_nullable_column_declared_later_is_added_to_a_table_that_exists(tmp_path, monkeypatch) -> None:
    # What was in it used to be left out without a word: a Delta table goes on with the columns it was made with.
    where, new = place(tmp_path), TABLES["costs"]
    columns = tuple(column for column in new.columns if column.name != "reason")
    row = {name: value for name, value in full_row(new).items() if name != "reason"}
    with monkeypatch.context() as then:
        then.setitem(TABLES, "costs", TableSpec("costs", new.doc, "ops", columns, new.sort_key, unique=False))
        tables.append(where, "costs", [row])
    assert "reason" not in tables.read(where).collect_schema()
    for _ in range(2):
        tables.append(where, "costs", [row | {"reason": "superseded"}])
    assert sorted(tables.read(where).collect()["reason"], key=str) == [None, "superseded", "superseded"]
    assert tables.version(where) == 3, "the column is added once"


def test_lost_files_are_dropped_without_being_opened_and_the_others_stay(tmp_path) -> None:
    where = place(tmp_path)
    for start in (0, 100):
        tables.append(where, "edges", pl.concat([edges("0_0_0", 3, start), edges("0_0_1", 2, start + 50)]))
    lost = [path.relative_to(where.path).as_posix() for path in sorted(where.path.glob("region=*/*.parquet"))[1:3]]
    for path in lost:
        (where.path / path).unlink()
    assert tables.drop_files(where, "edges", [*lost, "region=0_0_0/never.parquet"]) == 5
    assert tables.read(where).collect().height == tables.table_rows(where) == 5
    assert tables.drop_files(where, "edges", lost) == 0
    assert tables.version(where) == 2


def test_a_table_whose_log_is_lost_is_rebuilt_from_its_files(tmp_path) -> None:
    where = place(tmp_path)
    for start in (0, 100):
        tables.append(where, "edges", pl.concat([edges("0_0_0", 3, start), edges("0_0_1", 2, start + 50)]))
    rows, digest = tables.read(where).collect(), tables.content_digest(where, "edges")
    shutil.rmtree(where.path / "_delta_log")
    assert tables.rebuild(where, "edges") == 10
    assert tables.content_digest(where, "edges") == digest
    assert_frame_equal(tables.read(where).collect(), rows, check_row_order=False)
    assert tables.read(where).filter(pl.col("region") == "0_0_1").collect().height == 4
    tables.append(where, "edges", edges("0_0_2", 1))
    assert tables.table_rows(where) == 11
    with pytest.raises(BadInput, match="has a log"):
        tables.rebuild(where, "edges")
    assert tables.rebuild(place(tmp_path, "none"), "edges") == 0
    assert not tables.table_exists(place(tmp_path, "none"))


def test_the_same_rows_appended_twice_are_there_twice(tmp_path) -> None:
    row = {"kind": "compute", "run_id": "r", "quantity": 1.0, "unit": "s", "cost": 0.1, "currency": "EUR"}
    row |= {"wasted": False, "ts": datetime(2026, 1, 1, tzinfo=UTC)}
    for _ in range(2):
        tables.append(place(tmp_path), "costs", [row])
    assert tables.table_rows(place(tmp_path)) == 2


def test_an_empty_table_can_be_made_and_filled(tmp_path) -> None:
    where = place(tmp_path)
    tables.overwrite(where, "edges", edges("0_0_0", 0))
    assert tables.read(where).collect().height == 0
    tables.append(where, "edges", edges("0_0_0", 2))
    tables.overwrite(where, "edges", edges("0_0_0", 0))
    assert tables.table_rows(where) == 0
    assert tables.read(where).collect().schema == edges("0_0_0", 1).schema


def test_replacing_a_region_touches_no_other(tmp_path) -> None:
    where = place(tmp_path)
    tables.append(where, "edges", pl.concat([edges("0_0_0", 3), edges("0_0_1", 3, 100), edges("0_0_2", 3, 200)]))
    before = {a["path"] for a in pa.table(DeltaTable(where.uri).get_add_actions(flatten=True)).to_pylist()}
    tables.replace_region(where, "edges", ["0_0_0", "0_0_1"], edges("0_0_1", 1, 500))
    after = {a["path"] for a in pa.table(DeltaTable(where.uri).get_add_actions(flatten=True)).to_pylist()}
    assert before & after == {path for path in before if "0_0_2" in path}
    found = tables.read(where).collect().group_by("region").len().sort("region").rows()
    assert found == [("0_0_1", 1), ("0_0_2", 3)]
    with pytest.raises(BadInput, match="outside the regions"):
        tables.replace_region(where, "edges", "0_0_0", edges("0_0_2", 1))
    with pytest.raises(BadInput, match="cannot be replaced"):
        tables.replace_region(where, "agglomeration", "0_0_0", agglomeration([1], [2]))


# -- parts --------------------------------------------------------------------------------------------------------
def test_parts_of_many_writers_enter_by_one_commit_and_a_repeat_changes_nothing(tmp_path) -> None:
    where = place(tmp_path)
    made = [tables.write_part(where, "edges", edges(f"0_0_{i}", 4, 100 * i), f"watershed/0_0_{i}") for i in range(3)]
    assert not tables.table_exists(where)
    parts = [Part.from_json(json.loads(json.dumps(part.to_json()))) for part in made]
    assert tables.commit_parts(where, "edges", parts) == 0
    assert tables.commit_parts(where, "edges", parts) == 0
    assert tables.table_rows(where) == 12
    again = tables.write_part(where, "edges", edges("0_0_1", 4, 100), "watershed/0_0_1")
    assert again == made[1]
    changed = tables.write_part(where, "edges", edges("0_0_1", 2, 100), "watershed/0_0_1")
    assert changed.path != made[1].path
    assert changed.path.startswith("region=0_0_1/watershed-0_0_1-")
    assert tables.commit_parts(where, "edges", [changed], "overwrite", ["0_0_1"]) == 1
    assert tables.table_rows(where) == 10


def test_overwriting_with_a_part_that_is_there_keeps_it(tmp_path) -> None:
    where = place(tmp_path)
    keep, drop = (tables.write_part(where, "edges", edges(r, 2), r) for r in ("0_0_0", "0_0_1"))
    tables.commit_parts(where, "edges", [keep, drop])
    tables.commit_parts(where, "edges", [keep], "overwrite")
    assert tables.read(where).collect()["region"].unique().to_list() == ["0_0_0"]
    log = [json.loads(line) for line in (tmp_path / "t/_delta_log/00000000000000000001.json").read_text().splitlines()]
    assert [entry["remove"]["path"] for entry in log if "remove" in entry] == [drop.path]
    assert not [entry for entry in log if "add" in entry]


def test_a_part_has_one_partition_and_one_table(tmp_path) -> None:
    where = place(tmp_path)
    mixed = pl.concat([edges("0_0_0", 1), edges("0_0_1", 1, 9)])
    with pytest.raises(BadInput, match="2 values of region"):
        tables.write_part(where, "edges", mixed, "x")
    with pytest.raises(BadInput, match="2 values of region"):
        tables.write_part(where, "edges", edges("0_0_0", 1), "x", {"region": "0_0_1"})
    part = tables.write_part(where, "edges", edges("0_0_0", 0), "x", {"region": "0_0_1"})
    assert (part.rows, part.partition) == (0, {"region": "0_0_1"})
    with pytest.raises(BadInput, match="belongs to table edges"):
        tables.commit_parts(where, "agglomeration", [part])
    with pytest.raises(BadInput, match="given twice"):
        tables.commit_parts(where, "edges", [part, part])


def test_statistics_and_settings_are_in_the_log(tmp_path) -> None:
    where = place(tmp_path)
    tables.append(where, "edges", edges("0_0_0", 3, 10))
    (action,) = pa.table(DeltaTable(where.uri).get_add_actions(flatten=True)).to_pylist()
    assert (action["num_records"], action["min.a"], action["max.b"], action["null_count.a"]) == (3, 10, 13, 0)
    table = DeltaTable(where.uri)
    assert table.metadata().configuration == {"delta.enableExpiredLogCleanup": "false"}
    assert table.metadata().partition_columns == ["region"]
    # Statistics are Delta's only; no deletion vectors, no column mapping: every reader can read it.
    assert table.protocol().min_reader_version == 1


# -- what is refused ----------------------------------------------------------------------------------------------
def changed(column: str, values: object) -> pa.Table:
    table = edges("0_0_0", 2).to_arrow()
    return table.set_column(table.column_names.index(column), column, values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed("a", pa.array([1, 2], pa.uint64())), "column a of table edges is int64, the rows have uint64"),
        (changed("a", pa.array([1.0, 2.0])), "column a of table edges is int64, the rows have double"),
        (changed("a", pa.array(["1", "2"])), "column a of table edges is int64, the rows have string"),
        (changed("a", pa.array([1, None])), "column a of table edges has 1 NULL values"),
        (changed("contact_area", pa.array([1.0, float("nan")])), "contact_area of table edges has 1 values"),
        (changed("contact_area", pa.array([1.0, float("inf")])), "contact_area of table edges has 1 values"),
        (changed("contact_area", pa.array([1, 2**53 + 1])), "contact_area of table edges"),
        (edges("0_0_0", 2).drop("count"), "column count of table edges is missing"),
        (edges("0_0_0", 2).rename({"count": "counts"}), "table edges has no column 'counts'"),
        (pl.concat([edges("0_0_0", 1), edges("0_0_1", 1)]), "2 rows of table edges share the key a 0, b 1"),
    ],
)
def test_rows_that_do_not_fit_name_table_and_column(tmp_path, rows, message) -> None:
    with pytest.raises(SchemaMismatch, match=message):
        tables.append(place(tmp_path), "edges", rows)
    assert not (tmp_path / "t").exists()


def test_a_negative_id_and_a_naive_time_are_refused() -> None:
    with pytest.raises(SchemaMismatch, match="negative id -5"):
        conform(agglomeration([1], [-5]), table_spec("agglomeration"))
    row = full_row(table_spec("decisions"))
    with pytest.raises(SchemaMismatch, match="ts of table decisions is timestamp"):
        conform([{**row, "ts": datetime(2026, 1, 1)}], table_spec("decisions"))
    there = timezone(timedelta(hours=2))
    stored = conform([{**row, "ts": datetime(2026, 1, 1, 2, tzinfo=there)}], table_spec("decisions"))
    assert stored.column("ts").to_pylist() == [datetime(2026, 1, 1, tzinfo=UTC)]


def test_numbers_are_widened_where_nothing_is_lost() -> None:
    spec = table_spec("edges")
    narrow = edges("0_0_0", 3).with_columns(pl.col("a", "b").cast(pl.Int32), pl.col("contact_area").cast(pl.Float32))
    assert conform(narrow, spec).schema == spec.schema
    whole = edges("0_0_0", 3).with_columns(pl.col("count").alias("contact_area"))
    assert conform(whole, spec).column("contact_area").to_pylist() == [0.0, 1.0, 2.0]


def test_uint64_ids_of_a_volume_become_int64_or_are_refused() -> None:
    assert ids_below_2_63(np.array([2**63 - 1], np.uint64)).tolist() == [2**63 - 1]
    with pytest.raises(SchemaMismatch, match="9223372036854775808"):
        ids_below_2_63(np.array([2**63], np.uint64))


def test_two_voxel_sets_under_one_id_are_a_root_collision(tmp_path) -> None:
    where = place(tmp_path, "agglomeration")
    with pytest.raises(RootCollision, match="supervoxel_id 2"):
        tables.append(where, "agglomeration", agglomeration([1, 2, 2], [5, 6, 7]))
    tables.append(where, "agglomeration", agglomeration([1, 2], [5, 6]))
    with pytest.raises(RootCollision, match="supervoxel_id 2"):
        tables.append(where, "agglomeration", agglomeration([2, 3], [9, 9]))
    assert tables.version(where) == 0
    where = place(tmp_path, "segments")
    row = full_row(table_spec("segments"))
    parts = [
        tables.write_part(where, "segments", [{**row, "root_id": root, "voxels": voxels}], f"p{voxels}")
        for root, voxels in ((8, 10), (8, 11))
    ]
    with pytest.raises(RootCollision, match="root_id 8"):
        tables.commit_parts(where, "segments", parts)
    assert not tables.table_exists(where)


def test_a_read_only_place_and_an_absent_or_broken_table(tmp_path) -> None:
    with pytest.raises(BadInput, match="read-only"):
        tables.append(Location(str(tmp_path)), "edges", edges("0_0_0", 1))
    with pytest.raises(TableNotFound):
        tables.read(place(tmp_path))
    with pytest.raises(TableNotFound, match="edgs"):
        tables.append(place(tmp_path), "edgs", edges("0_0_0", 1))
    tables.append(place(tmp_path), "edges", edges("0_0_0", 1))
    (data,) = (tmp_path / "t").rglob("*.parquet")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    for read in (tables.read, lambda where: tables.content_digest(where, "edges")):
        with pytest.raises(CorruptObject, match=f"has {len(whole) - 1:,} bytes, the table's log says {len(whole):,}"):
            read(place(tmp_path))
    data.write_bytes(bytes(len(whole)))
    with pytest.raises(StorageError, match=str(tmp_path)):
        tables.content_digest(place(tmp_path), "edges")
    data.unlink()
    with pytest.raises(CorruptObject, match="is missing"):
        tables.content_digest(place(tmp_path), "edges")


# -- digests ------------------------------------------------------------------------------------------------------
def test_a_content_digest_ignores_order_files_and_volatile_columns(tmp_path) -> None:
    rows = pl.concat([edges("0_0_0", 9), edges("0_0_1", 9, 100)])
    one, many = place(tmp_path, "one"), place(tmp_path, "many")
    tables.append(one, "edges", rows)
    for part in rows.with_columns(run_id=pl.lit("other")).sample(fraction=1.0, shuffle=True, seed=3).iter_slices(4):
        tables.append(many, "edges", part)
    digest = tables.content_digest(one, "edges")
    assert tables.content_digest(many, "edges") == digest
    assert rows_digest(conform(rows, table_spec("edges")), table_spec("edges")) == digest
    tables.replace_region(many, "edges", "0_0_1", edges("0_0_1", 9, 101))
    assert tables.content_digest(many, "edges") != digest


def test_a_content_digest_sees_the_last_bit_of_a_float_and_null_against_zero() -> None:
    spec = table_spec("tile_matches")
    row = full_row(spec)

    def digest(**change: object) -> str:
        return rows_digest(conform([{**row, **change}], spec), spec)

    found = {digest(dx=0.1 + 0.2), digest(dx=0.3), digest(residual_px=None), digest(residual_px=0.0)}
    found |= {digest(a="ab", b="c"), digest(a="a", b="bc"), digest()}
    assert len(found) == 7
    assert digest(dx=-0.0) == digest(dx=0.0)
    assert digest(run_id="another") == digest()


def test_a_content_digest_is_the_same_tomorrow() -> None:
    # A recorded value: a change of library must not change what old manifests say.
    operations = table_spec("operations")
    spec = table_spec("edges")
    assert (
        rows_digest(conform(edges("0_0_0", 3), spec), spec)
        == "a5c1e6be19cad4ca3a5dc0d6380af5b65b0bd04d86ca278de4e37f8d417455d9"
    )
    assert (
        rows_digest(conform([full_row(operations)], operations), operations)
        == "d23c8fcb2a9d845309a47172fb8d9bfa7e87ae7fa86317ac54be76c9dc43aaa9"
    )


@pytest.mark.slow
def test_reading_does_not_hang_or_abort_the_process_at_exit(tmp_path) -> None:
    tables.append(place(tmp_path), "edges", edges("0_0_0", 1000))
    code = (
        "from lake import tables; from lake.location import Location\n"
        f"where = Location({str(tmp_path / 't')!r})\n"
        "assert tables.read(where).collect().height == 1000\n"
        "assert tables.content_digest(where, 'edges')\n"
    )
    for _ in range(5):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.lakefs
def test_tables_live_on_a_server_and_digest_as_in_a_folder(lakefs_repo, tmp_path) -> None:
    rows = pl.concat([edges("0_0_0", 9), edges("0_0_1", 9, 100)])
    tables.append(place(tmp_path), "edges", rows)
    with lakefs_repo.session("main", owner="me") as session:
        where = session.workspace("tables/edges/")
        assert not tables.table_exists(where)
        with pytest.raises(TableNotFound):
            tables.read(where)
        parts = [tables.write_part(where, "edges", part, "p") for part in rows.partition_by("region")]
        tables.commit_parts(where, "edges", parts)
        tables.commit_parts(where, "edges", parts)
        graph = session.workspace("tables/agglomeration/")
        tables.append(graph, "agglomeration", agglomeration([1, 2], [5, 6]))
        with pytest.raises(RootCollision, match="supervoxel_id 2"):
            tables.append(graph, "agglomeration", agglomeration([2], [6]))
        first = session.commit("edges")
    with lakefs_repo.session("main", owner="me") as session:
        where = session.workspace("tables/edges/")
        assert tables.replace_region(where, "edges", "0_0_1", edges("0_0_1", 1, 500)) == 1
        second = session.commit("one region")
    places = [lakefs_repo.location_of(commit, "tables/edges/") for commit in (first, second)]
    assert [tables.table_rows(p) for p in places] == [18, 10]
    assert [tables.version(p) for p in places] == [0, 1]
    assert tables.read(places[0]).collect().height == 18
    assert tables.content_digest(places[0], "edges") == tables.content_digest(place(tmp_path), "edges")
    with pytest.raises(BadInput, match="read-only"):
        tables.append(places[0], "edges", rows)
