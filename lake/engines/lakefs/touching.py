"""Which commits touched a path, merges included.

The server's own filter passes over every commit with two parents. So its log is read twice, unfiltered for the order
and the merges, filtered for the rest; a merge is compared with its first parent here, path by path.
"""

from collections.abc import Iterator

from lake.engines.lakefs.references import commit_from, commit_pages
from lake.engines.lakefs.threeway import diff_pages, differ
from lake.engines.lakefs.wire import Wire
from lake.errors import StorageError
from lake.repository import Commit, CommitId


def touching(
    wire: Wire,
    start: CommitId,
    objects: tuple[str, ...],
    prefixes: tuple[str, ...],
    *,
    first_parent: bool,
    limit: int | None,
) -> Iterator[Commit]:
    """Yield the ancestors of `start` that differ from their first parent at one of the paths, newest first."""
    paths = [*(("objects", key) for key in objects), *(("prefixes", prefix) for prefix in prefixes)]
    plain = commit_pages(wire, start, first_parent=first_parent, limit=limit, paths=paths)
    waiting = next(plain, None)
    for entry in commit_pages(wire, start, first_parent=first_parent):
        if waiting is not None and entry["id"] == waiting["id"]:
            yield commit_from(entry)
            waiting = next(plain, None)
        elif len(entry["parents"]) > 1 and _differ(wire, entry["parents"][0], entry["id"], objects, prefixes):
            yield commit_from(entry)
    if waiting is not None:
        raise StorageError(
            f"the log of {start} filtered by path holds {waiting['id']} where the log itself does not",
            fix="report this with the server's version",
        )


def _differ(wire: Wire, before: CommitId, after: CommitId, objects: tuple[str, ...], prefixes: tuple[str, ...]) -> bool:
    # A key is the first of all that begin with it, so one line of the diff tells.
    firsts = (next(diff_pages(wire, before, after, prefix=key, limit=1), None) for key in objects)
    return any(differ(wire, before, after, prefix) for prefix in prefixes) or any(
        line is not None and line["path"] == key for line, key in zip(firsts, objects, strict=True)
    )
