"""DuckDB over a pinned set of Delta tables: one locked database in memory per snapshot, results as asked."""

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa

from lake import reach, sandbox
from lake.columns import TableSpec
from lake.errors import BadInput, LakeError, QueryRefused, StorageError
from lake.kv import storage_error
from lake.location import Location, S3Access
from lake.room import code_of, no_room
from sql import SqlFile

Parameters = Sequence[object] | Mapping[str, object]
_TYPES = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP WITH TIME ZONE",
    "list<int64>": "BIGINT[]",
    "list<string>": "VARCHAR[]",
    "list<float64>": "DOUBLE[]",
}


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The rows of a query, in memory. Integers beyond int64 (sums of ids) come as decimals, all others as int64."""

    table: pa.Table

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names."""
        return tuple(self.table.column_names)

    def arrow(self) -> pa.Table:
        """Give an Arrow table."""
        return self.table

    def polars(self) -> pl.DataFrame:
        """Give a polars frame."""
        return pl.DataFrame(pl.from_arrow(self.table))

    def pandas(self) -> pd.DataFrame:
        """Give a pandas frame; integer columns with NULL are nullable integers, since ids must not become floats."""
        return cast(pd.DataFrame, self.table.to_pandas(types_mapper=_pandas_types().get))

    def rows(self) -> list[tuple[Any, ...]]:
        """Give tuples of Python values."""
        return list(zip(*(column.to_pylist() for column in self.table.columns), strict=True)) if self.columns else []

    def __len__(self) -> int:
        return int(self.table.num_rows)


def _pandas_types() -> dict[pa.DataType, Any]:
    return {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True, slots=True)
class Schema:
    """What one schema of the database holds.

    Parameters
    ----------
    tables : mapping of name to Location
        Delta tables to attach.
    rows : mapping of name to Arrow table
        Small tables held in memory.
    empty : tuple of TableSpec
        Tables that do not exist and read as empty.
    """

    tables: Mapping[str, Location]
    rows: Mapping[str, pa.Table]
    empty: tuple[TableSpec, ...] = ()


