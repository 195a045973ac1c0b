"""Records what a process does to files: every system call, with its bytes, in order, by strace.

Nothing of the process is changed, and what libraries do (SQLite, Delta, TensorStore) is recorded like all else.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,write,writev,pwrite64,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,syncfs,"
    "sync,utimensat,chmod,fchmod,fchmodat,copy_file_range,sendfile,splice,ioctl"
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)", re.DOTALL)
_UNFINISHED = re.compile(r"^(\d+) +(\w+\(.*?),? <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>,? ?(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Event:
    """A system call that succeeded.

    Parameters
    ----------
    call : str
        Its name.
    arguments : tuple of str or bytes
        As strace writes them; byte strings are decoded.
    result : int
        What it returned.
    begun : int
        0 if nothing came between its begin and its end. Else another thread's call did: then there are two events with
        the same positive number, one for each, and the kernel did what was asked somewhere between the two.
    """

    call: str
    arguments: tuple[str | bytes, ...]
    result: int
    begun: int = 0


def can_record() -> str:
    """Say why nothing can be recorded here; empty if it can."""
    if shutil.which("strace") is None:
        return "there is no strace program"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


def record(command: Sequence[str]) -> list[Event]:
    """Run a command that starts no other process, and give its calls on files in the order in which they were seen.

    The order between threads is that of their begins and ends, no more: see `Event.begun`.
    """
    with tempfile.NamedTemporaryFile("r", encoding="ascii") as trace:
        tracing = ["strace", "-f", "-xx", "-s", str(1 << 24), "-e", f"trace={CALLS}", "-e", "signal=none"]
        done = subprocess.run([*tracing, "-o", trace.name, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return events(trace)


def events(lines: Iterable[str]) -> list[Event]:
    """Give the calls in the lines that `strace -f -xx` wrote."""
    found: list[Event | None] = []
    begun: dict[str, tuple[int, str]] = {}  # by thread: where in `found` its begin is, and the line
    for raw in lines:
        line = raw.rstrip("\n")
        if half := _UNFINISHED.match(line):
            begun[half[1]] = (len(found), half[2])
            found.append(None)
        elif half := _RESUMED.match(line):
            place, first = begun.pop(half[1])
            joint = "" if half[2].startswith(")") else ", "
            event = _event(f"{half[1]} {first}{joint}{half[2]}")
            if event and place == len(found) - 1:
                found[place] = event
            elif event:
                found[place] = replace(event, begun=place + 1)
                found.append(found[place])
        else:
            found.append(_event(line))
    return [event for event in found if event]


def _event(line: str) -> Event | None:
    found = _LINE.match(line)
    if found is None or int(found[4]) < 0:
        return None
    return Event(found[2], tuple(map(_argument, _split(found[3]))), int(found[4]))


def _split(text: str) -> list[str]:
    """Split arguments at commas outside of brackets; strings are all hexadecimal and hold none."""
    parts, depth, begin = [], 0, 0
    if "[" not in text and "{" not in text:
        return text.split(", ")
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]


def _argument(text: str) -> str | bytes:
    return unquoted(text) if text.startswith('"') else text


def unquoted(text: str) -> bytes:
    """Give the bytes of a string as strace writes them in hexadecimal."""
    assert text.endswith('"'), "strace cut a string short"
    return bytes.fromhex(text[1:-1].replace("\\x", ""))
