"""Files become the archive: every tile validated and hashed, good or bad, its bytes kept as acquired.

::

    tiles.csv -> read strictly -> tiles that the archive has: hashed, compared
                               -> session on `archive`, its lock held from here on
                                  new tiles, in threads: read once, hashed, decoded, measured, put as raw/...
                                  -> judged against their section                   ok | quarantined | superseded
                                  -> table tiles                                    one commit, or none

A tile goes to the disk while others are still measured: what is archived are the very bytes that were validated.

Ingest adds and never replaces: the same bytes under the same name are skipped, other bytes are a `ConflictError`.
Killed half way, the next ingest goes on with the files that are there. Bad tiles are archived too; see
`transforms.tile_rows` for what becomes of them.

>>> report = ingest_tiles(repo, Path("acq1"))
>>> report.added, report.quarantined
(259, 3)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TypeVar

from lake import tables
from lake.copying import algorithm
from lake.digests import merkle_root
from lake.durable import point
from lake.errors import BadInput, ConflictError, NotFound, NothingToCommit, ObjectNotFound
from lake.location import Location
from lake.repository import CommitId, Repository
from lake.session import Session
from lake.wording import counted
from transforms.ingest_run import IngestRun
from transforms.ingest_volume import ImportPlan, VolumeReport, ingest_array, ingest_volume
from transforms.tile_rows import Row, judge
from transforms.tile_table import TileRecord, read_tile_table
from transforms.tiles import TileCheck, TilePolicy, check_tile

__all__ = ["ImportPlan", "IngestReport", "VolumeReport", "ingest_array", "ingest_tiles", "ingest_volume"]

Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")
ARCHIVE = "archive"
_LIBRARIES = ("opencv-python-headless",)
_TABLE = "tables/tiles/"
_TYPES = {".png": "image/png", ".tif": "image/tiff", ".tiff": "image/tiff", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_SIGN_OF_LIFE_S = 60.0


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did.

    Attributes
    ----------
    commit : commit id or None
        The commit on `archive`; None if there was nothing to do.
    added, skipped : int
        Tiles that are new, and that were there already with the same bytes.
    ok, quarantined, superseded : int
        The new ones, by status.
    reasons : mapping of path to reason
        Of the new ones that are not ok, and of older ones that a new one superseded.
    bytes, seconds : int, float
        New bytes archived, and how long it all took.
    """

    acquisition: str
    commit: CommitId | None
    added: int
    skipped: int
    ok: int
    quarantined: int
    superseded: int
    reasons: Mapping[str, str]
    bytes: int
    seconds: float

    @property
    def text(self) -> str:
        """One line for people."""
        if self.commit is None:
            return f"{self.acquisition}: nothing to do, all of {counted(self.skipped, 'tile')} in the archive"
        parts = [
            f"{counted(self.added, 'tile')} added ({self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s)",
            f"{self.ok} ok",
        ]
        parts += [
            f"{n} {what}" for n, what in ((self.quarantined, "quarantined"), (self.superseded, "superseded")) if n
        ]
        parts += [f"{self.skipped} there already"] if self.skipped else []
        return f"{self.acquisition}: " + ", ".join(parts)


