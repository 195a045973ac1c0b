"""What the contract writes and reads: trees as dictionaries of key to bytes."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lake.locks import Process
from lake.repository import NO_METADATA, Change, CommitId, Metadata, Repository

Edit = Mapping[str, bytes | None]


def stage(repo: Repository, branch: str, edit: Edit) -> None:
    """Put what has bytes, delete what is None."""
    for key, data in edit.items():
        if data is not None:
            repo.put(branch, key, data)
    repo.delete(branch, [key for key, data in edit.items() if data is None])


def save(
    repo: Repository, branch: str, edit: Edit, message: str = "save", metadata: Metadata = NO_METADATA
) -> CommitId:
    """Stage `edit` on `branch` and commit it."""
    stage(repo, branch, edit)
    return repo.commit(branch, message, metadata)


def fork(repo: Repository, branch: str, edit: Edit, source: str = "main") -> CommitId:
    """Make `branch` off `source` with `edit` as its first commit."""
    repo.create_branch(branch, source)
    return save(repo, branch, edit, f"first on {branch}")


def tree(repo: Repository, ref: str, prefix: str = "") -> dict[str, bytes]:
    """Read everything under `prefix` at `ref`, in the order of the listing."""
    return {entry.key: repo.get(ref, entry.key) for entry in repo.list(ref, prefix)}


def kinds(changes: Iterable[Change]) -> dict[str, str]:
    """Turn a diff into key -> kind, in its order."""
    return {change.key: change.kind for change in changes}


def state(repo: Repository) -> dict[str, object]:
    """Everything a failed call must leave alone: refs, trees and what is staged."""
    branches = dict(repo.branches())
    return {
        "branches": branches,
        "tags": dict(repo.tags()),
        "trees": {name: tree(repo, f"{name}@") for name in branches},
        "staged": {name: list(repo.uncommitted(name)) for name in branches},
    }


def ended_process(owner: str) -> Process:
    """Describe a process on this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return replace(Process.current(owner), pid=child.pid)


def process_elsewhere(owner: str) -> Process:
    """Describe a process on a machine that cannot be looked at from here."""
    return replace(Process.current(owner), host="elsewhere", machine="m", boot="b", space="s")
