"""The first page of a quality report: figures, failures, regions. Strings only."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

from lake.snapshot import Snapshot

_REGION_METRICS = (
    "vi_split", "vi_merge", "adapted_rand_error", "synapse_f1", "synapse_binding", "orphan_share", "block_continuity",
)  # fmt: skip
_LOWER_IS_BETTER = {"vi_split", "vi_merge", "adapted_rand_error", "orphan_share"}
_MOST_REGIONS = 200
_SIGN = {True: ("ok", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("warn", "?", "not checked")}


def index_body(
    snapshot: Snapshot,
    metrics: pl.DataFrame,
    stored: pl.DataFrame,
    changed: Mapping[tuple[str, str], bool | None],
    data_commit: str,
    pages: set[str],
) -> str:
    """Give the inside of the body.

    Parameters
    ----------
    metrics, stored : frames of `qc_metrics` and `qc_results`
    changed : mapping of (suite, expectation) to outcome
        What came out otherwise when the suites ran again for this report.
    pages : set of str
        The other pages, by path.
    """
    made = snapshot.repo.commit_info(snapshot.commit).created
    head = (
        f"<h1>Quality of {escape(snapshot.ref)}</h1>"
        f'<p class="soft">data <code>{data_commit[:12]}</code>, judged as <code>{snapshot.commit[:12]}</code>, '
        f"{made:%Y-%m-%d %H:%M} UTC</p>"
    )
    parts = [head, _cards(metrics, stored), _note(changed), _faults(metrics, stored), _validations(stored, pages)]
    parts += [_global(metrics), _regions(metrics)]
    return f'<main class="report">{"".join(parts)}</main>'


def _cards(metrics: pl.DataFrame, stored: pl.DataFrame) -> str:
    failed = stored.filter(~pl.col("passed")).height
    open_ = int(stored["passed"].null_count())
    figures = (
        ("expectations passed", stored.height - failed - open_, "ok"),
        ("failed", failed, "bad" if failed else ""),
        ("not checked", open_, "warn" if open_ else ""),
        ("metrics measured", metrics.filter(pl.col("status") == "ok").height, ""),
        ("metrics unknown", (unknown := metrics.filter(pl.col("status") != "ok").height), "warn" if unknown else ""),
    )
    return '<div class="cards">' + "".join(
        f'<div><strong class="{kind}">{number}</strong>{escape(what)}</div>' for what, number, kind in figures
    ) + "</div>"  # fmt: skip


def _note(changed: Mapping[tuple[str, str], bool | None]) -> str:
    if not changed:
        return ""
    rows = "; ".join(f"{suite}: {name} is now {_SIGN[passed][2]}" for (suite, name), passed in sorted(changed.items()))
    return (
        '<p class="note">The outcome on record stands, but the library now finds otherwise '
        f"(the pages of the suites show what it finds now): {escape(rows)}.</p>"
    )


def _faults(metrics: pl.DataFrame, stored: pl.DataFrame) -> str:
    rows = [
        (_sign(row["passed"]), escape(row["suite"]), escape(row["expectation"]), escape(row["reason"] or ""))
        for row in stored.filter(~pl.col("passed").fill_null(value=False)).to_dicts()
    ]
    rows += [
        (_sign(None), "metric", escape(f"{row['metric']} {row['scope_id']}".strip()), escape(row["reason"] or ""))
        for row in metrics.filter(pl.col("status") != "ok").to_dicts()
    ]
    if not rows:
        return ""
    return "<h2>What failed, and what could not be checked</h2>" + _table(("", "suite", "what", "why"), rows)


def _validations(stored: pl.DataFrame, pages: set[str]) -> str:
    rows = []
    for (suite, table), part in stored.group_by(["suite", "table_name"], maintain_order=True):
        outcomes = part["passed"].to_list()
        verdict = False if False in outcomes else (None if None in outcomes else True)
        path = f"validations/{suite}-{table}.html"
        expected = f"expectations/{suite}-{table}.html"
        name = escape(str(table))
        rows.append(
            (
                _sign(verdict),
                escape(str(suite)),
                f'<a href="{escape(path)}">{name}</a>' if path in pages else name,
                _number(f"{outcomes.count(True)} of {len(outcomes)}"),
                f'<a href="{escape(expected)}">what is expected</a>' if expected in pages else "",
            )
        )
    return "<h2>Expectations</h2>" + _table(("", "suite", "table", "passed", ""), rows)


def _global(metrics: pl.DataFrame) -> str:
    rows = [
        (
            escape(row["metric"]),
            _value(row["value"]),
            escape(row["unit"] if row["unit"] != "1" else ""),
            escape(row["definition"]),
        )
        for row in metrics.filter(pl.col("scope") == "global").to_dicts()
    ]
    return "<h2>Metrics of the whole volume</h2>" + _table(("metric", "value", "unit", "definition"), rows)


def _regions(metrics: pl.DataFrame) -> str:
    by_region: dict[str, dict[str, float | None]] = {}
    for row in metrics.filter(pl.col("scope") == "region").to_dicts():
        by_region.setdefault(row["scope_id"], {})[row["metric"]] = row["value"]
    shown = [name for name in _REGION_METRICS if any(name in values for values in by_region.values())]
    if not shown:
        return ""
    first = shown[0]
    names = sorted(by_region, key=lambda name: (-(by_region[name].get(first) or 0.0), name))
    most = {m: max(v.get(m) or 0.0 for v in by_region.values()) for m in shown if m in _LOWER_IS_BETTER}
    rows = [
        # A region without a row was not meant to have one: no face to compare, no synapse.
        (escape(name), *(_value(of[m], most.get(m, 0.0)) if m in (of := by_region[name]) else "" for m in shown))
        for name in names[:_MOST_REGIONS]
    ]
    left = f", {_MOST_REGIONS} of {len(names)}" if len(names) > _MOST_REGIONS else ""
    return f"<h2>Regions, by {first}{left}</h2>" + _table(("region z_y_x", *shown), rows)


def _sign(passed: bool | None) -> str:
    kind, sign, word = _SIGN[passed]
    return f'<span class="icon {kind}" title="{word}">{sign}</span>'


def _number(text: str, shade: float = 0.0) -> str:
    style = f' style="background: color-mix(in srgb, var(--link) {shade:.0%}, transparent)"' if shade else ""
    return f'<td class="number"{style}>{escape(text)}</td>'


def _value(value: float | None, most: float = 0.0) -> str:
    """Give a cell, shaded by its share of the largest value."""
    if value is None:
        return '<td class="number soft">unknown</td>'
    return _number(f"{value:.4g}", 0.4 * abs(value) / most if most else 0.0)


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    rows = list(rows)
    numbers = {at for row in rows for at, cell in enumerate(row) if cell.startswith('<td class="number')}
    marks = [' class="number"' if at in numbers else "" for at in range(len(titles))]
    head = "".join(f"<th{mark}>{escape(title)}</th>" for mark, title in zip(marks, titles, strict=True))
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="framed"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
