"""Stages: how blocks are laid out, what they read, what they refuse."""

import polars as pl
import pytest

from lake.box import Box
from lake.errors import BadInput
from lake.volume_spec import VolumeSpec
from transforms.inputs import frame_digest, widen
from transforms.layout import Layout, cells_of
from transforms.stage import Block, Grid, Scene, Stage, TilesIn, VolumeIn, VolumeOut, configure
from transforms.stage_run import coarse_cells
from transforms.stages import stage_class
from transforms.testing.stages import Cut, Paint

GRID = Grid((8, 8, 8), (1, 2, 2), (16.0, 8.0, 8.0))


def spec(shape, offset=(0, 0, 0), **more):
    return VolumeSpec("em", "image", "uint8", shape, (16.0, 8.0, 8.0), offset, chunk_zyx=(8, 8, 8), **more)


class Reader(Stage):
    name, version = "reader", 1

    def reads(self):
        return (VolumeIn("em"),)

    def writes(self):
        return ()


class Sections(Reader):
    name, grid = "sections", "section"


class Shoots(Stage):
    name, version, grid = "shoots", 1, "section"

    def reads(self):
        return (TilesIn(),)

    def writes(self):
        return (VolumeOut("em"),)

    def volumes(self, scene):
        return {"em": spec((4, 8, 8))}


def layout(stage, **volumes):
    return {block.name: block for block in stage.blocks(Scene(GRID, volumes))}


def test_blocks_are_cells_of_a_grid_that_starts_at_the_origin_not_at_the_volume():
    blocks = layout(Reader(), em=spec((8, 12, 20), (8, 16, 24)))
    assert list(blocks) == ["1_2_3", "1_2_4", "1_2_5", "1_3_3", "1_3_4", "1_3_5"]
    assert blocks["1_3_5"].box == Box((8, 24, 40), (16, 28, 44))
    assert blocks["1_3_5"].index == (1, 3, 5)
    assert blocks["1_3_5"].id == "reader/1_3_5"


def test_a_section_stage_has_a_block_per_plane():
    blocks = layout(Sections(), em=spec((3, 8, 8), (8, 0, 0)))
    assert [(b.name, b.section, str(b.box)) for b in blocks.values()] == [
        ("8", 8, "8:9,0:8,0:8"), ("9", 9, "9:10,0:8,0:8"), ("10", 10, "10:11,0:8,0:8"),
    ]  # fmt: skip


def test_a_section_that_lost_all_its_tiles_is_still_a_block():
    tiles = pl.DataFrame({"acquisition": ["a", "a"], "section": [3, 6]})
    blocks = list(Shoots().blocks(Scene(GRID, {}, tiles)))
    assert [block.name for block in blocks] == ["3", "4", "5", "6"]
    assert str(blocks[0].box) == "0:1,0:8,0:8"


def test_a_volume_that_nobody_makes_is_named_with_the_nearest_one():
    with pytest.raises(BadInput, match="'em' does not exist") as caught:
        layout(Reader(), enm=spec((8, 8, 8)))
    assert "'enm'" in caught.value.fix


def test_an_acquisition_must_be_named_if_there_are_several():
    tiles = pl.DataFrame({"acquisition": ["one", "two"], "section": [0, 0]})
    scene = Scene(GRID, {}, tiles)
    with pytest.raises(BadInput, match="2 acquisitions"):
        scene.tiles_of()
    with pytest.raises(BadInput, match="'onne'") as caught:
        scene.tiles_of("onne")
    assert "'one'" in caught.value.fix
    with pytest.raises(BadInput, match="no accepted tiles"):
        Scene(GRID, {}).tiles_of("one")


def test_regions_are_whole_blocks_of_the_grid():
    assert GRID.region_of((0, 0, 0)) == "0_0_0"
    assert GRID.region_of((8, 15, 16)) == "1_0_1"


def test_a_box_is_widened_on_each_side_by_itself_and_cut_to_the_volume():
    bounds = Box((0, 0, 0), (16, 16, 16))
    assert widen(Box((8, 0, 8), (16, 8, 16)), (1, 2, 3), (4, 5, 6), bounds) == Box((7, 0, 5), (16, 13, 16))


def test_blocks_are_found_by_place_without_looking_at_all_of_them():
    found = Layout.of(Reader(), Scene(GRID, {"em": spec((16, 16, 16))}))
    assert found.meeting(Box((7, 0, 0), (9, 8, 8))) == ["0_0_0", "1_0_0"]
    assert found.meeting(Box((0, 0, 0), (8, 8, 8))) == ["0_0_0"]
    assert len(found.meeting(None)) == 8
    assert found.meeting(Box((3, 3, 3), (3, 3, 3))) == []
    assert list(cells_of(Box((0, 7, 8), (1, 9, 9)), (8, 8, 8))) == [(0, 0, 1), (0, 1, 1)]


def test_unknown_and_wrong_parameters_are_refused_not_ignored():
    with pytest.raises(BadInput, match="'paint' has no parameter 'sede'") as caught:
        configure(Paint, {"sede": 1})
    assert "'seed'" in caught.value.fix
    with pytest.raises(BadInput, match=r"parameter 'channels'.*got 0"):
        configure(Paint, {"channels": 0})


def test_a_parameter_inside_a_group_is_refused_by_its_full_name():
    with pytest.raises(BadInput, match=r"'stitch.serach'") as caught:
        configure(stage_class("stitch"), {"stitch": {"serach": 3}})
    assert "stitch.search" in caught.value.fix


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Cut().level = 3


def test_coarser_scales_are_made_in_pieces_that_share_no_file():
    whole = spec((8, 40, 40), scales=((1, 1, 1), (1, 2, 2)))
    boxes = coarse_cells(whole, [Box((0, 8, 8), (8, 16, 16)), Box((0, 32, 32), (8, 40, 40))])
    assert [str(box) for box in boxes] == ["0:8,0:16,0:16", "0:8,32:40,32:40"]
    moved = spec((8, 40, 40), (8, 8, 8), scales=((1, 1, 1), (2, 2, 2)))
    assert [str(b) for b in coarse_cells(moved, [Box((8, 8, 8), (16, 16, 16))])] == ["8:16,8:24,8:24"]


def test_rows_are_digested_by_value_whatever_their_order():
    rows = pl.DataFrame({"a": [1, 2], "t": ["x", None], "f": [0.0, 1.5]})
    same = pl.DataFrame({"a": [2, 1], "t": [None, "x"], "f": [1.5, -0.0]})
    assert frame_digest(rows) == frame_digest(same)
    for other in ({"a": [1, 3]}, {"t": ["x", ""]}, {"f": [0.0, None]}):
        assert frame_digest(rows.with_columns(**{k: pl.Series(v) for k, v in other.items()})) != frame_digest(rows)
    assert frame_digest(rows.rename({"a": "b"})) != frame_digest(rows)


def test_a_block_without_a_box_has_only_its_name():
    assert Block("join", "0_0_0", (0, 0, 0)).id == "join/0_0_0"
