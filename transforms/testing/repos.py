"""A small repository for tests of the runner: branches `ops` and `work`, blocks of 8 voxels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lake
from lake.digests import canonical_json
from lake.repository import Repository
from transforms.pipeline import Pipeline, load_pipeline
from transforms.testing.stages import TOYS
from transforms.tree import GRID


def toy_repository(location: str | Path) -> Repository:
    """Make a repository with a grid of (8, 8, 8) voxels at 16 x 8 x 8 nm."""
    repo = lake.create(location)
    grid = {"block_zyx": [8, 8, 8], "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": [16, 8, 8]}
    repo.put("main", GRID, canonical_json(grid))
    repo.commit("main", "grid")
    repo.create_branch("ops", "main")
    repo.create_branch("work", "main")
    return repo


def toy_pipeline(last: str = "shelf", **params: Mapping[str, Any]) -> Pipeline:
    """Give the toy pipeline up to stage `last`, with parameters by stage."""
    raw = {"name": "toy", "stages": [{"stage": name} for name in TOYS]}
    return load_pipeline(raw, stages=TOYS).up_to(last).with_params(params)
