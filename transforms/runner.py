"""Runs a pipeline on a branch: plan a stage, compute what is stale, record, go on; land everything as one commit.

::

    session on the branch (a dead or suspended run is gone on with)
      stage by stage
        plan              which blocks, and why
        copy              blocks that another branch holds
        compute           in workers: read, kernel, write, digest
        record            _runs/<run_id>/blocks/<stage>/<block>.json, last of all that the block leaves
        close             the parts enter each table in one Delta commit; coarser scales; checkpoint
      audit               planned against present
      land                run.json, blocks.parquet, inputs.parquet and all outputs: one commit
    rows on ops

A run that fails or is killed is not complete and lands nothing; its finished blocks wait in the suspended session for
the next run on the branch, which checks them byte for byte and computes the rest. Memory: one stage's plan, the blocks
in flight, and a few hundred bytes a block for the ledger; nothing else grows with the volume.
"""

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lake.durable import point
from lake.errors import LakeError, StageFailed
from lake.repository import CommitId, Repository
from lake.session import Session
from lake.wording import counted
from transforms import ledger as book
from transforms.dispatch import Failed, Retry
from transforms.executors import Executor, make_executor
from transforms.index import index_failure, index_run, reindex
from transforms.ledger import Ledger, Record
from transforms.model_store import as_resolved, find_models
from transforms.pipeline import Pipeline, load_pipeline, resolve
from transforms.planner import Planner, grid_of
from transforms.recorder import Recorder, StageReport, land_recorded, new_run_id
from transforms.reuse import Elsewhere
from transforms.stage_run import Progress, StageRun
from transforms.tree import Archive, Tree

