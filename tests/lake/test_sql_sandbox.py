"""What a user's SQL may not do, on the embedded engine; the server's turn is in test_snapshot."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import lake
from lake.errors import BadInput, LakeError, QueryRefused, TableNotFound
from lake.snapshot import Snapshot
from lake.testing.example import write_example


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Iterator[Snapshot]:
    repo = lake.create(tmp_path_factory.mktemp("lake") / "repo")
    write_example(repo)
    with repo.snapshot("cand-r1") as opened:
        yield opened
    repo.close()


@pytest.fixture(scope="module")
def outside(snapshot, tmp_path_factory) -> Path:
    """A folder with a CSV file and a Delta table that are not the snapshot's."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "x.csv").write_text("a,b\n1,2\n")
    from lake import tables
    from lake.location import Location

    place = Location(str(folder / "agglomeration"), writable=True)
    tables.append(place, "agglomeration", [{"supervoxel_id": 1, "root_id": 2, "run_id": "r"}])
    return folder


WRITES = [
    "INSERT INTO segments VALUES (1)",
    "UPDATE segments SET voxels = 0",
    "DELETE FROM segments",
    "CREATE TABLE t (i INT)",
    "CREATE TEMP TABLE t (i INT)",
    "CREATE OR REPLACE VIEW segments AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "DROP VIEW segments",
    "ALTER TABLE main.snapshot ADD COLUMN i INT",
    "COPY segments TO '{inside}/x.parquet'",
    "COPY (SELECT 1) TO '{outside}/x.csv'",
    "COPY main.snapshot FROM '{outside}/x.csv'",
    "EXPORT DATABASE '{outside}/db'",
    "ATTACH '{inside}/x.db'",
    "ATTACH '{outside}/agglomeration' AS t (TYPE delta)",
    'DETACH "main~segments"',
    "USE ops",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '1GB'",
    "SET VARIABLE a = 1",
    "RESET memory_limit",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "CALL enable_logging()",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "CREATE SECRET s (TYPE s3)",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW segments",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("query", WRITES)
def test_a_statement_that_is_no_select_is_refused(snapshot, outside, query) -> None:
    inside = snapshot.location("tables/segments/").path
    before = sorted(os.listdir(outside)), sorted(os.listdir(inside))
    with pytest.raises(QueryRefused):
        snapshot.sql(query.format(outside=outside, inside=inside))
    assert (sorted(os.listdir(outside)), sorted(os.listdir(inside))) == before
    assert snapshot.sql("SELECT count(*) FROM segments").rows() == [(3,)]


@pytest.mark.parametrize(
    "query",
    [
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/x.csv'",
        "EXPLAIN COPY (SELECT 1) TO '{inside}/x.csv'",
        "/* a */ EXPLAIN /* b */ ANALYZE -- c\n COPY (SELECT 1) TO '{inside}/x.csv'",
        "/* é ü 漢 */ EXPLAIN /* é */ ANALYZE COPY (SELECT 1) TO '{inside}/x.csv'",
        "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{inside}/x.csv'",
        "EXPLAIN (FORMAT JSON) SELECT 1",
        "EXPLAIN ANALYZE CREATE TABLE t (i INT)",
        "EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')",
    ],
)
def test_explaining_is_no_way_round(snapshot, query) -> None:
    inside = snapshot.location("tables/segments/").path
    with pytest.raises(QueryRefused):
        snapshot.sql(query.format(inside=inside))
    assert not (inside / "x.csv").exists()


@pytest.mark.parametrize(
    "query",
    [
        "FROM read_csv('{outside}/x.csv')",
        "FROM '{outside}/x.csv'",
        "FROM '{inside}/../x.csv'",
        "FROM 'x.csv'",
        "FROM read_text('/etc/passwd')",
        "FROM read_blob('/etc/passwd')",
        "FROM read_parquet('{inside}/**/*.parquet')",
        "FROM parquet_metadata('{outside}/agglomeration/*.parquet')",
        "FROM glob('/etc/*')",
        "FROM sniff_csv('{outside}/x.csv')",
        "FROM delta_scan('{outside}/agglomeration')",
        "FROM delta_scan('file://{outside}/agglomeration')",
        "FROM delta_scan('s3://bucket/key')",
        "FROM 'https://example.invalid/x.parquet'",
        "FROM query('FROM read_text(''/etc/passwd'')')",
        "FROM query_table('segments')",
        "FROM enable_logging(storage='file', storage_path='{outside}/log')",
        "FROM duckdb_secrets()",
        "FROM duckdb_settings()",
        'FROM "main~segments"',
        "SELECT * FROM segments WHERE EXISTS (FROM read_text('/etc/passwd'))",
        "SELECT (SELECT content FROM read_text('/etc/passwd'))",
        "WITH a AS (FROM read_text('/etc/passwd')) FROM a",
        "WITH RECURSIVE a(c) AS (SELECT content FROM read_text('/etc/passwd') UNION ALL FROM a) FROM a",
        "SELECT 1 UNION ALL SELECT content FROM read_text('/etc/passwd')",
        "SELECT * FROM segments, LATERAL (FROM read_text('/etc/passwd'))",
        "PIVOT (FROM read_csv('{outside}/x.csv')) ON a IN (1) USING sum(b)",
        "DESCRIBE FROM read_csv('{outside}/x.csv')",
        "SUMMARIZE FROM read_csv('{outside}/x.csv')",
    ],
)
def test_a_file_or_an_unlisted_function_is_refused_wherever_it_stands(snapshot, outside, query) -> None:
    inside = snapshot.location("tables/segments/").path
    with pytest.raises((QueryRefused, TableNotFound)):
        snapshot.sql(query.format(outside=outside, inside=inside))
    assert not (outside / "log").exists()
    assert snapshot.sql("SELECT 1").rows() == [(1,)]


def test_the_settings_hold_by_themselves(snapshot, outside) -> None:
    # The last lock, tried without the two in front of it.
    for query in (
        f"FROM read_csv('{outside}/x.csv')",
        f"SELECT count(*) FROM delta_scan('{outside}/agglomeration')",
        "FROM glob('/etc/*')",
        f"ATTACH '{outside}/x.db'",
        f"COPY (SELECT 1) TO '{outside}/y.csv'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "LOAD httpfs",
        "INSTALL spatial",
        'INSERT INTO "main~segments" SELECT * FROM segments',
    ):
        with snapshot.cursor() as cursor, pytest.raises(Exception, match=r"(?i)disabled|locked|read-only|permission"):
            cursor.execute(query).fetchall()


def test_variables_of_the_caller_are_not_tables(snapshot) -> None:
    import polars as pl

    frame = pl.DataFrame({"a": [1]})
    with pytest.raises(TableNotFound, match="frame"):
        snapshot.sql("FROM frame")
    with snapshot.cursor() as cursor, pytest.raises(Exception, match="frame"):
        cursor.execute("FROM frame")
    assert frame.height == 1


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*) FROM main.segments", 1),
        ("SELECT count(*) FROM SEGMENTS", 1),
        ("FROM memory.main.segments", 3),
        ("WITH a AS (SELECT 1 AS i), b AS (SELECT i FROM a) SELECT * FROM b", 1),
        ("WITH RECURSIVE a(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM a WHERE i < 3) FROM a", 3),
        ("VALUES (1), (2)", 2),
        ("SELECT * FROM range(3), unnest([1, 2])", 6),
        ("SELECT s.* FROM segments AS s JOIN (SELECT root_id FROM segments) AS t USING (root_id)", 3),
        ("DESCRIBE segments", 17),
        ("SUMMARIZE agglomeration", 3),
        ("EXPLAIN SELECT * FROM segments", 1),
        ("/* note */ EXPLAIN ANALYZE SELECT * FROM segments", 1),
        ("SELECT table_name FROM information_schema.tables WHERE table_schema = 'archive'", 1),
        ("SELECT table_name FROM duckdb_columns() WHERE table_name = 'segments' AND schema_name = 'main'", 17),
        ("SELECT 1;", 1),
        ("/* é 漢 */ EXPLAIN /* 漢 */ ANALYZE SELECT '漢' FROM segments", 1),
        ("EXPLAIN SELECT '漢', * FROM segments", 1),
        ("PIVOT segments ON boundary_faces IN (0, 2) USING count(*) GROUP BY supervoxels", 2),
        ("SELECT DISTINCT before FROM (SELECT unnest(before_roots) AS before FROM ops.operations)", 0),
    ],
)
def test_ordinary_questions_pass(snapshot, query, rows) -> None:
    assert len(snapshot.sql(query)) == rows


