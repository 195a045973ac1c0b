"""Reference expressions: `main`, `r1`, `1f3a`, `main~2`, `main^2~1`, `main@`, `main$`.

The grammar is lakeFS's: a base, then any chain of `~n` and `^n`, or one `@` or `$` alone. What a base means is the
engine's to look up, in the order of `LOOKUP`; a chain then walks the parents, see `resolve_steps`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, cast

from lake.errors import RefNotFound, nearest
from lake.wording import counted

StepKind = Literal["~", "^"]
At = Literal["", "@", "$"]
Steps = tuple[tuple[StepKind, int], ...]

#: The order in which a base is looked up: a full commit id hides a branch or tag of that name, a prefix hides nothing.
LOOKUP = ("full commit id", "branch", "tag", "unique commit prefix")

# A base ends at the first of ~ ^ @ $, which no branch and no tag may hold.
_EXPRESSION = re.compile(r"(?P<base>[^\s~^@$]+)(?:(?P<at>[@$])|(?P<steps>(?:[~^][0-9]{0,9})*))")
_STEP = re.compile(r"([~^])([0-9]*)")
_PREFIX = re.compile(r"[0-9a-fA-F]{1,64}")


@dataclass(frozen=True, slots=True)
class RefExpr:
    """A parsed reference.

    Parameters
    ----------
    base : str
        Branch, tag, commit id or prefix of one; not looked up yet.
    steps : tuple of (kind, n)
        `~n`: n times the first parent. `^n`: the n-th parent, `^0` the commit itself.
    at : str
        `@` committed head, `$` staging area (both for branches only), or empty.
    """

    base: str
    steps: Steps = ()
    at: At = ""

    @property
    def plain(self) -> bool:
        """True if nothing follows the base: only then does a branch show staged writes to object reads."""
        return not self.steps and not self.at


def parse(expr: str) -> RefExpr:
    """Split a reference expression, or raise `RefNotFound` if it follows no form."""
    match = _EXPRESSION.fullmatch(expr)
    if match is None:
        raise RefNotFound(
            f"reference {expr!r} cannot be read",
            fix="give a branch, tag or commit id, then ~n or ^n in any number, or a single @ or $ after a branch",
        )
    steps = tuple(
        (cast("StepKind", kind), int(count) if count else 1) for kind, count in _STEP.findall(match["steps"] or "")
    )
    return RefExpr(match["base"], steps, cast("At", match["at"] or ""))


def resolve_steps(parents_of: Callable[[str], Sequence[str]], commit: str, steps: Steps) -> str:
    """Walk `steps` from `commit`; `RefNotFound` names the commit that has no such parent.

    Parameters
    ----------
    parents_of : callable
        Gives the parents of a full commit id, destination first.
    """
    for kind, count in steps:
        # `~n` is n steps to the first parent, `^n` one step to the n-th.
        walk = repeat(1, count) if kind == "~" else repeat(count, min(count, 1))
        for number in walk:
            parents = parents_of(commit)
            if number > len(parents):
                raise RefNotFound(
                    f"commit {commit} has {counted(len(parents), 'parent')}, so {kind}{count} leads nowhere",
                    fix="ask for fewer steps; `log` shows the parents",
                )
            commit = parents[number - 1]
    return commit


def is_prefix(base: str) -> bool:
    """Tell whether `base` may be a commit id or a prefix of one."""
    return _PREFIX.fullmatch(base) is not None


def unique_prefix(base: str, commits: Iterable[str]) -> str | None:
    """Give the one commit id that starts with `base`, or None if there is none or more than one."""
    found: str | None = None
    for commit in commits if is_prefix(base) else ():
        if commit.startswith(base.lower()):
            if found is not None:
                return None
            found = commit
    return found


def not_found(expr: str, known: Iterable[str]) -> RefNotFound:
    """Make the error for a reference nobody answers to, with the nearest of the `known` branches and tags."""
    return RefNotFound(f"no branch, tag or commit answers to {expr!r}", fix=nearest(expr, known))
