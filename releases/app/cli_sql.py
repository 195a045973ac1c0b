"""`emlake sql`: DuckDB over one pinned set of commits."""

import csv
import re
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from lake.errors import BadInput, nearest
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, plain, print_json

_WHOLE = re.compile(r"-?[0-9]+")
At = Annotated[str, typer.Option("--at", help="Release, branch or commit to query.")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(sql)


def sql(
    query: Annotated[
        str, typer.Argument(help="One SELECT over schemas main, archive, ops; or a file of sql/queries/.")
    ],
    repo: Repo = None,
    at: At = "main",
    ops: Annotated[str | None, typer.Option("--ops", help="Pin ops to this commit instead.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", help="NAME=VALUE for $NAME.")] = None,
    old: Annotated[str | None, typer.Option("--old", help="Release, branch or commit to see as schema `old`.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
) -> None:
    """Run a read-only query over the tables and views of one commit."""
    check_name(query)
    check_old(query, old)
    lake = open_repo(repo)
    with ExitStack() as stack:
        snapshot = stack.enter_context(lake.snapshot(at, ops=ops))
        attach = {"old": stack.enter_context(lake.snapshot(old))} if old is not None else None
        result = snapshot.sql(query, parameters(query, param or []), attach=attach)
        columns, rows = result.columns, result.rows()
    if as_json:
        print_json({"at": at, "commit": snapshot.commit, "columns": columns, "rows": rows})
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    else:
        cells = [columns, *[["" if v is None else str(plain(v)) for v in row] for row in rows]]
        widths = [max(len(str(line[i])) for line in cells) for i in range(len(columns))]
        for line in cells:
            typer.echo("  ".join(str(v).ljust(w) for v, w in zip(line, widths, strict=True)).rstrip())
        typer.echo(f"{counted(len(rows), 'row')} at {snapshot.commit[:12]}", err=True)


def check_name(query: str) -> None:
    """Raise `BadInput` if a query is given by a name that none has: a statement is more than one word."""
    from sql import library

    if query.isidentifier() and query not in library():
        raise BadInput(f"there is no query named {query!r}", fix=nearest(query, library()))


def check_old(query: str, old: str | None) -> None:
    """Raise `BadInput` if a named query compares two snapshots and `old` names none."""
    from sql import library

    known = library().get(query)
    if known and old is None and any(table.startswith("old.") for table in known.reads):
        raise BadInput(f"{query!r} compares with an older snapshot", fix="name it: --old RELEASE")


def parameters(query: str, pairs: list[str]) -> dict[str, object]:
    """Read NAME=VALUE pairs; values of a named query get the types its header declares, others what they look like."""
    from sql import library

    known = library().get(query)
    declared = dict(known.parameters) if known else {}
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"--param {pair!r} gives no value", fix="write NAME=VALUE")
        if known and name not in declared:
            raise BadInput(f"--param {pair!r} is no parameter of {query!r}", fix=nearest(name, declared))
        try:
            whole = declared[name] == "BIGINT" if name in declared else bool(_WHOLE.fullmatch(value))
            found[name] = int(value) if whole else value
        except ValueError as error:
            raise BadInput(f"--param {pair!r} is not a whole number", fix=f"{name} is {declared[name]}") from error
    missing = sorted(declared.keys() - found.keys())
    if missing:
        raise BadInput(
            f"{query!r} needs --param {missing[0]}=...", fix="; ".join(f"{n} {t}" for n, t in declared.items())
        )
    return found
