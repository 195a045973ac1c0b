"""Synthetic neuropil: an electron-microscopy image whose neurites, synapses and odd region are known.

>>> from transforms.synthetic.neuropil import neuropil
>>> sample = neuropil(7, shape_zyx=(16, 96, 96))
>>> sample.image.shape, sample.image.dtype
((16, 96, 96), dtype('uint8'))

Neurites are tubes of varying calibre that branch and wander and fill space; walls between them are dark where they are
cut across and grey where they are cut along. Synapses are drawn with a T-bar and vesicles on one side and a density on
the other. One region may be stained differently, through the whole depth, as happens in real samples.

Decisions: the same seed gives the same arrays, byte for byte, on one kind of machine with the same libraries. Truth is
0 on membranes, as in ground truth made by people; measures leave 0 out. Seeds below 100 are for demonstration and
scoring, seeds from 1000 on are for training.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from transforms.synthetic.anatomy import build
from transforms.synthetic.contacts import Synapses, place
from transforms.synthetic.render import draw

ODD_SIDE = 0.4  # of the volume's y and x
VOXEL_NM: Zyx = (16, 8, 8)


@dataclass(frozen=True, slots=True)
class Neuropil:
    """One synthetic sample with its truth.

    Parameters
    ----------
    image : (z, y, x) uint8
    labels : (z, y, x) uint32
        Neurites numbered from 1, each connected; 0 on membranes.
    synapses : Synapses
        Points in voxels and the labels of the partners.
    odd_box : Box or None
        The part that is stained differently: full depth, 40 % of y and x.
    voxel_nm : (z, y, x) int
    seed : int
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    synapses: Synapses
    odd_box: Box | None
    voxel_nm: Zyx
    seed: int


def odd_box_of(seed: int, shape_zyx: Zyx) -> Box:
    """Give the box that `neuropil` stains differently unless told otherwise."""
    depth, height, width = shape_zyx
    side_y, side_x = round(ODD_SIDE * height), round(ODD_SIDE * width)
    rng = np.random.default_rng([seed, 3])
    y, x = int(rng.integers(0, height - side_y + 1)), int(rng.integers(0, width - side_x + 1))
    return Box((0, y, x), (depth, y + side_y, x + side_x))


def neuropil(
    seed: int,
    shape_zyx: Zyx = (64, 512, 512),
    voxel_nm: Zyx = VOXEL_NM,
    odd_box: Box | Literal["seed"] | None = "seed",
) -> Neuropil:
    """Make the sample of `seed`; 16.8 million voxels take about 20 s of one core and 1 GB.

    Parameters
    ----------
    seed : int
        Everything follows from it.
    shape_zyx : (z, y, x) int
        At least 4 x 32 x 32.
    voxel_nm : (z, y, x) int
        Recorded, and decides how near two synapses may be across sections; the drawing is that of 16 x 8 x 8 nm.
    odd_box : Box, "seed" or None
        Where the odd stain holds: a box (its z extent is taken as the whole depth), the seed's own choice, or nowhere.
    """
    if seed < 0 or min(shape_zyx[0] - 4, shape_zyx[1] - 32, shape_zyx[2] - 32) < 0:
        raise BadInput(
            f"neuropil cannot be made from seed {seed} with shape {shape_zyx}",
            fix="give a seed from 0 on and at least 4 x 32 x 32 voxels",
        )
    odd = odd_box_of(seed, shape_zyx) if odd_box == "seed" else odd_box
    if odd is not None:
        odd = Box((0, *odd.start[1:]), (shape_zyx[0], *odd.stop[1:])).clip(Box((0, 0, 0), shape_zyx))
        odd = odd if odd.voxels else None
    anatomy = build(shape_zyx, np.random.default_rng([seed, 0]))
    synapses = place(anatomy, voxel_nm[0] / voxel_nm[1], np.random.default_rng([seed, 1]))
    image = draw(anatomy, synapses, odd, np.random.default_rng([seed, 2]))
    return Neuropil(image, anatomy.labels.astype(np.uint32), synapses, odd, voxel_nm, seed)
