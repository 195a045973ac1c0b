"""Blocks that another branch has computed already: found by fingerprint in `ops`, taken over byte for byte.

The index says which run made a block of this fingerprint and which commit that run made; the run's own folder in that
commit says what the outputs are. Nothing is trusted: the copy is digested against the record, and what cannot be had
(branch deleted, commit collected, object gone) is computed.
"""

from collections.abc import Iterable

import polars as pl

from lake import tables
from lake.errors import OF_THE_MACHINE, LakeError
from lake.location import Location
from lake.repository import CommitId, Repository
from transforms.ledger import Record, read_blocks, run_folder
from transforms.tree import Tree


class Elsewhere:
    """Looks up fingerprints over all branches; empty if there is no index yet."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._runs: dict[str, CommitId] | None = None
        self._records: dict[str, dict[str, Record]] = {}
        self._blocks: Location | None = None
        self._trees: dict[CommitId, Tree] = {}

    def find(self, stage: str, fingerprints: Iterable[str]) -> dict[str, tuple[Record, Tree]]:
        """Map those fingerprints that some branch holds to the record and the tree it lies in."""
        wanted = set(fingerprints)
        runs = self._known_runs()
        if not wanted or not runs or self._blocks is None:
            return {}
        rows = (
            tables.read(self._blocks)
            .filter((pl.col("stage") == stage) & pl.col("fingerprint").is_in(wanted))
            .filter(~pl.col("reused"))
            .select("fingerprint", "block", "run_id")
            .unique()
            .sort("fingerprint", "run_id")
            .pipe(tables.collect)
        )
        found = {}
        for fingerprint, block, run_id in rows.iter_rows():
            record = self._records_of(run_id).get(block)
            if record is not None and record.fingerprint == fingerprint:
                found[fingerprint] = (record, self._tree(runs[run_id]))
        return found

    def _known_runs(self) -> dict[str, CommitId]:
        if self._runs is None:
            self._runs = {}
            head = self._repo.branches("ops").get("ops")
            if head is not None:
                runs = self._repo.location_of(head, "tables/runs/")
                self._blocks = self._repo.location_of(head, "tables/blocks/")
                if tables.table_exists(runs) and tables.table_exists(self._blocks):
                    made = tables.read(runs).filter(pl.col("output_commit").is_not_null())
                    self._runs = dict(made.select("run_id", "output_commit").unique().pipe(tables.collect).iter_rows())
                else:
                    self._blocks = None
        return self._runs

    def _tree(self, commit: CommitId) -> Tree:
        if commit not in self._trees:
            self._trees[commit] = Tree(self._repo, commit)
        return self._trees[commit]

    def _records_of(self, run_id: str) -> dict[str, Record]:
        if run_id not in self._records:
            commit = self._known_runs().get(run_id)
            self._records[run_id] = {}
            if commit is not None:
                try:
                    data = self._repo.get(commit, f"{run_folder(run_id)}blocks.parquet")
                except OF_THE_MACHINE:
                    raise
                except LakeError:
                    # The commit may have been collected since; computing is always right.
                    return {}
                self._records[run_id] = {record.id: record for record in read_blocks(data)}
        return self._records[run_id]
