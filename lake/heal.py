"""Heals damaged bytes from another place that holds the same: a copy, a clone, or what this was cloned from.

Each damaged thing is looked for there by its digest, where both are folders, else under the keys and commits that hold
it (`cloned_from` leads from the ids here to those there). What is found is compared with what *this* repository has
recorded and takes the place of the damaged file in one rename, so that a kill leaves the damage or the cure, and a good
file is never replaced. Then a scrub reads it back, and records it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lake.clones import origins
from lake.copying import bytes_of, same_place
from lake.errors import BadInput, CorruptObject, LakeError, NotFound, ServerUnreachable
from lake.integrity import CannotHeal, ContentAddressed, Fault, Offer
from lake.repository import CommitId, Progress, Repository
from lake.scrub import Report, check_budget, examine
from lake.scrub_record import FaultId

#: In this order: a manifest leads to objects, an object to the copies of it.
KINDS = ("manifest", "commit", "object", "staged", "copy")
_KEYS = 100
_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Healed:
    """What was healed, and what was not.

    Attributes
    ----------
    source : str
        Where the bytes came from.
    checked : Report
        The last scrub that read as much as its budget allows: of before, or of after a manifest was healed.
    report : Report
        The last scrub: how things are now.
    cured : tuple of Fault
        What was damaged and is whole now.
    left : tuple of (Fault, str)
        What is damaged still, and why it was not healed; without what was accepted as lost, which `report` tells.
    """

    source: str
    checked: Report
    report: Report
    cured: tuple[Fault, ...]
    left: tuple[tuple[Fault, str], ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged now, but for what was accepted as lost."""
        return self.report.ok

    def to_json(self) -> dict[str, object]:
        """Give it as one JSON object: the report of a scrub, and what was healed."""
        told = self.checked.to_json() | {
            "ok": self.ok,
            "faults": [fault.to_json() | {"why_not_healed": why} for fault, why in self.left],
            "accepted": [loss.to_json() for loss in self.report.accepted],
            "recorded": self.report.recorded,
            "notes": list(dict.fromkeys((*self.checked.notes, *self.report.notes))),
        }
        return told | {"healed_from": self.source, "healed": [fault.to_json() for fault in self.cured]}


def heal(
    repo: Repository,
    source: Repository,
    *,
    budget: int | None,
    progress: Progress = lambda kind, done, total: None,
) -> Healed:
    """Scrub `repo`, heal what is damaged from `source`, and scrub that again, until nothing more can be healed.

    Raises
    ------
    BadInput
        There are no bytes to inspect, the budget is not positive, or `source` is the repository itself.
    ServerUnreachable
        A server has gone; what was healed until then is healed.
    """
    inspectable = check_budget(repo, budget)
    inspector = inspectable.inspector()
    if same_place(repo.location, source.location):
        raise BadInput(f"{source.location} is the repository itself", fix="name a copy or a clone of it")
    tried: dict[FaultId, tuple[Fault, str]] = {}
    report = checked = examine(repo, inspector, budget, progress)
    while True:
        cured = 0
        for fault in _healable(report.damaged):
            if (fault.kind, fault.name) in tried:
                continue
            offers = _Offers(repo, source, fault)
            try:
                why = "" if inspector.heal(fault, offers) else offers.why
            except CannotHeal as error:
                why = str(error)
            tried[fault.kind, fault.name] = fault, why
            cured += not why
            progress("healed", cured, len(report.damaged))
        if not cured:
            return _told(source.location, checked, report, tried)
        # What was healed may lead to what nobody could see before.
        deeper = any(not why and kind in KINDS[:2] for (kind, _), (_, why) in tried.items())
        inspector = inspectable.inspector()
        report = examine(repo, inspector, budget if deeper else 1, progress, again=report)
        checked = report if deeper else checked


def _healable(faults: Sequence[Fault]) -> list[Fault]:
    return sorted((fault for fault in faults if fault.kind in KINDS), key=lambda fault: KINDS.index(fault.kind))


def _told(source: str, checked: Report, report: Report, tried: dict[FaultId, tuple[Fault, str]]) -> Healed:
    now = {(fault.kind, fault.name) for fault in report.damaged}
    cured = tuple(fault for which, (fault, why) in tried.items() if not why and which not in now)
    left = []
    for fault in report.faults:
        _, why = tried.get((fault.kind, fault.name), (fault, "a copy does not tell how it must be"))
        left.append((fault, why or "it was healed, and is damaged again: the disk does not keep what is written"))
    return Healed(source, checked, report, cured, tuple(left))


@dataclass
class _Offers:
    """What `source` holds in the place of a damaged thing, with the best guess first; none of it is compared yet."""

    repo: Repository
    source: Repository
    fault: Fault
    met: int = field(default=0, init=False)

    @property
    def why(self) -> str:
        """Why nothing offered was good, once all of it has been tried."""
        if not self.met:
            return f"{self.source.location} does not hold it"
        return f"what {self.source.location} holds in its place is damaged or missing too, or something else"

    def __iter__(self) -> Iterator[Offer]:
        fault = self.fault
        if isinstance(self.source, ContentAddressed) and len(fault.name) == _DIGITS:
            found = self.source.content(fault.kind, fault.name)
            if found is not None:
                self.met += 1
                yield found
        if fault.kind in {"object", "staged"}:
            for commit in dict.fromkeys((fault.first, fault.last)):
                for there in self._clones_of(commit) if commit else ():
                    yield from self._objects(there)

    def _clones_of(self, commit: CommitId) -> Iterator[CommitId]:
        """Give what the source calls a commit of ours: it may be a copy, a clone, our origin, or a clone of that."""
        names = [commit]
        with suppress(CorruptObject, NotFound):
            names += origins(self.repo.commit_info(commit).metadata)
        for name in names:
            with suppress(NotFound):
                yield self.source.resolve(name)

    def _objects(self, commit: CommitId) -> Iterator[Offer]:
        for key in self.fault.keys[:_KEYS]:
            try:
                stat = self.source.stat(commit, key)
                self.met += 1
                data = bytes_of(self.source, commit, stat)
            except ServerUnreachable:
                raise
            except LakeError:  # not there, or damaged there
                continue
            yield data
