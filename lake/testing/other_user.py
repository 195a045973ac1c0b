"""Another user, for tests of what one may not write.

Tests may run as root, to whom no mode means anything. Another user is therefore root without any of its privileges, and
a folder that is given away belongs to somebody else. Who runs tests without root takes its own right to write away.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = os.geteuid() == 0
SOMEBODY, GROUP = 12345, 4242
#: Why there is no other user on this machine; empty if there is one.
MISSING = "root gives up its privileges by setpriv, which is missing" if ROOT and not shutil.which("setpriv") else ""


def command(code: str, *arguments: object, group: bool = False) -> list[str]:
    """Give the command that runs Python as another user, who may be of the group `GROUP`."""
    groups = f"--groups={GROUP}" if group else "--clear-groups"
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", groups] if ROOT else []
    return [*prefix, sys.executable, "-c", code, *map(str, arguments)]


def run(code: str, *arguments: object, umask: int = 0o022, group: bool = False) -> str:
    """Run Python as another user; gives what it printed."""
    line = command(code, *arguments, group=group)
    done = subprocess.run(line, capture_output=True, text=True, umask=umask, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


def everything(folder: Path) -> list[str]:
    """Name a folder and what is below it."""
    return [
        str(folder),
        *(os.path.join(where, name) for where, folders, files in os.walk(folder) for name in folders + files),
    ]


def give_away(folder: Path, gid: int = SOMEBODY) -> None:
    """Make a folder somebody else's; without root, nobody's to write."""
    for path in everything(folder):
        if ROOT:
            os.chown(path, SOMEBODY, gid)
        else:
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)


def take_back(folder: Path) -> None:
    """Let this process write to a folder again, so that it can be removed."""
    if not ROOT:
        for path in everything(folder):
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IWUSR)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Give the time and size of everything in a folder: what differs was written."""
    return {path: (os.lstat(path).st_mtime_ns, os.lstat(path).st_size) for path in everything(folder)}
