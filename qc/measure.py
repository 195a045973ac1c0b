"""Computes every metric of one commit. Reads block by block, so that memory does not grow with the volume."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box
from lake.errors import OF_THE_MACHINE, LakeError, NotFound, TableNotFound
from lake.snapshot import SchemaName, Snapshot
from lake.tables import collect
from lake.volumes import Volume
from qc import metrics as m
from qc.checks import graph_checks
from qc.completeness import missing_blocks
from qc.metrics import Metric, everywhere
from qc.regions import Grid, read_grid
from qc.segmentation import measure_segmentation

Progress = Callable[[str, int, int], None]


def measure(snapshot: Snapshot, progress: Progress | None = None) -> list[Metric]:
    """Compute all metrics of the snapshot's commit; what cannot be computed is unknown, with the reason.

    A disk without room, or a server that is lost or refuses, is no property of the data: that is raised.
    """
    tell = progress or (lambda what, done, total: None)
    seg = _volume(snapshot, "segmentation")
    grid = read_grid(snapshot, seg)
    found = [
        *_tiles(snapshot, tell),
        *_sections(snapshot),
        *_segmentation(snapshot, seg, grid, tell),
        *_graph(snapshot),
        *_orphans(snapshot, grid),
        *_synapses(snapshot, grid),
        *_detection(snapshot, grid),
        _missing(snapshot),
    ]
    return sorted(found, key=lambda metric: (metric.metric, metric.scope, metric.scope_id))


def _frame(snapshot: Snapshot, table: str, columns: Iterable[str] = (), schema: SchemaName = "main") -> pl.DataFrame:
    rows = snapshot.table(table, schema=schema)
    return (rows.select(*columns) if columns else rows).pipe(collect)


def _unknown(names: Iterable[str], reason: str) -> list[Metric]:
    return [everywhere(name, None, reason) for name in names]


def _tiles(snapshot: Snapshot, tell: Progress) -> list[Metric]:
    columns = ("path", "sha256", "status", "shape_x", "focus", "saturation")
    try:
        tiles = _frame(snapshot, "tiles", columns, "archive")
    except OF_THE_MACHINE:
        raise
    except LakeError as error:
        return _unknown(m.TILE_METRICS, error.message)
    kept = tiles.filter(pl.col("status") == "ok")
    damaged: dict[str, str] = {}

    def check(path: str, digest: str) -> str:
        try:
            data = snapshot.get(path, schema="archive")
        except OF_THE_MACHINE:
            raise
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
    try:
        return m.section_metrics(_frame(snapshot, "sections"))
    except OF_THE_MACHINE:
        raise
    except LakeError as error:
        return _unknown(m.SECTION_METRICS, error.message)


def _volume(snapshot: Snapshot, name: str) -> Volume | None:
    try:
        return snapshot.volume(name)
    except NotFound:
        return None


def _segmentation(snapshot: Snapshot, seg: Volume | None, grid: Grid, tell: Progress) -> list[Metric]:
    if seg is None:
        return _unknown((*m.SCORE_METRICS, "block_continuity"), "there is no volume segmentation")
    truth = _volume(snapshot, "ground_truth")
    return measure_segmentation(seg, truth, grid, lambda done, total: tell("segmentation", done, total))


def _graph(snapshot: Snapshot) -> list[Metric]:
    violations = 0
    for check in graph_checks():
        try:
            violations += int(snapshot.sql(f"SELECT count(*) FROM ({check.text})").rows()[0][0])
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            return _unknown(("graph_violations",), f"check {check.name}: {error.message}")
    return [everywhere("graph_violations", float(violations))]


def _orphans(snapshot: Snapshot, grid: Grid) -> list[Metric]:
    try:
        supervoxels = snapshot.table("supervoxels").select("supervoxel_id", "region", "voxels")
        roots = snapshot.table("agglomeration").select("supervoxel_id", "root_id")
        # Summed by region and root before it is collected: a row for each pair, not for each supervoxel.
        sizes = (
            supervoxels.join(roots, on="supervoxel_id").group_by("region", "root_id").agg(pl.col("voxels").sum())
        ).pipe(collect)
        segments = _frame(snapshot, "segments", ("root_id", "voxels", "boundary_faces"))
        ends = _frame(snapshot, "synapses", ("pre_pt_root_id", "post_pt_root_id"))
    except TableNotFound as error:
        return _unknown(m.SEGMENT_METRICS, error.message)
    return [*m.orphan_metrics(sizes, m.orphans(segments, ends), grid.box_nm), *m.size_metrics(segments)]


def _synapses(snapshot: Snapshot, grid: Grid) -> list[Metric]:
    try:
        synapses = _frame(snapshot, "synapses", ("region", "pre_pt_root_id", "post_pt_root_id"))
    except TableNotFound as error:
        return _unknown(m.BINDING_METRICS, error.message)
    return m.binding_metrics(synapses, grid.box_nm)


def _detection(snapshot: Snapshot, grid: Grid) -> list[Metric]:
    ends = ("pre_pt_position", "post_pt_position")
    try:
        truth = snapshot.volume("ground_truth")
        synapses = _frame(snapshot, "synapses")
        true = _frame(snapshot, "ground_truth_synapses")
        pairs = np.stack([labels_at(truth, positions(synapses, end)) for end in ends], axis=1)
    except OF_THE_MACHINE:
        raise
    except LakeError as error:
        return _unknown(m.DETECTION_METRICS, error.message)
    true_pairs = true.select("pre_gt_id", "post_gt_id").to_numpy()
    points, true_points = (positions(frame, "ctr_pt_position") for frame in (synapses, true))
    return [
        *m.synapse_metrics(points, pairs, true_points, true_pairs),
        *m.synapse_region_metrics(points, pairs, true_points, true_pairs, grid),
    ]


def _missing(snapshot: Snapshot) -> Metric:
    try:
        return everywhere("missing_blocks", float(missing_blocks(snapshot)))
    except OF_THE_MACHINE:
        raise
    except LakeError as error:
        return everywhere("missing_blocks", None, error.message)


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
    if not len(inside):
        return labels
    cells = voxels[inside] // block
    order = np.lexsort(cells.T[::-1])
    for group in np.split(order, np.flatnonzero(np.any(np.diff(cells[order], axis=0), axis=1)) + 1):
        rows = inside[group]
        z0, y0, x0 = (int(c) * block for c in cells[group[0]])
        box = Box((z0, y0, x0), (z0 + block, y0 + block, x0 + block)).clip(volume.box)
        data = volume.read(box)
        z, y, x = (voxels[rows] - np.asarray(box.start)).T
        labels[rows] = data[z, y, x].astype(np.int64)
    return labels
