"""What changed between two commits of the lake, in the terms of its users."""

from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from lake.errors import TableNotFound
from lake.repository import CommitId, Repository
from lake.snapshot import Snapshot
from lake.tables import collect


@dataclass(frozen=True, slots=True)
class RegionChange:
    """How much of one region's machine result changed."""

    region: str
    supervoxels: int
    rebound_supervoxels: int
    synapses_added: int
    synapses_removed: int


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """Counts and rows; `old` None compares with nothing.

    Attributes
    ----------
    roots_created, roots_retired, roots_kept : int
        By root id. A root id is the hash of its voxels, so a kept root has exactly the same voxels.
    synapses_rebound : int
        Synapses with the same positions in both whose pre- or postsynaptic root differs.
    tables : mapping
        Per table: rows in old and new, and rows added and removed by its key (volatile columns not compared).
    """

    old: CommitId | None
    new: CommitId
    roots_created: int
    roots_retired: int
    roots_kept: int
    synapses_added: int
    synapses_removed: int
    synapses_rebound: int
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    regions: tuple[RegionChange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON without the commit ids, which differ between engines."""
        data = asdict(self)
        del data["old"], data["new"]
        return {**data, "regions": list(data["regions"])}


_POINTS = [f"{end}_pt_position_{axis}" for end in ("pre", "post", "ctr") for axis in "xyz"]
_COMPARED = ("segments", "supervoxels", "agglomeration", "synapses", "connections", "sections")


def release_diff(repo: Repository, old: str | None, new: str) -> ReleaseDiff:
    """Compare two commits (release, branch or commit; `old` None = nothing)."""
    with repo.snapshot(new) as after:
        if old is None:
            return _diff(None, after)
        with repo.snapshot(old) as before:
            return _diff(before, after)


def _diff(before: Snapshot | None, after: Snapshot) -> ReleaseDiff:
    old_roots, new_roots = (_column(s, "segments", ["root_id"]) for s in (before, after))
    kept = new_roots.join(old_roots, on="root_id", how="semi").height
    old_syn, new_syn = (_column(s, "synapses", [*_POINTS, "region", *_ROOTS]) for s in (before, after))
    both = old_syn.join(new_syn, on=_POINTS, how="inner", suffix="_new")
    rebound = both.filter(
        (pl.col("pre_pt_root_id") != pl.col("pre_pt_root_id_new"))
        | (pl.col("post_pt_root_id") != pl.col("post_pt_root_id_new"))
    ).height
    return ReleaseDiff(
        before.commit if before else None,
        after.commit,
        new_roots.height - kept,
        old_roots.height - kept,
        kept,
        new_syn.height - both.height,
        old_syn.height - both.height,
        rebound,
        {name: _rows(before, after, name) for name in _COMPARED},
        _regions(before, after, old_syn, new_syn),
    )


_ROOTS = ["pre_pt_root_id", "post_pt_root_id"]


def _column(snapshot: Snapshot | None, table: str, columns: list[str]) -> pl.DataFrame:
    if snapshot is not None:
        try:
            return snapshot.table(table).select(columns).pipe(collect)
        except TableNotFound:
            pass
    types = {c: pl.Float64 if "position" in c else pl.String if c == "region" else pl.Int64 for c in columns}
    return pl.DataFrame(schema=types)


_KEYS = {
    "segments": ["root_id"],
    "supervoxels": ["supervoxel_id", "voxel_hash"],
    "agglomeration": ["supervoxel_id", "root_id"],
    "synapses": [*_POINTS, *_ROOTS],
    "connections": ["pre_root_id", "post_root_id", "synapses"],
    "sections": ["section", "transform"],
}


def _rows(before: Snapshot | None, after: Snapshot, table: str) -> dict[str, int]:
    keys = _KEYS[table]
    frames = []
    for snapshot in (before, after):
        try:
            frames.append(snapshot.table(table).select(keys).pipe(collect) if snapshot else None)
        except TableNotFound:
            frames.append(None)
    old, new = frames
    if old is None or new is None:
        return {
            "old": old.height if old is not None else 0,
            "new": new.height if new is not None else 0,
            "added": new.height if new is not None else 0,
            "removed": old.height if old is not None else 0,
        }
    return {
        "old": old.height,
        "new": new.height,
        "added": new.join(old, on=keys, how="anti").height,
        "removed": old.join(new, on=keys, how="anti").height,
    }


def _regions(
    before: Snapshot | None, after: Snapshot, old_syn: pl.DataFrame, new_syn: pl.DataFrame
) -> tuple[RegionChange, ...]:
    new = _by_region(after)
    old = _by_region(before)
    # A supervoxel is unchanged if its voxels are the same and it lies in the same root.
    same = new.join(old, on=["supervoxel_id", "voxel_hash", "root_id"], how="semi")
    total = new.group_by("region").len().rename({"len": "supervoxels"})
    unchanged = same.group_by("region").len().rename({"len": "unchanged"})
    added = new_syn.join(old_syn, on=_POINTS, how="anti").group_by("region").len().rename({"len": "added"})
    removed = old_syn.join(new_syn, on=_POINTS, how="anti").group_by("region").len().rename({"len": "removed"})
    table = total
    for part in (unchanged, added, removed):
        table = table.join(part, on="region", how="full", coalesce=True)
    return tuple(
        RegionChange(r["region"], r["supervoxels"], r["supervoxels"] - r["unchanged"], r["added"], r["removed"])
        for r in table.fill_null(0).sort("region").to_dicts()
    )


def _by_region(snapshot: Snapshot | None) -> pl.DataFrame:
    schema = {"supervoxel_id": pl.Int64, "region": pl.String, "voxel_hash": pl.Int64, "root_id": pl.Int64}
    if snapshot is None:
        return pl.DataFrame(schema=schema)
    try:
        voxels = snapshot.table("supervoxels").select("supervoxel_id", "region", "voxel_hash")
        roots = snapshot.table("agglomeration").select("supervoxel_id", "root_id")
        return voxels.join(roots, on="supervoxel_id", how="left").pipe(collect)
    except TableNotFound:
        return pl.DataFrame(schema=schema)
