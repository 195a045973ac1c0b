"""`emlake scrub`: read stored bytes back, say what is damaged and who is hit, and heal it from another place."""

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lake.errors import BadInput, CorruptObject
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, open_source, print_json

if TYPE_CHECKING:
    from lake.heal import Healed
    from lake.integrity import Fault
    from lake.scrub import Report

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
    as_json: Json = False,
) -> None:
    """Read stored bytes back, longest unchecked first, and name what is damaged. Changes nothing but the record on ops.

    Refs, commits, manifests, Delta logs and metadata are checked in each run. Run it every night with a budget, and
    each byte has its turn. With --heal-from, what is damaged or missing is looked up in another repository (a copy of
    this one, a clone, or what it was cloned from; folder or server), compared with the digest recorded here, put in the
    place of the damaged file and checked again. Exit code 6: something is damaged, or is still.
    """
    from lake.heal import heal
    from lake.scrub import scrub as check
    from releases.app.screen import Screen

    limit = None if everything else size(budget)
    screen = Screen(quiet=as_json)
    here = open_repo(repo)
    with screen.step("scrub"):
        if heal_from is None:
            report = check(here, budget=limit, progress=screen.blocks)
            told, show = report.to_json(), partial(_print, report)
        else:
            healed = heal(here, open_source(heal_from), budget=limit, progress=screen.blocks)
            report, told, show = healed.report, healed.to_json(), partial(_print_healed, healed)
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
            fix="heal them as said above, then run `emlake scrub` again: what is damaged is checked in each run",
        )


def _print(report: "Report") -> None:
    _print_checked(report)
    for fault in report.faults:
        _print_fault(fault)
    for name in report.healed:
        typer.echo(f"healed       {name}")
    _print_left(report)
    _print_notes(report)


def _print_healed(healed: "Healed") -> None:
    _print_checked(healed.checked)
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


def _print_fault(fault: "Fault") -> None:
    typer.echo(f"DAMAGED      {fault.kind}: {fault.what}")
    _print_keys(fault)
    if fault.commits:
        span = (
            (fault.first or "")[:12] if fault.commits == 1 else f"{(fault.first or '')[:12]}..{(fault.last or '')[:12]}"
        )
        typer.echo(f"  commits    {fault.commits:,}: {span}")
    for what, names in (("heads", fault.refs), ("releases", fault.releases), ("tables", fault.tables)):
        if names:
            typer.echo(f"  {what:10} {', '.join(names)}")
    typer.echo(f"  fix        {fault.fix}")


def _print_keys(fault: "Fault") -> None:
    if fault.keys:
        more = f" and {len(fault.keys) - 3:,} more" if len(fault.keys) > 3 else ""
        typer.echo(f"  keys       {', '.join(fault.keys[:3])}{more}")
