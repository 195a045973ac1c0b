"""Commands of the pipeline: ingest, params, train, run."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lake.errors import BadInput, nearest
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, print_json
from releases.app.screen import Screen

if TYPE_CHECKING:
    from lake.volume_spec import VolumeKind

ingest = typer.Typer(help="Bring microscope tiles or volumes into the lake.", no_args_is_help=True)
params = typer.Typer(help="Named parameter sets; a version's content never changes.", no_args_is_help=True)
On = Annotated[str, typer.Option("--on", help="Branch to work on, for instance cand-r1.")]
Stage = Annotated[str, typer.Argument(help="Stage, for instance watershed.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.add_typer(ingest, name="ingest")
    app.add_typer(params, name="params")
    app.command()(train)
    app.command()(run)


@ingest.command()
def tiles(
    source: Annotated[Path, typer.Argument(help="Folder with tiles.csv, or the CSV file itself.")],
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Validate, hash and archive the tiles of one acquisition; bad ones are quarantined with the reason."""
    from transforms.ingest import ingest_tiles

    screen = Screen(quiet=as_json)
    with screen.step(f"ingest {source}") as bar:
        report = ingest_tiles(open_repo(repo), source, progress=lambda done, total: bar.blocks("tiles", done, total))
    if as_json:
        fields = {name: getattr(report, name) for name in report.__dataclass_fields__}
        print_json({**fields, "reasons": dict(report.reasons)})
        return
    typer.echo(report.text)
    for path, reason in sorted(report.reasons.items()):
        typer.echo(f"  {path}: {reason}")


