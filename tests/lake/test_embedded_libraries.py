"""Real libraries in workspaces and views: what they write is committed, what they leave when killed is not."""

import os
import random

import numpy as np
import pytest

import lake
from lake.testing.crash import check_whole, moments, python, run

VOLUME = """
import sys, lake, numpy as np, tensorstore as ts
repo = lake.open(sys.argv[1])
folder = repo.workspace('main', 'volumes/v/')
store = ts.open({'driver': 'zarr3', 'kvstore': folder.kvstore(), 'create': True, 'delete_existing': True,
                 'metadata': {'shape': [64, 64, 64], 'data_type': 'uint8', 'chunk_grid': {'name': 'regular',
                 'configuration': {'chunk_shape': [8, 8, 8]}}}}).result()
print('ready')
for n in range(1000):
    store[:] = np.random.default_rng(n).integers(1, 255, (64, 64, 64), dtype=np.uint8)
"""
TABLE = """
import sys, lake, pyarrow as pa, deltalake
repo = lake.open(sys.argv[1])
folder = repo.workspace('main', 'tables/t/').root
rows = pa.table({'n': list(range(50_000)), 'text': [str(n) * 5 for n in range(50_000)]})
deltalake.write_deltalake(folder, rows, mode='append')
print('ready')
for n in range(1000):
    deltalake.write_deltalake(folder, rows, mode='append')
"""


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


def files_of(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "prefix", "mark"), [(VOLUME, "volumes/v/", ".__lock"), (TABLE, "tables/t/", "#")])
def test_what_a_killed_library_leaves_half_written_is_not_committed(repo, code, prefix, mark):
    for moment in moments(random.Random(5), 3, 1.0):
        run(python(code, repo.root), kill_after_s=moment)
        folder = repo.workspace("main", prefix).path
        half = [name for name in files_of(folder) if mark in name]
        repo.commit("main", "what was finished", allow_empty=True)
        keys = {stat.key for stat in repo.list("main", prefix)}
        assert keys == {prefix + name for name in files_of(folder)} - {prefix + name for name in half}
        assert list(repo.uncommitted("main")) == []
    check_whole(repo)


@pytest.mark.slow
def test_volumes_and_tables_are_rewritten_on_a_branch_and_each_commit_keeps_its_own(repo):
    import duckdb
    import polars as pl
    import pyarrow as pa
    import tensorstore as ts
    from deltalake import DeltaTable, write_deltalake

    def volume(location, **more):
        return ts.open({"driver": "neuroglancer_precomputed", "kvstore": location.kvstore(), **more}).result()

    made = {
        "create": True,
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
        "scale_metadata": {
            "size": [128, 128, 64],
            "encoding": "raw",
            "chunk_size": [32, 32, 32],
            "resolution": [8, 8, 16],
            "sharding": {
                "@type": "neuroglancer_uint64_sharded_v1",
                "preshift_bits": 3,
                "hash": "identity",
                "minishard_bits": 0,
                "shard_bits": 2,
                "minishard_index_encoding": "gzip",
                "data_encoding": "raw",
            },
        },
    }
    data = np.random.default_rng(0).integers(0, 255, (128, 128, 64, 1), dtype=np.uint8)
    volume(repo.workspace("main", "volumes/em/"), **made)[...] = data
    write_deltalake(repo.workspace("main", "tables/t/").root, pa.table({"n": [1, 2, 3]}))
    first = repo.commit("main", "first")
    shared = {os.stat(stat.address).st_ino for stat in repo.list(first) if stat.size >= 65_536}
    assert shared

    repo.create_branch("side", first)
    changed = data.copy()
    changed[:64, :64, :] = 7
    volume(repo.workspace("side", "volumes/em/"))[:64, :64, :] = changed[:64, :64, :]
    table = repo.workspace("side", "tables/t/").root
    write_deltalake(table, pa.table({"n": [4, 5]}), mode="append")
    DeltaTable(table).delete("n = 2")
    second = repo.commit("side", "second")

    for commit, pixels, rows in ((first, data, [1, 2, 3]), (second, changed, [1, 3, 4, 5])):
        assert np.array_equal(volume(repo.location_of(commit, "volumes/em/")).read().result(), pixels)
        view = repo.location_of(commit, "tables/t/").root
        assert sorted(pl.read_delta(view)["n"].to_list()) == rows
        files = DeltaTable(view).file_uris()
        found = duckdb.sql(f"SELECT n FROM read_parquet({files!r}) ORDER BY n").fetchall()
        assert [n for (n,) in found] == rows
    check_whole(repo)
    repo.merge("side", "main", "joined")
    assert list(repo.diff("main", "side")) == []
