"""Scores of segmentations and synapses against a truth: pure functions, used by training and by QC alike.

All entropies are in **bits**. Voxels whose truth is 0 (background, boundary, not labelled) are left out of every score.
A score over nothing is `nan`, never 0: the caller must treat it as unknown.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from lake.ids import region_name

Labels = NDArray[np.integer[Any]]
Points = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Contingency:
    """How many voxels each pair of a segment and a truth body shares; only pairs that occur, sorted.

    Parameters
    ----------
    seg, truth : (n,) uint64
    count : (n,) int64
    """

    seg: NDArray[np.uint64]
    truth: NDArray[np.uint64]
    count: NDArray[np.int64]

    @property
    def voxels(self) -> int:
        """Number of voxels compared."""
        return int(self.count.sum())

    @property
    def seg_sizes(self) -> NDArray[np.int64]:
        """Voxels of each pair's segment, (n,)."""
        return _sums(self.seg, self.count)

    @property
    def truth_sizes(self) -> NDArray[np.int64]:
        """Voxels of each pair's body, (n,)."""
        return _sums(self.truth, self.count)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one segmentation in one place: bits, bits, ratio; `nan` if nothing there is labelled."""

    vi_split: float
    vi_merge: float
    adapted_rand_error: float
    voxels: int


def _sums(keys: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    _, dense = np.unique(keys, return_inverse=True)
    # Weights are exact in float64 up to 2^53 voxels.
    sums = np.bincount(dense, weights=counts.astype(np.float64)) if len(keys) else np.zeros(0)
    return sums.astype(np.int64)[dense]


def contingency(seg: Labels, truth: Labels, *, skip_seg_zero: bool = False) -> Contingency:
    """Count the voxels that each segment shares with each body of the truth.

    Parameters
    ----------
    seg, truth : (z, y, x) integer
        Labels; voxels with truth 0 do not count.
    skip_seg_zero : bool
        Leave out voxels that the segmentation left unlabelled too; else 0 is a segment like any other.
    """
    if seg.shape != truth.shape:
        raise BadInput(f"segmentation {seg.shape} and truth {truth.shape} differ in shape", fix="cut both to one box")
    # Hash grouping, all in Rust: a numpy unique over pairs sorts every voxel, ten times slower.
    frame = pl.DataFrame({"seg": seg.ravel().astype(np.uint64), "truth": truth.ravel().astype(np.uint64)})
    frame = frame.filter(pl.col("truth") != 0)
    if skip_seg_zero:
        frame = frame.filter(pl.col("seg") != 0)
    return _from_frame(frame.group_by("seg", "truth").len("count"))


def add_contingencies(parts: Iterable[Contingency]) -> Contingency:
    """Add up the tables of disjoint boxes: the table of their union, in any order."""
    frames = [pl.DataFrame({"seg": part.seg, "truth": part.truth, "count": part.count}) for part in parts]
    empty = pl.DataFrame(schema={"seg": pl.UInt64, "truth": pl.UInt64, "count": pl.Int64})
    return _from_frame(pl.concat([empty, *frames]).group_by("seg", "truth").agg(pl.col("count").sum()))


def _from_frame(frame: pl.DataFrame) -> Contingency:
    frame = frame.sort("seg", "truth")
    return Contingency(frame["seg"].to_numpy(), frame["truth"].to_numpy(), frame["count"].cast(pl.Int64).to_numpy())


def variation_of_information(seg: Labels, truth: Labels, *, skip_seg_zero: bool = False) -> tuple[float, float]:
    """Give VI split = H(seg | truth) and VI merge = H(truth | seg), in bits, over voxels with truth > 0.

    Notes
    -----
    Meila 2003; split and merge parts as in Nunez-Iglesias et al. 2013. In natural logarithms, as some libraries give
    them, the figures are 1.44 times smaller.
    """
    scores = score(contingency(seg, truth, skip_seg_zero=skip_seg_zero))
    return scores.vi_split, scores.vi_merge


def adapted_rand_error(seg: Labels, truth: Labels, *, skip_seg_zero: bool = False) -> float:
    """Give 1 minus the F-score of pairs of voxels that lie together, 0 (equal) to 1; Arganda-Carreras et al. 2015."""
    return score(contingency(seg, truth, skip_seg_zero=skip_seg_zero)).adapted_rand_error


def score(table: Contingency) -> Scores:
    """Compute all scores from a contingency table."""
    voxels = table.voxels
    if voxels == 0:
        return Scores(float("nan"), float("nan"), float("nan"), 0)
    share = table.count / voxels
    split = float(-(share * np.log2(table.count / table.truth_sizes)).sum())
    merge = float(-(share * np.log2(table.count / table.seg_sizes)).sum())
    # Sums of squares pass 2^63 on large volumes: in float64, where the ratio is good to 1e-15.
    joint = float((table.count.astype(np.float64) ** 2).sum())
    by_seg = float((table.count * table.seg_sizes.astype(np.float64)).sum())
    by_truth = float((table.count * table.truth_sizes.astype(np.float64)).sum())
    return Scores(split + 0.0, merge + 0.0, max(0.0, 1.0 - 2.0 * joint / (by_seg + by_truth)), voxels)


def score_regions(
    seg: Labels, truth: Labels, box: Box, region_zyx: Zyx, *, skip_seg_zero: bool = False
) -> dict[str, tuple[Box, Scores]]:
    """Score every cell of the region grid that meets `box`; keys are region names, in grid order.

    Parameters
    ----------
    seg, truth : (z, y, x) integer
        Labels in `box`.
    box : Box
        Global voxels; a cell at its edge is scored as far as it lies inside.
    region_zyx : (z, y, x) int
        Size of a cell; the grid begins at global voxel (0, 0, 0).
    """
    if seg.shape != box.shape:
        raise BadInput(f"segmentation has shape {seg.shape}, its box {box} has {box.shape}", fix="give its own box")
    found: dict[str, tuple[Box, Scores]] = {}
    for index, cell in grid_cells(box, region_zyx):
        part = cell.within(box)
        table = contingency(seg[part], truth[part], skip_seg_zero=skip_seg_zero)
        found[region_name(index)] = (cell, score(table))
    return found


def grid_cells(box: Box, size: Zyx) -> Iterator[tuple[Zyx, Box]]:
    """Yield the cells of the grid of `size` from voxel (0, 0, 0) that meet `box`, cut to it, in C order."""
    first = tuple(a // s for a, s in zip(box.start, size, strict=True))
    aligned = Box(
        (first[0] * size[0], first[1] * size[1], first[2] * size[2]),
        box.stop,
    )
    for index, cell in aligned.blocks(size):
        yield (index[0] + first[0], index[1] + first[1], index[2] + first[2]), cell.clip(box)


@dataclass(frozen=True, slots=True)
class SynapseScore:
    """Counts, ratios, and who was matched with whom.

    Parameters
    ----------
    match : (predicted,) int64
        Index of the true synapse that each predicted one was matched with, -1 for none.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    match: NDArray[np.int64]

    @property
    def precision(self) -> float:
        """Share of the predicted synapses that are true; `nan` without any."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else float("nan")

    @property
    def recall(self) -> float:
        """Share of the true synapses that were found; `nan` without any."""
        real = self.true_positives + self.false_negatives
        return self.true_positives / real if real else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of the two, 2 TP / (2 TP + FP + FN); `nan` if there is nothing on either side."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else float("nan")


def synapse_f1(
    predicted: Points, predicted_pairs: Labels, truth: Points, truth_pairs: Labels, max_distance_nm: float
) -> SynapseScore:
    """Match predicted with true synapses, one to one, by distance within the same pair of cells.

    Two synapses may be matched if they join the same ordered pair of *true* cells and their positions are at most
    `max_distance_nm` apart. Within a pair of cells the assignment has as many matches as possible, and of those the
    least total distance. So a detection at the right place that joins the wrong cells counts as one false positive
    and one false negative: it is the wiring that is scored.

    Parameters
    ----------
    predicted, truth : (n, 3) float
        Positions in nm, the same axis order on both sides.
    predicted_pairs, truth_pairs : (n, 2) integer
        Pre- and postsynaptic cell in ids of the truth. The caller looks the predicted points up in the truth volume; a
        predicted pair with a 0 matches nothing.
    """
    from scipy.optimize import linear_sum_assignment

    match = np.full(len(predicted), -1, np.int64)
    theirs = _by_pair(truth_pairs)
    for pair, mine in _by_pair(predicted_pairs).items():
        candidates = theirs.get(pair)
        if candidates is None or 0 in pair:
            continue
        gaps = np.linalg.norm(predicted[mine][:, None, :] - truth[candidates][None, :, :], axis=2)
        allowed = gaps <= max_distance_nm
        # A forbidden pairing costs more than all allowed ones together, so the number of matches comes first.
        price = np.where(allowed, gaps, (max_distance_nm + 1.0) * (min(gaps.shape) + 1))
        for row, column in zip(*linear_sum_assignment(price), strict=True):
            if allowed[row, column]:
                match[mine[row]] = candidates[column]
    hits = int((match >= 0).sum())
    return SynapseScore(hits, len(predicted) - hits, len(truth) - hits, match)


def _by_pair(pairs: Labels) -> dict[tuple[int, int], NDArray[np.int64]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (pre, post) in enumerate(np.asarray(pairs).reshape(-1, 2).tolist()):
        groups.setdefault((pre, post), []).append(index)
    return {pair: np.asarray(rows, np.int64) for pair, rows in groups.items()}


@dataclass(frozen=True, slots=True)
class RunLengthScore:
    """Expected run length, the ceiling that a perfect segmentation would reach, and what was counted as merged.

    Parameters
    ----------
    erl_nm, ceiling_nm, total_nm : float
        nm; `nan` if the skeletons have no length.
    merged : tuple of int
        Segments that were counted as merged.
    merge_threshold_nm : float
        Cable of a second skeleton from which a segment counts as merged.
    """

    erl_nm: float
    ceiling_nm: float
    total_nm: float
    merged: tuple[int, ...]
    merge_threshold_nm: float


def expected_run_length(
    nodes: Points,
    skeleton: Labels,
    edges: Labels,
    segment: Labels,
    *,
    merge_threshold_nm: float,
) -> RunLengthScore:
    """Give the length of cable, in nm, on which one can expect to stay without meeting an error.

    Drop a point at random on the cable of all skeletons; the run it falls in is the cable of that skeleton that lies
    in one segment. ERL is the expectation of that run's length: sum of squared run lengths over the total length. An
    edge whose ends lie in different segments, or in segment 0, belongs to no run. A segment that holds at least
    `merge_threshold_nm` of cable of two or more skeletons is merged, and its runs count 0. (Januszewski et al. 2018;
    the figure changes with the threshold, so it is part of the result.)

    Parameters
    ----------
    nodes : (n, 3) float
        Positions, nm.
    skeleton, segment : (n,) integer
        Skeleton of each node; segment at each node's voxel, 0 = none.
    edges : (m, 2) integer
        Pairs of node indices, each edge once, within one skeleton.
    """
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    a, b = edges[:, 0], edges[:, 1]
    if (skeleton[a] != skeleton[b]).any():
        raise BadInput("an edge joins two skeletons", fix="give edges within one skeleton only")
    cable = pl.DataFrame(
        {
            "skeleton": skeleton[a].astype(np.int64),
            "segment": np.where(segment[a] == segment[b], segment[a], 0).astype(np.int64),
            "length": np.linalg.norm(nodes[a].astype(np.float64) - nodes[b].astype(np.float64), axis=1),
        }
    )
    total = float(cable["length"].sum())
    if total == 0.0:
        nan = float("nan")
        return RunLengthScore(nan, nan, total, (), merge_threshold_nm)
    whole = cable.group_by("skeleton").agg(pl.col("length").sum()).sort("skeleton")
    runs = cable.filter(pl.col("segment") != 0).group_by("skeleton", "segment").agg(pl.col("length").sum())
    touched = runs.filter(pl.col("length") >= merge_threshold_nm).group_by("segment").len().filter(pl.col("len") > 1)
    merged = touched["segment"].sort().to_list()
    # Sorted, so that float sums do not depend on the order in which a parallel grouping ends.
    kept = runs.filter(~pl.col("segment").is_in(merged)).sort("skeleton", "segment")
    return RunLengthScore(
        float((kept["length"] ** 2).sum()) / total,
        float((whole["length"] ** 2).sum()) / total,
        total,
        tuple(merged),
        merge_threshold_nm,
    )
