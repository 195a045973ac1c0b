"""The embedded engine against plain tools on the same files, and its own figures; medians, in one run."""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lake

ROUNDS = 9
FILES, SIZE = 64, 16 << 20  # 1 GB


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def with_plain_tools(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    os.sync()
    subprocess.run(["sha256sum", *sorted(target.iterdir())], check=True, stdout=subprocess.DEVNULL)


def by_put(repo, source: Path) -> None:
    for path in sorted(source.iterdir()):
        repo.put("main", f"raw/{path.name}", path)
    repo.commit("main", "all")


def by_workspace(repo, source: Path) -> None:
    subprocess.run(["cp", "-r", f"{source}/.", repo.workspace("main", "raw/").path], check=True)
    repo.commit("main", "all")


@pytest.mark.bench
def test_putting_and_committing_a_gigabyte_is_not_slower_than_cp_sync_sha256sum(tmp_path, record_property):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:03}").write_bytes(os.urandom(SIZE))
    os.sync()
    seconds: dict[str, list[float]] = {"plain": [], "put": [], "workspace": []}
    for _ in range(ROUNDS):
        seconds["plain"].append(timed(lambda: with_plain_tools(source, tmp_path / "copy")))
        shutil.rmtree(tmp_path / "copy")
        for name, work in (("put", by_put), ("workspace", by_workspace)):
            repo = lake.create(tmp_path / "repo")
            seconds[name].append(timed(lambda work=work, repo=repo: work(repo, source)))
            repo.close()
            shutil.rmtree(tmp_path / "repo")
            os.sync()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        record_property(name, f"{median[name]:.2f} s ({min(values):.2f}-{max(values):.2f})")
        print(f"{name:10} {median[name]:6.2f} s  ({min(values):.2f}-{max(values):.2f}, n={ROUNDS})")
    assert median["plain"] / median["put"] >= 0.8
    assert median["plain"] / median["workspace"] >= 0.8


@pytest.mark.bench
def test_figures_of_a_repository_of_two_hundred_thousand_objects(tmp_path, record_property):
    repo = lake.create(tmp_path / "repo")
    folder = repo.workspace("main", "volumes/em/").path
    for number in range(200_000):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03}").mkdir()
        # Eight contents: what is measured is the history, not the disk.
        with open(folder / f"{number // 1000:03}/{number % 1000:03}", "wb") as file:
            file.write(b"%d" % (number % 8))
    figures = {"first commit of 200,000 files": [timed(lambda: repo.commit("main", "first"))]}
    figures["scan of 200,000 unchanged files"] = [timed(lambda: list(repo.uncommitted("main")))]
    view = [timed(lambda: repo.location_of("main", "volumes/em/")) for _ in range(2)]
    figures["view of 200,000 objects"], figures["the same view again"] = [view[0]], [view[1]]
    names = ("branch", "commit of 1,000 puts", "three-dot diff", "merge", "revert", "list 1,000")
    figures |= {name: [] for name in names}
    for turn in range(ROUNDS):
        branch = f"b{turn}"
        figures["branch"].append(timed(lambda branch=branch: repo.create_branch(branch, "main")))
        for number in range(1000):
            repo.put(branch, f"volumes/em/{turn * 7:03}/{number:03}", b"%d.%d" % (turn, number))
        figures["commit of 1,000 puts"].append(timed(lambda branch=branch: repo.commit(branch, "some")))
        repo.put("main", f"aside/{turn}", b"so that both sides moved")
        repo.commit("main", "aside")
        figures["three-dot diff"].append(timed(lambda branch=branch: list(repo.diff("main", branch, three_dot=True))))
        figures["merge"].append(timed(lambda branch=branch: repo.merge(branch, "main", "joined")))
        figures["revert"].append(timed(lambda: repo.revert("main", "main", parent=1)))
        prefix = f"volumes/em/{turn * 7:03}/"
        figures["list 1,000"].append(timed(lambda prefix=prefix: list(repo.list("main", prefix))))
    for name, values in figures.items():
        record_property(name, statistics.median(values))
        shown = f"({min(values) * 1e3:.1f}-{max(values) * 1e3:.1f}, n={len(values)})"
        print(f"{name:32} {statistics.median(values) * 1e3:9.1f} ms  {shown}")
    repo.close()
    # Cost grows with what changed: three operations on 1,000 objects are far from the cost of looking at all.
    whole = figures["first commit of 200,000 files"][0]
    for name in ("commit of 1,000 puts", "merge", "revert"):
        assert statistics.median(figures[name]) < whole / 20
