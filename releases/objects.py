"""`objects.parquet`: every object of a release with its sha256, re-using the parent release's digests."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from lake.digests import merkle_root
from lake.errors import ObjectNotFound
from lake.names import unit_of
from lake.repository import CommitId, ObjectStat, Repository

# What a release says of itself is outside the tree it describes.
OUTSIDE = ("_qc/", "_releases/")
SCHEMA = {
    "path": pl.String,
    "size": pl.Int64,
    "checksum": pl.String,
    "address": pl.String,
    "sha256": pl.String,
}


def list_objects(
    repo: Repository, commit: CommitId, known: pl.DataFrame | None, progress: Callable[[int], None] | None = None
) -> pl.DataFrame:
    """List the objects of `commit` outside `_qc/` and `_releases/`, in byte order of path, each with its sha256.

    `known` holds rows of the parent release: an object with the same path, size and checksum keeps its digest, so
    that publishing hashes only what is new.
    """
    digests = {}
    if known is not None:
        digests = {(r["path"], r["size"], r["checksum"]): r["sha256"] for r in known.iter_rows(named=True)}
    stats = [s for s in repo.list(commit) if not s.key.startswith(OUTSIDE)]
    new = [s for s in stats if (s.key, s.size, s.checksum) not in digests]
    for stat, digest in hash_objects(repo, commit, new):
        digests[(stat.key, stat.size, stat.checksum)] = digest
        if progress:
            progress(1)
    rows = [(s.key, s.size, s.checksum, s.address, digests[(s.key, s.size, s.checksum)]) for s in stats]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def hash_objects(repo: Repository, commit: CommitId, stats: list[ObjectStat]) -> Iterator[tuple[ObjectStat, str]]:
    """Read every object and give its sha256, in order; at most 64 objects are in flight."""

    def digest(stat: ObjectStat) -> str:
        return hashlib.sha256(repo.get(commit, stat.key)).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        for batch in _chunks(stats, 64):
            yield from zip(batch, pool.map(digest, batch), strict=True)


def _chunks(stats: list[ObjectStat], size: int) -> Iterator[list[ObjectStat]]:
    for start in range(0, len(stats), size):
        yield stats[start : start + size]


def objects_of(repo: Repository, release_commit: CommitId, name: str) -> pl.DataFrame | None:
    """Read a release's `objects.parquet`, or None where it has none."""
    try:
        return pl.read_parquet(io.BytesIO(repo.get(release_commit, f"_releases/{name}/objects.parquet")))
    except ObjectNotFound:
        return None


def artifact_of(path: str) -> str:
    """Name the artifact a path belongs to: its merge unit, its model, its run, or its first folder."""
    unit = unit_of(path)
    if unit is not None:
        return unit
    parts = path.split("/")
    depth = 2 if parts[0] in {"models", "_runs"} and len(parts) > 2 else 1
    return "/".join(parts[:depth]) + "/" if len(parts) > depth else path


def artifact_roots(objects: pl.DataFrame) -> list[dict[str, object]]:
    """Group objects by artifact: object count, bytes, and the Merkle root over (path, size, sha256)."""
    groups: dict[str, list[tuple[str, int, str]]] = {}
    for path, size, digest in objects.select("path", "size", "sha256").iter_rows():
        groups.setdefault(artifact_of(path), []).append((path, size, digest))
    return [
        {"prefix": prefix, "objects": len(rows), "bytes": sum(r[1] for r in rows), "merkle_root": merkle_root(rows)}
        for prefix, rows in sorted(groups.items())
    ]


def to_parquet(objects: pl.DataFrame) -> bytes:
    """Encode the list as Parquet."""
    buffer = io.BytesIO()
    objects.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
