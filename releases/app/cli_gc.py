"""`emlake gc`: remove what nobody needs."""

import re
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lake.errors import BadInput
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, print_json

if TYPE_CHECKING:
    from lake.engines.embedded import EmbeddedRepository
    from lake.engines.lakefs import LakeFSRepository
    from lake.garbage import Collected, Share

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(gc)


def gc(
    repo: Repo = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--explain", help="Only say what would go; remove nothing.")
    ] = False,
    grace: Annotated[
        str,
        typer.Option("--grace", help="History stays so long after its branch or tag has gone: 14d, 12h, 0."),
    ] = "14d",
    wait: Annotated[
        str, typer.Option("--wait", help="How long to wait for writing that began before; then nothing is removed.")
    ] = "1h",
    as_json: Json = False,
) -> None:
    """Remove objects and history that no branch, tag, session, view or grace period needs, beside readers and writers.

    For repositories in a folder. Kept, in this order: what branches reach, what tags reach, sessions, commits whose
    views somebody uses, what branches and tags gave up less than the grace period ago, and what is staged. Safe at any
    time: writers and readers go on, and a kill leaves nothing missing.

    On a lakeFS server its own collector does that. Where the server keeps its objects on this machine, what uploads
    left there that were cut off more than a day ago is removed.
    """
    from releases.app.screen import Screen

    grace_s, wait_s = seconds(grace, "--grace"), seconds(wait, "--wait")
    lake = cast("EmbeddedRepository | LakeFSRepository", open_repo(repo))
    screen = Screen(quiet=as_json)
    with screen.step("looking" if dry_run else "collecting"):
        found = lake.collect_garbage(grace_s=grace_s, dry_run=dry_run, wait_s=wait_s, progress=screen.blocks)
    if as_json:
        print_json(found.to_json())
    else:
        show(found)


def seconds(text: str, name: str) -> float:
    """Read a duration such as `14d`, `12h` or `90` (seconds); `BadInput` quotes what cannot be read."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{name} {text!r} cannot be read", fix="write a number and s, m, h, d or w: 14d, 12h, 0")
    return float(match[1]) * _UNITS[match[2] or "s"]


def show(found: "Collected") -> None:
    """Print a collection as two tables and a sum."""
    would = "would be " if found.dry_run else ""
    history = found.commits_kept or found.commits_removed  # of a server's nothing is collected here
    typer.echo(f"kept: {counted(found.commits_kept, 'commit')}" if history else "kept:")
    for reason, share in found.kept.items():
        typer.echo(_share(reason, share))
    typer.echo(f"{would}removed: {counted(found.commits_removed, 'commit')}" if history else f"{would}removed:")
    for reason, share in found.removed.items():
        typer.echo(_share(reason, share))
    typer.echo(f"{would}freed: {counted(found.freed, 'byte')}")
    if (held := sum(share.size for share in found.removed.values()) - found.freed) > 0:
        typer.echo(f"  of these {counted(held, 'byte')} are links to files that stay in use", err=True)


def _share(reason: str, share: "Share") -> str:
    return f"  {reason:22} {counted(share.count, 'content'):>21} {counted(share.size, 'byte'):>24}"
