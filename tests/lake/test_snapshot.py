"""Snapshots: pinned to commits, on every schema; results as asked; the six questions, answered by heart."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest

import lake
from lake import tables
from lake.box import Box
from lake.errors import BadInput, ConflictError, NotFound, ObjectNotFound, QueryRefused, RefNotFound, TableNotFound
from lake.ops import append_rows
from lake.repository import Repository
from lake.snapshot import Snapshot
from lake.testing.example import M1, M2, RUN1, RUN2, Example, tile_path, write_example
from lake.volumes import VolumeSpec, create_volume

WHEN = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[tuple[Repository, Example]]:
    """An embedded repository with the example; tests only read it."""
    repo = lake.create(tmp_path_factory.mktemp("lake") / "repo")
    yield repo, write_example(repo)
    repo.close()


@pytest.fixture(scope="module")
def first(shared) -> Iterator[Snapshot]:
    with shared[0].snapshot("cand-r1") as snapshot:
        yield snapshot


@pytest.fixture(scope="module")
def second(shared) -> Iterator[Snapshot]:
    with shared[0].snapshot("cand-r2") as snapshot:
        yield snapshot


# -- the questions ------------------------------------------------------------------------------------------------
def check_questions(repo: Repository, known: Example) -> None:
    with repo.snapshot("cand-r1") as old, repo.snapshot("cand-r2") as new:
        assert [row[3] for row in old.sql("tiles_of_segment", {"root_id": known.a}).rows()] == [
            tile_path("t0"),
            tile_path("t1"),
        ]
        assert [row[2] for row in old.sql("tiles_of_segment", {"root_id": known.c}).rows()] == ["t0", "t1", "t2"]
        # r2 reused align 0_0_1 of the first run: its lineage goes on through that run.
        assert [row[2] for row in new.sql("tiles_of_segment", {"root_id": known.b_second}).rows()] == ["t0", "t1", "t2"]
        touched = new.sql("blocks_of_model", {"model_digest": M2}).polars()
        for query in ("blocks_of_model", "impact_of_model", "releases_with_model"):
            whole, first, few = (new.sql(query, {"model_digest": M2[:digits]}).rows() for digits in (64, 12, 6))
            assert whole == first != few == []
        assert touched.select("distance", "run_id", "block").rows() == [
            (0, RUN2, "affinity/0_0_1"),
            (1, RUN2, "synapses/0_0_1"),
            (1, RUN2, "watershed/0_0_1"),
        ]
        partners = old.sql("partners_of_neuron", {"root_id": known.b}).polars()
        assert partners.select("direction", "partner_root_id", "synapses").rows() == [
            ("input", known.a, 2),
            ("output", known.a, 1),
        ]
        orphans = old.sql("orphans_by_region", {"min_voxels": 100}).polars()
        assert orphans.select("region", "orphans", "orphan_voxels").rows() == [("0_0_1", 1, 220), ("0_0_0", 0, 0)]
        assert old.sql("orphans_by_region", {"min_voxels": 221}).polars()["orphans"].sum() == 0
        changes = new.sql("changes_between_releases", attach={"old": old}).rows()
        assert [row[:2] for row in changes] == [
            ("roots created", 1),
            ("roots kept", 2),
            ("roots retired", 1),
            ("synapses re-bound", 4),
        ]
        carrying = new.sql("releases_with_model", {"model_digest": M2}).polars()
        assert carrying.select("release", "state", "verdict").rows() == [("r2", "rolled back", "waived")]
        assert new.sql("releases_with_model", {"model_digest": M1}).polars()["release"].to_list() == ["r1", "r2"]
        impact = new.sql("impact_of_model", {"model_digest": M2}).rows()
        assert impact == [("0_0_1", 1, 2, 2, 3)]
        worse = new.sql("regressions_by_region", {"metric": "vi_split"}, attach={"old": old}).polars()
        assert worse.select("region", "before", "after").rows() == [("0_0_1", 0.2, 1.5), ("0_0_0", 0.1, 0.1)]


def test_six_questions_and_the_two_of_an_incident(shared) -> None:
    check_questions(*shared)


@pytest.mark.lakefs
def test_the_same_answers_and_the_same_refusals_on_a_server(lakefs_repo) -> None:
    known = write_example(lakefs_repo)
    check_questions(lakefs_repo, known)
    with lakefs_repo.snapshot("cand-r1") as snapshot:
        place = snapshot.location("tables/segments/")
        assert place.s3 is not None
        foreign = place.uri.replace(snapshot.commit, "cand-r2")
        for query in (f"FROM delta_scan('{foreign}')", f"FROM '{foreign}/x.parquet'", "FROM read_text('/etc/passwd')"):
            with pytest.raises(QueryRefused):
                snapshot.sql(query)
        # The last lock by itself: DuckDB's settings, which hold even for trusted code.
        with snapshot.cursor() as cursor:
            for query in (
                f"SELECT count(*) FROM delta_scan('{foreign}')",
                f"FROM glob('{foreign}/**')",
                "FROM read_text('/etc/passwd')",
                "FROM read_text('http://127.0.0.1:1/x')",
                f"COPY (SELECT 1) TO '{foreign}/x.csv'",
                "SET enable_external_access=true",
            ):
                with pytest.raises(Exception, match=r"disabled by configuration|locked"):
                    cursor.execute(query).fetchall()
            secrets = str(cursor.execute("FROM duckdb_secrets()").fetchall())
            assert place.s3.secret_access_key not in secrets
            assert "redacted" in secrets
        assert snapshot.table("segments").collect().height == 3
        assert tables.content_digest(place, "segments")


# -- pinning ------------------------------------------------------------------------------------------------------
def test_a_snapshot_stays_where_it_was_opened(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    write_example(repo)
    before = repo.snapshot("cand-r1")
    with repo.session("cand-r1", owner="me") as session:
        tables.overwrite(
            session.workspace("tables/agglomeration/"),
            "agglomeration",
            [{"supervoxel_id": 99, "root_id": 99, "run_id": "x"}],
        )
        session.commit("another graph")
    append_rows(repo, "ops", {"decisions": [{**_decision(), "decision_id": "d9"}]}, message="later")
    after = repo.snapshot("cand-r1")
    query = "SELECT (SELECT count(*) FROM agglomeration), (SELECT count(*) FROM ops.decisions)"
    assert before.sql(query).rows() == [(4, 1)]
    assert after.sql(query).rows() == [(1, 2)]
    assert before.table("agglomeration").collect().height == 4
    assert repo.snapshot("cand-r1", ops=before.ops).sql(query).rows() == [(1, 1)]
    repo.close()


def _decision() -> dict:
    row = {"decision_id": "d1", "kind": "keep", "release": "r1", "criteria": "{}", "reason": "fine", "user": "me"}
    return {**row, "ts": WHEN}


def test_a_candidate_names_its_archive_and_a_release_its_archive_and_ops(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    known = write_example(repo)
    ops = repo.resolve("ops")
    with repo.session("cand-r1", owner="me") as session:
        record = {"name": "r1", "archive_commit": known.archive, "created": "2026-01-01T00:00:00Z"}
        session.put("_releases/r1/candidate.json", json.dumps(record).encode())
        session.commit("made from the archive")
    identity = {"archive_commit": known.archive, "ops_commit": ops}
    scope = {"quarantined": [{"region": "0_0_1", "reason": "split errors", "incident": "i1"}]}
    with repo.session("cand-r1", owner="me") as session:
        session.put("_releases/r1/manifest.json", json.dumps({"identity": identity, "scope": scope}).encode())
        session.commit("manifest", {"release": "r1"})
    repo.create_tag("r1", "cand-r1")
    append_rows(repo, "archive", {"tiles": [_tile(repo)]}, message="more")
    append_rows(repo, "ops", {"decisions": [{**_decision(), "decision_id": "d9"}]}, message="later")
    at_tag, at_branch = repo.snapshot("r1"), repo.snapshot("cand-r1")
    assert (at_tag.archive, at_tag.ops, at_tag.release) == (known.archive, ops, "r1")
    assert (at_branch.archive, at_branch.ops) == (known.archive, repo.resolve("ops"))
    assert repo.snapshot("cand-r2").archive == repo.resolve("archive") != known.archive
    # The manifest's quarantine hides the region's synapses from the default view, and only there.
    assert at_tag.sql("SELECT region, source FROM v_quarantined").rows() == [("0_0_1", "manifest")]
    assert at_tag.sql("SELECT id FROM v_synapses_valid").rows() == [(1,)]
    assert at_tag.sql("SELECT count(*) FROM synapses").rows() == [(4,)]
    assert repo.snapshot("cand-r2").sql("SELECT id FROM v_synapses_valid ORDER BY id").rows() == [(1,), (2,), (4,)]
    check_quarantine_by_operations(repo)
    repo.close()


def check_quarantine_by_operations(repo: Repository) -> None:
    box = {f"{end}_{axis}": 0.0 for end in ("min", "max") for axis in "xyz"}
    row = {"release": "r1", **box, "reason": "x", "user": "me"}
    rows = [
        {**row, "region": "0_0_0", "state": "quarantined", "ts": WHEN},
        {**row, "region": "0_0_1", "state": "quarantined", "ts": WHEN},
        {**row, "region": "0_0_1", "state": "lifted", "ts": WHEN + timedelta(hours=1)},
    ]
    append_rows(repo, "ops", {"quarantines": rows}, message="quarantine")
    with repo.snapshot("r1", ops="ops") as snapshot:
        assert snapshot.sql("SELECT region, source FROM v_quarantined").rows() == [("0_0_0", "operations")]
        assert snapshot.sql("SELECT id FROM v_synapses_valid ORDER BY id").rows() == [(2,), (4,)]


def _tile(repo: Repository) -> dict:
    with repo.snapshot("cand-r2") as snapshot:
        row = snapshot.table("tiles", "archive").collect().to_dicts()[0]
    return {**row, "path": "raw/acq/1/t0.tif", "section": 1}


def test_a_repository_without_archive_and_ops_can_be_read(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    snapshot = repo.snapshot("main")
    assert (snapshot.archive, snapshot.ops, snapshot.release) == (None, None, None)
    assert snapshot.tables() == snapshot.tables("ops") == ()
    # Nothing was recorded: tables of ops are empty, not an error.
    assert snapshot.sql("SELECT count(*) FROM ops.releases").rows() == [(0,)]
    assert snapshot.sql("FROM v_release_history").rows() == []
    with pytest.raises(TableNotFound, match=r"main\.segments"):
        snapshot.sql("SELECT * FROM segments")
    with pytest.raises(RefNotFound, match="archive"):
        snapshot.get("x", schema="archive")
    with pytest.raises(RefNotFound):
        repo.snapshot("nowhere")
    repo.close()


# -- objects and volumes ------------------------------------------------------------------------------------------
def test_objects_tables_and_folders_are_named(first) -> None:
    assert first.get(f"_runs/{RUN1}/run.json") == b"{}"
    assert first.stat(f"_runs/{RUN1}/run.json").size == 2
    assert [stat.key for stat in first.list("_runs/")] == [f"_runs/{RUN1}/run.json"]
    assert first.tables() == ("agglomeration", "qc_metrics", "segments", "supervoxels", "synapses")
    assert first.tables("archive") == ("tiles",)
    assert first.folders("tables/") == first.tables()
    with pytest.raises(ObjectNotFound):
        first.get("nothing")
    with pytest.raises(TableNotFound, match="segmets") as caught:
        first.table("segmets")
    assert "segments" in caught.value.fix
    assert first.table("tiles", "archive").collect().height == 4


def test_a_volume_is_read_at_the_commit(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    spec = VolumeSpec("em", "image", "uint8", (4, 8, 8), (16, 8, 8), chunk_zyx=(4, 8, 8))
    box = Box((0, 0, 0), (4, 8, 8))
    commits = []
    for value in (1, 2):
        with repo.session("main", owner="me") as session:
            volume = create_volume(session.workspace("volumes/em/"), spec)
            volume.write(box, pl.Series([value] * box.voxels, dtype=pl.UInt8).to_numpy().reshape(box.shape))
            commits.append(session.commit(f"em {value}"))
    for value, commit in enumerate(commits, 1):
        assert (repo.snapshot(commit).volume("em").read(box) == value).all()
    with pytest.raises(NotFound, match="'en'") as caught:
        repo.snapshot("main").volume("en")
    assert "'em'" in caught.value.fix
    with pytest.raises(BadInput, match="read-only"):
        repo.snapshot("main").volume("em").write(box, repo.snapshot("main").volume("em").read(box))
    repo.close()


# -- results ------------------------------------------------------------------------------------------------------
def test_a_result_comes_as_polars_arrow_pandas_and_rows(first) -> None:
    result = first.sql("SELECT supervoxel_id, region FROM supervoxels WHERE supervoxel_id < ? ORDER BY 1", [20])
    assert result.columns == ("supervoxel_id", "region")
    assert result.rows() == [(11, "0_0_0"), (12, "0_0_0")]
    assert len(result) == 2
    assert result.polars().schema == {"supervoxel_id": pl.Int64, "region": pl.String}
    assert isinstance(result.arrow(), pa.Table)
    assert result.pandas()["supervoxel_id"].tolist() == [11, 12]


def test_ids_never_become_floats(first) -> None:
    result = first.sql("SELECT * FROM (VALUES (9223372036854775807), (NULL)) AS t(id)")
    assert result.pandas()["id"].dtype == "Int64"
    assert result.pandas()["id"][0] == result.rows()[0][0] == 2**63 - 1
    sums = first.sql("SELECT sum(supervoxel_id) AS small, sum(9223372036854775807) AS large FROM supervoxels")
    assert sums.polars().schema["small"] == pl.Int64
    assert sums.rows() == [(66, Decimal(4 * (2**63 - 1)))]


def test_times_are_utc(first) -> None:
    result = first.sql("SELECT published FROM v_release_history ORDER BY 1 LIMIT 1")
    assert result.rows()[0][0].isoformat() == "2026-01-01T00:00:00+00:00"


def test_no_rows_keep_their_columns(first) -> None:
    result = first.sql("SELECT root_id FROM segments WHERE false")
    assert (result.columns, result.rows(), len(result)) == (("root_id",), [], 0)
    assert result.polars().schema == {"root_id": pl.Int64}


def test_named_parameters_are_values_never_text(first) -> None:
    query = "SELECT count(*) FROM supervoxels WHERE region = $region"
    assert first.sql(query, {"region": "0_0_0"}).rows() == [(2,)]
    assert first.sql(query, {"region": "' OR true --"}).rows() == [(0,)]
    with pytest.raises(BadInput, match="region"):
        first.sql(query)


def test_views_without_their_tables_say_what_is_missing(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    with repo.session("main", owner="me") as session:
        rows = [{"supervoxel_id": 1, "root_id": 2, "run_id": "r"}]
        tables.append(session.workspace("tables/agglomeration/"), "agglomeration", rows)
        session.commit("half a graph")
    snapshot = repo.snapshot("main")
    assert "v_orphans" not in snapshot.views
    assert "main.agglomeration" in snapshot.relations
    with pytest.raises(TableNotFound, match=r"main\.v_segment_blocks") as caught:
        snapshot.sql("SELECT * FROM v_segment_blocks")
    assert "main.supervoxels" in caught.value.fix
    repo.close()


def test_many_threads_share_a_snapshot(first) -> None:
    found: list[object] = []

    def ask() -> None:
        found.extend(first.sql("SELECT count(*) FROM v_segment_tiles").rows() for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(8,)]] * 20


def test_a_closed_snapshot_opens_again(shared) -> None:
    with shared[0].snapshot("cand-r1") as snapshot:
        result = snapshot.sql("SELECT count(*) FROM segments")
    assert result.rows() == [(3,)]
    assert snapshot.sql("SELECT count(*) FROM segments").rows() == [(3,)]
    snapshot.close()


def test_another_snapshot_is_attached_under_a_free_name_only(first, second) -> None:
    both = second.sql("SELECT root_id FROM segments EXCEPT SELECT root_id FROM old.segments", attach={"old": first})
    assert len(both) == 1
    for name in ("main", "ops", "a b"):
        with pytest.raises(BadInput, match="cannot be attached"):
            second.sql("SELECT 1", attach={name: first})
    with pytest.raises(TableNotFound, match=r"old\.segments"):
        second.sql("SELECT * FROM old.segments")


# -- appending ----------------------------------------------------------------------------------------------------
def test_rows_are_appended_in_one_commit_or_not_at_all(tmp_path) -> None:
    repo = lake.create(tmp_path / "repo")
    repo.create_branch("ops", "main")
    before = repo.resolve("ops")
    with pytest.raises(BadInput, match="tiles belongs to archive"):
        append_rows(repo, "ops", {"tiles": [{"section": 1}]}, message="x")
    with pytest.raises(BadInput, match="no rows"):
        append_rows(repo, "ops", {"decisions": []}, message="x")
    with pytest.raises(BadInput, match="costs"):
        append_rows(repo, "ops", {"decisions": [_decision()], "costs": [{"kind": "compute"}]}, message="x")
    assert repo.resolve("ops") == before
    commit = append_rows(repo, "ops", {"decisions": [_decision()]}, message="one", metadata={"run": "r"})
    info = repo.commit_info("ops")
    assert (info.id, info.message, info.metadata["run"], info.parents) == (commit, "one", "r", (before,))
    with repo.session("ops", owner="somebody") as session:
        with pytest.raises(ConflictError, match="somebody"):
            append_rows(repo, "ops", {"decisions": [_decision()]}, message="x", wait_s=0.0)
        session.abandon()
    repo.close()
