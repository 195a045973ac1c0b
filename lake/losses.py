"""Accepts that stored bytes are lost for good, so that they stand in nobody's way and new damage shows.

What no copy holds can be healed by nothing. Until somebody says so, every scrub is red because of it, and a table that
has lost a file takes no more rows: on `ops` that stops publication, on `archive` the ingest of tiles. One commit on
`ops` then holds all of it, after one on `archive` if a table there has lost something::

    checked again: damaged or missing -> session on ops { the file leaves its table, row "accepted" in scrub_faults }

so that a kill leaves the loss as it was or accepted, and the same call goes on. Older commits, other branches and
releases stay as they are, with the hole in them: what they are is what was published. Scrubs go on reading what was
accepted, and tell when it is whole again. An acceptance holds for the place where it was made, as all that scrubs
record; whoever loses that record accepts again.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lake import scrub_record as record
from lake import tables
from lake.errors import OF_THE_MACHINE, BadInput, CorruptObject, LakeError, NotFound, ObjectNotFound
from lake.integrity import Fault, Inspector, names_of
from lake.names import unit_of
from lake.repository import CommitId, Progress, Repository
from lake.scrub import check_budget
from lake.scrub_record import OPS, Loss, Memory
from lake.session import Session
from lake.wording import counted

#: Branches whose tables are mended: rows are added to them for ever. All others are made anew by running a stage.
MENDED = ("archive", OPS)
_LOG = "_delta_log/"
_Lost = Mapping[str, Sequence[str]]  # by table
_STRUCTURE = ("repository", "refs", "commit", "manifest")
_AS_SHOWN = "give an object's name as `emlake scrub` shows it"


@dataclass(frozen=True, slots=True)
class Mended:
    """A table that can be read and appended to again.

    Attributes
    ----------
    rows : int or None
        Rows that are gone from it, by the statistics in its log; None if that is lost together with a data file.
    rebuilt : bool
        Whether its log was lost, and was made anew from the data files.
    """

    branch: str
    table: str
    rows: int | None
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What was accepted as lost, the tables that were mended, and the commit on `ops` that says so."""

    losses: tuple[Loss, ...]
    mended: tuple[Mended, ...]
    commit: CommitId

    def to_json(self) -> dict[str, object]:
        """Give it as one JSON object."""
        return {
            "objects": sorted({loss.fault.name for loss in self.losses}),
            "tables": [
                {"branch": m.branch, "table": m.table, "rows_gone": m.rows, "log_rebuilt": m.rebuilt}
                for m in self.mended
            ],
            "commit": self.commit,
        }


def accept(
    repo: Repository,
    objects: Collection[str],
    *,
    user: str,
    reason: str,
    progress: Progress = lambda kind, done, total: None,
) -> Acceptance:
    """Record that contents are lost for good, after each was read once more, and mend the tables they were in.

    Tables at the heads of `MENDED` branches, that is.

    Parameters
    ----------
    objects : collection of str
        Names of contents as a scrub tells them, or first characters that only one has (of a server's addresses: of
        what follows the last slash). What was accepted before gets the new name and reason.
    user, reason : str
        Who says that it is lost, and why.

    Raises
    ------
    BadInput
        Something is sound, ambiguous or no content; it is only staged, or a copy; no reason or user is given; or a
        table to be mended has lost more than is named here, or on `archive` its log. Nothing is changed by this or any
        other error.
    ObjectNotFound
        Nothing stored has that name.
    CorruptObject
        Refs or the record of scrubs are damaged, and nothing can be written.
    """
    if not reason.strip() or not user.strip():
        raise BadInput(f"user {user!r}, reason {reason!r}", fix="say who accepts the loss, and why: --reason ...")
    if not objects:
        raise BadInput("no object is named", fix="name what `emlake scrub` shows as damaged")
    inspector = check_budget(repo, None).inspector()
    structure = [fault for part in inspector.structure(progress) for fault in part.faults]
    _check_recordable(repo, structure)
    memory = record.recall(repo, inspector.place)
    if memory.trouble:
        raise CorruptObject(
            f"what scrubs recorded cannot be read: {memory.trouble}", fix="run `emlake scrub`, which begins it anew"
        )
    inventory = inspector.inventory()
    chosen = _find(repo, inspector, len(inventory), structure, objects)
    faults = _damage(inspector, chosen)
    slots = {inspector.name(which): int(inventory.slots[which]) for which in chosen}
    return _land(repo, inspector.place, memory, faults, slots, (user.strip(), reason.strip()))


