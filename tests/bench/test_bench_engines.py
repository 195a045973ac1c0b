"""The embedded engine and a real lakeFS server on loopback, side by side: the same calls on both, in turn.

Both keep their bytes on the same disk, and promise different things: what the embedded engine committed is on the disk,
lakeFS's local block store never syncs. So there are "durable" rows: on the server the same work and then a sync; the
embedded engine syncs in its commit what was put before, so put and commit are compared together. Asserted is that a
folder, which crosses no socket, is not slower than a server at the same work, and that both give the same content.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest

import lake
from lake import tables
from lake.repository import Repository
from lake.testing.figures import Figures
from lake.volumes import VolumeSpec, create_volume

pytestmark = [pytest.mark.bench, pytest.mark.lakefs]

WAYS = ("embedded", "server")
THREADS = 16
SHAPE = (128, 512, 1024)  # 64 MiB of uint8
ROWS = 500_000
Record = Callable[[str, object], None]
T = TypeVar("T")
Timed = Callable[[str, Callable[[], Any]], Any]


@pytest.fixture
def engines(tmp_path, lakefs_location) -> Iterator[Mapping[str, Repository]]:
    with closing(lake.create(tmp_path / "repo")) as folder, closing(lake.create(lakefs_location)) as server:
        yield {"embedded": folder, "server": server}


def in_turn(engines: Mapping[str, Repository], figures: Figures, turn: int) -> Iterator[tuple[Repository, Timed]]:
    """Let each come first once in a while, and neither pay for what the other left to be written."""
    for way in WAYS if turn % 2 else WAYS[::-1]:
        os.sync()
        yield engines[way], partial(figures.timed, way)


def durably(repo: Repository, work: Callable[[], T]) -> T:
    """Do what ends in a commit, so that a power cut cannot take it."""
    result = work()
    if repo.location.startswith(lake.SERVER_SCHEME):
        os.sync()
    return result


def in_threads(work: Callable[[str], object], keys: Iterable[str]) -> list[object]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, keys))


def not_slower(figures: Figures, *rows: str) -> None:
    slower = {row: round(figures.ratio("server", row), 2) for row in rows if figures.ratio("server", row) < 1}
    assert not slower


# -- history ----------------------------------------------------------------------------------------------------------
def change_merge_undo(repo: Repository, timed: Timed, turn: int, keys: Sequence[str]) -> None:
    branch, prefix = f"work{turn}", keys[0].partition("/s0/")[0] + "/"
    timed("branch", lambda: repo.create_branch(branch, "main"))

    def put() -> None:
        timed("put", lambda: in_threads(lambda key: repo.put(branch, key, key.encode()), keys))
        timed("commit", lambda: repo.commit(branch, "changes"))

    timed("both, durable", lambda: durably(repo, put))
    repo.put("main", f"aside/{turn}", b"so that both sides moved")
    repo.commit("main", "aside")
    changes = timed("diff", lambda: list(repo.diff(f"{branch}~1", branch)))
    assert [(change.key, change.kind) for change in changes] == [(key, "added") for key in keys]
    timed("merge", lambda: repo.merge(branch, "main", "joined"))
    listed = timed("list", lambda: list(repo.list("main", prefix)))
    assert [stat.key for stat in listed] == keys
    assert repo.get("main", keys[-1]) == keys[-1].encode()
    timed("revert", lambda: repo.revert("main", "main", parent=1))
    assert not list(repo.list("main", prefix))
    assert repo.get("main", f"aside/{turn}") == b"so that both sides moved"


@pytest.mark.parametrize(("count", "rounds"), [(1, 9), (1_000, 5), (10_000, 3)])
def test_history(engines, count: int, rounds: int, record_property: Record) -> None:
    figures = Figures(f"{count:,} objects put in {THREADS} threads", *WAYS)
    for turn in range(rounds):
        keys = [f"volumes/em{turn}/s0/{number // 100:03}/{number % 100:02}" for number in range(count)]
        for repo, timed in in_turn(engines, figures, turn):
            change_merge_undo(repo, timed, turn, keys)
    figures.show(record_property)
    not_slower(figures, "branch", "both, durable", "diff", "merge", "revert")


# -- objects ----------------------------------------------------------------------------------------------------------
def written(folder: Path, size: int, count: int, turn: int) -> dict[str, Path]:
    """Write files of random bytes that no other file and no other turn has, so that nothing is stored already."""
    block = np.random.default_rng(turn).bytes(size)
    files = {f"{turn}/{number:04}": folder / f"{number:04}" for number in range(count)}
    for number, file in enumerate(files.values()):
        file.write_bytes(number.to_bytes(8, "little") + block[8:])
    return files


def up_and_down(repo: Repository, timed: Timed, files: Mapping[str, Path]) -> None:
    def upload() -> None:
        timed("upload", lambda: in_threads(lambda key: repo.put("main", key, files[key]), files))
        timed("commit", lambda: repo.commit("main", "objects"))

    timed("both, durable", lambda: durably(repo, upload))
    found = timed("download", lambda: in_threads(lambda key: repo.get("main", key), files))
    assert found == [file.read_bytes() for file in files.values()]


@pytest.mark.parametrize(("size", "count"), [(4 << 10, 500), (1 << 20, 64), (64 << 20, 2)])
def test_objects(engines, tmp_path, size: int, count: int, record_property: Record) -> None:
    figures = Figures(f"{count} objects of {size >> 10} KiB, {THREADS} threads", *WAYS)
    for turn in range(5):
        files = written(tmp_path, size, count, turn)
        for repo, timed in in_turn(engines, figures, turn):
            up_and_down(repo, timed, files)
    figures.show(record_property)
    not_slower(figures, "upload", "both, durable", "download")


# -- volumes and tables -----------------------------------------------------------------------------------------------
def write_and_read(repo: Repository, timed: Timed, branch: str, spec: VolumeSpec, array: np.ndarray) -> None:
    repo.create_branch(branch, "main")
    with repo.session(branch, owner="bench") as session:
        volume = create_volume(session.workspace("volumes/em/"), spec)

        def write() -> str:
            timed("write", lambda: volume.write(volume.box, array))
            return timed("land", lambda: session.commit("written"))

        commit = timed("both, durable", lambda: durably(repo, write))
    with repo.snapshot(commit) as pinned:

        def read() -> np.ndarray:
            volume = pinned.volume("em")
            return volume.read(volume.box)

        assert (timed("open and read", read) == array).all()
        assert (timed("again", read) == array).all()


@pytest.mark.parametrize("driver", ["precomputed", "zarr3"])
def test_volumes(engines, driver: str, record_property: Record) -> None:
    spec = VolumeSpec("em", "image", "uint8", SHAPE, (16, 8, 8), driver=driver, shard_zyx=(128, 256, 256))
    figures = Figures(f"a volume of 64 MiB, {driver}, TensorStore", *WAYS)
    for turn in range(4):
        array = np.random.default_rng(turn).normal(128, 20, SHAPE).clip(0, 255).astype(np.uint8)
        for repo, timed in in_turn(engines, figures, turn):
            write_and_read(repo, timed, f"work{turn}", spec, array)
    figures.show(record_property)
    not_slower(figures, "both, durable", "open and read", "again")


def edges(turn: int) -> pl.DataFrame:
    first = np.arange(ROWS) + turn * ROWS
    return pl.DataFrame({"a": first, "b": first + 1}).with_columns(
        region=pl.lit("0_0_0"),
        block=pl.lit("watershed/0_0_0"),
        sum_affinity=pl.col("a") * 7 % 255,
        count=pl.col("a") % 5,
        contact_area=pl.col("a") / 3,
        run_id=pl.lit("bench"),
    )


def append_and_scan(repo: Repository, timed: Timed, rows: pl.DataFrame, expected: tuple[int, int]) -> None:
    with repo.session("main", owner="bench") as session:
        place = session.workspace("tables/edges/")

        def append() -> str:
            timed("append", lambda: tables.append(place, "edges", rows))
            return timed("land", lambda: session.commit("appended"))

        commit = timed("both, durable", lambda: durably(repo, append))
    with repo.snapshot(commit) as pinned:

        def scan() -> object:
            return pinned.table("edges").select(pl.len(), pl.col("a").sum()).collect().row(0)

        assert timed("open and scan", scan) == expected
        assert timed("again", scan) == expected


def test_tables(engines, record_property: Record) -> None:
    figures = Figures(f"a Delta table, {ROWS:,} rows an append", *WAYS)
    for turn in range(5):
        rows, total = edges(turn), (turn + 1) * ROWS
        for repo, timed in in_turn(engines, figures, turn):
            append_and_scan(repo, timed, rows, (total, total * (total - 1) // 2))
    figures.show(record_property)
    not_slower(figures, "both, durable", "open and scan", "again")
