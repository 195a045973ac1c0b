"""The table of tiles that comes with an acquisition: read strictly, with errors that name line, column and value."""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from lake.errors import BadInput, NotFound, nearest
from lake.names import check_key

REQUIRED = ("section", "tile", "file", "stage_x_nm", "stage_y_nm", "pixel_nm")
OPTIONAL = ("acquisition", "width", "height", "focus", "acquired", "instrument", "sha256")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TileRecord:
    """One line: a file, where the stage was, and what the instrument says of it.

    Attributes
    ----------
    path : str
        Key in the archive, `raw/<acquisition>/<section>/<file>`.
    file : Path
        Where the bytes are now.
    shape : (height, width) or None
        As declared.
    extra : mapping of str to str
        Further columns, kept as the tile's metadata.
    """

    acquisition: str
    section: int
    tile: str
    path: str
    file: Path
    stage_x_nm: float
    stage_y_nm: float
    pixel_nm: float
    line: int
    shape: tuple[int, int] | None = None
    sha256: str | None = None
    acquired: datetime | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def read_tile_table(source: Path, acquisition: str | None = None) -> list[TileRecord]:
    """Read a `tiles.csv`, or the one in folder `source`; file names are relative to it.

    Parameters
    ----------
    acquisition : str, optional
        Takes only these lines where there is a column `acquisition`, else names the acquisition.

    Raises
    ------
    BadInput
        A missing or misspelt column (with the nearest name), a value that is none, a file listed twice.
    NotFound
        The table or a file that is listed is not there, or cannot be read.
    """
    table = source / "tiles.csv" if source.is_dir() else source
    header, lines = _read_csv(table)
    _check_columns(table, header)
    records = [_record(table, number, row, acquisition) for number, row in lines]
    if acquisition is not None:
        chosen = [record for record in records if record.acquisition == acquisition]
        if not chosen:
            raise BadInput(
                f"{table} has no tile of acquisition {acquisition!r}",
                fix=nearest(acquisition, {record.acquisition for record in records}),
            )
        records = chosen
    _check_unique(table, records)
    _check_files(table, records)
    return records


def _read_csv(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFound(
            f"{table} cannot be read: {error.strerror}", fix="give a folder with a tiles.csv, or the file itself"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{table} is not text: {error}", fix="write the table as UTF-8 CSV") from error
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise BadInput(f"{table} has column {twice!r} twice", fix="keep one of them")
    lines = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise BadInput(
                f"{table}, line {reader.line_num}: {len(row)} values for {len(header)} columns",
                fix="give every line one value a column",
            )
        lines.append((reader.line_num, dict(zip(header, (value.strip() for value in row), strict=True))))
    if not lines:
        raise BadInput(f"{table} lists no tiles", fix="give a header line and a line for each tile")
    return header, lines


def _check_columns(table: Path, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in REQUIRED and name not in OPTIONAL]
    for name in REQUIRED:
        if name not in header:
            close = get_close_matches(name, unknown, n=1, cutoff=0.5)
            hint = f"rename column {close[0]!r}" if close else "columns: " + ", ".join(header)
            raise BadInput(f"{table} has no column {name!r}", fix=f"{hint}; required: {', '.join(REQUIRED)}")
    for name in unknown:
        # Further columns are kept as metadata, but one that nearly is ours was meant to be.
        close = get_close_matches(name, [known for known in OPTIONAL if known not in header], n=1, cutoff=0.8)
        if close:
            raise BadInput(f"{table} has a column {name!r}", fix=f"did you mean {close[0]!r}? else rename it")


def _record(table: Path, number: int, row: Mapping[str, str], acquisition: str | None) -> TileRecord:
    def wrong(column: str, wanted: str) -> BadInput:
        return BadInput(
            f"{table}, line {number}: {column} {row.get(column, '')!r} is not {wanted}", fix=f"give {wanted}"
        )

    def real(column: str) -> float:
        try:
            value = float(row[column])
        except ValueError:
            raise wrong(column, "a number") from None
        if not math.isfinite(value):
            raise wrong(column, "a finite number")
        return value

    def whole(column: str) -> int:
        try:
            value = int(row[column])
        except ValueError:
            raise wrong(column, "a whole number") from None
        if value < 0:
            raise wrong(column, "0 or more")
        return value

    name = row.get("acquisition") or acquisition or ""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{table}, line {number}: acquisition name {name!r} is not valid",
            fix="name the acquisition: letters, digits, '.', '_' and '-'",
        )
    if real("pixel_nm") <= 0:
        raise wrong("pixel_nm", "a size above 0")
    if not row["file"] or not row["tile"]:
        raise wrong("file" if not row["file"] else "tile", "a name")
    shape = (whole("height"), whole("width")) if row.get("width") and row.get("height") else None
    sha256 = row.get("sha256", "").lower() or None
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise wrong("sha256", "64 hexadecimal digits")
    section, file = whole("section"), table.parent / row["file"]
    used = {*REQUIRED, "acquisition", "width", "height", "sha256", "acquired"}
    return TileRecord(
        name, section, row["tile"], check_key(f"raw/{name}/{section}/{file.name}"), file,
        real("stage_x_nm"), real("stage_y_nm"), real("pixel_nm"), number, shape, sha256,
        _time(row["acquired"], wrong) if row.get("acquired") else None,
        {key: value for key, value in row.items() if value and key not in used},
    )  # fmt: skip


def _time(text: str, wrong: Callable[[str, str], BadInput]) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise wrong("acquired", "a time such as 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_unique(table: Path, records: Sequence[TileRecord]) -> None:
    seen: dict[str, TileRecord] = {}
    for record in records:
        first = seen.setdefault(record.path, record)
        if first is not record:
            raise BadInput(
                f"{table}, lines {first.line} and {record.line}: both would be {record.path}",
                fix="give the files of one section different names",
            )


def _check_files(table: Path, records: Sequence[TileRecord]) -> None:
    for record in records:
        try:
            record.file.open("rb").close()
        except OSError as error:
            raise NotFound(
                f"{table}, line {record.line}: tile {record.file} cannot be read: {error.strerror}",
                fix="bring the file, or take its line out of the table; nothing was ingested",
            ) from error
