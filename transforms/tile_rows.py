"""What becomes of each tile: its row of table `tiles`, judged against its section and against what is archived.

===========  ======================================================================================================
ok           good; the one that counts at its place in the section
quarantined  does not decode, blank, saturated, out of focus, or the same bytes as another file; with the reason
superseded   good, and acquired again later; with the path of the one that counts
===========  ======================================================================================================

Every file is archived, whatever its status. Computation takes `ok` ones alone.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lake.digests import canonical_json, json_digest
from transforms.tile_table import TileRecord
from transforms.tiles import TileCheck, TilePolicy, focus_scores

Row = dict[str, Any]


def judge(
    fresh: Sequence[TileRecord],
    checks: Mapping[str, TileCheck],
    known: Mapping[str, Row],
    acquisition: str,
    policy: TilePolicy,
    source: str,
) -> tuple[list[Row], dict[str, Row]]:
    """Make the new rows, with their status, and those older rows whose status they change."""
    older = [row for row in known.values() if row["acquisition"] == acquisition]
    now = datetime.now(UTC)
    run = "ingest-" + json_digest([[r.path, checks[r.path].sha256] for r in fresh])[:16]
    rows = [_row(record, checks[record.path], now, source, run) for record in fresh]
    _quarantine_copies(rows, older)
    _quarantine_blurred(rows, older, policy)
    return rows, _supersede(rows, older)


def _row(record: TileRecord, check: TileCheck, now: datetime, source: str, run: str) -> Row:
    told: dict[str, Any] = dict(record.extra)
    if check.sharpness is not None:
        told["sharpness"] = round(check.sharpness, 9)
    shape = check.shape or (None, None)
    return {
        "acquisition": record.acquisition, "section": record.section, "tile": record.tile, "path": record.path,
        "sha256": check.sha256, "bytes": check.bytes, "shape_y": shape[0], "shape_x": shape[1], "dtype": check.dtype,
        "stage_x_nm": record.stage_x_nm, "stage_y_nm": record.stage_y_nm, "pixel_nm": record.pixel_nm,
        "focus": None, "contrast": check.contrast, "saturation": check.saturation,
        "status": "quarantined" if check.fault else "ok", "reason": check.fault or None,
        "metadata": canonical_json(told).decode(), "acquired": record.acquired, "ingested": now, "source": source,
        "run_id": run,
    }  # fmt: skip


def _quarantine_copies(rows: Sequence[Row], older: Sequence[Row]) -> None:
    """Of files with equal bytes the first acquired one counts."""
    first = {row["sha256"]: row for row in older}
    for row in sorted(rows, key=_when):
        other = first.setdefault(row["sha256"], row)
        if other is not row and row["status"] == "ok":
            row.update(status="quarantined", reason=f"duplicate: the same bytes as {other['path']}")


def _quarantine_blurred(rows: Sequence[Row], older: Sequence[Row], policy: TilePolicy) -> None:
    sharp: dict[int, list[float]] = {}
    for row in (*older, *rows):
        value = _sharpness(row)
        # What was found out of focus still belongs to its section's spread; copies and blank tiles do not.
        if value is not None and (row["status"] != "quarantined" or _is_focus(row)):
            sharp.setdefault(row["section"], []).append(value)
    everywhere = [value for values in sharp.values() for value in values]
    for row in rows:
        value = _sharpness(row)
        if value is None:
            continue
        section = sharp.get(row["section"], [])
        (ratio,), (z,) = focus_scores([value], section if len(section) > 2 else everywhere, policy.focus_spread)
        row["focus"] = ratio
        if row["status"] == "ok" and z < policy.min_focus_z:
            row.update(status="quarantined", reason=f"out of focus: {ratio:.2f} of its section's median, z {z:.1f}")


def _supersede(rows: Sequence[Row], older: Sequence[Row]) -> dict[str, Row]:
    """Of good tiles at one place the last acquired one counts; give the older rows that change."""
    places: dict[tuple[int, str], list[Row]] = {}
    for row in (*older, *rows):
        if row["status"] == "ok":
            places.setdefault((row["section"], row["tile"]), []).append(row)
    changed = {}
    new = {row["path"] for row in rows}
    for group in places.values():
        *earlier, last = sorted(group, key=_when)
        for row in earlier:
            row.update(status="superseded", reason=f"acquired again: {last['path']}")
            if row["path"] not in new:
                changed[row["path"]] = row
    return changed


def _sharpness(row: Row) -> float | None:
    value = json.loads(row["metadata"] or "{}").get("sharpness")
    return None if value is None else float(value)


def _is_focus(row: Row) -> bool:
    return str(row["reason"]).startswith("out of focus")


def _when(row: Row) -> tuple[datetime, datetime, str]:
    # Without a time of acquisition the time of ingest decides, and then the name.
    return row["acquired"] or row["ingested"], row["ingested"], row["path"]
