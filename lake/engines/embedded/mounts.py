"""Which file system a folder lies on, and whether the engine can keep its promises there."""

import re
from pathlib import Path

from lake.errors import UnsupportedFileSystem

MOUNTS = Path("/proc/self/mounts")
# SQLite's write-ahead log needs memory shared between all writers, which no file system across machines gives.
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "davfs", "lustre", "gpfs"}
    | {"glusterfs", "gfs2", "ocfs2", "beegfs", "pvfs2", "orangefs", "panfs", "wekafs", "ncpfs"}
    | {f"fuse.{name}" for name in ("sshfs", "s3fs", "mount-s3", "rclone", "glusterfs", "gcsfuse", "goofys", "juicefs")}
    | {f"fuse.{name}" for name in ("ceph", "cephfs", "davfs", "davfs2", "curlftpfs", "smbnetfs", "afpfs", "mfs")}
    | {f"fuse.{name}" for name in ("beegfs", "blobfuse", "blobfuse2")}
)

QUOTAS = Path("/sys/fs/btrfs")  # a folder per file system, with `qgroups` where it counts towards quotas
COPY_ON_WRITE = frozenset({"btrfs", "bcachefs"})


def file_system_of(path: Path) -> tuple[str, str]:
    """Give the type and the mount point of the file system that holds `path`, which may not exist yet."""
    target = path.resolve()
    best = ("unknown", "/")
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        # A later line hides an earlier one at the same point.
        if target.is_relative_to(point) and len(point) >= len(best[1]):
            best = (fields[2], point)
    return best


def pages_take_room(path: Path) -> bool:
    """Tell whether writing to a page of a mapped file takes new room where `path` lies, though the file does not grow.

    Where there is none, the system kills the process (SIGBUS): a write to memory cannot fail.
    """
    return MOUNTS.exists() and file_system_of(path)[0] in COPY_ON_WRITE


def may_have_quota() -> bool:
    """Tell whether a copy-on-write file system of this machine may end before it is full."""
    return not QUOTAS.exists() or any(QUOTAS.glob("*/qgroups"))


def check_file_system(path: Path) -> None:
    """Raise `UnsupportedFileSystem` if `path` lies on a network file system."""
    if not MOUNTS.exists():
        return
    kind, point = file_system_of(path)
    if kind in NETWORK:
        raise UnsupportedFileSystem(
            f"{path} lies on {kind} (mounted at {point}), where a crash or a second machine could damage the history",
            fix="put the repository on a local disk, or use a lakeFS server (lakefs://host:port/name)",
        )
