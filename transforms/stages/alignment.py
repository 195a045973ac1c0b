"""From montages to an aligned volume: match, align, em; see `transforms.stages.imaging` for the whole picture."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from lake.box import Box, Zyx
from lake.digests import canonical_json
from lake.errors import BadInput
from lake.volume_spec import VolumeSpec
from transforms.kernels.geometry import apply, translation
from transforms.kernels.normalise import GreyLevels, NormaliseParams
from transforms.kernels.placement import Placement
from transforms.kernels.seams import StitchParams
from transforms.kernels.stitch import Stitched
from transforms.kernels.windows import AlignParams
from transforms.stage import (
    Block,
    GridKind,
    Inputs,
    Outputs,
    ReadPort,
    Scene,
    Stage,
    TableIn,
    TableOut,
    TileFile,
    TilesIn,
    VolumeIn,
    VolumeOut,
    WritePort,
)
from transforms.stages.imaging import DRAWING, GEOMETRY, LIBRARIES, Canvas, decode, number
from transforms.stages.segmentation import cells_shape

EM_SCALES: tuple[Zyx, ...] = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
_WINDOW = ("y_px", "x_px", "found_y_px", "found_x_px", "ncc", "kept")  # the columns of `SectionMatch.table`


class Match(Stage):
    """Windows of one montage are looked for in the next ones."""

    name: ClassVar[str] = "match"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "section"
    kernels: ClassVar[tuple[str, ...]] = (*GEOMETRY, "transforms.kernels.windows")
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    windows: AlignParams = Field(default_factory=AlignParams, description="how sections are matched")

    def reads(self) -> tuple[ReadPort, ...]:
        columns = ("z", "origin_y_px", "origin_x_px")
        return (
            VolumeIn("montage", high=(self.windows.reach, 0, 0)),
            TableIn("montages", select="z", high=(self.windows.reach, 0, 0), columns=columns),
        )

    def writes(self) -> tuple[WritePort, ...]:
        return (TableOut("section_matches"),)

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        from transforms.kernels.windows import Picture, match_sections

        montage = inputs.volumes["montage"]
        origins = {row["z"]: (row["origin_y_px"], row["origin_x_px"]) for row in inputs.tables["montages"].to_dicts()}
        first_z = montage.box.start[0]

        def picture(z: int) -> Picture:
            image = montage.array[z - first_z]
            return Picture(image, image > 0, origins[z])

        frames = []
        for z in range(first_z + 1, montage.box.stop[0]):
            windows = match_sections(picture(first_z), picture(z), self.windows).table()
            columns = dict(zip(_WINDOW, windows.T, strict=True))
            frame = pl.DataFrame(columns).with_columns(pl.col("kept") > 0)
            counted = pl.Series("number", np.arange(len(windows)))
            frames.append(frame.with_columns(pl.lit(first_z).alias("z"), pl.lit(z).alias("other_z"), counted))
        return Outputs(tables={"section_matches": pl.concat(frames) if frames else pl.DataFrame()})


class Align(Stage):
    """All sections are placed together, and every tile with its section."""

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1
    grid: ClassVar[GridKind] = "whole"
    kernels: ClassVar[tuple[str, ...]] = (
        *GEOMETRY,
        "transforms.kernels.windows",
        "transforms.kernels.align",
        "transforms.kernels.placement",
    )
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    solve: AlignParams = Field(default_factory=AlignParams, description="how sections are placed")
    min_coverage: float = Field(0.9, ge=0, le=1, description="a section of which less was seen is held")
    max_residual_px: float = Field(8.0, gt=0, description="a section whose seams fit worse is held")

    def reads(self) -> tuple[ReadPort, ...]:
        return TableIn("section_matches"), TableIn("montages"), TableIn("tile_positions")

    def writes(self) -> tuple[WritePort, ...]:
        return TableOut("sections"), TableOut("tile_placements")

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        from transforms.kernels.align import solve_stack
        from transforms.kernels.windows import SectionMatch

        montages = inputs.tables["montages"].sort("z").to_dicts()
        matches = {}
        ordered = inputs.tables["section_matches"].sort("z", "other_z", "number")
        for (z, other), rows in ordered.group_by(["z", "other_z"], maintain_order=True):
            table = rows.select(_WINDOW).cast(pl.Float64).to_numpy()
            matches[number(z), number(other)] = SectionMatch.from_table(table)
        placements = solve_stack(len(montages), matches, self.solve)
        sections = [self._section(row, placements[row["z"]], matches) for row in montages]
        tiles = [_reach(row, placements[row["z"]]) for row in inputs.tables["tile_positions"].to_dicts()]
        optional = dict.fromkeys(("residual_px", "ncc", "alignment_residual_px", "flow_confidence"), pl.Float64)
        return Outputs(
            tables={
                "sections": pl.DataFrame(sections, schema_overrides={**optional, "reason": pl.String}),
                "tile_placements": pl.DataFrame(tiles),
            }
        )

    def _section(
        self, row: Mapping[str, Any], placed: Placement, matches: Mapping[tuple[int, int], Any]
    ) -> dict[str, Any]:
        z = row["z"]
        before = matches.get((z - 1, z))
        reasons = []
        if row["tiles"] == 0:
            reasons.append("no accepted tile")
        elif row["coverage"] < self.min_coverage:
            reasons.append(f"coverage {row['coverage']:.3f} below {self.min_coverage:g}")
        if row["residual_px"] is not None and row["residual_px"] > self.max_residual_px:
            reasons.append(f"seam residual {row['residual_px']:.1f} px above {self.max_residual_px:g}")
        if row["tiles"] and not placed.anchored and len(matches):
            reasons.append("no neighbour agrees: it lies where the stage put it")
        return {
            "section": row["section"],
            "z": z,
            "transform": canonical_json(placed.to_json()).decode(),
            "residual_px": row["residual_px"],
            "coverage": row["coverage"],
            "holes": row["holes"],
            "ncc": None if before is None or np.isnan(before.median_ncc) else before.median_ncc,
            "alignment_residual_px": None if np.isnan(placed.residual) else placed.residual,
            "folds": placed.folds,
            "flow_confidence": None if before is None else before.confidence,
            "status": "held" if reasons else "ok",
            "reason": "; ".join(reasons) or None,
        }


def _reach(row: Mapping[str, Any], placed: Placement) -> dict[str, Any]:
    """Say which voxels a tile can reach: its rim, moved, with room for the grid's bends and the interpolation."""
    height, width = row["height_px"] - 1, row["width_px"] - 1
    along = np.linspace(0, 1, 9)
    rim = np.concatenate(
        [np.stack([np.full(9, e) * height, along * width], 1) for e in (0, 1)]
        + [np.stack([along * height, np.full(9, e) * width], 1) for e in (0, 1)]
    )
    moved = placed.move(apply(translation((row["y_px"], row["x_px"])), rim))
    room = 3.0 + (float(np.abs(placed.grid).max()) if placed.grid.size else 0.0)
    low, high = np.floor(moved.min(axis=0) - room).astype(int), np.ceil(moved.max(axis=0) + room).astype(int) + 1
    kept = ("section", "z", "path", *DRAWING)
    reach = {"y0": int(low[0]), "y1": int(high[0]), "x0": int(low[1]), "x1": int(high[1])}
    return {**{name: row[name] for name in kept}, **reach}


