"""What the embedded engine's operations cost from 1,000 to 1,000,000 objects, and after 10,000 commits.

The objects are staged as `put` stages them, over eight contents: what is measured is the history, not the disk. Each
figure is a median with its range, of the time on the wall and of the CPU. Asserted are ratios of CPU alone, which
whoever else uses the machine changes least: to the first commit, which looks at every object; to a listing of all,
which reads every range of the tree; and to the same operation on fewer objects or commits. The curve is drawn into
$EMLAKE_BENCH_PLOT, or a temporary file.
"""

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

import lake
from lake.engines.embedded.history import stage
from lake.engines.embedded.ranges import pack
from lake.scrub import scrub

SIZES = (1_000, 10_000, 100_000, 200_000, 1_000_000)
ROUNDS = 9
CHANGES = 1_000
COMMITS = 10_000
ALL = "list of all"
SPREAD = ("commit", "diff", "merge", "revert")
CPU = ", CPU"
Figures = dict[str, list[float]]
T = TypeVar("T")

pytestmark = pytest.mark.bench


def timed(figures: Figures, what: str, work: Callable[[], T]) -> T:
    """Do the work and note its seconds, and those of the CPU; give what it gave."""
    begun, cpu = time.perf_counter(), time.process_time()
    result = work()
    figures.setdefault(what, []).append(time.perf_counter() - begun)
    figures.setdefault(what + CPU, []).append(time.process_time() - cpu)
    return result


