"""Keeps a run's record: begun, done, dead, closed, and the three files that remain in the commit."""

import secrets
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lake.box import Box
from lake.digests import canonical_json, merkle_root
from lake.durable import point
from lake.errors import OF_THE_MACHINE, ObjectNotFound, StageFailed
from lake.repository import CommitId, Repository
from lake.session import Session
from transforms import ledger as book
from transforms.audit import audit
from transforms.dispatch import Failed, Finished, Job, Retry, dispatch
from transforms.executors import Executor
from transforms.fingerprint import Basis, InputRef
from transforms.layout import Layout
from transforms.ledger import Ledger, Record
from transforms.stage import Block
from transforms.tree import Tree
from transforms.worker import CheckTask, check

POLICY = "_policy/release.toml"


@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of one stage.

    Parameters
    ----------
    wall_s : float
        Duration, closing included.
    cpu_s, wasted_s : float
        CPU seconds of what was computed; seconds of attempts that failed.
    voxels : int
        Voxels of the blocks that this run made.
    peak_bytes : int
        The most memory a worker held.
    """

    stage: str
    blocks: int
    computed: int
    copied: int
    unchanged: int
    wall_s: float
    cpu_s: float
    wasted_s: float
    bytes: int
    voxels: int
    peak_bytes: int
    merkle_root: str

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return asdict(self)


class Recorder:
    """Writes what a run leaves, into its session."""

    def __init__(self, repo: Repository, tree: Tree, pipeline: str, branch: str) -> None:
        self.tree = tree
        self.run_id = ""
        self.resumed = self.has_begun = False
        self.taken_over = 0
        self.reports: list[StageReport] = []
        self._repo, self._pipeline, self._branch = repo, pipeline, branch
        self._inputs: dict[str, tuple[InputRef, ...]] = {}
        self._records: dict[str, list[Record]] = {}
        self._stages: list[dict[str, Any]] = []
        self._touched: list[tuple[str, Layout]] = []
        self._ledger = Ledger()
        self._archive: CommitId | None = None
        self._started = datetime.now(UTC)

    @property
    def session(self) -> Session:
        """The session that is written."""
        assert self.tree.session is not None
        return self.tree.session

    @property
    def made_here(self) -> set[str]:
        """Ids of the blocks that this run computed or copied."""
        return set(self._inputs)

    # -- beginning ----------------------------------------------------------------------------------------------------
    def begin(self, run_id: str, archive: CommitId | None, *, resumed: bool) -> None:
        """Say which run this is; nothing is written before there is something to do."""
        self.run_id, self._archive, self.resumed, self.has_begun = run_id, archive, resumed, resumed
        if resumed:
            begun = book.read_json(self.tree, f"{book.run_folder(run_id)}begun.json") or {}
            self._started = datetime.fromisoformat(begun.get("started", self._started.isoformat()))

    def ensure_begun(self) -> None:
        """Write the object by which a later run knows this one."""
        if not self.has_begun:
            told = {"run_id": self.run_id, "pipeline": self._pipeline, "started": self._started.isoformat()}
            self.session.put(f"{book.run_folder(self.run_id)}begun.json", canonical_json(told))
            self.has_begun = True
            point("run.begun")

    def verified(
        self, kept: Mapping[str, tuple[Record, list[InputRef]]], executor: Executor, retry: Retry
    ) -> Iterator[tuple[Record, list[InputRef]]]:
        """Yield those finished blocks of the interrupted run whose outputs are there, byte for byte."""
        for record, _ in kept.values():
            for output in record.outputs:
                self.tree.write(f"{output.name}/")
        jobs = (Job(key, check, self._check_task(record)) for key, (record, _) in kept.items())
        for done in dispatch(executor, jobs, retry):
            if isinstance(done, Failed) and isinstance(done.error, OF_THE_MACHINE):
                raise done.error
            record, inputs = kept[done.key]
            # What cannot be read is as good as lost: a power cut leaves files that do not decode.
            if isinstance(done, Finished) and done.value:
                yield record, inputs
            else:
                self.session.delete([book.done_key(self.run_id, record.stage, record.block)])

    def _check_task(self, record: Record) -> CheckTask:
        block = Block(record.stage, record.block, (0, 0, 0), Box.parse(record.box) if record.box else None)
        return CheckTask(block, record.outputs, {o.name: self.tree.write(f"{o.name}/") for o in record.outputs})

    def take_over(self, record: Record, inputs: Iterable[InputRef]) -> None:
        """Remember a block of the interrupted run as this run's own."""
        self._inputs[record.id] = tuple(inputs)
        self.taken_over += 1

    # -- blocks and stages --------------------------------------------------------------------------------------------
    def done(self, record: Record, inputs: tuple[InputRef, ...]) -> None:
        """Write that a block is done: after this it is never computed again."""
        point("run.block-written")
        key = book.done_key(self.run_id, record.stage, record.block)
        self.session.put(key, book.done_object(record, inputs), content_type="application/json")
        self._inputs[record.id] = inputs
        point("run.block-done")

    def dead(self, stage: str, block: str, failed: Failed) -> None:
        """Write why a block cannot be done."""
        self.ensure_begun()
        told = {"stage": stage, "block": block, "attempts": failed.attempts, "cause": failed.cause}
        told |= {"trace": failed.trace, "time": datetime.now(UTC).isoformat()}
        self.session.put(book.dead_key(self.run_id, stage, block), canonical_json(told))

    def is_closed(self, stage: str, root: str) -> bool:
        """Tell whether a stage was closed over just these blocks before this run was interrupted."""
        found = book.read_json(self.tree, self._closed_key(stage))
        return found is not None and found.get("root") == root

    def close(self, stage: str, root: str) -> None:
        """Write that a stage's tables and coarser scales are made."""
        self.session.put(self._closed_key(stage), canonical_json({"root": root}))
        point("run.stage-closed")

    def _closed_key(self, stage: str) -> str:
        return f"{book.run_folder(self.run_id)}closed/{stage}.json"

    def stage(
        self, base: Basis, layout: Layout, ledger: Ledger, began: datetime, lost: Iterable[Failed], *, touched: bool
    ) -> None:
        """Add up a stage that is over."""
        self._ledger = ledger
        held = ledger.of(base.stage)
        records = [held[name] for name in layout.blocks if name in held]
        mine = [r for r in records if r.made_by == self.run_id or r.id in self._inputs]
        computed = [r for r in mine if r.made_by == self.run_id]
        self._records[base.stage] = records
        if touched:
            self._touched.append((base.stage, layout))
        ended = datetime.now(UTC)
        report = StageReport(
            stage=base.stage,
            blocks=len(layout.blocks),
            computed=len(computed),
            copied=len(mine) - len(computed),
            unchanged=len(records) - len(mine),
            wall_s=(ended - began).total_seconds(),
            cpu_s=sum(r.cpu_s for r in computed),
            wasted_s=sum(r.wasted_s for r in computed) + sum(failed.wasted_s for failed in lost),
            bytes=sum(r.bytes for r in mine),
            voxels=sum(r.voxels for r in mine),
            peak_bytes=max((r.peak_bytes for r in computed), default=0),
            merkle_root=book.stage_root(records),
        )
        self.reports.append(report)
        self._stages.append(self._stage_json(base, report, records, began, ended))

    def _stage_json(
        self, base: Basis, report: StageReport, records: Iterable[Record], began: datetime, ended: datetime
    ) -> dict[str, Any]:
        outputs = {output.name for record in records for output in record.outputs}
        volumes = sorted(name.removeprefix("volumes/") for name in outputs if name.startswith("volumes/"))
        spec = self.tree.spec(volumes[0]) if volumes else None
        voxel_nm = spec.voxel_nm_zyx if spec else self.tree.grid().voxel_nm
        return {
            "stage": base.stage, "version": base.version, "kernel": base.kernel, "params": base.params,
            "params_id": base.params_id, "params_digest": base.params_digest, "model_digest": base.model,
            "runtime": canonical_json(base.numerics).decode(), "halo": base.halo, "voxel_nm": list(voxel_nm),
            "blocks": report.blocks, "computed": report.computed, "copied": report.copied,
            "unchanged": report.unchanged, "reused": report.copied + report.unchanged,
            "merkle_root": report.merkle_root, "wall_s": report.wall_s, "cpu_s": report.cpu_s, "bytes": report.bytes,
            "wasted_cpu_s": report.wasted_s, "accepted_voxels": report.voxels,
            "cost": report.cpu_s / 3600 * price_of_cpu_hour(self.tree),
            "started": began.isoformat(), "finished": ended.isoformat(),
        }  # fmt: skip

    # -- ending -------------------------------------------------------------------------------------------------------
    def merkle_root(self) -> str:
        """Root over all blocks of all stages."""
        return merkle_root(
            (r.fingerprint, r.id, output.name, output.digest)
            for records in self._records.values()
            for r in records
            for output in r.outputs
        )

    def audit(self) -> None:
        """Compare what was planned with what is there; `StageFailed` names the gaps."""
        gaps = audit(self.tree, self._ledger, self._touched)
        if gaps:
            # The next run shall close these stages again, not take their word for it.
            self.session.delete([self._closed_key(stage) for stage, _ in self._touched])
            raise StageFailed(
                f"run {self.run_id} is not complete: {len(gaps)} gaps, first: {gaps[0]}",
                fix="run again: what is missing is computed; if it stays missing, look at the storage",
            )
        point("run.audited")

    def run_json(self, state: str, reason: str | None = None) -> dict[str, Any]:
        """Describe the run."""
        return {
            "run_id": self.run_id, "pipeline": self._pipeline, "branch": self._branch, "state": state,
            "reason": reason, "code": code_version(), "input_commit": self.tree.commit,
            "archive_commit": self._archive, "started": self._started.isoformat(),
            "finished": datetime.now(UTC).isoformat(), "merkle_root": self.merkle_root(), "stages": self._stages,
        }  # fmt: skip

    def land(self, session: Session) -> CommitId:
        """Turn the record into the run's folder and land everything as one commit."""
        records = [record for stage in self._records.values() for record in stage]
        own = set(self._inputs)
        told = [record if record.id in own else book.as_unchanged(record) for record in records]
        run = self.run_json("complete")
        put_record(session, run, told, self._inputs.items())
        return land_recorded(session, run)


