"""Delta tables: checked rows in, Parquet parts with statistics, one Delta commit, polars out.

Every write goes the same way: rows are conformed (`lake.rows`), cut by partition into Parquet files that hold their
content's digest in their name, and enter the table by one Delta commit of add and remove actions. So many workers can
write parts of one table, one commit makes them all visible, and a commit that is repeated after a crash changes nothing.

Traps this module keeps shut: a Delta log is never trimmed (`delta.enableExpiredLogCleanup=false`) and nothing is ever
vacuumed, since older commits of the repository need it; tables are never read through pyarrow datasets, which abort
the process at exit; unsigned integers never reach Delta.
"""

import io
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from lake import rows as rows_of
from lake.columns import TableSpec
from lake.digests import bytes_digest
from lake.errors import BadInput, ConflictError, SchemaMismatch, TableNotFound, nearest
from lake.kv import open_kv, storage_error
from lake.location import Location
from lake.rows import Rows, conform, rows_digest
from lake.schemas import TABLES, table_spec

__all__ = [
    "TABLES",
    "Part",
    "append",
    "commit_parts",
    "content_digest",
    "overwrite",
    "read",
    "replace_region",
    "table_exists",
    "table_rows",
    "version",
    "write_part",
]

_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}
_ROW_GROUP = 122_880
PartitionValues = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file that is written but not yet in its table; plain data, so a ledger can keep it as JSON.

    Parameters
    ----------
    path : str
        Below the table's folder, e.g. `region=0_1_0/watershed-0_1_0-<digest>.parquet`.
    partition : dict
        Partition column to value; empty for a table without partitions.
    statistics : str
        Delta statistics, JSON.
    digest : str
        `rows_digest` of its rows: the output digest of the block that wrote it.
    """

    table: str
    path: str
    bytes: int
    rows: int
    partition: dict[str, str]
    statistics: str
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Part":
        """Read back what `to_json` gave."""
        return cls(**fields)


# -- writing ------------------------------------------------------------------------------------------------------
def write_part(
    location: Location, name: str, rows: Rows, part_name: str, partition: PartitionValues | None = None
) -> Part:
    """Write rows as one Parquet file below the table's folder, without touching the table.

    Parameters
    ----------
    part_name : str
        Begins the file's name; the digest of its bytes ends it, so equal content is the same file and a rewritten
        part never changes a file that an older version of the table refers to.
    partition : mapping
        Value of each partition column, and the only one in `rows`; may be left out if `rows` has one value.

    Raises
    ------
    SchemaMismatch, RootCollision
        See `lake.rows.conform`.
    """
    spec = table_spec(name)
    _check_writable(location)
    table = conform(rows, spec)
    return _write_part(location, spec, table, part_name, _partition_of(table, spec, partition))


def _partition_of(table: pa.Table, spec: TableSpec, given: PartitionValues | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for column in spec.partition_by:
        values = set(table.column(column).unique().to_pylist())
        if given is not None:
            if column not in given:
                raise BadInput(f"partition column {column} of table {spec.name} has no value", fix=f"give {column}")
            values.add(given[column])
        if len(values) != 1:
            raise BadInput(
                f"a part of table {spec.name} has {len(values)} values of {column}: {sorted(values)[:4]}",
                fix=f"write one part per {column}",
            )
        found[column] = values.pop()
    return found


def _write_part(
    location: Location, spec: TableSpec, table: pa.Table, part_name: str, partition: dict[str, str]
) -> Part:
    stored = table.drop_columns(list(spec.partition_by)) if spec.partition_by else table
    sink = io.BytesIO()
    # Parquet in memory: a part is one block's rows, and the same code then serves folders and S3.
    pq.write_table(stored, sink, compression="zstd", row_group_size=_ROW_GROUP)
    data = sink.getvalue()
    folder = "".join(f"{column}={value}/" for column, value in partition.items())
    path = f"{folder}{part_name.replace('/', '-')}-{bytes_digest(data)[:16]}.parquet"
    with _translated(location, spec.name):
        open_kv(location)[path] = data
    return Part(
        spec.name,
        path,
        len(data),
        table.num_rows,
        partition,
        rows_of.statistics(stored, spec),
        rows_digest(table, spec),
    )


def _write_parts(location: Location, spec: TableSpec, rows: Rows) -> list[Part]:
    _check_writable(location)
    table = conform(rows, spec)
    # A fresh name each time: rows appended twice are two files, not one.
    stem = f"part-{uuid.uuid4().hex[:12]}"
    if not spec.partition_by:
        return [_write_part(location, spec, table, stem, {})] if table.num_rows else []
    (column,) = spec.partition_by
    frame = pl.DataFrame(pl.from_arrow(table))
    return [
        _write_part(location, spec, group.to_arrow().cast(spec.schema), stem, {column: str(key)})
        for (key,), group in frame.group_by(column, maintain_order=True)
    ]


def append(location: Location, name: str, rows: Rows) -> int:
    """Add rows to a table, or make it with them, in one Delta commit; give the Delta version."""
    spec = table_spec(name)
    return commit_parts(location, name, _write_parts(location, spec, rows))


def overwrite(location: Location, name: str, rows: Rows) -> int:
    """Replace all rows in one Delta commit; give the Delta version."""
    spec = table_spec(name)
    return commit_parts(location, name, _write_parts(location, spec, rows), mode="overwrite")


def replace_region(location: Location, name: str, region: str | Collection[str], rows: Rows) -> int:
    """Replace the rows of one or more regions in one Delta commit; give the Delta version.

    Raises `BadInput` if the table is not partitioned by region, or a row lies in another one.
    """
    spec = table_spec(name)
    regions = {region} if isinstance(region, str) else set(region)
    parts = _write_parts(location, spec, rows)
    return commit_parts(location, name, parts, mode="overwrite", regions=regions)


def commit_parts(
    location: Location,
    name: str,
    parts: Sequence[Part],
    mode: Literal["append", "overwrite"] = "append",
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
    """
    spec = table_spec(name)
    _check_writable(location)
    _check_parts(parts, spec, mode, regions)
    with _translated(location, name):
        if not DeltaTable.is_deltatable(location.uri, location.storage_options):
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
        changes = [*(_add(part) for part in new.values()), *(_remove(action, spec) for action in removed)]
        schema = Schema.from_arrow(spec.schema)
        table.create_write_transaction(changes, "append", schema, partition_by=list(spec.partition_by) or None)
        return int(_open(location, name).version())


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
    options = location.storage_options or None
    keys = pl.scan_parquet(uris, storage_options=options).select(spec.sort_key).collect()
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
        return bool(DeltaTable.is_deltatable(location.uri, location.storage_options))


