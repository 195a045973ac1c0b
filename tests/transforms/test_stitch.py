import csv

import cv2
import numpy as np
import pytest
from scipy import ndimage

from transforms.kernels.geometry import apply, compose, identity, invert, resample, translation
from transforms.kernels.render import coverage, render_section
from transforms.kernels.seams import StitchParams, match_pair, padding_mask, view_of
from transforms.kernels.stitch import Seam, Stitched, solve_positions, stitch_section


@pytest.fixture(scope="module")
def section():
    noise = np.random.default_rng(1).normal(size=(420, 420)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, 2.0)
    return np.clip(130 + 35 * smooth / smooth.std(), 25, 255).astype(np.uint8)


def cut(section, origins, size=(200, 200), seed=0, noise=4.0):
    rng = np.random.default_rng(seed)
    tiles = []
    for origin in origins:
        picture = resample(section.astype(np.float32), translation(origin), size)
        tiles.append(np.clip(picture + noise * rng.normal(size=size), 0, 255).astype(np.uint8))
    return tiles


ORIGINS = np.array([[10.3, 12.8], [8.6, 170.1], [165.4, 9.2], [171.7, 168.5]])
STAGE = np.array([[10.0, 10.0], [10.0, 170.0], [170.0, 10.0], [170.0, 170.0]])


def relative(positions):
    return positions - positions.mean(axis=0)


def test_positions_are_found_to_a_tenth_of_a_pixel(section):
    stitched = stitch_section(cut(section, ORIGINS), STAGE)
    assert len(stitched.seams) == 4
    assert stitched.connected
    assert np.abs(relative(stitched.positions) - relative(ORIGINS)).max() < 0.1
    assert stitched.residual_p95 < 0.2
    # The stage's mean, not a tile's own error, fixes where the section as a whole lies.
    assert np.allclose(stitched.positions.mean(axis=0), STAGE.mean(axis=0), atol=1e-6)


def test_one_blank_tile_does_not_move_the_others(section):
    tiles = cut(section, ORIGINS)
    tiles[3] = np.full_like(tiles[3], 90)
    stitched = stitch_section(tiles, STAGE)
    assert [seam.kept for seam in stitched.seams if 3 in (seam.a, seam.b)] == [False, False]
    assert not stitched.connected
    assert np.abs(relative(stitched.positions[:3]) - relative(ORIGINS[:3])).max() < 0.1


def test_a_confident_but_false_seam_ends_with_no_say():
    truth = np.array([[0.0, 0.0], [0.0, 100.0], [100.0, 0.0], [100.0, 100.0]])
    pairs = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]
    seams = [Seam(a, b, *(truth[b] - truth[a]), 0.9, 1000) for a, b in pairs]
    seams[4] = Seam(0, 3, 130.0, 60.0, 0.9, 1000)
    positions, judged = solve_positions(truth + 3.0, seams, StitchParams())
    assert np.abs(relative(positions) - relative(truth)).max() < 0.05
    assert [seam.kept for seam in judged] == [True] * 4 + [False]
    assert judged[4].residual > 30


def test_a_stage_error_of_a_hundred_pixels_is_found_with_a_wide_search():
    noise = np.random.default_rng(5).normal(size=(500, 900)).astype(np.float32)
    wide = np.clip(130 + 60 * ndimage.gaussian_filter(noise, 3.0) * 6, 0, 255).astype(np.uint8)
    params = StitchParams(search=110)
    a, b = (view_of(wide[:, x : x + 500].copy(), params) for x in (0, 340))
    found = match_pair(a, b, (90.0, 250.0), params)
    assert found is not None
    dy, dx, ncc, _ = found
    assert (dy, dx) == pytest.approx((0, 340), abs=0.1)
    assert ncc > 0.95


def test_tiles_too_far_apart_are_not_tried(section):
    tiles = cut(section, ORIGINS[:2])
    far = np.array([[0.0, 0.0], [0.0, 400.0]])
    assert stitch_section(tiles, far).seams == ()