class DrawVolume(Stage):
    """The aligned, normalised volume, drawn straight from the tiles."""

    name: ClassVar[str] = "em"
    version: ClassVar[int] = 1
    kernels: ClassVar[tuple[str, ...]] = (
        *GEOMETRY,
        "transforms.kernels.placement",
        "transforms.kernels.render",
        "transforms.kernels.normalise",
    )
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    acquisition: str = Field("", description="acquisition to draw; empty = the only one in the archive")
    origin_yx: tuple[int, int] = Field((0, 0), description="where voxel (0, 0) lies in the stage frame, px")
    shape_yx: tuple[int, int] | None = Field(
        None,
        description="extent in pixels; none = as far as tiles reach, less the rim that they have before the origin",
    )
    cells: Zyx = Field((1, 2, 2), description="grid cells of one block")
    stitch: StitchParams = Field(default_factory=StitchParams, description="padding and feather of tiles")
    normalise: NormaliseParams = Field(default_factory=NormaliseParams, description="which grey levels go where")

    def reads(self) -> tuple[ReadPort, ...]:
        return (
            TilesIn(self.acquisition, "tile_placements", self.origin_yx),
            TableIn("sections", select="z", columns=("z", "transform")),
            TableIn("montages", select="z", columns=("z", "level_low", "level_high")),
        )

    def writes(self) -> tuple[WritePort, ...]:
        return (VolumeOut("em"),)

    def block_shape(self, scene: Scene) -> Zyx:
        return cells_shape(scene, self.cells)

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        canvas = Canvas(scene.tiles_of(self.acquisition), 0)
        # Whoever images a rim around a place does so on all its sides.
        rim = np.maximum(self.origin_yx - canvas.first, 0)
        height, width = self.shape_yx or (int(n) for n in canvas.last - rim - self.origin_yx)
        if min(height, width) < 1 or (canvas.last < self.origin_yx).any():
            raise BadInput(
                f"the tiles lie at y {canvas.first[0]:.0f}..{canvas.last[0]:.0f}, x {canvas.first[1]:.0f}.."
                f"{canvas.last[1]:.0f} px of the stage frame, away from the volume's origin {self.origin_yx}",
                fix="set em.origin_yx to where the volume shall begin",
            )
        depth = scene.volume("montage").shape_zyx[0]
        voxel_nm = (scene.grid.voxel_nm[0], canvas.pixel_nm, canvas.pixel_nm)
        spec = VolumeSpec(
            "em", "image", "uint8", (depth, height, width), voxel_nm, chunk_zyx=scene.grid.block, scales=EM_SCALES
        )
        return {"em": spec}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        assert block.box is not None
        out = np.zeros(block.box.shape, np.uint8)
        tiles = {tile.path: tile for tile in inputs.tiles}
        transforms = {row["z"]: json.loads(row["transform"]) for row in inputs.tables["sections"].to_dicts()}
        levels = {row["z"]: (row["level_low"], row["level_high"]) for row in inputs.tables["montages"].to_dicts()}
        placed = inputs.tables["tile_placements"].sort("z", "path")
        for (plane,), rows in placed.group_by("z", maintain_order=True):
            z = number(plane)
            low, high = levels[z]
            out[z - block.box.start[0]] = self._plane(
                [tiles[path] for path in rows["path"]],
                Stitched.from_table(rows.select(DRAWING).to_numpy()),
                Placement.from_json(transforms[z]),
                GreyLevels(low, high, 0.0, 0.0),
                block.box,
            )
        return Outputs({"em": out})

    def _plane(
        self, tiles: Sequence[TileFile], stitched: Stitched, placed: Placement, levels: GreyLevels, box: Box
    ) -> NDArray[np.uint8]:
        from transforms.kernels.normalise import normalise_section
        from transforms.kernels.render import render_section

        _, height, width = box.shape
        origin = (float(box.start[1] + self.origin_yx[0]), float(box.start[2] + self.origin_yx[1]))
        image, mask = render_section(
            [decode(tile) for tile in tiles],
            stitched,
            origin,
            (height, width),
            from_canvas=placed.from_volume,
            displacement=placed.displacement(origin, (height, width)),
            params=self.stitch,
        )
        return normalise_section(image, mask, levels, self.normalise)
