"""Commands about the repository itself: init, log, doctor, server."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from lake.errors import BadInput, LakeError, NotFound, StorageError
from lake.wording import counted
from releases.app.cli_options import Json, Repo, locate, open_repo, print_json

_LONGEST = 2**31 - 1  # voxels along one axis

server = typer.Typer(help="A lakeFS server of one's own on 127.0.0.1.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command()(init)
    app.command()(log)
    app.command()(doctor)
    app.add_typer(server, name="server")


def numbers(text: str, name: str) -> tuple[float, float, float]:
    """Read `z,y,x`; `BadInput` quotes what cannot be read."""
    try:
        z, y, x = (float(part) for part in text.split(","))
        if not all(map(math.isfinite, (z, y, x))):
            raise ValueError(text)
    except ValueError as error:
        raise BadInput(f"{name} {text!r} cannot be read", fix="write three numbers, z,y,x") from error
    return z, y, x


def init(
    location: Annotated[str, typer.Argument(help="A new folder, or lakefs://host:port/name.")],
    block: Annotated[str, typer.Option("--block", help="Voxels of one region, z,y,x; fixed for ever.")] = "64,64,64",
    voxel: Annotated[str, typer.Option("--voxel", help="Voxel size in nm, z,y,x.")] = "16,8,8",
    policy: Annotated[Path | None, typer.Option("--policy", help="Release policy, TOML; else the default.")] = None,
) -> None:
    """Make a repository: branches, policy, grid, gate, protection."""
    from releases.setup import init as make

    z, y, x = numbers(block, "--block")
    if any(edge != int(edge) or edge > _LONGEST for edge in (z, y, x)):
        raise BadInput(f"--block {block!r} is not whole voxels", fix=f"write three whole numbers to {_LONGEST}, z,y,x")
    if policy is not None and not policy.is_file():
        raise BadInput(f"--policy {policy}: there is no such file", fix="give a TOML file, or leave it out")
    repo = make(
        location,
        block_zyx=(int(z), int(y), int(x)),
        voxel_nm_zyx=numbers(voxel, "--voxel"),
        policy=policy.read_bytes() if policy else None,
    )
    typer.echo(f"repository {repo.location}: main is at {repo.resolve('main')}")


def log(
    ref: Annotated[str, typer.Argument(help="Branch, tag or commit.")] = "main",
    repo: Repo = None,
    limit: Annotated[int, typer.Option("-n", min=1, max=sys.maxsize, help="At most so many commits.")] = 20,
    objects: Annotated[
        list[str] | None, typer.Option("--object", help="Only what changed this key; repeatable.")
    ] = None,
    prefixes: Annotated[
        list[str] | None, typer.Option("--prefix", help="Only what changed a key that begins so; repeatable.")
    ] = None,
    first_parent: Annotated[
        bool, typer.Option("--first-parent", help="Leave out what came in by merges: main shows releases, rollbacks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List commits, newest first (by path: those that changed it), with the time they were first made.

    A message of many lines is shown by its first one; --json has it whole.
    """
    from lake.clones import original_committer, original_time

    rows = [
        {
            "id": c.id,
            "parents": list(c.parents),
            "created": original_time(c),
            "committer": original_committer(c),
            "message": c.message,
            "metadata": dict(c.metadata),
        }
        for c in open_repo(repo).log(
            ref, limit=limit, first_parent=first_parent, objects=objects or (), prefixes=prefixes or ()
        )
    ]
    if as_json:
        print_json({"ref": ref, "commits": rows})
        return
    if not rows:
        typer.echo(f"no commit of {ref} changed that path", err=True)
    for row in rows:
        first = str(row["message"]).splitlines()[:1]
        typer.echo(f"{str(row['id'])[:12]}  {row['created']:%Y-%m-%d %H:%M:%S}  {''.join(first)}")


def doctor(
    repo: Repo = None,
    break_lock: Annotated[str | None, typer.Option("--break-lock", help="Break the lock of this branch.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Remove what dead sessions left behind.")] = False,
    as_json: Json = False,
) -> None:
    """Look at the machine and the repository, and say what is wrong and what to do. Exit code 6: something is."""
    from lake.clone_plan import LANE
    from lake.engines.embedded import EmbeddedRepository
    from lake.locks import break_lock as break_it
    from lake.locks import locks
    from lake.opening import sweep as sweep_up
    from releases import guard, retention
    from releases.app.health import examine, faults, stored_bytes

    findings = examine()
    held = []
    try:
        where = locate(repo)
    except LakeError as error:
        findings.append(("repository", "none", error.message))
    else:
        lake = open_repo(where)
        findings.append(("repository", "ok", where))
        if lake.branches(LANE):
            findings.append(("clone", "unfinished", "`emlake clone` the same source here again before anything else"))
        if isinstance(lake, EmbeddedRepository):
            findings += lake.examine()
        findings += guard.examine(lake) + retention.examine(lake) + stored_bytes(lake)
        if break_lock is not None:
            if break_it(lake, break_lock) is None:
                raise NotFound(f"there is no lock on {break_lock!r}", fix="`emlake doctor` lists those that are held")
            findings.append(("lock", "broken", f"lock.{break_lock}; its owner is refused when it lands"))
        if sweep:
            findings.append(("sweep", "done", f"{counted(len(sweep_up(lake)), 'leftover')} removed"))
        held = [
            {"branch": lock.branch, "owner": lock.process.owner, "host": lock.process.host, "state": lock.state}
            for lock in locks(lake)
        ]
        findings += [("lock", lock["state"], f"{lock['branch']} by {lock['owner']} on {lock['host']}") for lock in held]
    if as_json:
        print_json(
            {"findings": [dict(zip(("what", "state", "detail"), f, strict=True)) for f in findings], "locks": held}
        )
    else:
        wide = [max(len(finding[column]) for finding in findings) for column in (0, 1)]
        for what, state, detail in findings:
            typer.echo(f"{what:{wide[0]}}  {state:{wide[1]}}  {detail}")
    if wrong := faults(findings):
        told = ", ".join(dict.fromkeys(f"{what} {state}" for what, state, _ in wrong))
        raise StorageError(f"something is wrong: {told}", fix="do what is said above, then run `emlake doctor` again")


@server.command()
def start(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65_535, help="Port on 127.0.0.1; a free one if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a lakeFS server with local storage, or say where it runs already."""
    from lake.server import start as run_server

    state = run_server(port)
    if as_json:
        print_json({"endpoint": state.endpoint, "pid": state.pid})
    else:
        typer.echo(f"lakeFS answers at {state.endpoint}; use --repo lakefs://{state.endpoint.split('://')[-1]}/NAME")


@server.command()
def stop() -> None:
    """Stop the server that `start` started."""
    from lake.server import stop as stop_server

    typer.echo("stopped" if stop_server() else "none was running")


@server.command()
def status(as_json: Json = False) -> None:
    """Say whether the server runs, and where."""
    from lake.server import status as server_status

    state = server_status()
    if as_json:
        print_json({"running": state is not None, "endpoint": state.endpoint if state else None})
    else:
        typer.echo(f"runs at {state.endpoint}, pid {state.pid}" if state else "does not run")
