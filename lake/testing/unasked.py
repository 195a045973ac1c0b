"""Moves main without asking its gate, as another program would: in the folder, or by a bare request to the server.

A server's own half of the gate is asked all the same.
"""

from lake.engines.embedded import commits
from lake.engines.embedded.merging import Rules
from lake.engines.embedded.repository import EmbeddedRepository
from lake.engines.lakefs.repository import LakeFSRepository
from lake.repository import NO_METADATA, CommitId, Metadata, Repository


def merge(repo: Repository, source: str, message: str, metadata: Metadata = NO_METADATA) -> CommitId:
    """Merge `source` into main, changes or none, and raise only what the server says."""
    if isinstance(repo, LakeFSRepository):
        wire = repo._wire
        body = {"message": message, "metadata": dict(metadata), "allow_empty": True}
        answer = wire.call(wire.sdk.refs_api.merge_into_branch, wire.name, source, "main", body, doing=message)
        return str(answer.reference)
    assert isinstance(repo, EmbeddedRepository)
    return commits.merge(
        repo._engine,
        Rules("main", source),
        message,
        dict(metadata),
        lambda head, theirs: None,
        squash=False,
        allow_empty=True,
        expect_head=None,
    )


def cherry_pick(repo: Repository, ref: str, metadata: Metadata = NO_METADATA) -> CommitId:
    """Bring what commit `ref` changed into main, and raise only what the server says."""
    if isinstance(repo, LakeFSRepository):
        wire = repo._wire
        body = {"ref": ref, "commit_overrides": {"metadata": dict(metadata)}}
        answer = wire.call(wire.sdk.branches_api.cherry_pick, wire.name, "main", body, doing="cherry-pick")
        return str(answer.id)
    assert isinstance(repo, EmbeddedRepository)
    return commits.cherry_pick(repo._engine, "main", ref, None, "", dict(metadata), lambda head: None)
