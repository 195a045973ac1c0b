"""The memory of scrubs: tables `scrubs`, `scrub_faults` and `scrub_digests` on `ops`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from lake import tables
from lake.coverage import Region
from lake.errors import CorruptObject, NotFound, StorageError
from lake.integrity import CONTENTS, Fault
from lake.repository import Repository
from lake.schemas import table_spec

OPS = "ops"
_KEYS = 100
FaultId = tuple[str, str]  # kind, name


@dataclass(frozen=True, slots=True)
class Loss:
    """A damaged thing that is known to be lost for good: who says so, why, and since when."""

    fault: Fault
    user: str
    reason: str
    accepted: datetime

    def to_json(self) -> dict[str, object]:
        """Give it as one JSON object."""
        told = {"accepted_by": self.user, "accepted": self.accepted, "reason": self.reason}
        return self.fault.to_json() | told


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier scrubs of this place left.

    Attributes
    ----------
    regions : list of Region
        As they were after the last run.
    damaged : mapping of (kind, name) to the last row about it
        Faults that nobody has found healed, nor accepted.
    accepted : mapping of (kind, name) to the last row about it
        Losses that were accepted, and that nobody has found healed.
    latest : datetime or None
        The time of the newest row. What is written next is dated after it, whatever the clock says: the order of
        times is that of commits.
    trouble : str
        Why nothing could be read, where that is so; then everything counts as never checked.
    lost : mapping of table name to what is wrong
        Tables of the record that are damaged themselves.
    """

    regions: list[Region] = field(default_factory=list)
    damaged: Mapping[FaultId, dict[str, Any]] = field(default_factory=dict)
    accepted: Mapping[FaultId, dict[str, Any]] = field(default_factory=dict)
    latest: datetime | None = None
    trouble: str = ""
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> Mapping[FaultId, dict[str, Any]]:
        """All that was damaged when it was last looked at."""
        return {**self.damaged, **self.accepted}

    def after(self, now: datetime) -> datetime:
        """Give the time of what is written next."""
        return now if self.latest is None else max(now, self.latest + timedelta(microseconds=1))

    def judge(self, faults: Iterable[Fault]) -> tuple[tuple[Fault, ...], tuple[Loss, ...]]:
        """Tell new damage from losses that were accepted: of contents, and of the units that cannot be read for them.

        A content is known by its name, in whatever place it is missing.
        """
        accepted = {name: row for (_, name), row in self.accepted.items()}
        damaged, losses = [], []
        for fault in faults:
            names = (fault.name,) if fault.kind in CONTENTS else fault.causes
            row = next((accepted[name] for name in names if name in accepted), None)
            if row is None:
                damaged.append(fault)
            else:
                losses.append(Loss(fault, row["user"], row["reason"], row["accepted"]))
        return tuple(damaged), tuple(losses)


def recall(repo: Repository, place: str) -> Memory:
    """Read what earlier scrubs of these bytes found."""
    frames: dict[str, pl.DataFrame] = {}
    lost: dict[str, str] = {}
    for table in ("scrubs", "scrub_faults", "scrub_digests"):
        try:
            frames[table] = rows_of(repo, table, place)
        except CorruptObject as error:
            lost[table] = error.message
        except StorageError as error:
            return Memory(trouble=error.message)
    if lost:
        return Memory(trouble="; ".join(lost.values()), lost=lost)
    state, faults = frames["scrubs"], frames["scrub_faults"]
    regions = []
    if not state.is_empty():
        newest = state.filter((pl.col("ts") == pl.col("ts").max()) & (pl.col("kind") == "object"))
        regions = [
            Region(int(row["low"], 16), int(row["high"], 16), row["since"], row["until"], row["checked"])
            for row in newest.iter_rows(named=True)
        ]
    last = {(row["kind"], row["object"]): row for row in faults.sort("ts").iter_rows(named=True)}
    times = [when for frame in (state, faults) if not frame.is_empty() for when in frame["ts"].to_list()]
    damaged = {name: row for name, row in last.items() if row["state"] == "damaged"}
    accepted = {name: row for name, row in last.items() if row["state"] == "accepted"}
    return Memory(regions, damaged, accepted, max(times, default=None))


def rows_of(repo: Repository, table: str, place: str, branch: str = OPS) -> pl.DataFrame:
    """Read a table's rows (of one place, if it tells), after its own bytes were compared; none if nobody wrote any."""
    prefix = f"tables/{table}/"
    try:
        head = repo.resolve(branch)
        for stat in repo.list(head, prefix):
            repo.get(head, stat.key)
        rows = tables.read(repo.location_of(head, prefix))
        if "place" in table_spec(table).names:
            rows = rows.filter(pl.col("place") == place)
        return rows.pipe(tables.collect)
    except NotFound:
        return pl.DataFrame(schema=dict.fromkeys(("kind", "object", "state", "ts"), pl.String))


def region_rows(regions: Iterable[tuple[Region, int, int, int]], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write regions with their objects, bytes and faults."""
    return [
        {
            **base,
            "kind": "object",
            "low": f"{region.low:016x}",
            "high": f"{region.high:016x}",
            "since": region.since,
            "until": region.until,
            "objects": objects,
            "bytes": size,
            "faults": faults,
            "checked": region.checked,
        }
        for region, objects, size, faults in regions
    ]


def fault_rows(faults: Sequence[Fault], slots: Mapping[str, int], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write faults as damaged."""
    return [
        {
            **base,
            "state": "damaged",
            "kind": fault.kind,
            "object": fault.name,
            "slot": f"{slots[fault.name]:016x}" if fault.name in slots else None,
            "what": fault.what,
            "fix": fault.fix,
            "keys": list(fault.keys[:_KEYS]),
            "commits": fault.commits,
            "first_commit": fault.first,
            "last_commit": fault.last,
            "refs": list(fault.refs),
            "releases": list(fault.releases),
            "tables": list(fault.tables),
        }
        for fault in faults
    ]


def loss_rows(losses: Sequence[Loss], slots: Mapping[str, int], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write losses as accepted."""
    rows = fault_rows([loss.fault for loss in losses], slots, base)
    return [
        {**row, "state": "accepted", "user": loss.user, "reason": loss.reason, "accepted": loss.accepted}
        for row, loss in zip(rows, losses, strict=True)
    ]


def healed_rows(rows: Iterable[Mapping[str, Any]], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write that things which were damaged are whole."""
    return [{**row, **base, "state": "healed"} for row in rows]


def now_rows(scrub_id: str, place: str, when: datetime) -> dict[str, Any]:
    """Give what all rows of one record share."""
    return {"scrub_id": scrub_id, "place": place, "ts": when}
