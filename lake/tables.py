"""Delta tables: checked rows in, Parquet parts with statistics, one Delta commit, polars out.

Every write goes the same way: rows are conformed (`lake.rows`), cut by partition into Parquet files that hold their
content's digest in their name, and enter the table by one Delta commit of add and remove actions. So many workers can
write parts of one table (`lake.parts`), one commit makes them all visible, and a commit that is repeated after a crash
changes nothing.

Traps this module keeps shut: a Delta log is never trimmed (`delta.enableExpiredLogCleanup=false`) and nothing is ever
vacuumed, since older commits of the repository need it; tables are never read through pyarrow datasets, which abort
the process at exit; unsigned integers never reach Delta.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from lake import reach
from lake import rows as rows_of
from lake.columns import TableSpec
from lake.errors import BadInput, ConflictError, CorruptObject, SchemaMismatch, TableNotFound, nearest
from lake.integrity import ACCEPT
from lake.kv import NATIVE_ERRORS, list_keys, open_kv, storage_error
from lake.location import Location
from lake.parts import Part, check_writable, part_at, unless_no_room, write_part, write_parts
from lake.room import allocated
from lake.rows import Rows, rows_digest
from lake.schemas import TABLES, table_spec
from lake.wording import counted

__all__ = [
    "TABLES",
    "Part",
    "append",
    "collect",
    "commit_parts",
    "content_digest",
    "drop_files",
    "overwrite",
    "read",
    "rebuild",
    "replace_region",
    "table_exists",
    "table_rows",
    "version",
    "write_part",
]

Mode = Literal["append", "overwrite"]
_LOG = ts.KvStore.KeyRange("_delta_log/", "_delta_log0")
_LOG_START = ts.KvStore.KeyRange("_delta_log/00000000000000000000", "_delta_log/00000000000000000000a")
_COMMITTED = re.compile(rb"_delta_log/\d{20}(\.checkpoint(\..+)?\.parquet|\.json)")
_LOG_LINE = 1024  # bytes of a file's line in the log, statistics apart
_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}


# -- writing ------------------------------------------------------------------------------------------------------
def append(location: Location, name: str, rows: Rows) -> int:
    """Add rows to a table, or make it with them, in one Delta commit; give the Delta version."""
    return _write_and_commit(location, name, rows, "append")


def overwrite(location: Location, name: str, rows: Rows) -> int:
    """Replace all rows in one Delta commit; give the Delta version."""
    return _write_and_commit(location, name, rows, "overwrite")


def replace_region(location: Location, name: str, region: str | Collection[str], rows: Rows) -> int:
    """Replace the rows of one or more regions in one Delta commit; give the Delta version.

    Raises `BadInput` if the table is not partitioned by region, or a row lies in another one.
    """
    regions = {region} if isinstance(region, str) else set(region)
    return _write_and_commit(location, name, rows, "overwrite", regions)


def _write_and_commit(
    location: Location, name: str, rows: Rows, mode: Mode, regions: Collection[str] | None = None
) -> int:
    parts = write_parts(location, table_spec(name), rows)
    with unless_no_room(location, parts):
        return commit_parts(location, name, parts, mode, regions)


def commit_parts(
    location: Location,
    name: str,
    parts: Sequence[Part],
    mode: Mode = "append",
    regions: Collection[str] | None = None,
) -> int:
    """Let written parts enter the table in one Delta commit; give the Delta version.

    Parameters
    ----------
    mode : "append" or "overwrite"
        Whether to keep what the table holds. A part that the table holds already is left as it is, so the same call
        again changes nothing.
    regions : collection of region names
        With "overwrite": replace these partitions only; every part must lie in one of them.

    Raises
    ------
    RootCollision
        `segments` or `agglomeration` would hold one id twice.
    ConflictError
        Another writer committed to the same files meanwhile.

    Notes
    -----
    A table that lacks nullable columns which were declared later gets them first, by a Delta commit of their own.
    """
    spec = table_spec(name)
    check_writable(location)
    _check_parts(parts, spec, mode, regions)
    with _translated(location, name, allocated(_LOG_LINE + len(part.statistics) for part in parts)):
        if not _is_table(location):
            check_roots(location, spec, [part.path for part in parts])
            _create(location, spec, parts)
            return 0
        table = _open(location, name)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
        present = {str(action["path"]) for action in actions}
        new = {part.path: part for part in parts if part.path not in present}
        wanted = {part.path for part in parts}
        removed = [a for a in actions if mode == "overwrite" and a["path"] not in wanted and _in(a, regions)]
        if not new and not removed:
            return int(table.version())
        gone = {str(action["path"]) for action in removed}
        check_roots(location, spec, sorted((present - gone) | set(new)))
        _widen(table, spec)
        _change(table, spec, [*(_add(part) for part in new.values()), *(_remove(action, spec) for action in removed)])
        return int(_open(location, name).version())


def drop_files(location: Location, name: str, paths: Collection[str]) -> int:
    """Take data files out of a table in one Delta commit; give how many rows they had, by the log.

    For files that are lost: none is opened, and none need be there. What the table does not hold is ignored.
    """
    spec = table_spec(name)
    check_writable(location)
    with _translated(location, name, allocated([_LOG_LINE * len(paths)])):
        table = _open(location, name)
        actions = [a for a in pa.table(table.get_add_actions(flatten=True)).to_pylist() if a["path"] in paths]
        if actions:
            _change(table, spec, [_remove(action, spec) for action in actions])
        return sum(int(action["num_records"]) for action in actions)


def rebuild(location: Location, name: str) -> int:
    """Make a log for the data files that lie here without one, which become the table; give how many rows they have.

    For a table whose log is lost, and to which rows were only ever added. Where there is no file, no table is made.
    Raises `BadInput` if anything is left of a log.
    """
    spec = table_spec(name)
    check_writable(location)
    keys = list_keys(location)
    if any(key.startswith("_delta_log/") for key in keys):
        raise BadInput(f"{location.uri} has a log", fix="remove what is left of it first")
    paths = [key for key in keys if key.endswith(".parquet")]
    with _translated(location, name):
        parts = [part_at(location, spec, path) for path in paths]
        if parts:
            _create(location, spec, parts)
        return sum(part.rows for part in parts)


def _widen(table: DeltaTable, spec: TableSpec) -> None:
    """Add the nullable columns that were declared since the table was made: Delta would leave out what is in them."""
    known = {field.name for field in table.schema().fields}
    new = [field for field in Schema.from_arrow(spec.schema).fields if field.nullable and field.name not in known]
    if new:
        table.alter.add_columns(new)


def _change(table: DeltaTable, spec: TableSpec, actions: Sequence[AddAction | RemoveAction]) -> None:
    schema = Schema.from_arrow(spec.schema)
    table.create_write_transaction(list(actions), "append", schema, partition_by=list(spec.partition_by) or None)


def _check_parts(parts: Sequence[Part], spec: TableSpec, mode: str, regions: Collection[str] | None) -> None:
    if len({part.path for part in parts}) != len(parts):
        raise BadInput(f"a part of table {spec.name} was given twice", fix="give each part once")
    for part in parts:
        if part.table != spec.name:
            raise BadInput(f"part {part.path} belongs to table {part.table}, not {spec.name}", fix="sort the parts")
    if regions is None:
        return
    if mode != "overwrite" or "region" not in spec.partition_by:
        raise BadInput(
            f"regions of table {spec.name} cannot be replaced by {mode}",
            fix="use mode='overwrite' on a table partitioned by region",
        )
    for part in parts:
        if part.partition["region"] not in regions:
            raise BadInput(
                f"part {part.path} lies outside the regions to be replaced: {sorted(regions)[:4]}",
                fix="name all regions that the new rows lie in",
            )


def check_roots(location: Location, spec: TableSpec, paths: Sequence[str]) -> None:
    """Raise `RootCollision` if the files together hold one id twice; other tables are not looked at."""
    if spec.name not in ("segments", "agglomeration") or len(paths) < 2:
        return
    uris = [f"{location.uri}/{path}" for path in paths]
    keys = pl.scan_parquet(uris, storage_options=location.scan_options or None).select(spec.sort_key).collect()
    rows_of.check_unique(keys.to_arrow(), spec)


def _create(location: Location, spec: TableSpec, parts: Sequence[Part]) -> None:
    create_table_with_add_actions(
        location.uri,
        Schema.from_arrow(spec.schema),
        [_add(part) for part in parts],
        mode="error",
        partition_by=list(spec.partition_by) or None,
        name=spec.name,
        description=spec.doc,
        configuration=_CONFIGURATION,
        storage_options=location.storage_options,
    )


def _add(part: Part) -> AddAction:
    return AddAction(part.path, part.bytes, part.partition, 0, True, part.statistics)


def _remove(action: Mapping[str, Any], spec: TableSpec) -> RemoveAction:
    partition = {column: str(action[f"partition.{column}"]) for column in spec.partition_by}
    return RemoveAction(str(action["path"]), True, 0, int(action["size_bytes"]), partition)


def _in(action: Mapping[str, Any], regions: Collection[str] | None) -> bool:
    return regions is None or action["partition.region"] in regions


# -- reading ------------------------------------------------------------------------------------------------------
def table_exists(location: Location) -> bool:
    """Tell whether there is a Delta table here."""
    with _translated(location, location.root):
        return _is_table(location)


def _is_table(location: Location) -> bool:
    if location.s3 is None:
        return bool(DeltaTable.is_deltatable(location.uri))
    # delta-rs would hold the interpreter's lock while it waits for a server, and no thread could end that.
    kv = open_kv(location)
    # All of a long log takes many requests, and it begins with the first.
    listings = (reach.settle(kv.list(log), location) for log in (_LOG_START, _LOG))
    return any(_COMMITTED.fullmatch(key) for keys in listings for key in keys)


def read(location: Location) -> pl.LazyFrame:
    """Give the table's rows, lazily; `TableNotFound` if there is none, `CorruptObject` if a file was cut."""
    with _translated(location, location.root):
        table = _open(location, location.root)
        if location.s3 is None:
            for path, size in _files(table):
                # A cut file would make polars panic, which no handler of ours sees.
                _check_size(location, path, os.path.getsize(location.path / path), size)
        return pl.scan_delta(table, storage_options=location.scan_options or None)


