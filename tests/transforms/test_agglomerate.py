from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput
from lake.ids import supervoxel_id
from lake.measures import variation_of_information
from transforms.kernels.agglomerate import agglomerate, join_small_clusters, merge_tree
from transforms.kernels.edges import add_up, edge_statistics
from transforms.kernels.watershed import FragmentParameters, fragments


def step_by_step(n, edges, threshold):
    """Average linkage by definition: merge the best pair of clusters until none is good enough."""
    sums = {}
    for p, q, total, count in edges:
        key = (min(p, q), max(p, q))
        old = sums.get(key, (0, 0))
        sums[key] = old[0] + total, old[1] + count
    name = list(range(n))
    while sums:
        (p, q), (total, count) = max(sums.items(), key=lambda item: item[1][0] / item[1][1])
        if total / (255 * count) < threshold:
            break
        name = [p if v == q else v for v in name]
        merged = {}
        for (u, v), (s, c) in sums.items():
            u, v = p if u == q else u, p if v == q else v
            if u != v:
                old = merged.get((min(u, v), max(u, v)), (0, 0))
                merged[min(u, v), max(u, v)] = old[0] + s, old[1] + c
        sums = merged
    return name


def columns(edges):
    return tuple(np.array(c, np.int64) for c in zip(*edges, strict=True)) if edges else (np.zeros(0, np.int64),) * 4


def same_partition(left, right):
    return len(set(zip(left, right, strict=True))) == len(set(left)) == len(set(right))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    data=st.data(),
    threshold=st.floats(0.01, 1.0),
)
def test_the_tree_cut_anywhere_is_average_linkage_down_to_that_mean(n, data, threshold):
    pairs = [(p, q) for p in range(n) for q in range(p + 1, n)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    # Coprime-ish odd sums keep means apart: with equal means the order is a matter of ids, tested below.
    edges = [(p, q, data.draw(st.integers(0, 255 * 97)), 97 + 2 * i) for i, (p, q) in enumerate(chosen)]
    means = [s / c for _, _, s, c in edges]
    if len(set(means)) < len(means):
        return
    nodes = np.arange(n) * 10 + 5
    p, q, total, count = columns(edges)
    roots = agglomerate(nodes, nodes[p], nodes[q], total, count, threshold=threshold)
    assert same_partition(roots.tolist(), step_by_step(n, edges, threshold))


def test_one_tree_answers_every_threshold_and_clusters_only_grow():
    rng = np.random.default_rng(1)
    n = 60
    p, q = np.triu_indices(n, 1)
    keep = rng.random(len(p)) < 0.1
    p, q = p[keep], q[keep]
    count = rng.integers(1, 50, len(p))
    total = (count * rng.integers(0, 256, len(p))).astype(np.int64)
    nodes = np.sort(rng.choice(2**50, n, replace=False))
    tree = merge_tree(nodes, nodes[p], nodes[q], total, count)
    before = np.arange(n)
    for threshold in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0):
        roots = tree.cut(threshold)
        assert (roots == agglomerate(nodes, nodes[p], nodes[q], total, count, threshold=threshold)).all()
        assert (roots[roots] == roots).all()
        assert (roots <= np.arange(n)).all()
        assert len(set(zip(before, roots, strict=True))) == len(set(before))
        before = roots


