"""A folder as system calls make it: what programs see in it, and what of that is on the disk.

Each call that changes files is a method of its name; `lake.testing.powercut` says what is taken to last.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lake.testing.losses import ON_DISK, File, Folder, Naming, Node, State, settle
from lake.testing.tracing import Event, unquoted

#: Calls that would change files in a way that is not modelled: none may succeed inside the folder.
UNKNOWN = {"pwritev", "pwritev2", "copy_file_range", "sendfile", "splice", "symlink", "symlinkat", "sync"}
_TIME = re.compile(r"tv_sec=(\d+), tv_nsec=(\d+)")
_PART = re.compile(r'iov_base=("[^"]*")')
Asked = tuple[list[tuple[File, State]], list[Naming]]  # what a sync puts on the disk: files as they were, and names


class NotYetError(AssertionError):
    """A call succeeded that could not, as far as we know what was done before it."""


@dataclass
class Opened:
    """An open file descriptor."""

    node: Node
    offset: int = 0
    appends: bool = False


class FileSystem:
    """The folder, one call after the other.

    Parameters
    ----------
    before : Path
        A copy of the folder as it was before, all of it taken to be on the disk.
    root : Path
        Where the recorded process had it.
    """

    def __init__(self, before: Path, root: Path) -> None:
        self.root = str(root)
        self.top = Folder()
        self.told = b""  # what the process has printed
        self.opened: dict[int, Opened] = {}
        self.late: list[Naming] = []  # changes of names that no sync has put on the disk
        self._load(before, self.top, {})
        for _, node in self.nodes():
            if isinstance(node, File):
                node.sync(node.state())
            else:
                node.safe = dict(node.now)

    def _load(self, path: Path, folder: Folder, known: dict[int, File]) -> None:
        for entry in path.iterdir():
            stat = entry.lstat()
            if entry.is_dir():
                folder.now[entry.name] = inner = Folder()
                self._load(entry, inner, known)
            else:
                fresh = File(bytearray(entry.read_bytes()), stat.st_mode & 0o7777, stat.st_mtime_ns)
                folder.now[entry.name] = known.setdefault(stat.st_ino, fresh)

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """Yield every path below the root with what programs see there."""
        pending: list[tuple[str, Node]] = [("", self.top)]
        while pending:
            path, node = pending.pop()
            yield path, node
            if isinstance(node, Folder):
                pending += [(f"{path}/{name}", inner) for name, inner in node.now.items()]

    # -- one call -----------------------------------------------------------------------------------------------------
    def do(self, event: Event) -> bool:
        """Do what a call did; False if nothing was done, or not in the folder; `NotYetError` if it could not be."""
        action = getattr(self, f"_{event.call.rstrip('0123456789')}", None)
        if event.call in UNKNOWN:
            assert not self._concerns(event), f"{event.call} is not modelled"
            return False
        return bool(action and action(event, *event.arguments))

    def _concerns(self, event: Event) -> bool:
        texts = [a for a in event.arguments if isinstance(a, bytes)]
        return (
            event.call == "sync"
            or self._file(event.arguments[0]) is not None
            or (event.call.startswith("symlink") and any(self._names(text) is not None for text in texts))
        )

    def _opened_as(self, fd: str | bytes) -> Opened | None:
        return self.opened.get(int(fd)) if isinstance(fd, str) and fd.isdigit() else None

    def _file(self, fd: str | bytes) -> Node | None:
        opened = self._opened_as(fd)
        return opened.node if opened else None

    def _names(self, path: str | bytes, at: str | bytes = "AT_FDCWD") -> tuple[Folder, str] | None:
        """Give (folder, name) of a path; None if it lies elsewhere."""
        assert isinstance(path, bytes)
        text = path.decode()
        if text.startswith(self.root + "/"):
            folder, parts = self.top, text[len(self.root) + 1 :].strip("/").split("/")
        elif not text.startswith("/") and isinstance(base := self._file(at), Folder):
            folder, parts = base, text.split("/")
        else:
            return None
        for part in parts[:-1]:
            inner = folder.now.get(part)
            if not isinstance(inner, Folder):
                raise NotYetError(f"{text}: there is no folder {part}")
            folder = inner
        return folder, parts[-1]

    def _node(self, path: str | bytes, at: str | bytes = "AT_FDCWD") -> Node | None:
        if path == self.root.encode():
            return self.top
        found = self._names(path, at)
        return found[0].now.get(found[1]) if found else None

    def _name(self, *changes: tuple[Folder, str, Node | None]) -> bool:
        for folder, name, node in changes:
            if node is None:
                if name not in folder.now:
                    raise NotYetError(f"{name} was taken away, and is not there")
                del folder.now[name]
            else:
                folder.now[name] = node
        self.late.append(list(changes))
        return True

    def _openat(self, event: Event, at: str, path: bytes, flags: str, *_mode: str) -> bool:
        self.opened.pop(event.result, None)
        if "O_TMPFILE" in flags:  # it has no name, and goes with its process
            return False
        node = self._node(path, at)
        changed = False
        if node is not None and "O_EXCL" in flags:
            raise NotYetError(f"{path!r} was made, and is there")
        if node is None:
            place = self._names(path, at)
            if place is None:
                return False
            if "O_CREAT" not in flags:
                raise NotYetError(f"{path!r} was opened, and is not there")
            node = File(bytearray(), int(_mode[0], 8) & ~0o022, 1_000_000_000)
            changed = self._name((*place, node))
        elif "O_TRUNC" in flags and isinstance(node, File) and node.now:
            node.change(0)
            changed = True
        self.opened[event.result] = Opened(node, 0, "O_APPEND" in flags)
        return changed

    def _open(self, event: Event, path: bytes, flags: str, *mode: str) -> bool:
        return self._openat(event, "AT_FDCWD", path, flags, *mode)

    def _close(self, event: Event, fd: str) -> bool:
        self.opened.pop(int(fd), None)
        return False

    def _dup(self, event: Event, fd: str, *_: str) -> bool:
        self.opened.pop(event.result, None)
        if opened := self._opened_as(fd):
            self.opened[event.result] = opened
        return False

    def _write(self, event: Event, fd: str, data: bytes, _count: str) -> bool:
        if fd == "1":
            self.told += data[: event.result]
        opened = self._opened_as(fd)
        if opened is None or not isinstance(opened.node, File):
            return False
        offset = len(opened.node.now) if opened.appends else opened.offset
        opened.node.change((offset, data[: event.result]))
        opened.offset = offset + event.result
        return True

    def _writev(self, event: Event, fd: str, parts: str, _count: str) -> bool:
        return self._write(event, fd, b"".join(unquoted(part) for part in _PART.findall(parts)), _count)

    def _pwrite(self, event: Event, fd: str, data: bytes, _count: str, offset: str) -> bool:
        node = self._file(fd)
        if not isinstance(node, File):
            return False
        node.change((int(offset), data[: event.result]))
        return True

    def _lseek(self, event: Event, fd: str, *_: str) -> bool:
        if opened := self._opened_as(fd):
            opened.offset = event.result
        return False

    def _ftruncate(self, event: Event, fd: str, length: str) -> bool:
        node = self._file(fd)
        if not isinstance(node, File):
            return False
        node.change(int(length))
        return True

    def _truncate(self, event: Event, path: bytes, length: str) -> bool:
        node = self._node(path)
        if not isinstance(node, File):
            return False
        node.change(int(length))
        return True

    def _fallocate(self, event: Event, fd: str, mode: str, offset: str, length: str) -> bool:
        node = self._file(fd)
        if not isinstance(node, File) or mode != "0" or int(offset) + int(length) <= len(node.now):
            return False
        node.change(int(offset) + int(length))
        return True

    def _ioctl(self, event: Event, fd: str, request: str, *source_fd: str) -> bool:
        node = self._file(fd)
        if "CLONE" not in request or not isinstance(node, File):
            return False
        source = self._file(source_fd[0])
        assert isinstance(source, File), "extents were shared with a file outside of the folder"
        node.change((0, bytes(source.now)))
        return True

    def _renameat(self, event: Event, at: str, old: bytes, to: str, new: bytes, *_flags: str) -> bool:
        source, target = self._names(old, at), self._names(new, to)
        if source is None and target is None:
            return False
        assert source, "something was moved into the folder"
        assert target, "something was moved out of the folder"
        node = source[0].now.get(source[1])
        if node is None:
            raise NotYetError(f"{old!r} was renamed, and is not there")
        if target[0].now.get(target[1]) is node:
            return False  # two names of one file: nothing happens
        return self._name((*source, None), (*target, node))

    def _rename(self, event: Event, old: bytes, new: bytes) -> bool:
        return self._renameat(event, "AT_FDCWD", old, "AT_FDCWD", new)

    def _linkat(self, event: Event, at: str, old: bytes, to: str, new: bytes, *_flags: str) -> bool:
        target = self._names(new, to)
        node = self._node(old, at)
        if target is None:
            return False
        if node is None:
            raise NotYetError(f"{old!r} was linked into the folder, and is not there")
        return self._name((*target, node))

    def _link(self, event: Event, old: bytes, new: bytes) -> bool:
        return self._linkat(event, "AT_FDCWD", old, "AT_FDCWD", new)

    def _unlinkat(self, event: Event, at: str, path: bytes, *_flags: str) -> bool:
        found = self._names(path, at)
        return self._name((*found, None)) if found else False

    def _unlink(self, event: Event, path: bytes) -> bool:
        return self._unlinkat(event, "AT_FDCWD", path)

    _rmdir = _unlink

    def _mkdirat(self, event: Event, at: str, path: bytes, *_mode: str) -> bool:
        found = self._names(path, at)
        return self._name((*found, Folder())) if found else False

    def _mkdir(self, event: Event, path: bytes, *_mode: str) -> bool:
        return self._mkdirat(event, "AT_FDCWD", path)

    def _utimensat(self, event: Event, at: str, path: str | bytes, times: str, *_flags: str) -> bool:
        node = self._node(path, at) if isinstance(path, bytes) else self._file(at)
        found = _TIME.findall(times)
        if not isinstance(node, File):
            return False
        assert len(found) == 2, times
        node.mtime = int(found[1][0]) * 1_000_000_000 + int(found[1][1])
        return True

    def _fchmodat(self, event: Event, at: str, path: bytes, mode: str, *_flags: str) -> bool:
        node = self._node(path, at)
        if isinstance(node, File):
            node.mode = int(mode, 8)
        return node is not None

    def _chmod(self, event: Event, path: bytes, mode: str) -> bool:
        return self._fchmodat(event, "AT_FDCWD", path, mode)

    def _fchmod(self, event: Event, fd: str, mode: str) -> bool:
        node = self._file(fd)
        if isinstance(node, File):
            node.mode = int(mode, 8)
        return node is not None

    # -- syncing ------------------------------------------------------------------------------------------------------
    def _fsync(self, event: Event, fd: str) -> bool:
        self.put_on_disk(self.would_sync(event))
        return event.call == "syncfs" or self._file(fd) is not None

    _fdatasync = _syncfs = _fsync

    def would_sync(self, event: Event) -> Asked:
        """Say what a sync that begins now puts on the disk."""
        node = self._file(event.arguments[0])
        if event.call == "syncfs":
            files = {node for _, node in self.nodes() if isinstance(node, File)}
            files |= {opened.node for opened in self.opened.values() if isinstance(opened.node, File)}
            return [(file, file.state()) for file in files], list(self.late)
        if isinstance(node, File):
            return [(node, node.state())], []
        return [], self._late_names(node) if node else []

    def _late_names(self, folder: Folder) -> list[Naming]:
        """Give the changes of names in a folder, with what came before under the same names in other folders."""
        found: list[Naming] = []
        touched: set[tuple[int, str]] = set()
        for naming in reversed(self.late):
            names = {(id(folder), name) for folder, name, _ in naming}
            if any(changed is folder for changed, _, _ in naming) or names & touched:
                touched |= names
                found.append(naming)
        return found[::-1]

    def put_on_disk(self, asked: Asked) -> None:
        """Let what a sync was asked for last, now that it has ended."""
        files, namings = asked
        for file, state in files:
            file.sync(state)
        lasting = {id(naming) for naming in namings}
        for naming in self.late:
            if id(naming) in lasting:
                settle(naming, ON_DISK)
        self.late = [naming for naming in self.late if id(naming) not in lasting]
