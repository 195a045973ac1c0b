"""Edge statistics: how strongly two touching supervoxels belong together, as integers that add up over blocks.

::

    block A | block B        A face belongs to the block of its lower voxel. A block therefore reads supervoxels one
      a a a | b b            voxel beyond its high sides, and every face of the volume is counted exactly once,
      a a a | b b            whatever the block size or the order.
          ^-- face owned by A
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.errors import BadInput


@dataclass(frozen=True, slots=True)
class EdgeStatistics:
    """Touching pairs, sorted by (a, b), a < b, each pair once.

    Parameters
    ----------
    a, b : (n,) int64
        Supervoxel ids.
    sum_affinity : (n,) int64
        Sum of uint8 affinities over the faces between them.
    count : (n,) int64
        Number of those faces.
    faces : (n, 3) int64
        The same number by axis z, y, x: with the voxel size, the contact area.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    sum_affinity: NDArray[np.int64]
    count: NDArray[np.int64]
    faces: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.a)

    def area_nm2(self, voxel_nm: tuple[float, float, float]) -> NDArray[np.float64]:
        """Contact area in square nanometres: faces times their size."""
        z, y, x = voxel_nm
        return np.asarray(self.faces @ np.array([y * x, z * x, z * y], np.float64))


def edge_statistics(
    affinity: NDArray[np.uint8], supervoxels: NDArray[np.int64], core: tuple[int, int, int] | None = None
) -> EdgeStatistics:
    """Sum affinities over the faces between supervoxels that the block owns.

    Parameters
    ----------
    affinity : (3, z, y, x) uint8
        Channel c at a voxel speaks of its face to the +1 neighbour along axis c. At least the core.
    supervoxels : (z, y, x) int64
        The core, plus one voxel beyond each high side where the volume goes on. 0 is no supervoxel.
    core : (z, y, x) int
        Shape of the core, which starts at the arrays' origin; default: all of `supervoxels`.
    """
    core = core or supervoxels.shape
    for axis in range(3):
        if not core[axis] <= supervoxels.shape[axis] <= core[axis] + 1 or affinity.shape[axis + 1] < core[axis]:
            raise BadInput(
                f"core {core}, supervoxels {supervoxels.shape}, affinity {affinity.shape} do not fit",
                fix="give supervoxels with at most one voxel of halo on the high sides, and affinity over the core",
            )
    import fastremap

    local, names = fastremap.renumber(np.ascontiguousarray(supervoxels), preserve_zero=True, in_place=False)
    ids = np.zeros(len(names) + 1, np.int64)
    for name, number in names.items():
        ids[number] = name
    parts = [_axis_sums(local, affinity, axis, core) for axis in range(3)]
    return _collect(parts, ids)


def face_sums(
    labels: NDArray[Any], affinity: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sum affinities between the labels of one array, with no halo.

    Parameters
    ----------
    labels : (z, y, x) unsigned
        0 is no label.
    affinity : (3, z, y, x) uint8

    Returns
    -------
    a, b, sum_affinity, count : (n,) int64
        Pairs with a < b, sorted.
    """
    shape = labels.shape
    parts = [_axis_sums(labels, affinity, axis, shape) for axis in range(3)]
    edges = _collect(parts, np.arange(int(labels.max(initial=0)) + 1, dtype=np.int64))
    return edges.a, edges.b, edges.sum_affinity, edges.count


def add_up(parts: list[EdgeStatistics]) -> EdgeStatistics:
    """Add statistics of several blocks: exact, in any order."""
    a, b = np.concatenate([p.a for p in parts]), np.concatenate([p.b for p in parts])
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    first = np.ones(len(a), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    starts = np.flatnonzero(first)
    if not len(starts):
        return parts[0]
    total = np.add.reduceat(np.concatenate([p.sum_affinity for p in parts])[order], starts)
    faces = np.add.reduceat(np.concatenate([p.faces for p in parts])[order], starts, axis=0)
    return EdgeStatistics(a[starts], b[starts], total, faces.sum(axis=1), faces)


def _axis_sums(
    labels: NDArray[Any], affinity: NDArray[np.uint8], axis: int, core: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Pairs (as low << 32 | high) and affinities of the owned faces across one axis."""
    here, there = [slice(0, n) for n in core], [slice(0, n) for n in core]
    reach = min(core[axis], labels.shape[axis] - 1)
    here[axis], there[axis] = slice(0, reach), slice(1, reach + 1)
    low, high = labels[tuple(here)], labels[tuple(there)]
    touch = (low != high) & (low != 0) & (high != 0)
    p, q = low[touch].astype(np.int64), high[touch].astype(np.int64)
    return (np.minimum(p, q) << 32) | np.maximum(p, q), affinity[axis][tuple(here)][touch]


def _collect(parts: list[tuple[NDArray[np.int64], NDArray[np.uint8]]], ids: NDArray[np.int64]) -> EdgeStatistics:
    pairs = np.concatenate([keys for keys, _ in parts])
    unique, slot = np.unique(pairs, return_inverse=True)
    n = len(unique)
    faces = np.zeros((n, 3), np.int64)
    # float64 weights are exact: 255 times a block's faces is far below 2**53.
    total = np.bincount(slot, np.concatenate([values for _, values in parts]), n).astype(np.int64)
    start = 0
    for axis, (keys, _) in enumerate(parts):
        faces[:, axis] = np.bincount(slot[start : start + len(keys)], minlength=n)
        start += len(keys)
    p, q = ids[unique >> 32], ids[unique & 0xFFFFFFFF]
    a, b = np.minimum(p, q), np.maximum(p, q)
    order = np.lexsort((b, a))
    return EdgeStatistics(a[order], b[order], total[order], faces[order].sum(axis=1), faces[order])
