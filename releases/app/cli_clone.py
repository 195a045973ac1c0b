"""The command that copies a repository to another place, with its history."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lake.errors import ConflictError
from lake.wording import counted
from releases.app.cli_options import Json, open_source, print_json

if TYPE_CHECKING:
    from lake.clone import Cloned


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(clone)


def clone(
    source: Annotated[str, typer.Argument(help="The repository to copy: a folder or lakefs://host:port/name.")],
    destination: Annotated[str, typer.Argument(help="Where to: new, empty, or an earlier clone of the same source.")],
    explain: Annotated[
        bool, typer.Option("--explain", "--dry-run", help="Only say what would be copied; change nothing.")
    ] = False,
    verify: Annotated[
        Literal["recorded", "full"],
        typer.Option(
            "--verify", help="Compare recorded checksums, or read all objects of the new heads on both sides."
        ),
    ] = "recorded",
    as_json: Json = False,
) -> None:
    """Copy a repository with its history, to a folder or a server; run again, it copies what is new.

    Killed, it goes on where it was. It deletes nothing, and leaves alone a branch that moved on by itself at the
    destination (exit code 5, after the rest is done).
    """
    from lake.clone import clone as run
    from releases.app.screen import Screen

    screen = Screen(quiet=as_json)
    origin = open_source(source)
    try:
        with screen.step(f"clone {source} to {destination}"):
            done = run(origin, destination, progress=screen.blocks, dry_run=explain, reread=verify == "full")
    finally:
        origin.close()
    if not explain:
        _retain(destination)
    if as_json:
        print_json(done.to_json())
    else:
        for line in _lines(done):
            typer.echo(line)
    if done.refused:
        raise ConflictError(
            "left alone at the destination: " + "; ".join(f"{name}: {why}" for name, why in done.refused.items()),
            fix="bring them together by hand, or clone into a new place; all others are copied",
        )


def _retain(destination: str) -> None:
    """Give a server the retention rules that `emlake init` would have given it; a folder has none."""
    import lake
    from releases.setup import DAYS

    repo = lake.open(destination)
    try:
        rules = repo.retention()
        if rules is not None and {"archive", "ops"} <= set(repo.branches()):
            rules.keep(DAYS)
    finally:
        repo.close()


def _lines(done: "Cloned") -> list[str]:
    """Say what was done."""
    verb = "would copy" if done.dry_run else "copied"
    objects = counted(done.objects, "change of an object", "changes of objects")
    lines = [f"{verb} {counted(done.commits, 'commit')}, {objects}, {counted(done.bytes, 'byte')}"]
    for what, names in (
        ("new branches", done.made),
        ("moved branches", done.moved),
        ("new tags", done.tags),
        ("new protection", done.rules),
        ("not at the source, kept here", done.gone),
        ("not copied: staged changes on", done.staged),
    ):
        if names:
            lines.append(f"{what}: {', '.join(names)}")
    if done.plain:
        lines.append(
            f"the server makes commits its own way: {done.plain}; committer and time of each are in its metadata"
        )
    lines += [
        f"merge with its first parent only: {commit[:12]}: {why}; the other is in `cloned_parents`, and still there"
        for commit, why in done.lost.items()
    ]
    if done.compared:
        lines.append(f"compared {counted(done.compared, 'object')} of the new heads by {_comparison(done)}: equal")
    elif done.comparison == "read" and not done.dry_run:
        lines.append("compared nothing: no head is new; `emlake scrub` reads back what is there")
    return lines


def _comparison(done: "Cloned") -> str:
    return "reading both sides" if done.comparison == "read" else "recorded checksums"
