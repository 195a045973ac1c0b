"""Computes every metric of one commit. Reads block by block, so that memory does not grow with the volume."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box
from lake.errors import LakeError, NotFound, TableNotFound
from lake.ids import region_name
from lake.measures import Contingency, add_contingencies, contingency, grid_cells, score
from lake.snapshot import Snapshot
from lake.volumes import Volume
from qc import metrics as m
from qc.metrics import Metric, everywhere
from sql import SqlFile, library

GRID_KEY = "_policy/grid.json"
Progress = Callable[[str, int, int], None]


def measure(snapshot: Snapshot, progress: Progress | None = None) -> list[Metric]:
    """Compute all metrics of the snapshot's commit; what cannot be computed is unknown, with the reason."""
    tell = progress or (lambda what, done, total: None)
    region_boxes: dict[str, Any] = {}
    found = [
        *_tiles(snapshot, tell),
        *_sections(snapshot),
        *_segmentation(snapshot, tell, region_boxes),
        *_graph(snapshot, region_boxes),
        *_synapses(snapshot, region_boxes),
        everywhere("missing_blocks", float(missing_blocks(snapshot))),
    ]
    return sorted(found, key=lambda metric: (metric.metric, metric.scope, metric.scope_id))


def _frame(snapshot: Snapshot, table: str, schema: str = "main") -> pl.DataFrame | None:
    try:
        return snapshot.table(table, schema=schema).collect()
    except TableNotFound:
        return None


def _volume(snapshot: Snapshot, name: str) -> Volume | None:
    try:
        return snapshot.volume(name)
    except NotFound:
        return None


def _tiles(snapshot: Snapshot, tell: Progress) -> list[Metric]:
    tiles = _frame(snapshot, "tiles", "archive")
    if tiles is None:
        return [everywhere("tile_integrity", None, "the archive has no table `tiles`")]
    kept = tiles.filter(pl.col("status") == "ok")
    damaged: dict[str, str] = {}

    def check(path: str, digest: str) -> str:
        try:
            data = snapshot.get(path, schema="archive")
        except LakeError as error:
            return error.message
        return "" if hashlib.sha256(data).hexdigest() == digest else "sha256 differs from the recorded one"

    with ThreadPoolExecutor(4) as pool:
        paths = kept["path"].to_list()
        for number, (path, fault) in enumerate(
            zip(paths, pool.map(check, paths, kept["sha256"].to_list()), strict=True), 1
        ):
            if fault:
                damaged[path] = fault
            tell("tiles", number, len(paths))
    return m.tile_metrics(tiles, damaged)


def _sections(snapshot: Snapshot) -> list[Metric]:
    sections = _frame(snapshot, "sections")
    if sections is None:
        names = ("stitch_residual_p95", "coverage_min", "alignment_residual", "alignment_folds")
        return [everywhere(name, None, "there is no table `sections`") for name in names]
    return m.section_metrics(sections)


def region_size(snapshot: Snapshot) -> tuple[int, int, int]:
    """Give the size of a region in voxels (z, y, x), from the grid laid down at `init`."""
    grid = json.loads(snapshot.get(GRID_KEY))
    z, y, x = (b * n for b, n in zip(grid["block_zyx"], grid["region_blocks_zyx"], strict=True))
    return z, y, x


def _segmentation(snapshot: Snapshot, tell: Progress, boxes: dict[str, Any]) -> list[Metric]:
    seg, truth = _volume(snapshot, "segmentation"), _volume(snapshot, "ground_truth")
    if seg is None:
        reason = "there is no volume `segmentation`"
        return [everywhere(x, None, reason) for x in ("vi_split", "vi_merge", "adapted_rand_error", "block_continuity")]
    cells = list(grid_cells(seg.box, region_size(snapshot)))
    tables: list[Contingency] = []
    total = m.Continuity()
    found: list[Metric] = []
    for number, (index, cell) in enumerate(cells, 1):
        name = region_name(index)
        boxes[name] = m.box_nm(cell, seg.spec.voxel_nm_zyx)
        labels = seg.read(Box(cell.start, (cell.stop[0] + 1, cell.stop[1] + 1, cell.stop[2] + 1)).clip(seg.box))
        part = m.continuity(labels, cell.shape)
        total += part
        if part.ratio is not None:
            found.append(Metric("block_continuity", "region", name, part.ratio, box=boxes[name]))
        if truth is not None and truth.box.meets(cell):
            common = cell.clip(truth.box)
            table = contingency(labels[common.within(cell)], truth.read(common))
            tables.append(table)
            found += m.score_metrics(score(table), "region", name, boxes[name])
        tell("segmentation", number, len(cells))
    found += m.score_metrics(score(add_contingencies(tables)), "global", "")
    return [*found, everywhere("block_continuity", total.ratio, "the volume has a single block")]


