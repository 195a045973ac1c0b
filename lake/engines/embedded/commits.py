"""How a branch moves: commit, merge, revert, cherry-pick, reset. Each is prepared, then happens in one transaction."""

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import replace

from lake.durable import point
from lake.engines.embedded.engine import Engine, Pending
from lake.engines.embedded.files import SMALL, in_threads, remove
from lake.engines.embedded.history import (
    Branch,
    Node,
    add_commit,
    check_kept,
    check_unprotected,
    commit_body,
    let_go,
    move_branch,
    read_staging,
    told_body,
    unstage,
)
from lake.engines.embedded.merging import Rules, merged
from lake.engines.embedded.ranges import digest_of, number_of, pack
from lake.engines.embedded.store import Found
from lake.engines.embedded.trees import Tree
from lake.engines.embedded.workspaces import State, Suspect, Values, save_state
from lake.errors import ConflictError, DirtyBranch, NothingToCommit
from lake.replay import check_parent, picked_metadata
from lake.repository import Commit, CommitId, Metadata
from lake.room import Room

#: Raises if a gate keeps the branch, which is at this head, from moving; asked under the branch's lock.
Admit = Callable[[CommitId], None]
#: The same for a merge: asked with the head and the commit that is merged.
AdmitMerge = Callable[[CommitId, CommitId], None]

ROW = 512  # bytes that the database's log may take for one staged key


def commit(engine: Engine, name: str, message: str, metadata: Metadata, admit: Admit, *, allow_empty: bool) -> CommitId:
    """Turn what is pending on a branch into a commit."""
    with engine.locked(name) as branch, engine.turns.working(), Room(engine.root) as room:
        with engine.db.read() as con:
            check_unprotected(con, name)
        admit(branch.head)
        pending = engine.pending(branch)
        room.need([ROW * len(pending.staged)])
        if pending.state:
            state = engine.workspaces.refreshed(branch, pending.state, pending.staged)
            pending = replace(pending, state=state)
            values = _bring_in_written(engine, pending, state, room)
        else:
            values = pending.staged
        _bring_in_staged(engine, pending)
        tree = engine.trees.edit(pending.tree, values)
        if tree.digest == pending.tree.digest and not allow_empty:
            raise NothingToCommit(f"branch {name!r} has nothing staged", fix="put or delete something first")
        point("commit.manifest-written")
        body = commit_body(tree.digest, [pending.node.commit], message, metadata)
        with engine.db.write() as con:
            check_unprotected(con, name)
            made = add_commit(con, body)
            move_branch(con, branch, made)
            unstage(con, branch.token, pending.last)
            if pending.state:
                save_state(con, branch.token, State(made, pending.state.prefixes, {}))
            point("commit.before-ref")
        point("commit.ref-moved")
        return made


def _bring_in_staged(engine: Engine, pending: Pending) -> None:
    """Store durably what was put."""
    key_of = dict(zip(pending.staged.values(), pending.staged, strict=True))  # of each content one key
    wanted = {digest_of(value): (number_of(value), key.decode()) for value, key in key_of.items() if value is not None}
    engine.incoming.bring_in(wanted)


def _bring_in_written(engine: Engine, pending: Pending, state: State, room: Room) -> Values:
    """Store what was written in the branch's folder; returns it with what was staged."""
    survey = engine.workspaces.survey(pending.branch, state)
    point("commit.surveyed")
    # Small files are copied; large ones are linked.
    room.need(suspect.stat.st_size for suspect in survey.suspects if suspect.stat.st_size < SMALL)
    copies: list[str] = []
    known: set[bytes] = set()

    def look(suspect: Suspect) -> Found:
        item = engine.objects.survey(suspect.path, known)
        if item.copy is not None:
            copies.append(item.copy)
        return item

    try:
        found = in_threads(look, survey.suspects)
        point("commit.hashed")
        values: Values = dict.fromkeys(survey.removed)
        for suspect, item in zip(survey.suspects, found, strict=True):
            values[suspect.key] = pack(item.digest, item.size)
        written = engine.workspaces.settle(pending.branch, state, survey, values)
        if both := sorted(key.decode() for key in written.keys() & pending.staged.keys()):
            raise ConflictError(
                f"{', '.join(both[:5])} on branch {pending.branch.name!r} was both put and written in a workspace",
                fix="write a key one way: reset the branch, or put back what the workspace held",
                keys=both,
            )
        engine.objects.sync_found(found, engine.workspaces.names_of(pending.branch, survey))
        point("commit.objects-synced")
        engine.objects.adopt(found, known)
        point("commit.objects-linked")
    finally:
        remove(copies)
    return {**pending.staged, **written}


