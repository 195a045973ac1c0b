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

# Of a request with more than 10,000 parameters Go reads none, and the log comes whole.
_AT_ONCE = 1000


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
    plain = [
        commit_pages(wire, start, first_parent=first_parent, limit=limit, paths=paths[at : at + _AT_ONCE])
        for at in range(0, len(paths), _AT_ONCE)
    ]
    waiting = [next(pages, None) for pages in plain]
    for entry in commit_pages(wire, start, first_parent=first_parent):
        met = [number for number, one in enumerate(waiting) if one is not None and one["id"] == entry["id"]]
        for number in met:
            waiting[number] = next(plain[number], None)
        if met or (len(entry["parents"]) > 1 and _differ(wire, entry["parents"][0], entry["id"], objects, prefixes)):
            yield commit_from(entry)
    left = next((one for one in waiting if one is not None), None)
    if left is not None:
        raise StorageError(
            f"the log of {start} filtered by path holds {left['id']} where the log itself does not",
            fix="report this with the server's version",
        )


def _differ(wire: Wire, before: CommitId, after: CommitId, objects: tuple[str, ...], prefixes: tuple[str, ...]) -> bool:
    # A key is the first of all that begin with it, so one line of the diff tells.
    firsts = (next(diff_pages(wire, before, after, prefix=key, limit=1), None) for key in objects)
    return any(differ(wire, before, after, prefix) for prefix in prefixes) or any(
        line is not None and line["path"] == key for line, key in zip(firsts, objects, strict=True)
    )
