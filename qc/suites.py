"""Suites of expectations over the Delta tables, run by Great Expectations on the snapshot's own DuckDB.

The verdict of each expectation becomes a row of `qc_results`: an upgrade of the library must not change a past
decision, so nothing later reads the library's own records.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from lake.digests import canonical_json
from lake.snapshot import Snapshot
from sql import library

Severity = Literal["critical", "warning", "info"]
METRICS = "qc_metrics"


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation on one table.

    Parameters
    ----------
    name : str
        Unique within its suite; says what is expected.
    kind : str
        Class of Great Expectations, such as ExpectColumnValuesToBeBetween.
    table : str
        Relation of the snapshot, or `qc_metrics` for the values that were just measured.
    """

    name: str
    kind: str
    table: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "critical"


def _unique(table: str, *columns: str) -> Check:
    if len(columns) == 1:
        return Check(f"{table}.{columns[0]} is unique", "ExpectColumnValuesToBeUnique", table, {"column": columns[0]})
    return Check(
        f"{table}.({', '.join(columns)}) is unique",
        "ExpectCompoundColumnsToBeUnique",
        table,
        {"column_list": list(columns)},
    )


def _between(
    table: str, column: str, low: float | None, high: float | None = None, *, severity: Severity = "critical"
) -> Check:
    limits = " and ".join(
        [*([f"at least {low:g}"] if low is not None else []), *([f"at most {high:g}"] if high is not None else [])]
    )
    return Check(
        f"{table}.{column} is {limits}",
        "ExpectColumnValuesToBeBetween",
        table,
        {"column": column, "min_value": low, "max_value": high},
        severity,
    )


def _filled(table: str) -> Check:
    return Check(f"{table} has rows", "ExpectTableRowCountToBeBetween", table, {"min_value": 1})


def _metric(metric: str, low: float | None, high: float | None) -> Check:
    limits = {"column": metric, "min_value": low, "max_value": high}
    return Check(f"{metric} within limits", "ExpectColumnValuesToBeBetween", METRICS, limits)


TABLES = (
    *(_filled(table) for table in ("supervoxels", "edges", "agglomeration", "segments", "synapses")),
    _unique("supervoxels", "supervoxel_id"),
    _between("supervoxels", "supervoxel_id", 1),
    _between("supervoxels", "voxels", 1),
    _unique("agglomeration", "supervoxel_id"),
    _between("agglomeration", "root_id", 1),
    _unique("edges", "a", "b"),
    _between("edges", "count", 1),
    _between("edges", "sum_affinity", 0),
    _unique("segments", "root_id"),
    _between("segments", "supervoxels", 1),
    _unique("synapses", "id"),
    _between("synapses", "score", 0, 1),
    _between("synapses", "size", 0),
    _unique("connections", "pre_root_id", "post_root_id"),
    _between("connections", "synapses", 1),
    _between("sections", "coverage", 0, 1),
    _unique("sections", "section"),
)
COMPLETENESS = (
    _metric("missing_blocks", 0, 0),
    _metric("tile_integrity", 1, 1),
    _metric("coverage_min", 0.99, None),
    _filled("sections"),
)


def suites() -> dict[str, tuple[Check, ...]]:
    """Give every suite by name; `graph` holds one check for each SQL file of kind check."""
    graph = tuple(
        Check(file.name, "UnexpectedRowsExpectation", file.reads[0].removeprefix("main."), {"sql": file.text})
        for file in library().values()
        if file.kind == "check" and file.name.startswith("graph_")
    )
    return {"tables": TABLES, "graph": graph, "completeness": COMPLETENESS}


def run_suites(snapshot: Snapshot, metrics: pl.DataFrame, *, docs: Any = None) -> pl.DataFrame:
    """Check every expectation and give one row each, with the columns of `qc_results` but for commit and run.

    Parameters
    ----------
    metrics : frame of `qc_metrics`
        What was just measured; global values become the one row of table `qc_metrics` that a suite sees.
    docs : qc.docs.Site or None
        Where to render Great Expectations' Data Docs.
    """
    # The library prints advice on stdout, which is for data.
    with redirect_stdout(io.StringIO()), _context(snapshot, metrics) as (context, batches):
        rows = []
        for name, checks in suites().items():
            runnable = [check for check in checks if check.table in batches]
            rows += [_absent(name, check) for check in checks if check.table not in batches]
            for table in sorted({check.table for check in runnable}):
                rows += _run(context, batches[table], name, [c for c in runnable if c.table == table], docs)
        if docs is not None:
            docs.render(context)
    return pl.DataFrame(rows, infer_schema_length=None).sort("suite", "expectation")