def _check_recordable(repo: Repository, structure: Sequence[Fault]) -> None:
    for fault in structure:
        if fault.kind == "refs":
            raise CorruptObject(f"refs are damaged, and writing could make it worse: {fault.what}", fix=fault.fix)
    if OPS not in repo.branches(OPS):
        raise BadInput("there is no branch ops to record it on", fix="`emlake init` makes one")


# -- what is meant --------------------------------------------------------------------------------------------------
def _find(
    repo: Repository, inspector: Inspector, count: int, structure: Sequence[Fault], objects: Collection[str]
) -> dict[int, str]:
    """Give, by its number in the inventory, the only content whose name, or the last part of it, begins so."""
    met: dict[str, dict[int, str]] = {given: {} for given in objects}
    starts = tuple(met)
    for which in range(count):
        name = inspector.name(which)
        if name.startswith(starts) or _last(name).startswith(starts):
            for given in starts:
                if name.startswith(given) or _last(name).startswith(given):
                    met[given][which] = name
    return {_only(repo, structure, given, found): given for given, found in met.items()}


def _only(repo: Repository, structure: Sequence[Fault], given: str, found: dict[int, str]) -> int:
    if not given:
        raise BadInput("an object without a name", fix="name what `emlake scrub` shows as damaged")
    for fault in structure:
        if fault.kind in _STRUCTURE and fault.name.startswith(given):
            raise BadInput(
                f"{given!r} is structure ({fault.kind}: {fault.what}), which leads to contents: without it nobody "
                "knows what is lost",
                fix=fault.fix,
            )
    exact = [which for which, name in found.items() if given in {name, _last(name)}]
    for several in (exact, found):
        if len(several) == 1:
            return next(iter(several))
    if found:
        raise BadInput(f"{counted(len(found), 'object')} begin with {given!r}", fix="give more of the name")
    try:
        commit = repo.resolve(given)
    except (NotFound, BadInput):
        raise ObjectNotFound(f"nothing stored is called {given!r}", fix=_AS_SHOWN) from None
    raise BadInput(
        f"{given!r} is structure (commit {commit}), which leads to contents: only these can be accepted as lost",
        fix=_AS_SHOWN,
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _damage(inspector: Inspector, chosen: Mapping[int, str]) -> Sequence[Fault]:
    """Read contents once more, and give what is wrong with them and who is hit."""
    faults: list[Fault] = []
    for which, given in chosen.items():
        found = inspector.check(which)
        if not found:
            raise BadInput(
                f"object {inspector.name(which)} is sound", fix=f"leave out {given!r}: there is nothing to accept"
            )
        if all(fault.kind == "copy" for fault in found):
            raise BadInput(f"object {found[0].name} is sound, only {found[0].what}", fix=found[0].fix)
        faults += found
    held = inspector.attribute(faults)
    gone = {fault.name for fault in faults} - {fault.name for fault in held}
    if gone:
        raise BadInput(f"object {min(gone)} has gone with all that held it", fix="run `emlake scrub` again")
    for fault in held:
        if fault.kind == "staged" and not fault.commits:
            raise BadInput(f"object {fault.name} is staged and in no commit: {fault.what}", fix=fault.fix)
    return held


# -- the commit -----------------------------------------------------------------------------------------------------
def _land(
    repo: Repository,
    place: str,
    memory: Memory,
    faults: Sequence[Fault],
    slots: Mapping[str, int],
    by: tuple[str, str],
) -> Acceptance:
    user, reason = by
    when = memory.after(datetime.now(UTC))
    losses = tuple(Loss(fault, user, reason, when) for fault in faults)
    rows = record.loss_rows(losses, slots, record.now_rows(f"accept-{uuid.uuid4().hex[:12]}", place, when))
    told = f"{counted(len(slots), 'object')} accepted as lost: {reason}"
    branches = repo.branches()
    lost = {branch: _lost_in(repo, branch, slots.keys()) for branch in MENDED if branch in branches}
    mended: list[Mended] = []
    for branch, tables_lost in lost.items():
        if not tables_lost and branch != OPS:
            continue
        with repo.session(branch, owner=f"accepting a loss, {user}", wait_s=60.0, resume=False) as session:
            mended += _mend(session, branch, tables_lost)
            if branch == OPS:
                tables.append(session.workspace("tables/scrub_faults/"), "scrub_faults", rows)
            commit = session.commit(told, {"user": user})
    return Acceptance(losses, tuple(mended), commit)


def _lost_in(repo: Repository, branch: str, names: Collection[str]) -> _Lost:
    """Give the files that the tables of a branch have lost, after what else they hold was read."""
    lost: dict[str, list[str]] = {}
    for stat in repo.list(branch, "tables/"):
        if not set(names).isdisjoint(names_of(stat)) and (unit := unit_of(stat.key)):
            lost.setdefault(unit, []).append(stat.key)
    for unit, keys in lost.items():
        if branch != OPS and _is_torn(unit, keys):
            # Rows of tiles are replaced too, and what was replaced still lies there: only the log tells them apart.
            raise BadInput(
                f"{unit} on {branch} has lost a file of its log, without which nobody knows its rows",
                fix=f"revert the newest commits of {branch} (Repository.revert), to one at which that table is whole, "
                "and ingest again what they brought; then accept the loss",
            )
        _check_rest(repo, branch, unit, keys)
    return lost


def _is_torn(unit: str, lost: Collection[str]) -> bool:
    return any(key.startswith(unit + _LOG) for key in lost)


def _mend(session: Session, branch: str, lost: _Lost) -> list[Mended]:
    """Take lost files out of tables."""
    torn = {unit for unit, keys in lost.items() if _is_torn(unit, keys)}
    for unit, keys in lost.items():
        log = [stat.key for stat in session.list(unit + _LOG)] if unit in torn else []
        session.delete([*keys, *log])
    if lost:
        # A workspace shows what is committed, and cannot be made of what is lost.
        session.checkpoint()
    return [_mended(session, branch, unit, keys, torn=unit in torn) for unit, keys in lost.items()]


def _mended(session: Session, branch: str, unit: str, keys: Sequence[str], *, torn: bool) -> Mended:
    name = unit.split("/")[1]
    files = [key.removeprefix(unit) for key in keys if not key.startswith(unit + _LOG)]
    location = session.workspace(unit)
    if torn:
        tables.rebuild(location, name)
        return Mended(branch, name, None if files else 0, rebuilt=True)
    return Mended(branch, name, tables.drop_files(location, name, files), rebuilt=False)


def _check_rest(repo: Repository, branch: str, unit: str, lost: Collection[str]) -> None:
    """Raise `BadInput` if a table has lost more: it would go on refusing rows. Reads all of it."""
    more = {}
    for stat in repo.list(branch, unit):
        if stat.key in lost:
            continue
        try:
            repo.get(branch, stat.key)
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            more[stat.key] = error.message
    if more:
        raise BadInput(
            f"{unit} on {branch} has lost {', '.join(sorted(more))} too: {more[min(more)]}",
            fix="accept all that it has lost in one call, with --accept-loss for each; `emlake scrub --all` names them",
        )
