"""Publishes a candidate and rolls a release back. Both can be killed after any step and run again.

The merge commit with metadata `release=<name>` *is* the release::

    verdict ok -> V: verdict and release files on top of Q -> merge V into main -> tag -> row on ops
                  ^ nothing has happened for readers        ^ released              ^ added when run again

The revert with metadata `rollback_of=<merge>` is the rollback, its record on `ops` likewise added when run again.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from lake import durable
from lake.digests import canonical_json
from lake.errors import ConflictError, GateRefused, NotFound, StorageError, TableNotFound
from lake.ops import append_rows
from lake.repository import CommitId, Repository
from lake.tables import collect
from releases.gate import candidate_branch, judge
from releases.guard import check_main, unlike
from releases.history import Release, current, find, history, standing
from releases.manifest import build_release_files, manifest_digest, read_manifest
from releases.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` did: the release, and whether this call made it."""

    release: Release
    verdict: str
    made: bool


@contextmanager
def main_locked(repo: Repository, owner: str, wait_s: float = 30.0) -> Iterator[None]:
    """Hold `lock.main`: one publication or rollback at a time."""
    session = repo.session("main", owner=owner, wait_s=wait_s, resume=False)
    try:
        yield
    finally:
        session.abandon()


def publish(repo: Repository, name: str, *, user: str) -> Published:
    """Gate, manifest, merge, tag, record; the candidate's tree becomes main's.

    Raises
    ------
    GateRefused
        A gate fails or is unknown; the message names metric, region and both values.
    ConflictError
        Main holds what the candidate lacks (`release refresh`), or moved meanwhile.
    """
    release = name.removeprefix("cand-")
    with main_locked(repo, f"publish {release}"):
        done = {r.name: r for r in history(repo)}.get(release)
        if done is None:
            merge = _merge(repo, release, user)
            done = find(repo, release)
            assert done.merge == merge  # the lock is ours: nobody else can have published it
            made = True
        else:
            made = False
        manifest = read_manifest(repo, release, done.merge)
        _finish(repo, done, manifest, user)
    return Published(done, manifest["qc"]["status"], made)


def _merge(repo: Repository, release: str, user: str) -> CommitId:
    branch = candidate_branch(repo, release)
    dest = repo.resolve("main")
    check_main(repo, dest)
    lacking = next(iter(repo.diff(branch, dest, three_dot=True)), None)
    if lacking is not None:
        raise ConflictError(
            f"main holds what {branch} lacks: {lacking.key}",
            fix=f"`emlake release refresh {release}`, then run, QC and publish",
            keys=[lacking.key],
        )
    verdict = judge(repo, release)
    if verdict.refusals:
        raise GateRefused(
            refused(release, verdict), fix=f"`emlake release gate {release}` lists every gate; mend or waive"
        )
    durable.point("publish.judged")
    digest = _write_release_files(repo, branch, release, verdict)
    durable.point("publish.files-committed")
    metadata = {
        "release": release,
        "qc": verdict.commit,
        "expect_dest": dest,
        "manifest_digest": digest,
        "user": user,
    }
    # From here on a commit, not the branch: whatever is written to it meanwhile was not judged.
    head = repo.resolve(branch)
    try:
        merge = repo.merge(head, "main", f"release {release}", metadata, expect_head=dest)
    except GateRefused as error:
        raise GateRefused(
            f"{branch}: {error.message}", fix=f"run `emlake qc run {branch}` and publish again"
        ) from error
    durable.point("publish.merged")
    _check_landed(repo, dest, head, merge, user)
    return merge


def _check_landed(repo: Repository, dest: CommitId, head: CommitId, merge: CommitId, user: str) -> None:
    """Undo a merge that did not give main the tree that was judged, whatever let it through."""
    why = unlike(repo, repo.commit_info(merge), dest, head)
    if why is None:
        return
    undone = repo.revert(
        "main", merge, parent=1, message=f"undo {merge}: {why}", metadata={"rollback_of": merge, "user": user}
    )
    raise ConflictError(
        f"the merge {merge} is not what was judged: {why}; {undone} undid it",
        fix="run `emlake doctor`, then make the candidate again under a new name",
    )


def refused(release: str, verdict: Verdict, limit: int = 8) -> str:
    """Say in one text what blocks: each metric with its region and both values."""
    shown = "; ".join(result.sentence for result in verdict.refusals[:limit])
    more = len(verdict.refusals) - limit
    return f"{release}: {shown}" + (f"; and {more} more" if more > 0 else "")


def _write_release_files(repo: Repository, branch: str, release: str, verdict: Verdict) -> str:
    """Put verdict and release files on top of Q in one commit (V) and return the manifest's digest."""
    head = repo.commit_info(branch)
    key = f"_releases/{release}/manifest.json"
    if head.metadata.get("judged") == verdict.commit and head.metadata.get("dest") == verdict.dest:
        # Killed between V and the merge: V is whole, and writing it again would only change times.
        stored = Verdict.from_json(json.loads(repo.get(head.id, f"_qc/{verdict.commit}.json")))
        if stored == verdict:
            return manifest_digest(repo.get(head.id, key))
    files = build_release_files(repo, release, verdict)
    with repo.session(branch, owner=f"publish {release}") as session:
        session.put(f"_qc/{verdict.commit}.json", canonical_json(verdict.to_json()), content_type="application/json")
        for path, data in files.items():
            session.put(path, data)
        session.commit(f"verdict and manifest of {release}", {"judged": verdict.commit, "dest": verdict.dest})
    return manifest_digest(files[key])


