"""Whether this process may write to a repository, and the error that says why not."""

import os
from pathlib import Path

from lake.engines.embedded.layout import DATABASE, FOLDERS
from lake.engines.embedded.sharing import whose
from lake.errors import ReadOnlyRepository

_WRITTEN = ("", *FOLDERS, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")


def refused(root: Path) -> str:
    """Say why this process may not write to a repository; empty if it may."""
    for name in _WRITTEN:
        path = root / name
        wanted = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
        if path.exists() and not os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids):
            if os.statvfs(path).f_flag & os.ST_RDONLY:
                return f"{path} lies on a file system that is mounted read-only"
            return whose(path)
    return ""


def read_only(root: Path, why: str) -> ReadOnlyRepository:
    """Make the error with which every change of such a repository ends."""
    return ReadOnlyRepository(
        f"{root}: the repository is read-only for you: {why}",
        fix=f"ask its owner for write access, or work in a clone: emlake clone {root} FOLDER",
    )
