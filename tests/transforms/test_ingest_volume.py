import functools
import http.server
import threading

import numpy as np
import pytest
import tensorstore as ts

import lake
from lake.box import Box
from lake.errors import AlreadyExists, BadInput, NotFound, StorageError
from lake.volumes_external import open_external
from transforms.ingest_volume import ImportPlan, default_scales, ingest_array, ingest_volume

NM = ImportPlan(voxel_nm=(16, 8, 8), chunk=(8, 16, 16))


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(1, 255, (20, 30, 40), dtype=np.uint8)


@pytest.fixture(scope="module")
def sources(voxels, tmp_path_factory):
    """One volume in four formats; precomputed and n5 store x fastest, as their writers do."""
    root = tmp_path_factory.mktemp("sources")
    for driver in ("zarr", "zarr3"):
        spec = {"driver": driver, "kvstore": f"file://{root}/{driver}/"}
        ts.open(spec, create=True, dtype=ts.uint8, shape=voxels.shape).result()[...] = voxels
    n5 = {"driver": "n5", "kvstore": f"file://{root}/n5/"}
    ts.open(n5, create=True, dtype=ts.uint8, shape=voxels.T.shape).result()[...] = voxels.T
    precomputed = {
        "driver": "neuroglancer_precomputed", "kvstore": f"file://{root}/precomputed/",
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
        "scale_metadata": {
            "size": [40, 30, 20], "resolution": [8, 8, 16], "voxel_offset": [5, 6, 7], "encoding": "raw",
            "chunk_size": [16, 16, 8],
        },
    }  # fmt: skip
    ts.open(precomputed, create=True).result()[...] = voxels.T[..., None]
    return root


@pytest.fixture
def repo(tmp_path):
    repository = lake.create(tmp_path / "repo")
    repository.create_branch("cand-a", "main")
    yield repository
    repository.close()


def volume(repo, name="em"):
    return repo.snapshot("cand-a").volume(name)


@pytest.mark.parametrize("kind", ["zarr", "zarr3", "n5"])
def test_arrays_of_every_format_are_read_in_zyx(sources, voxels, kind):
    source = open_external(sources / kind)
    assert source.box == Box((0, 0, 0), (20, 30, 40))
    assert (source.dtype, source.channels, source.voxel_nm) == ("uint8", 1, None)
    box = Box((3, 4, 5), (10, 20, 33))
    assert np.array_equal(source.read(box), voxels[box.slices])
    assert np.array_equal(open_external(f"{kind}://file://{sources}/{kind}").read(box), voxels[box.slices])


def test_a_precomputed_volume_tells_its_place_and_its_voxel_size(sources, voxels):
    source = open_external(f"precomputed://file://{sources}/precomputed")
    assert source.box == Box((7, 6, 5), (27, 36, 45))
    assert source.voxel_nm == (16, 8, 8)
    assert np.array_equal(source.read(source.box), voxels)


def test_a_box_is_copied_to_the_branch_with_its_scales_and_its_origin_on_record(repo, sources, voxels):
    box = Box((8, 10, 12), (24, 34, 44))
    report = ingest_volume(repo, sources / "precomputed", "em", "cand-a", box=box, plan=ImportPlan(chunk=(8, 16, 16)))
    stored = volume(repo)
    assert stored.box == Box((0, 0, 0), box.shape)
    assert stored.spec.voxel_nm_zyx == (16, 8, 8)
    assert np.array_equal(stored.read(stored.box), voxels[1:17, 4:28, 7:39])
    commit = repo.commit_info("cand-a")
    assert commit.metadata["source_box"] == str(box)
    assert commit.metadata["digest"] == report.digest
    assert b"precomputed" in repo.get("cand-a", "volumes/em/provenance")


def test_the_same_volume_again_changes_nothing_and_another_shape_is_refused(repo, sources):
    first = ingest_volume(repo, sources / "zarr3", "em", "cand-a", plan=NM)
    head = repo.resolve("cand-a")
    again = ingest_volume(repo, sources / "zarr3", "em", "cand-a", plan=NM)
    assert again.commit is None
    assert again.digest == first.digest
    with pytest.raises(AlreadyExists):
        ingest_volume(repo, sources / "zarr3", "em", "cand-a", box=Box((0, 0, 0), (9, 9, 9)), plan=NM)
    assert repo.resolve("cand-a") == head
    assert not [name for name in repo.branches() if name.startswith("session-")]


def test_an_import_is_among_the_runs_and_is_no_block_that_could_be_missing(repo, sources):
    repo.create_branch("ops", "main")
    made = ingest_volume(repo, sources / "zarr3", "em", "cand-a", plan=NM)
    assert ingest_volume(repo, sources / "zarr3", "em", "cand-a", plan=NM).commit is None
    with repo.snapshot("cand-a", ops="ops") as snapshot:
        told = "SELECT stage, state, branch, output_commit, merkle_root, accepted_voxels, bytes > 0 FROM ops.runs"
        row = ("ingest_volume", "complete", "cand-a", made.commit, made.digest, 20 * 30 * 40, True)
        assert snapshot.sql(told).rows() == [row]
        assert snapshot.sql("SELECT count(*) FROM snapshot_runs JOIN ops.runs USING (run_id)").rows() == [(1,)]
    assert len([commit for commit in repo.log("cand-a") if commit.parents]) == 1