def ingest_tiles(
    repo: Repository,
    source: Path,
    acquisition: str | None = None,
    *,
    policy: TilePolicy | None = None,
    progress: Progress | None = None,
    threads: int = 4,
    owner: str | None = None,
    wait_s: float = 60.0,
) -> IngestReport:
    """Archive the tiles that a `tiles.csv` lists.

    Parameters
    ----------
    source : Path
        The table, or a folder that holds `tiles.csv`; see `transforms.tile_table`.
    acquisition : str, optional
        Takes only its lines, or names it where the table does not.
    progress : callable(done, total), optional
        Called once a tile: when it is validated and, if it is new, put.
    wait_s : float
        How long to wait for another writer of the archive.

    Raises
    ------
    BadInput, NotFound
        The table is wrong, a file is missing, a tile is of another shape or type than declared: nothing lands.
    ConflictError
        A tile is in the archive with other bytes (it is named), or somebody else writes.
    """
    began = monotonic()
    policy = policy or TilePolicy()
    run = IngestRun(repo, "tiles", asdict(policy), _LIBRARIES)
    run.catch_up()
    records = read_tile_table(source.expanduser(), acquisition)
    name = _one_acquisition(records)
    count = _Counter(progress, len(records))
    known = _known(repo.location_of(f"{ARCHIVE}@", _TABLE))
    _check_known([record for record in records if record.path in known], known, policy, threads, count)
    checked = {record.path for record in records if record.path in known}
    if len(checked) == len(records):
        return IngestReport(name, None, 0, len(records), 0, 0, 0, {}, 0, monotonic() - began)
    with repo.session(ARCHIVE, owner=owner or "ingest", wait_s=wait_s) as session, _kept_on_interrupt(session):
        table = session.workspace(_TABLE)
        known = _known(table)
        if session.resumed:
            _drop_leftovers(session, known, {record.path for record in records})
        _check_known(
            [record for record in records if record.path in known and record.path not in checked],
            known,
            policy,
            threads,
            count,
        )
        fresh = [record for record in records if record.path not in known]
        checks = _store(session, fresh, policy, threads, count)
        rows, changed = judge(fresh, checks, known, name, policy, str(source))
        _write_rows(table, known, rows, changed)
        point("ingest.rows-written")
        told = {"acquisition": name, "source": str(source)}
        brought = _brought(repo, session, table) if session.resumed else rows
        if brought:
            told |= run.write(
                session,
                root=merkle_root((row["path"], row["bytes"], row["sha256"]) for row in brought),
                blocks=len(records),
                computed=len(brought),
                size=sum(row["bytes"] for row in brought),
                voxels=sum(row["shape_y"] * row["shape_x"] for row in brought if row["status"] == "ok"),
            )
        try:
            commit = session.commit(f"ingest {name}: {counted(len(records), 'tile')}", told)
        except NothingToCommit:  # somebody else ingested the same tiles between our look and our lock
            return IngestReport(name, None, 0, len(records), 0, 0, 0, {}, 0, monotonic() - began)
    run.landed(commit)
    return _report(name, commit, records, known, rows, changed, monotonic() - began)


# -- validation -------------------------------------------------------------------------------------------------------
def _one_acquisition(records: Sequence[TileRecord]) -> str:
    names = sorted({record.acquisition for record in records})
    if len(names) > 1:
        raise BadInput(f"the table lists {len(names)} acquisitions: {', '.join(names)}", fix="name the one to ingest")
    return names[0]


def _validate(record: TileRecord, data: bytes, policy: TilePolicy) -> TileCheck:
    check = check_tile(data, shape=record.shape, sha256=record.sha256, policy=policy)
    if check.misfit and policy.misfit == "refuse":
        raise BadInput(
            f"tile {record.file} (line {record.line}) {check.misfit}; nothing was ingested",
            fix="correct the table or the file, or ingest with misfits quarantined",
        )
    return replace(check, fault=check.misfit) if check.misfit else check


def _read(record: TileRecord) -> bytes:
    try:
        return record.file.read_bytes()
    except OSError as error:
        raise NotFound(
            f"tile {record.file} cannot be read: {error.strerror}", fix="bring the file; nothing was ingested"
        ) from error


def _check_known(
    records: Sequence[TileRecord], known: Mapping[str, Row], policy: TilePolicy, threads: int, count: "_Counter"
) -> None:
    """Pass what is archived with the same bytes; other bytes under a name are refused."""

    def check(record: TileRecord) -> None:
        found, row = _validate(record, _read(record), policy), known[record.path]
        if row["sha256"] != found.sha256:
            raise ConflictError(
                f"tile {record.path} is in the archive with other bytes: sha256 {row['sha256'][:12]}..., "
                f"and {record.file} has {found.sha256[:12]}...",
                fix="raw files are never overwritten: give a tile that was acquired again a file name of its own",
                keys=[record.path],
            )
        count.step()

    _in_threads(check, records, threads)


