"""Suites of expectations over the Delta tables, run by Great Expectations on the snapshot's own DuckDB.

The verdict of each expectation becomes a row of `qc_results`: an upgrade of the library must not change a past
decision, so nothing later reads the library's own records.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from lake.digests import canonical_json
from lake.snapshot import Snapshot
from qc.checks import graph_checks
from sql import SqlFile

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
    about : str
        What is expected, where the name does not say it all.
    """

    name: str
    kind: str
    table: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "critical"
    about: str = ""


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


_RESULT_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("suite", "expectation", "scope", "scope_id", "table_name", "observed", "expected"), pl.String),
    "passed": pl.Boolean, "severity": pl.String, "reason": pl.String,
}  # fmt: skip

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
    return {"tables": TABLES, "graph": tuple(map(_graph, graph_checks())), "completeness": COMPLETENESS}


def _graph(file: SqlFile) -> Check:
    about = f"{file.name}: no {file.purpose[0].lower()}{file.purpose[1:]}"
    table = file.reads[0].removeprefix("main.")
    return Check(file.name, "UnexpectedRowsExpectation", table, {"sql": file.text}, about=about)


def run_suites(snapshot: Snapshot, metrics: pl.DataFrame, *, site: Path | None = None) -> pl.DataFrame:
    """Check every expectation and give one row each, with the columns of `qc_results` but for commit and run.

    Parameters
    ----------
    metrics : frame of `qc_metrics`
        What was just measured; global values become the one row of table `qc_metrics` that a suite sees.
    site : Path
        Empty folder for Great Expectations' Data Docs, as the library makes them: one validation a suite and table.
        `qc.docs` turns them into pages that need no network.
    """
    with _quiet(), _context(snapshot, metrics) as (context, batches):
        rows = []
        for name, checks in suites().items():
            runnable = [check for check in checks if check.table in batches]
            rows += [_absent(name, check) for check in checks if check.table not in batches]
            for table in sorted({check.table for check in runnable}):
                mine = [check for check in runnable if check.table == table]
                rows += _run(context, batches[table], name, mine, snapshot)
        if site is not None:
            _build_site(context, site)
    return pl.DataFrame(rows, schema=_RESULT_SCHEMA).sort("suite", "expectation")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's advice off stdout, which is for data, and its deprecations to itself."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _build_site(context: Any, folder: Path) -> None:
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    config = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    context.add_data_docs_site("qc", config)
    context.build_data_docs(site_names=["qc"])


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
        named = {check.table for checks in suites().values() for check in checks} - {METRICS}
        present = sorted(named & _relations(snapshot))
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


def _run(context: Any, batch: Any, suite: str, checks: Sequence[Check], snapshot: Snapshot) -> list[dict[str, Any]]:
    import great_expectations as gx
    from great_expectations.core import RunIdentifier

    definition, parameters, columns = batch if isinstance(batch, tuple) else (batch, None, None)
    rows = []
    if columns is not None:
        # A metric that is unknown has no column; asking for it would be an exception with a page of traceback.
        unknown = [check for check in checks if check.arguments["column"] not in columns]
        rows = [_row(suite, check, None, None, "the metric is unknown") for check in unknown]
        checks = [check for check in checks if check not in unknown]
    if not checks:
        return rows
    name = f"{suite}-{checks[0].table}"
    built = context.suites.add(gx.ExpectationSuite(name=name))
    by_id = {}
    for check in checks:
        expectation = built.add_expectation(_expectation(gx, check))
        by_id[expectation.id] = check
    validation = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=definition, suite=built))
    # The commit and its time, so that the pages of one commit are named alike each time.
    commit = snapshot.repo.commit_info(snapshot.commit)
    run = RunIdentifier(run_name=commit.id[:12], run_time=commit.created)
    result = validation.run(batch_parameters=parameters, run_id=run)
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
        arguments = {"unexpected_rows_query": arguments["sql"]}
    return getattr(gx.expectations, check.kind)(
        **arguments, description=check.about or check.name, severity=check.severity
    )


def _exception(info: Mapping[str, Any]) -> str:
    for part in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if part.get("raised_exception"):
            return str(part.get("exception_message"))[:500]
    return ""


def _observed(check: Check, seen: Mapping[str, Any]) -> str:
    if check.kind == "UnexpectedRowsExpectation":
        return f"{seen.get('observed_value')} rows break it"
    if "unexpected_count" in seen:
        return f"{seen['unexpected_count']} of {seen.get('element_count')} rows break it"
    return f"observed {seen.get('observed_value')}"


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
        reason = _observed(check, seen)
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
