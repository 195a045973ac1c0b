import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.errors import BadInput
from transforms.kernels.meshes import (
    coarser,
    downsample_labels,
    encode,
    join_pieces,
    mesh_files,
    mesh_pieces,
    pack_pieces,
    unpack_pieces,
)
from transforms.kernels.sharded import Entry, Sharding, read_entry, write_shards

VOXEL_NM = (16.0, 8.0, 8.0)
ROOTS = (2**62 + 12345, 7, 2**40 + 1)


def volume(shape=(16, 40, 48)):
    """An ellipsoid, a rod through the whole x extent, and a rod along z, in nm about equally wide."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    out = np.zeros(shape, np.int64)
    out[((z - 8) * 2) ** 2 + (y - 12) ** 2 + (x - 25) ** 2 < 100] = ROOTS[0]
    out[((z - 8) * 2) ** 2 + (y - 32) ** 2 < 36] = ROOTS[1]
    out[(y - 5) ** 2 + (x - 6) ** 2 < 16] = ROOTS[2]
    return out


def joined(roots, block, factor=(1, 1, 1), start=(0, 0, 0), **options):
    bounds = Box(start, tuple(s + n for s, n in zip(start, roots.shape, strict=True)))
    pieces = {}
    for _, core in bounds.blocks(block):
        box = Box(core.start, tuple(s + f for s, f in zip(core.stop, factor, strict=True))).clip(bounds)
        made = mesh_pieces(
            roots[box.within(bounds)],
            box=box,
            core=core,
            bounds=bounds,
            voxel_nm=VOXEL_NM,
            factor=factor,
            **options,
        )
        for root, mesh in unpack_pieces(pack_pieces(made)).items():
            pieces.setdefault(root, []).append(mesh)
    return {root: join_pieces(parts) for root, parts in pieces.items()}


def enclosed(mesh):
    """Volume in nm^3 by the divergence theorem; positive when faces look outwards."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def open_edges(mesh):
    pairs = np.sort(np.concatenate([mesh.faces[:, p] for p in ([0, 1], [1, 2], [2, 0])]), axis=1)
    return int((np.unique(pairs, axis=0, return_counts=True)[1] % 2).sum())


@pytest.mark.parametrize("factor", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("block", [(16, 40, 48), (16, 20, 16), (8, 8, 24)])
def test_pieces_of_any_blocks_join_to_closed_surfaces_of_the_right_volume_and_place(block, factor):
    roots, start = volume(), (16, 40, 96)
    for root, mesh in joined(roots, block, factor, start).items():
        where = np.argwhere(roots == root)
        assert open_edges(mesh) == 0
        assert enclosed(mesh) == pytest.approx(len(where) * np.prod(VOXEL_NM), rel=0.12)
        low = ((where.min(axis=0) + start) * VOXEL_NM)[::-1]
        high = ((where.max(axis=0) + 1 + start) * VOXEL_NM)[::-1]
        cell = np.array([8, 8, 16]) * factor[::-1]
        assert (np.abs(mesh.vertices.min(axis=0) - low) <= cell).all()
        assert (np.abs(mesh.vertices.max(axis=0) - high) <= cell).all()


def test_without_simplification_blocks_leave_no_trace_at_all():
    whole, cut = (joined(volume(), block, reduction=0) for block in ((16, 40, 48), (8, 8, 24)))
    for root in ROOTS:
        assert (whole[root].vertices == cut[root].vertices).all()
        assert len(whole[root].faces) == len(cut[root].faces)
        assert enclosed(whole[root]) == pytest.approx(enclosed(cut[root]))


def test_only_the_wanted_roots_are_meshed():
    assert list(joined(volume(), (16, 40, 48), wanted=np.array([7]))) == [7]


def test_a_block_off_the_sampling_grid_or_without_its_halo_is_refused():
    roots = volume()
    bounds, core = Box((0, 0, 0), roots.shape), Box((0, 1, 0), (16, 20, 48))
    with pytest.raises(BadInput, match="multiple"):
        mesh_pieces(roots, box=bounds, core=core, bounds=bounds, voxel_nm=VOXEL_NM, factor=(1, 2, 2))
    core = Box((0, 0, 0), (16, 20, 48))
    with pytest.raises(BadInput, match="context"):
        mesh_pieces(roots[:, :20], box=core, core=core, bounds=bounds, voxel_nm=VOXEL_NM)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 7)] * 3))
