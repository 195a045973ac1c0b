"""A workspace's commit and a snapshot's view, against a bare walk, plain hashing, plain copies and plain links."""

import hashlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lake

ROUNDS = 5
FILES = 50_000
SMALL = 20_000
BIG, BIG_SIZE = 64, 16 << 20  # 1 GB
OBJECTS = 100_000

pytestmark = pytest.mark.bench


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def shown(figures: Mapping[str, Sequence[float]], each: int, record: Callable[[str, object], None]) -> dict[str, float]:
    """Print medians with their range, and per file; give the medians, s."""
    medians = {}
    for name, values in figures.items():
        medians[name] = statistics.median(values)
        told = (
            f"{medians[name] * 1e3:.1f} ms ({min(values) * 1e3:.1f}-{max(values) * 1e3:.1f}, n={len(values)}), "
            f"{medians[name] / each * 1e6:.1f} us a file"
        )
        print(f"\n  {name:44} {told}", end="")
        record(name, told)
    print()
    return medians


def write_files(folder: Path, count: int, content: Callable[[int], bytes]) -> None:
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03}").mkdir(parents=True)
        with open(folder / f"{number // 1000:03}/{number % 1000:03}", "wb") as file:
            file.write(content(number))


def walk(folder: str) -> int:
    """Look at every file below a folder: the least that anything can do that has to find changes."""
    found = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += walk(entry.path)
            else:
                found += entry.stat(follow_symlinks=False).st_size >= 0
    return found


def test_a_commit_looks_at_each_file_of_the_open_prefix_for_a_few_microseconds(tmp_path, record_property) -> None:
    repo = lake.create(tmp_path / "repo")
    repo.create_branch("work", "main")
    folder = repo.workspace("work", "volumes/em/").path
    write_files(folder, FILES, lambda number: b"%d" % (number % 8))
    repo.commit("work", "first")
    figures: dict[str, list[float]] = {"a bare walk": [], "commit of one changed file": [], "a clean scan": []}
    for turn in range(ROUNDS):
        figures["a bare walk"].append(timed(lambda: walk(str(folder))))
        (folder / "000/000").write_bytes(b"turn %d" % turn)
        figures["commit of one changed file"].append(timed(lambda: repo.commit("work", "one")))
        figures["a clean scan"].append(timed(lambda: list(repo.uncommitted("work"))))
    median = shown(figures, FILES, record_property)
    repo.close()
    assert median["commit of one changed file"] <= 4 * median["a bare walk"]
    assert median["a clean scan"] <= 4 * median["a bare walk"]


def test_a_commit_of_new_small_files_against_cp_sync_sha256sum(tmp_path, record_property) -> None:
    figures: dict[str, list[float]] = {"cp, sync, sha256sum": [], "commit": [], "view": []}
    for turn in range(3):
        repo = lake.create(tmp_path / f"repo{turn}")
        folder = repo.workspace("main", "raw/").path
        write_files(folder, SMALL, lambda number: b"%d.%d" % (turn, number))  # noqa: B023
        os.sync()

        def plainly(source: Path = folder, target: Path = tmp_path / f"copy{turn}") -> None:
            subprocess.run(["cp", "-r", source, target], check=True)
            os.sync()
            hashing = f"find {target} -type f -print0 | xargs -0 sha256sum"
            subprocess.run(hashing, shell=True, check=True, stdout=subprocess.DEVNULL)

        figures["cp, sync, sha256sum"].append(timed(plainly))
        figures["commit"].append(timed(lambda: repo.commit("main", "all")))  # noqa: B023
        figures["view"].append(timed(lambda: repo.location_of("main", "raw/")))  # noqa: B023
        repo.close()
    median = shown(figures, SMALL, record_property)
    # Small files are copied, so that writing into one harms no commit: a commit is the same work as the plain tools'.
    assert median["commit"] <= 2 * median["cp, sync, sha256sum"]


def hash_on_all_cores(paths: Sequence[Path]) -> None:
    def digest(path: Path) -> bytes:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(digest, paths))


def test_new_data_is_committed_at_the_speed_of_hashing_and_no_byte_is_copied(tmp_path, record_property) -> None:
    repo = lake.create(tmp_path / "repo")
    figures: dict[str, list[float]] = {"sha256 over all cores": [], "commit": []}
    for turn in range(ROUNDS):
        branch = f"turn{turn}"
        repo.create_branch(branch, "main")
        folder = repo.workspace(branch, "raw/").path
        paths = [folder / f"{number:03}" for number in range(BIG)]
        for path in paths:
            path.write_bytes(os.urandom(BIG_SIZE))
        os.sync()
        figures["sha256 over all cores"].append(timed(lambda: hash_on_all_cores(paths)))  # noqa: B023
        figures["commit"].append(timed(lambda: repo.commit(branch, "all")))  # noqa: B023
        for path in paths:
            assert os.path.samefile(path, repo.stat(branch, f"raw/{path.name}").address)
        repo.delete_branch(branch)
        for digest in (tmp_path / "repo/objects").glob("*/*"):
            digest.unlink()
    repo.close()
    median = shown(figures, BIG, record_property)
    ratio = median["sha256 over all cores"] / median["commit"]
    print(f"  ratio {ratio:.2f}, {BIG * BIG_SIZE / 1e6 / median['commit']:.0f} MB/s")
    record_property("ratio", ratio)
    assert ratio >= 0.9


def test_a_view_of_a_hundred_thousand_objects_costs_its_links_once(tmp_path, record_property) -> None:
    repo = lake.create(tmp_path / "repo")
    folder = repo.workspace("main", "volumes/em/").path
    write_files(folder, OBJECTS, lambda number: b"%d" % (number % 1000))
    repo.commit("main", "all")
    stored = sorted(repo.list("main", "volumes/em/"), key=lambda stat: stat.key)
    figures: dict[str, list[float]] = {"links by hand": [], "view, first time": [], "view, again": []}
    for turn in range(3):

        def by_hand(target: Path = tmp_path / f"bare{turn}") -> None:
            for number in range(0, OBJECTS, 1000):
                os.makedirs(target / f"volumes/em/{number // 1000:03}")
            for stat in stored:
                os.link(stat.address, f"{target}/{stat.key}")

        figures["links by hand"].append(timed(by_hand))
        figures["view, first time"].append(timed(lambda: repo.location_of("main", "volumes/em/")))
        figures["view, again"].append(timed(lambda: repo.location_of("main", "volumes/em/")))
        shutil.rmtree(tmp_path / f"bare{turn}")
        shutil.rmtree(tmp_path / "repo/views")
        (tmp_path / "repo/views").mkdir()
    repo.close()
    median = shown(figures, OBJECTS, record_property)
    assert median["view, first time"] <= 2 * median["links by hand"]
    assert median["view, again"] <= median["view, first time"] / 100
