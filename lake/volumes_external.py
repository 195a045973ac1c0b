"""Volumes that are not ours: precomputed, zarr 2 and 3, n5, anywhere TensorStore can read; never written.

>>> source = open_external("gs://bucket/em/")          # or a folder, http(s)://..., s3://..., precomputed://...
>>> source.box, source.dtype, source.voxel_nm
>>> source.read(source.box)                            # (z, y, x), or (c, z, y, x)

Axes: precomputed names its own. Elsewhere they are taken from the array's dimension names where it has them all, else
n5 is x, y, z (as its writers store it) and zarr z, y, x; `axes` decides otherwise.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from lake.box import Box, Zyx
from lake.errors import BadInput, LakeError, NotAuthorized, NotFound, StorageError

_AXES = {"z": "z", "y": "y", "x": "x", "c": "c", "channel": "c"}
_USUAL = {"n5": "xyzc", "neuroglancer_precomputed": "xyzc"}
_NM = {"nm": 1.0, "um": 1e3, "µm": 1e3, "mm": 1e6, "m": 1e9}
# A server that does not answer is told after seconds; TensorStore's own 32 attempts take minutes.
_RETRIES = {"max_retries": 3, "initial_delay": "200ms", "max_delay": "2s"}
_CONTEXT = {f"{kind}_request_retries": _RETRIES for kind in ("http", "s3", "gcs")}


@dataclass(frozen=True, slots=True)
class ExternalVolume:
    """A readable volume elsewhere.

    Attributes
    ----------
    source : str
        As it was asked for.
    driver, dtype : str
        TensorStore's name of the format, numpy's of the type.
    box : Box
        Where it lies, in voxels of its own frame.
    channels : int
        1 for volumes without a channel axis.
    voxel_nm : (z, y, x) float, or None
        Voxel size, where the format tells it.
    """

    source: str
    driver: str
    dtype: str
    box: Box
    channels: int
    voxel_nm: tuple[float, float, float] | None
    _store: Any

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box as (z, y, x), or (c, z, y, x) with several channels; C order.

        Raises
        ------
        BadInput
            The box leaves the volume.
        NotFound
            A chunk is not stored, and missing ones were not said to be empty.
        """
        if not self.box.contains(box):
            raise BadInput(f"box {box} leaves {self.source}, which is {self.box}", fix="clip the box to the volume")
        view = self._store[(..., *box.slices)]
        try:
            return np.ascontiguousarray(view.read(order="C").result())
        except ValueError as error:
            raise _translated(error, self.source) from error


def open_external(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    axes: str | None = None,
    scale: int = 0,
    missing: str = "error",
) -> ExternalVolume:
    """Open a volume for reading.

    Parameters
    ----------
    source : path, URL or TensorStore specification
        `precomputed://`, `zarr://`, `zarr3://` and `n5://` in front of a URL are understood as in neuroglancer.
    axes : str, optional
        Letters of the array's axes, first to last, as in "zyx", "xyz" or "czyx"; there is no axis of time.
    scale : int
        Which scale of a precomputed volume.
    missing : "error" or "zero"
        What a chunk that is not stored means: a hole, or background that its writer left out.

    Raises
    ------
    NotFound
        Nothing, or nothing readable, is there.
    BadInput
        It is not a volume of three axes (and channels), or the source's form is unknown.
    """
    if missing not in ("error", "zero"):
        raise BadInput(f"missing {missing!r} is not known", fix="say 'error' or 'zero'")
    text = str(dict(source)) if isinstance(source, Mapping) else os.fspath(source)
    store = _open(source if isinstance(source, Mapping) else _url(text), text, scale, missing)
    driver = str(store.spec().to_json()["driver"])
    letters = _letters(store, driver, axes, text)
    return _describe(store, driver, letters, text)


def _url(text: str) -> str | dict[str, Any]:
    prefix, mark, rest = text.partition("://")
    driver = {"precomputed": "neuroglancer_precomputed", "zarr": "zarr", "zarr2": "zarr", "zarr3": "zarr3", "n5": "n5"}
    if mark and prefix in driver:
        return {"driver": driver[prefix], "kvstore": _folder(rest)}
    return _folder(text)


