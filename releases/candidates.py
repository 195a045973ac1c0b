"""Makes candidates: a fresh branch off main, brought up to date with it, or a rolled-back release made again."""

from collections.abc import Iterator
from datetime import UTC, datetime

from lake.admission import QC_TABLES
from lake.digests import canonical_json
from lake.errors import AlreadyExists, BadInput, ConflictError, NothingToCommit, ObjectNotFound
from lake.names import check_release
from lake.repository import CommitId, Repository
from releases.gate import candidate_branch
from releases.history import current, find, history

QC_PREFIXES = ("_qc/", *QC_TABLES)
NOT_WORKED_ON = {
    "main": "it takes releases only",
    "archive": "it takes raw tiles only",
    "ops": "it takes records of what was done only",
}


def candidate(repo: Repository, name: str, *, again: str | None = None) -> CommitId:
    """Make branch `cand-<name>` off main and return its head.

    Its first commit drops the verdicts and reports it inherited and records the archive commit it works from.

    Parameters
    ----------
    again : str
        A rolled-back release to make again: the revert is reverted on the fresh branch, so the data come back and are
        judged anew. (Merging the old branch again would leave most of it out.) `ConflictError` if a later release
        changed the same units; `BadInput` if it was not rolled back.

    Raises
    ------
    InvalidName, AlreadyExists
        The name is not a release name, or was used before, by a candidate, a release or a tag.
    """
    check_release(name)
    branch = f"cand-{name}"
    used = {release.name for release in history(repo)} | set(repo.tags()) | set(repo.branches())
    if name in used or branch in used:
        raise AlreadyExists(f"release name {name!r} is taken", fix="a name is used once, ever: choose another")
    undone = _undone(repo, again) if again else None
    repo.create_branch(branch, "main")
    try:
        return _first_commit(repo, branch, name, again, undone)
    except BaseException:
        # A branch without its first commit is no candidate, and its name would be lost for ever.
        repo.delete_branch(branch)
        raise


def _undone(repo: Repository, again: str) -> CommitId:
    old = find(repo, again)
    if old.undone_by is None:
        raise BadInput(f"release {again!r} was not rolled back", fix="`--again` is for rolled-back releases")
    return old.undone_by


def _first_commit(repo: Repository, branch: str, name: str, again: str | None, undone: CommitId | None) -> CommitId:
    if undone is not None:
        repo.revert(branch, undone, message=f"data of {again}, made again as {name}", metadata={"again": again or ""})
    archive = repo.resolve("archive")
    base = current(repo)
    record = {
        "name": name,
        "archive_commit": archive,
        "base_commit": repo.resolve("main"),
        "parent_release": base.name if base else None,
        "again": again,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with repo.session(branch, owner=f"release candidate {name}") as session:
        session.delete(list(_keys(repo, repo.resolve(branch), QC_PREFIXES)))
        session.put(f"_releases/{name}/candidate.json", canonical_json(record), content_type="application/json")
        return session.commit(f"candidate {name}", {"candidate": name, "archive_commit": archive})


def refresh(repo: Repository, name: str) -> CommitId:
    """Merge main into the candidate by whole units and return its head; it must then be run and judged anew.

    A unit changed on both sides is a `ConflictError`. QC tables and verdicts are not counted: they are dropped here,
    since QC replaces them whole.
    """
    branch = candidate_branch(repo, name)
    release = branch.removeprefix("cand-")
    check_workable(repo, branch)
    message = f"main merged into {branch}"
    try:
        repo.merge(
            "main",
            branch,
            message,
            {"refreshed": release},
            strategy="dest-wins",
            contested=QC_PREFIXES,
            expect_head=repo.resolve(branch),
        )
    except NothingToCommit:
        return repo.resolve(branch)
    except ConflictError as error:
        if not error.units and not error.keys:
            raise
        listed = ", ".join([*error.units, *error.keys])
        raise ConflictError(
            f"{branch} and main both changed: {listed}",
            fix="make a new candidate off main and run the pipeline on it",
            units=error.units,
            keys=error.keys,
        ) from error
    with repo.session(branch, owner=f"release refresh {release}") as session:
        session.delete(list(_keys(repo, repo.resolve(branch), QC_PREFIXES)))
        return session.commit(f"QC dropped from {branch}: the data changed", {"refreshed": release}, allow_empty=True)


def check_workable(repo: Repository, branch: str) -> None:
    """Raise unless pipelines, imports and QC may write to `branch`.

    Raises
    ------
    BadInput
        It is `main`, `archive` or `ops`: a session could write there, and main would hold what no gate has seen.
    ConflictError
        It is the candidate of a release that is out: what it holds is that release.
    """
    if branch in NOT_WORKED_ON:
        raise BadInput(
            f"{branch!r} is not a branch to work on: {NOT_WORKED_ON[branch]}",
            fix="make a candidate, `emlake release candidate NAME`, and work on cand-NAME",
        )
    release = branch.removeprefix("cand-")
    if branch.startswith("cand-") and release in {r.name for r in history(repo)}:
        raise ConflictError(
            f"{release!r} was published: branch {branch!r} stays as it went out",
            fix=f"make a new candidate; `--again {release}` if it was rolled back",
        )


def archive_commit(repo: Repository, name: str) -> CommitId | None:
    """Give the archive commit that candidate `name` works from."""
    import json

    branch = candidate_branch(repo, name)
    try:
        record = json.loads(repo.get(repo.resolve(branch), f"_releases/{branch.removeprefix('cand-')}/candidate.json"))
    except ObjectNotFound:
        return None
    return str(record["archive_commit"])


def _keys(repo: Repository, commit: CommitId, prefixes: tuple[str, ...]) -> Iterator[str]:
    for prefix in prefixes:
        for stat in repo.list(commit, prefix):
            yield stat.key
