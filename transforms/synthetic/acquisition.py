"""A microscope for volumes with known truth: cuts one into overlapping tiles on disk, with the faults of real days.

Geometry, one section (yx, pixels; the truth frame is that of the volume)::

    stage frame                    q = drift(p): a rotation and scaling below 0.3 %, and a shift, known per section
    +----------+----+-----------+
    |  tile 0  |both|  tile 1   |  a tile's pixel u lies at q = origin + u; the origin is known exactly here,
    +----------+----+-----------+  the microscope reports it as stage position with an error of some pixels
    |       both    |    both   |
    +----------+----+-----------+  drift and stage errors average to zero over the acquisition, so that stitching
    |  tile 2  |both|  tile 3   |  and alignment, anchored to the stage, end in the truth frame
    +----------+----+-----------+

Each frame has its own gain and offset, sections have a slow drift of brightness, the illumination falls off to the
corners, and the camera adds noise. Over the acquisition one frame was written twice, one file was cut short and one
frame was taken out of focus; the last two were noticed and taken again, later and well.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lake.errors import BadInput
from transforms.kernels.geometry import Affine, apply, identity, invert, resample

TileKind = Literal["good", "duplicated", "truncated", "blurred"]
COLUMNS = (
    "acquisition", "section", "tile", "file", "width", "height", "stage_x_nm", "stage_y_nm", "pixel_nm", "focus",
    "acquired", "instrument",
)  # fmt: skip
_START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_SECONDS_PER_TILE = 4
_RETAKE_AFTER = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Microscope:
    """How frames are taken. Lengths in pixels, brightness in grey levels of 255.

    Parameters
    ----------
    grid : (rows, columns)
        Tiles per section.
    overlap : float
        Share of a tile's edge that its neighbour sees too.
    border : int
        Pixels beyond the volume that a section's tiles cover together: more than `jitter` + drift, so that the whole
        volume is seen. What lies there is the volume's mirror image, or the margin of a larger volume.
    jitter : float
        Standard deviation of the error of a reported stage position, per axis; cut at 3.
    drift, rotation_deg, scale : float
        Standard deviations of a section's shift, turn and stretch against the volume.
    gain, offset, section_gain : float
        Standard deviations of brightness: frame by frame, and slowly from section to section.
    contrast : float
        Share of the camera's range that the sample's greys fill: the operator leaves room at both ends, so that the
        darkest stain is not clipped.
    vignetting : float
        Share of the light that the corners lack.
    noise : float
        Standard deviation of the camera's noise.
    blur : float
        Width (sigma) of the frame out of focus.
    """

    grid: tuple[int, int] = (2, 2)
    overlap: float = 0.15
    border: int = 20
    jitter: float = 3.0
    drift: float = 2.0
    rotation_deg: float = 0.08
    scale: float = 0.001
    gain: float = 0.03
    offset: float = 3.0
    section_gain: float = 0.05
    contrast: float = 0.82
    vignetting: float = 0.06
    noise: float = 3.0
    blur: float = 2.5
    pixel_nm: float = 8.0
    instrument: str = "synthetic-tem-1"
    file_type: Literal["png", "tif"] = "png"

    def tile_shape(self, section_shape: tuple[int, int]) -> tuple[int, int]:
        """Give the (height, width) of a frame so that a grid of them covers the section and its border."""
        spans = [edge + 2 * self.border for edge in section_shape]
        shape = [int(np.ceil(s / (n - (n - 1) * self.overlap))) for s, n in zip(spans, self.grid, strict=True)]
        return shape[0], shape[1]


@dataclass(frozen=True, slots=True)
class TileTruth:
    """What is known of one file: where its pixel (0, 0) lies in the stage frame, and what went wrong with it."""

    section: int
    tile: int
    file: str
    origin_yx: tuple[float, float]
    stage_yx: tuple[float, float]
    kind: TileKind = "good"
    retake: bool = False


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A finished acquisition on disk with its truth (`truth.json`, beside `tiles.csv`; ingest does not read it).

    `drift` is (sections, 2, 3): takes a point of the volume (y, x) to the stage frame of its section.
    """

    name: str
    folder: Path
    pixel_nm: float
    section_shape: tuple[int, int]
    drift: NDArray[np.float64]
    tiles: tuple[TileTruth, ...] = field(default=())

    @property
    def csv(self) -> Path:
        """The table of tiles, as `ingest_tiles` takes it."""
        return self.folder / "tiles.csv"

    def faulty(self) -> dict[str, TileTruth]:
        """Give the one file of each fault, by kind."""
        return {tile.kind: tile for tile in self.tiles if tile.kind != "good"}