def _folder(text: str) -> str:
    if "://" not in text:
        path = os.path.abspath(os.path.expanduser(text))
        if not os.path.exists(path):
            raise NotFound(f"there is no volume at {path}", fix="give the folder that holds info, .zarray or zarr.json")
        return f"file://{path}/"
    # A folder: formats are told from the names of the files in it.
    return text if "|" in text or text.endswith("/") else text + "/"


def _open(spec: str | Mapping[str, Any], text: str, scale: int, missing: str) -> Any:
    context = ts.Context(_CONTEXT)
    try:
        store = ts.open(spec if isinstance(spec, str) else dict(spec), read=True, open=True, context=context).result()
        again = store.spec().to_json()
        again.pop("transform", None)
        if again["driver"] == "neuroglancer_precomputed":
            again["scale_index"] = scale
            again.pop("scale_metadata", None)
        elif scale:
            raise BadInput(f"{text} has one scale, {scale} was asked for", fix="point to the array of that scale")
        # TensorStore gives zeros for chunks that are not there, and says nothing.
        again["fill_missing_data_reads"] = missing == "zero"
        return ts.open(again, read=True, open=True, context=context).result()
    except ValueError as error:
        raise _translated(error, text) from error


def _letters(store: Any, driver: str, axes: str | None, text: str) -> str:
    labels = [_AXES.get(str(label).lower(), "") for label in store.domain.labels]
    if axes is not None:
        letters = axes.lower()
    elif all(labels):
        letters = "".join(labels)
    else:
        usual = _USUAL.get(driver, "czyx")
        letters = usual[: store.rank] if usual.startswith("x") else usual[-store.rank :]
    if len(letters) != store.rank or sorted(letters.replace("c", "")) != ["x", "y", "z"] or letters.count("c") > 1:
        raise BadInput(
            f"{text} has {store.rank} axes of length {tuple(store.shape)}, read as {letters!r}",
            fix="a volume has axes z, y, x and perhaps c: name them in the array's order, as in 'zyx' or 'czyx'",
        )
    return letters


def _describe(store: Any, driver: str, letters: str, text: str) -> ExternalVolume:
    order = [letters.index(axis) for axis in ("czyx" if "c" in letters else "zyx")]
    view = store[ts.d[tuple(order)].transpose[:]]
    origin, shape = tuple(view.domain.inclusive_min), tuple(view.shape)
    channels = int(shape[0]) if "c" in letters else 1
    start = cast(Zyx, tuple(int(v) for v in origin[-3:]))
    stop = cast(Zyx, tuple(int(a + n) for a, n in zip(origin[-3:], shape[-3:], strict=True)))
    if "c" in letters and channels == 1:
        view = view[origin[0]]
    return ExternalVolume(
        text, driver, np.dtype(store.dtype.numpy_dtype).name, Box(start, stop), channels, _nm(view), view
    )


def _nm(view: Any) -> tuple[float, float, float] | None:
    sizes = []
    for unit in view.dimension_units[-3:]:
        if unit is None or unit.base_unit not in _NM:
            return None
        sizes.append(float(unit.multiplier) * _NM[unit.base_unit])
    return sizes[0], sizes[1], sizes[2]


def _translated(error: Exception, source: str) -> LakeError:
    text = " ".join(str(error).split()).split(" [tensorstore_spec")[0].split(" [source")[0]
    if any(sign in text for sign in ("PERMISSION_DENIED", "UNAUTHENTICATED", "HTTP response code: 403")):
        return NotAuthorized(f"{source}: {text}", fix="check the credentials for that store")
    if any(sign in text for sign in ("unsupported URL scheme", "Parsing spec", "INVALID_ARGUMENT", "OUT_OF_RANGE")):
        return BadInput(
            f"{source} cannot be read as a volume: {text}", fix="give a folder, a URL or a TensorStore spec"
        )
    if "retry attempts failed" in text or "UNAVAILABLE" in text or "DEADLINE" in text:
        return StorageError(f"{source} does not answer: {text}", fix="check the address and the connection")
    if "chunk" in text and "is missing" in text:
        return NotFound(f"{source}: {text}", fix="if its writer leaves out empty chunks, read missing ones as zero")
    if "NOT_FOUND" in text or "detect format" in text:
        return NotFound(
            f"there is no readable volume at {source}: {text}", fix="give the folder of one array or volume"
        )
    return StorageError(f"{source}: {text}", fix="check the store and try again")