def read(location: Location) -> pl.LazyFrame:
    """Give the table's rows, lazily; `TableNotFound` if there is none."""
    with _translated(location, location.root):
        return pl.scan_delta(_open(location, location.root))


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
    frame = read(location).collect()
    missing = [column for column in spec.names if column not in frame.columns and not spec[column].nullable]
    if missing:
        raise SchemaMismatch(f"table {name} lacks column {missing[0]}", fix="it was written by another version")
    frame = frame.with_columns(pl.lit(None).alias(column) for column in spec.names if column not in frame.columns)
    return rows_digest(frame.select(spec.names).to_arrow().cast(spec.schema), spec)


def _open(location: Location, name: str) -> DeltaTable:
    try:
        return DeltaTable(location.uri, storage_options=location.storage_options)
    except TableNotFoundError as error:
        raise TableNotFound(f"there is no table at {name}", fix=f"known tables: {', '.join(TABLES)}") from error


def _check_writable(location: Location) -> None:
    if not location.writable:
        raise BadInput(f"{location.uri} is read-only", fix="write to session.workspace('tables/<name>/')")


@contextmanager
def _translated(location: Location, name: str) -> Iterator[None]:
    """Turn the errors of delta-rs, object stores and Parquet into ours."""
    try:
        yield
    except TableNotFoundError as error:
        raise TableNotFound(f"there is no table {name} at {location.uri}", fix=nearest(name, TABLES)) from error
    except SchemaMismatchError as error:
        raise SchemaMismatch(f"table {name}: {error}", fix="it was written by another version") from error
    except CommitFailedError as error:
        raise ConflictError(f"table {name}: {error}", fix="open the table again and repeat the change") from error
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise storage_error(error, location) from error