def merge(
    engine: Engine,
    rules: Rules,
    message: str,
    metadata: Metadata,
    admit: AdmitMerge,
    *,
    squash: bool,
    allow_empty: bool,
    expect_head: CommitId | None,
) -> CommitId:
    """Bring what commit `rules.theirs` changed since the merge base into branch `rules.ours`."""
    source, dest = rules.theirs, rules.ours
    with engine.locked(dest) as branch, engine.turns.working():
        with engine.db.read() as con:
            theirs = engine.history.node(con, engine.history.resolve(con, source))
            if expect_head is not None and expect_head != branch.head:
                raise ConflictError(
                    f"branch {dest!r} is at {branch.head}, not at {expect_head}", fix="look at what came in"
                )
        pending = _clean(engine, branch)
        with engine.db.read() as con:
            base = engine.history.merge_base(con, branch.head, theirs.commit.id)
        base_tree = engine.trees.load(base.tree) if base else engine.trees.empty()
        if not allow_empty and base_tree.digest == theirs.tree:
            raise NothingToCommit(f"{source!r} has nothing that {dest!r} lacks", fix="commit to it first")
        tree = _three_way(engine, pending, base_tree, engine.trees.load(theirs.tree), rules)
        admit(branch.head, theirs.commit.id)
        point("merge.manifest-written")
        parents = [pending.node] if squash else [pending.node, theirs]
        return _land(engine, pending, tree, parents, message, metadata, "merge")


def revert(engine: Engine, name: str, ref: str, parent: int | None, message: str, metadata: Metadata) -> CommitId:
    """Undo commit `ref` on a branch."""
    with engine.locked(name) as branch, engine.turns.working():
        undone, before = _with_parent(engine, ref, parent)
        pending = _clean(engine, branch)
        rules = Rules(name, f"the undoing of {ref}")
        tree = _three_way(engine, pending, engine.trees.load(undone.tree), before, rules)
        if tree.digest == pending.tree.digest:
            raise NothingToCommit(f"{ref!r} is undone on {name!r} already", fix="nothing is left to do")
        point("revert.manifest-written")
        return _land(engine, pending, tree, [pending.node], message or f"Revert {ref}", metadata, "revert")


def cherry_pick(
    engine: Engine, name: str, ref: str, parent: int | None, message: str, metadata: Metadata | None, admit: Admit
) -> CommitId:
    """Bring what commit `ref` changed into a branch."""
    with engine.locked(name) as branch, engine.turns.working():
        picked, before = _with_parent(engine, ref, parent)
        pending = _clean(engine, branch)
        tree = _three_way(engine, pending, before, engine.trees.load(picked.tree), Rules(name, ref))
        if tree.digest == pending.tree.digest:
            raise NothingToCommit(f"{name!r} holds what {ref!r} changed already", fix="nothing is left to do")
        admit(branch.head)
        point("cherry-pick.manifest-written")
        entries = picked_metadata(picked.commit, metadata)
        return _land(engine, pending, tree, [pending.node], message or picked.commit.message, entries, "cherry-pick")


def _with_parent(engine: Engine, ref: str, parent: int | None) -> tuple[Node, Tree]:
    """Give commit `ref`, and the tree of the parent that it is compared with (empty for the first commit)."""
    with engine.db.read() as con:
        node = engine.history.node(con, engine.history.resolve(con, ref))
        number = check_parent(ref, node.commit, parent)
        parents = node.commit.parents
        before = engine.history.node(con, parents[number - 1]).tree if parents else None
    return node, engine.trees.load(before) if before else engine.trees.empty()


