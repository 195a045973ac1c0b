"""SQL files: headers that are true, checked against what DuckDB makes of each statement."""

from collections.abc import Iterator

import pytest

import sql
from lake.errors import BadInput, NotFound
from lake.query import Database, Schema
from lake.schemas import TABLES
from sql import SqlFile, library, load, parse

VALUES = {"BIGINT": 1, "VARCHAR": "x", "DOUBLE": 1.0}
OWN = ("snapshot", "snapshot_runs", "manifest_quarantines")


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[Database]:
    """Every declared table, empty, and another snapshot's data tables as `old`; all views."""
    import lake

    repo = lake.create(tmp_path_factory.mktemp("lake") / "repo")
    own = repo.snapshot("main")._own_rows()
    assert tuple(own) == OWN
    by_branch = {
        schema: tuple(spec for spec in TABLES.values() if spec.branch == branch)
        for schema, branch in (("main", "data"), ("archive", "archive"), ("ops", "ops"), ("old", "data"))
    }
    schemas = {name: Schema({}, own if name == "main" else {}, specs) for name, specs in by_branch.items()}
    made = Database(schemas, [file for file in library().values() if file.kind == "view"], {})
    yield made
    made.close()
    repo.close()


def files(kind: str = "") -> list[SqlFile]:
    return [file for file in library().values() if kind in ("", file.kind)]


def names(file: SqlFile) -> str:
    return file.name


def test_there_are_views_and_queries() -> None:
    assert {"v_synapses_valid", "v_orphans", "v_release_history"} <= {file.name for file in files("view")}
    assert len(files("query")) >= 6


@pytest.mark.parametrize("file", files(), ids=names)
def test_the_header_states_the_columns_that_duckdb_finds(database, file: SqlFile) -> None:
    text = f"SELECT * FROM main.{file.name}" if file.kind == "view" else file.text
    given = {name: VALUES[kind] for name, kind in file.parameters}
    found = database.run(f"DESCRIBE {text}", given).rows()
    assert [(row[0], row[1]) for row in found] == list(file.columns)


@pytest.mark.parametrize("file", files(), ids=names)
def test_the_header_names_every_relation_that_is_read(database, file: SqlFile) -> None:
    from lake.sandbox import relations_of

    with database.cursor() as cursor:
        found = relations_of(cursor, file.text)
    assert found == set(file.reads)
    assert all("." in name for name in file.reads)


@pytest.mark.parametrize("file", files(), ids=names)
def test_a_statement_runs_on_empty_tables(database, file: SqlFile) -> None:
    text = f"SELECT * FROM main.{file.name}" if file.kind == "view" else file.text
    assert database.run(text, {name: VALUES[kind] for name, kind in file.parameters}).rows() == []


@pytest.mark.parametrize("file", files("query"), ids=names)
def test_rows_of_a_query_come_in_a_stated_order(file: SqlFile) -> None:
    assert "ORDER BY" in file.text.rsplit(")", 1)[-1] or file.text.rstrip().rsplit("\n", 1)[-1].startswith("ORDER BY")


def test_every_view_can_be_made(database) -> None:
    assert set(database.views) == {file.name for file in files("view")}


HEADER = """-- name:     a
-- kind:     query
-- purpose:  One sentence,
--           on two lines.
-- reads:    main.segments, ops.runs
-- grain:    one row
-- columns:  root_id BIGINT, ts TIMESTAMP WITH TIME ZONE
-- parameters: $root_id BIGINT
-- units:    none
-- owner:    lake
SELECT 1;
"""


def test_a_header_is_read() -> None:
    file = parse(HEADER, "a.sql")
    assert file.purpose == "One sentence, on two lines."
    assert file.reads == ("main.segments", "ops.runs")
    assert file.columns == (("root_id", "BIGINT"), ("ts", "TIMESTAMP WITH TIME ZONE"))
    assert file.parameters == (("root_id", "BIGINT"),)
    assert file.text == "SELECT 1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-- grain:    one row\n", "", "lacks 'grain'"),
        ("kind:     query", "kind:     table", "kind 'table'"),
        ("root_id BIGINT,", "root_id,", "'root_id' has no type"),
        ("-- owner:    lake", "-- owner:    lake\n-- owner:    me", "'-- owner:    me' cannot be read"),
        ("-- name:     a", "-- nam:      a", "cannot be read"),
    ],
)
def test_a_header_that_is_wrong_says_where(old: str, new: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(HEADER.replace(old, new), "a.sql")


def test_a_file_is_found_by_name_or_the_nearest_is_named() -> None:
    assert load("tiles_of_segment").kind == "query"
    with pytest.raises(NotFound, match="tile_of_segment") as caught:
        load("tile_of_segment")
    assert "tiles_of_segment" in caught.value.fix
    assert sql.__doc__
