"""A repository on a lakeFS server, with the semantics of `lake.repository.Repository`.

`address` finds server and keys, `wire` carries requests, `failures` translates what goes wrong, `repository` is the
engine, `objects` the part of it that carries bytes, `protection` waits for rules to be in force. `merging` adds what
lakeFS's merge and revert lack (whole units, an expected head), `threeway` finds out whether they are right, `landing`
whether a branch moved when an answer was lost. `gate` is the release gate that runs inside the server, by the rule of
`lake.admission`.
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
