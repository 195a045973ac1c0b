"""Reads stored bytes back and compares them with what was recorded: bit rot, lost files, torn tables.

Each run checks the structure (refs, commits, manifests, Delta logs, metadata of volumes) whole, and of the contents as
many bytes as its budget allows: staged ones and those known to be damaged, then those never checked, then those checked
longest ago. What was checked when is kept on `ops` (`lake.coverage` says in which form), written now and then, so a
killed run goes on where it was. Nothing else is ever changed.
"""

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake import scrub_record as record
from lake.coverage import Region, by_age, extended, joined, members, not_after
from lake.durable import point
from lake.errors import BadInput, LakeError
from lake.integrity import Fault, Inspectable, Inspector, Inventory, Part
from lake.ops import append_rows
from lake.repository import Progress, Repository
from lake.scrub_record import FaultId, Loss, Memory
from lake.units_check import check_units
from lake.wording import counted

BATCH_ITEMS, BATCH_BYTES = 512, 256 << 20
RECORD_S = 300.0
_RECORD_FIX = "this scrub has begun it anew, and counts everything as never checked: `emlake scrub --all` checks all"


@dataclass(frozen=True, slots=True)
class Report:
    """What a scrub did and found.

    Attributes
    ----------
    parts : tuple of Part
        What was checked of each kind; `object` holds the contents.
    faults : tuple of Fault
        Everything damaged that nobody has accepted, each with who is hit.
    accepted : tuple of Loss
        What is damaged and was accepted as lost (`lake.losses`).
    healed : tuple of str
        What was damaged at an earlier scrub and is whole now.
    left_objects, left_bytes : int
        Contents that this run did not reach.
    oldest : datetime or None
        When the content that waits longest, of those that were ever checked, was last checked.
    never : int
        Contents that no scrub has ever checked.
    recorded : bool
        Whether the outcome stands on `ops`; `notes` say why not.
    slots : mapping
        Slots (`lake.integrity.Inventory`) of the damaged contents by their names.
    """

    scrub_id: str
    place: str
    parts: tuple[Part, ...]
    faults: tuple[Fault, ...]
    accepted: tuple[Loss, ...]
    healed: tuple[str, ...]
    left_objects: int
    left_bytes: int
    never: int
    oldest: datetime | None
    seconds: float
    recorded: bool
    notes: tuple[str, ...]
    slots: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, but for what was accepted as lost."""
        return not self.faults

    @property
    def damaged(self) -> tuple[Fault, ...]:
        """Everything damaged, whether somebody has accepted it or not."""
        return (*self.faults, *(loss.fault for loss in self.accepted))

    def to_json(self) -> dict[str, object]:
        """Give it as one JSON object."""
        return {
            "scrub": self.scrub_id,
            "place": self.place,
            "ok": self.ok,
            "checked": {part.kind: {"items": part.items, "bytes": part.bytes} for part in self.parts},
            "faults": [fault.to_json() for fault in self.faults],
            "accepted": [loss.to_json() for loss in self.accepted],
            "healed": list(self.healed),
            "left": {"objects": self.left_objects, "bytes": self.left_bytes, "never_checked": self.never},
            "oldest": self.oldest,
            "seconds": round(self.seconds, 3),
            "recorded": self.recorded,
            "notes": list(self.notes),
        }


def scrub(
    repo: Repository,
    *,
    budget: int | None,
    progress: Progress = lambda kind, done, total: None,
    record_every_s: float = RECORD_S,
) -> Report:
    """Check the structure, and contents up to `budget` bytes (None: all of them); record the outcome on `ops`.

    Raises
    ------
    BadInput
        The repository has no bytes to inspect (in memory), or the budget is not positive.
    ServerUnreachable
        The server has gone; what was checked until then is recorded on the next run's account.
    """
    return examine(repo, check_budget(repo, budget).inspector(), budget, progress, record_every_s=record_every_s)


def check_budget(repo: Repository, budget: int | None) -> Inspectable:
    """Give the repository as one whose bytes can be checked, or raise `BadInput`."""
    if not isinstance(repo, Inspectable):
        raise BadInput(f"{repo.location} keeps no bytes that can be checked", fix="scrub a folder or a server")
    if budget is not None and budget <= 0:
        raise BadInput(f"a budget of {counted(budget, 'byte')} checks nothing", fix="give bytes, as in 10GB, or --all")
    return repo


def examine(
    repo: Repository,
    inspector: Inspector,
    budget: int | None,
    progress: Progress,
    *,
    again: Report | None = None,
    record_every_s: float = RECORD_S,
) -> Report:
    """Scrub with an inspector of one's own; what `again` found damaged is checked whatever the budget."""
    return _Run(repo, inspector, budget, progress, record_every_s, dict(again.slots) if again else {}).run()


