import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

from transforms.kernels.align import AlignParams, Picture, Placement, SectionMatch, match_sections, pairs, solve_stack
from transforms.kernels.geometry import apply, identity, invert, resample, translation
from transforms.kernels.normalise import grey_levels, normalise_section
from transforms.kernels.render import render_section
from transforms.kernels.stitch import Stitched, stitch_section
from transforms.synthetic.acquisition import Microscope, acquire

SMALL = AlignParams(window=48, stride=32, search=16)


def texture(shape, seed=0, z=1.5):
    sigma = (z, 2.5, 2.5)[-len(shape) :]
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape).astype(np.float32), sigma)
    return np.clip(130 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def picture(image, shift=(0.0, 0.0), origin=(0.0, 0.0)):
    moved = np.asarray(resample(image, translation(-np.array(shift)), image.shape, outside="mirror"))
    return Picture(moved, np.ones(image.shape, bool), origin)


@pytest.fixture(scope="module")
def plane():
    return texture((220, 240))


def test_a_shift_between_sections_is_found_to_a_tenth_of_a_pixel(plane):
    match = match_sections(picture(plane), picture(plane, (6.4, -9.7)), SMALL)
    assert match.kept.all()
    assert (match.found - match.points)[match.kept].mean(axis=0) == pytest.approx([6.4, -9.7], abs=0.1)
    assert match.median_ncc > 0.95


def test_origins_of_the_two_montages_are_taken_into_account(plane):
    # The second montage begins 20 pixels lower, and shows the same places there.
    second = Picture(plane[20:, 7:], np.ones((200, 233), bool), (20.0, 7.0))
    match = match_sections(picture(plane), second, SMALL)
    assert match.kept.sum() > 6
    assert np.abs(match.found - match.points)[match.kept].max() < 0.1


def test_a_turn_too_large_for_the_rough_shift_is_found_by_features():
    plane = texture((500, 520), seed=3)
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 160.0], [np.sin(angle), np.cos(angle), -70.0]])
    turned = Picture(np.asarray(resample(plane, invert(turn), plane.shape)), np.ones(plane.shape, bool))
    match = match_sections(picture(plane), turned, AlignParams(min_ncc=0.5))
    assert match.kept.sum() > 10
    expected = apply(turn, match.points[match.kept])
    assert np.median(np.linalg.norm(match.found[match.kept] - expected, axis=1)) < 0.5


def test_a_window_without_texture_or_with_other_tissue_is_not_kept(plane):
    image = plane.copy()
    image[:100, :110] = 128
    image[120:, 120:] = texture((100, 120), seed=9)
    match = match_sections(Picture(image, np.ones(image.shape, bool)), picture(plane), SMALL)
    inside = (match.points < (70, 80)).all(axis=1)
    foreign = (match.points > (150, 150)).all(axis=1)
    assert inside.any()
    assert foreign.any()
    assert not match.kept[inside | foreign].any()
    assert match.kept.sum() >= 4
    assert 0 < match.confidence < 1


def test_windows_over_what_no_tile_saw_are_not_tried(plane):
    half = np.ones(plane.shape, bool)
    half[:, 120:] = False
    match = match_sections(Picture(plane, half), picture(plane), SMALL)
    assert match.points[:, 1].max() < 120


def placed(shifts, images, params):
    pictures = [picture(image, shift) for image, shift in zip(images, shifts, strict=True)]
    matches = {(i, j): match_sections(pictures[i], pictures[j], params) for i, j in pairs(len(images), params.reach)}
    return matches, solve_stack(len(images), matches, params)


def test_sections_are_brought_back_and_the_stage_holds_the_stack(plane):
    rng = np.random.default_rng(2)
    volume = texture((10, 160, 170), seed=4, z=2)
    shifts = rng.normal(0, 2.5, (10, 2))
    shifts -= shifts.mean(axis=0)
    _, placements = placed(shifts, volume, SMALL)
    moved = np.array([p.move(np.array([[80.0, 85.0]]))[0] - (80, 85) for p in placements]) + shifts
    assert np.abs(moved.mean(axis=0)).max() < 0.1
    assert np.median(np.linalg.norm(moved, axis=1)) < 0.6
    assert np.linalg.norm(np.diff(moved, axis=0), axis=1).max() < 0.5
    assert all(p.anchored and p.folds == 0 and p.residual < 1 for p in placements)


def test_a_lost_section_is_bridged_and_stays_where_the_stage_put_it():
    volume = texture((6, 160, 170), seed=4, z=3)
    volume[3] = 128
    shifts = np.zeros((6, 2))
    shifts[4:] = (5.0, -4.0)
    _, placements = placed(shifts, volume, SMALL)
    assert [p.anchored for p in placements] == [True, True, True, False, True, True]
    assert np.array_equal(placements[3].to_volume, identity())
    assert np.isnan(placements[3].residual)
    jump = placements[4].to_volume[:, 2] - placements[2].to_volume[:, 2]
    assert jump == pytest.approx([-5.0, 4.0], abs=0.6)


