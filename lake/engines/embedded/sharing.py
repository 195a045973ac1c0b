"""How the members of a group leave each other files that all of them write to.

A group shares a repository in a folder that it may write to and whose group new files inherit (`chmod 2775`). There a
default access list says that whatever any program makes is writable by the group too: the kernel asks no umask then.
Where the file system keeps no such lists, locks, claims and emlake's own folders still follow the folder around them,
and the umask of its maker decides about the rest.
"""

import errno
import grp
import os
import pwd
import stat
import struct
from pathlib import Path

DEFAULT = "system.posix_acl_default"
_OWNER, _GROUP, _OTHER, _NOBODY = 0x01, 0x04, 0x20, 0xFFFFFFFF  # linux/posix_acl_xattr.h
_RWX = 0o7


def is_shared(folder: Path) -> bool:
    """Tell whether a folder is one that a group shares, going by its mode."""
    both = stat.S_ISGID | stat.S_IWGRP
    return os.stat(folder).st_mode & both == both


def has_default(folder: Path) -> bool:
    """Tell whether a default access list decides the modes of what is made in a folder."""
    try:
        return bool(os.getxattr(folder, DEFAULT))
    except (OSError, AttributeError):  # none, or a system without
        return False


def share(folder: Path) -> None:
    """Let the group write to whatever is made below a folder from now on, where the file system can be told so."""
    others = os.stat(folder).st_mode & _RWX
    entries = ((_OWNER, _RWX), (_GROUP, _RWX), (_OTHER, others))
    packed = b"".join(struct.pack("<HHI", tag, may, _NOBODY) for tag, may in entries)
    try:
        os.setxattr(folder, DEFAULT, struct.pack("<I", 2) + packed)
    except AttributeError:
        return
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise


def whose(path: str | Path) -> str:
    """Say whose a file is, and its mode; of the folder around it if it is not there."""
    here = Path(path)
    while not os.path.lexists(here) and here != here.parent:
        here = here.parent
    found = os.lstat(here)
    return f"{here} belongs to {_user(found.st_uid)}:{_group(found.st_gid)} and is {stat.filemode(found.st_mode)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


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