class Database:
    """A locked DuckDB database: tables and views are made at the start, afterwards it can only be read.

    Safe to share between threads: every query runs on a cursor of its own.
    """

    def __init__(self, schemas: Mapping[str, Schema], views: Sequence[SqlFile], absent: Mapping[str, str]) -> None:
        self._spill = Path(tempfile.gettempdir()) / f"emlake-sql-{uuid.uuid4().hex}"
        self._root = _connect(self._spill)
        self._lock = threading.Lock()
        self._absent = dict(absent)
        self._known: set[str] = set()
        self._locations = [place for schema in schemas.values() for place in schema.tables.values()]
        try:
            server = next((place for place in self._locations if place.s3 is not None), None)
            if server is None:
                self._build(schemas, views)
            else:
                self._build_watched(server, schemas, views)
        except (duckdb.Error, LakeError) as error:
            raise translate(error) if isinstance(error, duckdb.Error) else error from error

    def _build_watched(self, server: Location, schemas: Mapping[str, Schema], views: Sequence[SqlFile]) -> None:
        """Build on a thread that is left behind if the server goes: it ends by itself, and the interpreter after it.

        The extension that reads Delta tables repeats a request ten times, with pauses, and cannot be interrupted.
        """
        pool = ThreadPoolExecutor(1)
        building = pool.submit(self._build, schemas, views)
        pool.shutdown(wait=False)
        try:
            reach.settle(building, server)
        except LakeError:
            building.add_done_callback(lambda _: self.close())
            raise

    def _build(self, schemas: Mapping[str, Schema], views: Sequence[SqlFile]) -> None:
        try:
            self._load(self._locations)
            for name, schema in schemas.items():
                self._add(name, schema)
            self.views = self._add_views(views)
            self._close_doors(self._locations)
        except BaseException:
            self.close()
            raise

    @property
    def relations(self) -> tuple[str, ...]:
        """Tables and views that can be queried, as `schema.name`, sorted."""
        return tuple(sorted(self._known))

    def run(self, sql: str, parameters: Parameters = (), *, timeout_s: float | None = None) -> Result:
        """Run one SELECT of a user; see `lake.sandbox.check` for what is refused.

        Parameters
        ----------
        parameters : sequence or mapping
            For `?` or `$name` placeholders.
        timeout_s : float
            `QueryRefused` if it takes longer.
        """
        self._check_server()
        cursor = self.cursor()
        try:
            sandbox.check(cursor, sql, self._known, self._absent)
            return Result(_plain(self._fetch(cursor, sql, parameters, timeout_s)))
        except duckdb.InterruptException as error:
            raise QueryRefused(
                f"the query took longer than {timeout_s} s", fix="narrow it, or allow more time"
            ) from error
        except duckdb.Error as error:
            raise translate(error) from error
        finally:
            cursor.close()

    def _check_server(self) -> None:
        # The extension that reads Delta tables has no setting for time: it tries for three minutes.
        for place in self._locations:
            reach.check(place)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Give a cursor of one's own, for libraries that speak DuckDB: trusted code, held by the settings alone."""
        with self._lock:
            return self._root.cursor()

    def _fetch(
        self, cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters, timeout_s: float | None
    ) -> pa.Table:
        timer = None if timeout_s is None else threading.Timer(timeout_s, cursor.interrupt)
        if timer is not None:
            timer.start()
        try:
            given = parameters if isinstance(parameters, Mapping) else list(parameters)
            return cursor.execute(sql, given or None).to_arrow_table()
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Close the database; what was fetched stays valid."""
        self._root.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    # -- building ---------------------------------------------------------------------------------------------------
    def _load(self, locations: Sequence[Location]) -> None:
        self._check_server()
        if locations:
            self._root.execute(f"LOAD {_quote(extension('delta'))}")
        accesses: dict[str, S3Access] = {}
        for place in locations:
            if place.s3 is not None:
                accesses[place.root.partition("/")[0]] = place.s3
        if accesses:
            self._root.execute(f"LOAD {_quote(extension('httpfs'))}")
        for number, (bucket, access) in enumerate(sorted(accesses.items())):
            secure, _, host = access.endpoint.partition("://")
            self._root.execute(
                f"CREATE SECRET s{number} (TYPE s3, KEY_ID {_quote(access.access_key_id)}, "
                f"SECRET {_quote(access.secret_access_key)}, REGION {_quote(access.region)}, "
                f"ENDPOINT {_quote(host.rstrip('/'))}, URL_STYLE 'path', USE_SSL {str(secure == 'https').lower()}, "
                f"SCOPE {_quote(f's3://{bucket}/')})"
            )

    def _add(self, name: str, schema: Schema) -> None:
        if name != "main":
            self._root.execute(f"CREATE SCHEMA {_name(name)}")
        for table, place in sorted(schema.tables.items()):
            database = _name(f"{name}~{table}")
            self._root.execute(f"ATTACH {_quote(place.uri)} AS {database} (TYPE delta, READ_ONLY, PIN_SNAPSHOT)")
            self._root.execute(f"CREATE VIEW {_name(name)}.{_name(table)} AS SELECT * FROM {database}")
        for table, rows in sorted(schema.rows.items()):
            self._root.register("_rows", rows)
            self._root.execute(f"CREATE TABLE {_name(name)}.{_name(table)} AS SELECT * FROM _rows")
            self._root.unregister("_rows")
        for spec in schema.empty:
            columns = ", ".join(f"{_name(column.name)} {_TYPES[column.type]}" for column in spec.columns)
            self._root.execute(f"CREATE TABLE {_name(name)}.{_name(spec.name)} ({columns})")
        here = {*schema.tables, *schema.rows, *(spec.name for spec in schema.empty)}
        self._known |= {f"{name}.{table}".lower() for table in here}

    def _add_views(self, views: Sequence[SqlFile]) -> dict[str, SqlFile]:
        """Make the views whose relations are all here, in an order in which each finds what it reads."""
        made: dict[str, SqlFile] = {}
        waiting = list(views)
        while True:
            ready = [view for view in waiting if set(view.reads) <= self._known]
            if not ready:
                break
            for view in ready:
                self._root.execute(f"CREATE VIEW main.{_name(view.name)} AS {view.text}")
                made[view.name] = view
                self._known.add(f"main.{view.name}")
            waiting = [view for view in waiting if view not in ready]
        for view in waiting:
            lacking = ", ".join(sorted(set(view.reads) - self._known))
            self._absent[f"main.{view.name}"] = (
                f"the view needs {lacking}, not in this snapshot; run the stage that writes it"
            )
        return made

    def _close_doors(self, locations: Sequence[Location]) -> None:
        folders = sorted({f"{place.uri}/" for place in locations})
        if behind := sorted({path for place in locations for path in _behind_links(place)}):
            self._root.execute(f"SET allowed_paths=[{', '.join(map(_quote, behind))}]")
        self._root.execute(f"SET allowed_directories=[{', '.join(map(_quote, folders))}]")
        self._root.execute("SET enable_external_access=false")
        self._root.execute("SET lock_configuration=true")


def _behind_links(place: Location) -> Iterator[str]:
    """Give the files that are shown in a folder by symbolic links, which DuckDB takes for what they lead to."""
    for folder, _, names in os.walk(place.path) if place.s3 is None else ():
        for path in (os.path.join(folder, name) for name in names):
            if os.path.islink(path):
                yield os.path.realpath(path)


def _connect(spill: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        # Else `FROM frame` would find a Python variable of that name in the caller.
        "python_enable_replacements": "false",
        # The files were verified when this process loaded them first (`extension`); again it would cost 0.3 s each.
        "allow_unsigned_extensions": "true",
        "temp_directory": str(spill),
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET GLOBAL TimeZone='UTC'")
    return connection


@cache
def extension(name: str) -> str:
    """Give the path of an extension's file in its wheel, after DuckDB has verified its signature once."""
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(
            f"the DuckDB extension {name} is not installed",
            fix=f"pip install duckdb-extension-{name}=={duckdb.__version__}",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not path.exists():
        raise StorageError(
            f"the DuckDB extension {name} has no file for DuckDB {duckdb.__version__}",
            fix=f"pip install duckdb-extension-{name}=={duckdb.__version__}",
        )
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"}) as connection:
        connection.execute(f"LOAD {_quote(str(path))}")
    return str(path)


def translate(error: duckdb.Error) -> LakeError:
    """Turn an error of DuckDB into ours."""
    text = str(error).strip()
    if code_of(error, tempfile.gettempdir()) or "max_temp_directory_size" in text:
        # Its own limit, by default, is what the disk had free when the query began.
        full = no_room(tempfile.gettempdir(), 0)
        full.fix = "narrow the query, or make room for temporary files there (TMPDIR names another place)"
        return full
    if isinstance(error, duckdb.PermissionException):
        return QueryRefused(f"SQL: {text}", fix="queries read the tables and views of the snapshot, nothing else")
    if isinstance(error, duckdb.IOException | duckdb.HTTPException):
        return reach.lost_behind(error) or storage_error(error, Location("tables of the snapshot"))
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"SQL: {text}", fix="narrow the query, or free memory and space for temporary files")
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return StorageError(f"SQL: {text}", fix="open the snapshot again; a table may be damaged: try emlake doctor")
    return BadInput(f"SQL: {text}", fix="correct the statement; `SHOW ALL TABLES` lists tables, views and columns")


def _plain(table: pa.Table) -> pa.Table:
    """Turn 128-bit integers into int64 where all values fit: DuckDB sums of int64 are 128 bits wide."""
    for index, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type) and field.type.scale == 0 and field.type.precision == 38:
            try:
                column = table.column(index).cast(pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(index, field.name, column)
    return table


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
