"""Putting and committing files on the embedded engine against plain tools on the same files; medians, in one run."""

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
    assert median["plain"] / median["put"] >= 0.9
    assert median["plain"] / median["workspace"] >= 0.9
