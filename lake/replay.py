"""What revert and cherry-pick, which play one commit again elsewhere, ask of it on every engine."""

from lake.clones import original_metadata
from lake.errors import BadInput
from lake.repository import Commit, Metadata

ORIGIN = "cherry-pick-origin"
COMMITTER = "cherry-pick-committer"


def check_parent(ref: str, commit: Commit, parent: int | None) -> int:
    """Give the number (from 1) of the parent that `commit` is compared with, or raise `BadInput`.

    A merge must be told which; the first commit of a repository has none, changed nothing, and gives 1.
    """
    if parent is None and len(commit.parents) > 1:
        raise BadInput(f"{ref!r} is a merge", fix="give parent=1: what it did to the branch that it was merged into")
    if parent is not None and not 1 <= parent <= len(commit.parents):
        raise BadInput(f"{ref!r} has no parent {parent}", fix=f"it has {len(commit.parents)}")
    return parent or 1


def picked_metadata(picked: Commit, given: Metadata | None) -> dict[str, str]:
    """Give the metadata of a cherry-pick, as lakeFS does: what was given or the commit's own, and where it is from.

    Of a cloned commit without what cloning added: its old ids lead to the clone, not to what was picked from it.
    """
    return {**(original_metadata(picked) if given is None else given), ORIGIN: picked.id, COMMITTER: picked.committer}
