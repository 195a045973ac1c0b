import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput
from transforms.kernels.edges import add_up, edge_statistics, face_sums


def by_hand(affinity, ids):
    """Every face of the volume, one at a time."""
    found = {}
    for axis in range(3):
        for voxel in np.ndindex(*ids.shape):
            other = tuple(v + (a == axis) for a, v in enumerate(voxel))
            if other[axis] == ids.shape[axis]:
                continue
            a, b = sorted((int(ids[voxel]), int(ids[other])))
            if a != b and a != 0:
                row = found.setdefault((a, b), [0, [0, 0, 0]])
                row[0] += int(affinity[axis][voxel])
                row[1][axis] += 1
    return found


def as_dict(edges):
    return {
        (int(a), int(b)): [int(s), f.tolist()]
        for a, b, s, f in zip(edges.a, edges.b, edges.sum_affinity, edges.faces, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    block=st.tuples(*[st.integers(1, 6)] * 3),
    order=st.randoms(use_true_random=False),
)
def test_sums_over_any_blocks_in_any_order_equal_the_whole_volume(seed, shape, block, order):
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.array([0, 3, 2**40, 2**40 + 1, 2**62, 7]), shape)
    affinity = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    bounds = Box((0, 0, 0), shape)
    parts = []
    for _, core in bounds.blocks(block):
        read = Box(core.start, tuple(s + 1 for s in core.stop)).clip(bounds)
        parts.append(edge_statistics(affinity[(slice(None), *core.slices)], ids[read.slices], core.shape))
    order.shuffle(parts)
    whole = edge_statistics(affinity, ids)
    assert as_dict(add_up(parts)) == as_dict(whole) == by_hand(affinity, ids)
    assert (whole.a < whole.b).all()
    assert (whole.count == whole.faces.sum(axis=1)).all()


def test_contact_area_is_faces_times_their_size_on_each_axis():
    ids = np.array([[[1, 2], [1, 2]], [[1, 2], [3, 3]]], np.int64)
    edges = edge_statistics(np.zeros((3, 2, 2, 2), np.uint8), ids)
    area = dict(
        zip(zip(edges.a.tolist(), edges.b.tolist(), strict=True), edges.area_nm2((16.0, 8.0, 4.0)), strict=True)
    )
    assert area == {(1, 2): 3 * 16 * 8.0, (1, 3): 8 * 4 + 16 * 4.0, (2, 3): 8 * 4 + 16 * 4.0}


def test_labels_of_one_array_are_summed_the_same_way():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 5, 6)).astype(np.uint32)
    affinity = rng.integers(0, 256, (3, 4, 5, 6)).astype(np.uint8)
    a, b, total, count = face_sums(labels, affinity)
    edges = edge_statistics(affinity, labels.astype(np.int64))
    assert [x.tolist() for x in (a, b, total, count)] == [
        x.tolist() for x in (edges.a, edges.b, edges.sum_affinity, edges.count)
    ]


def test_one_supervoxel_alone_has_no_edges():
    assert len(edge_statistics(np.zeros((3, 2, 2, 2), np.uint8), np.ones((2, 2, 2), np.int64))) == 0
    assert len(add_up([edge_statistics(np.zeros((3, 1, 1, 1), np.uint8), np.ones((1, 1, 1), np.int64))] * 2)) == 0


def test_a_halo_of_two_voxels_is_refused():
    with pytest.raises(BadInput, match="do not fit"):
        edge_statistics(np.zeros((3, 4, 4, 4), np.uint8), np.ones((4, 4, 4), np.int64), (2, 4, 4))
