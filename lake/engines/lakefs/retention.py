"""The retention rules of a lakeFS repository: what the server's own garbage collection may not remove.

lakeFS removes an object when no branch's head holds it and every commit on a branch that does is older than the days of
that branch's rule, or of the default. It follows branches along first parents, never tags. So a release stays whole as
long as a branch stands on its tree, and the history of a branch as long as its rule is.
"""

from collections.abc import Mapping

from lake.engines.lakefs.wire import Wire
from lake.errors import NotFound


class Retention:
    """Reads and writes the rules of one repository; see `lake.repository.Retention`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def days(self) -> Mapping[str, int]:
        """Map branches to days, the default under the empty name; empty if there are no rules."""
        try:
            rules = self._wire.call(
                self._wire.sdk.repositories_api.get_gc_rules,
                self._wire.name,
                doing="read retention rules",
                safe=True,
            )
        except NotFound:
            return {}
        return {"": rules.default_retention_days} | {rule.branch_id: rule.retention_days for rule in rules.branches}

    def keep(self, days: Mapping[str, int]) -> None:
        """Raise the rules to at least these days, the default under the empty name; what is longer stays."""
        found = self.days()
        wanted = {branch: max(least, found.get(branch, 0)) for branch, least in days.items()}
        rules = {**found, **wanted}
        self._wire.call(
            self._wire.sdk.repositories_api.set_gc_rules,
            self._wire.name,
            {
                "default_retention_days": rules.pop(""),
                "branches": [{"branch_id": branch, "retention_days": kept} for branch, kept in rules.items()],
            },
            doing="write retention rules",
            safe=True,
        )
