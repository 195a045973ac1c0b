"""Draw anatomy as an electron microscope would see it, under one stain or under two."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lake.box import Box
from transforms.synthetic.anatomy import Anatomy, smooth_noise, walls
from transforms.synthetic.contacts import Synapses

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stain:
    """Grey levels of one staining; depths are subtracted where the structure is.

    Parameters
    ----------
    cytoplasm : float
        Grey level of a typical neurite's inside.
    membrane, faint : float
        Darkness of the membranes, and how much of it they lose in places, 1 being usual.
    mitochondrion, rim, cristae : float
        Darkness of its matrix, its outline, its inner folds.
    vesicle, density : float
        Darkness of vesicles and of synaptic densities.
    texture : float
        Standard deviation of the granules of the cytoplasm.
    reticulum : float
        Darkness of the sheets of endoplasmic reticulum that run through the cytoplasm.
    tone : float
        How much neurites differ in brightness, 1 being usual.
    """

    cytoplasm: float
    membrane: float
    faint: float
    mitochondrion: float
    rim: float
    cristae: float
    vesicle: float
    density: float
    texture: float
    reticulum: float
    tone: float


USUAL = Stain(
    cytoplasm=172,
    membrane=112,
    faint=1,
    mitochondrion=42,
    rim=45,
    cristae=38,
    vesicle=48,
    density=145,
    texture=14,
    reticulum=0,
    tone=1,
)
# Here the stain also went into the reticulum, which is as dark as membranes are elsewhere; membranes are black. What
# never saw this takes the one for the other and cuts neurites apart.
ODD = Stain(
    cytoplasm=150,
    membrane=150,
    faint=0.3,
    mitochondrion=40,
    rim=45,
    cristae=30,
    vesicle=35,
    density=150,
    texture=15,
    reticulum=112,
    tone=0.5,
)


@dataclass(slots=True)
class _Layers:
    """What a section shows, each (y, x) float32; all but `tone` and `texture`, which are signed, in [0, 1]."""

    wall: F32
    faint: F32
    mitochondrion: F32
    rim: F32
    cristae: F32
    vesicle: F32
    density: F32
    tone: F32
    texture: F32
    reticulum: F32

    def crop(self, window: tuple[slice, slice]) -> "_Layers":
        return _Layers(*(getattr(self, name)[window] for name in _Layers.__slots__))


def _paint(layers: _Layers, stain: Stain) -> F32:
    image = stain.cytoplasm + stain.tone * layers.tone + stain.texture * layers.texture
    dark = stain.mitochondrion * layers.mitochondrion + stain.rim * layers.rim + stain.cristae * layers.cristae
    dark += stain.vesicle * layers.vesicle
    if stain.reticulum:
        np.maximum(dark, stain.reticulum * layers.reticulum, out=dark)
    np.maximum(dark, stain.membrane * (layers.faint**stain.faint * layers.wall), out=dark)
    np.maximum(dark, stain.density * layers.density, out=dark)
    image -= dark
    return image


def draw(anatomy: Anatomy, synapses: Synapses, odd: Box | None, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Grey image of the whole volume, one section at a time.

    Parameters
    ----------
    odd : Box or None
        Where the `ODD` stain holds; its y and x edges are blended over a few pixels, its z extent is not looked at.
    """
    import cv2

    shape = anatomy.cells.shape
    scene = _Scene(anatomy, synapses, rng)
    image = np.empty(shape, np.uint8)
    share = _share(shape[1:], odd)
    for z in range(shape[0]):
        layers = scene.section(z)
        plane = _paint(layers, USUAL)
        if share is not None:
            ys, xs = np.flatnonzero(share.any(axis=1)), np.flatnonzero(share.any(axis=0))
            window = (slice(int(ys[0]), int(ys[-1]) + 1), slice(int(xs[0]), int(xs[-1]) + 1))
            plane[window] += share[window] * (_paint(layers.crop(window), ODD) - plane[window])
        plane = cv2.GaussianBlur(plane, (0, 0), 0.75)
        plane += np.float32(7) * rng.standard_normal(plane.shape, dtype=np.float32) + np.float32(rng.normal(0, 3))
        image[z] = np.clip(np.rint(plane), 0, 255)
    return image


def _share(size: tuple[int, ...], odd: Box | None) -> F32 | None:
    import cv2

    if odd is None:
        return None
    share = np.zeros(size, np.float32)
    share[odd.slices[1:]] = 1
    return np.asarray(cv2.GaussianBlur(share, (0, 0), 2.0), np.float32)