def _finish(repo: Repository, release: Release, manifest: dict[str, Any], user: str) -> None:
    """Add whatever a killed publish left out: the tag, the rows on `ops`."""
    tag = repo.tags().get(release.name)
    if tag is None:
        repo.create_tag(release.name, release.merge)
        durable.point("publish.tagged")
    elif tag != release.merge:
        raise ConflictError(
            f"tag {release.name!r} is on {tag[:12]}, not on the release {release.merge[:12]}",
            fix="somebody moved a release tag: delete it and run publish again",
        )
    if _recorded(repo, "releases", pl.col("release") == release.name):
        return
    identity, lineage, qc = manifest["identity"], manifest["lineage"], manifest["qc"]
    now = datetime.now(UTC)
    row = {
        "release": release.name,
        "commit": release.merge,
        "qc_commit": release.qc,
        "data_commit": identity["data_commit"],
        "archive_commit": identity["archive_commit"],
        "ops_commit": identity["ops_commit"],
        "manifest_digest": release.manifest_digest,
        "parent": identity["parent_release"],
        "verdict": qc["status"],
        "run_ids": [run["run_id"] for run in lineage["runs"]],
        "model_digests": lineage["models"],
        "operations": identity["operations"],
        "ts": now,
        "user": user,
    }
    waived = [r["sentence"] if "sentence" in r else r["gate"] for r in qc["results"] if r["outcome"] == "waived"]
    decision = _decision(
        "publish",
        release.name,
        None,
        release.merge,
        {"verdict": qc["status"], "waived": sorted(set(waived))},
        f"published with verdict {qc['status']}",
        user,
        now,
    )
    append_rows(
        repo,
        "ops",
        {"releases": pl.DataFrame([row]), "decisions": pl.DataFrame([decision])},
        message=f"release {release.name}",
    )


def _recorded(repo: Repository, table: str, where: pl.Expr) -> bool:
    with repo.snapshot("main") as snapshot:
        try:
            return snapshot.table(table, schema="ops").filter(where).limit(1).pipe(collect).height > 0
        except TableNotFound:
            return False


def _decision(
    kind: str,
    release: str,
    target: str | None,
    commit: str,
    criteria: dict[str, Any],
    reason: str,
    user: str,
    now: datetime,
) -> dict[str, Any]:
    return {
        "decision_id": uuid.uuid4().hex,
        "kind": kind,
        "release": release,
        "target": target,
        "commit": commit,
        "criteria": canonical_json(criteria).decode(),
        "reason": reason,
        "incident": None,
        "ts": now,
        "user": user,
    }


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What `rollback` did: which release went, what main holds now, and by which commit."""

    release: str
    restored: str | None
    commit: CommitId
    made: bool


def plan_rollback(repo: Repository, name: str | None = None) -> tuple[Release, Release | None]:
    """Give (release to undo, release that main will hold), or raise why it cannot be done. Changes nothing."""
    held = standing(repo)
    if not held and name is None:
        raise NotFound("main holds no release", fix="`emlake release list` shows what there was")
    release = held[-1] if name is None else find(repo, name)
    if release.undone_by is None and release != held[-1]:
        newer = [r.name for r in held[[r.name for r in held].index(release.name) + 1 :]]
        raise ConflictError(
            f"{release.name!r} is not the newest release: {', '.join(reversed(newer))} would go with it",
            fix="roll back, one by one and newest first: " + ", ".join([*reversed(newer), release.name]),
        )
    if release.undone_by is None:
        drift = next(iter(repo.diff(release.merge, "main")), None)
        if drift is not None:
            raise ConflictError(
                f"main's tree is not that of {release.name!r}: {drift.key} differs",
                fix="find out who moved main (`emlake log main`) before anything is undone",
            )
    left = [r for r in held if r.name != release.name]
    return release, left[-1] if left else None


def rollback(repo: Repository, name: str | None = None, *, user: str, reason: str) -> RolledBack:
    """Give main the tree it had before the release, by one new commit; no tag moves, nothing is deleted.

    Parameters
    ----------
    name : str
        The newest standing release; None means that one. An older one is a `ConflictError` that lists the newer.
    """
    with main_locked(repo, f"rollback {name or 'newest'}"):
        release, target = plan_rollback(repo, name)
        made = release.undone_by is None
        if made:
            commit = repo.revert(
                "main",
                release.merge,
                parent=1,
                message=f"rollback of {release.name}",
                metadata={"rollback_of": release.merge, "undone": release.name, "user": user},
            )
            durable.point("rollback.reverted")
        else:
            commit = release.undone_by or ""
        differs = next(iter(repo.diff(release.previous_main, commit)), None)
        if differs is not None:
            raise StorageError(
                f"after the rollback main differs from what it held before {release.name!r}: {differs.key}",
                fix="the revert is kept as it is; look at `emlake log main` and undo by hand",
            )
        if not _recorded(repo, "decisions", (pl.col("kind") == "rollback") & (pl.col("release") == release.name)):
            row = _decision(
                "rollback",
                release.name,
                target.name if target else None,
                commit,
                {"tree_equals": release.previous_main},
                reason,
                user,
                datetime.now(UTC),
            )
            append_rows(repo, "ops", {"decisions": pl.DataFrame([row])}, message=f"rollback of {release.name}")
    return RolledBack(release.name, target.name if target else None, commit, made)


__all__ = ["Published", "RolledBack", "current", "plan_rollback", "publish", "rollback"]
