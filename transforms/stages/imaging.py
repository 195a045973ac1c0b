"""From tiles to an aligned volume: stitch, match, align, em.

::

    tiles of a section -stitch-> tile_positions, tile_matches, montages, volumes/montage      each section by itself
    montages of z and z + 1, z + 2 -match-> section_matches                                  each section by itself
    all of these rows -align-> sections, tile_placements                                     once, small
    tiles that reach a block -em-> volumes/em                                                drawn once, from the tiles

A voxel of `em` is interpolated once on its way from the camera: the montage only serves to find the alignment. So a
block of `em` was made from exactly the tiles that reach it, and from the numbers that place them.

The stage frame is in pixels: stage position over pixel size. Voxel (0, 0) of `em` lies at `origin_yx` of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from lake.box import Zyx
from lake.errors import BadInput
from lake.volume_spec import VolumeSpec
from transforms.kernels.normalise import NormaliseParams
from transforms.kernels.seams import StitchParams
from transforms.kernels.stitch import Stitched
from transforms.stage import (
    Block,
    GridKind,
    Inputs,
    Outputs,
    ReadPort,
    Scene,
    Stage,
    TableOut,
    TileFile,
    TilesIn,
    VolumeOut,
    WritePort,
)

LIBRARIES = ("opencv-python-headless", "scipy")
GEOMETRY = ("transforms.kernels.geometry", "transforms.kernels.correlate", "transforms.kernels.seams")
_PLANE_CHUNK: Zyx = (1, 512, 512)
DRAWING = ("y_px", "x_px", "gain", "light_y", "light_x")  # the columns of `Stitched.table`


def decode(tile: TileFile) -> NDArray[np.uint8]:
    """Decode a tile's bytes, (height, width) uint8."""
    import cv2

    image = cv2.imdecode(np.frombuffer(tile.data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise BadInput(f"tile {tile.path} does not decode, though ingest accepted it", fix="run `emlake scrub`")
    return np.asarray(image, np.uint8)


def stage_px(tiles: pl.DataFrame) -> NDArray[np.float64]:
    """Give the stage positions of tiles, (n, 2) yx, in pixels of the acquisition."""
    nm = tiles.select("stage_y_nm", "stage_x_nm").to_numpy()
    return np.asarray(nm / tiles["pixel_nm"].to_numpy()[:, None], np.float64)


class Canvas:
    """The rectangle that all tiles of an acquisition can reach, and the part of it that they should cover.

    Parameters
    ----------
    margin : float
        By how much a tile may lie elsewhere than its stage position says, px.
    """

    def __init__(self, tiles: pl.DataFrame, margin: float) -> None:
        sizes = tiles["pixel_nm"].unique().to_list()
        if len(sizes) != 1:
            raise BadInput(f"the tiles have {len(sizes)} pixel sizes: {sorted(sizes)[:4]}", fix="ingest them apart")
        self.pixel_nm = float(sizes[0])
        low = stage_px(tiles)
        high = low + tiles.select("shape_y", "shape_x").to_numpy()
        # Positions in nm divided by the pixel size come out a hair beside whole pixels.
        self.first, self.last = np.ceil(low.min(axis=0) - 1e-3), np.floor(high.max(axis=0) + 1e-3)
        self.origin = np.floor(low.min(axis=0) - margin)
        self.shape = tuple(int(n) for n in np.ceil(high.max(axis=0) + margin) - self.origin)
        self.margin = int(np.ceil(margin))

    @property
    def due(self) -> tuple[slice, slice]:
        """What tiles should cover whatever their jitter, as an index into the montage."""
        inner = [slice(2 * self.margin, n - 2 * self.margin) for n in self.shape]
        return inner[0], inner[1]


class Stitch(Stage):
    """The tiles of one section are placed against each other, and drawn once for the alignment."""

    name: ClassVar[str] = "stitch"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "section"
    kernels: ClassVar[tuple[str, ...]] = (
        *GEOMETRY,
        "transforms.kernels.stitch",
        "transforms.kernels.render",
        "transforms.kernels.normalise",
    )
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    acquisition: str = Field("", description="acquisition to stitch; empty = the only one in the archive")
    stitch: StitchParams = Field(default_factory=StitchParams, description="how tiles are matched and solved")
    normalise: NormaliseParams = Field(default_factory=NormaliseParams, description="which grey levels are measured")

    def reads(self) -> tuple[ReadPort, ...]:
        return (TilesIn(self.acquisition),)

    def writes(self) -> tuple[WritePort, ...]:
        tables = ("montages", "tile_matches", "tile_positions")
        return (VolumeOut("montage"), *(TableOut(name) for name in tables))

    def _canvas(self, scene: Scene) -> Canvas:
        return Canvas(scene.tiles_of(self.acquisition), self.stitch.search)

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        canvas = self._canvas(scene)
        sections = scene.tiles_of(self.acquisition)["section"]
        depth = number(sections.max()) - number(sections.min()) + 1
        return {
            "montage": VolumeSpec(
                "montage",
                "image",
                "uint8",
                (depth, canvas.shape[0], canvas.shape[1]),
                (scene.grid.voxel_nm[0], canvas.pixel_nm, canvas.pixel_nm),
                chunk_zyx=_PLANE_CHUNK,
                driver="zarr3",
            )
        }

    def frame(self, scene: Scene) -> dict[str, Any]:
        canvas = self._canvas(scene)
        return {"origin_yx": canvas.origin.tolist(), "due": [[cut.start, cut.stop] for cut in canvas.due]}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        from transforms.kernels.render import render_section
        from transforms.kernels.stitch import stitch_section

        assert block.box is not None
        _, height, width = block.box.shape
        origin_y, origin_x = inputs.frame["origin_yx"]
        tiles = sorted(inputs.tiles, key=lambda tile: tile.path)
        where = {"section": block.section, "z": block.box.start[0]}
        if not tiles:
            empty = np.zeros((1, height, width), np.uint8)
            row = {**where, **_montage_row(empty[0], inputs, None, self.normalise), "tiles": 0}
            rows = {"montages": pl.DataFrame([row]), "tile_matches": pl.DataFrame(), "tile_positions": pl.DataFrame()}
            return Outputs({"montage": empty}, rows)
        pictures = [decode(tile) for tile in tiles]
        stitched = stitch_section(pictures, stage_px(pl.DataFrame([tile.row for tile in tiles])), self.stitch)
        image, mask = render_section(pictures, stitched, (origin_y, origin_x), (height, width), params=self.stitch)
        # 0 goes on meaning "not seen": the mask travels inside the image.
        image = np.where(mask, np.maximum(image, 1), np.uint8(0))
        row = {**where, **_montage_row(image, inputs, stitched, self.normalise), "tiles": len(tiles)}
        return Outputs(
            {"montage": image[None]},
            {
                "montages": pl.DataFrame([row]),
                "tile_matches": _seam_rows(block, tiles, stitched),
                "tile_positions": _position_rows(where, tiles, pictures, stitched),
            },
        )


def _montage_row(
    image: NDArray[np.uint8], inputs: Inputs, stitched: Stitched | None, params: NormaliseParams
) -> dict[str, Any]:
    """Describe a montage: what it covers of what it should, and its grey levels."""
    import cv2

    from transforms.kernels.normalise import grey_levels

    mask = image > 0
    rows, columns = (slice(*cut) for cut in inputs.frame["due"])
    due = mask[rows, columns]
    holes = cv2.connectedComponents((~due).astype(np.uint8))[0] - 1 if due.size else 0
    levels = grey_levels(image, mask, params)
    residual = float("nan") if stitched is None else stitched.residual_p95
    origin_y, origin_x = inputs.frame["origin_yx"]
    return {
        "origin_y_px": origin_y,
        "origin_x_px": origin_x,
        "residual_px": None if np.isnan(residual) else residual,
        "connected": stitched is not None and stitched.connected,
        "coverage": float(due.mean()) if due.size else 0.0,
        "holes": int(holes),
        "level_low": levels.low,
        "level_high": levels.high,
        "mean": levels.mean,
        "std": levels.std,
    }


def _seam_rows(block: Block, tiles: Sequence[TileFile], stitched: Stitched) -> pl.DataFrame:
    rows = [
        {
            "section": block.section,
            "a": tiles[seam.a].path,
            "b": tiles[seam.b].path,
            "dx": seam.dx,
            "dy": seam.dy,
            "ncc": seam.ncc,
            "kept": seam.kept,
            "residual_px": seam.residual if seam.kept and np.isfinite(seam.residual) else None,
        }
        for seam in stitched.seams
    ]
    return pl.DataFrame(rows, schema_overrides={"residual_px": pl.Float64})


def _position_rows(
    where: Mapping[str, Any], tiles: Sequence[TileFile], pictures: Sequence[NDArray[np.uint8]], stitched: Stitched
) -> pl.DataFrame:
    rows = []
    for tile, picture, values in zip(tiles, pictures, stitched.table(), strict=True):
        placed = dict(zip(DRAWING, map(float, values), strict=True))
        size = {"height_px": picture.shape[0], "width_px": picture.shape[1]}
        rows.append({**where, "path": tile.path, **size, **placed})
    return pl.DataFrame(rows)


def number(value: object) -> int:
    """Give a value of a table as the integer that it is."""
    assert isinstance(value, int)
    return value
