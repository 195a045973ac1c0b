"""Training on a real volume with dense truth, and scoring on the part that was kept out of it.

The volume is cut in two along x by a plane. Affinities are learnt on one side; on the other, of which training saw no
voxel, the segmentation is scored beside a supplied over-segmentation. The merging threshold is chosen on the training
side alone. Weights learnt from real data are for the caller's own folder: the project keeps none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lake.errors import BadInput
from transforms.models.inference import load_model
from transforms.models.samples import ArraySource
from transforms.models.scores import Variation, best, segment, variation
from transforms.models.training import TrainConfig, train

Labels = NDArray[np.integer]
Nm = tuple[float, float, float]
_THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(17))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Figures on the part that training did not see.

    Parameters
    ----------
    ours, supplied : Variation
        Of our segmentation and of the supplied one, on the same voxels.
    threshold : float
        Mean affinity down to which fragments were merged; chosen on the training part.
    training : Variation
        Of our segmentation on the training part at that threshold.
    """

    ours: Variation
    supplied: Variation
    threshold: float
    training: Variation


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume with truth.

    Parameters
    ----------
    em : (z, y, x) uint8
    truth, supplied : (z, y, x) integer
        Bodies proofread by people, and the segmentation to compare with; 0 in the truth does not count.
    voxel_nm : (z, y, x) float
    """

    em: NDArray[np.uint8]
    truth: Labels
    supplied: Labels
    voxel_nm: Nm

    @classmethod
    def read(cls, path: Path) -> "Volume":
        """Read an npz file with `raw`, `gt`, `ws` and `voxel_nm`, as FIB-25 is supplied; else `BadInput`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                z, y, x = map(float, file["voxel_nm"])
                return cls(file["raw"], file["gt"], file["ws"], (z, y, x))
        except (OSError, KeyError, ValueError) as error:
            raise BadInput(
                f"{path} cannot be read as a volume: {error}", fix="give raw, gt, ws and voxel_nm"
            ) from error

    def part(self, x: slice) -> "Volume":
        """Cut along x."""
        cut = (slice(None), slice(None), x)
        return Volume(
            np.ascontiguousarray(self.em[cut]),
            np.ascontiguousarray(self.truth[cut]),
            np.ascontiguousarray(self.supplied[cut]),
            self.voxel_nm,
        )


def train_and_score(
    volume: Volume,
    config: TrainConfig,
    folder: Path,
    *,
    train_below: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> HeldOut:
    """Train on x < `train_below` into `folder`, score on the rest."""
    learnt, kept_out = volume.part(slice(0, train_below)), volume.part(slice(train_below, None))
    source = ArraySource(config.crop_settings(), learnt.em, learnt.truth)
    train(config, folder, source=source, progress=progress, data={"volume": "given", "part": f"x < {train_below}"})
    model = load_model(folder)
    on_training = _scores(model.predict(learnt.em), learnt, _THRESHOLDS)
    threshold = best(on_training)
    ours = _scores(model.predict(kept_out.em), kept_out, (threshold,))[threshold]
    return HeldOut(ours, variation(kept_out.supplied, kept_out.truth), threshold, on_training[threshold])


def _scores(affinity: NDArray[np.uint8], part: Volume, thresholds: tuple[float, ...]) -> dict[float, Variation]:
    found = segment(affinity, voxel_nm=part.voxel_nm, thresholds=thresholds)
    return {threshold: variation(labels, part.truth) for threshold, labels in found.items()}
