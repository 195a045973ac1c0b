"""`emlake sql`: DuckDB over one pinned set of commits."""

import csv
import sys
from typing import Annotated

import typer

from releases.app.cli_options import Json, Repo, open_repo, plain, print_json

At = Annotated[str, typer.Option("--at", help="Release, branch or commit to query.")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(sql)


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; schemas main, archive and ops.")],
    repo: Repo = None,
    at: At = "main",
    ops: Annotated[str | None, typer.Option("--ops", help="Pin ops to this commit instead.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
) -> None:
    """Run a read-only query over the tables and views of one commit."""
    with open_repo(repo).snapshot(at, ops=ops) as snapshot:
        result = snapshot.sql(query)
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
        typer.echo(f"{len(rows)} rows at {snapshot.commit[:12]}", err=True)
