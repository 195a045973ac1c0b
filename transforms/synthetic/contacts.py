"""Place synapses where two neurites touch along a flat stretch of membrane."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.synthetic.anatomy import Anatomy

I64 = NDArray[np.int64]
VOXELS_PER_SYNAPSE = 90_000
SITE_DISTANCE = 6  # pixels from the middle of the cleft to the presynaptic and the postsynaptic point
_APART = 52  # pixels between synapses, at least
_MARGIN = (4, 20, 20)


@dataclass(frozen=True, slots=True)
class Synapses:
    """Every synapse of a volume: points in voxels zyx and the truth labels of its two partners.

    Parameters
    ----------
    pre, post, centre : (n, 3) int64
        Presynaptic point (T-bar), postsynaptic point, middle of the cleft.
    pre_id, post_id : (n,) int64
        Labels in `Neuropil.labels`.
    """

    pre: I64
    post: I64
    centre: I64
    pre_id: I64
    post_id: I64

    def __len__(self) -> int:
        return len(self.pre_id)

    def columns(self) -> dict[str, I64]:
        """One column per coordinate and id (`pre_z`, ..., `ctr_x`, `pre_id`, `post_id`), for a table."""
        points = {"pre": self.pre, "post": self.post, "ctr": self.centre}
        named = {f"{name}_{axis}": p[:, i] for name, p in points.items() for i, axis in enumerate("zyx")}
        return {**named, "pre_id": self.pre_id, "post_id": self.post_id}


def place(anatomy: Anatomy, aspect: float, rng: np.random.Generator) -> Synapses:
    """Choose contact sites that are flat over several sections and clear of mitochondria.

    Parameters
    ----------
    aspect : float
        Depth of a section in pixels, 2 at 16 x 8 x 8 nm.
    """
    labels = anatomy.labels
    wanted = max(1, round(labels.size / VOXELS_PER_SYNAPSE))
    room = np.array(labels.shape) - 2 * np.array(_MARGIN)
    empty = np.zeros((0, 3), np.int64)
    if (room < 1).any():
        return Synapses(empty, empty, empty, empty[:, 0], empty[:, 0])
    centres = rng.integers(0, room, size=(6000 * wanted, 3)) + np.array(_MARGIN)
    centres = centres[labels[tuple(centres.T)] == 0]
    angle = rng.uniform(0, 2 * np.pi, len(centres))
    normal = np.stack([np.zeros_like(angle), np.sin(angle), np.cos(angle)], axis=1)
    talkative = rng.random(int(labels.max()) + 1) < 0.7  # neurites that have output synapses at all
    pre_id, post_id = _sides(labels, centres, normal)
    pre, post = (np.rint(centres + s * SITE_DISTANCE * normal).astype(np.int64) for s in (1, -1))
    good = (pre_id > 0) & (post_id > 0) & (pre_id != post_id) & talkative[pre_id]
    good &= (anatomy.mitochondria[tuple(pre.T)] == 0) & (anatomy.mitochondria[tuple(post.T)] == 0)
    chosen = _far_apart(centres * np.array([aspect, 1, 1]), np.flatnonzero(good), wanted)
    return Synapses(pre[chosen], post[chosen], centres[chosen], pre_id[chosen], post_id[chosen])


def _sides(labels: NDArray[np.uint16], centres: I64, normal: NDArray[np.float64]) -> tuple[I64, I64]:
    """Neurite on either side, 0 where it is not one and the same near, far, above, below and along the membrane."""
    tangent = normal[:, [0, 2, 1]] * np.array([0, 1, -1])
    ids = []
    for side in (1, -1):
        probes = [centres + side * k * normal for k in (4, SITE_DISTANCE, 8)]
        probes += [centres + side * 6 * normal + np.array([dz, 0, 0]) for dz in (-2, 2)]
        probes += [centres + side * 5 * normal + along * tangent for along in (-5, 5)]
        found = [labels[tuple(np.rint(p).astype(np.int64).T)] for p in probes]
        same = np.all([f == found[0] for f in found[1:]], axis=0)
        ids.append(np.where(same, found[0], 0).astype(np.int64))
    return ids[0], ids[1]


def _far_apart(points: NDArray[np.float64], candidates: I64, wanted: int) -> I64:
    """First `wanted` candidates, in order, none nearer than `_APART` to one already taken."""
    taken: list[int] = []
    for candidate in candidates.tolist():
        if len(taken) == wanted:
            break
        if not taken or np.min(np.sum((points[taken] - points[candidate]) ** 2, axis=1)) >= _APART**2:
            taken.append(candidate)
    return np.array(taken, np.int64)
