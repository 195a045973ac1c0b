"""How a repository's folder comes into being, and whether one can be opened."""

import json
import os
import stat
import tempfile
from pathlib import Path

from lake.durable import point, sync_path
from lake.engines.embedded.database import Database
from lake.engines.embedded.files import MARKER as MARKER
from lake.engines.embedded.history import add_commit, commit_body, new_token
from lake.engines.embedded.mounts import check_file_system
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.sharing import DEFAULT, has_default, is_shared, make_folder, share
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Trees
from lake.errors import AlreadyExists, BadInput, CorruptObject, FormatTooNew, RepositoryNotFound
from lake.names import MAIN

FORMAT = 1
ENGINE = "embedded"
DATABASE = "refs.sqlite"
STORES = ("objects", "manifests")
FOLDERS = ("tmp", "locks", "incoming", "views", "workspaces", *STORES)


def make_repository(root: Path) -> None:
    """Make a repository with one empty commit on `main` at `root`: whole, or not at all."""
    if (root / MARKER).exists():
        raise AlreadyExists(f"there is a repository at {root} already", fix="open it, or choose another folder")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise AlreadyExists(f"{root} is not an empty folder", fix="choose another folder")
    _make_parent(root)
    check_file_system(root.parent)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as hold:
        fresh = Path(hold) / "repository"
        fresh.mkdir()
        if root.exists():
            _be_like(root, fresh)
        _lay_out(fresh)
        point("create.laid-out")
        try:
            fresh.rename(root)
        except OSError as error:
            if not root.exists():
                raise
            raise AlreadyExists(f"{root} was made by somebody else just now", fix="open it") from error
    sync_path(root.parent)


def _make_parent(root: Path) -> None:
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(above for above in root.parents if above.exists())
        raise BadInput(f"{root} cannot be made: {file} is a file", fix="choose another folder") from error


def _be_like(given: Path, fresh: Path) -> None:
    """Take mode, access lists, and the group that new files inherit, from the empty folder whose place is taken."""
    around = given.stat()
    if around.st_mode & stat.S_ISGID:
        os.chown(fresh, -1, around.st_gid)
    os.chmod(fresh, stat.S_IMODE(around.st_mode) | stat.S_IRWXU)
    if has_default(given):
        os.setxattr(fresh, DEFAULT, os.getxattr(given, DEFAULT))
    elif is_shared(given):
        share(fresh)


def _lay_out(root: Path) -> None:
    """Write the files of an empty repository and put them on the disk."""
    make_folders(root)
    scratch = Scratch(root / "tmp")
    tree = Trees(Store(root / "manifests", scratch)).empty()
    scratch.close()
    Database.make(root / DATABASE)
    database = Database(root / DATABASE)
    with database.write() as con:
        head = add_commit(con, commit_body(tree.digest, [], "Repository created", {}))
        con.execute("INSERT INTO branches VALUES (?, ?, ?)", (MAIN, head, new_token(MAIN)))
    database.close()
    (root / MARKER).write_text(marker_text(FORMAT))
    for folder in (root / MARKER, root / DATABASE, *root.iterdir(), root):
        sync_path(folder)


def marker_text(version: int) -> str:
    """Write what the marker of a repository of this format says."""
    return json.dumps({"engine": ENGINE, "format": version}) + "\n"


def make_folders(root: Path) -> None:
    """Make the folders that are not there: git, and many a copying program, leave empty ones out."""
    for name in FOLDERS:
        make_folder(root / name)
    for name in STORES:
        Store.make(root / name)


def check_openable(root: Path) -> None:
    """Raise if there is no repository at `root`, or none that this version can read.

    A repository that lacks its marker or its database is damaged, not absent: nobody is told to make a new one there.
    """
    restore = f"restore it from a copy; in format {FORMAT} it says `{marker_text(FORMAT).strip()}`"
    try:
        marker = json.loads((root / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError):
        if all((root / part).exists() for part in (DATABASE, *STORES)):
            raise CorruptObject(f"{root / MARKER} is missing", fix=restore) from None
        raise RepositoryNotFound(f"there is no repository at {root}", fix=f"make one: emlake init {root}") from None
    except PermissionError as error:
        raise RepositoryNotFound(f"{root} cannot be read: {error.strerror}", fix="ask its owner for access") from error
    except (OSError, ValueError) as error:
        raise CorruptObject(f"{root / MARKER} cannot be read: {error}", fix=restore) from error
    if (version := _format_in(marker)) is None:
        raise CorruptObject(f"{root / MARKER} is not one of ours: {marker!r:.80}", fix=restore)
    if version > FORMAT:
        raise FormatTooNew(
            f"{root} has format {version}; this emlake reads up to {FORMAT}", fix="install a newer emlake"
        )
    check_file_system(root)
    if not (root / DATABASE).is_file():
        raise CorruptObject(f"{root / DATABASE} is missing", fix="restore it from a copy of the repository")


def _format_in(marker: object) -> int | None:
    """Give the format that a marker says; None if it is none of ours."""
    if not isinstance(marker, dict) or marker.get("engine") != ENGINE:
        return None
    version = marker.get("format")
    return version if type(version) is int and version >= 1 else None


def format_of(root: Path) -> int | None:
    """Give the format that a repository has; None if its marker no longer says any."""
    try:
        return _format_in(json.loads((root / MARKER).read_text()))
    except ValueError:
        return None
