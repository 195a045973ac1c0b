"""Rebuilds commits of another repository on a server.

lakeFS commits what is staged with one parent. Its API also takes a *commit record*: any parents, message, metadata,
committer and time over the tree (`metarange`) of a commit that is there already. The server demands that the record's
id is the hash of what it says (`identity`). So a commit is rebuilt in two steps: stage and commit on a work branch,
which makes the tree; then a record over that tree. The first commit is left to the server, unreachable. Servers that
take no records: `plain`.

A protected branch is moved by lifting its rules and putting them back. What was lifted is noted in the repository's
metadata first, so that whoever comes after a killed process puts it back.
"""

import json
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lake.clones import Held, Move
from lake.durable import point
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.identity import identity_of
from lake.engines.lakefs.protection import Protection
from lake.engines.lakefs.wire import Wire
from lake.errors import BadInput, ConflictError, LakeError, NotFound, ProtectedBranch, StorageError
from lake.repository import Commit, CommitId

if TYPE_CHECKING:
    from lake.engines.lakefs.repository import LakeFSRepository

_LIFTED = "emlake.lifted-protection"
_COMMIT = ("id", "meta_range_id", "generation")
#: Rules are cached for 3 s and up to 3 s of jitter.
_PATIENCE_S = 20.0
_VERSION = 1
#: How the server answers to the record of a commit that it has.
THERE = 409


class LakeFSImporter:
    """See `lake.clones.Importer`."""

    precision = timedelta(seconds=1)
    content_addressed = False

    def __init__(self, repo: "LakeFSRepository", wire: Wire, protection: Protection) -> None:
        self._repo = repo
        self._wire = wire
        self._protection = protection
        self._generations: dict[CommitId, int] = {}

    @staticmethod
    def seconds(like: Commit) -> int:
        """Give the time of a commit as the server takes it."""
        return int(like.created.timestamp() // 1)

    # -- commits --------------------------------------------------------------------------------------------------
    def commit(self, branch: str, like: Commit) -> CommitId:
        """Turn what is staged on `branch` into a commit like `like`, and move the branch there."""
        tree = self._tree(branch)
        point("rebuild.tree-made")
        generation = 1 + max((self._generation(parent) for parent in like.parents), default=0)
        says = {
            "committer": like.committer,
            "message": like.message,
            "creation_date": self.seconds(like),
            "parents": list(like.parents),
            "metadata": dict(like.metadata),
        }
        made = identity_of({**says, "meta_range_id": tree})
        record = {"commit_id": made, "version": _VERSION, "metarange_id": tree, "generation": generation}
        body = {**says, **record}
        try:
            self._wire.call(
                self._wire.sdk.internal_api.create_commit_record, self._wire.name, body, doing="rebuild a commit"
            )
        except ConflictError as error:
            if status_of(error) != THERE:
                raise
            # Made by a run that was killed: the id says that it is the same.
        except BadInput as error:
            raise StorageError(
                f"this server refuses the record of a cloned commit: {error.message}",
                fix="report this with the server's version; a newer server may compute commit ids otherwise",
            ) from error
        self._generations[made] = generation
        point("rebuild.recorded")
        self._point(branch, made)
        point("rebuild.ref-moved")
        return made

    def _tree(self, branch: str) -> str:
        """Commit what is staged, if anything is, and name the tree of the branch."""
        if next(self._repo.uncommitted(branch), None) is not None:
            self._repo.commit(branch, "the tree of a cloned commit")
        return str(self._described(self._repo.head(branch))["meta_range_id"])

    def _described(self, commit: CommitId) -> dict[str, Any]:
        return self._wire.json(f"/commits/{commit}", fields=_COMMIT, doing=f"look up commit {commit[:12]}")

    def _generation(self, commit: CommitId) -> int:
        if commit not in self._generations:
            self._generations[commit] = int(self._described(commit)["generation"])
        return self._generations[commit]

    def reuse(self, branch: str, key: str, held: Held, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Let the server copy an object that it holds; type and metadata must be those of the copy."""
        if not held.ref:
            return False
        body = {"src_path": held.key, "src_ref": held.ref}
        doing = f"copy {held.key!r} to {key!r}"
        try:
            self._wire.call(
                self._wire.sdk.objects_api.copy_object, self._wire.name, branch, key, body, doing=doing, safe=True
            )
        except NotFound:
            return False
        copy = self._repo.stat(branch, key)
        return (copy.size, copy.checksum, copy.content_type, dict(copy.metadata)) == (
            held.size,
            held.checksum,
            content_type,
            dict(metadata),
        )

    # -- branches -------------------------------------------------------------------------------------------------
    def move(self, moves: Iterable[Move]) -> None:
        """Move branches; rules that protect them are lifted for as long as that takes, and put back."""
        todo = list(moves)
        self._put_back()
        for move in todo:
            if move.expected is None:
                self._repo.create_branch(move.branch, move.to)
        forward = [(move.branch, move.expected, move.to) for move in todo if move.expected is not None]
        names = [branch for branch, _, _ in forward]
        lifted = [rule for rule in self._protection.patterns() if any(fnmatchcase(name, rule) for name in names)]
        if lifted:
            note = {"metadata": {_LIFTED: json.dumps(lifted)}}
            self._wire.call(
                self._wire.sdk.internal_api.set_repository_metadata, self._wire.name, note, doing="note lifted rules"
            )
            point("forward.noted")
            self._protection.remove(lifted)
            point("forward.lifted")
        try:
            for branch, expected, to in forward:
                self._forward(branch, expected, to)
        finally:
            if lifted:
                self._put_back()

    def _put_back(self) -> None:
        """Put back the rules that this process, or a killed one, has lifted."""
        answer = self._wire.call(
            self._wire.sdk.repositories_api.get_repository_metadata, self._wire.name, doing="read lifted rules"
        )
        noted = dict(answer or {}).get(_LIFTED)
        if noted is None:
            return
        self._protection.add(json.loads(noted))
        self._wire.call(
            self._wire.sdk.internal_api.delete_repository_metadata,
            self._wire.name,
            {"keys": [_LIFTED]},
            doing="forget lifted rules",
        )

    def _forward(self, branch: str, expected: CommitId, to: CommitId) -> None:
        head = self._repo.head(branch)
        if head != expected:
            raise ConflictError(f"branch {branch!r} is at {head}, not at {expected}", fix="look at what came in")
        self._point(branch, to)
        point("forward.ref-moved")

    def _point(self, branch: str, commit: CommitId) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._wire.call(
                    self._wire.sdk.experimental_api.hard_reset_branch,
                    self._wire.name,
                    branch,
                    commit,
                    doing=f"move {branch!r} to {commit[:12]}",
                    safe=True,
                )
            except ProtectedBranch:
                # The server goes on believing in a rule for some seconds after it was lifted.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            except LakeError as error:
                if status_of(error) == 400:
                    raise ConflictError(f"branch {branch!r} has staged changes", fix="commit or reset them") from error
                raise
            else:
                return