@ingest.command()
def volume(
    source: Annotated[str, typer.Argument(help="Path or URL of a precomputed, zarr or n5 volume.")],
    name: Annotated[str, typer.Argument(help="Name in the lake, for instance em.")],
    on: On,
    repo: Repo = None,
    box: Annotated[
        str | None, typer.Option("--box", help="z0:z1,y0:y1,x0:x1 in the source's voxels; else all.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option("--axes", help="Order of the source's axes, where it does not say.")
    ] = None,
    voxel: Annotated[
        str | None, typer.Option("--voxel", help="Voxel size in nm, z,y,x, where it does not say.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="image or segmentation, where it does not say.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a volume that TensorStore can read to volumes/NAME."""
    from lake.box import Box
    from releases.app.cli_lake import numbers
    from releases.candidates import check_workable
    from transforms.ingest_volume import ImportPlan, ingest_volume

    if kind not in {None, "image", "segmentation", "affinity"}:
        raise BadInput(f"--kind {kind!r} is unknown", fix=nearest(str(kind), ("image", "segmentation", "affinity")))
    plan = ImportPlan(kind=cast("VolumeKind | None", kind), voxel_nm=numbers(voxel, "--voxel") if voxel else None)
    wanted = Box.parse(box) if box else None
    lake = open_repo(repo)
    check_workable(lake, on)
    screen = Screen(quiet=as_json)
    with screen.step(f"ingest {source}") as bar:
        report = ingest_volume(
            lake,
            source,
            name,
            on,
            box=wanted,
            axes=axes,
            plan=plan,
            progress=lambda done, total: bar.blocks("voxels", done, total),
        )
    if as_json:
        print_json({"volume": name, "commit": report.commit, "digest": report.digest, "seconds": report.seconds})
    elif report.commit is None:
        typer.echo(f"nothing to do, {on} holds volumes/{name} with the same voxels")
    else:
        typer.echo(f"volumes/{name}: {report.spec.shape_zyx} {report.spec.dtype}, commit {report.commit}")


@params.command("add")
def add_set(
    stage: Stage,
    name: Annotated[str, typer.Argument(help="Name of the set, for instance default.")],
    on: On,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Values, in TOML notation.")
    ] = None,
    repo: Repo = None,
    note: Annotated[str, typer.Option("--note", help="What it is for.")] = "",
) -> None:
    """Store the next version of a set; what is not given keeps the stage's default."""
    from releases.candidates import check_workable
    from transforms.params import add

    lake = open_repo(repo)
    check_workable(lake, on)
    made = add(lake, on, stage, name, _values(values or []), note=note)
    typer.echo(f"{made.stage} {made.name}@{made.version} {made.digest}")


@params.command("list")
def list_sets(
    repo: Repo = None,
    at: Annotated[str, typer.Option("--at", help="Branch, release or commit.")] = "main",
    as_json: Json = False,
) -> None:
    """List the parameter sets of a commit."""
    from transforms.params import list_sets as find_all

    found = find_all(open_repo(repo), at)
    if as_json:
        print_json({"at": at, "params": [made.to_json() for made in found]})
        return
    if not found:
        typer.echo(f"{at} holds no named set: its runs used the defaults of the stages", err=True)
    for made in found:
        typer.echo(f"{made.stage:14} {made.name}@{made.version}  {made.digest[:12]}  {made.note}")


@params.command("show")
def show_set(
    stage: Stage,
    reference: Annotated[str, typer.Argument(help="name@version.")],
    repo: Repo = None,
    at: Annotated[str, typer.Option("--at", help="Branch, release or commit.")] = "main",
    as_json: Json = False,
) -> None:
    """Show one parameter set."""
    from transforms.params import show

    made = show(open_repo(repo), at, stage, reference)
    if as_json:
        print_json(made.to_json())
        return
    for key, value in made.values.items():
        typer.echo(f"{key} = {value}")


def _values(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        try:
            found |= tomllib.loads(pair)
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"value {pair!r} cannot be read: {error}", fix="write key=value as in TOML") from error
    return found


def run(
    pipeline: Annotated[str, typer.Argument(help="TOML file, or the name of a pipeline that comes with emlake.")],
    on: On,
    repo: Repo = None,
    executor: Annotated[str, typer.Option("--executor", help="serial or processes.")] = "processes",
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; one a core if left out.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="NAME=DIGEST, folder or builtin:NAME.")] = None,
    up_to: Annotated[str | None, typer.Option("--up-to", help="Stop after this stage.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an unfinished run left.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only say which blocks are stale, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Run PIPELINE on a branch: compute what is stale, land it as one commit. Run again after an interruption."""
    from transforms.pipeline import load_pipeline

    chosen = load_pipeline(pipeline)
    if model:
        chosen = chosen.with_models(_models(model))
    if up_to:
        chosen = chosen.up_to(up_to)
    lake = open_repo(repo)
    if explain:
        from transforms.planner import plan

        planned = plan(lake, on, chosen)
        print_json(planned.to_json()) if as_json else typer.echo(planned.explain())
        return
    from releases.candidates import check_workable
    from transforms.runner import run as carry_out

    check_workable(lake, on)
    screen = Screen(quiet=as_json)
    with screen.step(f"run {chosen.name} on {on}") as bar:
        report = carry_out(lake, chosen, on, executor=executor, workers=workers, progress=bar.blocks, fresh=fresh)
    if as_json:
        print_json(report.to_json())
        return
    done = counted(report.computed, "block")
    typer.echo(f"{report.state}: {done} computed, {report.cpu_s:.1f} CPU s, commit {report.commit}")


def _models(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, source = pair.partition("=")
        if not equals or not source:
            raise BadInput(
                f"--model {pair!r} names no model", fix="write NAME=DIGEST, NAME=FOLDER or NAME=builtin:NAME"
            )
        # A folder is meant from where the command was typed, not from where the pipeline's file lies.
        found[name] = str(Path(source).resolve()) if Path(source).is_dir() else source
    return found


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration, TOML.")],
    folder: Annotated[Path, typer.Argument(help="Where model and card go; an unfinished training there goes on.")],
    device: Annotated[str, typer.Option("--device", help="Where to learn: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that draw samples ahead.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a model on synthetic EM with known truth."""
    from transforms.models.training import TrainConfig
    from transforms.models.training import train as fit

    settings = TrainConfig.read(config)
    screen = Screen(quiet=as_json)
    with screen.step(f"train {settings.name}") as bar:
        made = fit(
            settings,
            folder,
            progress=lambda step, steps, loss: bar.blocks("steps", step, steps),
            device=device,
            workers=workers,
        )
    if as_json:
        print_json({"model": settings.name, "folder": made})
    else:
        typer.echo(f"{settings.name} is in {made}")