__all__ = ["Progress", "RunReport", "StageReport", "reindex", "run"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Parameters
    ----------
    state : "complete" or "unchanged"
        "unchanged": the branch already held everything, and nothing was written.
    commit : commit id
        The commit it made, or the branch's head.
    merkle_root : str
        Over (fingerprint, block, output, digest) of all stages: equal on every executor and engine.
    taken_over : int
        Blocks that an interrupted run had finished, and that were not computed again.
    indexed : bool
        Whether its rows are on `ops`; else the next run adds them.
    """

    run_id: str
    pipeline: str
    branch: str
    state: str
    commit: CommitId
    merkle_root: str
    stages: tuple[StageReport, ...]
    resumed: bool
    taken_over: int
    indexed: bool
    seconds: float

    @property
    def computed(self) -> int:
        """Blocks computed."""
        return sum(stage.computed for stage in self.stages)

    @property
    def cpu_s(self) -> float:
        """CPU seconds over all workers."""
        return sum(stage.cpu_s for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Give the report for `--json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "stages"}
        return {**fields, "stages": [stage.to_json() for stage in self.stages]}


def run(
    repo: Repository,
    pipeline: Pipeline | str | Path,
    branch: str,
    *,
    executor: Executor | str = "serial",
    workers: int | None = None,
    progress: Progress | None = None,
    owner: str | None = None,
    retry: Retry | None = None,
    fresh: bool = False,
) -> RunReport:
    """Run a pipeline on a branch.

    Parameters
    ----------
    pipeline : Pipeline, path, or the name of one that comes with emlake
    executor : Executor, or "serial" or "processes"
        One that is given stays open; one that is named is closed at the end.
    progress : callable (stage, done, total, voxels)
        Called after each block, in this process.
    fresh : bool
        Throw away what an unfinished run left, instead of going on with it.

    Raises
    ------
    StageFailed
        Blocks failed every time, or the audit found gaps. Nothing landed; finished blocks are kept for the next run.
    ConflictError
        Somebody else writes the branch.
    """
    chosen = pipeline if isinstance(pipeline, Pipeline) else load_pipeline(pipeline)
    reindex(repo)
    with ExitStack() as stack:
        if isinstance(executor, str):
            executor = stack.enter_context(make_executor(executor, workers))
        session, run_id = _open(repo, branch, chosen, owner, fresh=fresh)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emlake-run-")))
        work = _Run(repo, session, chosen, executor, progress or _silent, retry or Retry(), scratch)
        try:
            return work.go(run_id)
        except BaseException as error:
            _put_aside(session, error, worth_keeping=work.has_begun)
            if isinstance(error, StageFailed):
                index_failure(repo, work.recorder.run_json("failed", str(error)))
            raise


def _silent(stage: str, done: int, total: int, voxels: int) -> None:
    pass


def _open(
    repo: Repository, branch: str, pipeline: Pipeline, owner: str | None, *, fresh: bool
) -> tuple[Session, str | None]:
    """Open the session; say which unfinished run it holds, if one that this pipeline can go on with."""
    who = owner or f"run {pipeline.name}"
    session = repo.session(branch, owner=who, resume=not fresh)
    if not session.resumed:
        return session, None
    recorded = book.recorded_run(session, Tree(repo, session.base), pipeline.name)
    if recorded is not None:
        # There was no room, or a kill came, between its record and its commit: it lacks nothing else.
        try:
            commit = land_recorded(session, recorded)
        except BaseException as error:
            _put_aside(session, error, worth_keeping=True)
            raise
        index_run(repo, recorded["run_id"], commit)
        _log.warning("run %s was complete and had not landed; it has now, as %s", recorded["run_id"], commit)
        return repo.session(branch, owner=who, resume=False), None
    names = {step.stage for step in pipeline.steps}
    for run_id in reversed(book.begun_runs(session)):
        folders = {s.key.split("/")[3] for s in session.list(f"{book.run_folder(run_id)}blocks/")}
        if folders <= names:
            return session, run_id
    _log.warning("what an unfinished session left on %r is no run of pipeline %r: thrown away", branch, pipeline.name)
    session.abandon()
    return repo.session(branch, owner=who, resume=False), None


def _put_aside(session: Session, error: BaseException, *, worth_keeping: bool) -> None:
    """Keep an unfinished run's work for the next run; never hide the error that stopped it."""
    try:
        session.suspend() if worth_keeping else session.abandon()
    except LakeError as second:
        error.add_note(f"the session could not be put aside: {second}")


class _Run:
    """One run from its session to its commit."""

    def __init__(
        self,
        repo: Repository,
        session: Session,
        pipeline: Pipeline,
        executor: Executor,
        progress: Progress,
        retry: Retry,
        scratch: Path,
    ) -> None:
        self._repo, self._session, self._pipeline, self._scratch = repo, session, pipeline, scratch
        self._executor, self._progress, self._retry = executor, progress, retry
        self.tree = Tree(repo, session.base, session)
        self.recorder = Recorder(repo, self.tree, pipeline.name, session.branch)
        self._resumed = session.resumed

    @property
    def has_begun(self) -> bool:
        """Whether the session holds anything that the next run can go on with, also in the middle of a stage."""
        return self._resumed or self.recorder.has_begun

    def go(self, run_id: str | None) -> RunReport:
        """Plan and carry out every stage, then land."""
        started = datetime.now(UTC)
        ledger, runs = book.state_of(self.tree)
        models = find_models(self._pipeline, self.tree)
        stages = resolve(self._pipeline, self._repo, self._session.work, as_resolved(models))
        archive = Archive(self._repo, self.tree)
        planner = Planner(self.tree, archive, stages, ledger, runs, grid_of(self._pipeline, self.tree))
        self.recorder.begin(run_id or new_run_id(started), archive.commit, resumed=run_id is not None)
        if run_id is not None:
            self._resume(ledger, run_id)
        elsewhere = Elsewhere(self._repo)
        folders = {files.digest: files.unpack(self._scratch) for files in models.values()}
        for resolved in stages:
            stage_run = StageRun(
                planner, resolved, self._executor, self.recorder, self._progress, self._retry, folders, elsewhere
            )
            failures = stage_run.go()
            if failures:
                raise _stage_failed(resolved.stage.name, failures, self.recorder.run_id)
        if not self.recorder.has_begun:
            self._session.abandon()
            return self._report("unchanged", self._session.base, started, indexed=True)
        for files in models.values():
            files.import_into(self._session)
        self.recorder.audit()
        commit = self.recorder.land(self._session)
        point("run.landed")
        indexed = index_run(self._repo, self.recorder.run_id, commit)
        return self._report("complete", commit, started, indexed=indexed)

    def _resume(self, ledger: Ledger, run_id: str) -> None:
        """Take over the finished blocks of a run that was interrupted, those whose bytes are there."""
        kept: dict[str, tuple[Record, list[Any]]] = {}
        for record, inputs in book.unfinished(self.tree, run_id):
            kept[record.id] = (record, inputs)
        for record, inputs in self.recorder.verified(kept, self._executor, self._retry):
            ledger.add(record)
            self.recorder.take_over(record, inputs)

    def _report(self, state: str, commit: CommitId, started: datetime, *, indexed: bool) -> RunReport:
        return RunReport(
            self.recorder.run_id if state == "complete" else "",
            self._pipeline.name,
            self._session.branch,
            state,
            commit,
            self.recorder.merkle_root(),
            tuple(self.recorder.reports),
            self.recorder.resumed,
            self.recorder.taken_over,
            indexed,
            (datetime.now(UTC) - started).total_seconds(),
        )


def _stage_failed(stage: str, failures: Mapping[str, Failed], run_id: str) -> StageFailed:
    first = next(iter(failures))
    return StageFailed(
        f"stage {stage!r}: {counted(len(failures), 'block')} failed at every try; {first}: {failures[first].cause}",
        fix=f"see _runs/{run_id}/dead/{stage}/; correct the cause and run again: finished blocks are kept",
    )