class _Scene:
    """All that is needed to draw any one section; sections are to be asked for in order."""

    def __init__(self, anatomy: Anatomy, synapses: Synapses, rng: np.random.Generator) -> None:
        self.anatomy = anatomy
        self.rng = rng
        shape = anatomy.cells.shape
        labels = int(anatomy.labels.max()) + 1
        cells = int(anatomy.cells.max()) + 1
        # One neurite in sixteen is dark all along, as glia and dying processes are.
        self.tone: F32 = rng.normal(0, 7, cells).astype(np.float32)
        self.tone[rng.random(cells) < 1 / 16] -= 45
        self.tone[rng.random(cells) < 1 / 16] += 20
        self.uneven = smooth_noise(shape, (24, 90), rng)
        self.faint = smooth_noise(shape, (12, 36), rng)
        self.bend = smooth_noise(shape, (8, 12), rng)
        # A stream of its own: the usual stain is the same whether or not anybody draws the other.
        self.sheets = smooth_noise(shape, (7, 13), rng.spawn(1)[0])
        self.stripe = rng.uniform(0, 2 * np.pi, int(anatomy.mitochondria.max()) + 1).astype(np.float32)
        self.grain: F32 | None = None
        self.before: NDArray[np.bool_] = np.zeros(shape[1:], bool)
        self.densities = _Densities(anatomy.labels, synapses)
        self.vesicles = _vesicles(anatomy, synapses, rng.random(labels) < 0.3, rng)

    def section(self, z: int) -> _Layers:
        """Layers of section `z`."""
        import cv2

        within, across = walls(self.anatomy.cells, z)
        distance = cv2.distanceTransform((~within).astype(np.uint8), cv2.DIST_L2, 5)
        oblique = (across | self.before).astype(np.float32)
        self.before = across
        faint = np.clip(0.85 + 0.14 * self.faint.section(z), 0.5, 1.0).astype(np.float32)
        wall = np.maximum(np.exp(-((distance / 1.9) ** 2)), 0.75 * cv2.GaussianBlur(oblique, (0, 0), 0.8))
        matrix, rim, cristae = self._mitochondria(z)
        # Sheets are where smooth noise changes its sign: thin, curved, and closed over several sections.
        sheet = np.exp(-((self.sheets.section(z) / 0.4) ** 2)) * np.clip(distance / 2 - 0.75, 0, 1) * (1 - matrix)
        tone = self.tone[self.anatomy.cells[z]] + 6 * self.uneven.section(z)
        vesicle = _draw_vesicles(self.vesicles, z, within.shape)
        return _Layers(
            wall,
            faint,
            matrix,
            rim,
            cristae,
            vesicle,
            self.densities.section(z, distance),
            tone,
            self._grain(within.shape),
            sheet,
        )

    def _grain(self, shape: tuple[int, ...]) -> F32:
        """Granules of about three pixels that last about two sections, unit variance."""
        import cv2

        fresh = cv2.GaussianBlur(self.rng.standard_normal(shape, dtype=np.float32), (0, 0), 1.3) * np.float32(4.6)
        self.grain = fresh if self.grain is None else np.float32(0.55) * self.grain + np.float32(0.835) * fresh
        return self.grain

    def _mitochondria(self, z: int) -> tuple[F32, F32, F32]:
        import cv2

        plane = self.anatomy.mitochondria[z]
        inside = (plane > 0).astype(np.uint8)
        if not inside.any():
            nothing = np.zeros(plane.shape, np.float32)
            return nothing, nothing, nothing
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
        matrix = np.clip(depth / 2, 0, 1).astype(np.float32)
        rim = np.where(depth > 0, np.exp(-(((depth - 1.5) / 1.2) ** 2)), 0).astype(np.float32)
        y, x = np.indices(plane.shape, dtype=np.float32, sparse=True)
        angle = self.stripe[plane]
        phase = (y * np.sin(angle) + x * np.cos(angle)) * np.float32(0.95) + 1.5 * self.bend.section(z)
        return matrix, rim, np.where(depth > 2, np.sin(phase), 0).astype(np.float32)


