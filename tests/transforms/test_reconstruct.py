"""From tiles to a wiring diagram on a tiny acquisition: every real stage, in one run."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

import lake
from lake import tables
from lake.digests import canonical_json
from transforms import ledger as book
from transforms.executors import ProcessExecutor
from transforms.ingest import ingest_tiles
from transforms.pipeline import load_pipeline
from transforms.runner import run
from transforms.synthetic.acquisition import Microscope, acquire
from transforms.tree import GRID

SHAPE = (8, 150, 160)
PARAMS = {
    "match": {"windows": {"window": 48, "stride": 32, "search": 16.0}},
    "em": {"cells": [1, 1, 1]},
    "affinity": {"cells": [1, 1, 1]},
    "synapse_sites": {"cells": [1, 1, 1]},
    "synapses": {"cells": [1, 1, 1]},
    "mesh_pieces": {"cells": [1, 1, 1]},
    "meshes": {"min_voxels": 50},
}


def model(folder, outputs, kind):
    """Write an untrained network: small enough to run at once, and real enough for every step on its way."""
    import torch
    from safetensors.torch import save

    from transforms.models.inference import CARD, WEIGHTS, describe
    from transforms.models.nets import Architecture, UNet

    torch.manual_seed(outputs)
    architecture = Architecture(outputs, widths=(4,), encoder=(2,), decoder=(), pool_z=())
    folder.mkdir()
    net = UNet(architecture)
    (folder / WEIGHTS).write_bytes(save({k: v.contiguous() for k, v in net.state_dict().items()}))
    (folder / CARD).write_text(json.dumps(describe(kind, architecture)))


def tissue():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), (1.5, 2.5, 2.5))
    return np.clip(130 + 28 * noise / noise.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """An acquisition of 4 x 4 small tiles a section, two models, and the pipeline that uses them."""
    base = tmp_path_factory.mktemp("sample")
    acquire(tissue(), base / "tiles", 5, microscope=Microscope(grid=(3, 3), jitter=1.0, drift=0.5))
    model(base / "membranes", 3, "affinity")
    model(base / "synapses", 2, "synapse")
    text = (Path(load_pipeline.__code__.co_filename).parent / "pipelines" / "reconstruct.toml").read_text()
    text = text.replace("builtin:affinity-large", "membranes").replace("builtin:synapse", "synapses")
    (base / "pipeline.toml").write_text(text)
    return base


def prepared(location, sample):
    repo = lake.create(location)
    grid = {"block_zyx": [8, 32, 32], "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": [16, 8, 8]}
    repo.put("main", GRID, canonical_json(grid))
    repo.commit("main", "grid")
    for branch in ("archive", "ops", "work"):
        repo.create_branch(branch, "main")
    ingest_tiles(repo, sample / "tiles")
    return repo


def pipeline(sample, last="connections"):
    wanted = load_pipeline(sample / "pipeline.toml").up_to(last)
    return wanted.with_params({k: v for k, v in PARAMS.items() if k in {step.stage for step in wanted.steps}})


def digests(repo):
    with repo.snapshot("work") as snapshot:
        found = {name: tables.content_digest(snapshot.location(f"tables/{name}/"), name) for name in snapshot.tables()}
        models = sorted({stat.key for stat in repo.list("work", "models/")})
    return found, models


@pytest.fixture(scope="module")
def imaged(sample, tmp_path_factory):
    """Tiles to volume: the fast half."""
    repo = prepared(tmp_path_factory.mktemp("lake") / "repo", sample)
    report = run(repo, pipeline(sample, "em"), "work")
    yield repo, report
    repo.close()


@pytest.fixture(scope="module")
def reconstructed(sample, tmp_path_factory):
    repo = prepared(tmp_path_factory.mktemp("lake") / "repo", sample)
    report = run(repo, pipeline(sample), "work")
    yield repo, report
    repo.close()


def test_the_volume_shows_what_was_imaged(imaged):
    repo, _ = imaged
    with repo.snapshot("work") as snapshot:
        volume = snapshot.volume("em")
        image = volume.read(volume.box)
        sections = snapshot.table("sections").collect()
    assert image.shape == SHAPE
    assert volume.spec.voxel_nm_zyx == (16.0, 8.0, 8.0)
    truth = tissue()
    assert min(np.corrcoef(image[z].ravel(), truth[z].ravel())[0, 1] for z in range(len(image))) > 0.95
    assert sections["status"].unique().to_list() == ["ok"]
    assert sections["coverage"].min() == 1.0
    assert sections["z"].to_list() == list(range(8))


@pytest.mark.slow
def test_every_supervoxel_has_one_root_and_the_volume_shows_it(reconstructed):
    repo, _ = reconstructed
    with repo.snapshot("work") as snapshot:
        roots = dict(snapshot.table("agglomeration").collect().select("supervoxel_id", "root_id").iter_rows())
        supervoxels = snapshot.table("supervoxels").collect()
        assert set(roots) == set(supervoxels["supervoxel_id"])
        assert set(roots.values()) == set(snapshot.table("segments").collect()["root_id"])
        box = snapshot.volume("em").box
        small = snapshot.volume("supervoxels").read(box).ravel()
        large = snapshot.volume("segmentation").read(box).ravel()
    pairs = {(int(a), int(b)) for a, b in zip(small, large, strict=True) if a}
    assert pairs == set(roots.items())
    assert supervoxels["voxels"].sum() == np.count_nonzero(small)


@pytest.mark.slow
def test_a_segment_was_made_from_some_of_the_tiles_and_not_from_all(reconstructed):
    repo, _ = reconstructed
    with repo.snapshot("work") as snapshot:
        (total,) = snapshot.sql("select count(*) from archive.tiles where status = 'ok'").rows()[0]
        # The supervoxels of the first block alone: its own tiles, and those of the neighbours it looked at.
        corner = snapshot.sql(
            """select count(distinct i.input_id) from main.v_block_lineage l join ops.block_inputs i
               on i.run_id = l.source_run_id and i.block = l.source_block and i.kind = 'tile'
               where l.block = 'watershed/0_0_0'"""
        ).rows()[0][0]
        per_root = "select min(n) from (select count(*) n from v_segment_tiles group by root_id)"
        least = snapshot.sql(per_root).rows()[0][0]
    assert total == 8 * 9
    assert 0 < corner < total
    assert 0 < least < total


@pytest.mark.slow
def test_the_models_travel_with_the_branch(reconstructed):
    repo, _ = reconstructed
    keys = [stat.key for stat in repo.list("work", "models/")]
    assert sorted(key.rpartition("/")[2] for key in keys) == ["card.json", "card.json"] + ["model.safetensors"] * 2
    with repo.snapshot("work") as snapshot:
        used = snapshot.sql("select stage, model_digest from ops.runs where model_digest is not null order by 1").rows()
    assert [stage for stage, _ in used] == ["affinity", "synapse_sites"]
    assert {digest for _, digest in used} == {key.split("/")[1] for key in keys}


@pytest.mark.slow
def test_running_it_again_computes_nothing(reconstructed, sample):
    repo, report = reconstructed
    again = run(repo, pipeline(sample), "work")
    assert again.state == "unchanged"
    assert again.merkle_root == report.merkle_root


def test_a_block_of_the_volume_was_made_from_the_tiles_that_reach_it(imaged):
    repo, _ = imaged
    query = """select distinct t.tile from ops.block_inputs i join archive.tiles t on t.path = i.input_id
               where i.block = ? and i.kind = 'tile' order by 1"""
    with repo.snapshot("work") as snapshot:
        corner = [int(row[0]) for row in snapshot.sql(query, ["em/0_0_0"]).rows()]
        middle = [int(row[0]) for row in snapshot.sql(query, ["em/0_2_2"]).rows()]
        kinds = snapshot.sql("select distinct kind, input_id from ops.block_inputs where block = 'em/0_0_0'").rows()
    # Tiles are numbered row by row, three to a row.
    assert corner == [0]
    assert 4 in middle
    assert {name for kind, name in kinds if kind == "table"} == {"tile_placements", "sections", "montages"}


def take_back(repo, victim):
    """Quarantine tiles after all."""
    with repo.session("archive") as session:
        where = session.workspace("tables/tiles/")
        status = pl.when(victim).then(pl.lit("quarantined")).otherwise(pl.col("status"))
        tables.overwrite(where, "tiles", tables.read(where).collect().with_columns(status.alias("status")))
        session.commit("tiles are taken back")


def test_a_section_without_any_good_tile_is_held_and_bridged(sample, tmp_path):
    repo = prepared(tmp_path / "repo", sample)
    take_back(repo, pl.col("section") == 3)
    run(repo, pipeline(sample, "em"), "work")
    with repo.snapshot("work") as snapshot:
        rows = snapshot.table("sections").collect().sort("z")
        image = snapshot.volume("em").read(snapshot.volume("em").box)
    assert rows.filter(pl.col("status") == "held").select("z", "reason", "coverage").rows() == [
        (3, "no accepted tile", 0.0)
    ]
    assert not image[3].any()
    # Its neighbours were matched over it, two sections apart.
    truth = tissue()
    assert min(np.corrcoef(image[z].ravel(), truth[z].ravel())[0, 1] for z in (2, 4)) > 0.9


def test_a_tile_taken_back_changes_its_section_and_what_was_matched_with_it(imaged, sample, tmp_path):
    repo, report = imaged
    again = prepared(tmp_path / "repo", sample)
    take_back(again, (pl.col("section") == 3) & (pl.col("tile") == "8"))
    other = run(again, pipeline(sample, "em"), "work")
    records = {}
    for name, (found, commit) in {"old": (repo, report), "new": (again, other)}.items():
        blocks = book.read_blocks(found.get("work", f"_runs/{commit.run_id}/blocks.parquet"))
        records[name] = {record.id: record for record in blocks}
    differ = {key for key, record in records["new"].items() if record.fingerprint != records["old"][key].fingerprint}
    assert {key for key in differ if key.startswith("stitch/")} == {"stitch/3"}
    # Sections 1 and 2 were matched with it.
    assert {key for key in differ if key.startswith("match/")} == {"match/1", "match/2", "match/3"}


@pytest.mark.slow
def test_processes_give_the_same_digests(reconstructed, sample, tmp_path):
    repo, serial = reconstructed
    other = prepared(tmp_path / "repo", sample)
    with ProcessExecutor(2) as executor:
        parallel = run(other, pipeline(sample), "work", executor=executor)
    assert parallel.merkle_root == serial.merkle_root
    assert digests(other) == digests(repo)


@pytest.mark.lakefs
def test_a_server_gives_the_same_digests(reconstructed, sample, lakefs_location):
    repo, embedded = reconstructed
    other = prepared(lakefs_location, sample)
    report = run(other, pipeline(sample), "work")
    assert report.merkle_root == embedded.merkle_root
    assert digests(other) == digests(repo)
    assert run(other, pipeline(sample), "work").state == "unchanged"
