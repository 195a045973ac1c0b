"""Rebuilds commits of another repository on a server that takes no commit records.

A server may be too old for them, may forbid them to this user, stand behind a proxy that hides them, or compute the
ids of commits in another way. Whether it takes them is asked once, before anything is copied, by sending it the record
of a commit that it has: it then answers that it is there (409), and nothing has changed.

Else commits are made as anybody's are: by the server's commit, whose parent is the head of its branch, and merges by
the server's merge, where that gives the tree that is wanted.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from lake.clones import CannotMerge, plain_metadata
from lake.durable import point
from lake.engines.lakefs.failures import status_of
from lake.engines.lakefs.identity import identity_of
from lake.engines.lakefs.importing import THERE, LakeFSImporter
from lake.engines.lakefs.landing import land
from lake.engines.lakefs.protection import Protection
from lake.engines.lakefs.threeway import hidden_branch
from lake.engines.lakefs.wire import Wire
from lake.errors import LakeError, StorageError
from lake.repository import Commit, CommitId

if TYPE_CHECKING:
    from lake.engines.lakefs.repository import LakeFSRepository

_FIELDS = ("id", "parents", "message", "committer", "creation_date", "meta_range_id")
_UNAVAILABLE = (400, 401, 403, 404, 405, 501)
_UNMERGEABLE = (*_UNAVAILABLE, 409, 412)
_CREATED = (201, 204)
#: Of two sides that changed one object, the server's merge takes the one or the other.
_SIDES = ("source-wins", "dest-wins")


def importer_for(repo: "LakeFSRepository", wire: Wire, protection: Protection) -> LakeFSImporter:
    """Give the importer that fits the server."""
    why = _why_no_records(wire, repo.head("main"))
    return LakeFSImporter(repo, wire, protection) if why is None else PlainLakeFSImporter(repo, wire, protection, why)


def _why_no_records(wire: Wire, commit: CommitId) -> str | None:
    """Say why the server does not take commit records, or None if it does; changes nothing."""
    entry = wire.json(f"/commits/{commit}", fields=_FIELDS, doing=f"look up commit {commit[:12]}")
    if "generation" not in entry or identity_of(entry) != commit:
        return "it computes the ids of commits in a way that this version does not know"
    told = {name: entry[name] for name in ("committer", "message", "creation_date", "parents", "generation")}
    record = {"commit_id": commit, "version": entry.get("version", 1), "metarange_id": entry["meta_range_id"]}
    body = {**told, **record, "metadata": entry.get("metadata") or {}}
    doing = "ask for commit records"
    try:
        answer = wire.call(
            wire.sdk.internal_api.create_commit_record_with_http_info, wire.name, body, doing=doing, safe=True
        )
    except LakeError as error:
        if status_of(error) == THERE:
            return None
        if status_of(error) not in _UNAVAILABLE:
            raise
        return f"it takes no commit records ({status_of(error)}: {error.message.removeprefix(f'{doing}: ')})"
    # lakeFS itself answers a path it does not know with 200 and an HTML page.
    return None if answer.status_code in _CREATED else f"it knows no commit records (answer {answer.status_code})"


class PlainLakeFSImporter(LakeFSImporter):
    """See `lake.clones.PlainImporter`."""

    def __init__(self, repo: "LakeFSRepository", wire: Wire, protection: Protection, why: str) -> None:
        super().__init__(repo, wire, protection)
        self.why = why

    def commit(self, branch: str, like: Commit) -> CommitId:
        """Commit what is staged on `branch`, which stands at the parent of `like`, at the time of `like`."""
        head = self._repo.head(branch)
        if like.parents not in ((), (head,)):
            raise StorageError(f"{branch!r} is at {head}, not at {like.parents}", fix="run the clone again")

        def send(marked: dict[str, str]) -> CommitId:
            body = {"message": like.message, "metadata": marked, "allow_empty": True, "date": self.seconds(like)}
            answer = self._wire.call(
                self._wire.sdk.commits_api.commit, self._wire.name, branch, body, doing="rebuild a commit"
            )
            return str(answer.id)

        made = land(self._wire, branch, head, plain_metadata(like), send)
        point("rebuild.committed")
        return made

    def merge(self, branch: str, theirs: CommitId, like: Commit, fits: Callable[[CommitId], bool]) -> CommitId:
        """Merge as the server does, first where nobody sees it."""
        head = self._repo.head(branch)
        try:
            for strategy in _SIDES:
                options = {"message": like.message, "strategy": strategy}
                with hidden_branch(self._wire, head) as trial:
                    fit = fits(self._merge(theirs, trial, options, {}))
                if fit:
                    send = partial(self._merge, theirs, branch, options)
                    made = land(self._wire, branch, head, plain_metadata(like), send)
                    point("rebuild.merged")
                    return made
        except LakeError as error:
            if status_of(error) not in _UNMERGEABLE:
                raise
            raise CannotMerge(error.message) from error
        raise CannotMerge("the server's merge of its parents gives another tree")

    def _merge(
        self, theirs: CommitId, branch: str, options: Mapping[str, str], metadata: Mapping[str, str]
    ) -> CommitId:
        answer = self._wire.call(
            self._wire.sdk.refs_api.merge_into_branch,
            self._wire.name,
            theirs,
            branch,
            {**options, "metadata": dict(metadata), "allow_empty": True},
            doing="rebuild a merge",
        )
        return str(answer.reference)
