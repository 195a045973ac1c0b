"""Sections get one grey scale: two robust levels of each are brought to two fixed ones.

One section::

    levels = grey_levels(image, mask)
    even = normalise_section(image, mask, levels)

The map is one straight line over the whole section. A local correction would even out what the microscope did not do:
tissue that took the stain differently is content, and must stay as different as it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.correlate import Mask


@dataclass(frozen=True, slots=True)
class NormaliseParams:
    """Which levels go where.

    Parameters
    ----------
    low_percentile, high_percentile : float
        The section's levels: dark membrane and bright cytoplasm, well inside the tails that noise makes.
    low, high : float
        Grey values that they become.
    min_range : float
        Sections whose levels are closer are blank, and are only shifted.
    """

    low_percentile: float = 5.0
    high_percentile: float = 95.0
    low: float = 60.0
    high: float = 188.0
    min_range: float = 8.0


@dataclass(frozen=True, slots=True)
class GreyLevels:
    """A section's grey scale: the two levels, and mean and standard deviation for the record."""

    low: float
    high: float
    mean: float
    std: float


def grey_levels(image: NDArray[np.uint8], mask: Mask, params: NormaliseParams | None = None) -> GreyLevels:
    """Measure the section where it was seen.

    Percentiles are interpolated inside a grey value's bin: whole grey values would make sections flicker by one.
    """
    params = params or NormaliseParams()
    counts = np.bincount(image[mask], minlength=256).astype(np.float64)
    total = counts.sum()
    if total == 0:
        return GreyLevels(0.0, 0.0, 0.0, 0.0)
    share = np.concatenate([[0.0], np.cumsum(counts) / total])
    edges = np.arange(257) - 0.5
    low, high = np.interp([params.low_percentile / 100, params.high_percentile / 100], share, edges)
    values = np.arange(256)
    mean = float((counts * values).sum() / total)
    return GreyLevels(float(low), float(high), mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / total)))


def normalise_section(
    image: NDArray[np.uint8], mask: Mask, levels: GreyLevels, params: NormaliseParams | None = None
) -> NDArray[np.uint8]:
    """Map the section's levels to the fixed ones by a straight line; 0 where it was not seen.

    What was seen becomes 1 to 255, so that 0 goes on meaning "not seen".
    """
    params = params or NormaliseParams()
    span = levels.high - levels.low
    gain = (params.high - params.low) / span if span >= params.min_range else 1.0
    table = params.low + (np.arange(256) - levels.low) * gain
    table = np.clip(np.rint(table), 1, 255).astype(np.uint8)
    out: NDArray[np.uint8] = np.where(mask, table[image], np.uint8(0))
    return out
