"""Rows of supervoxels and segments, and the jump from supervoxel to root ids. Positions are voxel centres in nm."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from lake.ids import region_name, root_ids, supervoxel_id, voxel_hashes

Nm = tuple[float, float, float]
_AXES = ("z", "y", "x")


def supervoxel_table(
    labels: NDArray[np.integer[Any]], block_index: Zyx, box: Box, voxel_nm: Nm, *, region: str | None = None
) -> pl.DataFrame:
    """Measure every supervoxel of one block.

    Parameters
    ----------
    labels : (z, y, x) integer
        Local numbers 1..n, 0 is none.
    block_index : (z, y, x) int
        Cell of the grid; with the local number it makes the id.
    box : Box
        Where the block lies, global voxels at full resolution.
    voxel_nm : (z, y, x) float
    region : str, optional
        Region of the block; default: its grid cell.

    Returns
    -------
    DataFrame
        supervoxel_id, region, voxels, voxel_hash, centroid_*, min_*, max_*; ascending ids.
    """
    n = int(labels.max(initial=0))
    local = np.ascontiguousarray(labels, np.uint32)
    voxels = np.bincount(local.ravel(), minlength=n + 1)
    present = np.flatnonzero(voxels[1:]) + 1
    columns: dict[str, Any] = {
        "supervoxel_id": supervoxel_id(block_index, present),
        "region": np.full(len(present), region or region_name(block_index)),
        "voxels": voxels[present],
        "voxel_hash": voxel_hashes(local, box, n)[present],
    }
    sums, lowest, highest = _extents(local, n)
    for axis, name in enumerate(_AXES):
        start, size = box.start[axis], voxel_nm[axis]
        columns[f"centroid_{name}"] = (sums[axis][present] / voxels[present] + (start + 0.5)) * size
        columns[f"min_{name}"] = (lowest[axis][present] + start) * float(size)
        columns[f"max_{name}"] = (highest[axis][present] + start + 1) * float(size)
    order = ["supervoxel_id", "region", "voxels", "voxel_hash", *_position("centroid"), *_bounds()]
    return pl.DataFrame(columns).select(order)


def agglomeration_table(supervoxels: pl.DataFrame, clusters: NDArray[np.int64]) -> pl.DataFrame:
    """Name each supervoxel's root.

    Parameters
    ----------
    supervoxels : DataFrame
        supervoxel_id, voxel_hash; ascending ids.
    clusters : (n,) int64
        One number per cluster, in the order of the rows.

    Returns
    -------
    DataFrame
        supervoxel_id, root_id.
    """
    ids = supervoxels["supervoxel_id"].to_numpy()
    return pl.DataFrame(
        {"supervoxel_id": ids, "root_id": root_ids(ids, clusters, supervoxels["voxel_hash"].to_numpy())}
    )


def segments_table(
    supervoxels: pl.DataFrame, agglomeration: pl.DataFrame, bounds_nm: tuple[Nm, Nm] | None = None
) -> pl.DataFrame:
    """Add supervoxels up to segments.

    Parameters
    ----------
    supervoxels : DataFrame
        As `supervoxel_table` gives them, all blocks.
    agglomeration : DataFrame
        supervoxel_id, root_id; exactly one row per supervoxel.
    bounds_nm : (z, y, x), (z, y, x), optional
        Start and stop of the segmented volume; default: the extent of all supervoxels.

    Returns
    -------
    DataFrame
        root_id, voxels, supervoxels, centroid_*, min_*, max_*, boundary_faces; ascending ids.
    """
    rows = supervoxels.sort("supervoxel_id").join(agglomeration, on="supervoxel_id", how="left", maintain_order="left")
    lost = rows["root_id"].null_count()
    if lost or agglomeration.height != supervoxels.height:
        raise BadInput(
            f"{supervoxels.height} supervoxels, {agglomeration.height} rows of agglomeration, {lost} without a root",
            fix="agglomerate the same supervoxels",
        )
    low_nm, high_nm = bounds_nm or _extent(rows)
    roots, slot = np.unique(rows["root_id"].to_numpy(), return_inverse=True)
    n, size = len(roots), rows["voxels"].to_numpy()
    voxels = np.zeros(n, np.int64)
    np.add.at(voxels, slot, size)
    columns: dict[str, Any] = {"root_id": roots, "voxels": voxels, "supervoxels": np.bincount(slot, minlength=n)}
    faces = np.zeros(n, np.int64)
    for axis, name in enumerate(_AXES):
        # In row order on one thread: a float sum that a parallel grouping makes may differ in its last bit.
        columns[f"centroid_{name}"] = np.bincount(slot, rows[f"centroid_{name}"].to_numpy() * size, n) / voxels
        low, high = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(low, slot, rows[f"min_{name}"].to_numpy())
        np.maximum.at(high, slot, rows[f"max_{name}"].to_numpy())
        columns[f"min_{name}"], columns[f"max_{name}"] = low, high
        faces += (low <= low_nm[axis]).astype(np.int64) + (high >= high_nm[axis])
    columns["boundary_faces"] = faces
    order = ["root_id", "voxels", "supervoxels", *_position("centroid"), *_bounds(), "boundary_faces"]
    return pl.DataFrame(columns).select(order)


def relabel(
    supervoxels: NDArray[np.integer[Any]], ids: NDArray[np.int64], roots: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Replace supervoxel ids by root ids; 0 stays 0.

    Parameters
    ----------
    supervoxels : (z, y, x) integer
        Ids, int64 or uint64 with the same values.
    ids, roots : (n,) int64
        The map, in any order, each id once.

    Raises
    ------
    BadInput
        A voxel holds an id that the map lacks.
    """
    import fastremap

    dense, names = fastremap.renumber(np.ascontiguousarray(supervoxels).view(np.uint64), preserve_zero=True)
    wanted = np.zeros(len(names) + 1, np.int64)
    for name, number in names.items():
        wanted[number] = name
    order = np.argsort(ids)
    sorted_ids = np.concatenate([ids[order], [-1]])
    slot = np.searchsorted(sorted_ids[:-1], wanted)
    missing = (sorted_ids[slot] != wanted) & (wanted != 0)
    if missing.any():
        raise BadInput(
            f"{int(missing.sum())} supervoxels have no root, first {int(wanted[missing][0])}",
            fix="agglomerate the supervoxels of this volume",
        )
    table = np.zeros(len(wanted), np.uint64)
    known = wanted != 0
    table[known] = roots[order][slot[known]].astype(np.uint64)
    return np.asarray(table[dense])