def acquire(
    image: NDArray[np.uint8],
    folder: Path,
    seed: int,
    *,
    name: str = "acq1",
    microscope: Microscope | None = None,
    margin: int = 0,
) -> Acquisition:
    """Take overlapping frames of every section and write them, `tiles.csv` and `truth.json` into `folder`.

    Parameters
    ----------
    image : (z, y, x) uint8
        The volume; with `margin` m its truth frame begins at pixel (m, m) and ends m before the far edges.
    seed : int
        Equal seeds give equal bytes.
    """
    microscope = microscope or Microscope()
    if image.dtype != np.uint8 or image.ndim != 3 or min(image.shape) - 2 * margin < 1:
        raise BadInput(
            f"a volume of type {image.dtype} and shape {image.shape} cannot be imaged",
            fix="give uint8 (z, y, x), larger than twice the margin",
        )
    depth, height, width = image.shape
    section_shape = (height - 2 * margin, width - 2 * margin)
    if microscope.grid[0] * microscope.grid[1] * depth < 4:
        raise BadInput("fewer than four frames leave no room for the faults", fix="give more sections or a finer grid")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0x7E11])
    drift = _section_drift(rng, depth, section_shape, microscope)
    tiles = _frames(rng, depth, section_shape, microscope)
    brightness = np.cumsum(rng.normal(0, 1, depth))
    brightness = 1 + microscope.section_gain * (brightness - brightness.mean()) / max(float(brightness.std()), 1e-9)
    rows = []
    for number, tile in enumerate(tiles):
        frame_rng = np.random.default_rng([seed, number])
        plane = image[tile.section]
        seen = _expose(plane, margin, drift[tile.section], tile, section_shape, microscope)
        pixels = _camera(frame_rng, seen, float(brightness[tile.section]), tile.kind, microscope)
        rows.append(_store(folder, name, number, tile, pixels, microscope))
    _write_csv(folder / "tiles.csv", rows)
    acquisition = Acquisition(name, folder, microscope.pixel_nm, section_shape, drift, tuple(tiles))
    _write_truth(acquisition)
    return acquisition


def load_acquisition(folder: Path) -> Acquisition:
    """Read the truth of an acquisition that `acquire` finished in `folder`."""
    path = folder / "truth.json"
    if not path.is_file():
        raise BadInput(
            f"{folder} holds no synthetic acquisition: {path.name} is missing", fix="make one with `acquire`"
        )
    raw: dict[str, Any] = json.loads(path.read_text())
    tiles = tuple(
        TileTruth(**{**tile, "origin_yx": tuple(tile["origin_yx"]), "stage_yx": tuple(tile["stage_yx"])})
        for tile in raw["tiles"]
    )
    shape = raw["section_shape"]
    return Acquisition(raw["name"], folder, raw["pixel_nm"], (shape[0], shape[1]), np.array(raw["drift"]), tiles)


def _section_drift(
    rng: np.random.Generator, depth: int, shape: tuple[int, int], microscope: Microscope
) -> NDArray[np.float64]:
    """Draw one (2, 3) affine a section, turning and stretching about the middle, each with mean zero over the stack."""
    draws = np.clip(rng.normal(0, 1, (depth, 4)), -2.5, 2.5)
    draws -= draws.mean(axis=0)
    angle = np.deg2rad(microscope.rotation_deg) * draws[:, 0]
    stretch = microscope.scale * draws[:, 1]
    affines = np.tile(identity(), (depth, 1, 1))
    affines[:, 0, 0] = affines[:, 1, 1] = 1 + stretch
    affines[:, 0, 1], affines[:, 1, 0] = -angle, angle
    middle = np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2])
    affines[:, :, 2] = middle - affines[:, :, :2] @ middle + microscope.drift * draws[:, 2:]
    return affines