def reset_to(engine: Engine, name: str, ref: str) -> CommitId:
    """Move a clean branch to the commit behind `ref`."""
    with engine.locked(name) as branch, engine.turns.working():
        with engine.db.read() as con:
            target = engine.history.resolve(con, ref)
            check_unprotected(con, name)
        pending = _clean(engine, branch)
        with engine.db.write() as con:
            check_unprotected(con, name)
            _check_still_clean(engine, con, pending)
            check_kept(con, [target])
            move_branch(con, branch, target)
            let_go(con, branch.head)
            unstage(con, branch.token)
            point("reset-to.before-ref")
        point("reset-to.ref-moved")
        return target


def _three_way(engine: Engine, pending: Pending, base: Tree, theirs: Tree, rules: Rules) -> Tree:
    edits = merged(engine.trees, base, pending.tree, theirs, rules)
    # Where only one side moved, its tree is the result, and nothing is written.
    if base.digest == pending.tree.digest:
        return theirs
    # "dest-wins" leaves edits out, so that what they made in `theirs` is not what they make here.
    return engine.trees.edit(pending.tree, edits, (base, theirs) if rules.strategy != "dest-wins" else None)


def _clean(engine: Engine, branch: Branch) -> Pending:
    """Read a branch that has nothing pending, or raise `DirtyBranch`."""
    pending = engine.pending(branch)
    if unsaved := engine.unsaved(pending):
        raise DirtyBranch(
            f"branch {branch.name!r} has {len(unsaved)} staged changes, the first {unsaved[0].key!r}",
            fix="commit or reset them",
        )
    return pending


def _land(
    engine: Engine,
    pending: Pending,
    tree: Tree,
    parents: Collection[Node],
    message: str,
    metadata: Metadata,
    operation: str,
) -> CommitId:
    """Move a clean branch to a new commit, if it is still clean."""
    body = commit_body(tree.digest, [node.commit for node in parents], message, metadata)
    branch = pending.branch
    with engine.db.write() as con:
        _check_still_clean(engine, con, pending)
        check_kept(con, [node.commit.id for node in parents])
        made = add_commit(con, body)
        move_branch(con, branch, made)
        # What was staged changed nothing, else the branch would have been refused as dirty.
        unstage(con, branch.token)
        point(f"{operation}.before-ref")
    point(f"{operation}.ref-moved")
    return made


def _check_still_clean(engine: Engine, con: sqlite3.Connection, pending: Pending) -> None:
    staged, last = read_staging(con, pending.branch.token)
    if last != pending.last and engine.changes_of(pending.tree, staged):
        raise DirtyBranch(
            f"something was staged on branch {pending.branch.name!r} just now", fix="commit or reset it, then repeat"
        )


def rebuild(engine: Engine, name: str, like: Commit) -> CommitId:
    """Turn what is staged on a branch into a commit that says what `like` says, its parents included."""
    with engine.locked(name) as branch, engine.turns.working(), Room(engine.root) as room:
        pending = engine.pending(branch)
        room.need([ROW * len(pending.staged)])
        _bring_in_staged(engine, pending)
        tree = engine.trees.edit(pending.tree, pending.staged)
        point("rebuild.manifest-written")
        body = told_body(tree.digest, like)
        with engine.db.write() as con:
            check_kept(con, like.parents)
            made = add_commit(con, body)
            move_branch(con, branch, made)
            unstage(con, branch.token, pending.last)
            point("rebuild.before-ref")
        point("rebuild.ref-moved")
        return made


def forward(engine: Engine, name: str, expected: CommitId, to: CommitId) -> None:
    """Move a clean branch, protected or not, from the head that is expected to another commit."""
    with engine.locked(name) as branch, engine.turns.working():
        if branch.head != expected:
            raise ConflictError(f"branch {name!r} is at {branch.head}, not at {expected}", fix="look at what came in")
        pending = _clean(engine, branch)
        with engine.db.write() as con:
            _check_still_clean(engine, con, pending)
            check_kept(con, [to])
            move_branch(con, branch, to)
            let_go(con, expected)
            unstage(con, branch.token)
            point("forward.before-ref")
        point("forward.ref-moved")
