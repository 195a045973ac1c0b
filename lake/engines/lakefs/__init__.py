"""A repository on a lakeFS server, with the semantics of `lake.repository.Repository`.

`address` finds server and keys, `wire` carries requests, `failures` translates what goes wrong, `repository` is the
engine, `merging` adds what lakeFS's merge and revert lack (whole units, an expected head), `gate` is the release gate
that runs inside the server.
"""

from lake.engines.lakefs.repository import LakeFSRepository

__all__ = ["LakeFSRepository"]
