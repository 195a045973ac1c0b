"""What was written, when, and can it change (it cannot): engines, sessions, volumes, tables, SQL, measures.

Depends on nothing else in emlake. Only this room touches lakeFS, Delta, TensorStore and DuckDB.

>>> import lake
>>> repo = lake.create("demo/repo")                      # or "lakefs://127.0.0.1:8000/demo"
>>> with repo.session("work", owner="me") as session:    # the one writer of a branch
...     session.put("notes.txt", b"hello")
...     session.commit("first note")
>>> repo.snapshot("main").sql("SELECT count(*) FROM synapses")
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lake.box import Box

if TYPE_CHECKING:
    from lake.repository import Repository

__all__ = ["Box", "create", "open"]

SERVER_SCHEME = "lakefs://"


def open(location: str | Path) -> "Repository":
    """Open a repository: a folder (embedded engine), or `lakefs://host:port/name` (a lakeFS server).

    Raises `RepositoryNotFound`, `FormatTooNew`, `UnsupportedFileSystem`, `ServerUnreachable` or `NotAuthorized`.
    """
    # Engines are imported here: the lakeFS client alone costs 0.8 s.
    if str(location).startswith(SERVER_SCHEME):
        from lake.engines.lakefs import LakeFSRepository

        return LakeFSRepository.open(str(location))
    from lake.engines.embedded import EmbeddedRepository

    return EmbeddedRepository.open(Path(location))


def create(location: str | Path) -> "Repository":
    """Make a new repository with one empty commit on `main`; `AlreadyExists` if there is one."""
    if str(location).startswith(SERVER_SCHEME):
        from lake.engines.lakefs import LakeFSRepository

        return LakeFSRepository.create(str(location))
    from lake.engines.embedded import EmbeddedRepository

    return EmbeddedRepository.create(Path(location))
