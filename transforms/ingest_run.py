"""An ingest is a run too: what it read, did and cost is kept as that of a run is, and gets a row in `ops.runs`.

Its folder `_runs/<run_id>/` lands in the same commit as the data, so there is a record of exactly what there is; the
row on `ops` is made from it, now or, after a crash, by whoever runs or ingests next (`transforms.index`). An ingest
that finds everything there makes neither.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from lake.digests import canonical_json, json_digest
from lake.durable import point
from lake.repository import Repository
from lake.session import Session
from transforms import ledger as book
from transforms.fingerprint import runtime
from transforms.index import index_run, reindex
from transforms.recorder import code_version, new_run_id, price_of_cpu_hour, put_record
from transforms.tree import Tree

PIPELINE = "ingest"


class IngestRun:
    """One ingest, from when this is made.

    Parameters
    ----------
    stage : "tiles" or "volume"
    params : mapping
        What decides what becomes of the input, as JSON has it.
    libraries : iterable of str
        Distributions that read the input.
    """

    version = 1

    def __init__(self, repo: Repository, stage: str, params: Mapping[str, Any], libraries: Iterable[str]) -> None:
        self._repo, self._stage, self._params, self._libraries = repo, stage, dict(params), tuple(libraries)
        self._started, self._cpu_s = datetime.now(UTC), time.process_time()
        self.run_id = new_run_id(self._started)

    def catch_up(self) -> None:
        """Add to `ops` what earlier runs and ingests could not."""
        reindex(self._repo)

    def write(
        self, session: Session, *, root: str, blocks: int, computed: int, size: int, voxels: int
    ) -> dict[str, str]:
        """Put the record into the session that the data is in; gives what its commit is to say.

        Parameters
        ----------
        root : str
            Merkle root over what was brought in: equal for equal data.
        blocks, computed : int
            Tiles or pieces that were asked for, and those that were not there yet.
        size, voxels : int
            Bytes and voxels brought in.
        """
        # What an interrupted ingest had put here speaks of a commit that never was.
        landed = {stat.key for stat in self._repo.list(session.base, book.RUNS)}
        if left := [stat.key for stat in session.list(book.RUNS) if stat.key not in landed]:
            session.delete(left)
        ended = datetime.now(UTC)
        cpu_s = time.process_time() - self._cpu_s
        price = price_of_cpu_hour(Tree(self._repo, self._repo.resolve("main")))
        digest = json_digest(self._params)
        stage = {
            "stage": f"ingest_{self._stage}", "version": self.version, "params": self._params,
            "kernel": None, "halo": None, "voxel_nm": None,
            "params_id": f"ingest_{self._stage}/inline/{digest[:12]}", "params_digest": digest, "model_digest": None,
            "runtime": canonical_json(runtime(self._libraries)).decode(), "blocks": blocks, "computed": computed,
            "copied": 0, "unchanged": blocks - computed, "reused": blocks - computed, "merkle_root": root,
            "wall_s": (ended - self._started).total_seconds(), "cpu_s": cpu_s, "bytes": size, "wasted_cpu_s": 0.0,
            "accepted_voxels": voxels, "cost": cpu_s / 3600 * price,
            "started": self._started.isoformat(), "finished": ended.isoformat(),
        }  # fmt: skip
        run = {
            "run_id": self.run_id, "pipeline": PIPELINE, "branch": session.branch, "state": "complete", "reason": None,
            "code": code_version(), "input_commit": session.base, "archive_commit": None,
            "started": stage["started"], "finished": stage["finished"], "merkle_root": root, "stages": [stage],
        }  # fmt: skip
        put_record(session, run)
        point("ingest.recorded")
        return {"run_id": self.run_id, "merkle_root": root}

    def landed(self, commit: str) -> None:
        """Add the row on `ops`; if it cannot be added now, it is by whoever comes next."""
        index_run(self._repo, self.run_id, commit)
