"""What was written, when, and can it change (it cannot): engines, sessions, volumes, tables, SQL, measures.

Depends on nothing else in emlake. Only this room touches lakeFS, Delta, TensorStore and DuckDB.

>>> import lake
>>> repo = lake.create("demo/repo")                      # or "lakefs://127.0.0.1:8000/demo"
>>> with repo.session("work", owner="me") as session:    # the one writer of a branch
...     session.put("notes.txt", b"hello")
...     session.commit("first note")
>>> repo.snapshot("main").sql("SELECT count(*) FROM synapses")
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lake.box import Box
from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.repository import Repository

__all__ = ["Box", "create", "open"]

SERVER_SCHEME = "lakefs://"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open(location: str | Path) -> "Repository":
    """Open a repository: a folder (embedded engine), or `lakefs://host:port/name` (a lakeFS server).

    Raises `BadInput` (another kind of address), `RepositoryNotFound`, `FormatTooNew`, `CorruptObject`,
    `UnsupportedFileSystem`, `ServerUnreachable` or `NotAuthorized`.
    """
    # Engines are imported here: the lakeFS client alone costs 0.8 s.
    if _is_on_server(location):
        from lake.engines.lakefs import LakeFSRepository

        return LakeFSRepository.open(str(location))
    from lake.engines.embedded import EmbeddedRepository

    return EmbeddedRepository.open(Path(location))


def create(location: str | Path) -> "Repository":
    """Make a new repository with one empty commit on `main`; `AlreadyExists` if there is one, `BadInput` as `open`."""
    if _is_on_server(location):
        from lake.engines.lakefs import LakeFSRepository

        return LakeFSRepository.create(str(location))
    from lake.engines.embedded import EmbeddedRepository

    return EmbeddedRepository.create(Path(location))


def _is_on_server(location: str | Path) -> bool:
    """Tell a server from a folder; nothing and addresses of other kinds are refused: a folder `s3:` would be made."""
    if location == "":
        raise BadInput("'' is no place for a repository", fix="give a folder, or lakefs://host:port/name")
    if str(location).startswith(SERVER_SCHEME):
        return True
    if (address := _ADDRESS.match(str(location))) is not None:
        raise BadInput(
            f"{str(location)!r} is no place for a repository: {address[0]} is not known",
            fix="give a folder, or lakefs://host:port/name for a lakeFS server, which may keep its objects in s3",
        )
    return False