@pytest.mark.parametrize(
    ("query", "kind", "message", "fix"),
    [
        ("SELEC 1", BadInput, "syntax error", "correct"),
        ("SELECT nothing FROM segments", BadInput, "nothing", "correct"),
        ("SELECT 1/'a'", BadInput, "Conversion|convert", "correct"),
        ("FROM segmnts", TableNotFound, "segmnts", "'segments'"),
        ("FROM tiles", TableNotFound, "tiles", "archive.tiles"),
        ("FROM ops.release", TableNotFound, "ops.release", "'ops.releases'"),
        ("FROM skeleton_nodes", TableNotFound, "main.skeleton_nodes", "has not been written"),
        ("FROM v_orphan", TableNotFound, "v_orphan", "'v_orphans'"),
    ],
)
def test_a_mistake_gets_one_clear_error(snapshot, query, kind, message, fix) -> None:
    with pytest.raises(kind, match=message) as caught:
        snapshot.sql(query)
    assert fix in caught.value.fix


def test_a_query_that_takes_too_long_is_stopped(snapshot) -> None:
    with pytest.raises(QueryRefused, match=r"longer than 0\.2 s"):
        snapshot.sql("SELECT count(*) FROM range(100000000) AS a, range(100000) AS b", timeout_s=0.2)
    assert snapshot.sql("SELECT 1").rows() == [(1,)]


@pytest.mark.parametrize("terms", [900, 5000])
def test_a_statement_nested_too_deeply_is_refused_not_a_crash(snapshot, terms) -> None:
    with pytest.raises(BadInput, match=r"nested too deeply|depth"):
        snapshot.sql("SELECT " + "+".join(["1"] * terms))
    assert snapshot.sql("SELECT " + "(" * 50 + "1" + ")" * 50).rows() == [(1,)]


def test_every_error_is_one_of_ours(snapshot) -> None:
    for query in ("SELECT error('x')", "SELECT [1][", "SELECT $a", "\x00"):
        with pytest.raises(LakeError):
            snapshot.sql(query)
