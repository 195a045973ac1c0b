import csv
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import polars as pl
import pytest
from scipy import ndimage

import lake
from lake import tables
from lake.errors import BadInput, ConflictError, CorruptObject, NotFound
from lake.losses import accept
from lake.scrub import scrub
from transforms.ingest import ingest_tiles
from transforms.synthetic.acquisition import acquire
from transforms.tile_table import read_tile_table
from transforms.tiles import TilePolicy, check_tile, container_fault, focus_scores

FAST = TilePolicy()


@pytest.fixture(scope="module")
def volume():
    noise = np.random.default_rng(0).normal(size=(4, 100, 110)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (1, 2, 2))
    return np.clip(128 + 40 * smooth / smooth.std(), 10, 245).astype(np.uint8)


@pytest.fixture
def acquisition(volume, tmp_path):
    return acquire(volume, tmp_path / "acq", 2)


@pytest.fixture
def repo(tmp_path):
    repository = lake.create(tmp_path / "repo")
    repository.create_branch("archive", "main")
    repository.protect("archive")
    yield repository
    repository.close()


def rows(repo):
    return tables.read(repo.location_of("archive", "tables/tiles/")).collect()


def table(acquisition):
    with acquisition.csv.open() as file:
        return list(csv.DictReader(file))


def write(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def state(repo):
    return repo.resolve("archive"), sorted(repo.branches()), sorted(repo.tags())


def test_every_tile_is_archived_with_its_bytes_and_its_digest(repo, acquisition):
    before = repo.resolve("archive")
    report = ingest_tiles(repo, acquisition.folder)
    frame = rows(repo)
    assert report.added == frame.height == len(acquisition.tiles)
    assert repo.commit_info("archive").parents == (before,)
    for row in frame.iter_rows(named=True):
        original = (acquisition.folder / row["path"].rsplit("/", 1)[-1]).read_bytes()
        assert repo.get("archive", row["path"]) == original
        assert row["sha256"] == hashlib.sha256(original).hexdigest()
        assert row["bytes"] == len(original)
    first = frame.filter(pl.col("path") == "raw/acq1/0/s0000_t001.png").row(0, named=True)
    listed = next(line for line in table(acquisition) if line["file"] == "s0000_t001.png")
    assert (first["shape_y"], first["shape_x"]) == (int(listed["height"]), int(listed["width"]))
    assert first["stage_x_nm"] == float(listed["stage_x_nm"])
    assert '"instrument":"synthetic-tem-1"' in first["metadata"]


def test_the_three_faults_are_quarantined_with_their_reasons_and_nothing_else_is(repo, acquisition):
    report = ingest_tiles(repo, acquisition.folder)
    faults = acquisition.faulty()
    frame = rows(repo)
    bad = {
        row["path"].rsplit("/", 1)[-1]: row["reason"] for row in frame.iter_rows(named=True) if row["status"] != "ok"
    }
    assert set(bad) == {tile.file for tile in faults.values()}
    assert bad[faults["truncated"].file].startswith("truncated")
    assert "out of focus" in bad[faults["blurred"].file]
    assert "duplicate" in bad[faults["duplicated"].file]
    assert report.quarantined == 3
    assert set(report.reasons) == set(frame.filter(pl.col("status") == "quarantined")["path"])
    good = frame.filter(pl.col("status") == "ok").group_by("section", "tile").len()
    assert good.height == 4 * 4
    assert set(good["len"]) == {1}


def test_ingesting_again_says_that_there_is_nothing_to_do(repo, acquisition):
    first = ingest_tiles(repo, acquisition.folder)
    before = state(repo)
    again = ingest_tiles(repo, acquisition.csv)
    assert again.commit is None
    assert (again.added, again.skipped) == (0, first.added)
    assert "nothing to do" in again.text
    assert state(repo) == before


RUNS = "SELECT stage, state, branch, input_commit, output_commit, blocks, computed, reused, bytes FROM ops.runs"


def runs(repo, query=RUNS):
    with repo.snapshot("main", ops="ops") as snapshot:
        return snapshot.sql(query).rows()


def test_an_ingest_is_among_the_runs_once_and_one_that_had_nothing_to_do_is_not(repo, acquisition):
    repo.create_branch("ops", "main")
    before = repo.resolve("archive")
    lines = table(acquisition)
    write(acquisition.folder / "some.csv", lines[:10])
    some = ingest_tiles(repo, acquisition.folder / "some.csv")
    rest = ingest_tiles(repo, acquisition.folder)
    assert ingest_tiles(repo, acquisition.folder).commit is None
    sizes = dict(rows(repo).select("path", "bytes").iter_rows())
    assert runs(repo, f"{RUNS} ORDER BY started, computed") == [
        ("ingest_tiles", "complete", "archive", before, some.commit, 10, 10, 0, some.bytes),
        ("ingest_tiles", "complete", "archive", some.commit, rest.commit, len(lines), len(lines) - 10, 10, rest.bytes),
    ]
    assert some.bytes + rest.bytes == sum(sizes.values())
    spent = "SELECT min(wall_s) > 0, min(cpu_s) > 0, sum(accepted_voxels) FROM ops.runs"
    good = rows(repo).filter(pl.col("status") == "ok")
    assert runs(repo, spent) == [(True, True, (good["shape_y"] * good["shape_x"]).sum())]
    (newest,) = runs(repo, "SELECT run_id FROM ops.runs WHERE reused > 0")
    assert repo.commit_info("archive").metadata["run_id"] == newest[0]


def test_a_row_that_could_not_be_written_is_written_by_the_next_ingest(repo, acquisition):
    done = ingest_tiles(repo, acquisition.folder)  # there is no `ops` yet
    repo.create_branch("ops", "main")
    assert ingest_tiles(repo, acquisition.folder).commit is None
    assert runs(repo, "SELECT output_commit FROM ops.runs") == [(done.commit,)]


def test_other_bytes_under_an_archived_name_are_refused_naming_the_tile(repo, acquisition):
    ingest_tiles(repo, acquisition.folder)
    before = state(repo)
    target = acquisition.folder / "s0001_t002.png"
    target.write_bytes(target.read_bytes() + b"\0")
    with pytest.raises(ConflictError, match=r"raw/acq1/1/s0001_t002\.png") as caught:
        ingest_tiles(repo, acquisition.folder)
    assert caught.value.keys == ("raw/acq1/1/s0001_t002.png",)
    assert state(repo) == before


def test_a_tile_acquired_again_supersedes_the_good_one_before_it(repo, acquisition):
    ingest_tiles(repo, acquisition.folder)
    line = next(line for line in table(acquisition) if line["file"] == "s0002_t001.png")
    picture = cv2.imread(str(acquisition.folder / line["file"]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(acquisition.folder / "later.png"), picture[::-1])
    write(acquisition.folder / "more.csv", [{**line, "file": "later.png", "acquired": "2026-02-01T00:00:00Z"}])
    report = ingest_tiles(repo, acquisition.folder / "more.csv")
    assert (report.added, report.ok) == (1, 1)
    frame = rows(repo)
    old = frame.filter(pl.col("path") == "raw/acq1/2/s0002_t001.png").row(0, named=True)
    assert old["status"] == "superseded"
    assert "later.png" in old["reason"]
    assert report.reasons == {old["path"]: old["reason"]}
    assert frame.height == len(acquisition.tiles) + 1
    assert repo.get("archive", old["path"])


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        (lambda t: [{("stagex_nm" if k == "stage_x_nm" else k): v for k, v in r.items()} for r in t],
         "no column 'stage_x_nm'", "stagex_nm"),
        (lambda t: [{("acquird" if k == "acquired" else k): v for k, v in r.items()} for r in t],
         "column 'acquird'", "acquired"),
        (lambda t: [{**t[0], "stage_y_nm": "12,5"}, *t[1:]], "line 2: stage_y_nm '12,5'", "number"),
        (lambda t: [*t[:2], {**t[2], "section": "two"}], "line 4: section 'two'", "whole number"),
        (lambda t: [{**t[0], "pixel_nm": "0"}], "pixel_nm", "above 0"),
        (lambda t: [{**t[0], "acquired": "yesterday"}], "acquired 'yesterday'", "time"),
        (lambda t: [t[0], t[0]], "lines 2 and 3", "different names"),
        (lambda t: [{**t[0], "acquisition": "../x"}], "'../x'", "letters"),
        (lambda t: [{**r, "width": "77"} for r in t if r["section"] == "3"], "77 x", "correct the table"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_clear_error_and_writes_nothing(repo, acquisition, change, message, fix):
    before = state(repo)
    path = acquisition.folder / "wrong.csv"
    write(path, change(table(acquisition)))
    with pytest.raises(BadInput, match=message) as caught:
        ingest_tiles(repo, path)
    assert fix in caught.value.fix
    assert state(repo) == before


def test_a_listed_file_that_is_missing_is_named_with_its_line(repo, acquisition):
    before = state(repo)
    (acquisition.folder / "s0003_t000.png").unlink()
    with pytest.raises(NotFound, match=r"line 14: .*s0003_t000\.png"):
        ingest_tiles(repo, acquisition.folder)
    with pytest.raises(NotFound, match=r"tiles\.csv"):
        ingest_tiles(repo, acquisition.folder / "nowhere" / "tiles.csv")
    assert state(repo) == before


def test_a_tile_of_the_wrong_type_is_refused_or_quarantined_as_the_policy_says(repo, acquisition):
    before = state(repo)
    name = "s0001_t001.png"
    picture = cv2.imread(str(acquisition.folder / name), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(acquisition.folder / name), picture.astype(np.uint16) * 257)
    with pytest.raises(BadInput, match=rf"{name}.*uint16"):
        ingest_tiles(repo, acquisition.folder)
    assert state(repo) == before
    report = ingest_tiles(repo, acquisition.folder, policy=replace(FAST, misfit="quarantine"))
    assert "uint16" in report.reasons[f"raw/acq1/1/{name}"]


def test_one_acquisition_of_several_is_chosen_by_name(repo, acquisition):
    lines = table(acquisition)
    both = [*lines[:4], *({**line, "acquisition": "other"} for line in lines[4:8])]
    write(acquisition.folder / "both.csv", both)
    with pytest.raises(BadInput, match="2 acquisitions"):
        ingest_tiles(repo, acquisition.folder / "both.csv")
    with pytest.raises(BadInput, match="'othr'") as caught:
        ingest_tiles(repo, acquisition.folder / "both.csv", "othr")
    assert "'other'" in caught.value.fix
    assert ingest_tiles(repo, acquisition.folder / "both.csv", "other").added == 4
    assert set(rows(repo)["acquisition"]) == {"other"}


def test_a_declared_digest_that_differs_quarantines_the_tile(repo, acquisition):
    lines = [{**line, "sha256": ""} for line in table(acquisition)[:8]]
    lines[3]["sha256"] = "0" * 64
    write(acquisition.folder / "digests.csv", lines)
    report = ingest_tiles(repo, acquisition.folder / "digests.csv")
    assert "declared" in report.reasons["raw/acq1/0/s0000_t003.png"]


def test_progress_counts_each_tile_and_ends_at_its_total(repo, acquisition):
    seen = []
    ingest_tiles(repo, acquisition.folder, progress=lambda done, total: seen.append((done, total)))
    total = len(acquisition.tiles)
    assert seen == [(n, total) for n in range(1, total + 1)]


@pytest.mark.parametrize("which", [0, 5])
def test_what_is_archived_are_the_bytes_that_were_validated(repo, acquisition, which):
    """A microscope that writes into a tile while it is ingested: each tile is read once."""
    file = acquisition.folder / table(acquisition)[which]["file"]
    sound = file.read_bytes()

    def change(done, total):
        if done > which:
            file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))

    ingest_tiles(repo, acquisition.folder, threads=1, progress=change)
    (row,) = (row for row in rows(repo).iter_rows(named=True) if row["path"].endswith(f"/{file.name}"))
    assert row["sha256"] == hashlib.sha256(sound).hexdigest()
    assert repo.get("archive", row["path"]) == sound
    with pytest.raises(ConflictError, match="other bytes"):
        ingest_tiles(repo, acquisition.folder)


_CHILD = "import sys, lake; from pathlib import Path; from transforms.ingest import ingest_tiles\n" \
    "ingest_tiles(lake.open(sys.argv[1]), Path(sys.argv[2]), threads=1)"  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("where", ["ingest.tile-stored:5", "ingest.rows-written", "session.landed"])
def test_a_killed_ingest_is_finished_by_the_next_one_with_what_it_had_stored(repo, acquisition, where):
    environment = {**os.environ, "EMLAKE_KILL_AT": where}
    command = [sys.executable, "-c", _CHILD, repo.location, str(acquisition.folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    ingest_tiles(repo, acquisition.folder)
    frame = rows(repo)
    assert frame.height == len(acquisition.tiles)
    assert frame["path"].n_unique() == frame.height
    assert all(repo.get("archive", row["path"]) for row in frame.iter_rows(named=True))
    if where != "session.landed":  # landed whole: nothing to do, so the lock is left for the next writer to tidy
        assert [name for name in repo.branches() if name.startswith("session-")] == []


@pytest.mark.slow
def test_a_wrong_table_leaves_what_a_killed_ingest_had_stored(repo, acquisition):
    environment = {**os.environ, "EMLAKE_KILL_AT": "ingest.tile-stored:5"}
    command = [sys.executable, "-c", _CHILD, repo.location, str(acquisition.folder)]
    subprocess.run(command, env=environment, check=False)
    lines = table(acquisition)
    write(acquisition.folder / "wrong.csv", [*lines[:-1], {**lines[-1], "width": int(lines[-1]["width"]) + 1}])
    with pytest.raises(BadInput, match="declared as"):
        ingest_tiles(repo, acquisition.folder / "wrong.csv")
    (work,) = (name for name in repo.branches() if name.startswith("session-"))
    assert len(list(repo.list(work, "raw/"))) >= 5
    ingest_tiles(repo, acquisition.folder)
    assert rows(repo).height == len(acquisition.tiles)


@pytest.mark.slow
def test_an_ingest_of_something_else_does_not_land_what_a_killed_one_left(repo, acquisition):
    environment = {**os.environ, "EMLAKE_KILL_AT": "ingest.tile-stored:5"}
    command = [sys.executable, "-c", _CHILD, repo.location, str(acquisition.folder)]
    subprocess.run(command, env=environment, check=False)
    write(acquisition.folder / "other.csv", [{**line, "acquisition": "b"} for line in table(acquisition)[:4]])
    ingest_tiles(repo, acquisition.folder / "other.csv")
    keys = [stat.key for stat in repo.list("archive", "raw/")]
    assert sorted(keys) == sorted(rows(repo)["path"])
    assert {key.split("/")[1] for key in keys} == {"b"}


# -- one tile ---------------------------------------------------------------------------------------------------------
def encoded(picture, kind=".png"):
    return cv2.imencode(kind, picture)[1].tobytes()


@pytest.fixture(scope="module")
def picture(volume):
    return volume[1]


@pytest.mark.parametrize("kind", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_cut_anywhere_is_called_truncated_before_it_is_decoded(picture, kind, share):
    data = encoded(picture, kind)
    assert container_fault(data) == ""
    assert container_fault(data[: int(share * len(data))]).startswith("truncated")


def test_damage_inside_a_png_is_found_by_its_checksums(picture):
    data = bytearray(encoded(picture))
    data[len(data) // 2] ^= 1
    assert "checksum" in container_fault(bytes(data))


def test_what_is_no_image_at_all_is_said_to_be_none():
    assert "not a PNG" in container_fault(b"hello")
    assert container_fault(b"") == "empty file"


def test_blank_and_saturated_tiles_are_faults(picture):
    blank = encoded(np.full((80, 80), 77, np.uint8))
    bright = encoded(np.clip(picture.astype(int) + 120, 0, 255).astype(np.uint8))
    assert check_tile(blank, shape=None, sha256=None, policy=FAST).fault.startswith("blank")
    assert check_tile(bright, shape=None, sha256=None, policy=FAST).fault.startswith("saturated")
    assert check_tile(encoded(picture), shape=None, sha256=None, policy=FAST).fault == ""


def test_black_padding_of_a_lens_correction_is_not_saturation(picture):
    padded = picture.copy()
    padded[:12] = 0
    data = encoded(padded)
    assert "saturated" in check_tile(data, shape=None, sha256=None, policy=FAST).fault
    assert check_tile(data, shape=None, sha256=None, policy=replace(FAST, padding=4)).fault == ""


def test_stain_and_noise_hardly_change_sharpness_and_blur_does(picture):
    def sharpness(pixels):
        data = encoded(np.clip(pixels, 0, 255).astype(np.uint8))
        return check_tile(data, shape=None, sha256=None, policy=FAST).sharpness

    plain = sharpness(picture)
    pale = sharpness((picture.astype(float) - 128) * 0.5 + 100)
    noisy = sharpness(picture + np.random.default_rng(0).normal(0, 4, picture.shape))
    blurred = sharpness(ndimage.gaussian_filter(picture.astype(float), 2.5))
    assert pale == pytest.approx(plain, rel=0.1)
    assert noisy == pytest.approx(plain, rel=0.3)
    assert blurred < 0.4 * plain


def test_focus_is_judged_against_the_section_with_a_least_spread():
    ratios, scores = focus_scores([1.0, 0.9, 0.1], [1.0, 1.01, 0.99, 0.1], spread=0.25)
    assert ratios[0] == pytest.approx(1.0, abs=0.01)
    assert scores[1] > -1
    assert scores[2] < -3
    assert focus_scores([5.0], [], 0.25) == ([1.0], [0.0])


def test_a_table_keeps_unknown_columns_as_metadata(acquisition):
    lines = [{**line, "camera_temperature": "21.5"} for line in table(acquisition)[:2]]
    path = acquisition.folder / "extra.csv"
    write(path, lines)
    assert read_tile_table(path)[0].extra["camera_temperature"] == "21.5"


@pytest.mark.data
def test_nine_real_camera_tiles_are_all_accepted(repo, test_data, tmp_path):
    folder = test_data / "fafb_tiles"
    with (folder / "tiles.csv").open() as file:
        lines = [
            {
                "section": row["section"], "tile": row["tile_index"], "file": str(folder / row["file"]),
                "width": row["width"], "height": row["height"], "pixel_nm": 4,
                "stage_x_nm": 4 * float(row["stage_x_px"]), "stage_y_nm": 4 * float(row["stage_y_px"]),
            }
            for row in csv.DictReader(file)
        ]  # fmt: skip
    write(tmp_path / "fafb.csv", lines)
    report = ingest_tiles(repo, tmp_path / "fafb.csv", "fafb", policy=replace(FAST, padding=8))
    assert (report.added, report.ok) == (9, 9)
    assert report.reasons == {}


@pytest.mark.lakefs
def test_a_server_archives_the_same_rows_and_bytes_as_a_folder(repo, lakefs_repo, acquisition):
    lakefs_repo.create_branch("archive", "main")
    for target in (repo, lakefs_repo):
        target.create_branch("ops", "main")
        report = ingest_tiles(target, acquisition.folder)
        assert report.quarantined == 3
        assert ingest_tiles(target, acquisition.folder).commit is None
    digests = {
        tables.content_digest(target.location_of("archive", "tables/tiles/"), "tiles") for target in (repo, lakefs_repo)
    }
    assert len(digests) == 1
    told = "SELECT stage, params_digest, merkle_root, blocks, computed, bytes, accepted_voxels FROM ops.runs"
    assert runs(repo, told) == runs(lakefs_repo, told) != []
    raw = [(stat.key, stat.size) for stat in repo.list("archive", "raw/")]
    assert raw == [(stat.key, stat.size) for stat in lakefs_repo.list("archive", "raw/")]
    assert all(repo.get("archive", key) == lakefs_repo.get("archive", key) for key, _ in raw)


# -- a table that has lost a file --------------------------------------------------------------------------------------
def lose(repo, ending):
    """Remove a file of the table of tiles for good; gives its name."""
    lost = next(stat for stat in repo.list("archive", "tables/tiles/") if stat.key.endswith(ending))
    os.remove(lost.address.removeprefix("local://"))
    return lost.checksum


def test_what_was_lost_of_the_table_is_accepted_and_ingested_again(repo, acquisition, volume, tmp_path):
    repo.create_branch("ops", "main")
    before = ingest_tiles(repo, acquisition.folder)
    # Not by the table: opening it would make a second link to the file.
    [part] = [stat.key for stat in repo.list("archive", "tables/tiles/") if stat.key.endswith(".parquet")]
    known = pl.read_parquet(repo.get("archive", part))
    name = lose(repo, ".parquet")
    more = acquire(volume, tmp_path / "more", 2)
    with pytest.raises(CorruptObject):
        ingest_tiles(repo, more.folder)
    [mended] = accept(repo, [name], user="ann", reason="the disk died").mended
    assert (mended.branch, mended.table, mended.rows, mended.rebuilt) == ("archive", "tiles", len(known), False)
    assert rows(repo).is_empty()
    again = ingest_tiles(repo, acquisition.folder)
    assert (again.added, again.bytes) == (before.added, before.bytes)
    now = rows(repo).select(known.columns).drop("ingested", "run_id").sort("path")
    assert now.equals(known.drop("ingested", "run_id").sort("path"))
    report = scrub(repo, budget=None)
    assert report.ok, report.faults
    assert [loss.fault.name for loss in report.accepted] == [name]


def test_without_its_log_nobody_knows_which_rows_of_the_table_stand(repo, acquisition):
    repo.create_branch("ops", "main")
    ingest_tiles(repo, acquisition.folder)
    name = lose(repo, ".json")
    before = state(repo), repo.resolve("ops")
    with pytest.raises(BadInput, match="tables/tiles/ on archive has lost a file of its log") as caught:
        accept(repo, [name], user="ann", reason="the disk died")
    assert "revert" in caught.value.fix
    assert (state(repo), repo.resolve("ops")) == before
    repo.revert("archive", "archive")
    assert accept(repo, [name], user="ann", reason="the disk died").mended == ()
    ingest_tiles(repo, acquisition.folder)
    assert scrub(repo, budget=None).ok
