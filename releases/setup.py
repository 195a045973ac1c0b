"""Makes a repository ready for releases: policy, gate, grid, branches, protection; run again, finishes the rest."""

import json
import math

import lake
from lake.admission import POLICY_KEY
from lake.box import Zyx
from lake.digests import canonical_json
from lake.engines.lakefs.gate import GATE_KEY, gate_yaml
from lake.errors import AlreadyExists, BadInput, ObjectNotFound, RepositoryNotFound
from lake.repository import Repository
from releases.policy import GRID_KEY, default_policy, parse_policy

PROTECTED = ("main", "cand-*", "archive", "ops")
#: Days for which lakeFS's own garbage collection keeps what is behind a branch's head; the empty name: other branches.
DAYS = {"": 14, "main": 36_500, "archive": 36_500, "ops": 36_500}


def init(
    location: str,
    *,
    block_zyx: Zyx = (64, 64, 64),
    voxel_nm_zyx: tuple[float, float, float] = (16.0, 8.0, 8.0),
    policy: bytes | None = None,
) -> Repository:
    """Create the repository at `location`, or finish one whose creation was cut short.

    Parameters
    ----------
    block_zyx : (z, y, x) int
        Voxels of one region, the unit in which quality is judged and damage is patched; fixed for ever.
    voxel_nm_zyx : (z, y, x) float
        Voxel size of the lake, nm.
    policy : bytes
        TOML; the default policy if None. `BadInput` if it cannot be read, before anything is created.

    Raises
    ------
    AlreadyExists
        The repository is complete already.
    """
    text = default_policy() if policy is None else policy
    parse_policy(text, "the given policy")
    if any(edge < 1 for edge in block_zyx) or not all(0 < edge < math.inf for edge in voxel_nm_zyx):
        raise BadInput(f"grid {block_zyx} at {voxel_nm_zyx} nm is empty", fix="give positive block and voxel sizes")
    try:
        repo = lake.create(location)
    except AlreadyExists as taken:
        try:
            repo = lake.open(location)
        except RepositoryNotFound:  # by something else
            raise taken from None
        if is_ready(repo):
            repo.close()
            raise
    first = list(repo.log("main"))[-1].id
    branches = repo.branches()
    for name in ("archive", "ops"):
        if name not in branches:
            repo.create_branch(name, first)
    if not _has(repo, "main", POLICY_KEY):
        grid = {"block_zyx": list(block_zyx), "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": list(voxel_nm_zyx)}
        repo.put("main", POLICY_KEY, text, content_type="application/toml")
        repo.put("main", GRID_KEY, canonical_json(grid), content_type="application/json")
        repo.put("main", GATE_KEY, gate_yaml(), content_type="application/yaml")
        repo.commit("main", "policy, grid and gate")
    # In one call: a server takes seconds until a rule is in force.
    repo.protect(*PROTECTED)
    if (rules := repo.retention()) is not None:
        rules.keep(DAYS)
    return repo


def is_ready(repo: Repository) -> bool:
    """Tell whether `init` went through: all branches made and protected, and kept by a server that collects."""
    rules = repo.retention()
    kept = {} if rules is None else rules.days()
    if rules is not None and any(kept.get(branch, 0) < days for branch, days in DAYS.items()):
        return False
    return set(PROTECTED) <= set(repo.protected()) and {"archive", "ops"} <= set(repo.branches())


def read_grid(repo: Repository, ref: str = "main") -> tuple[Zyx, tuple[float, float, float]]:
    """Give (block size in voxels zyx, voxel size in nm zyx) of the repository."""
    grid = json.loads(repo.get(repo.resolve(ref), GRID_KEY))
    return tuple(grid["block_zyx"]), tuple(grid["voxel_nm_zyx"])


def _has(repo: Repository, ref: str, key: str) -> bool:
    try:
        repo.stat(repo.resolve(ref), key)
    except ObjectNotFound:
        return False
    return True
