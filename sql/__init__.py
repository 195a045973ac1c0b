"""SQL as files: `views/`, `queries/`, `checks/`. One statement a file, under a checked header.

A header is a block of comment lines `-- key: value`; a line `--   more` goes on with the value above::

    name         as the file is named
    kind         view (made in every snapshot, in schema main) | query (with parameters) | check (rows are faults)
    purpose      one sentence
    reads        tables and views with their schema, comma-separated: main.synapses, ops.runs
    grain        what one row is
    columns      name TYPE, ...; a test compares them with DESCRIBE
    parameters   $name TYPE, ...; for queries that take any
    units        of the columns that have one, or `none`
    owner        the room that answers for it

A query that compares two snapshots reads the other one's tables in schema `old`.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, cast

from lake.errors import BadInput, NotFound, nearest

Kind = Literal["view", "query", "check"]
_FOLDERS: dict[str, Kind] = {"views": "view", "queries": "query", "checks": "check"}
_KEYS = ("name", "kind", "purpose", "reads", "grain", "columns", "parameters", "units", "owner")
_LINE = re.compile(r"--\s(?P<key>[a-z]+):\s+(?P<value>.*\S)\s*")


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One SQL file.

    Parameters
    ----------
    reads : tuple of str
        Relations it names, with schema.
    columns, parameters : tuple of (name, type)
        DuckDB types; parameter names without the dollar sign.
    text : str
        The statement, without header and final semicolon.
    """

    name: str
    kind: Kind
    purpose: str
    reads: tuple[str, ...]
    grain: str
    columns: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, str], ...]
    units: str
    owner: str
    text: str


def parse(text: str, where: str) -> SqlFile:
    """Read a file's text; `BadInput` names what its header lacks."""
    header, body = _split(text, where)
    missing = [key for key in _KEYS if key not in header and key != "parameters"]
    if missing:
        raise BadInput(f"{where}: the header lacks {missing[0]!r}", fix="see the docstring of the sql package")
    if header["kind"] not in _FOLDERS.values():
        raise BadInput(f"{where}: kind {header['kind']!r} is unknown", fix="write view, query or check")
    return SqlFile(
        header["name"],
        cast(Kind, header["kind"]),
        header["purpose"],
        tuple(part.strip() for part in header["reads"].split(",")),
        header["grain"],
        _typed(header["columns"], where),
        tuple((name.removeprefix("$"), kind) for name, kind in _typed(header.get("parameters", ""), where)),
        header["units"],
        header["owner"],
        body,
    )


def _split(text: str, where: str) -> tuple[dict[str, str], str]:
    header: dict[str, str] = {}
    lines = text.splitlines()
    last = ""
    while lines and lines[0].startswith("--"):
        line = lines.pop(0)
        match = _LINE.fullmatch(line)
        if match is None and last:
            header[last] += " " + line.removeprefix("--").strip()
        elif match is None or match["key"] not in _KEYS or match["key"] in header:
            raise BadInput(f"{where}: header line {line!r} cannot be read", fix=f"known keys: {', '.join(_KEYS)}")
        else:
            last = match["key"]
            header[last] = match["value"]
    return header, "\n".join(lines).strip().removesuffix(";").rstrip()


def _typed(value: str, where: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, kind = part.partition(" ")
        if not kind:
            raise BadInput(f"{where}: {part!r} has no type", fix="write name TYPE, name TYPE")
        pairs.append((name, kind.strip()))
    return tuple(pairs)


@cache
def library() -> dict[str, SqlFile]:
    """Give every SQL file of the project by name."""
    found: dict[str, SqlFile] = {}
    for folder, kind in _FOLDERS.items():
        place = files("sql") / folder
        if not place.is_dir():
            continue
        for entry in sorted(place.iterdir(), key=lambda item: item.name):
            if not entry.name.endswith(".sql"):
                continue
            where = f"sql/{folder}/{entry.name}"
            file = parse(entry.read_text(encoding="utf-8"), where)
            if file.name != entry.name.removesuffix(".sql") or file.kind != kind or file.name in found:
                raise BadInput(
                    f"{where}: the header says {file.kind} {file.name!r}", fix="name file, folder and header alike"
                )
            found[file.name] = file
    return found


def load(name: str) -> SqlFile:
    """Give one SQL file by name, or raise `NotFound` with the nearest name."""
    try:
        return library()[name]
    except KeyError:
        raise NotFound(f"there is no SQL file {name!r}", fix=nearest(name, library())) from None
