"""Options that many commands share, and how a command finds its repository."""

import json
import os
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lake.errors import RepositoryNotFound

if TYPE_CHECKING:
    from lake.repository import Repository

Repo = Annotated[
    str | None,
    typer.Option("--repo", help="Folder or lakefs://host:port/name; else $EMLAKE_REPO, else the enclosing folder's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("emlake"))
        raise typer.Exit


#: Eager and by callback: the group asks for a command before it runs itself.
Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
]


def locate(repo: str | None) -> str:
    """Find the repository a command is meant for, as git does; `RepositoryNotFound` says where it looked."""
    from lake.engines.embedded.layout import MARKER

    named = repo or os.environ.get("EMLAKE_REPO")
    if named:
        return named
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / MARKER).is_file():
            return str(folder)
    raise RepositoryNotFound(
        f"no repository in {here} or above it", fix="give --repo LOCATION, set EMLAKE_REPO, or run `emlake init FOLDER`"
    )


def open_repo(repo: str | None) -> "Repository":
    """Open the repository that `locate` finds."""
    import lake

    return lake.open(locate(repo))


def open_source(location: str) -> "Repository":
    """Open a repository that something is only read from: where there is none, making one is no help."""
    import lake

    try:
        return lake.open(location)
    except RepositoryNotFound as error:
        raise RepositoryNotFound(
            error.message, fix="name a repository that is there: a folder, or lakefs://host:port/name"
        ) from error


def print_json(data: object) -> None:
    """Print one JSON object on stdout; int64 ids beyond 2**53 become strings, since JavaScript rounds them."""
    typer.echo(json.dumps(plain(data)))


def plain(data: Any) -> Any:
    """Turn values into what JSON can hold without loss."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, bool) or data is None:
        return data
    if isinstance(data, int):
        return data if abs(data) < 2**53 else str(data)
    if isinstance(data, datetime | date):
        return data.isoformat()
    if isinstance(data, float):
        return data if data == data and abs(data) != float("inf") else None
    return data if isinstance(data, str) else str(data)
