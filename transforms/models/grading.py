"""Grade a trained model on synthetic samples that no training sees, and write the figures into its card.

Seeds from 100 to 999 are for this: below are demonstrations, above are trainings. The figures do not enter the model's
digest, so grading again, or more, leaves it the same model.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.measures import SynapseScore, contingency, score, synapse_f1
from transforms.kernels.synapses import SynapseParameters, find_synapses
from transforms.models.inference import CARD, Model, load_model
from transforms.models.samples import change
from transforms.models.scores import Variation, best, segment
from transforms.synthetic.neuropil import Neuropil, neuropil

SEEDS = (100, 101, 102)
SHAPE: Zyx = (48, 256, 256)
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(11))
MATCH_NM = 150.0


def grade(folder: Path, *, seeds: Sequence[int] = SEEDS, shape: Zyx = SHAPE) -> dict[str, Any]:
    """Score the model in `folder`, write the figures into its card and return them."""
    model = load_model(folder)
    samples = (neuropil(seed, shape) for seed in seeds)
    figures = _affinity(model, samples) if model.kind == "affinity" else _synapse(model, samples)
    metrics = {**model.card.get("metrics", {}), **figures, "seeds": list(seeds), "shape": list(shape)}
    path = folder / CARD
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps({**model.card, "metrics": metrics}, indent=2) + "\n")
    os.replace(temporary, path)
    return metrics


def acquired(sample: Neuropil) -> NDArray[np.uint8]:
    """The sample's image after an acquisition: noise, drift and shifts as in training, from the sample's seed."""
    return change(sample.image, np.random.default_rng([sample.seed, 5]))


def variations(
    affinity: NDArray[np.uint8], sample: Neuropil, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, dict[float, Variation]]:
    """Score the segmentation that `affinity` gives: "all", "usual" and "odd" (the two stains), by threshold."""
    odd = np.zeros(sample.labels.shape, bool)
    if sample.odd_box is not None:
        odd[sample.odd_box.slices] = True
    truths = {
        "all": sample.labels,
        "usual": np.where(odd, 0, sample.labels),
        "odd": np.where(odd, sample.labels, 0),
    }
    found = segment(affinity, voxel_nm=sample.voxel_nm, thresholds=thresholds)
    scored: dict[str, dict[float, Variation]] = {}
    for part, truth in truths.items():
        for threshold, labels in found.items():
            table = score(contingency(labels, truth))
            scored.setdefault(part, {})[threshold] = Variation(table.vi_split, table.vi_merge)
    return scored


def synapses_found(sites: NDArray[np.uint8], sample: Neuropil, parameters: SynapseParameters) -> SynapseScore:
    """Score the synapses that `sites` (2, z, y, x) give when neurites are known: it is the sites that are judged."""
    box = Box((0, 0, 0), sample.labels.shape)
    labels = sample.labels.astype(np.int64)
    names = np.arange(int(labels.max()) + 1)
    table = find_synapses(
        sites, labels, (names, names), box=box, core=box, bounds=box, cell=box.shape, voxel_nm=sample.voxel_nm,
        parameters=parameters,
    )  # fmt: skip
    truth, size = sample.synapses, np.array(sample.voxel_nm)
    return synapse_f1(
        table.select("ctr_pt_position_z", "ctr_pt_position_y", "ctr_pt_position_x").to_numpy(),
        table.select("pre_pt_root_id", "post_pt_root_id").to_numpy(),
        (truth.centre + 0.5) * size,
        np.stack([truth.pre_id, truth.post_id], axis=1),
        MATCH_NM,
    )


def _affinity(model: Model, samples: Iterable[Neuropil]) -> dict[str, Any]:
    """Give mean VI over the samples at the threshold that is best for the usual stain."""
    graded = [variations(model.predict(acquired(sample)), sample) for sample in samples]
    mean = {
        part: {
            t: Variation(*np.mean([(g[part][t].split, g[part][t].merge) for g in graded], axis=0)) for t in THRESHOLDS
        }
        for part in graded[0]
    }
    threshold = best(mean["usual"])
    return {"threshold": threshold, **{part: scores[threshold].to_json() for part, scores in mean.items()}}


def _synapse(model: Model, samples: Iterable[Neuropil]) -> dict[str, Any]:
    hits = wrong = missed = 0
    for sample in samples:
        found = synapses_found(model.predict(acquired(sample)), sample, SynapseParameters())
        hits += found.true_positives
        wrong += found.false_positives
        missed += found.false_negatives
    f1 = 2 * hits / max(2 * hits + wrong + missed, 1)
    return {"f1": round(f1, 3), "found": hits, "wrong": wrong, "missed": missed, "match_nm": MATCH_NM}