def test_order_of_edges_and_split_rows_do_not_matter_even_with_ties():
    rng = np.random.default_rng(2)
    nodes = np.arange(40)
    p, q = np.triu_indices(40, 1)
    keep = rng.random(len(p)) < 0.15
    p, q = p[keep], q[keep]
    count = np.full(len(p), 4)
    total = 4 * rng.choice([50, 100, 200], len(p))
    expected = agglomerate(nodes, p, q, total, count, threshold=0.3)
    shuffled = rng.permutation(len(p))
    half = [np.concatenate([c[shuffled] // 2] * 2) for c in (total, count)]
    again = agglomerate(nodes, np.tile(p[shuffled], 2), np.tile(q[shuffled], 2), *half, threshold=0.3)
    assert (expected == again).all()


def test_a_long_weak_contact_outweighs_a_short_strong_one():
    nodes, a, b = np.array([1, 2, 3]), np.array([1, 1, 2]), np.array([2, 3, 3])
    roots = agglomerate(nodes, a, b, np.array([255 * 10, 255 * 4, 20 * 90]), np.array([10, 4, 90]), threshold=0.5)
    assert roots.tolist() == [0, 0, 2]


def test_what_does_not_touch_never_merges():
    assert agglomerate(np.arange(4), *columns([(0, 1, 255, 1)]), threshold=0.0).tolist() == [0, 0, 2, 3]
    assert agglomerate(np.array([7]), *columns([]), threshold=0.5).tolist() == [0]
    assert agglomerate(np.zeros(0, np.int64), *columns([]), threshold=0.5).tolist() == []


def test_small_clusters_join_their_strongest_neighbour_down_to_a_lower_threshold():
    nodes = np.arange(4)
    edges = columns([(0, 1, 255 * 4, 10), (1, 2, 255 * 3, 10), (2, 3, 255 * 1, 10)])
    sizes = np.array([1000, 5, 1000, 5])
    roots = agglomerate(nodes, *edges, threshold=0.5, voxels=sizes, small_voxels=10, small_threshold=0.2)
    assert roots.tolist() == [0, 0, 2, 3]
    everything = join_small_clusters(np.arange(4), *edges, voxels=sizes, below=10, threshold=0.0)
    assert everything.tolist() == [0, 0, 2, 2]


def test_an_edge_to_an_unknown_supervoxel_is_refused_by_name():
    with pytest.raises(BadInput, match="unknown supervoxel, first 1 to 99"):
        agglomerate(np.array([1, 2]), *columns([(1, 99, 5, 1)]), threshold=0.5)
    with pytest.raises(BadInput, match="ascending"):
        agglomerate(np.array([2, 1]), *columns([(1, 2, 5, 1)]), threshold=0.5)


def cells(seed, shape, count):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, 3)) * shape
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., None, :]
    return ((where - points) ** 2).sum(axis=-1).argmin(axis=-1) + 1


def affinity_of(labels):
    """Affinities with walls three voxels thick, as a good model gives them."""
    wall = np.zeros(labels.shape, bool)
    for axis in range(3):
        step = np.diff(labels, axis=axis) != 0
        for inner in (slice(0, -1), slice(1, None)):
            wall[tuple(inner if a == axis else slice(None) for a in range(3))] |= step
    out = np.full((3, *labels.shape), 250, np.uint8)
    for axis in range(3):
        out[axis][wall] = 60
        inner = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
        out[axis][inner][np.diff(labels, axis=axis) != 0] = 5
    return out


@pytest.mark.parametrize("block", [(16, 16, 16), (20, 24, 48), (48, 48, 48)])
def test_good_affinities_give_the_truth_back_whatever_the_blocks(block):
    shape = (48, 48, 48)
    labels = cells(3, shape, 8)
    affinity = affinity_of(labels)
    bounds = Box((0, 0, 0), shape)
    ids = np.zeros(shape, np.int64)
    for index, core in bounds.blocks(block):
        read = core.grow((4, 4, 4)).clip(bounds)
        local = fragments(
            affinity[(slice(None), *read.slices)],
            voxel_nm=(10.0, 10.0, 10.0),
            core=core.within(read),
            parameters=FragmentParameters(seed_distance_nm=30, min_voxels=8),
        )
        ids[core.slices] = supervoxel_id(index, local)
    parts = []
    for _, core in bounds.blocks(block):
        read = Box(core.start, tuple(s + 1 for s in core.stop)).clip(bounds)
        parts.append(edge_statistics(affinity[(slice(None), *core.slices)], ids[read.slices], core.shape))
    edges = add_up(parts)
    nodes = np.unique(ids)
    roots = agglomerate(nodes, edges.a, edges.b, edges.sum_affinity, edges.count, threshold=0.5)
    found = roots[np.searchsorted(nodes, ids)] + 1
    split, merge = variation_of_information(found, labels)
    assert split + merge < 0.05
    # A block of 16 voxels may end on a wall and keep a sliver of it apart.
    assert (np.bincount(found.ravel()) > 100).sum() == len(np.unique(labels))
    # No seam: across every block face inside one cell, both sides have one root.
    for axis, at in product(range(3), range(48)):
        if at and at % block[axis] == 0:
            low, high = np.take(found, at - 1, axis), np.take(found, at, axis)
            inside = np.take(labels, at - 1, axis) == np.take(labels, at, axis)
            assert (low == high)[inside].mean() > 0.98