class _Densities:
    """The dark material of synapses: T-bar inside the presynaptic side, thick cleft, postsynaptic density."""

    def __init__(self, labels: NDArray[np.uint16], synapses: Synapses) -> None:
        self.labels = labels
        self.synapses = synapses

    def section(self, z: int, wall_distance: F32) -> F32:
        """Darkness in [0, 1] of section `z`."""
        image = np.zeros(wall_distance.shape, np.float32)
        near = np.flatnonzero(np.abs(self.synapses.centre[:, 0] - z) <= 5)
        for index in near.tolist():
            self._one(index, z, wall_distance, image)
        return image

    def _one(self, index: int, z: int, wall_distance: F32, image: F32) -> None:
        synapses = self.synapses
        cz, cy, cx = synapses.centre[index].tolist()
        window = tuple(slice(max(c - 18, 0), c + 19) for c in (cy, cx))
        y = np.arange(window[0].start, min(window[0].stop, image.shape[0]), dtype=np.float32)[:, None]
        x = np.arange(window[1].start, min(window[1].stop, image.shape[1]), dtype=np.float32)[None, :]
        depth = (z - cz) / 5.0
        disc = np.clip(2 * (1 - ((y - cy) ** 2 + (x - cx) ** 2) / 13.0**2 - depth**2), 0, 1)
        labels = self.labels[z][window]
        pre, post = labels == synapses.pre_id[index], labels == synapses.post_id[index]
        wall = wall_distance[window]
        dark = np.where(post, np.exp(-((wall / 5.5) ** 2)), 0) + np.where(pre, 0.4 * np.exp(-((wall / 2.5) ** 2)), 0)
        dark = np.where(labels == 0, np.exp(-((wall / 4.0) ** 2)), dark) * disc
        # The T-bar: a pedestal about 70 nm wide that stands on the membrane and reaches to its point.
        _, py, px = synapses.pre[index].tolist()
        bar = np.exp(-((((y - (0.15 * cy + 0.85 * py)) ** 2 + (x - (0.15 * cx + 0.85 * px)) ** 2) / 4.2**2) ** 1.5))
        dark = np.maximum(dark, np.where(pre | (labels == 0), bar * max(0.0, 1 - (depth * 1.25) ** 2), 0))
        np.maximum(image[window], dark, out=image[window])


def _vesicles(
    anatomy: Anatomy, synapses: Synapses, loaded: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Centres zyx of vesicles: a cloud behind each presynaptic point and a few in neurites that are `loaded`."""
    labels = anatomy.labels
    shape = np.array(labels.shape)
    number = rng.integers(30, 50, len(synapses))
    owner = np.repeat(np.arange(len(synapses)), number)
    inward = (synapses.pre - synapses.centre)[owner] * 2.0
    cloud = np.rint(synapses.centre[owner] + inward + rng.normal(size=(len(owner), 3)) * [2.5, 7, 7]).astype(np.int64)
    stray = rng.integers(0, shape, size=(labels.size // 3000, 3))
    wanted = np.concatenate([synapses.pre_id[owner], labels[tuple(stray.T)].astype(np.int64)])
    points = np.concatenate([cloud, stray])
    usable = np.concatenate([np.ones(len(cloud), bool), loaded[wanted[len(cloud) :]]]) & (wanted > 0)
    usable &= ((points >= [0, 4, 4]) & (points < shape - [0, 4, 4])).all(axis=1)
    points, wanted = points[usable], wanted[usable]
    clear = np.ones(len(points), bool)
    for step in ((0, 0, 0), (0, 4, 0), (0, -4, 0), (0, 0, 4), (0, 0, -4)):
        at = tuple((points + step).T)
        clear &= (labels[at] == wanted) & (anatomy.mitochondria[at] == 0)
    return points[clear]


def _draw_vesicles(points: NDArray[np.int64], z: int, shape: tuple[int, ...]) -> F32:
    """A vesicle is 40 nm across: a ring in its own section, a small disc in the two beside it."""
    import cv2

    y, x = np.mgrid[-4:5, -4:5].astype(np.float32)
    distance = np.hypot(y, x)
    ring = np.exp(-(((distance - 2.3) / 0.9) ** 2)) - 0.35 * np.exp(-((distance / 1.2) ** 2))
    disc = 0.6 * np.exp(-((distance / 1.7) ** 2))
    image = np.zeros(shape, np.float32)
    for kernel, sections in ((ring, (z,)), (disc, (z - 1, z + 1))):
        impulses = np.zeros(shape, np.float32)
        here = points[np.isin(points[:, 0], sections)]
        impulses[here[:, 1], here[:, 2]] = 1
        image += cv2.filter2D(impulses, -1, kernel.astype(np.float32))
    clipped: F32 = np.clip(image, -0.35, 1)
    return clipped