def test_downsampling_takes_the_most_frequent_label_of_each_cell(seed, factor, shape):
    labels = np.random.default_rng(seed).integers(0, 4, shape)
    out = downsample_labels(labels, factor)
    for at in np.ndindex(*out.shape):
        cell = [
            labels[tuple(min(a * f + d, n - 1) for a, f, d, n in zip(at, factor, step, shape, strict=True))]
            for step in np.ndindex(*factor)
        ]
        counts = [cell.count(value) for value in cell]
        assert out[at] == cell[counts.index(max(counts))]


def test_shards_give_every_object_back_and_do_not_depend_on_the_order_of_entries():
    rng = np.random.default_rng(0)
    entries = {
        int(k): Entry(rng.bytes(int(n)), rng.bytes(3))
        for k, n in zip(rng.integers(0, 2**63, 300), range(300), strict=True)
    }
    for sharding in (Sharding(0, 0), Sharding(3, 0), Sharding(2, 5), Sharding(0, 4)):
        files = write_shards(entries, sharding)
        assert files == write_shards(dict(reversed(entries.items())), sharding)
        for key, entry in entries.items():
            shard = files[sharding.file_of(key)]
            data, start = read_entry(shard, key, sharding)
            assert data == entry.data
            assert shard[start - 3 : start] == entry.before
        assert read_entry(shard, key ^ (1 << 60), sharding) is None


def test_sharding_spreads_many_objects_and_keeps_few_in_one_file():
    assert Sharding.for_count(0) == Sharding.for_count(64) == Sharding(0, 0)
    assert Sharding.for_count(600) == Sharding(4, 0)
    assert Sharding.for_count(10**6) == Sharding(8, 6)
    with pytest.raises(BadInput):
        Sharding(40, 40)


@pytest.mark.parametrize("count", [3, 300])
def test_cloud_volume_reads_both_levels_of_detail_at_the_right_place_in_nm(tmp_path, count):
    made = joined(volume(), (16, 20, 24), factor=(1, 2, 2))
    entries = {}
    for number in range(count):
        root = (ROOTS[number % 3] + 7919 * (number // 3) * 2**20) % 2**63
        mesh = made[ROOTS[number % 3]]
        entries[root] = (mesh, coarser(mesh, 8, 32.0))
    files, sharding = mesh_files({root: encode(list(levels), 16.0) for root, levels in entries.items()})
    assert (sharding.minishard_bits > 0) == (count > 64)
    folder = tmp_path / "segmentation"
    (folder / "mesh").mkdir(parents=True)
    for name, data in files.items():
        (folder / "mesh" / name).write_bytes(data)
    scale = {"chunk_sizes": [[64, 64, 64]], "encoding": "raw", "key": "8_8_16", "resolution": [8, 8, 16]}
    scale |= {"size": [48, 40, 16], "voxel_offset": [0, 0, 0]}
    volume_info = {"data_type": "uint64", "num_channels": 1, "type": "segmentation", "mesh": "mesh", "scales": [scale]}
    (folder / "info").write_text(json.dumps(volume_info))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dependency's own deprecations, on import
        from cloudvolume import CloudVolume

        reader = CloudVolume(f"file://{folder}", progress=False, cache=False)
        for root in list(entries)[:6]:
            for lod, mesh in enumerate(entries[root]):
                read = reader.mesh.get(root, lod=lod)[root]
                assert len(read.faces) == len(mesh.faces)
                step = np.ptp(entries[root][0].vertices, axis=0).max() * 2**lod / 65535
                order = [np.lexsort(np.rint(v * 4).T) for v in (read.vertices, mesh.vertices)]
                gap = np.abs(read.vertices[order[0]] - mesh.vertices[order[1]])
                assert gap.max() <= step + 0.5


def test_a_coarser_level_keeps_the_place_with_fewer_triangles():
    mesh = joined(volume(), (16, 40, 48))[ROOTS[0]]
    low = coarser(mesh, 8, 32.0)
    assert 0 < len(low.faces) < len(mesh.faces) / 2
    assert np.abs(low.vertices.mean(axis=0) - mesh.vertices.mean(axis=0)).max() < 16


def test_a_file_that_holds_no_pieces_is_refused():
    with pytest.raises(BadInput, match="mesh pieces"):
        unpack_pieces(b"something else")
