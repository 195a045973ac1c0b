"""Stitched sections become a stack: neighbours are matched in windows, all sections are placed together.

From montages to a volume, section by section (what is carried from step to step is small)::

    matches = {(i, j): match_sections(picture(i), picture(j)) for i, j in pairs(count, reach=2)}    # each pair alone
    placements = solve_stack(count, matches)                                                  # once, over all windows
    image, mask = render_section(                                                             # each section alone
        tiles[i], stitched[i], origin, shape,
        from_canvas=placements[i].from_volume, displacement=placements[i].displacement(origin, shape),
    )

`SectionMatch.table()`, `Stitched.table()` and `Placement.to_json()` carry the results between those three steps.

A `Picture` is a section's montage with its mask and origin. A placement takes a point (y, x) of the section's stitched
frame to the volume: an affine near the identity, plus a coarse grid of displacements. All are in pixels.

What fixes what: neighbouring windows fix the sections against each other; the stage (the identity) holds the stack as a
whole, because errors of neighbours add up along z and because neurites truly lean: sections moved so that every profile
stays put would straighten them. The grid is held small for the same reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from transforms.kernels.geometry import Points, identity
from transforms.kernels.placement import Extent, Placement, folds_of, node_weights
from transforms.kernels.windows import AlignParams, Picture, SectionMatch, match_sections

__all__ = ["AlignParams", "Picture", "Placement", "SectionMatch", "match_sections", "pairs", "solve_stack"]


def pairs(count: int, reach: int) -> list[tuple[int, int]]:
    """List the section pairs to match, each with its next `reach` ones."""
    return [(i, i + step) for step in range(1, reach + 1) for i in range(count - step)]


def solve_stack(
    count: int, matches: Mapping[tuple[int, int], SectionMatch], params: AlignParams | None = None
) -> list[Placement]:
    """Place `count` sections so that matched windows meet, robustly, held to the stage by weak priors.

    Parameters
    ----------
    matches : (i, j) -> windows of section i found in section j
    """
    params = params or AlignParams()
    matches = {pair: match for pair, match in matches.items() if match.tells(params)}
    clouds = [m.points[m.kept] for m in matches.values()] + [m.found[m.kept] for m in matches.values()]
    cloud = np.concatenate([c for c in clouds if len(c)]) if any(len(c) for c in clouds) else np.zeros((1, 2))
    low, high = cloud.min(axis=0), np.maximum(cloud.max(axis=0), cloud.min(axis=0) + 1)
    frame = _Frame((low + high) / 2, (high - low) / 2, (low[0], low[1], high[0], high[1]), params.nodes)
    solution = _least_squares(count, matches, frame, params)
    placements = []
    for section in range(count):
        mine = solution[section]
        affine = identity()
        affine[:, :2] += (mine[1:3] / frame.half[:, None]).T
        affine[:, 2] += mine[0] - (mine[1:3] / frame.half[:, None]).T @ frame.middle
        grid = mine[3:].T.reshape(2, params.nodes, params.nodes)
        tied = any(section in pair for pair in matches)
        folds = folds_of(affine, grid, frame.extent)
        placements.append(Placement(affine, grid, frame.extent, float("nan"), folds, tied))
    return [_with_residual(section, placements, matches) for section in range(count)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Coordinates of the solve: -1 to 1 over the matched area, so that all unknowns are pixels at its rim."""

    middle: NDArray[np.float64]
    half: NDArray[np.float64]
    extent: Extent
    nodes: int

    def basis(self, points: Points) -> NDArray[np.float64]:
        """Give (n, 3 + nodes^2): 1, y, x and the bilinear weights of the grid at `points`."""
        unit = (points - self.middle) / self.half
        parts = [np.ones((len(points), 1)), unit]
        if self.nodes:
            parts.append(node_weights(points, self.extent, self.nodes))
        return np.concatenate(parts, axis=1)


def _least_squares(
    count: int, matches: Mapping[tuple[int, int], SectionMatch], frame: _Frame, params: AlignParams
) -> NDArray[np.float64]:
    """Solve for (count, unknowns, 2): a section's point p moves by basis(p) @ unknowns. Cauchy weights, reweighted."""
    from scipy.sparse import coo_matrix, csr_matrix, diags
    from scipy.sparse.linalg import splu

    size = 3 + params.nodes**2
    prior = (
        np.concatenate([[params.stage_sigma], [params.linear_sigma] * 2, [params.elastic_sigma] * params.nodes**2])
        ** -2.0
    )
    rows, columns, values, targets, trust = [], [], [], [], []
    total = 0
    for (i, j), match in matches.items():
        n = int(match.kept.sum())
        a, b = match.points[match.kept], match.found[match.kept]
        row = np.repeat(np.arange(total, total + n), size)
        for section, points, sign in ((i, a, 1.0), (j, b, -1.0)):
            rows.append(row)
            columns.append(np.tile(np.arange(section * size, (section + 1) * size), n))
            values.append(sign * frame.basis(points).ravel())
        targets.append(b - a)
        # A pair of many windows weighs no more than its own error allows: windows of one pair err together.
        # Nor than its distance in z: sections further apart share less.
        sigma = params.pair_sigma * abs(j - i)
        trust.append(np.full(n, min(params.window_sigma**-2, sigma**-2 / n)))
        total += n
    if not total:
        return np.zeros((count, size, 2))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    design: csr_matrix = coo_matrix(entries, shape=(total, count * size)).tocsr()
    target, base = np.concatenate(targets), np.concatenate(trust)
    anchor = diags(np.tile(prior, count))
    weights = np.ones(total)
    solution = np.zeros((count * size, 2))
    for _ in range(8):
        weighted = diags(weights * base) @ design
        solution = np.asarray(splu((design.T @ weighted + anchor).tocsc()).solve(weighted.T @ target))
        error = np.linalg.norm(design @ solution - target, axis=1)
        weights = 1 / (1 + (error / 1.5) ** 2)
    return solution.reshape(count, size, 2)


def _with_residual(
    section: int, placements: Sequence[Placement], matches: Mapping[tuple[int, int], SectionMatch]
) -> Placement:
    gaps = [
        np.linalg.norm(placements[i].move(m.points[m.kept]) - placements[j].move(m.found[m.kept]), axis=1)
        for (i, j), m in matches.items()
        if section in (i, j)
    ]
    all_gaps = np.concatenate(gaps) if gaps else np.zeros(0)
    mine = placements[section]
    residual = float(np.median(all_gaps)) if all_gaps.size else float("nan")
    return replace(mine, residual=residual)
