"""The demo's report: one HTML file, everything inline, so that it opens offline."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box
from lake.ids import mix64
from lake.repository import Repository
from lake.snapshot import Snapshot
from releases.app.story import FAST, GOOD, tell

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --faint: #68727f; --line: #d9dee5; --ok: #1b7f4b; --bad: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p.story { white-space: pre-line; } .faint { color: var(--faint); } .ok { color: var(--ok); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } code { font-size: 13px; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--faint); }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; } img { width: 100%; display: block; }
svg text { font: 11px system-ui, sans-serif; }
"""


def write_report(repo: Repository, story: Mapping[str, Any], path: Path) -> Path:
    """Write the report and return its path."""
    parts = [
        "<h1>From tiles to a release, and back</h1>",
        f'<p class="faint">{_text(story["repository"])}, seed {story["seed"]}</p>',
        f'<p class="story">{_text(tell(dict(story)))}</p>',
        "<h2>Sections and segmentation</h2>",
        _pictures(repo, story),
        "<h2>Quality by region</h2>",
        _regions(story),
        "<h2>Quality, whole volume</h2>",
        _metrics(story),
        "<h2>What the gate refused</h2>",
        _refused(story),
        "<h2>Runs: throughput and cost</h2>",
        _runs(story),
        "<h2>Tiles</h2>",
        _table(("status", "tiles", "reasons"), [(t["status"], t["tiles"], t["reasons"]) for t in story["tiles"]]),
        "<h2>Releases and decisions</h2>",
        _history(story),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>emlake demo</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
    return path


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cell(value: object, tag: str = "td") -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = _figure(value) if isinstance(value, float) else "" if value is None else _text(value)
        return f"<{tag}{' class=n' if number else ''}>{shown}</{tag}>"

    numeric = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(head))]
    titles = "".join(f"<th{' class=n' if n else ''}>{_text(h)}</th>" for h, n in zip(head, numeric, strict=True))
    body = "".join("<tr>" + "".join(cell(v) for v in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _figure(value: float) -> str:
    # 144 synapses, not 144.000; but a column of shares keeps its places.
    return f"{value:,.0f}" if value.is_integer() and value > 1 else f"{value:,.3f}"


# -- pictures ---------------------------------------------------------------------------------------------------------
def _png(image: NDArray[np.uint8]) -> str:
    import cv2

    _, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Give each label a colour of its own, the same in every picture: (y, x) to (y, x, 3) uint8; 0 is black."""
    ids, inverse = np.unique(labels, return_inverse=True)
    words = mix64(ids.astype(np.uint64))
    shades = np.stack([(words >> np.uint64(8 * k)) & np.uint64(255) for k in range(3)], axis=1)
    shades = (64 + shades * 3 // 4).astype(np.uint8)
    shades[ids == 0] = 0
    return np.asarray(shades[inverse].reshape(*labels.shape, 3), np.uint8)


def _section(snapshot: Snapshot, name: str, z: int) -> NDArray[Any]:
    volume = snapshot.volume(name)
    (_, y0, x0), (_, y1, x1) = volume.box.start, volume.box.stop
    return np.asarray(volume.read(Box((z, y0, x0), (z + 1, y1, x1)))[0])


def _pictures(repo: Repository, story: Mapping[str, Any]) -> str:
    with repo.snapshot(GOOD) as good, repo.snapshot(FAST) as fast:
        box = good.volume("em").box
        z = (box.start[0] + box.stop[0]) // 2
        em = _section(good, "em", z)
        nm = good.volume("em").spec.voxel_nm_zyx
        panels = [(f"EM, section {z}", em), *((f"segments of {n}", _overlay(em, _section(s, "segmentation", z)))
                  for n, s in ((GOOD, good), (FAST, fast)))]  # fmt: skip
    frames = list(story["damage"]["boxes_nm"].values())
    rectangles = "".join(
        f'<rect x="{b[0] / nm[2]}" y="{b[1] / nm[1]}" width="{(b[3] - b[0]) / nm[2]}" height="{(b[4] - b[1]) / nm[1]}" '
        'fill="none" stroke="#ff3b30" stroke-width="2"/>'
        for b in frames
    )
    figures = []
    for caption, image in panels:
        height, width = image.shape[:2]
        marks = rectangles if caption.endswith(FAST) else ""
        figures.append(
            f'<figure><svg viewBox="0 0 {width} {height}"><image href="{_png(np.ascontiguousarray(image))}" '
            f'width="{width}" height="{height}"/>{marks}</svg><figcaption>{_text(caption)}'
            f"{', damaged regions framed' if marks else ''}</figcaption></figure>"
        )
    return f'<div class="row">{"".join(figures)}</div>'


def _overlay(em: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.uint8]:
    mixed = 0.45 * em[..., None].astype(np.float32) + 0.55 * colours(labels)
    return np.where((labels == 0)[..., None], em[..., None], mixed).astype(np.uint8)


def _regions(story: Mapping[str, Any]) -> str:
    """Draw VI by region as grids of cells, one grid per layer of regions in z."""
    values = story["regions"]
    every = sorted({tuple(map(int, r.split("_"))) for found in values.values() for r in found})
    if not every:
        return "<p>No region was scored.</p>"
    top = max(max(found.values(), default=0.0) for found in values.values()) or 1.0
    size = 46
    figures = []
    for name in (GOOD, FAST):
        for layer in sorted({r[0] for r in every}):
            cells = [r for r in every if r[0] == layer]
            height, width = (max(r[axis] for r in cells) + 1 for axis in (1, 2))
            drawn = "".join(_cell(r, values[name].get("_".join(map(str, r))), top, size, story) for r in cells)
            figures.append(
                f'<figure><svg viewBox="0 0 {width * size} {height * size}">{drawn}</svg>'
                f"<figcaption>{name}, layer {layer}: VI in bits; found damage is framed</figcaption></figure>"
            )
    return f'<div class="row" style="grid-template-columns: 1fr 1fr">{"".join(figures)}</div>'


def _cell(region: tuple[int, ...], value: float | None, top: float, size: int, story: Mapping[str, Any]) -> str:
    x, y = region[2] * size, region[1] * size
    share = 0.0 if value is None else value / top
    fill = "#eee" if value is None else f"hsl({210 - 200 * share:.0f} 70% {92 - 42 * share:.0f}%)"
    found = "_".join(map(str, region)) in story["damage"]["regions"]
    frame = "#b3261e" if found else "#fff"
    label = "" if value is None else f"{value:.2f}"
    return (
        f'<rect x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 2}" fill="{fill}" stroke="{frame}" '
        f'stroke-width="{2 if found else 1}"/>'
        f'<text x="{x + size / 2}" y="{y + size / 2 + 4}" text-anchor="middle">{label}</text>'
    )


# -- tables -----------------------------------------------------------------------------------------------------------
def _metrics(story: Mapping[str, Any]) -> str:
    good, fast = story["metrics"][GOOD], story["metrics"][FAST]
    return _table(("metric", GOOD, FAST), [(m, good.get(m), fast.get(m)) for m in sorted(good)])


def _refused(story: Mapping[str, Any]) -> str:
    rows = [
        (r["gate"], r["metric"], r["scope_id"] or "whole volume", r["baseline"], r["value"], r["bound"], r["unit"])
        for r in story["refused"]
    ]
    return _table(("gate", "metric", "region", GOOD, FAST, "limit", "unit"), rows)


def _runs(story: Mapping[str, Any]) -> str:
    rows = []
    for run in story["runs"]:
        rate = run["accepted_voxels"] / run["cpu_s"] / 1e6 if run["cpu_s"] else None
        model = (run["model_digest"] or "")[:12]
        rows.append((run["branch"], run["stage"], model, run["blocks"], run["cpu_s"], rate, run["cost"]))
    return _table(("branch", "stage", "model", "blocks", "CPU s", "Mvox per CPU s", "cost"), rows)


def _history(story: Mapping[str, Any]) -> str:
    releases = [
        (
            r["name"],
            r["commit"][:12],
            r["manifest_digest"][:12],
            f"rolled back by {r['undone_by'][:12]}" if r["undone_by"] else "stands",
        )
        for r in story["releases"]
    ]
    decisions = [
        (f"{d['ts']:%Y-%m-%d %H:%M}", d["kind"], d["release"], d["target"], d["reason"]) for d in story["decisions"]
    ]
    return _table(("release", "commit", "manifest", "state"), releases) + _table(
        ("when", "decision", "release", "main holds", "reason"), decisions
    )
