"""Clocks that are wrong, for tests of what trusts one."""

from datetime import datetime, tzinfo
from typing import Self


class Ahead(datetime):
    """A `datetime` for a module whose clock is years ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Give the first moment of 2036."""
        return cls(2036, 1, 1, tzinfo=tz)


class Behind(datetime):
    """A `datetime` for a module whose clock is years behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Give the first moment of 2020."""
        return cls(2020, 1, 1, tzinfo=tz)
