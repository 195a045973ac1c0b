"""Meshes of segments: marching cubes by block, joined without a seam, in neuroglancer's multi-resolution format.

::

    block 0        | block 1         A block meshes its voxels and one sampled voxel beyond its high sides. Both blocks
    . . . x x x x  | x x . .         then put the same vertices on the plane between them, simplification leaves the
    . . . x x x x  | x x . .         rim of a piece alone, and joining is: equal places, one vertex.

Decisions
---------
Labels are sampled down first (most frequent label of each cell of `factor` voxels): the surface of a neurite does not
need its membranes' roughness, and simplification is what costs. Vertices are in nm, axis order x, y, z as all mesh
formats have it. Every level of detail is one fragment, which the manifest says in the format's own terms: a reader
fetches a whole segment at the detail it wants and needs no octree.

Format: google/neuroglancer, `datasource/precomputed/meshes.md`.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput
from transforms.kernels.sharded import Entry, Sharding, write_shards

Nm = tuple[float, float, float]
QUANTIZATION_BITS = 16
_GRID_NM = 1 / 64  # vertices closer than this are one: far below any voxel, far above float32's error
_MAGIC = b"EMLMESH1"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A triangle mesh.

    Parameters
    ----------
    vertices : (n, 3) float64
        x, y, z in nm.
    faces : (m, 3) uint32
        Indices of vertices, anticlockwise seen from outside.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.uint32]


def downsample_labels(labels: NDArray[Any], factor: Zyx) -> NDArray[Any]:
    """Give each cell of `factor` voxels its most frequent label, the first in C order of equals.

    Parameters
    ----------
    labels : (z, y, x) integer
        A side that `factor` does not divide is continued with its last voxel.
    """
    pad = [(0, -n % f) for n, f in zip(labels.shape, factor, strict=True)]
    if any(p[1] for p in pad):
        labels = np.pad(labels, pad, mode="edge")
    views = [labels[z :: factor[0], y :: factor[1], x :: factor[2]] for z, y, x in np.ndindex(*factor)]
    if len(views) == 1:
        return labels
    best = views[0].copy()
    votes = np.zeros(best.shape, np.uint8)
    for candidate in views:
        count = np.zeros(best.shape, np.uint8)
        for other in views:
            count += candidate == other
        better = count > votes
        best[better] = candidate[better]
        votes = np.maximum(votes, count)
    return best


def mesh_pieces(
    roots: NDArray[np.integer[Any]],
    *,
    box: Box,
    core: Box,
    bounds: Box,
    voxel_nm: Nm,
    factor: Zyx = (1, 1, 1),
    reduction: float = 6.0,
    max_error_nm: float | None = None,
    wanted: NDArray[np.int64] | None = None,
) -> dict[int, Mesh]:
    """Mesh every segment inside one block.

    Parameters
    ----------
    roots : (z, y, x) integer
        Root ids over `box`; 0 is none.
    box, core, bounds : Box
        What was read, the block, the whole volume. `box` reaches `factor` voxels beyond the block's high sides, or to
        the end of the volume, where surfaces are closed.
    factor : (z, y, x) int
        Voxels of a cell; the block starts on a multiple of it.
    reduction, max_error_nm : float
        Simplify to about 1/reduction of the triangles, moving the surface by at most this (default: half a cell).
    wanted : (n,) int64, optional
        Roots to mesh; default: all.

    Returns
    -------
    dict of root id to Mesh
        Ascending ids; open where a block ends inside the volume.
    """
    if any(s % f for s, f in zip(core.start, factor, strict=True)):
        raise BadInput(f"block {core} does not start on a multiple of {factor}", fix="choose a factor that divides it")
    import fastremap
    import zmesh

    reach = Box(core.start, _plus(core.stop, factor)).clip(bounds)
    if not box.contains(reach):
        raise BadInput(f"box {box} lacks context for block {core}", fix=f"read {reach}")
    cells = downsample_labels(roots[reach.within(box)], factor)
    pad = [(int(core.start[a] == bounds.start[a]), int(core.stop[a] == bounds.stop[a])) for a in range(3)]
    cells = np.pad(cells, pad)
    dense, names = fastremap.renumber(np.ascontiguousarray(cells).astype(np.uint64), preserve_zero=True)
    size = tuple(v * f for v, f in zip(voxel_nm, factor, strict=True))
    # zmesh counts in cell centres, x first: the first cell's centre lies half a cell behind its corner.
    origin = [(s / f - p[0] + 0.5) * n for s, f, p, n in zip(core.start, factor, pad, size, strict=True)]
    mesher = zmesh.Mesher(size[::-1])
    mesher.mesh(np.asfortranarray(dense.astype(np.uint32).T), close=False)
    error = max_error_nm if max_error_nm is not None else 0.5 * max(size)
    keep = None if wanted is None else {int(root) for root in wanted}
    pieces: dict[int, Mesh] = {}
    for root, number in sorted((int(k), int(v)) for k, v in names.items()):
        if root == 0 or (keep is not None and root not in keep):
            continue
        raw = mesher.get(number, normals=False, reduction_factor=reduction, max_error=error)
        if len(raw.faces):
            vertices = raw.vertices.astype(np.float64) + np.array(origin[::-1])
            pieces[root] = Mesh(vertices, raw.faces.astype(np.uint32))
    return pieces


def pack_pieces(pieces: Mapping[int, Mesh]) -> bytes:
    """Write a block's pieces as one object: counts, then vertices (int64 steps of 1/64 nm), then faces (uint32)."""
    import zlib

    parts = []
    for root in sorted(pieces):
        mesh = pieces[root]
        steps = np.rint(mesh.vertices / _GRID_NM).astype("<i8")
        parts += [
            struct.pack("<qII", root, len(mesh.vertices), len(mesh.faces)),
            np.diff(steps, axis=0, prepend=0).tobytes(),
            mesh.faces.astype("<u4").tobytes(),
        ]
    return _MAGIC + zlib.compress(b"".join(parts), 1)


