"""`emlake demo`: the whole path on a generated sample."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from releases.app.cli_options import Json, print_json
from releases.app.screen import Screen


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(demo)


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for sample, repository and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="What the sample is made from.")] = 0,
    repo: Annotated[str | None, typer.Option("--repo", help="Repository; FOLDER/repo if left out.")] = None,
    executor: Annotated[str, typer.Option("--executor", help="serial or processes.")] = "processes",
    as_json: Json = False,
) -> None:
    """Tiles in, release out, a worse release found, traced and rolled back; leaves FOLDER/report.html."""
    import lake
    from releases.app.demo import Demo, run_demo
    from releases.app.report import write_report
    from releases.app.story import next_commands, tell

    place = Demo(folder.resolve(), repo or str((folder / "repo").resolve()), seed)
    screen = Screen(quiet=as_json)
    story = run_demo(place, screen, executor)
    with screen.step("report"):
        report = write_report(lake.open(place.location), story, place.folder / "report.html")
    commands = [as_run(command) for command in next_commands(lake.open(place.location), place)]
    if as_json:
        print_json({**story, "report": str(report), "next": commands})
        return
    done = story["this_run"]
    if not done["blocks"] and not done["releases"]:
        typer.echo("Nothing was left to do: no block was computed, no release was made.\n")
    typer.echo(tell(story))
    typer.echo(f"\nReport: {report}\nThis took {done['seconds']:.0f} s. Try next:")
    for command in commands:
        typer.echo(f"  {command}")


def as_run(command: str) -> str:
    """Give an `emlake ...` line as it works here: by the path this was run by, where the name is not on `PATH`."""
    return command if shutil.which("emlake") else command.replace("emlake", shlex.quote(sys.argv[0]), 1)
