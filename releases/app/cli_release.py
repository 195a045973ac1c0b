"""`emlake release`: candidate, refresh, gate, waive, publish, list, show, diff, verify, notes, rollback."""

import getpass
from typing import Annotated, Any

import typer

from lake.errors import GateRefused, StorageError
from lake.wording import counted
from releases.app.cli_options import Json, Repo, open_repo, print_json

Name = Annotated[str, typer.Argument(help="Name of the release or candidate (without cand-).")]
User = Annotated[str, typer.Option("--user", help="Who does it.", show_default="you", default_factory=getpass.getuser)]

group = typer.Typer(help="Candidates, gates, publication, rollback.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the group to the root."""
    app.add_typer(group, name="release")


@group.command()
def candidate(
    name: Name,
    repo: Repo = None,
    again: Annotated[str | None, typer.Option("--again", help="A rolled-back release to make again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Make branch cand-NAME off main."""
    from releases.candidates import candidate as make

    lake = open_repo(repo)
    if dry_run:
        typer.echo(f"would make branch cand-{name} off main at {lake.resolve('main')[:12]}")
        return
    commit = make(lake, name, again=again)
    typer.echo(f"cand-{name} is at {commit}")


@group.command()
def refresh(name: Name, repo: Repo = None) -> None:
    """Merge main into candidate NAME; run the pipeline and QC again afterwards."""
    from releases.candidates import refresh as merge_main

    commit = merge_main(open_repo(repo), name)
    typer.echo(f"cand-{name.removeprefix('cand-')} is at {commit}; run its pipeline and QC again")


@group.command()
def gate(name: Name, repo: Repo = None, as_json: Json = False) -> None:
    """Decide whether candidate NAME may be published; changes nothing."""
    from releases.gate import judge
    from releases.publish import refused

    verdict = judge(open_repo(repo), name)
    if as_json:
        print_json({"candidate": name, "passed": not verdict.refusals, **verdict.to_json()})
    else:
        counts: dict[str, int] = {}
        for result in verdict.results:
            counts[result.outcome] = counts.get(result.outcome, 0) + 1
            if result.outcome != "pass":
                typer.echo(f"{result.outcome:8} {result.sentence}{'; ' + result.waiver if result.waiver else ''}")
        typer.echo(f"{verdict.status}: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    if verdict.refusals:
        raise GateRefused(
            refused(name, verdict), fix=f"mend it, or `emlake release waive {name} GATE --owner ... --reason ...`"
        )


@group.command()
def waive(
    name: Name,
    gate_id: Annotated[str, typer.Argument(metavar="GATE", help="Gate id, or suite:NAME.")],
    owner: Annotated[str, typer.Option("--owner", help="Who answers for it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, in a sentence.")],
    repo: Repo = None,
    scope_id: Annotated[str, typer.Option("--at", help="Region, section or tile; every place if left out.")] = "",
    days: Annotated[int, typer.Option("--days", help="Days until it expires.")] = 14,
) -> None:
    """Record that a gate of candidate NAME may fail, for a reason and a time."""
    from releases.waivers import waive as record

    waiver = record(open_repo(repo), name, gate_id, owner=owner, reason=reason, days=days, scope_id=scope_id)
    typer.echo(f"waiver {waiver}: {gate_id} of {name} for {counted(days, 'day')}")


@group.command()
def publish(name: Name, user: User, repo: Repo = None, as_json: Json = False) -> None:
    """Publish candidate NAME: gate, manifest, merge into main, tag. Run again after an interruption."""
    from releases.publish import publish as put_out

    done = put_out(open_repo(repo), name, user=user)
    data = {
        "release": done.release.name,
        "commit": done.release.merge,
        "manifest_digest": done.release.manifest_digest,
        "verdict": done.verdict,
        "made": done.made,
    }
    if as_json:
        print_json(data)
    else:
        typer.echo(
            f"release {done.release.name} is {done.release.merge} ({done.verdict})"
            + ("" if done.made else ", as before")
        )


@group.command("list")
def list_releases(repo: Repo = None, as_json: Json = False) -> None:
    """List every release, oldest first, and what became of it."""
    from releases.history import history

    rows = [
        {
            "release": r.name,
            "commit": r.merge,
            "created": r.created,
            "manifest_digest": r.manifest_digest,
            "state": "rolled back" if r.undone_by else "stands",
        }
        for r in history(open_repo(repo))
    ]
    if as_json:
        print_json({"releases": rows})
        return
    for row in rows:
        typer.echo(f"{row['release']:16} {str(row['commit'])[:12]}  {row['created']:%Y-%m-%d %H:%M}  {row['state']}")


@group.command()
def show(name: Name, repo: Repo = None, as_json: Json = False) -> None:
    """Show the manifest of release NAME."""
    manifest = _manifest(repo, name)
    if as_json:
        print_json(manifest)
        return
    identity = manifest["identity"]
    for key, value in identity.items():
        typer.echo(f"{key:16} {'-' if value is None else value}")
    for artifact in manifest["artifacts"]:
        objects, size = counted(artifact["objects"], "object"), counted(artifact["bytes"], "byte")
        typer.echo(f"{artifact['prefix']:40} {objects:>14} {size:>21}")


@group.command()
def notes(name: Name, repo: Repo = None) -> None:
    """Print the release notes of NAME."""
    from releases.history import find

    lake = open_repo(repo)
    typer.echo(lake.get(find(lake, name).merge, f"_releases/{name}/notes.md").decode())


@group.command()
def diff(
    old: Annotated[str, typer.Argument(help="Release, branch or commit.")],
    new: Annotated[str, typer.Argument(help="Release, branch or commit.")],
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Say what changed between two releases: roots, synapses, rows, regions."""
    from releases.diff import release_diff

    data = release_diff(open_repo(repo), old, new).to_json()
    if as_json:
        print_json(data)
        return
    typer.echo(f"roots     {data['roots_created']} created, {data['roots_retired']} retired, {data['roots_kept']} kept")
    synapses = (data[f"synapses_{what}"] for what in ("added", "removed", "rebound"))
    typer.echo("synapses  {} added, {} removed, {} re-bound".format(*synapses))
    for table, counts in data["tables"].items():
        rows = counted(counts["new"], "row")
        typer.echo(f"{table:16} {counts['old']} -> {rows}, {counts['added']} added, {counts['removed']} removed")
    for region in data["regions"]:
        if region["rebound_supervoxels"]:
            changed = f"{region['rebound_supervoxels']} of {region['supervoxels']} supervoxels changed"
            typer.echo(f"region {region['region']:8} {changed}")


@group.command()
def verify(name: Name, repo: Repo = None, as_json: Json = False) -> None:
    """Re-compute every digest of release NAME from the bytes."""
    from releases.verify import verify as check

    result = check(open_repo(repo), name)
    if as_json:
        print_json(
            {
                "release": name,
                "ok": result.ok,
                "objects": result.objects,
                "bytes": result.bytes,
                "faults": list(result.faults),
            }
        )
    else:
        outcome = "as its manifest says" if result.ok else "NOT as its manifest says"
        typer.echo(f"{name}: {counted(result.objects, 'object')}, {counted(result.bytes, 'byte')}: {outcome}")
    if not result.ok:
        raise StorageError(
            f"release {name}: " + "; ".join(result.faults[:5]),
            fix="restore the named objects from a copy; do not publish on top",
        )


@group.command()
def rollback(
    user: User,
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    name: Annotated[str | None, typer.Argument(help="The newest release; left out, that one.")] = None,
    repo: Repo = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Give main the tree it had before the newest release. Nothing is deleted; pinned readers go on reading."""
    from releases.publish import plan_rollback
    from releases.publish import rollback as undo

    lake = open_repo(repo)
    if dry_run:
        release, target = plan_rollback(lake, name)
        typer.echo(f"would undo {release.name}; main would hold {target.name if target else 'no release'}")
        return
    done = undo(lake, name, user=user, reason=reason)
    if as_json:
        print_json({"undone": done.release, "restored": done.restored, "commit": done.commit, "made": done.made})
    else:
        typer.echo(f"{done.release} is undone by {done.commit}; main holds {done.restored or 'no release'}")


def _manifest(repo: str | None, name: str) -> dict[str, Any]:
    from releases.history import find
    from releases.manifest import read_manifest

    lake = open_repo(repo)
    return read_manifest(lake, name, find(lake, name).merge)
