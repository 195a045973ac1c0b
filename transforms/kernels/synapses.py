"""Synapses from two maps of sites: one row per pair of a presynaptic and the postsynaptic site it faces.

::

      read box = core + halo                    A synapse belongs to the block whose core holds its centre point.
    +-----------------------+                   Two blocks that see the same sites must pair them alike, so
    |   core                |                   - all arithmetic on positions is in global integer voxels,
    |  +---------+          |                   - sites wider than `max_site_nm` are no sites: a site that touches an
    |  |  P--c-Q |   P'     |                     inner side of the read box is either that, or not ours,
    |  +---------+          |                   - a postsynaptic site takes its nearest presynaptic one, a choice that
    |                       |                     depends on nothing farther than `pair_nm` from it.
    +-----------------------+                   `SynapseParameters.halo` is what this takes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from lake.ids import supervoxel_id

Nm = tuple[float, float, float]
Ints = NDArray[np.int64]
_SIDES = ("pre", "post")


@dataclass(frozen=True, slots=True)
class SynapseParameters:
    """What counts as a site and as a pair.

    Parameters
    ----------
    level : float
        In (0, 1): voxels at or above it belong to a site.
    peak : float
        In (0, 1]: a site must reach it somewhere.
    min_voxels : int
        Smaller sites are noise.
    max_site_nm : float
        A site's bounding box is at most this wide on each axis.
    pair_nm : float
        Distance between the centres of the two sites, at most.
    """

    level: float = 0.4
    peak: float = 0.6
    min_voxels: int = 60
    max_site_nm: float = 260.0
    pair_nm: float = 170.0

    def __post_init__(self) -> None:
        if not 0 < self.level <= self.peak <= 1 or min(self.min_voxels, self.max_site_nm, self.pair_nm) <= 0:
            raise BadInput(f"{self} makes no sense", fix="0 < level <= peak <= 1, sizes and distances above 0")

    def halo(self, voxel_nm: Nm) -> Zyx:
        """Context that a block needs on every side, voxels."""
        z, y, x = (int(np.ceil((1.5 * self.pair_nm + self.max_site_nm) / v)) + 2 for v in voxel_nm)
        return z, y, x


@dataclass(frozen=True, slots=True)
class _Site:
    """A connected site: voxels in global coordinates, C order, with their weights; centre times `mass`, exactly."""

    voxels: Ints
    weights: Ints
    moment: Ints
    mass: int
    root: int
    supervoxel: int
    point: Ints

    def centre_nm(self, voxel_nm: Nm) -> NDArray[np.float64]:
        return np.asarray((self.moment / self.mass + 0.5) * np.asarray(voxel_nm), np.float64)


def find_synapses(
    sites: NDArray[np.uint8],
    supervoxels: NDArray[np.integer[Any]],
    roots: tuple[Ints, Ints],
    *,
    box: Box,
    core: Box,
    bounds: Box,
    cell: Zyx,
    voxel_nm: Nm,
    parameters: SynapseParameters = SynapseParameters(),
) -> pl.DataFrame:
    """Find the synapses whose centre point lies in `core`.

    Parameters
    ----------
    sites : (2, z, y, x) uint8
        255 times the probability of a presynaptic (channel 0) and a postsynaptic site (channel 1), over `box`.
    supervoxels : (z, y, x) integer
        Ids over `box`; 0 is none.
    roots : (n,) int64, (n,) int64
        Supervoxel ids, ascending, and the root of each: at least those in `box`.
    box, core, bounds : Box
        What was read, what to report, the whole volume. `box` reaches `parameters.halo` beyond `core`, or to `bounds`.
    cell : (z, y, x) int
        Grid cell in voxels: an id packs the cell of the centre point and a number in it.

    Returns
    -------
    DataFrame
        Columns of table `synapses` but for region, block and run, in the order of the centre points. `size` counts the
        voxels of both sites, `score` is their mean probability.
    """
    _check(sites, box, core, bounds, parameters.halo(voxel_nm))
    found = [_sites(sites[side], supervoxels, roots, box, bounds, voxel_nm, parameters) for side in (0, 1)]
    rows = []
    for pre, post in _pairs(found[0], found[1], voxel_nm, parameters.pair_nm):
        middle = (pre.moment / pre.mass + post.moment / post.mass) / 2
        centre = np.floor(middle + 0.5).astype(np.int64)
        if all(a <= c < b for a, c, b in zip(core.start, centre.tolist(), core.stop, strict=True)):
            rows.append((tuple(centre.tolist()), tuple(pre.point.tolist()), tuple(post.point.tolist()), pre, post))
    rows.sort(key=lambda row: row[:3])
    return _frame(rows, cell, voxel_nm)


def connections(synapses: pl.DataFrame) -> pl.DataFrame:
    """Count valid synapses by ordered pair of roots.

    Returns
    -------
    DataFrame
        pre_root_id, post_root_id, synapses, size; sorted by the two ids.
    """
    return (
        synapses.filter(pl.col("valid"))
        .sort("id")
        .group_by(pl.col("pre_pt_root_id").alias("pre_root_id"), pl.col("post_pt_root_id").alias("post_root_id"))
        # Sizes are whole numbers, so their sum is exact in any order.
        .agg(pl.len().cast(pl.Int64).alias("synapses"), pl.col("size").sum())
        .sort("pre_root_id", "post_root_id")
    )


def _sites(
    probability: NDArray[np.uint8],
    supervoxels: NDArray[np.integer[Any]],
    roots: tuple[Ints, Ints],
    box: Box,
    bounds: Box,
    voxel_nm: Nm,
    parameters: SynapseParameters,
) -> list[_Site]:
    """Find the sites of one map that are whole, in C order of their first voxel."""
    import cc3d

    labels = cc3d.connected_components(probability >= round(255 * parameters.level), connectivity=26)
    n = int(labels.max(initial=0))
    if n == 0:
        return []
    statistics = cc3d.statistics(labels)
    big = np.asarray(statistics["voxel_counts"]) >= parameters.min_voxels
    sites = []
    for label in (np.flatnonzero(big[1:]) + 1).tolist():
        window = statistics["bounding_boxes"][label]
        if not _whole(window, box, bounds) or any(
            (w.stop - w.start) * v > parameters.max_site_nm for w, v in zip(window, voxel_nm, strict=True)
        ):
            continue
        inside = labels[window] == label
        weights = probability[window][inside].astype(np.int64)
        if weights.max() < 255 * parameters.peak:
            continue
        offset = np.array([w.start + o for w, o in zip(window, box.start, strict=True)], np.int64)
        voxels = np.argwhere(inside) + offset
        owners = supervoxels[window][inside].astype(np.int64)
        sites.append(_site(voxels, weights, owners, _roots_of(owners, roots), voxel_nm))
    # Component numbers depend on the window they were found in, positions do not.
    return sorted(sites, key=lambda site: tuple(site.voxels[0].tolist()))


def _site(voxels: Ints, weights: Ints, supervoxels: NDArray[Any], roots: NDArray[Any], voxel_nm: Nm) -> _Site:
    """Bind a site to the root that holds most of it, and to the supervoxel at the point nearest to its centre there."""
    moment, mass = (voxels * weights[:, None]).sum(axis=0), int(weights.sum())
    root = _heaviest(roots, weights)
    supervoxel = 0
    candidates = np.arange(len(voxels))
    if root:
        supervoxel = _heaviest(np.where(roots == root, supervoxels, 0), weights)
        candidates = np.flatnonzero((roots == root) & (supervoxels == supervoxel))
    gap = ((voxels[candidates] - moment / mass) * np.asarray(voxel_nm)) ** 2
    point = voxels[candidates[int(gap.sum(axis=1).argmin())]]
    return _Site(voxels, weights, moment, mass, root, supervoxel, point)


def _roots_of(supervoxels: Ints, roots: tuple[Ints, Ints]) -> Ints:
    """Look roots up; only under sites, which are a thousandth of the voxels."""
    names = np.concatenate([roots[0], [-1]])
    slot = np.searchsorted(roots[0], supervoxels)
    lost = (names[slot] != supervoxels) & (supervoxels != 0)
    if lost.any():
        raise BadInput(
            f"supervoxel {int(supervoxels[lost][0])} has no root", fix="agglomerate the supervoxels of this volume"
        )
    return np.where(supervoxels == 0, 0, np.concatenate([roots[1], [0]])[slot])


def _heaviest(ids: NDArray[Any], weights: Ints) -> int:
    """Name the non-zero id with the largest weight, the lower one of equals; 0 if there is none."""
    known = ids != 0
    if not known.any():
        return 0
    names, slot = np.unique(ids[known], return_inverse=True)
    return int(names[int(np.bincount(slot, weights[known]).argmax())])


def _pairs(pre: list[_Site], post: list[_Site], voxel_nm: Nm, reach_nm: float) -> list[tuple[_Site, _Site]]:
    """Give each postsynaptic site the nearest presynaptic one, of another segment if there is such a one in reach."""
    if not pre or not post:
        return []
    from scipy.spatial import cKDTree

    places = np.array([site.centre_nm(voxel_nm) for site in pre])
    tree = cKDTree(places)
    pairs = []
    for site in post:
        centre = site.centre_nm(voxel_nm)
        near = sorted(tree.query_ball_point(centre, reach_nm * 1.001))
        gaps = [float(((places[i] - centre) ** 2).sum()) for i in near]
        options = [(pre[i].root == site.root, gap, i) for i, gap in zip(near, gaps, strict=True) if gap <= reach_nm**2]
        if options:
            pairs.append((pre[min(options)[2]], site))
    return pairs


def _frame(rows: list[Any], cell: Zyx, voxel_nm: Nm) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {"id": []}
    for side in _SIDES:
        columns |= {f"{side}_pt_position_{axis}": [] for axis in "xyz"}
        columns |= {f"{side}_pt_supervoxel_id": [], f"{side}_pt_root_id": []}
    columns |= {f"ctr_pt_position_{axis}": [] for axis in "xyz"} | {"size": [], "score": [], "valid": []}
    used: dict[Zyx, int] = {}
    for centre, pre_point, post_point, pre, post in rows:
        index = (centre[0] // cell[0], centre[1] // cell[1], centre[2] // cell[2])
        used[index] = used.get(index, 0) + 1
        columns["id"].append(int(supervoxel_id(index, used[index])))
        for side, point, site in (("pre", pre_point, pre), ("post", post_point, post)):
            _put(columns, f"{side}_pt_position", point, voxel_nm)
            columns[f"{side}_pt_supervoxel_id"].append(site.supervoxel)
            columns[f"{side}_pt_root_id"].append(site.root)
        _put(columns, "ctr_pt_position", centre, voxel_nm)
        size = len(pre.weights) + len(post.weights)
        columns["size"].append(float(size))
        columns["score"].append((pre.mass + post.mass) / (255.0 * size))
        columns["valid"].append(bool(pre.root and post.root and pre.root != post.root))
    types = dict.fromkeys(columns, pl.Float64) | {n: pl.Int64 for n in columns if n.endswith("id")}
    return pl.DataFrame(columns, schema=types | {"valid": pl.Boolean})


def _put(columns: dict[str, list[Any]], prefix: str, voxel: Zyx, voxel_nm: Nm) -> None:
    for axis, at, size in zip("zyx", voxel, voxel_nm, strict=True):
        columns[f"{prefix}_{axis}"].append((at + 0.5) * size)


def _whole(window: tuple[slice, slice, slice], box: Box, bounds: Box) -> bool:
    """Tell whether a component keeps clear of the sides of the read box beyond which the volume goes on."""
    for axis, (part, length) in enumerate(zip(window, box.shape, strict=True)):
        if part.start == 0 and box.start[axis] > bounds.start[axis]:
            return False
        if part.stop == length and box.stop[axis] < bounds.stop[axis]:
            return False
    return True


def _check(sites: NDArray[np.uint8], box: Box, core: Box, bounds: Box, halo: Zyx) -> None:
    if sites.shape != (2, *box.shape):
        raise BadInput(f"sites have shape {sites.shape}, box {box} has {box.shape}", fix="give (2, z, y, x) over box")
    wanted = core.grow(halo).clip(bounds)
    if not box.contains(wanted):
        raise BadInput(
            f"box {box} gives core {core} too little context",
            fix=f"read {halo} voxels beyond the core, {wanted} in all",
        )
