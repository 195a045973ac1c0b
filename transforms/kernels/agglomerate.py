"""Agglomeration: average linkage on the global graph of supervoxels, at any threshold from one tree.

Decisions
---------
The score of two clusters is the mean affinity over every face between them (sum of sums over sum of counts), so a long
weak contact outweighs a short strong one, and a block's face inside a neurite, where affinities are high all over, is
merged first. Average linkage never inverts (a mean of scores that are not better is not better), so one tree, cut
anywhere, gives exactly what merging down to that threshold would give.

Edges are put into (a, b) order before the tree is built, so equal scores are settled by ids and not by block order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lake.errors import BadInput

_APART = 2.0  # a distance beyond any real one (affinities give 0..1): joins what does not touch, last of all


@dataclass(frozen=True, slots=True)
class MergeTree:
    """The order in which supervoxels merge.

    Parameters
    ----------
    nodes : (n,) int64
        Supervoxel ids, ascending.
    parents : (2n - 1,) int64
        The node a node merges into; leaves 0..n-1 come first, the root is its own parent.
    scores : (2n - 1,) float64
        Mean affinity in [0, 1] at which a node was made; leaves 1, joins across a gap -1.
    """

    nodes: NDArray[np.int64]
    parents: NDArray[np.int64]
    scores: NDArray[np.float64]

    def cut(self, threshold: float) -> NDArray[np.int64]:
        """Cluster the nodes: all merges with a mean affinity of at least `threshold` are carried out.

        Returns
        -------
        (n,) int64
            For each node the index into `nodes` of its cluster's lowest id.
        """
        nodes = np.arange(len(self.parents))
        top = np.where((self.scores >= threshold)[self.parents], self.parents, nodes)
        # Scores fall towards the root, so a chain of carried-out merges ends where it first breaks: leap along it.
        while ((further := top[top]) != top).any():
            top = further
        return _lowest_member(top[: len(self.nodes)])


def agglomerate(
    nodes: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    sum_affinity: NDArray[np.int64],
    count: NDArray[np.int64],
    *,
    threshold: float,
    voxels: NDArray[np.int64] | None = None,
    small_voxels: int = 0,
    small_threshold: float = 0.0,
) -> NDArray[np.int64]:
    """Cluster supervoxels by average linkage.

    Parameters
    ----------
    nodes : (n,) int64
        Supervoxel ids, ascending, each once.
    a, b : (m,) int64
        Touching pairs, a < b; a pair may come in several parts, which are added.
    sum_affinity, count : (m,) int64
        Sum of uint8 affinities, and number of faces.
    threshold : float
        In [0, 1]: clusters with at least this mean affinity are merged.
    voxels : (n,) int64, optional
        Sizes; with them, clusters below `small_voxels` then join the neighbour they are tied to most strongly if the
        mean affinity is at least `small_threshold`.

    Returns
    -------
    (n,) int64
        For each node the index into `nodes` of its cluster's lowest id.
    """
    roots = merge_tree(nodes, a, b, sum_affinity, count).cut(threshold)
    if voxels is None or small_voxels <= 0:
        return roots
    p, q, total, faces = _graph(nodes, a, b, sum_affinity, count)
    return join_small_clusters(
        roots, p, q, total, faces, voxels=voxels, below=small_voxels, threshold=min(small_threshold, threshold)
    )


def merge_tree(
    nodes: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    sum_affinity: NDArray[np.int64],
    count: NDArray[np.int64],
) -> MergeTree:
    """Build the whole tree once; `MergeTree.cut` then answers for any threshold. Parameters as in `agglomerate`."""
    n = len(nodes)
    p, q, total, faces = _graph(nodes, a, b, sum_affinity, count)
    if n < 2:
        return MergeTree(nodes, np.zeros(n, np.int64), np.ones(n))
    import higra

    distance = 1.0 - total / (255.0 * faces)
    gap_p, gap_q = _bridges(n, p, q)
    graph = higra.UndirectedGraph(n)
    graph.add_edges(np.concatenate([p, gap_p]), np.concatenate([q, gap_q]))
    weights = np.concatenate([distance, np.full(len(gap_p), _APART)])
    sizes = np.concatenate([faces.astype(np.float64), np.ones(len(gap_p))])
    tree, altitudes = higra.binary_partition_tree_average_linkage(graph, weights, sizes)
    scores = 1.0 - np.asarray(altitudes, np.float64)
    scores[:n] = 1.0
    return MergeTree(nodes, np.asarray(tree.parents(), np.int64), scores)


def join_small_clusters(
    roots: NDArray[np.int64],
    p: NDArray[np.int64],
    q: NDArray[np.int64],
    sum_affinity: NDArray[np.int64],
    count: NDArray[np.int64],
    *,
    voxels: NDArray[np.int64],
    below: int,
    threshold: float,
) -> NDArray[np.int64]:
    """Join clusters below a size to their most strongly tied neighbour, in rounds until nothing changes.

    Two small clusters that are tied to each other join and are looked at again in the next round.

    Parameters
    ----------
    roots : (n,) int64
        Cluster of each node, as `MergeTree.cut` gives it.
    p, q, sum_affinity, count : (m,) int64
        Edges by node index.
    voxels : (n,) int64
        Size of each node.
    below : int
        Clusters with fewer voxels are joined.
    threshold : float
        In [0, 1]: only over a contact with at least this mean affinity.
    """
    n = len(roots)
    while True:
        sizes = np.bincount(roots, voxels, n).astype(np.int64)
        u, v, total, faces = _add_pairs(roots[p], roots[q], sum_affinity, count, n)
        mean = total / (255.0 * np.maximum(faces, 1))
        source, other = np.concatenate([u, v]), np.concatenate([v, u])
        tie = np.concatenate([mean, mean])
        use = (sizes[source] < below) & (tie >= threshold)
        source, other, tie = source[use], other[use], tie[use]
        if not len(source):
            return roots
        order = np.lexsort((other, -tie, source))
        first = np.ones(len(order), bool)
        first[1:] = source[order][1:] != source[order][:-1]
        target = np.arange(n)
        target[source[order][first]] = other[order][first]
        roots = _lowest_member(_groups(n, np.arange(n), target)[roots])


def _graph(
    nodes: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    sum_affinity: NDArray[np.int64],
    count: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Edges by node index, in (a, b) order, each pair once."""
    if len(nodes) > 1 and not (nodes[1:] > nodes[:-1]).all():
        raise BadInput("supervoxel ids are not ascending or not unique", fix="sort them and drop repeats")
    p, q = np.searchsorted(nodes, a), np.searchsorted(nodes, b)
    known = np.concatenate([nodes, [-1]])
    unknown = (known[np.minimum(p, len(nodes))] != a) | (known[np.minimum(q, len(nodes))] != b)
    if unknown.any():
        at = int(np.flatnonzero(unknown)[0])
        raise BadInput(
            f"{int(unknown.sum())} edges end at an unknown supervoxel, first {int(a[at])} to {int(b[at])}",
            fix="run edge statistics on the same supervoxels",
        )
    return _add_pairs(p, q, sum_affinity, count, len(nodes))


def _add_pairs(
    p: NDArray[np.int64], q: NDArray[np.int64], total: NDArray[np.int64], faces: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Add up parts of one pair; drop pairs within one node."""
    low, high = np.minimum(p, q), np.maximum(p, q)
    key = low * n + high
    order = np.argsort(key, kind="stable")
    order = order[low[order] != high[order]]
    if not len(order):
        none = np.zeros(0, np.int64)
        return none, none, none, none
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return (
        key[starts] // n,
        key[starts] % n,
        np.add.reduceat(total[order], starts),
        np.add.reduceat(faces[order], starts),
    )


def _bridges(n: int, p: NDArray[np.int64], q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges that chain the parts of the graph which do not touch: a tree needs a connected graph."""
    group = _groups(n, p, q)
    _, first = np.unique(group, return_index=True)
    first = np.sort(first)
    return first[:-1], first[1:]


def _groups(n: int, p: NDArray[np.int64], q: NDArray[np.int64]) -> NDArray[np.int64]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(p), np.int8), (p, q)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _lowest_member(cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Name each cluster by the index of its first member."""
    _, first, inverse = np.unique(cluster, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)
