"""Rows before they become a table: checked against the declaration, digested, described by statistics.

What is refused here is what Delta would store wrongly or change in silence: unsigned integers (stored as signed),
NaN and infinities (they are not NULL, and break statistics), naive times, numbers that do not fit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lake.columns import Column, TableSpec
from lake.digests import canonical_json
from lake.errors import RootCollision, SchemaMismatch, nearest

Rows: TypeAlias = pl.DataFrame | pa.Table | Sequence[Mapping[str, Any]]
_ROOT_TABLES = {"segments": "root_id", "agglomeration": "supervoxel_id"}
_LONGEST_STATISTIC = 64


def conform(rows: Rows, spec: TableSpec) -> pa.Table:
    """Give `rows` the declared columns, order and types, sorted by the table's sort key.

    Nullable columns that are missing become NULL. Integers and floats are widened; nothing is narrowed, and floats
    never become integers.

    Raises
    ------
    SchemaMismatch
        An unknown or missing column, a type that does not fit, NULL where there must be a value, a float that is not
        finite, a negative id, or two rows with one key. The message names table, column, type and value.
    RootCollision
        Two rows of `segments` with one root id, or of `agglomeration` with one supervoxel and two roots.
    """
    table = _as_arrow(rows, spec)
    unknown = [name for name in table.column_names if name not in spec.names]
    if unknown:
        raise SchemaMismatch(
            f"table {spec.name} has no column {unknown[0]!r}", fix=f"leave it out, or {nearest(unknown[0], spec.names)}"
        )
    columns = [_conform_column(table, spec, column) for column in spec.columns]
    made = pa.table(columns, schema=spec.schema)
    made = made.sort_by([(key, "ascending") for key in spec.sort_key])
    if spec.unique:
        check_unique(made, spec)
    return made


def _as_arrow(rows: Rows, spec: TableSpec) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pl.DataFrame):
        return rows.to_arrow()
    names = sorted({name for row in rows for name in row})
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise SchemaMismatch(f"rows for table {spec.name}: {error}", fix="give one type a column") from error


def _conform_column(table: pa.Table, spec: TableSpec, column: Column) -> pa.ChunkedArray:
    wanted = spec.schema.field(column.name).type
    where = f"column {column.name} of table {spec.name}"
    if column.name not in table.column_names:
        if not column.nullable:
            raise SchemaMismatch(f"{where} is missing", fix=f"give {column.type}: {column.doc}")
        return pa.chunked_array([pa.nulls(table.num_rows, wanted)])
    values = table.column(column.name)
    if not _fits(values.type, wanted):
        unsigned = pa.types.is_unsigned_integer(values.type)
        hint = "cast to int64 after checking that all values are below 2^63" if unsigned else f"give {column.type}"
        raise SchemaMismatch(f"{where} is {column.type}, the rows have {values.type}", fix=hint)
    try:
        cast = values.cast(wanted)
    except pa.ArrowInvalid as error:
        raise SchemaMismatch(f"{where}: {error}", fix=f"give values that fit {column.type}") from error
    if not column.nullable and cast.null_count:
        raise SchemaMismatch(f"{where} has {cast.null_count} NULL values", fix=f"every row needs one: {column.doc}")
    _check_values(cast, column, where)
    return cast


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether `given` may be widened to `wanted`."""
    types = pa.types
    if types.is_null(given) or given.equals(wanted):
        return True
    if types.is_int64(wanted):
        return bool(types.is_signed_integer(given))
    if types.is_float64(wanted):
        return bool(types.is_float32(given) or types.is_signed_integer(given))
    if types.is_string(wanted):
        return bool(types.is_large_string(given) or types.is_string_view(given))
    if types.is_timestamp(wanted):
        return bool(types.is_timestamp(given) and given.tz is not None)
    if types.is_list(wanted):
        is_list = types.is_list(given) or types.is_large_list(given)
        return bool(is_list and _fits(given.value_type, wanted.value_type))
    return False


def _check_values(values: pa.ChunkedArray, column: Column, where: str) -> None:
    if column.type == "float64":
        bad = pc.sum(pc.invert(pc.is_finite(values))).as_py() or 0
        if bad:
            raise SchemaMismatch(f"{where} has {bad} values that are not finite", fix="write NULL for what is unknown")
    if column.type == "int64" and (column.name == "id" or column.name.endswith("_id")):
        low = pc.min(values).as_py()
        if low is not None and low < 0:
            raise SchemaMismatch(
                f"{where} has the negative id {low}", fix="ids are 0..2^63-1; was it cast from uint64?"
            )