def graph_checks() -> list[SqlFile]:
    """Give the SQL checks of the segment graph: each selects the rows that break one rule."""
    return [file for file in library().values() if file.kind == "check" and file.name.startswith("graph_")]


def _graph(snapshot: Snapshot, boxes: dict[str, Any]) -> list[Metric]:
    violations: float | None = 0.0
    reason = ""
    for check in graph_checks():
        try:
            violations = (violations or 0.0) + len(snapshot.sql(check.text).rows())
        except LakeError as error:
            violations, reason = None, f"check {check.name}: {error.message}"
            break
    found = [everywhere("graph_violations", violations, reason)]
    parts = [_frame(snapshot, t) for t in ("supervoxels", "agglomeration", "segments", "synapses")]
    if any(part is None for part in parts):
        return [*found, everywhere("orphan_share", None, "a table of the segment graph is missing")]
    supervoxels, agglomeration, segments, synapses = (part for part in parts if part is not None)
    sizes = supervoxels.join(agglomeration.select("supervoxel_id", "root_id"), on="supervoxel_id")
    largest = segments["voxels"].max()
    share = float(largest) / float(segments["voxels"].sum()) if isinstance(largest, int) else None
    return [
        *found,
        *m.orphan_metrics(sizes.select("region", "voxels", "root_id"), m.orphans(segments, synapses), boxes),
        everywhere("largest_segment_share", share, "there are no segments"),
    ]


def _synapses(snapshot: Snapshot, boxes: dict[str, Any]) -> list[Metric]:
    synapses = _frame(snapshot, "synapses")
    if synapses is None:
        return [everywhere(x, None, "there is no table `synapses`") for x in ("synapse_binding", "synapse_f1")]
    found = m.binding_metrics(synapses, boxes)
    truth = _volume(snapshot, "ground_truth")
    true = _frame(snapshot, "ground_truth_synapses")
    if truth is None or true is None:
        return [*found, everywhere("synapse_f1", None, "no synapse is known (table `ground_truth_synapses`)")]
    ends = ("pre_pt_position", "post_pt_position")
    pairs = np.stack([labels_at(truth, positions(synapses, end)) for end in ends], axis=1)
    true_pairs = true.select("pre_gt_id", "post_gt_id").to_numpy()
    return [
        *found,
        *m.synapse_metrics(
            positions(synapses, "ctr_pt_position"), pairs, positions(true, "ctr_pt_position"), true_pairs
        ),
    ]


def positions(frame: pl.DataFrame, prefix: str) -> NDArray[np.float64]:
    """Give (n, 3) positions z, y, x in nm."""
    return frame.select(*(f"{prefix}_{axis}" for axis in "zyx")).to_numpy().astype(np.float64)


def labels_at(volume: Volume, points: NDArray[np.float64], block: int = 64) -> NDArray[np.int64]:
    """Read the label under each point, cell by cell; 0 outside the volume.

    Parameters
    ----------
    points : (n, 3) float64
        z, y, x in nm.
    """
    voxels = np.floor(points / np.asarray(volume.spec.voxel_nm_zyx)).astype(np.int64)
    start, stop = np.asarray(volume.box.start), np.asarray(volume.box.stop)
    inside = np.flatnonzero(((voxels >= start) & (voxels < stop)).all(axis=1))
    labels = np.zeros(len(points), np.int64)
    cells = voxels[inside] // block
    order = np.lexsort(cells.T[::-1])
    for group in (
        np.split(order, np.flatnonzero(np.any(np.diff(cells[order], axis=0), axis=1)) + 1) if len(order) else []
    ):
        rows = inside[group]
        corner = cells[group[0]] * block
        box = Box(tuple(int(c) for c in corner), tuple(int(c) + block for c in corner)).clip(volume.box)  # type: ignore[arg-type]
        data = volume.read(box)
        z, y, x = (voxels[rows] - np.asarray(box.start)).T
        labels[rows] = data[z, y, x].astype(np.int64)
    return labels


def missing_blocks(snapshot: Snapshot) -> int:
    """Count planned blocks without a finished row, over the runs in the tree, and chunks missing from volumes."""
    missing = 0
    runs = sorted({stat.key.split("/")[1] for stat in snapshot.list("_runs/")})
    for run in runs:
        planned = json.loads(snapshot.get(f"_runs/{run}/run.json"))
        missing += sum(max(0, stage["blocks"] - stage["finished"]) for stage in planned["stages"])
    for name in sorted({stat.key.split("/")[1] for stat in snapshot.list("volumes/")}):
        missing += len(snapshot.volume(name).missing_chunks())
    return missing
