"""What a killed ingest must leave, for `lake.testing.crash`. The acquisition is `acq`, beside the repository."""

import hashlib
from pathlib import Path

import polars as pl

import lake
from lake import tables
from lake.errors import TableNotFound
from lake.repository import Repository
from lake.testing.crash import Operation, check_sessions_swept, content
from transforms.ingest import ingest_tiles


def rows(repo: Repository) -> pl.DataFrame | None:
    try:
        return tables.read(repo.location_of("archive@", "tables/tiles/")).collect()
    except TableNotFound:
        return None


class Ingest(Operation):
    """The acquisition is archived: every tile and its row, in one commit."""

    once = True

    def prepare(self, location: str) -> None:
        repo = lake.create(location)
        repo.create_branch("archive", "main")
        repo.create_branch("ops", "main")
        repo.protect("archive")
        repo.close()

    def round(self, repo: Repository, number: int) -> None:
        ingest_tiles(repo, Path(repo.location).with_name("acq"))

    def landed(self, repo: Repository) -> int:
        return 0 if rows(repo) is None else 1

    def check(self, repo: Repository, landed: int) -> None:
        held = content(repo, "archive@")
        frame = rows(repo)
        if frame is None:
            assert held == {}
            return
        assert sorted(frame["path"]) == sorted(key for key in held if key.startswith("raw/"))
        files = {path.name: path.read_bytes() for path in Path(repo.location).with_name("acq").glob("*.png")}
        assert len(files) == frame.height
        for path, digest in frame.select("path", "sha256").iter_rows():
            assert held[path] == files[path.rpartition("/")[2]]
            assert digest == hashlib.sha256(held[path]).hexdigest()
        assert len([commit for commit in repo.log("archive") if commit.parents]) == 1

    def check_clean(self, repo: Repository, landed: int) -> None:
        self.check(repo, landed)
        runs = [stat.key for stat in repo.list("archive@", "_runs/") if stat.key.endswith("/run.json")]
        indexed = (
            tables.read(repo.location_of("ops@", "tables/runs/")).select("run_id", "output_commit").collect().rows()
        )
        assert [f"_runs/{run}/run.json" for run, _ in indexed] == runs
        assert [commit for _, commit in indexed] == [repo.resolve("archive")]
        check_sessions_swept(repo)


OPERATIONS = {"ingest": Ingest()}