def test_how_far_leaning_neurites_are_straightened_is_set_by_the_trust_in_the_stage():
    # Every window moves on by half a pixel a section: tissue that leans, or a stage that creeps. Nothing in the
    # pictures tells which; matching alone would make all profiles stay put, and bend the tissue by 11 pixels.
    count = 24
    points = np.stack(np.meshgrid(np.arange(40.0, 160, 30), np.arange(40.0, 160, 30)), axis=-1).reshape(-1, 2)
    lean = SectionMatch(points, points + np.array([0.5, 0.0]), np.ones(len(points)), np.ones(len(points), bool), 1.0)
    bent = []
    for stage_sigma in (200.0, 2.5, 0.5):
        placements = solve_stack(count, dict.fromkeys(pairs(count, 1), lean), AlignParams(stage_sigma=stage_sigma))
        bent.append(np.ptp([p.to_volume[0, 2] for p in placements]))
    assert bent[0] > 11
    assert bent[1] < 0.65 * bent[0]
    assert bent[2] < 0.15 * bent[0]


def test_a_pair_whose_windows_agree_by_chance_ties_nothing():
    points = np.stack(np.meshgrid(np.arange(0.0, 400, 40), np.arange(0.0, 400, 40)), axis=-1).reshape(-1, 2)
    kept = np.zeros(100, bool)
    kept[:8] = True
    chance = SectionMatch(points, points + np.array([6.0, 6.0]), np.full(100, 0.35), kept, 0.1)
    placements = solve_stack(2, {(0, 1): chance})
    assert not any(p.anchored for p in placements)
    assert np.array_equal(placements[1].to_volume, identity())


def test_local_stretch_is_followed_by_the_grid_and_undone_by_drawing():
    plane = texture((300, 300), seed=8)
    y = np.arange(300, dtype=np.float32)
    bump = (2.5 * np.exp(-(((y[:, None] - 150) / 60) ** 2) - (((y[None, :] - 150) / 60) ** 2))).astype(np.float32)
    field = np.stack([bump, -bump])
    warped = np.asarray(resample(plane, identity(), (300, 300), outside="mirror", displacement=-field))
    flat = Picture(plane, np.ones((300, 300), bool))
    bent = Picture(warped, np.ones((300, 300), bool))
    params = AlignParams(
        window=40, stride=24, nodes=7, elastic_sigma=2.0, stage_sigma=0.1, window_sigma=0.3, pair_sigma=0.02
    )
    # Many straight neighbours hold the frame, so that the bent one is what moves.
    matches = {(i, j): match_sections(*((bent if k == 2 else flat) for k in (i, j)), params) for i, j in pairs(5, 2)}
    placement = solve_stack(5, matches, params)[2]
    at = np.array([[150.0, 150.0]])
    assert placement.move(at + np.array([2.5, -2.5]))[0] == pytest.approx([150, 150], abs=0.8)
    assert placement.folds == 0
    tiles = Stitched(np.zeros((1, 2)), (), np.ones(1), np.zeros(2), connected=True)
    middle = (100.0, 100.0)
    straight, _ = render_section([warped], tiles, middle, (100, 100))
    drawn, _ = render_section(
        [warped], tiles, middle, (100, 100),
        from_canvas=placement.from_volume, displacement=placement.displacement(middle, (100, 100)),
    )  # fmt: skip
    truth = plane[100:200, 100:200].astype(float)
    assert np.abs(drawn - truth).mean() < 0.4 * np.abs(straight - truth).mean()


def test_a_grid_that_turns_over_is_counted():
    grid = np.zeros((2, 4, 4))
    grid[0, 1, 1] = 90.0
    from transforms.kernels.placement import folds_of

    assert folds_of(identity(), grid, (0.0, 0.0, 90.0, 90.0)) > 0
    assert folds_of(identity(), grid * 0.01, (0.0, 0.0, 90.0, 90.0)) == 0
    assert folds_of(np.array([[-1.0, 0, 0], [0, 1, 0]]), np.zeros((2, 0, 0)), (0.0, 0.0, 1.0, 1.0)) == 1


def test_what_is_carried_between_stages_survives_the_journey(plane):
    match = match_sections(picture(plane), picture(plane, (1.5, 2.0)), SMALL)
    again = SectionMatch.from_table(match.table())
    assert np.array_equal(again.points, match.points)
    assert np.array_equal(again.kept, match.kept)
    for nodes in (0, 3):
        (placement, _) = solve_stack(2, {(0, 1): match}, replace(SMALL, nodes=nodes))
        back = Placement.from_json(json.loads(json.dumps(placement.to_json())))
        assert back.to_json() == placement.to_json()
        assert np.array_equal(back.move(match.points), placement.move(match.points))


