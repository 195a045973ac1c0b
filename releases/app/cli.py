"""The `emlake` command: one door in, one door out for errors.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 bug, 2 bad input, 3 gate refused, 4 not found, 5 conflict,
6 storage, 7 a stage raised. Each `cli_*.py` beside this file holds one group of commands; heavy libraries are imported
inside the command that needs them, so that `emlake --help` answers at once.
"""

import json
import os
import sys

import typer

from lake.errors import LakeError, StorageError
from lake.room import code_of, no_room
from releases.app.cli_options import Version

INTERRUPTED = 130

app = typer.Typer(
    name="emlake",
    help="A versioned data lake for connectome reconstruction.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root(show_version: Version = False) -> None:
    del show_version


def _add_groups() -> None:
    from releases.app import cli_clone, cli_demo, cli_gc, cli_lake, cli_qc, cli_release, cli_run, cli_scrub, cli_sql

    for group in (cli_lake, cli_clone, cli_gc, cli_run, cli_qc, cli_release, cli_sql, cli_scrub, cli_demo):
        group.add_to(app)


_add_groups()


def main() -> None:
    """Run the command line; every `LakeError` leaves here, with its own exit code."""
    try:
        app(prog_name="emlake")
    except LakeError as error:
        report(error)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer takes Ctrl-C for itself, and ends with this code without a word.
        if end.code == INTERRUPTED:
            typer.echo("interrupted; what was committed stays, run the command again to go on", err=True)
        raise
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A place that the command was told to write to or to read: the lake's own are translated where they fail.
        if os.environ.get("EMLAKE_DEBUG"):
            raise
        failed = machine_error(error)
        report(failed)
        sys.exit(failed.exit_code)
    except Exception as error:
        # Whatever ends here is a fault of ours: say so in one line, and keep the traceback for who wants to mend it.
        if os.environ.get("EMLAKE_DEBUG"):
            raise
        typer.echo(f"error[bug]: {type(error).__name__}: {error}", err=True)
        typer.echo("  fix: run it again with EMLAKE_DEBUG=1 and report what it prints", err=True)
        sys.exit(1)


def machine_error(error: OSError) -> LakeError:
    """Say which path the system refused, and why."""
    place = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else "."
    if code := code_of(error, place):
        return no_room(place, 0, code)
    return StorageError(f"{place}: {error.strerror or error}", fix="check this path and who may use it, then repeat")


def report(error: LakeError) -> None:
    """Print an error for a person, or as one JSON object where `--json` was asked for; always on stderr."""
    if "--json" in sys.argv:
        typer.echo(json.dumps(error.to_json()), err=True)
        return
    typer.echo(f"error[{error.kind}]: {error.message}", err=True)
    if error.fix:
        typer.echo(f"  fix: {error.fix}", err=True)