@dataclass
class _Run:
    repo: Repository
    inspector: Inspector
    budget: int | None
    progress: Progress
    record_every_s: float
    again: dict[str, int]
    id: str = field(default_factory=lambda: f"scrub-{uuid.uuid4().hex[:12]}")
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    faults: list[Fault] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    done: list[Region] = field(default_factory=list)
    todo: list[Region] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    inventory: Inventory = field(init=False)
    seen: NDArray[np.bool_] = field(init=False)
    recorded_at: float = field(default_factory=time.monotonic)
    total: int = 0
    checked: int = 0
    checked_bytes: int = 0
    spent: int = 0  # of the budget; what is checked in each run does not count

    def run(self) -> Report:
        start = time.monotonic()
        self.parts = [*self.inspector.structure(self.progress), *check_units(self.repo, self.progress)]
        self.faults += [fault for part in self.parts for fault in part.faults]
        if torn := sum(fault.kind == "manifest" for fault in self.faults):
            told = counted(torn, "manifest")
            self._note(f"{told} cannot be read: other damage may hit more commits and releases than it names")
        self.inventory = self.inspector.inventory()
        self.memory = record.recall(self.repo, self.inspector.place) if self._may_write() else Memory()
        if self.memory.trouble:
            self.notes.append(f"what earlier scrubs recorded cannot be read: {self.memory.trouble}")
        self.faults += [
            Fault("table", f"tables/{table}/", f"the record of earlier scrubs is damaged: {what}", _RECORD_FIX)
            for table, what in self.memory.lost.items()
        ]
        known = not_after(self.memory.regions, self.began)
        self.todo = by_age(extended(known, self.inventory.until))
        try:
            self._contents()
        except KeyboardInterrupt:
            self._record(final=False)
            raise
        recorded = self._record(final=True)
        damaged, losses = self.memory.judge(self.faults)
        regions = [*self.done, *self.todo]
        never, oldest, left = self._left(regions)
        total = Part("object", self.checked, self.checked_bytes)
        return Report(
            self.id,
            self.inspector.place,
            (*self.parts, total),
            damaged,
            losses,
            tuple(sorted(f"{kind} {name}" for kind, name in self._healed())),
            len(left),
            int(self.inventory.sizes[left].sum()),
            never,
            oldest,
            time.monotonic() - start,
            recorded,
            tuple(self.notes),
            self.slots,
        )

    # -- contents -----------------------------------------------------------------------------------------------------
    def _contents(self) -> None:
        """Check what comes first always, then region after region until the budget is used up."""
        inventory = self.inventory
        size = int(inventory.sizes.sum())
        self.total = size if self.budget is None else min(size, self.budget)
        self.seen = np.zeros(len(inventory), bool)
        with ThreadPoolExecutor(_readers()) as pool:
            for batch in _batches(self._urgent(), inventory.sizes):
                self._check(pool, batch)
            while self.todo:
                region = self.todo[0]
                which = members(region, inventory)
                which, whole = self._affordable(which)
                if not whole and not len(which):
                    return
                self.todo.pop(0)
                self.spent += int(inventory.sizes[which].sum())
                rest: Region | None = region
                for batch in _batches(which, inventory.sizes):
                    self._check(pool, batch)
                    slot = int(inventory.slots[batch[-1]])
                    if rest is not None and slot >= rest.low:
                        self.done.append(replace(rest.below(slot), checked=self.began))
                        rest = rest.above(slot)
                    self._record_now_and_then(rest)
                if rest is not None and whole:
                    self.done.append(replace(rest, checked=self.began))
                elif rest is not None:
                    self.todo.insert(0, rest)
                    return

    def _urgent(self) -> NDArray[np.intp]:
        """Give what is checked in every run: staged contents, and those that were damaged."""
        known = [int(row["slot"], 16) for row in self.memory.known.values() if row["slot"]]
        damaged = np.isin(self.inventory.slots, np.array([*known, *self.again.values()], np.uint64))
        return np.flatnonzero((self.inventory.births < 0) | damaged)

    def _affordable(self, which: NDArray[np.intp]) -> tuple[NDArray[np.intp], bool]:
        """Give as many of the contents as the budget allows, at least one in a run, and whether these are all."""
        if self.budget is None:
            return which, True
        left = self.budget - self.spent
        before = np.cumsum(self.inventory.sizes[which]) - self.inventory.sizes[which]
        count = int((before < left).sum())
        # Contents that share a slot are not told apart by a region: they go together.
        slots = self.inventory.slots[which]
        while 0 < count < len(which) and slots[count] == slots[count - 1]:
            count += 1
        return which[:count], count == len(which)

    def _check(self, pool: ThreadPoolExecutor, batch: NDArray[np.intp]) -> None:
        fresh = [int(which) for which in batch if not self.seen[which]]
        for which, faults in zip(fresh, pool.map(self.inspector.check, fresh), strict=True):
            self.seen[which] = True
            self.checked += 1
            self.checked_bytes += int(self.inventory.sizes[which])
            for fault in faults:
                self.faults.append(fault)
                self.slots[fault.name] = int(self.inventory.slots[which])
        point("scrub.batch-checked")
        self.progress("contents", self.checked_bytes, max(self.total, self.checked_bytes))

    # -- the record ---------------------------------------------------------------------------------------------------
    def _may_write(self) -> bool:
        """Tell whether a commit on `ops` can do no harm: a damaged database may lose more when it is written."""
        if any(fault.kind == "refs" for fault in self.faults):
            self._note("not recorded: refs are damaged, and writing could make it worse")
            return False
        try:
            if record.OPS not in self.repo.branches(record.OPS):
                self._note("not recorded: there is no branch ops; `emlake init` makes one")
                return False
        except LakeError as error:
            self._note(f"not recorded: {error.message}")
            return False
        return True

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _record_now_and_then(self, rest: Region | None) -> None:
        if time.monotonic() - self.recorded_at < self.record_every_s:
            return
        if rest is not None:
            self.todo.insert(0, rest)
        self._record(final=False)
        if rest is not None:
            self.todo.pop(0)
        self.recorded_at = time.monotonic()

    def _record(self, *, final: bool) -> bool:
        """Write the state of all contents, and of everything else if this is the end; tell whether that went well."""
        if final:
            self.faults = list(self.inspector.attribute(self.faults))
        if not self._may_write():
            return False
        written = self.memory.after(datetime.now(UTC))
        self.memory = replace(self.memory, latest=written)
        base = record.now_rows(self.id, self.inspector.place, written)
        self.done = joined(self.done)
        rows = record.region_rows(self._counted([*self.done, *self.todo]), base)
        if final:
            rows += self._part_rows(base)
        tables: dict[str, Any] = {"scrubs": rows}
        if final:
            tables["scrub_faults"] = self._fault_rows(base)
        if learned := self.inspector.learned():
            tables["scrub_digests"] = [{**row, "place": base["place"], "ts": base["ts"]} for row in learned]
        try:
            append_rows(
                self.repo,
                record.OPS,
                tables,
                message=f"{self.id}: {counted(self.checked_bytes, 'byte')} checked",
                anew=self.memory.lost,
            )
        except LakeError as error:
            self._note(f"not recorded: {error.message}")
            return False
        self.memory = replace(self.memory, lost={})
        point("scrub.recorded")
        return True

    def _counted(self, regions: Iterable[Region]) -> Iterable[tuple[Region, int, int, int]]:
        found = set(self.slots.values())
        for region in regions:
            which = members(region, self.inventory)
            hit = sum(int(slot) in found for slot in self.inventory.slots[which]) if found else 0
            yield region, len(which), int(self.inventory.sizes[which].sum()), hit

    def _fault_rows(self, base: dict[str, Any]) -> list[dict[str, Any]]:
        damaged, losses = self.memory.judge(self.faults)
        new = {(fault.kind, fault.name) for fault in damaged}
        # Of two faults of one table the newest row stands for both: it tells of the one that nobody has accepted.
        known = [loss for loss in losses if (loss.fault.kind, loss.fault.name) not in new]
        return [
            *record.fault_rows(damaged, self.slots, base),
            *record.loss_rows(known, self.slots, base),
            *record.healed_rows((self.memory.known[name] for name in self._healed()), base),
        ]

    def _part_rows(self, base: dict[str, Any]) -> list[dict[str, Any]]:
        whole = {"low": "0" * 16, "high": "f" * 16, "since": 0, "until": self.inventory.until, "checked": self.began}
        return [
            {**base, **whole, "kind": p.kind, "objects": p.items, "bytes": p.bytes, "faults": len(p.faults)}
            for p in self.parts
        ]

    def _healed(self) -> list[FaultId]:
        now = {(fault.kind, fault.name) for fault in self.faults}
        return sorted(name for name in self.memory.known if name not in now)

    def _left(self, regions: Sequence[Region]) -> tuple[int, datetime | None, NDArray[np.intp]]:
        never = 0
        oldest: datetime | None = None
        for region in regions:
            count = len(members(region, self.inventory))
            if region.checked is None:
                never += count
            elif count:
                oldest = min(oldest or region.checked, region.checked)
        return never, oldest, np.flatnonzero(~self.seen)


def _batches(which: NDArray[np.intp], sizes: NDArray[np.int64]) -> Iterable[NDArray[np.intp]]:
    """Cut into pieces that take a moment each: after every one a run can be killed without loss."""
    start, held = 0, 0
    for at, index in enumerate(which):
        held += int(sizes[index])
        if at + 1 - start >= BATCH_ITEMS or held >= BATCH_BYTES:
            yield which[start : at + 1]
            start, held = at + 1, 0
    if start < len(which):
        yield which[start:]


def _readers() -> int:
    """Give a number of threads: large contents wait for the processor, small ones for the disk, which takes more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, 4 * cores)
