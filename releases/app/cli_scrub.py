"""`emlake scrub`: read stored bytes back, say what is damaged and who is hit, heal it, or accept that it is lost."""

import getpass
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lake.errors import BadInput, CorruptObject
from lake.integrity import CONTENTS
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, open_source, print_json

if TYPE_CHECKING:
    from lake.heal import Healed
    from lake.integrity import Fault
    from lake.losses import Acceptance
    from lake.repository import Repository
    from lake.scrub import Report
    from lake.scrub_record import Loss
    from releases.app.screen import Screen

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGTP]?)(i?)B?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def add_to(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(scrub)


def size(text: str) -> int:
    """Read `10GB`, `500MiB` or `4096` as bytes; `BadInput` quotes what cannot be read."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"--budget {text!r} is no size", fix="write bytes, as in 10GB, 500MiB or 4096")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWER[match[2].lower()])


def scrub(
    repo: Repo = None,
    budget: Annotated[str, typer.Option("--budget", help="Read back so much of the contents, as in 10GB.")] = "10GB",
    everything: Annotated[bool, typer.Option("--all", help="Read back all contents, whatever the budget.")] = False,
    heal_from: Annotated[
        str | None,
        typer.Option("--heal-from", metavar="LOCATION", help="Heal what is damaged from this copy or clone."),
    ] = None,
    accept_loss: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-loss", metavar="OBJECT", help="Record that this object is lost for good; repeat it for more."
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why no copy is left, with --accept-loss.")] = "",
    user: Annotated[str | None, typer.Option("--user", help="Who accepts it; left out, you.")] = None,
    as_json: Json = False,
) -> None:
    """Read stored bytes back, longest unchecked first, and name what is damaged. Changes nothing but the record on ops.

    Refs, commits, manifests, Delta logs and metadata are checked in each run. Run it every night with a budget, and
    each byte has its turn. With --heal-from, what is damaged or missing is looked up in another repository (a copy of
    this one, a clone, or what it was cloned from; folder or server), compared with the digest recorded here, put in the
    place of the damaged file and checked again. What no copy holds is accepted as lost with --accept-loss and --reason,
    by the name that a scrub shows or its first characters: it is read once more, recorded, and leaves the tables on
    ops and archive, which can then be written again; everything else stays. Exit code 6: something is damaged, or is
    still, and has not been accepted.
    """
    from lake.scrub import scrub as check
    from releases.app.screen import Screen

    lost = accept_loss or []
    if lost and heal_from is not None:
        raise BadInput("--accept-loss beside --heal-from", fix="heal first: only what is damaged then can be lost")
    if bool(lost) != bool(reason.strip()):
        raise BadInput(
            f"--accept-loss {' '.join(lost) or 'of nothing'} with --reason {reason!r}", fix="give both: what, and why"
        )
    limit = None if everything else size(budget)
    screen = Screen(quiet=as_json)
    here = open_repo(repo)
    with screen.step("scrub"):
        if heal_from is not None:
            report, told, show = _healed(here, heal_from, limit, screen)
        else:
            acceptance = _accepted(here, lost, reason, user, screen) if lost else None
            report = check(here, budget=limit, progress=screen.blocks)
            told, show = report.to_json(), partial(_print, report, acceptance)
            told |= {"acceptance": acceptance.to_json()} if acceptance else {}
    if as_json:
        print_json(told)
    else:
        show()
    if report.faults:
        hit = sorted({release for fault in report.faults for release in fault.releases})
        raise CorruptObject(
            counted(len(report.faults), "thing is", "things are")
            + " damaged"
            + (f"; releases {', '.join(hit)} are hit" if hit else ""),
            fix="heal them as said above, or accept that they are lost, then run `emlake scrub` again: what is damaged "
            "is checked in each run",
        )


def _healed(
    repo: "Repository", source: str, limit: int | None, screen: "Screen"
) -> tuple["Report", dict[str, object], Callable[[], None]]:
    from lake.heal import heal

    healed = heal(repo, open_source(source), budget=limit, progress=screen.blocks)
    return healed.report, healed.to_json(), partial(_print_healed, healed)


def _accepted(repo: "Repository", lost: list[str], reason: str, user: str | None, screen: "Screen") -> "Acceptance":
    from lake.losses import accept

    user = getpass.getuser() if user is None else user
    return accept(repo, lost, user=user, reason=reason, progress=screen.blocks)


def _print(report: "Report", acceptance: "Acceptance | None") -> None:
    if acceptance is not None:
        _print_acceptance(acceptance)
    _print_checked(report)
    for loss in report.accepted:
        _print_loss(loss)
    for fault in report.faults:
        _print_fault(fault)
    for name in report.healed:
        typer.echo(f"healed       {name}")
    _print_left(report)
    _print_notes(report)


def _print_healed(healed: "Healed") -> None:
    _print_checked(healed.checked)
    for loss in healed.report.accepted:
        _print_loss(loss)
    for fault in healed.cured:
        typer.echo(f"healed       {fault.kind} {fault.name}")
        _print_keys(fault)
    for fault, why in healed.left:
        _print_fault(fault)
        typer.echo(f"  not healed {why}")
    _print_left(healed.checked)
    _print_notes(healed.checked, healed.report)


def _print_checked(report: "Report") -> None:
    for part in report.parts:
        typer.echo(f"{part.kind:12} {part.items:>12,} checked  {counted(part.bytes, 'byte'):>24}")


def _print_left(report: "Report") -> None:
    if report.left_objects:
        never = counted(report.never, "was", "were")
        age = f"{never} never checked" if report.never else f"the oldest check is of {report.oldest:%F %R}"
        contents, size = counted(report.left_objects, "content"), counted(report.left_bytes, "byte")
        typer.echo(f"left         {contents:>21} {size:>24}; {age}")


def _print_notes(*reports: "Report") -> None:
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        typer.echo(note, err=True)


def _print_acceptance(acceptance: "Acceptance") -> None:
    for name in sorted({loss.fault.name for loss in acceptance.losses}):
        typer.echo(f"accepted     {name}")
    for table in acceptance.mended:
        rows = "an unknown number of rows" if table.rows is None else counted(table.rows, "row")
        log = ", and its log is made anew" if table.rebuilt else ""
        place = f"table {table.table} on {table.branch}"
        typer.echo(f"mended       {place}: {rows} gone from it{log}; older commits are as they were")


def _print_loss(loss: "Loss") -> None:
    fault = loss.fault
    _print_hit(fault, "LOST")
    typer.echo(f"  accepted   {loss.accepted:%F %R} by {loss.user}: {loss.reason}")
    if fault.refs:
        typer.echo(
            "  fix        these heads stay as they are: write it again there (run its stage), or roll the release back"
        )


def _print_fault(fault: "Fault") -> None:
    _print_hit(fault, "DAMAGED")
    typer.echo(f"  fix        {fault.fix}")


def _print_hit(fault: "Fault", word: str) -> None:
    typer.echo(f"{word:12} {fault.kind}: {fault.what}")
    if fault.kind in CONTENTS:
        typer.echo(f"  object     {fault.name}")
    _print_keys(fault)
    if fault.commits:
        span = (
            (fault.first or "")[:12] if fault.commits == 1 else f"{(fault.first or '')[:12]}..{(fault.last or '')[:12]}"
        )
        typer.echo(f"  commits    {fault.commits:,}: {span}")
    for what, names in (("heads", fault.refs), ("releases", fault.releases), ("tables", fault.tables)):
        if names:
            typer.echo(f"  {what:10} {', '.join(names)}")


def _print_keys(fault: "Fault") -> None:
    if fault.keys:
        more = f" and {len(fault.keys) - 3:,} more" if len(fault.keys) > 3 else ""
        typer.echo(f"  keys       {', '.join(fault.keys[:3])}{more}")
