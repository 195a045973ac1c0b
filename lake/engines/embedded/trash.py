"""Contents that a collector has condemned and not removed yet: out of the store, still to be had.

A condemned content is moved to `trash/<store>/<digest>`. The store no longer says that it holds it, so nobody relies on
it without noticing; but whoever reads it finds it, and whoever is about to store the same bytes pulls it back. Moving
and removing are each one atomic operation on one name, so a rescue and a removal of the same content cannot both
succeed. What a killed collector leaves here is put back by the next one, or by the next opening.
"""

import os
from collections.abc import Iterable
from contextlib import suppress


class Trash:
    """The trash of one store, whose contents have names of 64 hexadecimal digits."""

    def __init__(self, folder: str, home: str) -> None:
        self._folder = folder
        self._home = home

    def _own(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _stored(self, name: str) -> str:
        return f"{self._home}/{name[:2]}/{name[2:]}"

    def find(self, name: str) -> str | None:
        """Say where a condemned content lies, or None."""
        path = self._own(name)
        return path if os.path.exists(path) else None

    def rescue(self, name: str) -> bool:
        """Pull a content back into the store; False if it is not here."""
        try:
            os.rename(self._own(name), self._stored(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self) -> list[str]:
        """List what is here."""
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return []

    def condemn(self, names: Iterable[str]) -> None:
        """Move contents here."""
        os.makedirs(self._folder, exist_ok=True)
        for name in names:
            with suppress(FileNotFoundError):
                os.rename(self._stored(name), self._own(name))

    def put_back(self, names: Iterable[str]) -> None:
        """Give contents back to the store, where nobody has stored them again meanwhile."""
        for name in names:
            if os.path.exists(self._stored(name)):
                # Whoever stored it again has it on the disk; this one may be what made them do so, damaged.
                with suppress(FileNotFoundError):
                    os.unlink(self._own(name))
            else:
                self.rescue(name)

    def remove(self, name: str) -> tuple[int, bool] | None:
        """Remove a content; gives its size and whether this was its last link, or None if it was rescued."""
        path = self._own(name)
        try:
            stat = os.lstat(path)
            os.unlink(path)
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_nlink == 1

    def close(self) -> None:
        """Remove the folder if it is empty."""
        with suppress(OSError):
            os.rmdir(self._folder)
