"""What the networks are asked to predict, computed from truth: affinities and synaptic sites."""

import numpy as np
from numpy.typing import NDArray

Zyx = tuple[int, int, int]
Bool = NDArray[np.bool_]

NEAREST: tuple[Zyx, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
# Asked for while training only: to get the far ones right the network has to see shapes. About 50 nm.
FAR: tuple[Zyx, ...] = ((3, 0, 0), (0, 6, 0), (0, 0, 6))
_SITE_RADIUS = (3.2, 7.0, 7.0)  # voxels zyx; about 50 nm, the size of a T-bar


def affinities(labels: NDArray[np.integer], offsets: tuple[Zyx, ...] = NEAREST) -> tuple[Bool, Bool]:
    """Tell which voxels belong to one neurite with the voxel `offset` further on.

    Parameters
    ----------
    labels : (z, y, x) integer
        0 is membrane and belongs to nothing.

    Returns
    -------
    same, known : (len(offsets), z, y, x) bool
        `known` is false where the other voxel lies outside.
    """
    same = np.zeros((len(offsets), *labels.shape), bool)
    known = np.zeros_like(same)
    for channel, offset in enumerate(offsets):
        here = tuple(slice(0, n - d) for n, d in zip(labels.shape, offset, strict=True))
        there = tuple(slice(d, None) for d in offset)
        same[channel][here] = (labels[here] == labels[there]) & (labels[here] > 0)
        known[channel][here] = True
    return same, known


def sites(
    labels: NDArray[np.integer], points: NDArray[np.int64], owners: NDArray[np.int64], origin: Zyx = (0, 0, 0)
) -> Bool:
    """Mark a blob of about 50 nm around each point, inside the neurite that owns it.

    Parameters
    ----------
    labels : (z, y, x) integer
        A crop whose first voxel is `origin`.
    points : (n, 3) int
        zyx in the coordinates of the whole; those far from the crop are passed over.
    owners : (n,) int
        Label of each point.
    """
    marked = np.zeros(labels.shape, bool)
    reach = np.ceil(_SITE_RADIUS).astype(int)
    local = points - np.array(origin)
    near = ((local > -reach) & (local < np.array(labels.shape) + reach)).all(axis=1)
    for point, owner in zip(local[near], owners[near], strict=True):
        low, high = np.maximum(point - reach, 0), np.minimum(point + reach + 1, labels.shape)
        axes = (((np.arange(a, b) - p) / r) ** 2 for a, b, p, r in zip(low, high, point, _SITE_RADIUS, strict=True))
        z, y, x = axes
        ball = z[:, None, None] + y[None, :, None] + x[None, None, :] <= 1
        window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        marked[window] |= ball & (labels[window] == owner)
    return marked
