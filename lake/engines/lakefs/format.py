"""The format version of a repository on a server, in the repository's own metadata: no branch or merge touches it.

A repository made before there was one, or by lakeFS's own tools, says none, and is of the first format.
"""

from lake.engines.lakefs.wire import Wire
from lake.errors import FormatTooNew, StorageError

FORMAT = 1
KEY = "emlake.format"


def write_format(wire: Wire) -> None:
    """Let a new repository say its format."""
    body = {"metadata": {KEY: str(FORMAT)}}
    wire.call(wire.sdk.internal_api.set_repository_metadata, wire.name, body, doing="write the format")


def check_format(wire: Wire, location: str) -> None:
    """Raise `FormatTooNew` if this version cannot read the repository."""
    told = wire.json("/metadata", doing=f"read the format of {location}").get(KEY, "1")
    if not (isinstance(told, str) and told.isdecimal() and int(told) >= 1):
        raise StorageError(
            f"{location} says that it has format {told}", fix=f"set the repository's metadata {KEY!r} to 1"
        )
    if int(told) > FORMAT:
        raise FormatTooNew(
            f"{location} has format {told}; this emlake reads up to {FORMAT}", fix="install a newer emlake"
        )