def unpack_pieces(data: bytes) -> dict[int, Mesh]:
    """Read what `pack_pieces` wrote."""
    import zlib

    if not data.startswith(_MAGIC):
        raise BadInput(f"{data[:8]!r} does not begin a file of mesh pieces", fix="give what mesh_pieces wrote")
    body = zlib.decompress(data[len(_MAGIC) :])
    pieces: dict[int, Mesh] = {}
    at = 0
    while at < len(body):
        root, n, m = struct.unpack_from("<qII", body, at)
        steps = np.frombuffer(body, "<i8", 3 * n, at + 16).reshape(n, 3)
        faces = np.frombuffer(body, "<u4", 3 * m, at + 16 + 24 * n).reshape(m, 3)
        pieces[root] = Mesh(np.cumsum(steps, axis=0) * _GRID_NM, faces.astype(np.uint32))
        at += 16 + 24 * n + 12 * m
    return pieces


def join_pieces(pieces: Iterable[Mesh]) -> Mesh:
    """Join the pieces of one segment: vertices at one place become one, in the order of their places."""
    parts = list(pieces)
    counts = np.cumsum([0, *(len(p.vertices) for p in parts)])
    steps = np.rint(np.concatenate([p.vertices for p in parts]) / _GRID_NM).astype(np.int64)
    places, slot = np.unique(steps, axis=0, return_inverse=True)
    faces = np.concatenate([p.faces + np.uint32(start) for p, start in zip(parts, counts[:-1], strict=True)])
    faces = slot.reshape(-1)[faces].astype(np.uint32)
    flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 0] == faces[:, 2])
    return Mesh(np.asarray(places * _GRID_NM, np.float64), faces[~flat])


def coarser(mesh: Mesh, reduction: float, max_error_nm: float) -> Mesh:
    """Simplify a joined mesh."""
    import zmesh

    low = mesh.vertices.min(axis=0)
    # Relative to its own corner: float32 is what the library works in.
    raw = zmesh.Mesh((mesh.vertices - low).astype(np.float32), mesh.faces, None)
    out = zmesh.Mesher((1, 1, 1)).simplify(raw, reduction_factor=reduction, max_error=max_error_nm)
    return Mesh(out.vertices.astype(np.float64) + low, out.faces.astype(np.uint32))


def info(sharding: Sharding) -> dict[str, Any]:
    """Give the `info` file of a mesh folder whose vertices are in nm."""
    return {
        "@type": "neuroglancer_multilod_draco",
        "vertex_quantization_bits": QUANTIZATION_BITS,
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "lod_scale_multiplier": 1,
        "sharding": sharding.to_json(),
    }


def encode(levels: list[Mesh], detail_nm: float) -> Entry:
    """Encode the levels of detail of one segment: Draco fragments, then their manifest.

    Parameters
    ----------
    levels : list of Mesh
        Finest first; not empty.
    detail_nm : float
        Size of the smallest feature of the finest level; each next one is taken as four times coarser.

    Returns
    -------
    Entry
        The manifest, with the fragments before it, as the sharded format wants them.
    """
    low = levels[0].vertices.min(axis=0).astype(np.float32)
    span = np.maximum((levels[0].vertices - low).max(axis=0), 1.0).astype(np.float32)
    fragments = [_draco(level, low, span * np.float32(2**lod)) for lod, level in enumerate(levels)]
    count = len(levels)
    head = [
        span.astype("<f4").tobytes(),
        low.astype("<f4").tobytes(),
        struct.pack("<I", count),
        np.array([detail_nm * 4**lod for lod in range(count)], "<f4").tobytes(),
        np.zeros((count, 3), "<f4").tobytes(),
        np.ones(count, "<u4").tobytes(),
    ]
    for fragment in fragments:
        head += [np.zeros(3, "<u4").tobytes(), struct.pack("<I", len(fragment))]
    return Entry(b"".join(head), b"".join(fragments))


def _draco(mesh: Mesh, low: NDArray[np.float32], span: NDArray[np.float32]) -> bytes:
    """Encode one fragment; vertices become whole steps 0..2^bits - 1 of the fragment's own box, as the format says."""
    import DracoPy

    top = 2**QUANTIZATION_BITS - 1
    steps = np.clip(np.rint((mesh.vertices - low) / span * top), 0, top)
    # Draco's own quantisation over a range of `top` steps is then the identity.
    return bytes(
        DracoPy.encode(
            steps.astype(np.float32),
            mesh.faces,
            quantization_bits=QUANTIZATION_BITS,
            quantization_range=float(top),
            quantization_origin=np.zeros(3),
            compression_level=3,
        )
    )


def mesh_files(entries: Mapping[int, Entry]) -> tuple[dict[str, bytes], Sharding]:
    """Lay encoded segments out as the files of a mesh folder, `info` included."""
    import json

    sharding = Sharding.for_count(len(entries))
    files = write_shards(entries, sharding)
    files["info"] = json.dumps(info(sharding), sort_keys=True).encode()
    return files, sharding


def _plus(a: Zyx, b: Zyx) -> Zyx:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
