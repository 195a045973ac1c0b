"""Metrics as pure functions: frames and arrays in, measured values out. Every metric has a unit and a definition.

A value that cannot be computed is `unknown` with the reason, never left out and never zero.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lake.measures import Scores, synapse_f1

Labels = NDArray[Any]
BoxNm = tuple[float, float, float, float, float, float]
BoxOf = Callable[[str], BoxNm]

DEFINITIONS: dict[str, tuple[str, str]] = {
    "tile_integrity": ("1", "share of tiles not in quarantine whose bytes decode and match their recorded sha256"),
    "tile_focus_min": ("1", "least focus of a tile not in quarantine: variance of Laplacian over the section median"),
    "tile_quarantine_share": ("1", "share of tiles in quarantine"),
    "tile_saturation_max": ("1", "largest share of clipped pixels of a tile not in quarantine"),
    "stitch_residual_p95": ("px", "95th percentile of seam residuals after the solve; globally the worst section"),
    "coverage": ("1", "share of a section's area that tiles cover"),
    "coverage_min": ("1", "least coverage of any section"),
    "alignment_ncc": ("1", "median correlation with the previous section"),
    "alignment_residual": ("px", "median match residual against the previous section; globally the worst section"),
    "coverage_holes": ("holes", "connected uncovered areas, summed over the sections"),
    "alignment_outliers": (
        "sections",
        "sections whose correlation with the previous one lies below the median of the 11 around it by over 4 MAD and "
        "over 0.05",
    ),
    "alignment_folds": ("cells", "grid cells with a non-positive Jacobian; globally their sum"),
    "vi_split": ("bits", "H(segmentation | truth), voxels with truth > 0"),
    "vi_merge": ("bits", "H(truth | segmentation), voxels with truth > 0"),
    "adapted_rand_error": ("1", "1 - F-score of voxel pairs, voxels with truth > 0"),
    "labelled_voxels": ("voxels", "voxels with truth > 0, on which the scores above are computed"),
    "block_continuity": ("1", "label agreement across block faces over that across planes one voxel inside"),
    "orphan_share": ("1", "share of voxels in segments of at least 1000 voxels without boundary contact and synapse"),
    "largest_segment_share": ("1", "voxels of the largest segment over all voxels of segments"),
    "merge_suspects": ("segments", "segments on 5 or 6 faces of the volume or over a tenth of all segment voxels"),
    "synapse_f1": ("1", "F1 of synapses matched one to one within 300 nm between the same pair of true cells"),
    "synapse_precision": ("1", "share of detected synapses that are matched, as for synapse_f1"),
    "synapse_recall": ("1", "share of true synapses that are matched, as for synapse_f1"),
    "synapse_binding": ("1", "share of synapses with a root on both sides"),
    "autapse_share": ("1", "share of bound synapses with the same root on both sides"),
    "synapses": ("synapses", "detected synapses"),
    "graph_violations": ("rows", "rows that break a rule of the segment graph, over all checks of kind graph"),
    "missing_blocks": ("blocks", "planned blocks without a record or without what they left, plus missing chunks"),
}  # fmt: skip
MATCH_NM = 300.0
ORPHAN_VOXELS = 1000
MANY_FACES = 5
LARGE_SHARE = 0.1

# Global metrics by what they are computed from: all of a group are unknown if that is missing.
TILE_METRICS = ("tile_integrity", "tile_focus_min", "tile_saturation_max", "tile_quarantine_share")
SECTION_METRICS = (
    "stitch_residual_p95", "coverage_min", "coverage_holes", "alignment_residual", "alignment_folds",
    "alignment_outliers",
)  # fmt: skip
SCORE_METRICS = ("vi_split", "vi_merge", "adapted_rand_error", "labelled_voxels")
SEGMENT_METRICS = ("orphan_share", "largest_segment_share", "merge_suspects")
BINDING_METRICS = ("synapse_binding", "autapse_share", "synapses")
DETECTION_METRICS = ("synapse_f1", "synapse_precision", "synapse_recall")
GLOBAL_METRICS = (
    *TILE_METRICS, *SECTION_METRICS, *SCORE_METRICS, "block_continuity", "graph_violations", *SEGMENT_METRICS,
    *BINDING_METRICS, *DETECTION_METRICS, "missing_blocks",
)  # fmt: skip


class Places(Protocol):
    """Names the regions of points, and gives their boxes: `qc.regions.Grid`."""

    def regions_at(self, points: NDArray[np.float64]) -> list[str]:
        """Name the region of each point, (n, 3) z, y, x in nm."""
        ...

    def box_nm(self, region: str) -> BoxNm:
        """Give a region's box."""
        ...


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value.

    Parameters
    ----------
    scope : str
        global, region, section or tile; `scope_id` says which one.
    value : float or None
        None if unknown, and then `reason` says why.
    box : (min_x, min_y, min_z, max_x, max_y, max_z) nm, half-open, or None
    """

    metric: str
    scope: str
    scope_id: str
    value: float | None
    reason: str = ""
    box: BoxNm | None = None

    def __post_init__(self) -> None:
        # A score over nothing is nan.
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)

    def row(self) -> dict[str, Any]:
        """Give the row of `qc_metrics`, but for commit and run."""
        unit, definition = DEFINITIONS[self.metric]
        known = self.value is not None
        box = self.box or (None,) * 6
        names = ("min_x", "min_y", "min_z", "max_x", "max_y", "max_z")
        return {
            "metric": self.metric,
            "scope": self.scope,
            "scope_id": self.scope_id,
            **dict(zip(names, box, strict=True)),
            "value": None if self.value is None else float(self.value),
            "unit": unit,
            "definition": definition,
            "status": "ok" if known else "unknown",
            "reason": None if known else (self.reason or "there is nothing to measure"),
        }


def everywhere(metric: str, value: float | None, reason: str = "") -> Metric:
    """Make a global metric."""
    return Metric(metric, "global", "", value, reason)


def tile_metrics(tiles: pl.DataFrame, damaged: Mapping[str, str]) -> list[Metric]:
    """Measure the tiles that are not in quarantine.

    Parameters
    ----------
    tiles : frame of table `tiles`
    damaged : mapping of path to fault
        Tiles whose bytes were read again and found wrong.
    """
    kept = tiles.filter(pl.col("status") == "ok")
    if kept.is_empty():
        return [everywhere(m, None, "no tile is in use") for m in TILE_METRICS]
    good = kept.filter(pl.col("shape_x").is_not_null() & ~pl.col("path").is_in(list(damaged)))
    bad = [Metric("tile_integrity", "tile", path, 0.0) for path in sorted(damaged)]
    return [
        everywhere("tile_integrity", good.height / kept.height),
        everywhere("tile_focus_min", _number(kept["focus"].min()), "no tile has a focus value"),
        everywhere("tile_saturation_max", _number(kept["saturation"].max()), "no tile has a saturation value"),
        everywhere("tile_quarantine_share", 1 - kept.height / tiles.height),
        *bad,
    ]


def section_metrics(sections: pl.DataFrame) -> list[Metric]:
    """Measure stitching, coverage and alignment per section, and the worst of each globally."""
    columns = {
        "stitch_residual_p95": "residual_px", "coverage": "coverage", "alignment_ncc": "ncc",
        "alignment_residual": "alignment_residual_px", "alignment_folds": "folds",
    }  # fmt: skip
    found = [
        Metric(metric, "section", str(row["section"]), _number(row[column]))
        for row in sections.sort("section").to_dicts()
        for metric, column in columns.items()
        # The first section has no predecessor, a single tile has no seam: no row, rather than an unknown one.
        if row[column] is not None
    ]
    none = "the table of sections holds no value"
    return [
        *found,
        everywhere("stitch_residual_p95", _number(sections["residual_px"].max()), none),
        everywhere("coverage_min", _number(sections["coverage"].min()), none),
        everywhere("coverage_holes", _sum(sections["holes"]), none),
        everywhere("alignment_residual", _number(sections["alignment_residual_px"].max()), none),
        everywhere("alignment_folds", _sum(sections["folds"]), "not every section has a value"),
        everywhere("alignment_outliers", _outliers(sections.sort("section")["ncc"]), none),
    ]


def _sum(column: pl.Series) -> float | None:
    # A sum leaves nulls out and is 0 over nothing: a section that nobody looked at would read as flawless.
    return float(column.sum()) if len(column) and not column.null_count() else None


def _outliers(ncc: pl.Series) -> float | None:
    values = ncc.drop_nulls().to_numpy()
    if not len(values):
        return None
    around = np.array([np.median(values[max(0, i - 5) : i + 6]) for i in range(len(values))])
    limit = max(4 * float(np.median(np.abs(values - around))), 0.05)
    return float((around - values > limit).sum())


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def score_metrics(scores: Scores, scope: str, scope_id: str, box: Any = None) -> list[Metric]:
    """Turn scores against the truth into metrics; a place without truth gives none but globally."""
    if scores.voxels == 0 and scope != "global":
        return []
    reason = "no voxel is labelled in volumes/ground_truth"
    values = {
        "vi_split": scores.vi_split, "vi_merge": scores.vi_merge, "adapted_rand_error": scores.adapted_rand_error,
        "labelled_voxels": float(scores.voxels),
    }  # fmt: skip
    return [Metric(metric, scope, scope_id, value, reason, box) for metric, value in values.items()]


@dataclass(frozen=True, slots=True)
class Continuity:
    """Voxel pairs that agree, and all, across block faces and one voxel inside them."""

    face_same: int = 0
    face_all: int = 0
    inner_same: int = 0
    inner_all: int = 0

    def __add__(self, other: "Continuity") -> "Continuity":
        return Continuity(
            self.face_same + other.face_same,
            self.face_all + other.face_all,
            self.inner_same + other.inner_same,
            self.inner_all + other.inner_all,
        )

    @property
    def ratio(self) -> float | None:
        """Agreement across faces over agreement inside; near 1 if blocks leave no trace."""
        if not self.face_all or not self.inner_same:
            return None
        return (self.face_same / self.face_all) / (self.inner_same / self.inner_all)


def agreement(one: Labels, other: Labels) -> tuple[int, int]:
    """Count the places where two planes have the same label, and where both have one."""
    both = (one != 0) & (other != 0)
    return int(((one == other) & both).sum()), int(both.sum())


def orphans(segments: pl.DataFrame, synapses: pl.DataFrame) -> pl.Series:
    """Name the orphans: roots of at least `ORPHAN_VOXELS` voxels that touch no face of the volume and no synapse."""
    bound = pl.concat([synapses["pre_pt_root_id"], synapses["post_pt_root_id"]]).unique()
    chosen = segments.filter(
        (pl.col("voxels") >= ORPHAN_VOXELS)
        & (pl.col("boundary_faces").fill_null(0) == 0)
        & ~pl.col("root_id").is_in(bound.implode())
    )
    return chosen["root_id"]


def orphan_metrics(sizes: pl.DataFrame, roots: pl.Series, box_of: BoxOf) -> list[Metric]:
    """Give the share of voxels in orphans, globally and by region.

    `sizes` has columns region, root_id, voxels; `box_of` gives the nm box of a region.
    """
    total = int(sizes["voxels"].sum())
    lost = sizes.with_columns(
        lost=pl.when(pl.col("root_id").is_in(roots.implode())).then(pl.col("voxels")).otherwise(0)
    )
    by_region = lost.group_by("region").agg(pl.col("lost").sum(), pl.col("voxels").sum()).sort("region")
    share = int(lost["lost"].sum()) / total if total else None
    return [
        everywhere("orphan_share", share, "there are no supervoxels"),
        *(
            Metric("orphan_share", "region", row["region"], row["lost"] / row["voxels"], box=box_of(row["region"]))
            for row in by_region.to_dicts()
        ),
    ]


def size_metrics(segments: pl.DataFrame) -> list[Metric]:
    """Measure what hints at merge errors: `segments` has columns root_id, voxels, boundary_faces."""
    none = "there are no segments"
    total = float(segments["voxels"].sum())
    if not total:
        return [everywhere(name, None, none) for name in ("largest_segment_share", "merge_suspects")]
    suspects = segments.filter(
        (pl.col("boundary_faces").fill_null(6) >= MANY_FACES) | (pl.col("voxels") > LARGE_SHARE * total)
    )
    return [
        everywhere("largest_segment_share", float(segments["voxels"].to_numpy().max()) / total),
        everywhere("merge_suspects", float(suspects.height)),
    ]


def binding_metrics(synapses: pl.DataFrame, box_of: BoxOf) -> list[Metric]:
    """Measure how many synapses are bound on both sides and how many are autapses, globally and by region."""
    bound = (pl.col("pre_pt_root_id") != 0) & (pl.col("post_pt_root_id") != 0)
    marked = synapses.select(
        "region", bound.alias("bound"), (bound & (pl.col("pre_pt_root_id") == pl.col("post_pt_root_id"))).alias("self")
    )
    found: list[Metric] = []
    groups: Iterable[tuple[str, str, pl.DataFrame]] = [("global", "", marked)]
    groups = [
        *groups,
        *(("region", str(key[0]), part) for key, part in marked.group_by(["region"], maintain_order=True)),
    ]
    for scope, scope_id, part in groups:
        n, n_bound = part.height, int(part["bound"].sum())
        place = (scope, scope_id)
        none = "there are no synapses"
        box = box_of(scope_id) if scope_id else None
        found += [
            Metric("synapse_binding", *place, n_bound / n if n else None, none, box),
            Metric("autapse_share", *place, int(part["self"].sum()) / n_bound if n_bound else None, none, box),
            Metric("synapses", *place, float(n), none, box),
        ]
    # A region whose few synapses are all unbound has no autapse share: leave the row out, it says nothing.
    return [m for m in found if m.scope == "global" or m.value is not None]


def synapse_metrics(
    points: NDArray[np.float64], pairs: Labels, true_points: NDArray[np.float64], true_pairs: Labels
) -> list[Metric]:
    """Score detected synapses against the true ones.

    Parameters
    ----------
    points, true_points : (n, 3) float64
        Centres, nm.
    pairs, true_pairs : (n, 2) integer
        True cells (pre, post) under the two ends.
    """
    if len(true_points) == 0:
        return [everywhere(m, None, "no synapse is known") for m in DETECTION_METRICS]
    result = synapse_f1(points, pairs, true_points, true_pairs, MATCH_NM)
    return [
        everywhere("synapse_f1", result.f1),
        everywhere("synapse_precision", result.precision, "no synapse was detected"),
        everywhere("synapse_recall", result.recall),
    ]


def synapse_region_metrics(
    points: NDArray[np.float64], pairs: Labels, true_points: NDArray[np.float64], true_pairs: Labels, places: Places
) -> list[Metric]:
    """Give F1 by region, for the regions that hold a synapse: a match counts where it was detected.

    A pair is matched over the whole volume first, so that no region's border costs a match.
    """
    if len(true_points) == 0:
        return []
    match = synapse_f1(points, pairs, true_points, true_pairs, MATCH_NM).match
    missed = np.setdiff1d(np.arange(len(true_points)), match)
    counts: dict[str, list[int]] = {}
    for region, hit in zip(places.regions_at(points), (match >= 0).tolist(), strict=True):
        counts.setdefault(region, [0, 0])[0 if hit else 1] += 1
    for region in places.regions_at(true_points[missed]):
        counts.setdefault(region, [0, 0])[1] += 1
    return [
        Metric("synapse_f1", "region", region, 2 * hits / (2 * hits + wrong), box=places.box_nm(region))
        for region, (hits, wrong) in sorted(counts.items())
    ]
