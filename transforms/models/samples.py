"""What a network is shown while it learns: crops of volumes with their truth, changed as microscopes change them.

A source answers `batch(step)`, and the answer depends on the source's settings and on `step` alone: a training that was
killed continues with exactly the crops that it would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from transforms.models import targets
from transforms.synthetic.contacts import Synapses
from transforms.synthetic.neuropil import Neuropil, neuropil

U8 = NDArray[np.uint8]
Kind = Literal["affinity", "synapse"]
FIRST_TRAINING_SEED = 1000  # smaller seeds are for demonstration and scoring


@dataclass(frozen=True, slots=True)
class Batch:
    """Some crops and what to say about them.

    Parameters
    ----------
    em : (n, z, y, x) uint8
    wanted, known : (n, c, z, y, x) bool
        The answer, and where there is one.
    """

    em: U8
    wanted: NDArray[np.bool_]
    known: NDArray[np.bool_]


class Source(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> Batch:
        """Crops for `step`; the same every time it is asked."""
        ...


@dataclass(frozen=True, slots=True)
class Crops:
    """How crops are taken.

    Parameters
    ----------
    kind : "affinity" or "synapse"
    shape : (z, y, x) int
    number : int
        Crops in a batch.
    seed : int
    offsets : tuple of zyx
        For affinities: which to ask for, the three nearest first.
    isotropic : bool
        Whether z may be exchanged with y and x.
    strength : float
        How strongly grey values are changed; 1 is usual, 0 not at all.
    """

    kind: Kind
    shape: Zyx
    number: int
    seed: int
    offsets: tuple[Zyx, ...] = targets.NEAREST + targets.FAR
    isotropic: bool = False
    strength: float = 1.0

    def take(self, sample: Neuropil, rng: np.random.Generator) -> tuple[U8, NDArray[np.bool_], NDArray[np.bool_]]:
        """One crop of `sample`, turned and changed at random, with wanted and known."""
        shape, turn = self._turn(rng)
        start = self._start(sample, shape, rng)
        window = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        em, labels = sample.image[window], sample.labels[window]
        if self.kind == "affinity":
            wanted, known = targets.affinities(np.ascontiguousarray(turn(labels)), self.offsets)
        else:
            pairs = ((sample.synapses.pre, sample.synapses.pre_id), (sample.synapses.post, sample.synapses.post_id))
            wanted = np.stack([turn(targets.sites(labels, points, owners, start)) for points, owners in pairs])
            known = np.ones_like(wanted)
        return change(np.ascontiguousarray(turn(em)), rng, self.strength), wanted, known

    def _turn(self, rng: np.random.Generator) -> tuple[Zyx, Callable[[NDArray[Any]], NDArray[Any]]]:
        """Random mirroring and exchange of axes, with the shape that becomes a crop by it."""
        flips = tuple(slice(None, None, int(s)) for s in rng.choice([-1, 1], 3))
        order = rng.permutation(3).tolist() if self.isotropic else ([0, 1, 2], [0, 2, 1])[int(rng.integers(2))]
        z, y, x = (self.shape[order.index(axis)] for axis in range(3))
        return (z, y, x), lambda array: array[flips].transpose(order)

    def _start(self, sample: Neuropil, shape: Zyx, rng: np.random.Generator) -> Zyx:
        room = np.array(sample.image.shape) - np.array(shape)
        if (room < 0).any():
            raise BadInput(
                f"crops of {shape} do not fit into a volume of {sample.image.shape}", fix="take smaller crops"
            )
        start = rng.integers(0, room + 1)
        if self.kind == "synapse" and len(sample.synapses) and rng.random() < 0.8:
            centre = sample.synapses.centre[rng.integers(len(sample.synapses))]
            start = np.clip(centre - rng.integers(shape), 0, room)
        z, y, x = start.tolist()
        return z, y, x

    def gather(self, step: int, choose: Callable[[np.random.Generator], Neuropil]) -> Batch:
        """The batch of `step`, each crop from the volume that `choose` gives."""
        taken = []
        for index in range(self.number):
            rng = np.random.default_rng([self.seed, step, index])
            taken.append(self.take(choose(rng), rng))
        em, wanted, known = zip(*taken, strict=True)
        return Batch(np.stack(em), np.stack(wanted), np.stack(known))


@dataclass(slots=True)
class SyntheticSource:
    """Batches from ever new synthetic volumes: `window` are in use at a time, one is replaced every `renew` steps.

    Parameters
    ----------
    crops : Crops
    first_seed : int
        Seeds from here on; at least 1000.
    shape : (z, y, x) int
        Of each volume.
    odd_share : float
        Share of the volumes' area that is stained oddly: 0 for a model that never saw it.
    """

    crops: Crops
    first_seed: int
    shape: Zyx = (40, 288, 288)
    odd_share: float = 0.0
    window: int = 3
    renew: int = 16
    _held: dict[int, Neuropil] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.first_seed < FIRST_TRAINING_SEED:
            raise BadInput(
                f"training seed {self.first_seed} is among those kept for scoring",
                fix=f"train on seeds from {FIRST_TRAINING_SEED} on",
            )

    def batch(self, step: int) -> Batch:
        """Crops of `step`, from the volumes whose turn it is."""
        first = step // self.renew
        for number in [n for n in self._held if n < first]:
            del self._held[number]
        return self.crops.gather(step, lambda rng: self._volume(first + int(rng.integers(self.window))))

    def _volume(self, number: int) -> Neuropil:
        if number not in self._held:
            seed = self.first_seed + number
            self._held[number] = neuropil(seed, self.shape, odd_box=self._odd(seed))
        return self._held[number]

    def _odd(self, seed: int) -> Box | None:
        if not self.odd_share:
            return None
        _, height, width = self.shape
        side_y, side_x = (round(n * self.odd_share**0.5) for n in (height, width))
        rng = np.random.default_rng([seed, 4])
        y, x = int(rng.integers(0, height - side_y + 1)), int(rng.integers(0, width - side_x + 1))
        return Box((0, y, x), (self.shape[0], y + side_y, x + side_x))


@dataclass(slots=True)
class ArraySource:
    """Batches from one given volume; who calls keeps the part that is for scoring out of it.

    Parameters
    ----------
    crops : Crops
        Of kind "affinity".
    em : (z, y, x) uint8
    labels : (z, y, x) integer
        0 where unknown or membrane.
    carve : bool
        Whether to put a membrane, a voxel on either side, where two labels touch.
    """

    crops: Crops
    em: U8
    labels: NDArray[np.integer]
    carve: bool = True
    _sample: Neuropil = field(init=False)

    def __post_init__(self) -> None:
        if self.crops.kind != "affinity" or self.em.shape != self.labels.shape:
            raise BadInput(
                f"{self.crops.kind} training on em {self.em.shape} with labels {self.labels.shape}",
                fix="give labels of the image's shape, and train affinities",
            )
        labels = with_membranes(self.labels) if self.carve else self.labels.astype(np.uint32)
        points, ids = np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
        self._sample = Neuropil(self.em, labels, Synapses(points, points, points, ids, ids), None, (1, 1, 1), 0)

    def batch(self, step: int) -> Batch:
        """Crops of `step`."""
        return self.crops.gather(step, lambda _: self._sample)


def with_membranes(labels: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Set voxels that touch another label to 0: truth in which neurites touch says nothing about membranes."""
    carved = labels.astype(np.uint32)
    for axis in range(3):
        here, there = (np.moveaxis(labels, axis, 0)[cut] for cut in (slice(None, -1), slice(1, None)))
        differs = here != there
        moved = np.moveaxis(carved, axis, 0)
        moved[:-1][differs] = 0
        moved[1:][differs] = 0
    return carved


def change(em: U8, rng: np.random.Generator, strength: float = 1.0) -> U8:
    """Change grey values as acquisition and alignment do: contrast, drift, blur, noise, a section moved by a pixel.

    The changes leave darker and brighter what they are: which stain it is stays visible.
    """
    import cv2

    if strength == 0:
        return em
    image = em.astype(np.float32)
    for z in range(len(image)):
        plane = image[z]
        if rng.random() < 0.25 * strength:
            shift = rng.uniform(-1, 1, 2)
            matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
            plane = cv2.warpAffine(plane, matrix, plane.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        image[z] = plane + np.float32(rng.normal(0, 4 * strength))
    blur = rng.uniform(0, 0.9 * strength)
    if blur > 0.35:
        for z in range(len(image)):
            image[z] = cv2.GaussianBlur(image[z], (0, 0), blur)
    gain, offset = np.exp(rng.normal(0, 0.12 * strength)), rng.normal(0, 10 * strength)
    image = (image - 128) * np.float32(gain) + np.float32(128 + offset)
    noise = rng.uniform(0, 9 * strength)
    image += np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
