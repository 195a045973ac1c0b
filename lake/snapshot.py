"""A reader pinned to commits: the data commit, and the archive and ops commits that go with it.

A branch name is resolved once, when the snapshot is opened; whatever happens to branches later, every read and every
query of this snapshot sees the same bytes.

Which archive and ops commits go with a data commit: at a release tag those that its manifest names; elsewhere the
archive commit that the candidate recorded (`_releases/<name>/candidate.json`), else the head of `archive`, and the
head of `ops`.

Tables of `ops` that nobody has written yet read as empty: nothing was recorded. Tables of the data and of the archive
that are absent are an error.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import polars as pl
import pyarrow as pa

from lake import tables as delta
from lake.errors import BadInput, LakeError, NotFound, ObjectNotFound, RefNotFound, TableNotFound, nearest
from lake.location import Location
from lake.repository import CommitId, ObjectStat, Repository
from lake.schemas import TABLES
from lake.volumes import Volume, open_volume

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from lake.query import Database, Parameters, Result, Schema
    from sql import SqlFile

__all__ = ["SchemaName", "Snapshot", "open_snapshot"]

SchemaName = Literal["main", "archive", "ops"]
_AFTER = "\U0010ffff"  # sorts after every key below a folder


class Snapshot:
    """What a reader sees; get one from `Repository.snapshot`. Safe to share between threads.

    Attributes
    ----------
    repo : Repository
    ref : str
        As it was asked for.
    commit : commit id
    archive, ops : commit id or None
        None if there is no such branch.
    release : str or None
        Name of the release that `commit` is, if it is one.
    """

    def __init__(
        self,
        repo: Repository,
        ref: str,
        commit: CommitId,
        *,
        archive: CommitId | None,
        ops: CommitId | None,
        release: str | None,
    ) -> None:
        self.repo, self.ref, self.commit = repo, ref, commit
        self.archive, self.ops, self.release = archive, ops, release
        self._databases: dict[tuple[tuple[str, CommitId], ...], Database] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Snapshot({self.ref!r}, commit={self.commit[:12]})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the SQL databases; what was read stays valid, and the next query opens them again."""
        with self._lock:
            for database in self._databases.values():
                database.close()
            self._databases.clear()

    # -- objects ----------------------------------------------------------------------------------------------------
    def _at(self, schema: str) -> CommitId:
        commits = {"main": self.commit, "archive": self.archive, "ops": self.ops}
        if schema not in commits:
            raise BadInput(f"there is no schema {schema!r}", fix=nearest(schema, commits))
        commit = commits[schema]
        if commit is None:
            raise RefNotFound(f"this repository has no branch {schema!r}", fix="`emlake init` makes it")
        return commit

    def get(self, key: str, *, schema: SchemaName = "main") -> bytes:
        """Read an object, or raise `ObjectNotFound`."""
        return self.repo.get(self._at(schema), key)

    def stat(self, key: str, *, schema: SchemaName = "main") -> ObjectStat:
        """Describe an object, or raise `ObjectNotFound`."""
        return self.repo.stat(self._at(schema), key)

    def list(self, prefix: str = "", *, schema: SchemaName = "main") -> Iterator[ObjectStat]:
        """Yield the objects under `prefix`, in byte order."""
        return self.repo.list(self._at(schema), prefix)

    def location(self, prefix: str, schema: SchemaName = "main") -> Location:
        """Give a read-only place where native libraries find the objects under `prefix` (ends in `/`)."""
        return self.repo.location_of(self._at(schema), prefix)

    def folders(self, prefix: str, schema: SchemaName = "main") -> tuple[str, ...]:
        """Name what lies directly below `prefix` as folders; one short listing each, however much they hold."""
        commit, found, after = self._at(schema), [], ""
        while (stat := next(iter(self.repo.list(commit, prefix, after=after, limit=1)), None)) is not None:
            name, slash, _ = stat.key.removeprefix(prefix).partition("/")
            if slash:
                found.append(name)
            after = f"{prefix}{name}/{_AFTER}" if slash else stat.key
        return tuple(found)

    def volume(self, name: str) -> Volume:
        """Open a volume for reading; `NotFound` gives the nearest name."""
        try:
            return open_volume(self.location(f"volumes/{name}/"))
        except NotFound as error:
            known = self.folders("volumes/")
            raise NotFound(f"there is no volume {name!r} at {self.ref}", fix=nearest(name, known)) from error

    # -- tables and SQL ---------------------------------------------------------------------------------------------
    def tables(self, schema: SchemaName = "main") -> tuple[str, ...]:
        """Name the Delta tables of a schema, sorted; empty without such a branch."""
        if {"main": self.commit, "archive": self.archive, "ops": self.ops}[schema] is None:
            return ()
        return self.folders("tables/", schema)

    def table(self, name: str, schema: SchemaName = "main") -> pl.LazyFrame:
        """Give a table's rows, lazily; `TableNotFound` gives the nearest name."""
        known = self.tables(schema)
        if name not in known:
            raise TableNotFound(f"there is no table {schema}.{name} at {self.ref}", fix=nearest(name, known))
        return delta.read(self.location(f"tables/{name}/", schema))

    @property
    def views(self) -> Mapping[str, "SqlFile"]:
        """The views of `sql/views/` that exist here: those whose tables do."""
        return self._database({}).views

    @property
    def relations(self) -> tuple[str, ...]:
        """Tables and views that SQL can name, as `schema.name`."""
        return self._database({}).relations

    def sql(
        self,
        query: str,
        parameters: "Parameters" = (),
        *,
        attach: Mapping[str, "Snapshot"] | None = None,
        timeout_s: float | None = None,
    ) -> "Result":
        """Run one SELECT on this snapshot's tables and views: schemas `main`, `archive`, `ops`.

        Parameters
        ----------
        query : str
            One SELECT (WITH, FROM, DESCRIBE, SUMMARIZE, SHOW and EXPLAIN count as such), or the name of a file of
            `sql/queries/`.
        parameters : sequence or mapping
            For `?`, or for `$name`.
        attach : mapping of schema name to Snapshot
            Other snapshots whose data tables are to be seen as well, e.g. `{"old": repo.snapshot("r1")}`.

        Raises
        ------
        QueryRefused
            Anything but reading this snapshot.
        TableNotFound
            A table or view that is not there, with the nearest name or what is missing.
        BadInput
            What DuckDB says about the statement.
        """
        import sql as library

        text = library.load(query).text if query in library.library() else query
        return self._database(attach or {}).run(text, parameters, timeout_s=timeout_s)

    def cursor(self) -> "DuckDBPyConnection":
        """Give a read-only DuckDB cursor on the same tables and views, for a trusted library with SQL of its own.

        Never hand it to a user: only `sql` checks statements before they run.
        """
        return self._database({}).cursor()

    def _database(self, attach: Mapping[str, "Snapshot"]) -> "Database":
        from lake.query import Database
        from sql import library

        key = tuple(sorted((name, other.commit) for name, other in attach.items()))
        with self._lock:
            if key not in self._databases:
                schemas = {name: self._schema(name) for name in ("main", "archive", "ops")}
                for name, other in attach.items():
                    if name in schemas or not name.isidentifier():
                        raise BadInput(f"schema {name!r} cannot be attached", fix="choose another name, such as old")
                    schemas[name] = other._schema("main")
                views = [file for file in library().values() if file.kind == "view"]
                self._databases[key] = Database(schemas, views, self._absent())
            return self._databases[key]

    def _schema(self, name: SchemaName) -> "Schema":
        from lake.query import Schema

        present = self.tables(name)
        places = {table: self.location(f"tables/{table}/", name) for table in present}
        empty = [s for s in TABLES.values() if name == "ops" and s.branch == "ops" and s.name not in present]
        rows = self._own_rows() if name == "main" else {}
        return Schema(places, rows, tuple(empty))

    def _absent(self) -> dict[str, str]:
        schemas = {"data": "main", "archive": "archive", "ops": "ops"}
        return {
            f"{schemas[spec.branch]}.{spec.name}": f"{spec.doc} It has not been written at {self.ref}."
            for spec in TABLES.values()
        }

    def _own_rows(self) -> dict[str, pa.Table]:
        """Make the small tables that say what this snapshot is: `snapshot`, `snapshot_runs`, `manifest_quarantines`."""
        commits = [("main", self.commit), ("archive", self.archive), ("ops", self.ops)]
        text = pa.string()
        pinned = {
            "schema_name": pa.array([name for name, _ in commits], text),
            "ref": pa.array([self.ref] * len(commits), text),
            "commit_id": pa.array([commit for _, commit in commits], text),
            "release": pa.array([self.release] * len(commits), text),
        }
        runs = {"run_id": pa.array(self.folders("_runs/"), text)}
        scope = self._manifest().get("scope") or {}
        regions = scope.get("quarantined") or []
        quarantined = {
            name: pa.array([region.get(name) for region in regions], text) for name in ("region", "reason", "incident")
        }
        return {
            "snapshot": pa.table(pinned),
            "snapshot_runs": pa.table(runs),
            "manifest_quarantines": pa.table(quarantined),
        }

    def _manifest(self) -> dict[str, Any]:
        return {} if self.release is None else _json(self.repo, self.commit, f"_releases/{self.release}/manifest.json")