# -- storing ----------------------------------------------------------------------------------------------------------
def _store(
    session: Session, fresh: Sequence[TileRecord], policy: TilePolicy, threads: int, count: "_Counter"
) -> dict[str, TileCheck]:
    """Validate tiles and put them; gives what each was found to be, by path."""
    lived = monotonic()

    def put(record: TileRecord) -> TileCheck:
        data = _read(record)
        check = _validate(record, data, policy)
        if not (session.resumed and _stored(session, record, check)):
            told = {"sha256": check.sha256}
            session.put(record.path, data, content_type=_content_type(record), metadata=told)
            point("ingest.tile-stored")
        count.step()
        return check

    checks: dict[str, TileCheck] = {}
    # In lots, between which a long ingest gives its sign of life: a checkpoint is not to race with puts.
    for start in range(0, len(fresh), 1024):
        lot = fresh[start : start + 1024]
        checks |= zip((record.path for record in lot), _in_threads(put, lot, threads), strict=True)
        if monotonic() - lived > _SIGN_OF_LIFE_S:
            session.checkpoint()
            lived = monotonic()
    return checks


def _stored(session: Session, record: TileRecord, check: TileCheck) -> bool:
    """Tell whether an interrupted ingest stored this file already."""
    try:
        stat = session.stat(record.path)
    except ObjectNotFound:
        return False
    same = algorithm(stat.checksum) != "sha256" or stat.checksum == check.sha256
    return same and stat.size == check.bytes and stat.metadata.get("sha256") == check.sha256


def _drop_leftovers(session: Session, known: Mapping[str, Row], wanted: set[str]) -> None:
    """Remove raw files that an interrupted ingest of something else stored without their rows: it will store them."""
    stray = [s.key for s in session.list("raw/") if s.key not in known and s.key not in wanted]
    if stray:
        session.delete(stray)


@contextmanager
def _kept_on_interrupt(session: Session) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        session.suspend()  # what is stored stays, and the next ingest goes on from it
        raise
    except (BadInput, NotFound, ConflictError):
        if session.resumed:
            session.suspend()  # what another ingest had stored is no worse for a wrong table of this one
        raise


# -- rows -------------------------------------------------------------------------------------------------------------
def _known(location: Location) -> dict[str, Row]:
    if not tables.table_exists(location):
        return {}
    return {row["path"]: row for row in tables.read(location).pipe(tables.collect).iter_rows(named=True)}


def _brought(repo: Repository, session: Session, table: Location) -> list[Row]:
    """Give the rows that the session adds, those that an interrupted ingest had written too."""
    before = _known(repo.location_of(session.base, _TABLE))
    return [row for path, row in _known(table).items() if path not in before]


def _write_rows(table: Location, known: Mapping[str, Row], rows: Sequence[Row], changed: Mapping[str, Row]) -> None:
    if changed:
        tables.overwrite(table, "tiles", [*({**row, **changed.get(path, {})} for path, row in known.items()), *rows])
    elif rows:
        tables.append(table, "tiles", rows)


def _report(
    name: str,
    commit: CommitId,
    records: Sequence[TileRecord],
    known: Mapping[str, Row],
    rows: Sequence[Row],
    changed: Mapping[str, Row],
    seconds: float,
) -> IngestReport:
    of = {status: sum(row["status"] == status for row in rows) for status in ("ok", "quarantined", "superseded")}
    told = [row for row in (*rows, *changed.values()) if row["status"] != "ok"]
    return IngestReport(
        name, commit, len(rows), len(records) - len(rows),
        of["ok"], of["quarantined"], of["superseded"],
        {row["path"]: row["reason"] for row in sorted(told, key=lambda row: row["path"])},
        sum(row["bytes"] for row in rows), seconds,
    )  # fmt: skip


# -- threads ----------------------------------------------------------------------------------------------------------
class _Counter:
    """Counts steps from several threads and tells `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        from threading import Lock

        self._progress, self._total, self._done, self._lock = progress, total, 0, Lock()

    def step(self) -> None:
        """Count one."""
        if self._progress is not None:
            with self._lock:
                self._done += 1
                self._progress(self._done, self._total)


def _in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """Map in threads, in order; after a failure nothing more is begun, and the first failure is raised."""
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _content_type(record: TileRecord) -> str:
    return _TYPES.get(record.file.suffix.lower(), "application/octet-stream")