def put_record(
    session: Session,
    run: Mapping[str, Any],
    blocks: Iterable[Record] = (),
    inputs: Iterable[tuple[str, Iterable[InputRef]]] = (),
) -> None:
    """Put the three files that remain of a run into its session; `run.json` last, since with it the record is whole."""
    folder = book.run_folder(run["run_id"])
    session.put(f"{folder}blocks.parquet", book.blocks_parquet(blocks))
    session.put(f"{folder}inputs.parquet", book.inputs_parquet(inputs))
    session.put(f"{folder}run.json", canonical_json(run), content_type="application/json")


def land_recorded(session: Session, run: Mapping[str, Any]) -> CommitId:
    """Land a run whose record lies in the session, as one commit, without what only served to go on with it."""
    folder = book.run_folder(run["run_id"])
    keep = {f"{folder}{name}" for name in ("blocks.parquet", "inputs.parquet", "run.json")}
    session.delete([stat.key for stat in session.list(folder) if stat.key not in keep])
    point("run.recorded")
    computed, blocks = (sum(stage[name] for stage in run["stages"]) for name in ("computed", "blocks"))
    message = f"run {run['pipeline']}: {computed} of {blocks} blocks computed"
    return session.commit(message, {"run_id": run["run_id"], "merkle_root": str(run["merkle_root"])})


def price_of_cpu_hour(tree: Tree) -> float:
    """Read the price of a CPU hour from the policy in the tree; 0 without one."""
    try:
        policy = tomllib.loads(tree.get(POLICY).decode())
    except (ObjectNotFound, ValueError):
        return 0.0
    return float(policy.get("price", {}).get("cpu_hour", 0.0))


def new_run_id(now: datetime) -> str:
    """Make an id that sorts by time."""
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Give the version control commit of the code, or its distribution version."""
    git = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = git / name
        if loose.is_file():
            return loose.read_text().strip()
        packed = (line.split(" ") for line in (git / "packed-refs").read_text().splitlines())
        return next(line[0] for line in packed if line[-1] == name)
    except (OSError, StopIteration):
        return metadata.version("emlake")
