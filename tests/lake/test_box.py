import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput

points = st.tuples(*[st.integers(-30, 30)] * 3)
sizes = st.tuples(*[st.integers(0, 12)] * 3)
steps = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def boxes(draw):
    start, size = draw(points), draw(sizes)
    return Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))


def voxels(box):
    return {(z, y, x) for z in _range(box, 0) for y in _range(box, 1) for x in _range(box, 2)}


def _range(box, axis):
    return range(box.start[axis], box.stop[axis])


@given(boxes())
def test_a_box_written_out_is_read_back(box):
    assert Box.parse(str(box)) == box


@pytest.mark.parametrize("text", ["", "0:1", "0:1,0:1", "0:1,0:1,0:1,0:1", "a:b,0:1,0:1", "0,1,2", "0:1:2,0:1,0:1"])
def test_a_text_that_is_no_box_is_quoted(text):
    with pytest.raises(BadInput) as caught:
        Box.parse(text)
    assert repr(text) in str(caught.value)


def test_a_box_that_ends_before_it_starts_is_refused():
    with pytest.raises(BadInput, match="0:1,5:4,0:1"):
        Box((0, 5, 0), (1, 4, 1))


@given(boxes())
def test_shape_and_voxels_count_what_is_inside(box):
    assert box.voxels == len(voxels(box)) == np.prod(box.shape)


@given(boxes(), boxes())
def test_two_boxes_meet_if_they_share_a_voxel(one, other):
    assert one.meets(other) == bool(voxels(one) & voxels(other)) == other.meets(one)


@given(boxes(), boxes())
def test_clipping_keeps_what_both_hold(box, bounds):
    clipped = box.clip(bounds)
    assert voxels(clipped) == voxels(box) & voxels(bounds)
    assert bounds.contains(clipped)


@given(boxes(), boxes())
def test_containing_means_no_voxel_outside(outer, inner):
    if outer.contains(inner):
        assert voxels(inner) <= voxels(outer)
    elif inner.voxels:
        assert not voxels(inner) <= voxels(outer)


@given(boxes(), points)
def test_a_shift_there_and_back_changes_nothing(box, offset):
    back = tuple(-n for n in offset)
    assert box.shift(offset).shift(back) == box
    assert box.shift(offset).shape == box.shape


@given(boxes(), sizes)
def test_growing_adds_the_halo_on_both_sides(box, halo):
    grown = box.grow(halo)
    assert grown.contains(box)
    assert grown.shape == tuple(n + 2 * h for n, h in zip(box.shape, halo, strict=True))


@given(boxes(), steps)
def test_blocks_cover_a_box_once_and_no_more(box, size):
    seen = {}
    for index, block in box.blocks(size):
        assert all(n <= s for n, s in zip(block.shape, size, strict=True))
        assert block.start == tuple(a + i * s for a, i, s in zip(box.start, index, size, strict=True))
        for voxel in voxels(block):
            assert voxel not in seen
            seen[voxel] = index
    assert set(seen) == voxels(box)
    indices = [index for index, _ in box.blocks(size)]
    assert indices == sorted(indices)


@given(boxes(), boxes())
def test_a_box_within_another_indexes_its_array(one, other):
    outer = Box(tuple(map(min, one.start, other.start)), tuple(map(max, one.stop, other.stop)))
    array = np.zeros(outer.shape, dtype=bool)
    array[one.within(outer)] = True
    found = {tuple(int(n) + o for n, o in zip(place, outer.start, strict=True)) for place in np.argwhere(array)}
    assert found == voxels(one)
    shifted = one.shift(tuple(-n for n in outer.start))
    assert shifted.slices == one.within(outer)