def collect(rows: pl.LazyFrame) -> pl.DataFrame:
    """Collect rows of tables as polars does; `ServerUnreachable` if that failed and the server has gone."""
    try:
        return rows.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        if (told := reach.lost_behind(error)) is not None:
            raise told from error
        raise


def _files(table: DeltaTable) -> list[tuple[str, int]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    return list(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))


def _check_size(location: Location, path: str, size: int, recorded: int) -> None:
    if size != recorded:
        raise CorruptObject(
            f"{location.uri}/{path} has {counted(size, 'byte')}, the table's log says {recorded:,}",
            fix=f"run `emlake scrub`, and restore the object from a clone; {ACCEPT}",
        )


def version(location: Location) -> int:
    """Give the Delta version, from 0; `TableNotFound` if there is no table."""
    with _translated(location, location.root):
        return int(_open(location, location.root).version())


def table_rows(location: Location) -> int:
    """Count rows from the log's statistics, without opening a data file; `TableNotFound` if there is no table."""
    with _translated(location, location.root):
        actions = pa.table(_open(location, location.root).get_add_actions(flatten=True))
        return sum(actions.column("num_records").to_pylist())


def content_digest(location: Location, name: str) -> str:
    """Digest the table's rows: independent of their order, of files, of the engine; volatile columns are left out."""
    spec = table_spec(name)
    with _translated(location, name):
        table = _open(location, name)
        kv = open_kv(location)
        pieces = [
            _piece(location, spec, kv, action) for action in pa.table(table.get_add_actions(flatten=True)).to_pylist()
        ]
    return rows_digest(pa.concat_tables([spec.schema.empty_table(), *pieces]), spec)


