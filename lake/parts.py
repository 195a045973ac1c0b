"""Parquet files of a table that is yet to take them in: what a block of a stage leaves."""

import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lake import reach
from lake.columns import TableSpec
from lake.digests import bytes_digest
from lake.errors import BadInput, NoRoom
from lake.kv import NATIVE_ERRORS, open_kv, storage_error
from lake.location import Location
from lake.room import allocated, no_room
from lake.rows import Rows, conform, rows_digest, statistics
from lake.schemas import table_spec

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
    check_writable(location)
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
    try:
        reach.settle(open_kv(location).write(path, data), location)
    except NATIVE_ERRORS as error:
        raise storage_error(error, location, allocated([len(data)])) from error
    return Part(
        spec.name,
        path,
        len(data),
        table.num_rows,
        partition,
        statistics(stored, spec),
        rows_digest(table, spec),
    )


def part_at(location: Location, spec: TableSpec, path: str) -> Part:
    """Describe a Parquet file that lies below the table's folder, from its bytes."""
    try:
        data = reach.settle(open_kv(location).read(path), location).value
        stored = pq.ParquetFile(pa.BufferReader(data)).read()
    except NATIVE_ERRORS as error:
        raise storage_error(error, location) from error
    partition = dict(piece.split("=", 1) for piece in path.split("/")[:-1])
    whole = stored
    for column, value in partition.items():
        whole = whole.append_column(column, pa.repeat(pa.scalar(value), stored.num_rows))
    digest = rows_digest(conform(whole, spec), spec)
    return Part(spec.name, path, len(data), stored.num_rows, partition, statistics(stored, spec), digest)


def write_parts(location: Location, spec: TableSpec, rows: Rows) -> list[Part]:
    """Write rows as one file per partition, each under a name that was never used before."""
    check_writable(location)
    table = conform(rows, spec)
    # A fresh name each time: rows appended twice are two files, not one.
    stem = f"part-{uuid.uuid4().hex[:12]}"
    if not spec.partition_by:
        return [_write_part(location, spec, table, stem, {})] if table.num_rows else []
    (column,) = spec.partition_by
    frame = pl.DataFrame(pl.from_arrow(table))
    parts: list[Part] = []
    with unless_no_room(location, parts):
        for (key,), group in frame.group_by(column, maintain_order=True):
            parts.append(_write_part(location, spec, group.to_arrow().cast(spec.schema), stem, {column: str(key)}))
    return parts


@contextmanager
def unless_no_room(location: Location, parts: Sequence[Part]) -> Iterator[None]:
    """Remove parts that nobody can refer to yet, when the disk is too full for what makes them count.

    On a server that would free nothing: they are staged, and go with the session that staged them.
    """
    try:
        yield
    except NoRoom as error:
        if location.s3 is not None:
            raise
        for part in parts:
            (location.path / part.path).unlink(missing_ok=True)
        needed = error.needed + allocated(part.bytes for part in parts)
        raise no_room(location.path, needed, error.code) from error


def check_writable(location: Location) -> None:
    """Raise `BadInput` unless a location may be written to."""
    if not location.writable:
        raise BadInput(f"{location.uri} is read-only", fix="write to session.workspace('tables/<name>/')")