def _extent(supervoxels: pl.DataFrame) -> tuple[Nm, Nm]:
    if not supervoxels.height:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    z0, y0, x0 = (float(supervoxels[f"min_{axis}"].to_numpy().min()) for axis in _AXES)
    z1, y1, x1 = (float(supervoxels[f"max_{axis}"].to_numpy().max()) for axis in _AXES)
    return (z0, y0, x0), (z1, y1, x1)


def _extents(labels: NDArray[np.uint32], n: int) -> tuple[list[NDArray[np.float64]], list[Any], list[Any]]:
    """Sum of local coordinates, lowest and highest coordinate of each label, by axis."""
    sums, lowest, highest = [], [], []
    for axis in range(3):
        length = labels.shape[axis]
        # Voxels per label and coordinate: one pass over the block answers sum, lowest and highest.
        counts = np.zeros((n + 1, length), np.int64)
        for at in range(length):
            counts[:, at] = np.bincount(np.take(labels, at, axis).ravel(), minlength=n + 1)
        sums.append((counts @ np.arange(length)).astype(np.float64))
        lowest.append((counts > 0).argmax(axis=1))
        highest.append(length - 1 - (counts[:, ::-1] > 0).argmax(axis=1))
    return sums, lowest, highest


def _position(prefix: str) -> list[str]:
    return [f"{prefix}_{axis}" for axis in "xyz"]


def _bounds() -> list[str]:
    return [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
