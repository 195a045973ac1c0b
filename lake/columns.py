"""How a table is declared: named, typed, documented columns, and which of them count for its digest."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pyarrow as pa

ColumnType = Literal["int64", "float64", "string", "bool", "timestamp", "list<int64>", "list<string>", "list<float64>"]
BranchKind = Literal["data", "archive", "ops"]

# Delta has no unsigned integers, no float16, no dictionaries: ids are int64, times are UTC microseconds.
_ARROW: dict[ColumnType, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
    "list<float64>": pa.list_(pa.float64()),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Parameters
    ----------
    nullable : bool
        Whether NULL is allowed; a nullable column may also be left out of the rows given.
    volatile : bool
        Whether it is left out of the content digest (times, hosts, durations, attempts, costs, run and commit ids).
    """

    name: str
    type: ColumnType
    doc: str
    nullable: bool = False
    volatile: bool = False


@dataclass(frozen=True)
class TableSpec:
    """One Delta table.

    Parameters
    ----------
    branch : "data", "archive" or "ops"
        Which kind of branch holds it: candidates and main, the archive, or the record of operations.
    sort_key : tuple of str
        Rows are written and digested in this order (the digest breaks ties by the other columns).
    unique : bool
        Whether the sort key identifies a row.
    """

    name: str
    doc: str
    branch: BranchKind
    columns: tuple[Column, ...]
    sort_key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()
    unique: bool = True
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {column.name: column for column in self.columns})

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, in declaration order."""
        return pa.schema([pa.field(c.name, _ARROW[c.type], nullable=c.nullable) for c in self.columns])

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in declaration order."""
        return tuple(column.name for column in self.columns)

    @property
    def volatile(self) -> frozenset[str]:
        """Columns that the content digest leaves out."""
        return frozenset(column.name for column in self.columns if column.volatile)


def integer(name: str, doc: str, *, null: bool = False, volatile: bool = False) -> Column:
    """Declare an int64 column."""
    return Column(name, "int64", doc, null, volatile)


def real(name: str, doc: str, *, null: bool = False, volatile: bool = False) -> Column:
    """Declare a float64 column."""
    return Column(name, "float64", doc, null, volatile)


def text(name: str, doc: str, *, null: bool = False, volatile: bool = False) -> Column:
    """Declare a string column."""
    return Column(name, "string", doc, null, volatile)


def flag(name: str, doc: str, *, null: bool = False, volatile: bool = False) -> Column:
    """Declare a bool column."""
    return Column(name, "bool", doc, null, volatile)


def moment(name: str, doc: str, *, null: bool = False) -> Column:
    """Declare a UTC timestamp; always volatile."""
    return Column(name, "timestamp", doc, null, True)


def many(name: str, of: Literal["int64", "string", "float64"], doc: str, *, volatile: bool = False) -> Column:
    """Declare a list column; never NULL, empty instead."""
    kinds: dict[str, ColumnType] = {"int64": "list<int64>", "string": "list<string>", "float64": "list<float64>"}
    return Column(name, kinds[of], doc, False, volatile)


def position(prefix: str, doc: str, *, null: bool = False) -> tuple[Column, ...]:
    """Declare `<prefix>_x`, `_y`, `_z`: a voxel centre in nm."""
    return tuple(real(f"{prefix}_{axis}", f"{doc}, nm", null=null) for axis in "xyz")


def bounds(doc: str, *, null: bool = False) -> tuple[Column, ...]:
    """Declare `min_x` .. `max_z`: a half-open box in nm."""
    return tuple(
        real(f"{end}_{axis}", f"{doc}: {end}imum, half-open box, nm", null=null)
        for end in ("min", "max")
        for axis in "xyz"
    )


RUN_ID = text("run_id", "run that wrote the row; lineage starts here together with `block`", volatile=True)
BLOCK = text("block", "block that wrote the row, `<stage>/<z_y_x>`; joins ops.blocks on (run_id, block)")
REGION = text("region", "cell of the repository's fixed grid of whole blocks, `z_y_x`")
