"""A repository on a lakeFS server, with the semantics of `lake.repository.Repository`.

`address` finds server and keys, `wire` carries requests, `failures` translates what goes wrong. `repository` is the
engine, built upon `references` (what names mean) and `contents` (what lies under keys, whose bytes `objects` and
`uploads` carry); `protection` waits for rules to be in force. `merging` adds what lakeFS's merge and revert lack (whole
units, an expected head), `threeway` finds out whether they are right, `landing` whether a branch moved when an answer
was lost. `gate` is the release gate that runs inside the server, by the rule of `lake.admission`. `unnamed` removes
what cut-off uploads left in a store on this machine, `gateway` finds out what the server's S3 gateway does not say.

A key both put and written in a workspace is a conflict in a folder; here the later one stands, whole. The server stages
one entry a key, and of the earlier upload nothing is left for a commit to find. A put over a write could be refused (a
mark in the metadata of puts, `If-Match` against what is staged). A write over a put could not: libraries write without
conditions, the mark goes with the put, and what one process remembers of its puts does not know of workers that write,
nor of what they write between the look and the commit. That takes a record staged beside each put (twice the requests),
or a hidden branch for workspaces (two commits and a merge for each commit).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake.engines.lakefs.repository import LakeFSRepository as LakeFSRepository

__all__ = ["LakeFSRepository"]


def __getattr__(name: str) -> Any:
    # The client costs 0.8 s; `gate` must be had without it.
    if name == "LakeFSRepository":
        from lake.engines.lakefs.repository import LakeFSRepository

        return LakeFSRepository
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
