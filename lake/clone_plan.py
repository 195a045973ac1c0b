"""What cloning one repository into another would do, found out without changing either."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lake.clones import Move, ancestry, origins, with_lost_parents
from lake.errors import ConflictError
from lake.locks import LOCK, WORK
from lake.names import MAIN
from lake.repository import Commit, CommitId, Repository

#: Work branches of the destination.
LANE = f"{WORK}clone-"
#: Branches of the destination that keep what a merge had as a parent, where the clone of the merge could not have it.
KEPT = "clone-kept-"
_SHOWN = 3


@dataclass(slots=True)
class Plan:
    """What is to be done.

    Parameters
    ----------
    history : mapping
        The source's commits behind its branches and tags, parents first; a merge that lost parents when the source was
        cloned itself has them again, so that a destination that can has them too.
    known : mapping
        Source commit to its clone, for those that the destination has.
    todo : list of commit id
        Source commits to be rebuilt, parents first.
    moves : list of Move
        Branches to be made or moved; `to` is a commit of the source.
    blank : list of str
        Of these, branches that stand at a first, empty commit, as main of a repository just created: nothing is there.
    tags : mapping
        Tags to be made: name to source commit.
    rules : tuple of str
        Protection patterns to be added.
    gone : tuple of str
        Branches and tags on cloned commits that the source has not, or no longer; they stay.
    refused : mapping
        Branches and tags left alone: name to reason.
    staged : tuple of str
        Source branches with staged changes, which are not copied.
    heads : mapping
        The destination's branches and tags when this was found out; None if there is no destination yet.
    unfinished : bool
        A killed clone has left work branches behind.
    """

    history: dict[CommitId, Commit]
    known: dict[CommitId, CommitId] = field(default_factory=dict)
    todo: list[CommitId] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    tags: dict[str, CommitId] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    staged: tuple[str, ...] = ()
    heads: dict[str, CommitId] | None = None
    unfinished: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.todo or self.moves or self.tags or self.rules or self.unfinished)


def public_branches(repo: Repository) -> dict[str, CommitId]:
    """Map the branches that are cloned: all but the hidden ones of sessions."""
    return {name: head for name, head in repo.branches().items() if not name.startswith(WORK)}


def public_tags(repo: Repository) -> dict[str, CommitId]:
    """Map the tags that are cloned: all but locks."""
    return {name: target for name, target in repo.tags().items() if not name.startswith(LOCK)}


def public_heads(repo: Repository) -> dict[str, CommitId]:
    """Map branches and tags that are cloned; no tag has the name of a branch."""
    return public_branches(repo) | public_tags(repo)


def make_plan(source: Repository, dest: Repository | None) -> Plan:
    """Compare the two; `ConflictError` if `dest` is neither empty nor an earlier clone of `source`."""
    branches, tags = public_branches(source), public_tags(source)
    plan = Plan(with_lost_parents(source, ancestry(source, [*branches.values(), *tags.values()])))
    branches = _without_needless(plan.history, branches, tags)
    plan.staged = tuple(name for name in branches if next(source.uncommitted(name), None) is not None)
    if dest is None:
        plan.moves = [Move(name, head, None) for name, head in branches.items()]
        plan.tags = dict(tags)
        plan.rules = tuple(source.protected())
        plan.todo = list(plan.history)
        return plan
    plan.heads = public_heads(dest)
    plan.known = known_clones(dest, plan.history)
    plan.unfinished = bool(dest.branches(LANE))
    if not plan.known and not is_untouched(dest):
        raise ConflictError(
            f"{dest.location} is neither empty nor an earlier clone of {source.location}",
            fix="clone into a new folder or repository",
        )
    _plan_branches(plan, source, dest, branches)
    _plan_tags(plan, tags)
    present = dest.protected()
    plan.rules = tuple(rule for rule in source.protected() if rule not in present)
    plan.gone = tuple(
        name
        for name, head in plan.heads.items()
        if name not in branches
        and name not in tags
        and not name.startswith(KEPT)
        and origins(dest.commit_info(head).metadata)
    )
    wanted = _reachable(plan.history, [*(move.to for move in plan.moves), *plan.tags.values()])
    plan.todo = [commit for commit in plan.history if commit in wanted and commit not in plan.known]
    return plan


def _without_needless(
    history: Mapping[CommitId, Commit], branches: Mapping[str, CommitId], tags: Mapping[str, CommitId]
) -> dict[str, CommitId]:
    """Leave out the branches that keep lost parents, where a merge leads to these again."""
    others = [head for name, head in branches.items() if not name.startswith(KEPT)]
    held = _reachable(history, [*others, *tags.values()])
    return {name: head for name, head in branches.items() if not name.startswith(KEPT) or head not in held}


def known_clones(dest: Repository, history: Mapping[CommitId, Commit]) -> dict[CommitId, CommitId]:
    """Map commits of `history` to the clones of them that `dest` holds on any branch, hidden ones too, or tag."""
    held = ancestry(dest, [*dest.branches().values(), *dest.tags().values()])
    return {old: commit.id for commit in held.values() for old in origins(commit.metadata) if old in history}


def is_untouched(repo: Repository) -> bool:
    """Tell whether a repository is as it was created: one empty commit on `main`, and nothing else."""
    return set(public_heads(repo)) == {MAIN} and _is_blank(repo, MAIN) and next(repo.uncommitted(MAIN), None) is None


def _is_blank(repo: Repository, branch: str) -> bool:
    """Tell whether a branch stands at a first, empty commit: then it has nothing to lose."""
    commit = repo.commit_info(branch)
    return not commit.parents and next(iter(repo.list(commit.id, limit=1)), None) is None


def _plan_branches(plan: Plan, source: Repository, dest: Repository, branches: Mapping[str, CommitId]) -> None:
    heads = plan.heads or {}
    origin = {clone: old for old, clone in plan.known.items()}
    for name, to in branches.items():
        head = heads.get(name)
        if head is None:
            plan.moves.append(Move(name, to, None))
        elif origin.get(head) == to:
            continue
        elif next(dest.uncommitted(name), None) is not None:
            plan.refused[name] = "it has staged changes"
        elif head not in origin and _is_blank(dest, name):
            plan.moves.append(Move(name, to, head))
            plan.blank.append(name)
        elif head not in origin and not origins(dest.commit_info(head).metadata):
            plan.refused[name] = _own_commits(dest, name)
        elif origin.get(head) not in _reachable(plan.history, [to]):
            plan.refused[name] = f"{source.location} has moved it back, or made it anew, since it was cloned"
        else:
            plan.moves.append(Move(name, to, head))


def _own_commits(dest: Repository, branch: str) -> str:
    """Name the commits by which a branch of the destination has moved on by itself."""
    own = []
    for commit in dest.log(branch, first_parent=True):
        if origins(commit.metadata):
            break
        own.append(f"{commit.id[:12]} ({commit.message})")
    more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
    return f"it has moved on by itself: {', '.join(own[:_SHOWN])}{more}"


def _plan_tags(plan: Plan, tags: Mapping[str, CommitId]) -> None:
    heads = plan.heads or {}
    for name, target in tags.items():
        if name not in heads:
            plan.tags[name] = target
        elif heads[name] != plan.known.get(target):
            plan.refused[name] = f"it is on another commit here, {heads[name][:12]}"


def _reachable(history: Mapping[CommitId, Commit], heads: Iterable[CommitId]) -> set[CommitId]:
    found: set[CommitId] = set()
    waiting = list(heads)
    while waiting:
        commit = waiting.pop()
        if commit not in found:
            found.add(commit)
            waiting += history[commit].parents
    return found
