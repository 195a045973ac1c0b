"""How good a model is, on a sample whose truth is known: what its card reports and what tests hold it to.

Affinities are judged by what they are for: the segmentation that the project's own watershed and agglomeration make of
them, in one block, scored by variation of information in bits over the voxels whose truth is not 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box
from lake.measures import variation_of_information
from transforms.kernels.agglomerate import merge_tree
from transforms.kernels.edges import edge_statistics
from transforms.kernels.watershed import FragmentParameters, fragments, intensity_affinity

U8 = NDArray[np.uint8]
Nm = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Variation:
    """Variation of information, bits."""

    split: float
    merge: float

    @property
    def total(self) -> float:
        """Split and merge together."""
        return self.split + self.merge

    def to_json(self) -> dict[str, float]:
        """Rounded, for cards."""
        return {"vi_split_bits": round(float(self.split), 3), "vi_merge_bits": round(float(self.merge), 3)}


def segment(
    affinity: U8,
    *,
    voxel_nm: Nm,
    thresholds: Sequence[float],
    parameters: FragmentParameters = FragmentParameters(),  # noqa: B008 - frozen
) -> dict[float, NDArray[np.int64]]:
    """Segment one block at several thresholds: watershed, edge statistics, average linkage.

    Parameters
    ----------
    affinity : (3, z, y, x) uint8

    Returns
    -------
    dict
        (z, y, x) int64 segmentation by threshold.
    """
    pieces = fragments(affinity, voxel_nm=voxel_nm, parameters=parameters).astype(np.int64)
    edges = edge_statistics(affinity, pieces)
    nodes = np.unique(pieces[pieces > 0])
    tree = merge_tree(nodes, edges.a, edges.b, edges.sum_affinity, edges.count)
    found, names = {}, np.zeros(int(nodes.max(initial=0)) + 1, np.int64)
    for threshold in thresholds:
        names[nodes] = nodes[tree.cut(threshold)]
        found[threshold] = names[pieces]
    return found


def variation(segmentation: NDArray[np.integer], truth: NDArray[np.integer], box: Box | None = None) -> Variation:
    """Score a segmentation, in `box` or everywhere."""
    window = (slice(None),) * 3 if box is None else box.slices
    return Variation(*variation_of_information(segmentation[window], truth[window]))


def best(scores: Mapping[float, Variation]) -> float:
    """Give the threshold with the least total."""
    return min(scores, key=lambda threshold: scores[threshold].total)


def intensity_variation(em: U8, truth: NDArray[np.integer], *, voxel_nm: Nm, thresholds: Sequence[float]) -> Variation:
    """Score the best that watershed and agglomeration make of plain intensity: what a model has to beat."""
    parameters = FragmentParameters(boundary_level=0.45)
    found = segment(
        intensity_affinity(em, voxel_nm=voxel_nm), voxel_nm=voxel_nm, thresholds=thresholds, parameters=parameters
    )
    scores = {threshold: variation(labels, truth) for threshold, labels in found.items()}
    return scores[best(scores)]


def report(parts: Mapping[str, Variation]) -> dict[str, Any]:
    """Give the figures of several parts of a sample, for a card."""
    return {name: part.to_json() for name, part in parts.items()}
