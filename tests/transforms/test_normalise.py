import numpy as np
import pytest

from transforms.kernels.normalise import GreyLevels, NormaliseParams, grey_levels, normalise_section


@pytest.fixture
def tissue():
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(130, 30, (120, 140)), 0, 255)


def exposed(tissue, gain, offset):
    return np.clip(np.rint((tissue - 128) * gain + 128 + offset), 0, 255).astype(np.uint8)


def test_sections_exposed_differently_come_to_one_grey_scale(tissue):
    mask = np.ones(tissue.shape, bool)
    results = []
    for gain, offset in ((1.0, 0.0), (0.6, 25.0), (0.8, -30.0)):
        image = exposed(tissue, gain, offset)
        results.append(normalise_section(image, mask, grey_levels(image, mask)).astype(float))
    for result in results[1:]:
        assert result.mean() == pytest.approx(results[0].mean(), abs=1.5)
        assert result.std() == pytest.approx(results[0].std(), rel=0.03)


def test_the_chosen_levels_end_at_the_chosen_greys(tissue):
    mask = np.ones(tissue.shape, bool)
    params = NormaliseParams(low_percentile=10, high_percentile=90, low=80, high=170)
    image = exposed(tissue, 0.7, 10)
    even = normalise_section(image, mask, grey_levels(image, mask, params), params)
    assert np.percentile(even, 10) == pytest.approx(80, abs=1)
    assert np.percentile(even, 90) == pytest.approx(170, abs=1)


def test_a_region_stained_differently_stays_as_different_as_it_is(tissue):
    mask = np.ones(tissue.shape, bool)
    stained = tissue.copy()
    stained[30:80, 30:80] = (stained[30:80, 30:80] - 130) * 0.5 + 95
    image = exposed(stained, 0.8, 12)
    even = normalise_section(image, mask, grey_levels(image, mask)).astype(float)
    inside, outside = even[30:80, 30:80], even[90:]
    assert inside.std() / outside.std() == pytest.approx(0.5, abs=0.05)
    assert inside.mean() - outside.mean() < -25


def test_what_was_not_seen_is_zero_and_counts_for_nothing(tissue):
    mask = np.ones(tissue.shape, bool)
    mask[:, 100:] = False
    image = exposed(tissue, 1, 0)
    seen_only = grey_levels(image[:, :100], mask[:, :100])
    image[~mask] = 0
    assert grey_levels(image, mask) == seen_only
    even = normalise_section(image, mask, seen_only)
    assert even[:, 100:].max() == 0
    assert even[:, :100].min() >= 1


def test_a_blank_section_is_not_stretched_into_noise():
    rng = np.random.default_rng(1)
    image = (128 + rng.integers(-1, 2, (50, 50))).astype(np.uint8)
    mask = np.ones(image.shape, bool)
    even = normalise_section(image, mask, grey_levels(image, mask))
    assert np.ptp(even) <= 2
    assert grey_levels(image, np.zeros_like(mask)) == GreyLevels(0.0, 0.0, 0.0, 0.0)
