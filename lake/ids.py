"""Ids that say what they are: supervoxel ids pack their block, root ids are the hash of their voxels.

::

    supervoxel id   0 | z 13 bits | y 13 bits | x 13 bits | local number 24 bits
    voxel key       0 | z 21 bits | y 21 bits | x 21 bits            (global coordinates, full resolution)

All are non-negative int64: Delta has no unsigned types, and 2^63 and above raises there.
"""

import re

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput, RootCollision

Int64s = NDArray[np.int64]
_BLOCK_BITS, _LOCAL_BITS, _VOXEL_BITS = 13, 24, 21
_MASK63 = np.uint64(2**63 - 1)
_REGION = re.compile(r"(\d+)_(\d+)_(\d+)")


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each 64-bit word: splitmix64's finaliser (Steele, Lea and Flood 2014), a bijection with mix64(0) = 0."""
    with np.errstate(over="ignore"):
        z: NDArray[np.uint64] = x ^ (x >> np.uint64(30))
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def voxel_hashes(labels: NDArray[np.integer], box: Box, n: int) -> Int64s:
    """Add up the hash of every voxel per label.

    Parameters
    ----------
    labels : (z, y, x) integer
        Local labels 0..n; 0 is background.
    box : Box
        Where `labels` lies, global voxels at full resolution; coordinates in [0, 2^21).
    n : int
        Highest label.

    Returns
    -------
    (n + 1,) int64
        Entry i: sum over the voxels of label i of mix64(z * 2^42 + y * 2^21 + x), modulo 2^63. Sums of disjoint parts
        add up modulo 2^63, so the hash of a set of voxels does not depend on how a volume is cut. Entry 0 is 0.

    Notes
    -----
    Voxel (0, 0, 0) has hash 0: two sets that differ in it alone share their hash, which `lake.tables` reports as
    `RootCollision` because their sizes differ.
    """
    if labels.shape != box.shape:
        raise BadInput(
            f"labels have shape {labels.shape}, the box {box} has {box.shape}", fix="give the labels' own box"
        )
    if min(box.start) < 0 or max(box.stop) > 2**_VOXEL_BITS:
        raise BadInput(f"box {box} leaves 0..2^21", fix="choose a volume offset that keeps coordinates non-negative")
    sums = np.zeros(n + 1, np.uint64)
    if not labels.size:
        return sums.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > n:
        raise BadInput(f"labels run from {low} to {high}, not within 0..{n}", fix="renumber the labels first")
    (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
    shift = np.uint64(_VOXEL_BITS)
    plane = (np.arange(y0, y1, dtype=np.uint64)[:, None] << shift) | np.arange(x0, x1, dtype=np.uint64)[None, :]
    # A plane at a time: the hashes of a whole block would be eight times as large as its labels.
    with np.errstate(over="ignore"):
        for index, z in enumerate(range(z0, z1)):
            hashes = mix64(plane | np.uint64(z << 2 * _VOXEL_BITS))
            np.add.at(sums, labels[index].astype(np.intp, copy=False).ravel(), hashes.ravel())
    sums[0] = 0
    return (sums & _MASK63).astype(np.int64)


def supervoxel_id(block_index: Zyx, local: NDArray[np.integer] | int) -> Int64s:
    """Pack a block's grid index and local numbers into ids; local 0 (background) becomes 0.

    Raises `BadInput` if the block index needs more than 13 bits an axis, or a local number more than 24.
    """
    if any(not 0 <= i < 2**_BLOCK_BITS for i in block_index):
        raise BadInput(f"block index {block_index} does not fit 13 bits an axis", fix="use larger blocks")
    numbers = np.asarray(local, np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= 2**_LOCAL_BITS):
        raise BadInput(
            f"local number {int(numbers.max())} in block {block_index} does not fit 24 bits", fix="use smaller blocks"
        )
    z, y, x = block_index
    base = np.int64(((z << 2 * _BLOCK_BITS) | (y << _BLOCK_BITS) | x) << _LOCAL_BITS)
    return np.where(numbers == 0, np.int64(0), numbers | base)


def unpack_supervoxel_id(ids: NDArray[np.integer] | int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Give block z, y, x and local number of each id."""
    packed = np.asarray(ids, np.int64)
    local = packed & (2**_LOCAL_BITS - 1)
    z, y, x = (packed >> (_LOCAL_BITS + k * _BLOCK_BITS) & (2**_BLOCK_BITS - 1) for k in (2, 1, 0))
    return z, y, x, local


def add_hashes(hashes: NDArray[np.integer]) -> int:
    """Add up voxel hashes modulo 2^63: the hash of the union of disjoint voxel sets."""
    with np.errstate(over="ignore"):
        return int(np.asarray(hashes).astype(np.uint64).sum(dtype=np.uint64) & _MASK63)


def root_ids(sv_ids: Int64s, clusters: NDArray[np.integer], voxel_hash: Int64s) -> Int64s:
    """Name each supervoxel's root by the sum of the voxel hashes of all supervoxels of its cluster.

    Parameters
    ----------
    sv_ids, voxel_hash : (n,) int64
        Supervoxels and their hashes.
    clusters : (n,) integer
        Any numbering of the clusters, not necessarily dense.

    Returns
    -------
    (n,) int64
        Root id of each supervoxel; a sum of 0 becomes 1. Independent of the order of rows and of cluster numbers.

    Raises
    ------
    RootCollision
        Two clusters have the same sum (chance about n^2 / 2^64).
    """
    if not len(sv_ids) == len(clusters) == len(voxel_hash):
        raise BadInput(
            f"{len(sv_ids)} supervoxels, {len(clusters)} clusters and {len(voxel_hash)} hashes differ in length",
            fix="give one cluster and one hash per supervoxel",
        )
    names, dense = np.unique(clusters, return_inverse=True)
    sums = np.zeros(len(names), np.uint64)
    with np.errstate(over="ignore"):
        np.add.at(sums, dense, np.asarray(voxel_hash).astype(np.uint64))
    roots = (sums & _MASK63).astype(np.int64)
    roots[roots == 0] = 1
    values, counts = np.unique(roots, return_counts=True)
    if (counts > 1).any():
        root = int(values[counts > 1][0])
        members = sorted(int(i) for i in np.asarray(sv_ids)[roots[dense] == root])[:6]
        raise RootCollision(
            f"two clusters have root id {root}; among their supervoxels: {members}",
            fix="change the cut of one of them by a voxel, or report the pair: this is a hash collision",
        )
    return roots[dense]


def region_name(index: Zyx) -> str:
    """Name a cell of the region grid, or a block of a stage: `z_y_x`."""
    return "_".join(str(int(i)) for i in index)


def parse_region(name: str) -> Zyx:
    """Read `z_y_x` back into a grid index, or raise `BadInput`."""
    match = _REGION.fullmatch(name)
    if match is None:
        raise BadInput(f"region {name!r} is not a name", fix="write the grid index as z_y_x, for instance 0_2_1")
    z, y, x = (int(part) for part in match.groups())
    return z, y, x
