"""Branch protection of a lakeFS repository: rules are added at once, but the server's cache of them lags."""

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lake.engines.lakefs.wire import Wire
from lake.errors import GateRefused, NotFound, ProtectedBranch, StorageError
from lake.names import check_pattern

# Rules are cached for 3 s and up to 3 s of jitter.
_PATIENCE_S = 20.0
_TRIES = 10
_NO_SUCH_KEY = "_emlake/is-this-branch-protected"


class Protection:
    """Reads and extends the rules of one repository."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def patterns(self) -> tuple[str, ...]:
        """List the patterns, sorted."""
        return self._read()[0]

    def check(self, branch: str) -> None:
        """Raise `ProtectedBranch` if a rule covers `branch`, in force yet or not."""
        for pattern in self.patterns():
            if fnmatchcase(branch, pattern):
                raise ProtectedBranch(
                    f"branch {branch!r} is protected by {pattern!r}", fix="open a session, or merge into it"
                )

    def add(self, patterns: Sequence[str]) -> None:
        """Add patterns and wait until the server refuses a write under each."""
        wanted = [check_pattern(pattern) for pattern in patterns]
        for _ in range(_TRIES):
            present, etag = self._read()
            missing = [pattern for pattern in wanted if pattern not in present]
            if not missing or self._write([*present, *missing], etag):
                break
        else:
            raise StorageError("protection rules keep changing under this client", fix="try again")
        deadline = time.monotonic() + _PATIENCE_S
        for pattern in wanted:
            self._wait(pattern, deadline)

    def remove(self, patterns: Sequence[str]) -> None:
        """Take patterns away; the server goes on refusing for some seconds."""
        for _ in range(_TRIES):
            present, etag = self._read()
            if self._write([pattern for pattern in present if pattern not in patterns], etag):
                return
        raise StorageError("protection rules keep changing under this client", fix="try again")

    def _read(self) -> tuple[tuple[str, ...], str]:
        answer = self._wire.call(
            self._wire.sdk.repositories_api.get_branch_protection_rules_with_http_info,
            self._wire.name,
            doing="read protection rules",
            safe=True,
        )
        return tuple(sorted(rule.pattern for rule in answer.data)), answer.headers.get("ETag", "")

    def _write(self, patterns: Sequence[str], etag: str) -> bool:
        try:
            self._wire.call(
                self._wire.sdk.repositories_api.set_branch_protection_rules,
                self._wire.name,
                [{"pattern": pattern} for pattern in patterns],
                etag,
                doing="write protection rules",
            )
        except GateRefused:
            return False  # 412: somebody else changed the rules since they were read
        return True

    def _wait(self, pattern: str, deadline: float) -> None:
        branch = pattern.replace("*", "x").replace("?", "x")
        pause = 0.02
        while not self._refused(branch):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"protection of {pattern!r} is stored but was not in force after {_PATIENCE_S:.0f} s",
                    fix="look at the server's log; write nothing to the branch until it is",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def _refused(self, branch: str) -> bool:
        # Resetting a key that nobody staged changes nothing; protection is looked at before the branch is.
        try:
            self._wire.call(
                self._wire.sdk.branches_api.reset_branch,
                self._wire.name,
                branch,
                {"type": "object", "path": _NO_SUCH_KEY},
                doing=f"probe the protection of {branch!r}",
                safe=True,
            )
        except ProtectedBranch:
            return True
        except NotFound:
            return False
        return False
