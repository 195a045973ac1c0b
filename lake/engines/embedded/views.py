"""Read-only folders of hard links, one per commit and prefix, made whole or not at all."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from lake.durable import point
from lake.engines.embedded.files import boot_id
from lake.engines.embedded.folders import check_prefix, check_representable, fill
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Tree, Trees
from lake.repository import CommitId


class Views:
    """Makes and finds views below `views/<commit>/<digest of prefix>-<boot>/<prefix>`."""

    def __init__(self, root: Path, store: Store, trees: Trees, scratch: Scratch) -> None:
        self.root = root
        self._store = store
        self._trees = trees
        self._scratch = scratch

    def folder(self, commit: CommitId, tree: Tree, prefix: str) -> Path:
        """Give the folder with the objects under `prefix`; the first call links them, later ones find it."""
        head = check_prefix(prefix)
        name = hashlib.sha256(head).hexdigest()[:16]
        # Nothing here is synced, so what an earlier boot left may lack files after a power cut: it is made again.
        view = self.root / commit / f"{name}-{boot_id()[:8]}"
        content = view / prefix
        if view.exists():
            with suppress(PermissionError):
                os.utime(view)  # used now: the collector removes what nobody has asked for in a long time
            return content
        if view.parent.exists():
            for entry in os.listdir(view.parent):
                if entry.startswith(name):
                    self._scratch.discard(view.parent / entry)
        check_representable(key for key, _ in self._trees.items(tree, head))
        fresh = self._scratch.new()
        (fresh / prefix).mkdir(parents=True)
        fill(self._store, fresh, self._trees.items(tree, head), writable=False)
        point("view.filled")
        view.parent.mkdir(exist_ok=True)
        try:
            fresh.rename(view)
        except OSError:
            # Somebody else was faster, and made the same.
            if not view.exists():
                raise
            self._scratch.discard(fresh)
        return content