def check_unique(table: pa.Table, spec: TableSpec) -> None:
    """Raise if two rows share the table's key: `RootCollision` for roots, else `SchemaMismatch`."""
    keys = pl.DataFrame(pl.from_arrow(table.select(list(spec.sort_key))))
    double = keys.filter(keys.is_duplicated())
    if double.is_empty():
        return
    first = ", ".join(f"{name} {double[name][0]!r}" for name in spec.sort_key)
    if spec.name in _ROOT_TABLES:
        raise RootCollision(
            f"{double.height} rows of table {spec.name} share {first}: two voxel sets under one id",
            fix="write one row per id; if both sets are real, this is a hash collision: report it",
        )
    raise SchemaMismatch(
        f"{double.height} rows of table {spec.name} share the key {first}", fix="write one row per key"
    )


def rows_digest(table: pa.Table, spec: TableSpec) -> str:
    """Digest rows independently of their order, of files and of engines; volatile columns are left out.

    sha256 over a header (table, number of rows, columns and types), then column by column, in the order of all
    columns that count: validity as bytes, then little-endian int64 / IEEE 754 double bits (-0.0 as 0.0) / lengths and
    UTF-8 text; lists as canonical JSON text.
    """
    names = [name for name in spec.names if name not in spec.volatile]
    frame = pl.DataFrame(pl.from_arrow(table.select(names)))
    frame = frame.with_columns(_list_as_text(frame[name]) for name in names if spec[name].type.startswith("list"))
    frame = frame.with_columns(pl.col(name) + 0.0 for name in names if spec[name].type == "float64")
    keys = [name for name in spec.sort_key if name in names]
    frame = frame.sort([*keys, *(name for name in names if name not in keys)], nulls_last=False)
    header = {"table": spec.name, "rows": frame.height, "columns": [[name, spec[name].type] for name in names]}
    digest = hashlib.sha256(canonical_json(header) + b"\n")
    for name in names:
        series = frame[name]
        digest.update(series.is_not_null().cast(pl.UInt8).to_numpy().tobytes())
        for part in _encoded(series):
            digest.update(part)
    return digest.hexdigest()


def _list_as_text(series: pl.Series) -> pl.Series:
    return pl.Series(series.name, [canonical_json(list(value)).decode() for value in series.to_list()], pl.String)


def _encoded(series: pl.Series) -> list[bytes]:
    if series.dtype == pl.String:
        # Straight from Arrow's buffers: through Python text, strings cost more than all other columns together.
        filled = series.fill_null("").rechunk().to_arrow().cast(pa.large_string())
        _, offsets, data = filled.buffers()
        ends = np.frombuffer(offsets, "<i8")[filled.offset : filled.offset + len(filled) + 1]
        text = b"" if data is None else data.to_pybytes()[ends[0] : ends[-1]]
        return [np.diff(ends).tobytes(), text]
    if series.dtype == pl.Float64:
        return [series.fill_null(0.0).to_numpy().astype("<f8").tobytes()]
    if series.dtype == pl.Boolean:
        return [series.fill_null(False).cast(pl.UInt8).to_numpy().tobytes()]
    return [series.to_physical().cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").tobytes()]


def statistics(table: pa.Table, spec: TableSpec) -> str:
    """Give the Delta statistics of a file as JSON: readers skip files by them.

    Lists, flags and times have counts of NULL only; so have texts longer than 64 characters.
    """
    low: dict[str, object] = {}
    high: dict[str, object] = {}
    nulls: dict[str, int] = {}
    for name in table.column_names:
        values = table.column(name)
        nulls[name] = values.null_count
        if spec[name].type not in ("int64", "float64", "string") or values.null_count == len(values):
            continue
        ends = pc.min_max(values).as_py()
        if any(isinstance(end, str) and len(end) > _LONGEST_STATISTIC for end in ends.values()):
            continue
        low[name], high[name] = ends["min"], ends["max"]
    found = {"numRecords": table.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}
    return json.dumps(found, sort_keys=True)


def empty_rows(spec: TableSpec) -> pa.Table:
    """Give a table of no rows with the declared columns."""
    return spec.schema.empty_table()


def ids_below_2_63(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Turn uint64 ids (as volumes hold them) into int64, or raise `SchemaMismatch` if one is 2^63 or above."""
    if values.size and int(values.max()) >= 2**63:
        raise SchemaMismatch(f"id {int(values.max())} is 2^63 or above", fix="ids are 63 bits wide: see lake.ids")
    return values.astype(np.int64)