def _frames(rng: np.random.Generator, depth: int, shape: tuple[int, int], microscope: Microscope) -> list[TileTruth]:
    """Place every frame, choose the three with faults, and add the second takes at the end."""
    rows, columns = microscope.grid
    tile_shape = microscope.tile_shape(shape)
    count = rows * columns
    error = microscope.jitter * np.clip(rng.normal(0, 1, (depth * count + 2, 2)), -3, 3)
    error[: depth * count] -= error[: depth * count].mean(axis=0)
    steps = [
        (edge + 2 * microscope.border - tile) / max(n - 1, 1)
        for edge, tile, n in zip(shape, tile_shape, microscope.grid, strict=True)
    ]

    def place(section: int, tile: int, number: int, kind: TileKind, suffix: str) -> TileTruth:
        row, column = divmod(tile, columns)
        stage = (row * steps[0] - microscope.border, column * steps[1] - microscope.border)
        origin = (stage[0] + float(error[number][0]), stage[1] + float(error[number][1]))
        file = f"s{section:04d}_t{tile:03d}{suffix}.{microscope.file_type}"
        return TileTruth(section, tile, file, origin, stage, kind, retake=suffix == "_take2")

    # Three different places: far apart in z where the stack is deep enough, so that no section has two faults.
    chosen = rng.choice(depth * count, size=3, replace=False)
    if depth >= 3:
        chosen = rng.choice(depth, size=3, replace=False) * count + rng.integers(0, count, 3)
    faults: dict[int, TileKind] = {int(chosen[0]): "truncated", int(chosen[1]): "blurred"}
    tiles = [place(*divmod(number, count), number, faults.get(number, "good"), "") for number in range(depth * count)]
    section, tile = divmod(int(chosen[2]), count)
    tiles.append(place(section, tile, int(chosen[2]), "duplicated", "_copy"))
    for extra, number in enumerate(faults):
        section, tile = divmod(number, count)
        tiles.append(place(section, tile, depth * count + extra, "good", "_take2"))
    return tiles


def _expose(
    plane: NDArray[np.uint8],
    margin: int,
    drift: Affine,
    tile: TileTruth,
    section_shape: tuple[int, int],
    microscope: Microscope,
) -> NDArray[np.float32]:
    """Sample the section where the frame lies: pixel u shows the volume at drift^-1(origin + u)."""
    shape = microscope.tile_shape(section_shape)
    if tile.kind == "duplicated":
        return np.zeros(shape, np.float32)  # its bytes are copied from the first file
    into_stage = identity()
    into_stage[:, 2] = tile.origin_yx
    to_volume = invert(drift)
    to_volume = np.column_stack([to_volume[:, :2], apply(to_volume, into_stage[:, 2]) + margin])
    return resample(plane, to_volume, shape, outside="mirror").astype(np.float32)


def _camera(
    rng: np.random.Generator,
    pixels: NDArray[np.float32],
    section_gain: float,
    kind: TileKind,
    microscope: Microscope,
) -> NDArray[np.uint8]:
    """Blur, vignette, gain, offset and noise, in the order in which light meets them."""
    import cv2

    if kind == "blurred":
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), microscope.blur), np.float32)
    height, width = pixels.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    light = 1 - microscope.vignetting * (y * y + x * x) / 2
    gain = microscope.contrast * section_gain * (1 + microscope.gain * float(rng.normal()))
    level = 128 + (pixels - 128) * gain + microscope.offset * float(rng.normal()) + 128 * (section_gain - 1)
    level = level * light + microscope.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(level), 0, 255), np.uint8)


def _store(
    folder: Path, name: str, number: int, tile: TileTruth, pixels: NDArray[np.uint8], microscope: Microscope
) -> dict[str, object]:
    """Write one file and give its row of `tiles.csv`."""
    import cv2

    path = folder / tile.file
    acquired = _START + timedelta(seconds=_SECONDS_PER_TILE * number)
    if tile.kind == "duplicated":
        path.write_bytes((folder / tile.file.replace("_copy", "")).read_bytes())
    else:
        # Level 1 is four times faster to write than the default, for files 3 % larger: noise does not compress.
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if microscope.file_type == "png" else []
        data = cv2.imencode(f".{microscope.file_type}", pixels, options)[1].tobytes()
        path.write_bytes(data[: int(len(data) * 0.6)] if tile.kind == "truncated" else data)
    if tile.retake:
        acquired += _RETAKE_AFTER
    focus = 100.0 if tile.kind != "blurred" else 38.0
    values = (
        name, tile.section, tile.tile, tile.file, pixels.shape[1], pixels.shape[0],
        round(tile.stage_yx[1] * microscope.pixel_nm, 3), round(tile.stage_yx[0] * microscope.pixel_nm, 3),
        microscope.pixel_nm, focus, acquired.isoformat(), microscope.instrument,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_truth(acquisition: Acquisition) -> None:
    """Write `truth.json` last: where it is, the acquisition is whole."""
    text = json.dumps(
        {
            "name": acquisition.name,
            "pixel_nm": acquisition.pixel_nm,
            "section_shape": acquisition.section_shape,
            "drift": acquisition.drift.tolist(),
            "tiles": [asdict(tile) for tile in acquisition.tiles],
        }
    )
    (acquisition.folder / "truth.json").write_text(text)
