"""Digests of a server's objects that were recorded by those who wrote them, which is better than the server's own."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from lake.clones import PARENTS
from lake.errors import OF_THE_MACHINE, LakeError
from lake.repository import Commit, Repository
from lake.scrub_record import rows_of

Identity = tuple[str, int, str]  # address or key, size, the server's checksum


@dataclass(frozen=True, slots=True)
class Digests:
    """sha256 by address, and of raw tiles by key."""

    by_address: dict[Identity, str] = field(default_factory=dict)
    by_key: dict[tuple[str, int], str] = field(default_factory=dict)

    def find(self, address: str, key: str, size: int, checksum: str) -> str | None:
        """Give what is recorded of an object."""
        return self.by_address.get((address, size, checksum)) or self.by_key.get((key, size))


def digests(repo: Repository, place: str, commits: Sequence[Commit]) -> Digests:
    """Read what releases list, what ingest recorded, and what earlier scrubs saw.

    A record that cannot be read is passed over here: its own damage is found where its bytes are checked.
    """
    found = Digests()
    for commit in commits:
        if "release" in commit.metadata and (len(commit.parents) == 2 or PARENTS in commit.metadata):
            _from_release(repo, commit, found)
    for branch, table in (("archive", "tiles"), ("ops", "scrub_digests")):
        try:
            rows = rows_of(repo, table, place, branch)
        except OF_THE_MACHINE:
            raise
        except LakeError:
            continue
        for row in rows.iter_rows(named=True):
            if table == "tiles":
                found.by_key[(row["path"], row["bytes"])] = row["sha256"]
            else:
                found.by_address[(row["address"], row["bytes"], row["checksum"])] = row["sha256"]
    return found


def _from_release(repo: Repository, commit: Commit, found: Digests) -> None:
    try:
        data = repo.get(commit.id, f"_releases/{commit.metadata['release']}/objects.parquet")
        listed = pl.read_parquet(io.BytesIO(data))
        rows = listed.select("address", "size", "checksum", "sha256").rows()
    except OF_THE_MACHINE:
        raise
    except (LakeError, pl.exceptions.PolarsError):
        return
    for address, size, checksum, sha256 in rows:
        found.by_address[(address, size, checksum)] = sha256
