"""Measures a candidate's data and stores the figures with it: one commit, on top of the data it speaks of."""

import uuid
from dataclasses import dataclass

import polars as pl

from lake.repository import CommitId, Repository
from lake.tables import collect, overwrite
from qc.measure import Progress, measure
from qc.suites import run_suites


@dataclass(frozen=True, slots=True)
class QcRun:
    """What a QC run gave.

    Attributes
    ----------
    commit, data_commit : commit id
        Q, which holds the tables, and D, which was measured.
    metrics, results : frames of `qc_metrics` and `qc_results`
    made : bool
        False if D had been measured before: nothing was done.
    """

    commit: CommitId
    data_commit: CommitId
    metrics: pl.DataFrame
    results: pl.DataFrame
    made: bool


def run_qc(repo: Repository, branch: str, *, progress: Progress | None = None, owner: str = "qc run") -> QcRun:
    """Measure the head of `branch` and commit `tables/qc_metrics` and `tables/qc_results`, replaced whole.

    A head that is a QC commit, or a verdict on one, is not measured again.
    """
    head = repo.commit_info(branch)
    found = _judged(repo, head.id)
    if found is not None:
        return _stored(repo, *found)
    with repo.snapshot(head.id) as snapshot:
        metrics = pl.DataFrame([metric.row() for metric in measure(snapshot, progress)], infer_schema_length=None)
        results = run_suites(snapshot, metrics)
    stamp = [pl.lit(head.id).alias("data_commit"), pl.lit(f"qc-{uuid.uuid4().hex[:12]}").alias("run_id")]
    metrics, results = metrics.with_columns(stamp), results.with_columns(stamp)
    with repo.session(branch, owner=owner) as session:
        overwrite(session.workspace("tables/qc_metrics/"), "qc_metrics", metrics)
        overwrite(session.workspace("tables/qc_results/"), "qc_results", results)
        commit = session.commit(f"QC of {head.id[:12]}", {"qc_of": head.id})
    return QcRun(commit, head.id, metrics, results, made=True)


def measured(repo: Repository, ref: str) -> CommitId | None:
    """Give the data commit whose figures `ref` holds, or None if it has none, or its data changed after them."""
    commit = repo.commit_info(ref)
    # A release is a merge on main; it names the commit that was judged, and holds its data and its figures.
    found = _judged(repo, commit.metadata.get("qc", commit.id))
    return None if found is None else found[1]


def _judged(repo: Repository, commit: CommitId) -> tuple[CommitId, CommitId] | None:
    """Find (Q, D) at or behind a commit, over commits that only judge."""
    for info in repo.log(commit, first_parent=True):
        if "qc_of" in info.metadata:
            return info.id, info.metadata["qc_of"]
        if "judged" not in info.metadata:
            return None
    return None


def _stored(repo: Repository, commit: CommitId, data_commit: CommitId) -> QcRun:
    with repo.snapshot(commit) as snapshot:
        metrics, results = (snapshot.table(name).pipe(collect) for name in ("qc_metrics", "qc_results"))
    return QcRun(commit, data_commit, metrics, results, made=False)
