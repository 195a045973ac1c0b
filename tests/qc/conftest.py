"""A lake of four regions whose every figure is known by heart.

::

    x 0..8   body 1 of the truth = root A              x 8..16  body 2 = root B, but for the corner C

    region 0_0_0   A                region 0_0_1   B
    region 0_1_0   A                region 0_1_1   B in x 8..12, C in x 12..16: one split error

The volume is (8, 16, 16) voxels of 16 x 8 x 8 nm, blocks and regions are (8, 8, 8); plane z = 0 of the truth is not
labelled. Each block has two supervoxels, its halves in x.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import lake
from lake.box import Box
from lake.digests import canonical_json
from lake.ids import region_name, root_ids, supervoxel_id, voxel_hashes
from lake.repository import Repository
from lake.session import Session
from lake.tables import overwrite
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume

SHAPE, BLOCK, NM = (8, 16, 16), (8, 8, 8), (16.0, 8.0, 8.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLUSTERS = [0, 0, 1, 1, 0, 0, 1, 2]  # by block (0_0_0, 0_0_1, 0_1_0, 0_1_1) and half: A, B or C
_NUMBERS = itertools.count()
BLOCKS = [(0, y, x) for y, x in product(range(2), range(2))]


@dataclass(frozen=True, slots=True)
class Sample:
    """The repository and the ids of its three roots."""

    repo: Repository
    a: int
    b: int
    c: int


def points(prefix: str, zyx: tuple[float, float, float]) -> dict[str, float]:
    """A position given in voxels, as three columns in nm."""
    return {f"{prefix}_{axis}": value * nm for axis, value, nm in zip("zyx", zyx, NM, strict=True)}


def bounds() -> dict[str, float]:
    return {"min_x": 0.0, "min_y": 0.0, "min_z": 0.0, "max_x": 1.0, "max_y": 1.0, "max_z": 1.0}


def supervoxels() -> pl.DataFrame:
    labels = np.ones(BLOCK, np.int64)
    labels[:, :, 4:] = 2
    rows = []
    for index in BLOCKS:
        start = tuple(i * n for i, n in zip(index, BLOCK, strict=True))
        hashes = voxel_hashes(labels, Box(start, tuple(a + n for a, n in zip(start, BLOCK, strict=True))), 2)
        ids = supervoxel_id(index, np.arange(1, 3)).tolist()
        rows += [
            {
                "supervoxel_id": sv, "region": region_name(index), "block": f"watershed/{region_name(index)}",
                "voxels": 256, "voxel_hash": int(hashes[n + 1]), **points("centroid", (4, 4, 4)), **bounds(),
                "run_id": "run",
            }
            for n, sv in enumerate(ids)
        ]  # fmt: skip
    return pl.DataFrame(rows)


def synapse(number: int, x: float, pre: tuple[int, int], post: tuple[int, int]) -> dict[str, object]:
    """From (supervoxel, root) to (supervoxel, root); the two ends lie 4 voxels left and right of `x`."""
    return {
        "id": number, "region": "0_0_0", "block": "synapses/0_0_0", **points("pre_pt_position", (4, 4, x - 4)),
        "pre_pt_supervoxel_id": pre[0], "pre_pt_root_id": pre[1], **points("post_pt_position", (4, 4, x + 4)),
        "post_pt_supervoxel_id": post[0], "post_pt_root_id": post[1], **points("ctr_pt_position", (4, 4, x)),
        "size": 9.0, "score": 0.9, "valid": 0 not in (pre[1], post[1]) and pre[1] != post[1], "run_id": "run",
    }  # fmt: skip


def tables() -> tuple[dict[str, pl.DataFrame], tuple[int, int, int]]:
    """Every data table, and the root ids."""
    parts = supervoxels()
    ids = parts["supervoxel_id"].to_numpy()
    roots = root_ids(ids, np.array(CLUSTERS), parts["voxel_hash"].to_numpy())
    a, b, c = int(roots[0]), int(roots[2]), int(roots[7])
    agglomeration = pl.DataFrame({"supervoxel_id": ids, "root_id": roots}).with_columns(run_id=pl.lit("run"))
    segments = [
        {
            "root_id": root, "voxels": 256 * n, "supervoxels": n, **points("centroid", (4, 4, 4)), **bounds(),
            "boundary_faces": faces, "run_id": "run",
        }
        for root, n, faces in ((a, 4, 5), (b, 3, 5), (c, 1, 4))
    ]  # fmt: skip
    edges = [
        {
            "region": "0_0_0", "block": "edges/0_0_0", "a": int(min(p, q)), "b": int(max(p, q)), "sum_affinity": 1000,
            "count": 64, "contact_area": 64.0 * 128, "run_id": "run",
        }
        for p, q in ((ids[0], ids[1]), (ids[1], ids[2]), (ids[2], ids[3]))
    ]  # fmt: skip
    left, right = (int(ids[1]), a), (int(ids[2]), b)
    synapses = [synapse(1, 7.5, left, right), synapse(2, 7.5, left, (0, 0))]
    sections = [
        {
            "section": z, "z": z, "transform": "1 0 0 0 1 0", "residual_px": 0.5 + z / 10, "coverage": 1.0, "holes": 0,
            "ncc": 0.9 if z else None, "alignment_residual_px": 0.4 if z else None, "folds": 0, "status": "ok",
            "run_id": "run",
        }
        for z in range(SHAPE[0])
    ]  # fmt: skip
    true = {
        "id": 1, **points("pre_pt_position", (4, 4, 3.5)), **points("post_pt_position", (4, 4, 11.5)),
        **points("ctr_pt_position", (4, 4, 8)), "pre_gt_id": 1, "post_gt_id": 2,
    }  # fmt: skip
    return {
        "supervoxels": parts,
        "agglomeration": agglomeration,
        "segments": pl.DataFrame(segments),
        "edges": pl.DataFrame(edges),
        "synapses": pl.DataFrame(synapses),
        "connections": pl.DataFrame(
            [{"pre_root_id": a, "post_root_id": b, "synapses": 1, "size": 9.0, "run_id": "run"}]
        ),
        "sections": pl.DataFrame(sections),
        "ground_truth_synapses": pl.DataFrame([true]),
    }, (a, b, c)


def volume(session: Session, name: str, array: np.ndarray, offset: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Write a volume of chunks of one block."""
    kind = "image" if array.dtype == np.uint8 else "segmentation"
    spec = VolumeSpec(name, kind, str(array.dtype), array.shape, NM, offset, chunk_zyx=BLOCK)
    made = create_volume(session.workspace(f"volumes/{name}/"), spec)
    made.write(made.box, array)


