"""Fragments: an over-segmentation of one block, from affinities or from plain intensity.

Decisions
---------
Seeds are local maxima of the distance to the nearest boundary voxel, in nm, so that a coarse z step does not split
neurites that run along z. Basins are flooded over boundary strength with that distance as the tie breaker: the
strength alone leaves plateaus inside a neurite, the distance alone ignores weak membranes. Every voxel gets a label,
membranes too: what a membrane voxel belongs to is decided by the flood, and edge statistics need faces that touch.

Everything is integer after the two filters at the start, and ties go to the lower label: one input, one output.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.errors import BadInput
from transforms.kernels.edges import face_sums

Labels = NDArray[np.uint32]
Zyx = tuple[int, int, int]
Nm = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class FragmentParameters:
    """How fine the over-segmentation is.

    Parameters
    ----------
    boundary_level : float
        In (0, 1): a voxel whose mean affinity is below it counts as boundary when seeds are sought.
    seed_distance_nm : float
        Two seeds of one basin lie at least this far apart, and a seed at least half a voxel from a boundary.
    min_voxels : int
        A fragment below this joins the neighbour it is most strongly tied to; 1 keeps all.
    distance_weight : float
        In [0, 1]: how far the flood follows distance rather than boundary strength.
    """

    boundary_level: float = 0.5
    seed_distance_nm: float = 40.0
    min_voxels: int = 16
    distance_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.boundary_level < 1 or not 0 <= self.distance_weight <= 1:
            raise BadInput(
                f"boundary_level {self.boundary_level}, distance_weight {self.distance_weight}",
                fix="both lie between 0 and 1",
            )
        if self.seed_distance_nm <= 0 or self.min_voxels < 1:
            raise BadInput(
                f"seed_distance_nm {self.seed_distance_nm}, min_voxels {self.min_voxels}", fix="both are positive"
            )


def fragments(
    affinity: NDArray[np.uint8],
    *,
    voxel_nm: Nm,
    core: tuple[slice, slice, slice] | None = None,
    mask: NDArray[np.bool_] | None = None,
    parameters: FragmentParameters = FragmentParameters(),
) -> Labels:
    """Cut a block into fragments: seeded watershed on affinities.

    Parameters
    ----------
    affinity : (3, z, y, x) uint8
        Channel c: 255 times the probability that a voxel and its +1 neighbour along axis c belong together.
    voxel_nm : (z, y, x) float
        Voxel size.
    core : slices, optional
        The part to return; the rest is context (halo). Default: all.
    mask : (z, y, x) bool, optional
        False where there is no tissue: label 0.

    Returns
    -------
    (z, y, x) uint32
        Labels 1..n of the core, each 6-connected inside it, numbered by first voxel in C order; 0 only outside `mask`.
    """
    affinity = _checked(affinity)
    labels = flood(together(affinity), voxel_nm=voxel_nm, mask=mask, parameters=parameters)
    if core is None:
        core = (slice(None), slice(None), slice(None))
    labels = connected(labels[core])
    return join_small(labels, affinity[(slice(None), *core)], parameters.min_voxels)


def intensity_fragments(
    em: NDArray[np.uint8],
    *,
    voxel_nm: Nm,
    core: tuple[slice, slice, slice] | None = None,
    mask: NDArray[np.bool_] | None = None,
    parameters: FragmentParameters = FragmentParameters(boundary_level=0.45),
) -> Labels:
    """Cut a block into fragments with no model: the same watershed, with smoothed brightness for affinity.

    The baseline that a model has to beat. Membranes are dark; brightness is stretched between the block's 2nd and 98th
    percentile, so stain differences between blocks do not count against it.

    Parameters
    ----------
    em : (z, y, x) uint8
        The image.
    """
    return fragments(
        intensity_affinity(em, voxel_nm=voxel_nm), voxel_nm=voxel_nm, core=core, mask=mask, parameters=parameters
    )


def intensity_affinity(em: NDArray[np.uint8], *, voxel_nm: Nm) -> NDArray[np.uint8]:
    """Affinities from brightness alone: a face is as open as the darker of its two voxels is bright.

    Returns
    -------
    (3, z, y, x) uint8
    """
    from scipy.ndimage import gaussian_filter

    # One smoothing width for all axes in nm; less than half a z step apart nothing is smoothed across sections.
    sigma = [10.0 / v for v in voxel_nm]
    smooth = gaussian_filter(em.astype(np.float32), sigma)
    low, high = np.percentile(smooth, (2, 98))
    bright = np.clip((smooth - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    out = np.empty((3, *em.shape), np.uint8)
    for axis in range(3):
        out[axis] = bright
        here, there = _faces(axis)
        np.minimum(bright[here], bright[there], out=out[axis][here])
    return out


def together(affinity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean affinity of a voxel to its six neighbours; at the array's border, to those it has.

    Parameters
    ----------
    affinity : (3, z, y, x) uint8

    Returns
    -------
    (z, y, x) uint8
    """
    total = np.zeros(affinity.shape[1:], np.uint16)
    seen = np.zeros(affinity.shape[1:], np.uint16)
    for axis in range(3):
        here, there = _faces(axis)
        faces = affinity[axis][here]
        total[here] += faces
        total[there] += faces
        seen[here] += 1
        seen[there] += 1
    return (total // np.maximum(seen, 1)).astype(np.uint8)


def flood(
    open_: NDArray[np.uint8], *, voxel_nm: Nm, mask: NDArray[np.bool_] | None, parameters: FragmentParameters
) -> Labels:
    """Seed and flood one block.

    Parameters
    ----------
    open_ : (z, y, x) uint8
        How strongly a voxel belongs to its neighbours; low on membranes.

    Returns
    -------
    (z, y, x) uint32
        Basins, in the order of their seeds.
    """
    from skimage.segmentation import watershed

    inside = open_ >= round(255 * parameters.boundary_level)
    if mask is not None:
        inside &= mask
    distance = boundary_distance(inside, voxel_nm)
    seeds = distance_seeds(distance, voxel_nm, parameters.seed_distance_nm)
    if not seeds.any():
        # Nothing but boundary: one fragment, so that the block still has no hole.
        return np.ones(open_.shape, np.uint32) if mask is None else mask.astype(np.uint32)
    weight = parameters.distance_weight
    top = max(float(np.percentile(distance[inside], 99)), 1.0)
    deep = np.minimum(distance * (255.0 / top), 255.0)
    height = 255 - np.rint(weight * deep + (1 - weight) * open_).astype(np.uint8)
    labels = watershed(height, seeds, mask=mask)
    result: Labels = labels.astype(np.uint32)
    if mask is not None:
        result = _fill_unreached(result, mask)
    return result


def boundary_distance(inside: NDArray[np.bool_], voxel_nm: Nm) -> NDArray[np.float32]:
    """Exact distance of each voxel's centre to the nearest boundary voxel's centre, in nm; 0 on the boundary.

    A block with no boundary voxel at all counts as bounded by its own diagonal.

    Notes
    -----
    Planes by `cv2.distanceTransform` (exact, squared distances are integers), then the lower envelope over z, which
    ends as soon as a z step costs more than the largest distance left. 36 Mvox/s on one core, three times scipy's.
    Needs square pixels; other shapes go through scipy.
    """
    if voxel_nm[1] != voxel_nm[2]:
        from scipy.ndimage import distance_transform_edt

        if inside.all():
            return np.full(inside.shape, _diagonal(inside.shape, voxel_nm), np.float32)
        return np.asarray(distance_transform_edt(inside, sampling=voxel_nm), np.float32)
    import cv2

    cap = np.float32(_diagonal(inside.shape, voxel_nm) ** 2)
    flat = np.empty(inside.shape, np.float32)
    for z, plane in enumerate(np.ascontiguousarray(inside).view(np.uint8)):
        if plane.all():
            flat[z] = cap
        else:
            pixels = cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            flat[z] = np.rint(pixels * pixels) * np.float32(voxel_nm[1] ** 2)
    best = flat.copy()
    for step in range(1, len(flat)):
        cost = np.float32((step * voxel_nm[0]) ** 2)
        if cost >= best.max():
            break
        np.minimum(best[step:], flat[:-step] + cost, out=best[step:])
        np.minimum(best[:-step], flat[step:] + cost, out=best[:-step])
    return np.sqrt(best, out=best)


def distance_seeds(distance: NDArray[np.float32], voxel_nm: Nm, apart_nm: float) -> NDArray[np.int32]:
    """Number the plateaus of local maxima, the window being a box of `apart_nm` to each side.

    Returns
    -------
    (z, y, x) int32
        0 where there is no seed.
    """
    import cc3d
    from scipy.ndimage import maximum_filter

    size = [2 * max(1, round(apart_nm / v)) + 1 for v in voxel_nm]
    peaks = (maximum_filter(distance, size=size, mode="nearest") == distance) & (distance > 0)
    return np.asarray(cc3d.connected_components(peaks, connectivity=26, out_dtype=np.uint32)).astype(np.int32)


def connected(labels: NDArray[Any]) -> Labels:
    """Give each 6-connected part of each label its own number, 1..n by first voxel in C order; 0 stays 0.

    Needed after a halo is cut off: a basin that was joined outside the core comes apart inside it.
    """
    import cc3d
    import fastremap

    parts = cc3d.connected_components(np.ascontiguousarray(labels), connectivity=6, out_dtype=np.uint32)
    numbered, _ = fastremap.renumber(parts, preserve_zero=True, in_place=False)
    return np.asarray(numbered).astype(np.uint32)


def join_small(labels: Labels, affinity: NDArray[np.uint8], min_voxels: int) -> Labels:
    """Join each fragment below `min_voxels` to the neighbour with the highest mean affinity.

    Smallest first within a round, ties by the lower label; rounds repeat until none is left that touches another.

    Parameters
    ----------
    labels : (z, y, x) uint32
        1..n, connected.
    affinity : (3, z, y, x) uint8
        Same box.
    """
    while min_voxels > 1:
        count = int(labels.max(initial=0))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        small = (sizes < min_voxels) & (np.arange(count + 1) > 0)
        if not small.any():
            break
        a, b, total, faces = face_sums(labels, affinity)
        target = _strongest_neighbour(a, b, total / faces, small)
        if not (target != np.arange(count + 1)).any():
            break
        labels = connected(_resolve(target)[labels])
    return labels


def _strongest_neighbour(
    a: NDArray[np.int64], b: NDArray[np.int64], mean: NDArray[np.float64], small: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each small label the neighbour it is tied to most strongly; itself for all others."""
    target = np.arange(len(small))
    source, other, tie = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([mean, mean])
    use = small[source] & (source > 0) & (other > 0)
    source, other, tie = source[use], other[use], tie[use]
    order = np.lexsort((other, -tie, source))
    first = np.ones(len(order), bool)
    first[1:] = source[order][1:] != source[order][:-1]
    target[source[order][first]] = other[order][first]
    return target


def _resolve(target: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Follow a choice per label to one number per joined group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(target)
    graph = coo_array((np.ones(n, np.int8), (np.arange(n), target)), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    # Label 0 (outside the mask) joins nothing, so its group is its own; keep it 0.
    return np.where(np.arange(n) == 0, 0, group + 1).astype(np.uint32)


def _fill_unreached(labels: Labels, mask: NDArray[np.bool_]) -> Labels:
    """Label parts of the mask that no seed could reach, each as a fragment of its own."""
    left = mask & (labels == 0)
    if not left.any():
        return labels
    import cc3d

    extra = np.asarray(cc3d.connected_components(left, connectivity=6, out_dtype=np.uint32))
    return np.where(left, extra + labels.max(), labels).astype(np.uint32)


def _checked(affinity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if affinity.ndim != 4 or affinity.shape[0] != 3 or affinity.dtype != np.uint8:
        raise BadInput(
            f"affinity has shape {affinity.shape} and type {affinity.dtype}",
            fix="give (3, z, y, x) uint8, channels z, y, x",
        )
    return affinity


def _faces(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Index the lower and the upper voxel of every face across `axis`."""
    here, there = [slice(None)] * 3, [slice(None)] * 3
    here[axis], there[axis] = slice(0, -1), slice(1, None)
    return tuple(here), tuple(there)


def _diagonal(shape: tuple[int, ...], voxel_nm: Nm) -> float:
    return float(np.sqrt(sum((n * v) ** 2 for n, v in zip(shape, voxel_nm, strict=True))))
