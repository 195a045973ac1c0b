"""What a server's garbage collection may not touch: the documented policy, and whether a repository follows it.

lakeFS collects along branches, not tags (`lake.engines.lakefs.retention`). So a release is kept by its candidate
branch `cand-<name>`, whose head holds the release's tree and is never deleted, and the whole history of main, archive
and ops by rules so long that they never end.
"""

from collections.abc import Iterator, Mapping

from lake.repository import Finding, Repository
from lake.wording import counted
from releases.history import Release, history
from releases.setup import DAYS


def examine(repo: Repository) -> list[Finding]:
    """Give (what, state, detail) for retention rules and the branches that hold releases; nothing without a server."""
    rules = repo.retention()
    if rules is None:
        return []
    short = _short(rules.days())
    findings: list[Finding] = [
        ("retention", state, f"{branch or 'default'}: {told}; run `emlake init {repo.location}` to set the rules")
        for branch, state, told in short
    ]
    if not short:
        findings.append(
            ("retention", "ok", ", ".join(f"{b or 'default'} {counted(days, 'day')}" for b, days in DAYS.items()))
        )
    findings += [finding for release in history(repo) for finding in _kept(repo, release)]
    return findings


def _short(found: Mapping[str, int]) -> list[Finding]:
    """Name the rules that are missing or too short: branch, state, what is wrong."""
    short: list[Finding] = []
    for branch, least in DAYS.items():
        if branch not in found:
            short.append((branch, "missing", f"no rule, {counted(least, 'day')} are needed"))
        elif found[branch] < least:
            short.append((branch, "short", f"{counted(found[branch], 'day')}, {least} are needed"))
    return short


def _kept(repo: Repository, release: Release) -> Iterator[Finding]:
    """Say if no branch holds a release's tree."""
    branch = f"cand-{release.name}"
    held = release.parents[1]
    heads = repo.branches(branch)
    make = f"repo.create_branch({branch!r}, {held!r})"
    if branch not in heads:
        yield "release", "not held", f"{release.name}: there is no branch {branch}; lakeFS may collect it: {make}"
    elif heads[branch] != held and next(iter(repo.diff(held, heads[branch])), None) is not None:
        yield "release", "not held", f"{release.name}: {branch} has moved on from {held}, which no branch stands on"