def test_equal_voxels_have_one_digest_whatever_format_they_came_from(repo, sources, voxels):
    digests = {ingest_volume(repo, sources / kind, kind, "cand-a", plan=NM).digest for kind in ("zarr", "zarr3", "n5")}
    digests.add(ingest_array(repo, voxels, "array", "cand-a", source="a test", plan=NM).digest)
    assert len(digests) == 1


def test_what_cannot_be_imported_is_one_clear_error_and_leaves_the_branch(repo, sources, tmp_path):
    head = repo.resolve("cand-a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="nowhere"):
        ingest_volume(repo, tmp_path / "nowhere", "em", "cand-a", plan=NM)
    with pytest.raises(NotFound, match="empty"):
        ingest_volume(repo, tmp_path / "empty", "em", "cand-a", plan=NM)
    with pytest.raises(BadInput, match="bogus"):
        ingest_volume(repo, "bogus://somewhere", "em", "cand-a", plan=NM)
    with pytest.raises(BadInput, match="0:20,0:30,0:40"):
        ingest_volume(repo, sources / "zarr", "em", "cand-a", box=Box((0, 0, 0), (21, 1, 1)), plan=NM)
    with pytest.raises(BadInput, match="voxel size"):
        ingest_volume(repo, sources / "zarr", "em", "cand-a")
    with pytest.raises(BadInput, match="3 axes"):
        ingest_volume(repo, sources / "zarr", "em", "cand-a", axes="zy", plan=NM)
    with pytest.raises(StorageError, match="does not answer"):
        ingest_volume(repo, "http://127.0.0.1:9/em", "em", "cand-a", plan=NM)
    assert repo.resolve("cand-a") == head


def test_a_hole_in_the_source_is_an_error_unless_it_is_said_to_be_empty(repo, voxels, tmp_path):
    spec = {"driver": "zarr", "kvstore": f"file://{tmp_path}/holes/", "metadata": {"chunks": [10, 30, 40]}}
    store = ts.open(spec, create=True, dtype=ts.uint8, shape=voxels.shape).result()
    store[:10] = voxels[:10]
    head = repo.resolve("cand-a")
    with pytest.raises(NotFound, match="missing"):
        ingest_volume(repo, tmp_path / "holes", "em", "cand-a", plan=NM)
    assert repo.resolve("cand-a") == head
    ingest_volume(repo, tmp_path / "holes", "em", "cand-a", missing="zero", plan=NM)
    stored = volume(repo)
    assert np.array_equal(stored.read(Box((0, 0, 0), (10, 30, 40))), voxels[:10])
    assert not stored.read(Box((10, 0, 0), (20, 30, 40))).any()


def test_labels_become_a_segmentation_and_a_type_that_cannot_hold_them_is_refused(repo):
    labels = np.arange(8 * 8 * 8, dtype=np.int64).reshape(8, 8, 8)
    plan = ImportPlan(kind="segmentation", dtype="uint64", voxel_nm=(10, 10, 10))
    report = ingest_array(repo, labels, "truth", "cand-a", source="people", plan=plan)
    assert report.spec.kind == "segmentation"
    assert np.array_equal(volume(repo, "truth").read(Box((0, 0, 0), (8, 8, 8))), labels)
    for bad, dtype in ((labels, "uint8"), (labels - 1, "uint64")):
        with pytest.raises(BadInput, match="do not fit"):
            ingest_array(repo, bad, "bad", "cand-a", source="x", plan=ImportPlan(dtype=dtype, voxel_nm=(1, 1, 1)))


def test_channels_are_kept_in_front(repo, tmp_path):
    affinity = np.random.default_rng(1).integers(0, 255, (3, 8, 9, 10), dtype=np.uint8)
    store = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/aff/"}
    ts.open(store, create=True, dtype=ts.uint8, shape=affinity.shape).result()[...] = affinity
    report = ingest_volume(repo, tmp_path / "aff", "affinity", "cand-a", plan=NM)
    assert (report.spec.kind, report.spec.channels) == ("affinity", 3)
    assert np.array_equal(volume(repo, "affinity").read(Box((0, 0, 0), (8, 9, 10))), affinity)


def test_scales_make_voxels_round_and_then_keep_them_so():
    assert default_scales((64, 512, 512), (16, 8, 8)) == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    assert default_scales((100, 100, 100), (10, 10, 10)) == ((1, 1, 1),)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_volume_behind_a_url_is_read_like_a_folder(repo, sources, voxels):
    handler = functools.partial(_Quiet, directory=str(sources))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/precomputed"
        ingest_volume(repo, source, "em", "cand-a", plan=ImportPlan(chunk=(8, 16, 16)))
        server.shutdown()
    assert np.array_equal(volume(repo).read(Box((0, 0, 0), (20, 30, 40))), voxels)
