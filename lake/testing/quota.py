"""A folder with a real quota: btrfs on a loop device, whose quota groups count for root too.

It stands wherever a small disk does, and what is used up here is the quota: the file system has room, and says so.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lake.testing.small_disk import SIZE, SmallDisk, or_skipped

_MISSING = "no quota"


class QuotaDisk(SmallDisk):
    """A subvolume of btrfs with a limit that can be moved. Its bookkeeping counts, so no file has an exact price."""

    exact = False
    says = "the quota for"

    def used(self) -> int:
        """Give the bytes that count towards the quota, those that were just removed not among them."""
        _btrfs("filesystem", "sync", self.root)
        last = _btrfs("qgroup", "show", "--raw", "-f", self.root).splitlines()[-1]
        return int(last.split()[1])

    def free(self) -> int:
        """Give the bytes that can still be written."""
        last = _btrfs("qgroup", "show", "--raw", "-rf", self.root).splitlines()[-1]
        limit = last.split()[3]
        return SmallDisk.free(self) if limit == "none" else int(limit) - self.used()

    def leave(self, room: int | None) -> None:
        """Let the quota leave so many bytes; None: there is no quota."""
        limit = "none" if room is None else str(max(self.used() + room, 1))
        group = f"0/{_btrfs('inspect-internal', 'rootid', self.root).strip()}"
        # By the folder above: the order to raise a used-up quota would find no room within it.
        _btrfs("qgroup", "limit", limit, group, self.root.parent)


def _btrfs(*arguments: object) -> str:
    return _call("btrfs", *arguments)


def _call(*arguments: object) -> str:
    answer = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise OSError(f"{' '.join(map(str, arguments))}: {answer.stderr.strip()}")
    return answer.stdout


@contextmanager
def with_quota(root: Path, size: int = SIZE) -> Iterator[QuotaDisk]:
    """Make a folder with a quota below a new folder, and take it away again; `OSError` where that is not possible."""
    root.mkdir()
    image = root / "image"
    mount = root / "mount"
    mount.mkdir()
    with open(image, "xb") as file:
        file.truncate(size)
    _call("mkfs.btrfs", "-q", "-d", "single", "-m", "single", image)
    _call("mount", "-o", "loop", image, mount)
    try:
        _btrfs("quota", "enable", mount)
        _btrfs("subvolume", "create", mount / "limited")
        yield QuotaDisk(mount / "limited", size)
    finally:
        # A failed test may leave a file open there: the mount goes when it is closed.
        subprocess.run(["umount", "--lazy", str(mount)], check=True)
        image.unlink()


@pytest.fixture
def quota_disk(tmp_path: Path) -> Iterator[QuotaDisk]:
    """A folder with a quota for one test; skipped where there can be none."""
    if missing := [name for name in ("mkfs.btrfs", "btrfs", "mount") if shutil.which(name) is None]:
        pytest.skip(f"{_MISSING}: {', '.join(missing)} is missing (btrfs-progs)")
    if os.geteuid() != 0:
        pytest.skip(f"{_MISSING}: mounting takes root")
    yield from or_skipped(with_quota(tmp_path / "quota"), _MISSING)


@pytest.fixture(params=["small_disk", "quota_disk"])
def cramped(request: pytest.FixtureRequest) -> SmallDisk:
    """Each place whose room can be made to end: a small disk, then a quota."""
    disk: SmallDisk = request.getfixturevalue(request.param)
    return disk
