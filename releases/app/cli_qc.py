"""`emlake qc`: run, show, report."""

from pathlib import Path
from typing import Annotated, Literal

import polars as pl
import typer

from releases.app.cli_options import Json, Repo, open_repo, print_json
from releases.app.screen import Screen

group = typer.Typer(help="Quality in numbers, region by region.", no_args_is_help=True)
PURE = "1"  # the unit of a pure number
Branch = Annotated[str, typer.Argument(help="Candidate branch, for instance cand-r1.")]


def add_to(app: typer.Typer) -> None:
    """Add the group to the root."""
    app.add_typer(group, name="qc")


@group.command()
def run(branch: Branch, repo: Repo = None, as_json: Json = False) -> None:
    """Measure the head of BRANCH and commit the figures on top of it."""
    from qc.run import run_qc
    from releases.candidates import check_workable

    lake = open_repo(repo)
    check_workable(lake, branch)
    screen = Screen(quiet=as_json)
    with screen.step(f"QC of {branch}") as bar:
        done = run_qc(lake, branch, progress=bar.blocks)
    unknown = int((done.metrics["status"] == "unknown").sum())
    failed = int((~done.results["passed"].fill_null(value=False)).sum())
    counts = {"metrics": done.metrics.height, "unknown": unknown, "expectations": done.results.height, "failed": failed}
    if as_json:
        print_json(
            {"branch": branch, "commit": done.commit, "data_commit": done.data_commit, "made": done.made, **counts}
        )
    else:
        typer.echo(
            f"{done.commit}: "
            + ", ".join(f"{n} {what}" for what, n in counts.items())
            + ("" if done.made else ", as before")
        )


@group.command()
def show(
    ref: Annotated[str, typer.Argument(help="Release, branch or commit with QC tables.")],
    repo: Repo = None,
    scope: Annotated[
        Literal["global", "region", "section", "tile"], typer.Option("--scope", help="What a value is of.")
    ] = "global",
    as_json: Json = False,
) -> None:
    """Show the measured values, and the expectations that failed."""
    from lake.tables import collect

    with open_repo(repo).snapshot(ref) as snapshot:
        metrics = snapshot.table("qc_metrics").filter(pl.col("scope") == scope).sort("metric", "scope_id").pipe(collect)
        results = snapshot.table("qc_results").filter(~pl.col("passed").fill_null(value=False)).pipe(collect)
    if as_json:
        print_json({"ref": ref, "metrics": metrics.to_dicts(), "failed": results.to_dicts()})
        return
    for row in metrics.to_dicts():
        value = "unknown" if row["value"] is None else f"{row['value']:.4g} {row['unit'].removeprefix(PURE)}"
        typer.echo(f"{row['metric']:24} {row['scope_id']:10} {value:20} {row['reason'] or ''}".rstrip())
    for row in results.to_dicts():
        typer.echo(f"FAILED {row['suite']}: {row['expectation']}: {row['reason'] or ''}")


@group.command()
def report(
    branch: Branch,
    repo: Repo = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the pages.")] = None,
    as_json: Json = False,
) -> None:
    """Write Great Expectations' Data Docs of BRANCH as pages that open offline."""
    from qc.docs import write_docs

    folder = out or Path(f"qc-report-{branch}")
    with open_repo(repo).snapshot(branch) as snapshot:
        index = write_docs(snapshot, folder)
    if as_json:
        print_json({"branch": branch, "index": str(index)})
    else:
        typer.echo(str(index))
