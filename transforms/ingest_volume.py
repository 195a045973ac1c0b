"""A volume made elsewhere is copied onto a branch, whole chunks at a time, with where it came from.

>>> ingest_volume(repo, "precomputed://gs://bucket/em", "em", "cand-r1", box=Box.parse("0:64,0:512,0:512"))
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import PathLike
from time import monotonic
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.digests import array_digest, merkle_root
from lake.errors import BadInput
from lake.repository import CommitId, Repository
from lake.volume_spec import VolumeKind
from lake.volumes import Volume, VolumeSpec, create_volume
from lake.volumes_external import open_external
from transforms.ingest_run import IngestRun

Array = NDArray[Any]
Read = Callable[[Box], Array]
Progress = Callable[[int, int], None]
_PIECE_VOXELS = 2**24
_SMALLEST = 128  # a scale below this many voxels on each axis is not worth a coarser one


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """What an import did; `commit` is None if the branch holds exactly this volume already.

    `digest` is the Merkle root over (box, digest) of the pieces: equal for equal voxels in equal pieces.
    """

    commit: CommitId | None
    spec: VolumeSpec
    digest: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """How a volume is to be stored.

    Parameters
    ----------
    kind : "image", "segmentation", "affinity" or None
        None: a segmentation for 32- and 64-bit unsigned integers, affinities for three channels, else an image.
    dtype : str or None
        None: as in the source. Another one is taken only if no value changes.
    voxel_nm : (z, y, x) or None
        None: as the source says, else `BadInput`.
    at : (z, y, x)
        Where the first voxel goes. Blocks of stages begin at multiples of the repository's grid, so should volumes.
    scales : tuple of (z, y, x), or None
        None: halved until it is small, the finer axes first.
    """

    kind: VolumeKind | None = None
    dtype: str | None = None
    voxel_nm: tuple[float, float, float] | None = None
    at: Zyx = (0, 0, 0)
    chunk: Zyx = (64, 64, 64)
    shard: Zyx | None = None
    scales: tuple[Zyx, ...] | None = None


def ingest_volume(
    repo: Repository,
    source: str | PathLike[str] | Mapping[str, Any],
    name: str,
    branch: str,
    *,
    box: Box | None = None,
    axes: str | None = None,
    scale: int = 0,
    missing: str = "error",
    plan: ImportPlan | None = None,
    progress: Progress | None = None,
) -> VolumeReport:
    """Copy a volume that TensorStore can read (see `lake.volumes_external.open_external`) to `volumes/<name>/`.

    Parameters
    ----------
    box : Box, optional
        What to take, in the source's voxels; None takes it all.
    axes, scale, missing
        As for `open_external`.
    progress : callable(done, total), optional
        Voxels.
    """
    external = open_external(source, axes=axes, scale=scale, missing=missing)
    wanted = external.box if box is None else box
    if not external.box.contains(wanted) or not wanted.voxels:
        raise BadInput(f"box {wanted} is not in {external.source}, which is {external.box}", fix="correct the box")
    told = {"source": external.source, "source_box": str(wanted), "source_scale": str(scale)}
    return _import(
        repo, name, branch, external.read, wanted, (external.channels, external.dtype, external.voxel_nm),
        plan or ImportPlan(), told, progress,
    )  # fmt: skip


def ingest_array(
    repo: Repository,
    array: Array,
    name: str,
    branch: str,
    *,
    source: str,
    plan: ImportPlan,
    progress: Progress | None = None,
) -> VolumeReport:
    """Store an array, (z, y, x) or (c, z, y, x), as `volumes/<name>/`; `source` says where it came from."""
    if array.ndim not in (3, 4):
        raise BadInput(f"an array of shape {array.shape} is no volume", fix="give (z, y, x) or (c, z, y, x)")
    shape = cast(Zyx, tuple(int(n) for n in array.shape[-3:]))
    channels = int(array.shape[0]) if array.ndim == 4 else 1
    data = array[0] if array.ndim == 4 and channels == 1 else array
    return _import(
        repo, name, branch, lambda box: np.ascontiguousarray(data[(..., *box.slices)]), Box((0, 0, 0), shape),
        (channels, array.dtype.name, None), plan, {"source": source}, progress,
    )  # fmt: skip


def default_scales(shape: Zyx, voxel_nm: tuple[float, float, float]) -> tuple[Zyx, ...]:
    """Halve the axes that are within 1.5 of the finest until all are small: voxels become round, then stay so."""
    scales = [(1, 1, 1)]
    while len(scales) < 10:
        factor = np.array(scales[-1])
        left = np.array(shape) / factor
        if left.max() <= _SMALLEST:
            break
        size = np.array(voxel_nm) * factor
        step = np.where((size < 1.5 * size.min()) & (left > 1), 2, 1)
        if step.max() == 1:
            break
        z, y, x = (int(v) for v in factor * step)
        scales.append((z, y, x))
    return tuple(scales)


def _import(
    repo: Repository,
    name: str,
    branch: str,
    read: Read,
    box: Box,
    found: tuple[int, str, tuple[float, float, float] | None],
    plan: ImportPlan,
    told: Mapping[str, str],
    progress: Progress | None,
) -> VolumeReport:
    began = monotonic()
    run = IngestRun(repo, "volume", {**told, "name": name, "plan": asdict(plan)}, ("tensorstore",))
    run.catch_up()
    spec = _spec(name, box, found, plan, told["source"])
    shift = cast(Zyx, tuple(a - b for a, b in zip(spec.box.start, box.start, strict=True)))
    with repo.session(branch, owner="ingest", resume=False) as session:
        place = session.workspace(f"volumes/{name}/")
        volume = create_volume(place, spec, provenance={"description": f"imported as {name}", "sources": [dict(told)]})
        digest = _copy(read, volume, shift, progress)
        volume.build_scales()
        copied = session.checkpoint("volume is copied")
        if next(iter(repo.diff(session.base, copied)), None) is None:
            return VolumeReport(None, spec, digest, monotonic() - began)
        pieces, size = len(list(_pieces(volume))), sum(stat.size for stat in session.list(f"volumes/{name}/"))
        record = run.write(session, root=digest, blocks=pieces, computed=pieces, size=size, voxels=spec.box.voxels)
        commit = session.commit(f"import volume {name}", {**told, "digest": digest, **record})
    run.landed(commit)
    return VolumeReport(commit, spec, digest, monotonic() - began)


def _spec(
    name: str, box: Box, found: tuple[int, str, tuple[float, float, float] | None], plan: ImportPlan, source: str
) -> VolumeSpec:
    channels, own, size = found
    dtype = plan.dtype or own
    voxel_nm = plan.voxel_nm or size
    if voxel_nm is None:
        raise BadInput(f"{source} does not tell its voxel size", fix="give it, nm on z, y and x: --voxel 40,4,4")
    kind: VolumeKind = "affinity" if channels == 3 else "image"
    if dtype in ("uint32", "uint64") and channels == 1:
        kind = "segmentation"
    scales = plan.scales or default_scales(box.shape, voxel_nm)
    chunk = cast(Zyx, tuple(min(c, 2 ** int(np.ceil(np.log2(n)))) for c, n in zip(plan.chunk, box.shape, strict=True)))
    return VolumeSpec(
        name=name, kind=plan.kind or kind, dtype=dtype, shape_zyx=box.shape, voxel_nm_zyx=voxel_nm, offset_zyx=plan.at,
        channels=channels, chunk_zyx=chunk if plan.shard is None else plan.chunk, scales=scales, shard_zyx=plan.shard,
    )  # fmt: skip


def _copy(read: Read, volume: Volume, shift: Zyx, progress: Progress | None) -> str:
    """Copy piece by piece, one being read while another is written; give the digest of what was copied."""
    done, total, rows = 0, volume.box.voxels, []
    back = cast(Zyx, tuple(-s for s in shift))

    def piece(cell: Box) -> tuple[str, str]:
        array = _cast(read(cell.shift(back)), volume.spec)
        volume.write(cell, array)
        return str(cell), array_digest(array, cell)

    with ThreadPoolExecutor(max_workers=2) as pool:
        cells = list(_pieces(volume))
        for cell, row in zip(cells, pool.map(piece, cells), strict=True):
            rows.append(row)
            done += cell.voxels
            if progress is not None:
                progress(done, total)
    return merkle_root(rows)


def _pieces(volume: Volume) -> Iterator[Box]:
    """Cut the volume into boxes of whole write units, of at most some 16 million voxels where units allow."""
    size, shape = list(volume.unit()), volume.box.shape
    for axis in (2, 1, 0):
        while size[axis] < shape[axis] and 2 * int(np.prod(size)) <= _PIECE_VOXELS:
            size[axis] += volume.unit()[axis]
    yield from (cell for _, cell in volume.box.blocks((size[0], size[1], size[2])))


def _cast(array: Array, spec: VolumeSpec) -> Array:
    if array.dtype == spec.numpy_dtype:
        return array
    cast_array = array.astype(spec.numpy_dtype)
    # Both ways, and by sign: -1 becomes 2^64 - 1 and comes back as -1.
    same = np.array_equal(cast_array.astype(array.dtype), array)
    if not same or (array.size and (array.min() < 0) != (cast_array.min() < 0)):
        raise BadInput(
            f"volume {spec.name!r}: values of type {array.dtype} from {array.min()} to {array.max()} "
            f"do not fit {spec.dtype}",
            fix="choose a type that holds them all",
        )
    return cast_array