def test_padding_is_masked_but_dark_tissue_inside_is_not():
    tile = np.full((120, 100), 120, np.uint8)
    tile[:15] = 0
    tile[:, 90:] = 2
    tile[60:70, 40:50] = 0
    mask = padding_mask(tile, 8, erode=2)
    assert not mask[:17].any()
    assert not mask[:, 88:].any()
    assert mask[17:, :88].all()
    assert padding_mask(tile, -1).all()


def test_seams_of_padded_tiles_are_matched_on_picture_alone(section):
    tiles = cut(section, ORIGINS, noise=0.0)
    for tile in tiles:
        tile[:9], tile[-11:], tile[:, :12], tile[:, -8:] = 0, 0, 0, 0
    stitched = stitch_section(tiles, STAGE, StitchParams(padding=4))
    assert all(seam.kept for seam in stitched.seams)
    assert np.abs(relative(stitched.positions) - relative(ORIGINS)).max() < 0.15
    image, mask = render_section(tiles, stitched, (60.0, 60.0), (260, 260), params=StitchParams(padding=4))
    assert mask.all()
    assert image.min() > 10  # no padding was blended in


def test_brightness_of_frames_and_vignetting_are_told_from_content(section):
    tissue = section.astype(np.float32)
    tissue[200:, 200:] *= 0.7  # stained darker: content, to be kept
    y, x = np.meshgrid(np.linspace(-1, 1, 200), np.linspace(-1, 1, 200), indexing="ij")
    light = np.exp(-0.05 * (y**2 + x**2))
    gains = np.array([1.05, 0.97, 1.0, 0.98])
    tiles = [
        np.clip(resample(tissue, translation(o), (200, 200)) * light * g, 0, 255).astype(np.uint8)
        for o, g in zip(ORIGINS, gains, strict=True)
    ]
    stitched = stitch_section(tiles, STAGE)
    assert stitched.light == pytest.approx([0.05, 0.05], abs=0.01)
    assert stitched.gains / stitched.gains.mean() == pytest.approx(gains / gains.mean(), abs=0.01)
    offset = stitched.positions.mean(axis=0) - ORIGINS.mean(axis=0)
    image, _ = render_section(tiles, stitched, tuple(offset + 30.0), (300, 300))
    ratio = image[180:290, 180:290].mean() / image[30:160, 30:160].mean()
    truth = tissue[210:320, 210:320].mean() / tissue[60:190, 60:190].mean()
    assert ratio == pytest.approx(truth, abs=0.02)


def test_the_drawn_section_equals_what_was_cut_up(section):
    tiles = cut(section, ORIGINS, noise=0.0)
    stitched = stitch_section(tiles, STAGE)
    offset = stitched.positions.mean(axis=0) - ORIGINS.mean(axis=0)
    image, mask = render_section(tiles, stitched, tuple(offset + 20.0), (340, 340))
    assert mask.all()
    difference = image.astype(float) - section[20:360, 20:360]
    assert np.sqrt((difference**2).mean()) < 3.0


def test_a_transform_is_applied_while_drawing_so_pixels_are_interpolated_once(section):
    tiles = cut(section, ORIGINS, noise=0.0)
    stitched = stitch_section(tiles, STAGE)
    turn = np.array([[0.9998, -0.02, 4.0], [0.02, 0.9998, -3.0]])
    straight, _ = render_section(tiles, stitched, (0.0, 0.0), (400, 400))
    turned, _ = render_section(tiles, stitched, (60.0, 60.0), (200, 200), from_canvas=turn)
    expected = resample(straight, compose(turn, translation((60.0, 60.0))), (200, 200))
    assert np.abs(turned.astype(float) - expected).mean() < 1.0
    shift = np.zeros((2, 200, 200), np.float32)
    shift[0] += 7
    moved, _ = render_section(tiles, stitched, (60.0, 60.0), (200, 200), displacement=shift)
    plain, _ = render_section(tiles, stitched, (67.0, 60.0), (200, 200))
    assert np.abs(moved.astype(float) - plain).mean() < 0.2


