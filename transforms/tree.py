"""What a plan or a run reads from: one commit, and over it the work of a session."""

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from lake import tables
from lake.box import Zyx
from lake.errors import BadInput, NotFound, ObjectNotFound
from lake.kv import list_keys
from lake.location import Location
from lake.repository import CommitId, ObjectStat, Repository
from lake.session import Session
from lake.snapshot import open_snapshot
from lake.volume_spec import VolumeSpec
from lake.volumes import Volume, open_volume
from transforms.stage import Grid

GRID = "_policy/grid.json"


class Tree:
    """The objects of `commit`, or of a session that began there.

    A unit (`volumes/em/`, `tables/edges/`) that the session writes is read from its workspace, every other from the
    commit: so nothing is linked or listed that nobody touches.
    """

    def __init__(self, repo: Repository, commit: CommitId, session: Session | None = None) -> None:
        self.repo, self.commit, self.session = repo, commit, session
        self._written: dict[str, Location] = {}
        self._pinned: dict[str, Location] = {}
        self._listed: dict[str, frozenset[str]] = {}

    # -- objects ------------------------------------------------------------------------------------------------------
    def get(self, key: str) -> bytes:
        """Read an object, or raise `ObjectNotFound`."""
        return self.session.get(key) if self.session else self.repo.get(self.commit, key)

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """List objects under a prefix."""
        return self.session.list(prefix) if self.session else self.repo.list(self.commit, prefix)

    # -- units --------------------------------------------------------------------------------------------------------
    def write(self, unit: str) -> Location:
        """Open a unit for writing; from now on it is read from there."""
        if self.session is None:
            raise BadInput(f"{unit} cannot be written in a plan", fix="open a session")
        if unit not in self._written:
            self._written[unit] = self.session.workspace(unit)
        return self._written[unit]

    def read(self, unit: str) -> Location:
        """Give the place a unit is read from."""
        return self._written.get(unit) or self.pinned(unit)

    def pinned(self, unit: str) -> Location:
        """Give a unit as the commit holds it."""
        if unit not in self._pinned:
            self._pinned[unit] = self.repo.location_of(self.commit, unit)
        return self._pinned[unit]

    def files(self, unit: str) -> frozenset[str]:
        """List the files of a unit as the commit holds it, once."""
        if unit not in self._listed:
            self._listed[unit] = frozenset(s.key[len(unit) :] for s in self.repo.list(self.commit, unit))
        return self._listed[unit]

    def written_files(self, unit: str) -> frozenset[str]:
        """List the files of a unit where it is read from, afresh."""
        return frozenset(list_keys(self.read(unit)))

    def volume(self, name: str) -> Volume | None:
        """Open a volume, or None if there is none."""
        try:
            return open_volume(self.read(f"volumes/{name}/"))
        except NotFound:
            return None

    def spec(self, name: str) -> VolumeSpec | None:
        """Give a volume's specification, or None if there is none."""
        volume = self.volume(name)
        return None if volume is None else volume.spec

    def grid(self) -> Grid:
        """Give the repository's grid: `_policy/grid.json`, or the default one."""
        try:
            raw: dict[str, Any] = json.loads(self.get(GRID))
        except ObjectNotFound:
            return Grid()
        try:
            z, y, x = (float(v) for v in raw["voxel_nm_zyx"])
            return Grid(_triple(raw["block_zyx"]), _triple(raw["region_blocks_zyx"]), (z, y, x))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{GRID} cannot be read: {error!r}", fix="it holds block_zyx, region_blocks_zyx, voxel_nm_zyx"
            ) from error


def _triple(value: Any) -> Zyx:
    z, y, x = (int(v) for v in value)
    return z, y, x


class Archive:
    """Accepted tiles of the archive that a branch belongs to; empty if there is no archive."""

    def __init__(self, repo: Repository, tree: Tree) -> None:
        self._repo = repo
        self.commit = open_snapshot(repo, tree.commit).archive
        self._folders: dict[str, Location] = {}
        self._tiles: pl.DataFrame | None = None

    @property
    def tiles(self) -> pl.DataFrame:
        """Rows of table `tiles` with status ok, without times and origins; read once."""
        if self._tiles is None:
            self._tiles = self._read()
        return self._tiles

    def _read(self) -> pl.DataFrame:
        if self.commit is None:
            return pl.DataFrame()
        location = self._repo.location_of(self.commit, "tables/tiles/")
        if not tables.table_exists(location):
            return pl.DataFrame()
        rows = tables.read(location).filter(pl.col("status") == "ok")
        dropped = ("ingested", "source", "run_id", "reason", "status", "acquired", "metadata")
        return rows.drop(dropped, strict=False).sort("acquisition", "section", "tile", "path").pipe(tables.collect)

    def folder_of(self, path: str) -> tuple[Location, str]:
        """Give where the folder of a tile is, and the tile's name in it."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            assert self.commit is not None
            self._folders[folder] = self._repo.location_of(self.commit, f"{folder}/")
        return self._folders[folder], name