def open_snapshot(repo: Repository, ref: str, *, ops: str | None = None) -> Snapshot:
    """Pin `ref` and the archive and ops commits that go with it.

    Parameters
    ----------
    ops : str
        Reference for schema `ops`, instead of what goes with `ref`.
    """
    commit = repo.resolve(ref)
    release = _release_of(repo, ref, commit)
    identity: dict[str, Any] = {}
    if release is not None and release == ref:
        identity = _json(repo, commit, f"_releases/{release}/manifest.json").get("identity") or {}
    archive = identity.get("archive_commit") or _recorded_archive(repo, commit)
    pinned_ops = ops if ops is not None else identity.get("ops_commit")
    return Snapshot(
        repo,
        ref,
        commit,
        archive=repo.resolve(archive) if archive else _head(repo, "archive"),
        ops=repo.resolve(pinned_ops) if pinned_ops else _head(repo, "ops"),
        release=release,
    )


def _recorded_archive(repo: Repository, commit: CommitId) -> str | None:
    """Give the archive commit of the candidate in progress in this tree, else of its newest release, else None."""
    keys = {stat.key for stat in repo.list(commit, "_releases/")}
    records = []
    for key in sorted(key for key in keys if key.endswith("/candidate.json")):
        record = _json(repo, commit, key)
        in_progress = key.removesuffix("candidate.json") + "manifest.json" not in keys
        records.append((in_progress, record.get("created", ""), record.get("archive_commit")))
    return max(records)[2] if records else None


def _release_of(repo: Repository, ref: str, commit: CommitId) -> str | None:
    """Tell which release a commit is: the tag it was asked for by, or the one its merge commit names."""
    if ref in repo.tags(ref) and _exists(repo, commit, f"_releases/{ref}/manifest.json"):
        return ref
    named = repo.commit_info(commit).metadata.get("release")
    return named if named and _exists(repo, commit, f"_releases/{named}/manifest.json") else None


def _head(repo: Repository, branch: str) -> CommitId | None:
    return repo.branches(branch).get(branch)


def _exists(repo: Repository, commit: CommitId, key: str) -> bool:
    try:
        repo.stat(commit, key)
    except ObjectNotFound:
        return False
    return True


def _json(repo: Repository, commit: CommitId, key: str) -> dict[str, Any]:
    """Read a JSON object; empty if it is absent."""
    try:
        value = json.loads(repo.get(commit, key))
    except ObjectNotFound:
        return {}
    except ValueError as error:
        raise LakeError(
            f"{key} at {commit[:12]} is not JSON: {error}", fix="restore it from an earlier commit"
        ) from error
    return value if isinstance(value, dict) else {}