def reconstruct(acquisition):
    """Stitch, align and normalise all sections; give the volume, and where truth points end."""
    height, width = acquisition.section_shape
    canvas = ((-16.0, -16.0), (height + 32, width + 32))
    count = len(acquisition.drift)
    stitched, tiles, pictures, errors = [], [], [], []
    for section in range(count):
        mine = [t for t in acquisition.tiles if t.section == section and t.kind == "good"]
        mine.sort(key=lambda t: t.tile)
        tiles.append([cv2.imread(str(acquisition.folder / t.file), cv2.IMREAD_GRAYSCALE) for t in mine])
        stitched.append(stitch_section(tiles[-1], np.array([t.stage_yx for t in mine])))
        errors.append((stitched[-1].positions - [t.origin_yx for t in mine]).mean(axis=0))
        image, mask = render_section(tiles[-1], stitched[-1], *canvas)
        pictures.append(Picture(image, mask, canvas[0]))
    params = AlignParams()
    matches = {(i, j): match_sections(pictures[i], pictures[j], params) for i, j in pairs(count, params.reach)}
    placements = solve_stack(count, matches, params)
    grid = np.stack(np.meshgrid(np.linspace(10, height - 10, 6), np.linspace(10, width - 10, 6)), -1).reshape(-1, 2)
    volume = np.zeros((count, height, width), np.uint8)
    ends = []
    for section, placement in enumerate(placements):
        ends.append(placement.move(apply(acquisition.drift[section], grid) + errors[section]) - grid)
        image, mask = render_section(
            tiles[section], stitched[section], (0.0, 0.0), (height, width), from_canvas=placement.from_volume
        )
        assert mask.all()
        volume[section] = normalise_section(image, mask, grey_levels(image, mask))
    return volume, np.array(ends)


def test_tiles_of_a_stack_with_known_truth_end_within_a_pixel_of_it(tmp_path):
    volume = texture((10, 230, 240), seed=11, z=2)
    rebuilt, ends = reconstruct(acquire(volume, tmp_path, 5, microscope=Microscope(jitter=2.0)))
    assert np.median(np.linalg.norm(ends, axis=-1)) < 1
    assert np.abs(ends.mean(axis=(0, 1))).max() < 0.5
    assert np.median([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(rebuilt, volume, strict=True)]) > 0.9


@pytest.mark.slow
def test_neurites_of_a_deep_stack_are_not_straightened(tmp_path):
    from transforms.synthetic.neuropil import neuropil

    sample = neuropil(5, (48, 320, 320))
    rebuilt, ends = reconstruct(acquire(sample.image, tmp_path, 5))
    middle = ends.mean(axis=1)
    assert np.median(np.linalg.norm(ends, axis=-1)) < 1
    # From one section to the next the error hardly changes: smooth neurites stay smooth.
    assert np.linalg.norm(np.diff(middle, axis=0), axis=1).mean() < 0.25
    assert np.abs(middle.mean(axis=0)).max() < 0.3
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(rebuilt, sample.image, strict=True)]
    assert np.median(alike) > 0.93
    # One grey scale, and the odd region still as odd: its texture against that of the rest, before and after.
    own = np.ptp([plane.mean() for plane in sample.image])
    assert np.ptp([plane.mean() for plane in rebuilt]) < 0.4 * own
    odd, rest = np.zeros(sample.image.shape, bool), np.ones(sample.image.shape, bool)
    odd[sample.odd_box.slices], rest[sample.odd_box.slices] = True, False
    contrast = [volume[odd].std() / volume[rest].std() for volume in (sample.image, rebuilt)]
    shade = [float(volume[odd].mean()) - float(volume[rest].mean()) for volume in (sample.image, rebuilt)]
    assert contrast[1] == pytest.approx(contrast[0], rel=0.15)
    assert shade[1] == pytest.approx(shade[0], rel=0.15)


@pytest.mark.data
def test_real_sections_that_were_moved_are_moved_back(test_data):
    # Serial sections 50 nm apart with real distortions: only the neighbour itself looks alike.
    files = sorted((test_data / "vnc_sstem" / "raw").iterdir())[:5]
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in files]
    params = AlignParams(reach=1, fine=16, stage_sigma=20.0, linear_sigma=4.0)
    shifts = np.array([[0, 0], [7, -5], [-3, 8], [4, 4], [-6, -2]], float)
    _, still = placed(np.zeros((5, 2)), images, params)
    _, moved = placed(shifts, images, params)
    middle = np.array([[512.0, 512.0]])
    error = np.array([m.move(middle + d)[0] - s.move(middle)[0] for m, s, d in zip(moved, still, shifts, strict=True)])
    assert all(p.anchored for p in moved)
    assert np.abs(error - error.mean(axis=0)).max() < 1
