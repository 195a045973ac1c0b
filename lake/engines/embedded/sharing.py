"""How the members of a group leave each other files that all of them write to.

A group shares a repository in a folder that it may write to and whose group new files inherit (`chmod 2775`). The
locks, claims and folders that are made in it are then writable by the group too, whatever the umask of their maker.
"""

import os
import stat
from pathlib import Path


def open_shared(path: str | Path) -> int:
    """Open a file such as a lock for reading and writing; one that is not there is made, empty."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    follow(fd, os.path.dirname(path))
    return fd


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    follow(path, path.parent)


def follow(made: int | Path, folder: str | Path) -> None:
    """Let the group write to what this process has made if it may write to the folder around it."""
    around, here = os.stat(folder), os.stat(made)
    if not around.st_mode & stat.S_IWGRP or here.st_mode & stat.S_IWGRP:
        return
    if here.st_gid == around.st_gid and here.st_uid == os.geteuid():
        more = stat.S_IRWXG if stat.S_ISDIR(here.st_mode) else stat.S_IRGRP | stat.S_IWGRP
        os.chmod(made, stat.S_IMODE(here.st_mode) | more)
