"""Looks at how main came to where it is: every step must be a release that the gate would let in, or its undoing.

Every engine asks the gate (`lake.admission`) before a merge, a cherry-pick or a commit moves main. Here is found what
did not ask: a revert that undoes no release, a hard reset, another program, an `emlake` from before.
"""

from collections.abc import Collection, Iterator

from lake.admission import POLICY_KEY, gate_at, refusal
from lake.clones import goes_by, parents_of
from lake.engines.lakefs.gate import gate_yaml
from lake.errors import ConflictError, LakeError, ObjectNotFound, RefNotFound
from lake.repository import Commit, CommitId, Finding, Repository
from lake.wording import counted
from releases.history import is_release
from releases.setup import PROTECTED


def check_main(repo: Repository, head: CommitId) -> None:
    """Raise `ConflictError` if main lacks its gate, or was moved by something else than publish and rollback."""
    strange = next(strays(repo), None)
    if strange is not None:
        commit, _ = strange
        raise ConflictError(
            f"main was moved past the gate by {commit.id} ({commit.message!r})", fix=_how_to_undo(commit)
        )
    if gate_at(repo, head) is None:
        raise ConflictError("main holds no gate", fix="`emlake doctor` tells which commit took it away: undo that one")


def strays(repo: Repository) -> Iterator[tuple[Commit, str]]:
    """Yield commits of main that are neither set-up nor release nor undoing, nor undone since; newest first.

    With each comes why it is not the undoing that it says it is; empty if it does not say so.
    """
    line = list(repo.log("main", first_parent=True))
    ids = {commit.id for commit in line}
    undone: set[CommitId] = set()
    for commit in line:
        gone = any(goes_by(commit, told) for told in undone)
        why = _unlike_before(repo, commit, ids) if "rollback_of" in commit.metadata else ""
        if why is None:
            undone.add(commit.metadata["rollback_of"])
        elif not gone and (why or not is_release(repo, commit)) and _has_policy_before(repo, commit):
            yield commit, why


def _unlike_before(repo: Repository, rollback: Commit, line: Collection[CommitId]) -> str | None:
    """Say why a commit does not undo what it says it undoes, one of the commits of main (`line`), or None.

    Anybody can write `rollback_of` into a commit.
    """
    try:
        undone = repo.commit_info(rollback.metadata["rollback_of"])
    except RefNotFound as error:
        return error.message
    if undone.id not in line or undone.id == rollback.id:
        return f"{undone.id} was never on main"
    before = undone.parents[0] if undone.parents else undone.id
    different = next(iter(repo.diff(before, rollback.id)), None)
    return None if different is None else f"it does not give back what main held: {different.key} differs"


def unlike(repo: Repository, commit: Commit, dest: CommitId, head: CommitId) -> str | None:
    """Say in what `commit` on main differs from the merge of `head` into `dest`, or None."""
    if not commit.parents or commit.parents[0] != dest:
        return f"it does not stand on {dest}"
    if len(parents_of(repo, commit)) != 2:
        return f"it has {counted(len(commit.parents), 'parent')}"
    different = next(iter(repo.diff(head, commit.id)), None)
    return None if different is None else f"its tree is not the candidate's: {different.key} differs"


def examine(repo: Repository) -> list[Finding]:
    """Give (what, state, detail) for the gate on main and inside the server, and for every step that main took.

    Nothing for a repository that `init` did not make ready for releases.
    """
    if not {"archive", "ops"} <= set(repo.branches()):
        return []
    open_to_all = sorted(set(PROTECTED) - set(repo.protected()))
    gate = gate_at(repo, repo.resolve("main"))
    findings: list[Finding] = [("protection", "missing", f"{p}: repo.protect({p!r})") for p in open_to_all]
    if gate is None:
        findings.append(("gate", "missing", "main holds no gate: undo the commit that took it away"))
    elif gate != gate_yaml():
        old = "main holds the gate of another version; publish a candidate that changes nothing but the gate"
        findings.append(("gate", "differs", old))
    else:
        findings.append(("gate", "ok", "main holds the gate of this version"))
    for commit, why in strays(repo):
        told = f"{commit.id} ({commit.message!r}): {why + '; ' if why else ''}{_how_to_undo(commit)}"
        findings.append(("rollback" if why else "main", "past gate", told))
    line = list(repo.log("main", first_parent=True))
    for commit in line:
        findings += _step(repo, commit)
    findings += _set_back(repo, {commit.id for commit in line})
    findings += _inside_server(repo)
    return findings


def _step(repo: Repository, commit: Commit) -> Iterator[Finding]:
    if is_release(repo, commit):
        name, (dest, head) = commit.metadata["release"], parents_of(repo, commit)
        why = refusal(repo, head, commit.metadata, dest=dest) or unlike(repo, commit, dest, head)
        if why is not None:
            yield "release", "past gate", f"{name} ({commit.id}) should not have been let in: {why}"


def _set_back(repo: Repository, line: Collection[CommitId]) -> Iterator[Finding]:
    for name, commit in repo.tags().items():
        if commit not in line and repo.commit_info(commit).metadata.get("release") == name:
            told = f"release {name} ({commit}) has left its history: set main forward again before you publish"
            yield "main", "set back", told


def _inside_server(repo: Repository) -> Iterator[Finding]:
    server = repo.server_gate()
    if server is None:
        return
    for commit in repo.log("main", first_parent=True):
        # What was copied from another lake was judged there.
        if is_release(repo, commit) and "cloned_from" not in commit.metadata and not server.ran_for(commit.id):
            name = commit.metadata["release"]
            yield "server gate", "did not run", f"the server let release {name} ({commit.id}) through unasked"
    try:
        refused = server.refuses()
    except LakeError as error:
        yield "server gate", "unknown", error.message
    else:
        lets_in = "the server merges what its gate must refuse: are actions switched off (actions.enabled)?"
        yield "server gate", "ok" if refused else "open", "the server refuses" if refused else lets_in


def _has_policy_before(repo: Repository, commit: Commit) -> bool:
    # What lays down the first policy, and what came before it, is set-up.
    if not commit.parents:
        return False
    try:
        repo.stat(commit.parents[0], POLICY_KEY)
    except ObjectNotFound:
        return False
    return True


def _how_to_undo(commit: Commit) -> str:
    parent = ", parent=1" if len(commit.parents) > 1 else ""
    return f"undo it: repo.revert('main', '{commit.id}'{parent}, metadata={{'rollback_of': '{commit.id}'}})"
