"""Ingesting tiles against `cp`, `sync` and `sha256sum` of the same files, in turn, all of them in the page cache.

An ingest does more than those tools: it decodes every tile and measures focus, contrast and saturation. Where tiles are
stored as plain pixels (TIFF) all of that is in what is asserted. To decode compressed tiles takes several times as long
as to copy them, whoever does it: there the tools are asserted together with the decoder alone, over all cores. Tiles of
64 KiB, smaller than any camera's, are shown: each costs a validation, a file, a row and a staged key, however small.
"""

import csv
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

import lake
from lake import tables
from lake.testing.figures import Figures
from transforms.ingest import ingest_tiles
from transforms.tile_table import REQUIRED

pytestmark = pytest.mark.bench

ROUNDS = 7
TOOLS = "cp, sync, sha256sum"
DECODED, INGEST = "those, then decoded", "ingest"
ROW = "all tiles"
OPTIONS = {"tif": [cv2.IMWRITE_TIFF_COMPRESSION, 1], "png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}


def acquire(folder: Path, count: int, shape: tuple[int, int], kind: str) -> None:
    """Write tiles of smooth noise, no two alike, with their table."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 1.5)
    picture = np.clip(128 + 40 * noise / noise.std(), 10, 245).astype(np.uint8)
    with (folder / "tiles.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*REQUIRED, "acquisition", "width", "height"])
        for number in range(count):
            name = f"{number:05}.{kind}"
            tile = np.roll(picture, (37 * number, 101 * number), (0, 1))
            tile[0, :3] = [64 + number // 64**place % 64 for place in range(3)]
            cv2.imwrite(str(folder / name), tile, OPTIONS[kind])
            table.writerow([number // 64, f"t{number % 64}", name, number * 1000, 0, 4, "acq", shape[1], shape[0]])


def with_plain_tools(source: Path, target: Path) -> dict[str, str]:
    """Copy a folder, put it on the disk and give the sha256 of each tile."""
    subprocess.run(["cp", "-r", source, target], check=True)
    os.sync()
    tiles = sorted(path.name for path in target.iterdir() if path.suffix != ".csv")
    told = subprocess.run(["sha256sum", *tiles], cwd=target, check=True, capture_output=True, text=True).stdout
    return dict(reversed(line.split("  ")) for line in told.splitlines())


def decoded(source: Path) -> int:
    """Decode all tiles over all cores; gives their pixels."""
    files = [path for path in source.iterdir() if path.suffix != ".csv"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda file: cv2.imread(str(file), cv2.IMREAD_UNCHANGED).size, files))


@pytest.mark.parametrize(
    ("count", "shape", "kind"),
    [(80, (3072, 4096), "tif"), (80, (3072, 4096), "png"), (2000, (256, 256), "tif")],
    ids=["80 tiles of 12.6 MB", "80 compressed tiles of 9.2 MB", "2,000 tiles of 64 KiB"],
)
def test_ingest(tmp_path: Path, count: int, shape: tuple[int, int], kind: str, record_property, request) -> None:
    source = tmp_path / "source"
    acquire(source, count, shape, kind)
    figures = Figures(request.node.callspec.id, TOOLS, DECODED, INGEST)
    for _ in range(ROUNDS):
        os.sync()
        begun = time.perf_counter()
        digests = figures.timed(TOOLS, ROW, lambda: with_plain_tools(source, tmp_path / "copy"))
        pixels = decoded(source)
        figures.note(DECODED, ROW, time.perf_counter() - begun)
        assert pixels == count * shape[0] * shape[1]
        shutil.rmtree(tmp_path / "copy")
        with closing(lake.create(tmp_path / "repo")) as repo:
            repo.create_branch("archive", "main")
            os.sync()
            figures.timed(INGEST, ROW, lambda: ingest_tiles(repo, source))
            rows = tables.read(repo.location_of("archive", "tables/tiles/")).collect()
            assert dict(zip((path.rpartition("/")[2] for path in rows["path"]), rows["sha256"], strict=True)) == digests
            assert {stat.checksum for stat in repo.list("archive", "raw/")} == set(digests.values())
            assert set(rows["status"]) == {"ok"}
        shutil.rmtree(tmp_path / "repo")
    figures.show(record_property)
    plain, with_decoder, whole = (figures.median(way, ROW) for way in (TOOLS, DECODED, INGEST))
    if shape[0] > 256:
        assert (with_decoder if kind == "png" else plain) / whole >= 0.9