def _piece(location: Location, spec: TableSpec, kv: Any, action: Mapping[str, Any]) -> pa.Table:
    """Read one data file whole, with its partition values, in the declared schema."""
    path = str(action["path"])
    found = reach.settle(kv.read(path), location)
    if found.state != "value":
        raise CorruptObject(
            f"{location.uri}/{path} is missing", fix=f"run `emlake scrub`, and restore it from a clone; {ACCEPT}"
        )
    _check_size(location, path, len(found.value), int(action["size_bytes"]))
    rows = pq.ParquetFile(pa.BufferReader(found.value)).read()
    columns = []
    for field in spec.schema:
        if field.name in spec.partition_by:
            columns.append(pa.repeat(pa.scalar(str(action[f"partition.{field.name}"])), rows.num_rows))
        elif field.name in rows.column_names:
            columns.append(rows.column(field.name).cast(field.type))
        elif field.nullable:
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            raise SchemaMismatch(
                f"table {spec.name} lacks column {field.name}", fix="it was written by another version"
            )
    return pa.table(columns, schema=spec.schema)


def _open(location: Location, name: str) -> DeltaTable:
    try:
        return DeltaTable(location.uri, storage_options=location.storage_options)
    except TableNotFoundError as error:
        raise TableNotFound(f"there is no table at {name}", fix=f"known tables: {', '.join(TABLES)}") from error


@contextmanager
def _translated(location: Location, name: str, needed: int = 0) -> Iterator[None]:
    """Turn the errors of delta-rs, object stores and Parquet into ours; a server that has gone is found out first."""
    reach.check(location)
    try:
        yield
    except TableNotFoundError as error:
        raise TableNotFound(f"there is no table {name} at {location.uri}", fix=nearest(name, TABLES)) from error
    except SchemaMismatchError as error:
        raise SchemaMismatch(f"table {name}: {error}", fix="it was written by another version") from error
    except CommitFailedError as error:
        raise ConflictError(f"table {name}: {error}", fix="open the table again and repeat the change") from error
    except (DeltaError, pl.exceptions.PolarsError, *NATIVE_ERRORS) as error:
        # Arrow's error for bytes that are no Parquet file is a ValueError too.
        raise storage_error(error, location, needed) from error
