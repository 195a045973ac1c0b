"""Which releases main has held, read from main's own commits: they are the truth, `ops.releases` is an index."""

from dataclasses import dataclass, replace
from datetime import datetime

from lake.clones import original_time, origins, parents_of
from lake.errors import NotFound, nearest
from lake.repository import Commit, CommitId, Repository


@dataclass(frozen=True, slots=True)
class Release:
    """One publication.

    Attributes
    ----------
    merge : commit id
        The merge on main that is the release; its metadata hold `release`, `qc` and `manifest_digest`.
    parents : (commit id, commit id)
        Main before it, and the candidate; also where the merge is a clone that could not be given the second.
    undone_by : commit id or None
        The revert on main that rolled it back.
    """

    name: str
    merge: CommitId
    parents: tuple[CommitId, ...]
    qc: CommitId
    manifest_digest: str
    created: datetime
    undone_by: CommitId | None = None

    @property
    def previous_main(self) -> CommitId:
        """Main's head before the release."""
        return self.parents[0]


def history(repo: Repository) -> list[Release]:
    """List every release that main has held, oldest first, rolled-back ones included.

    Whoever undoes a rollback brings its release back.
    """
    found: dict[CommitId, Release] = {}
    # By all ids of a commit, also those that it had where this repository was cloned from.
    merges: dict[CommitId, CommitId] = {}
    rollbacks: dict[CommitId, tuple[CommitId, CommitId | None]] = {}  # the release, and what had undone it before
    for commit in reversed(list(repo.log("main", first_parent=True))):
        ids = (commit.id, *origins(commit.metadata))
        undone = commit.metadata.get("rollback_of", "")
        if is_release(repo, commit):
            found[commit.id] = _release(repo, commit)
            merges |= dict.fromkeys(ids, commit.id)
        elif undone in merges or undone in rollbacks:
            merge, by = (merges[undone], commit.id) if undone in merges else rollbacks[undone]
            rollbacks |= dict.fromkeys(ids, (merge, found[merge].undone_by))
            found[merge] = replace(found[merge], undone_by=by)
    return list(found.values())


def standing(repo: Repository) -> list[Release]:
    """List the releases that main holds now, oldest first; the last one's tree is main's."""
    return [release for release in history(repo) if release.undone_by is None]


def current(repo: Repository) -> Release | None:
    """Give the release whose tree main holds, or None before the first."""
    held = standing(repo)
    return held[-1] if held else None


def find(repo: Repository, name: str) -> Release:
    """Give release `name`, or raise `NotFound` with the nearest name."""
    known = {release.name: release for release in history(repo)}
    if name not in known:
        raise NotFound(f"there is no release {name!r}", fix=nearest(name, known))
    return known[name]


def is_release(repo: Repository, commit: Commit) -> bool:
    """Tell whether a commit of main says that it is a release, and merges."""
    return "release" in commit.metadata and len(parents_of(repo, commit)) == 2


def _release(repo: Repository, commit: Commit) -> Release:
    meta, digest = commit.metadata, commit.metadata.get("manifest_digest", "")
    return Release(meta["release"], commit.id, parents_of(repo, commit), meta["qc"], digest, original_time(commit))