def test_a_section_drawn_in_blocks_is_the_section_drawn_whole(section):
    tiles = cut(section, ORIGINS)
    stitched = stitch_section(tiles, STAGE)
    turn = np.array([[0.999, -0.01, 2.0], [0.01, 1.001, -1.0]])
    bend = np.fromfunction(lambda c, y, x: 2 * np.sin((y + 2 * x + 40 * c) / 70), (2, 300, 320)).astype(np.float32)
    for displacement in (None, bend):
        whole, mask = render_section(
            tiles, stitched, (20.0, 22.0), (300, 320), from_canvas=turn, displacement=displacement
        )
        for y, x in ((0, 0), (0, 160), (150, 0), (150, 160)):
            cell = (slice(y, y + 150), slice(x, x + 160))
            piece, seen = render_section(
                tiles, stitched, (20.0 + y, 22.0 + x), (150, 160), from_canvas=turn,
                displacement=None if displacement is None else displacement[:, *cell],
            )  # fmt: skip
            assert np.array_equal(seen, mask[cell])
            # OpenCV rounds positions to 1/32 pixel, from another first pixel in another place.
            assert np.abs(piece.astype(int) - whole[cell]).max() <= 4
            assert np.abs(piece.astype(int) - whole[cell]).mean() < 0.5


def test_the_rim_of_a_large_tile_still_shows(section):
    tile = np.tile(section, (3, 3))
    single = Stitched(np.zeros((1, 2)), (), np.ones(1), np.zeros(2), connected=True)
    image, mask = render_section([tile], single, (0.0, 0.0), tile.shape)
    assert mask.all()
    assert np.abs(image.astype(int) - tile).max() <= 1


def test_what_no_tile_saw_is_zero_and_counted(section):
    tiles = cut(section, ORIGINS[:1])
    stitched = stitch_section(tiles, STAGE[:1])
    image, mask = render_section(tiles, stitched, (10.0, 10.0), (200, 400))
    assert coverage(mask) == pytest.approx(0.5, abs=0.01)
    assert image[:, 300:].max() == 0
    assert np.isnan(stitched.residual_p95)


def test_an_affine_and_its_inverse_cancel():
    affine = np.array([[1.01, 0.2, 5.0], [-0.1, 0.97, -2.0]])
    assert np.allclose(compose(invert(affine), affine), identity())
    points = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert np.allclose(apply(invert(affine), apply(affine, points)), points)


@pytest.mark.data
def test_real_camera_tiles_agree_with_the_published_montage_on_every_seam(test_data):
    folder = test_data / "fafb_tiles"
    with (folder / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    tiles = [cv2.imread(str(folder / row["file"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    stage = np.array([[float(row["stage_y_px"]), float(row["stage_x_px"])] for row in rows])
    keys = (("ref_d", "ref_c", "ref_ty"), ("ref_b", "ref_a", "ref_tx"))
    reference = [np.array([[float(row[key]) for key in line] for line in keys]) for row in rows]
    params = StitchParams(search=120, stage_sigma=40, seam_sigma=0.5, padding=8, feather=64)
    stitched = stitch_section(tiles, stage, params)
    assert len(stitched.seams) == 12
    assert all(seam.kept for seam in stitched.seams)
    errors = []
    for seam in stitched.seams:
        offset = stitched.positions[seam.b] - stitched.positions[seam.a]
        shape = np.array(tiles[seam.a].shape)
        middle = (np.maximum(0, offset) + np.minimum(shape, offset + shape)) / 2
        in_b = apply(invert(reference[seam.b]), apply(reference[seam.a], middle))
        errors.append(float(np.linalg.norm(middle - offset - in_b)))
    assert np.median(errors) < 1
    assert max(errors) < 3