def peak_mib() -> float:
    """Give the most memory this process has held since `reset_peak`, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def key_of(number: int) -> str:
    return f"volumes/em/s0/{number // 1000:04}/{number % 1000:03}"


def fill(repo, count: int) -> None:
    """Stage `count` objects on main as `count` calls of put would; the eight contents are really put."""
    values = []
    for number in range(8):
        repo.put("main", f"contents/{number}", b"%d" % number)
        values.append(pack(hashlib.sha256(b"%d" % number).digest(), 1))
    engine = repo._engine
    with engine.db.read() as con:
        token = engine.history.branch(con, "main").token
    for low in range(0, count, 100_000):
        rows = {key_of(n).encode(): values[n % 8] for n in range(low, min(count, low + 100_000))}
        with engine.db.write() as con:
            stage(con, token, rows)


def one_round(repo, name: str, numbers: Sequence[int], figures: Figures) -> None:
    """Change objects on a branch, merge it into a main that has moved too, undo it; times go to `figures`."""
    timed(figures, "branch", lambda: repo.create_branch(name, "main"))
    timed(figures, "put", lambda: [repo.put(name, key_of(n), f"{name}.{n}".encode()) for n in numbers])
    timed(figures, "commit", lambda: repo.commit(name, "changes"))
    repo.put("main", f"aside/{name}", b"so that both sides moved")
    repo.commit("main", "aside")
    changes = timed(figures, "diff", lambda: list(repo.diff("main~1", name)))
    assert [change.key for change in changes] == [key_of(n) for n in numbers]
    ahead = timed(figures, "three-dot diff", lambda: list(repo.diff("main", name, three_dot=True)))
    assert ahead == changes
    timed(figures, "merge", lambda: repo.merge(name, "main", "joined"))
    assert repo.get("main", key_of(numbers[-1])) == f"{name}.{numbers[-1]}".encode()
    timed(figures, "revert", lambda: repo.revert("main", "main", parent=1))
    assert not list(repo.diff("main", "main~2"))
    prefix = key_of(numbers[0]).rpartition("/")[0] + "/"
    assert len(timed(figures, "list of 1,000", lambda: list(repo.list("main", prefix)))) == 1_000


def look_over(repo, count: int, figures: Figures) -> None:
    """List, scrub and (dry) collect a repository that holds the first commit of `count` objects and nothing else."""
    assert timed(figures, ALL, lambda: sum(1 for _ in repo.list("main"))) == count + 8
    kept = timed(figures, "gc --dry-run", lambda: repo.collect_garbage(dry_run=True))
    assert (kept.commits_kept, kept.commits_removed, kept.freed) == (2, 0, 0)
    assert not any(share.count for share in kept.removed.values())
    report = timed(figures, "scrub --all", lambda: scrub(repo, budget=None))
    checked = {part.kind: part.items for part in report.parts}
    assert (checked["commit"], checked["object"], report.left_objects) == (2, 8, 0)
    assert checked["manifest"] + checked["object"] == kept.kept["branches"].count
    # What is staged looks like a volume and has no metadata; nothing else is wrong.
    assert [(fault.kind, fault.name) for fault in report.faults] == [("volume", "volumes/em/")]


def clustered(count: int, turn: int) -> range:
    """Number 1,000 objects that lie together."""
    start = turn * 37_000 % count
    return range(start, start + CHANGES)


def scattered(count: int, turn: int) -> range:
    """Number 1,000 objects spread over all of them."""
    return range(turn, count, count // CHANGES)[:CHANGES]


def shown(
    title: str, figures: Mapping[str, Sequence[float]], record: Callable[[str, object], None]
) -> dict[str, float]:
    """Print medians with their range and give the medians, s."""
    print(f"\n{title}")
    medians = {}
    for name, values in figures.items():
        medians[name] = statistics.median(values)
        spread = f"({min(values) * 1e3:.1f}-{max(values) * 1e3:.1f}, n={len(values)})"
        print(f"  {name:28} {medians[name] * 1e3:9.1f} ms  {spread}")
        record(f"{title}: {name}", f"{medians[name] * 1e3:.1f} ms {spread}")
    return medians


def test_cost_grows_with_what_changed_and_not_with_what_is_there(tmp_path, record_property) -> None:
    curves: dict[int, dict[str, float]] = {}
    for count in SIZES:
        repo = lake.create(tmp_path / f"repo{count}")
        fill(repo, count)
        reset_peak()
        near: Figures = {}
        far: Figures = {}
        timed(near, "first commit", lambda: repo.commit("main", "first"))  # noqa: B023
        print(f"\n{count:,} objects: most memory held at the first commit {peak_mib():.0f} MiB")
        look_over(repo, count, near)
        for turn in range(ROUNDS):
            one_round(repo, f"near{turn}", clustered(count, turn), near)
        for turn in range(3):
            one_round(repo, f"far{turn}", scattered(count, turn), far)
        repo.close()
        print(f"{count:,} objects: most memory held {peak_mib():.0f} MiB")
        record_property(f"memory at {count}", f"{peak_mib():.0f} MiB")
        curves[count] = shown(f"{count:,} objects, 1,000 changes that lie together", near, record_property)
        spread = shown(f"{count:,} objects, 1,000 changes spread over all", far, record_property)
        curves[count] |= {f"{name}, spread": spread[name] for name in SPREAD}
    plot = Path(os.environ.get("EMLAKE_BENCH_PLOT") or tmp_path / "scale.svg")
    plot.write_text(drawn(curves))
    print(f"\nthe curve: {plot}")
    small, large = curves[10_000], curves[1_000_000]
    for name in ("branch", "commit", "diff", "three-dot diff", "merge", "revert", "list of 1,000"):
        # A hundred times the objects: a tree a hundred times as long is read, but no more ranges of it.
        assert large[name + CPU] <= 3 * small[name + CPU] + 0.003, name
        assert large[name + CPU] <= large["first commit" + CPU] / 10, name
    for name in ("gc --dry-run", "scrub --all"):
        assert large[name + CPU] <= large[ALL + CPU], name


def test_a_history_of_ten_thousand_commits_is_as_fast_as_a_new_one(tmp_path, record_property) -> None:
    repo = lake.create(tmp_path / "repo")
    fill(repo, 100_000)
    repo.commit("main", "first")
    repo.create_branch("old", "main")
    before: Figures = {}
    after: Figures = {}
    for turn in range(ROUNDS):
        one_round(repo, f"before{turn}", clustered(100_000, turn), before)
    making: Figures = {}
    timed(making, "all", lambda: [repo.commit("main", f"{n}", allow_empty=True) for n in range(COMMITS)])
    print(f"\n{COMMITS:,} commits: {making['all'][0] / COMMITS * 1e3:.2f} ms each")
    for turn in range(ROUNDS):
        one_round(repo, f"after{turn}", clustered(100_000, turn), after)
    repo.close()
    with closing(lake.open(tmp_path / "repo")) as again:
        whole: Figures = {}
        assert len(timed(whole, "log, newest 100", lambda: list(again.log("main", limit=100)))) == 100
        assert len(timed(whole, "log, all", lambda: list(again.log("main")))) > COMMITS
        assert not timed(whole, "three-dot diff across all", lambda: list(again.diff("main", "old", three_dot=True)))
    first = shown("before", before, record_property)
    second = shown(f"after {COMMITS:,} commits", after, record_property)
    shown("once", whole, record_property)
    for name in (name for name in first if name.endswith(CPU)):
        assert second[name] <= 1.5 * first[name] + 0.002, name


# -- the curve --------------------------------------------------------------------------------------------------------
def drawn(curves: Mapping[int, Mapping[str, float]]) -> str:
    """Draw milliseconds over objects, both logarithmic, as SVG."""
    width, height, left, top = 760, 460, 60, 20
    colours = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#00798c", "#8d5524", "#444444")
    sizes = sorted(curves)

    def x(count: float) -> float:
        return left + (math.log10(count) - 3) / 3 * (width - left - 230)

    def y(seconds: float) -> float:
        return top + (4 - math.log10(max(seconds * 1e3, 0.1))) / 5 * (height - top - 40)

    def parts() -> Iterator[str]:
        yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
        yield f'<rect width="{width}" height="{height}" fill="white"/>'
        for power in range(-1, 5):
            at = y(10**power / 1e3)
            yield f'<path d="M{left} {at:.1f}H{width - 230}" stroke="#ddd"/>'
            yield f'<text x="{left - 6}" y="{at + 4:.1f}" font-size="11" text-anchor="end">{10.0**power:g} ms</text>'
        for power in range(3, 7):
            yield f'<text x="{x(10**power):.1f}" y="{height - 20}" font-size="11">10^{power} objects</text>'
        left_out = {"put", "three-dot diff", "list of 1,000"}
        names = [name for name in curves[sizes[0]] if name not in left_out and not name.endswith(CPU)]
        for row, name in enumerate(names):
            colour, dash = colours[row % len(colours)], ' stroke-dasharray="5 3"' if "spread" in name else ""
            line = " ".join(f"{x(count):.1f},{y(curves[count][name]):.1f}" for count in sizes)
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
            at = top + 10 + 20 * row
            yield f'<path d="M{width - 210} {at}h24" stroke="{colour}" stroke-width="2"{dash}/>'
            yield f'<text x="{width - 180}" y="{at + 4}" font-size="12">{name}</text>'
        yield "</svg>"

    return "\n".join(parts()) + "\n"