def segmentation(a: int, b: int, c: int) -> np.ndarray:
    labels = np.full(SHAPE, a, np.uint64)
    labels[:, :, 8:] = b
    labels[:, 8:, 12:] = c
    return labels


def truth() -> np.ndarray:
    labels = np.ones(SHAPE, np.uint64)
    labels[:, :, 8:] = 2
    labels[0] = 0
    return labels


def ingest(repo: Repository, count: int = 3) -> None:
    """Tiles on the archive: `count` good ones and one in quarantine."""
    rows = []
    for n in range(count + 1):
        path, data = f"raw/acq/0/t{n}.tif", bytes([n]) * 50
        repo.put("archive", path, data)
        rows.append(
            {
                "acquisition": "acq", "section": 0, "tile": f"t{n}", "path": path,
                "sha256": hashlib.sha256(data).hexdigest(), "bytes": 50, "shape_y": 5, "shape_x": 10, "dtype": "uint8",
                "stage_x_nm": 0.0, "stage_y_nm": 0.0, "pixel_nm": 8.0, "focus": 1.0 - n / 10, "saturation": n / 1000,
                "status": "ok" if n < count else "quarantined", "reason": None if n < count else "blurred",
                "ingested": NOW, "run_id": "ingest",
            }
        )  # fmt: skip
    repo.commit("archive", "raw tiles")
    with repo.session("archive", owner="ingest") as session:
        overwrite(session.workspace("tables/tiles/"), "tiles", pl.DataFrame(rows, infer_schema_length=None))
        session.commit("tiles")


def empty_lake(location: Path | str) -> Repository:
    """A repository with its grid and branches, protected candidates, and no data."""
    repo = lake.create(location)
    grid = {"block_zyx": list(BLOCK), "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": list(NM)}
    repo.put("main", "_policy/grid.json", canonical_json(grid))
    repo.commit("main", "grid")
    for branch in ("archive", "ops", "cand-r1"):
        repo.create_branch(branch, "main")
    repo.protect("cand-*")
    return repo


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Repository]:
    """Nothing but grid and branches."""
    repo = empty_lake(tmp_path / "repo")
    yield repo
    repo.close()


@pytest.fixture
def with_tiles(empty: Repository) -> Repository:
    """Tiles on the archive and nothing else."""
    ingest(empty)
    return empty


def full_lake(location: Path | str) -> Sample:
    """Tiles, volumes and tables, all in order."""
    repo = empty_lake(location)
    ingest(repo)
    frames, (a, b, c) = tables()
    with repo.session("cand-r1", owner="run") as session:
        volume(session, "segmentation", segmentation(a, b, c))
        volume(session, "ground_truth", truth())
        for name, frame in frames.items():
            overwrite(session.workspace(f"tables/{name}/"), name, frame)
        session.commit("data")
    return Sample(repo, a, b, c)


@pytest.fixture
def full_lake_at() -> Callable[[str], Sample]:
    """Give the function that makes the whole sample, on any engine."""
    return full_lake


@pytest.fixture(scope="package")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """The whole sample, shared: never write to branch cand-r1, take `change`."""
    sample = full_lake(tmp_path_factory.mktemp("clean") / "repo")
    yield sample
    sample.repo.close()


@pytest.fixture
def change(clean: Sample) -> Callable[[Callable[[Session], None]], str]:
    """Branch off the shared sample, change the branch in one session and give its name."""

    def build(edit: Callable[[Session], None] = lambda session: None) -> str:
        name = f"cand-{next(_NUMBERS)}"
        clean.repo.create_branch(name, "cand-r1")
        with clean.repo.session(name, owner="fault") as session:
            edit(session)
            session.commit("a fault", allow_empty=True)
        return name

    return build


@pytest.fixture
def spoil(clean: Sample, change) -> Callable[..., str]:
    """Replace tables on a branch of their own: `spoil(edges=frame, synapses=None)`; None removes."""

    def build(**frames: pl.DataFrame | None) -> str:
        def edit(session: Session) -> None:
            for name, frame in frames.items():
                if frame is None:
                    session.delete([stat.key for stat in session.list(f"tables/{name}/")])
                else:
                    overwrite(session.workspace(f"tables/{name}/"), name, frame)

        return change(edit)

    return build
