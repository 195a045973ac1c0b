"""Known truth on its way into a candidate, so that QC can score the reconstruction region by region."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.box import Box
from lake.errors import BadInput
from lake.repository import CommitId, Repository
from lake.tables import overwrite
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume

Nm = tuple[float, float, float]


def import_truth(
    repo: Repository,
    branch: str,
    labels: NDArray[Any],
    voxel_nm: Nm,
    *,
    points: dict[str, NDArray[Any]],
    pairs: NDArray[Any],
) -> CommitId:
    """Write `volumes/ground_truth` and `tables/ground_truth_synapses` in one commit.

    Parameters
    ----------
    labels : (z, y, x) integer
        Bodies from 1; 0 does not count. Voxel (0, 0, 0) is the lake's.
    points : mapping of pre, post, ctr to (n, 3) int
        Voxels z, y, x.
    pairs : (n, 2) integer
        Pre- and postsynaptic body.
    """
    if labels.ndim != 3:
        raise BadInput(f"truth of shape {labels.shape}", fix="give labels (z, y, x)")
    shape = tuple(int(n) for n in labels.shape)
    chunk = tuple(min(64, n) for n in shape)
    spec = VolumeSpec("ground_truth", "segmentation", "uint32", shape, voxel_nm, chunk_zyx=chunk)  # type: ignore[arg-type]
    columns: dict[str, Any] = {"id": np.arange(1, len(pairs) + 1)}
    for end, voxels in points.items():
        centres = (np.asarray(voxels, np.float64) + 0.5) * np.asarray(voxel_nm)
        columns |= {f"{end}_pt_position_{axis}": centres[:, "zyx".index(axis)] for axis in "xyz"}
    columns |= {"pre_gt_id": pairs[:, 0].astype(np.int64), "post_gt_id": pairs[:, 1].astype(np.int64)}
    with repo.session(branch, owner="import truth") as session:
        volume = create_volume(session.workspace("volumes/ground_truth/"), spec, {"sources": ["synthetic"]})
        for _, box in volume.box.blocks((64, 512, 512)):
            volume.write(box, labels[Box(box.start, box.stop).slices].astype(np.uint32))
        overwrite(session.workspace("tables/ground_truth_synapses/"), "ground_truth_synapses", pl.DataFrame(columns))
        return session.commit("ground truth")
