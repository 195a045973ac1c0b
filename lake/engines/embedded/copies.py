"""Finds the files of views and workspaces that have bytes of their own, apart from the object they show."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from lake.engines.embedded.engine import Engine
from lake.engines.embedded.files import is_sealed
from lake.engines.embedded.folders import encode_key, names_in, walk
from lake.engines.embedded.history import Node
from lake.engines.embedded.ranges import digest_of, number_of
from lake.engines.embedded.trees import overlay
from lake.engines.embedded.workspaces import State, load_state
from lake.errors import CorruptObject, RefNotFound
from lake.integrity import Fault
from lake.repository import CommitId


@dataclass(frozen=True, slots=True)
class Copy:
    """A file that should hold a content."""

    digest: bytes
    size: int
    path: str
    key: str
    workspace: bool

    @property
    def fix(self) -> str:
        """What to do if it is damaged."""
        if self.workspace:
            return "write the file again, or remove it and reset the branch"
        return "remove the view's folder (two above `volumes` or `tables`): it is made again when somebody reads"


def copies_in_views(engine: Engine, nodes: Mapping[CommitId, Node]) -> Iterator[Copy | Fault | None]:
    """Yield something for each file of each view: the copy it is, None for a link, a fault for what is wrong."""
    for commit in names_in(engine.views.root):
        node = nodes.get(commit)
        folder = engine.views.root / commit
        for view in sorted(os.listdir(folder)) if node is not None and folder.is_dir() else ():
            root = f"{engine.views.root}/{commit}/{view}"
            if node is not None:
                with suppress(CorruptObject, FileNotFoundError):  # a damaged manifest is reported as itself
                    yield from _in_view(engine, node, root)


def _in_view(engine: Engine, node: Node, root: str) -> Iterator[Copy | Fault | None]:
    tree = engine.trees.load(node.tree)
    names: set[bytes] = set()
    prefix = _prefix_of(root)
    for name, entry in walk(root, ""):
        key = encode_key(name)
        names.add(key)
        value = engine.trees.find(tree, key)
        if value is None:
            yield Fault("view", entry.path, f"{entry.path} is in no commit of that id", "remove the view's folder")
            continue
        yield _copy(engine, value, entry.path, name, workspace=False)
    for key, _ in engine.trees.items(tree, prefix):
        if key not in names:
            path = f"{root}/{key.decode()}"
            if os.path.isdir(root):
                yield Fault("view", path, f"{path} is missing in its view", "remove the view's folder")


def _prefix_of(root: str) -> bytes:
    """Find the prefix a view was made for: the only folder at each level that is named by a hash at its root."""
    wanted = os.path.basename(root).partition("-")[0]
    prefix = ""
    while hashlib.sha256(prefix.encode()).hexdigest()[:16] != wanted:
        inside = os.listdir(f"{root}/{prefix}")
        if len(inside) != 1:
            raise FileNotFoundError(root)
        prefix += inside[0] + "/"
    return prefix.encode()


def copies_in_workspaces(engine: Engine) -> Iterator[Copy | None]:
    """Yield something for each file that is as it was taken from its branch: the copy it is, or None for a link.

    What has been written since is somebody's work: no digest of it is known before it is committed.
    """
    for token in names_in(engine.workspaces.root):
        # Damaged commits and manifests are reported as themselves, and what has just gone is no damage.
        with suppress(CorruptObject, RefNotFound, FileNotFoundError):
            with engine.db.read() as con:
                state = load_state(con, token)
                node = engine.history.node(con, state.base) if state else None
            if state and node:
                yield from _in_workspace(engine, node, state, str(engine.workspaces.folder(token)))


def _in_workspace(engine: Engine, node: Node, state: State, root: str) -> Iterator[Copy | None]:
    tree = engine.trees.load(node.tree)
    for prefix in state.prefixes:
        shown = sorted((key, value) for key, value in state.shown.items() if key.startswith(prefix))
        for key, value in overlay(engine.trees.items(tree, prefix), shown):
            name = key.decode()
            with suppress(FileNotFoundError, NotADirectoryError):
                path = f"{root}/{name}"
                if is_sealed(os.lstat(path), digest_of(value), number_of(value)):
                    yield _copy(engine, value, path, name, workspace=True)


def _copy(engine: Engine, value: bytes, path: str, key: str, *, workspace: bool) -> Copy | None:
    digest = digest_of(value)
    with suppress(FileNotFoundError):
        if os.path.samefile(path, engine.objects.locate(digest)):
            return None
    return Copy(digest, number_of(value), path, key, workspace)