@contextmanager
def _context(snapshot: Snapshot, metrics: pl.DataFrame) -> Iterator[tuple[Any, dict[str, Any]]]:
    # Set before the import: the library otherwise tries to report its use over the network.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import sqlalchemy as sa
    from duckdb_engine import ConnectionWrapper
    from sqlalchemy.pool import StaticPool

    context = gx.get_context(mode="ephemeral")
    # Set here, since making a context sets it back.
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context.variables.progress_bars = {"globally": False}
    with _buffered(sa):
        source = context.data_sources.add_sql(
            name="lake",
            connection_string="duckdb:///:memory:",
            create_temp_table=False,
            kwargs={"creator": lambda: ConnectionWrapper(snapshot.cursor()), "poolclass": StaticPool},
        )
        present = sorted({c.table for checks in suites().values() for c in checks} & _relations(snapshot))
        batches = {
            table: source.add_query_asset(
                name=table, query=f'SELECT * FROM main."{table}"'
            ).add_batch_definition_whole_table(table)
            for table in present
        }
        values = metrics.filter((pl.col("scope") == "global") & (pl.col("status") == "ok"))
        wide = dict(zip(values["metric"].to_list(), values["value"].to_list(), strict=True))
        frame = context.data_sources.add_pandas("metrics").add_dataframe_asset(METRICS)
        definition = frame.add_batch_definition_whole_dataframe(METRICS)
        batches[METRICS] = (definition, {"dataframe": pl.DataFrame([wide]).to_pandas()}, set(wide))
        yield context, batches


def _relations(snapshot: Snapshot) -> set[str]:
    return {name.removeprefix("main.") for name in snapshot.relations if name.startswith("main.")}


@contextmanager
def _buffered(sa: Any) -> Iterator[None]:
    """Fetch DuckDB's rows at once: Great Expectations reads them after the cursor has closed."""
    from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy

    def buffer(
        conn: Any,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        if conn.dialect.name == "duckdb" and cursor.description:
            rows = cursor.fetchall()
            context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(cursor, initial_buffer=rows)

    sa.event.listen(sa.Engine, "after_cursor_execute", buffer)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", buffer)


def _run(context: Any, batch: Any, suite: str, checks: Sequence[Check], docs: Any) -> list[dict[str, Any]]:
    import great_expectations as gx

    definition, parameters, columns = batch if isinstance(batch, tuple) else (batch, None, None)
    rows = []
    if columns is not None:
        # A metric that is unknown has no column; asking for it would be an exception with a page of traceback.
        unknown = [check for check in checks if check.arguments["column"] not in columns]
        rows = [_row(suite, check, None, None, "the metric is unknown") for check in unknown]
        checks = [check for check in checks if check not in unknown]
    if not checks:
        return rows
    name = f"{suite}: {checks[0].table}"
    built = context.suites.add(gx.ExpectationSuite(name=name))
    by_id = {}
    for check in checks:
        expectation = built.add_expectation(_expectation(gx, check))
        by_id[expectation.id] = check
    validation = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=definition, suite=built))
    result = docs.run(context, validation, parameters) if docs else validation.run(batch_parameters=parameters)
    for outcome in result.results:
        # Results come back in another order than the suite's.
        check = by_id[outcome.expectation_config.id]
        error = _exception(outcome.exception_info)
        rows.append(_row(suite, check, None if error else bool(outcome.success), outcome.result, error))
    return rows


def _expectation(gx: Any, check: Check) -> Any:
    arguments = dict(check.arguments)
    if check.kind == "UnexpectedRowsExpectation":
        # The check's own text names its tables; `{batch}` would hide which.
        return gx.expectations.UnexpectedRowsExpectation(
            unexpected_rows_query=arguments["sql"], description=check.name, severity=check.severity
        )
    return getattr(gx.expectations, check.kind)(**arguments, description=check.name, severity=check.severity)


def _exception(info: Mapping[str, Any]) -> str:
    for part in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if part.get("raised_exception"):
            return str(part.get("exception_message"))[:500]
    return ""


def _absent(suite: str, check: Check) -> dict[str, Any]:
    return _row(suite, check, None, None, f"there is no table {check.table}")


def _row(
    suite: str,
    check: Check,
    passed: bool | None,
    result: Mapping[str, Any] | None,
    reason: str,
) -> dict[str, Any]:
    seen = (
        {key: result[key] for key in ("observed_value", "unexpected_count", "element_count") if key in result}
        if result
        else None
    )
    expected = {key: value for key, value in check.arguments.items() if key != "sql"}
    if passed is False and not reason and seen:
        reason = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in seen.items())
    return {
        "suite": suite,
        "expectation": check.name,
        "scope": "global",
        "scope_id": "",
        "table_name": check.table,
        "observed": canonical_json(seen).decode() if seen else None,
        "expected": canonical_json(expected).decode(),
        "passed": passed,
        "severity": check.severity,
        "reason": reason or None,
    }
