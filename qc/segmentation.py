"""Measures a segmentation volume in one pass: each block is read and decoded once.

Faces between blocks need planes of two blocks. The last plane of a block is kept until its neighbour comes along; with
the longest axis slowest, what is kept at any time is about one cross-section of the volume, at its thinnest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import OF_THE_MACHINE, LakeError
from lake.measures import Contingency, add_contingencies, contingency, score
from lake.volumes import Volume
from qc import metrics as m
from qc.metrics import Continuity, Metric, everywhere
from qc.regions import Grid, cells

Labels = NDArray[Any]


def measure_segmentation(
    seg: Volume, truth: Volume | None, grid: Grid, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[Metric]:
    """Compare a segmentation with the truth and with itself across block faces, by region and globally.

    A block that cannot be read makes its region unknown, and the whole.
    """
    differ = truth is not None and truth.spec.voxel_nm_zyx != seg.spec.voxel_nm_zyx
    pass_ = _Pass(seg, None if differ else truth, grid)
    total = int(np.prod(cells(seg.box, grid.block)))
    for number, (index, cell) in enumerate(in_order(seg.box, grid.block), 1):
        pass_.add(index, cell)
        tell(number, total)
    found = pass_.metrics()
    if differ and truth is not None:
        why = f"ground_truth has voxels of {truth.spec.voxel_nm_zyx} nm, segmentation of {seg.spec.voxel_nm_zyx}"
        found = [x for x in found if x.metric not in m.SCORE_METRICS]
        found += [everywhere(name, None, why) for name in m.SCORE_METRICS]
    return found


def in_order(box: Box, size: Zyx) -> Iterator[tuple[Zyx, Box]]:
    """Yield the cells of the grid of `size` from voxel (0, 0, 0) that meet `box`, its longest axis slowest."""
    axes = sorted(range(3), key=lambda axis: (-box.shape[axis], axis))
    spans = [range(box.start[axis] // size[axis], -(-box.stop[axis] // size[axis])) for axis in axes]
    for at in product(*spans):
        by_axis = dict(zip(axes, at, strict=True))
        z, y, x = (by_axis[axis] for axis in range(3))
        start = (z * size[0], y * size[1], x * size[2])
        yield (z, y, x), Box(start, (start[0] + size[0], start[1] + size[1], start[2] + size[2])).clip(box)


@dataclass(slots=True)
class _Region:
    """What has been seen of one region."""

    tables: list[Contingency] = field(default_factory=list)
    faces: Continuity = field(default_factory=Continuity)
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Pass:
    seg: Volume
    truth: Volume | None
    grid: Grid
    _regions: dict[str, _Region] = field(default_factory=dict)
    # Last plane of a block and the pairs inside it, by axis and the index of the neighbour that will need them.
    _waiting: dict[tuple[int, Zyx], tuple[str, Labels, tuple[int, int]]] = field(default_factory=dict)

    def add(self, index: Zyx, cell: Box) -> None:
        """Read a block and count."""
        name = self.grid.region_of(index)
        region = self._regions.setdefault(name, _Region())
        try:
            labels = self.seg.read(cell)
            self._faces(index, cell, labels, name)
            if self.truth is not None and self.truth.box.meets(cell):
                common = cell.clip(self.truth.box)
                region.tables.append(contingency(labels[common.within(cell)], self.truth.read(common)))
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            region.faults.append(error.message)

    def _faces(self, index: Zyx, cell: Box, labels: Labels, name: str) -> None:
        for axis in range(3):
            before = self._waiting.pop((axis, index), None)
            if before is not None:
                region, last, inner = before
                self._regions[region].faces += Continuity(*m.agreement(last, labels.take(0, axis)), *inner)
            if cell.stop[axis] < self.seg.box.stop[axis] and cell.shape[axis] >= 2:
                z, y, x = (i + (axis == other) for other, i in enumerate(index))
                last = labels.take(-1, axis)
                self._waiting[axis, (z, y, x)] = name, last, m.agreement(labels.take(-2, axis), last)

    def metrics(self) -> list[Metric]:
        """Give the metrics of all regions, and of the whole."""
        found: list[Metric] = []
        faults = [fault for region in self._regions.values() for fault in region.faults]
        for name, region in self._regions.items():
            box = self.grid.box_nm(name)
            if region.faults:
                names = (*m.SCORE_METRICS, "block_continuity") if self.truth else ("block_continuity",)
                found += [Metric(x, "region", name, None, region.faults[0], box) for x in names]
                continue
            found += m.score_metrics(score(add_contingencies(region.tables)), "region", name, box)
            if region.faces.ratio is not None:
                found.append(Metric("block_continuity", "region", name, region.faces.ratio, box=box))
        if faults:
            why = f"{len(faults)} blocks cannot be measured, the first: {faults[0]}"
            return found + [everywhere(x, None, why) for x in (*m.SCORE_METRICS, "block_continuity")]
        whole = add_contingencies(table for region in self._regions.values() for table in region.tables)
        faces = sum((region.faces for region in self._regions.values()), Continuity())
        found += m.score_metrics(score(whole), "global", "")
        return [*found, everywhere("block_continuity", faces.ratio, "the volume has a single block")]
