"""A trained model at work: load it, ask what it is, apply it to a block.

>>> from transforms.models.inference import kept, load_model
>>> model = load_model(kept("affinity-large"))
>>> model.kind, model.channels
('affinity', ('z', 'y', 'x'))

A block is given with a halo of `model.halo` voxels (cut at the volume's faces) and starts on a multiple of
`model.stride`; then its inside does not depend on the block. One thread per block: floats stay the same however many
blocks are computed beside it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lake.digests import canonical_json
from lake.errors import BadInput, NotFound, nearest
from transforms.models.nets import Architecture, UNet, Zyx, multiply_adds, shuffled

U8 = NDArray[np.uint8]
WEIGHTS, CARD = "model.safetensors", "card.json"
CHANNELS = {"affinity": ("z", "y", "x"), "synapse": ("pre", "post")}
_IDENTITY = ("format", "kind", "channels", "architecture")  # the part of a card that is digested with the weights


@dataclass(frozen=True, slots=True)
class Model:
    """A network ready to be applied.

    Parameters
    ----------
    kind : "affinity" or "synapse"
    channels : tuple of str
        What `predict` gives: for affinities the axis along which the next voxel lies, for synapses the side.
    card : dict
        Everything known about it.
    digest : str
        Of the weights' bytes and of what the card says about how to use them; names, metrics and dates do not count.
    """

    kind: str
    channels: tuple[str, ...]
    card: dict[str, Any]
    digest: str
    net: UNet

    @property
    def halo(self) -> Zyx:
        """Voxels zyx around a block that its result depends on."""
        return self.net.architecture.halo

    @property
    def stride(self) -> Zyx:
        """Blocks with their halo must start on multiples of this."""
        return self.net.architecture.stride

    def predict(self, em: U8) -> U8:
        """Apply the network.

        Parameters
        ----------
        em : (z, y, x) uint8
            A block with its halo.

        Returns
        -------
        (c, z, y, x) uint8
            Probability times 255 for each voxel of `em`, halo included; what lies in the halo is to be cut off.
        """
        if em.dtype != np.uint8 or em.ndim != 3 or not em.size:
            raise BadInput(f"image of {em.dtype} with shape {em.shape}", fix="give a (z, y, x) uint8 block")
        padding = [(0, -n % s) for n, s in zip(em.shape, self.stride, strict=True)]
        z, y, x = em.shape
        with _one_thread(), torch.inference_mode():
            logits = self.net.unshuffled(normalised(np.pad(em, padding, mode="edge")[None]))
            # Rounding before the cast: truncation would turn a last bit into a whole grey level more often. Spreading
            # bytes out costs a quarter of spreading floats out.
            levels = torch.sigmoid_(logits).mul_(255).round_().to(torch.uint8)
            share = shuffled(levels, self.net.architecture.unshuffle)[0, :, :z, :y, :x]
        return np.ascontiguousarray(share.numpy())

    def predict_affinity(self, em: U8) -> U8:
        """Affinity (3, z, y, x) to the next voxel along z, y, x; `BadInput` from a model of another kind."""
        return self._as("affinity", em)

    def predict_synapse(self, em: U8) -> U8:
        """Presynaptic and postsynaptic sites (2, z, y, x); `BadInput` from a model of another kind."""
        return self._as("synapse", em)

    def _as(self, kind: str, em: U8) -> U8:
        if self.kind != kind:
            raise BadInput(
                f"model {self.digest[:12]} predicts {self.kind}, not {kind}", fix=f"choose a model for {kind}"
            )
        return self.predict(em)

    def multiply_adds(self, shape_zyx: Zyx) -> int:
        """Multiply-adds for a block of `shape_zyx`, a multiple of the stride."""
        return multiply_adds(self.net, shape_zyx)

    def numerics(self) -> dict[str, str]:
        """What the last bits of a result may depend on besides weights and input."""
        return numerics()


def numerics() -> dict[str, str]:
    """Tell what the last bits of any model's result may depend on besides weights and input."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": "float32",
        "threads": "1",
    }


def normalised(em: U8) -> Tensor:
    """Grey values (n, z, y, x) as the networks want them (n, 1, z, y, x): by constants, never by the block's own."""
    return torch.from_numpy(np.ascontiguousarray(em)).to(torch.float32).sub_(128).div_(48).unsqueeze(1)


def describe(kind: str, architecture: Architecture) -> dict[str, Any]:
    """Give the part of a card that says how to use the weights."""
    return {"format": 1, "kind": kind, "channels": list(CHANNELS[kind]), "architecture": architecture.to_json()}


def model_digest(weights: bytes, card: dict[str, Any]) -> str:
    """Sha256 over the weights' sha256 and the part of the card that says how to use them."""
    identity = {key: card.get(key) for key in _IDENTITY}
    return hashlib.sha256(hashlib.sha256(weights).digest() + canonical_json(identity)).hexdigest()


def load_model(source: Path | tuple[bytes, bytes]) -> Model:
    """Load a model from its folder, or from the bytes of model.safetensors and card.json.

    Nothing is unpickled: weights are safetensors, and the network is built from the card. `NotFound` if the folder
    holds no model, `BadInput` if card and weights do not belong together.
    """
    weights, card_bytes = read_folder(source) if isinstance(source, Path) else source
    try:
        card = json.loads(card_bytes)
        kind, channels, fields = card["kind"], tuple(card["channels"]), card["architecture"]
        tensors = load(weights)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(f"model cannot be read: {error!r}", fix="give a folder that `emlake train` wrote") from error
    if card.get("format") != 1 or kind not in CHANNELS or channels != CHANNELS[kind]:
        raise BadInput(
            f"model card of format {card.get('format')}, kind {kind!r}, channels {channels}",
            fix="use the emlake that trained it",
        )
    net = UNet(Architecture.from_json(fields))
    try:
        net.load_state_dict({k: v.to(torch.float32) for k, v in tensors.items()})
    except RuntimeError as error:
        raise BadInput("model.safetensors does not fit its card.json", fix="fetch both from one place") from error
    net.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d)
    return Model(kind, channels, card, model_digest(weights, card), net)


def read_folder(folder: Path) -> tuple[bytes, bytes]:
    """Bytes of model.safetensors and card.json; `NotFound` names what is missing."""
    missing = [name for name in (WEIGHTS, CARD) if not (folder / name).is_file()]
    if missing:
        raise NotFound(f"{folder} holds no {' and no '.join(missing)}", fix="give a folder that `emlake train` wrote")
    return (folder / WEIGHTS).read_bytes(), (folder / CARD).read_bytes()


def kept(name: str) -> Path:
    """Folder of a model that comes with the project; `NotFound` suggests the nearest name."""
    root = Path(__file__).parent / "weights"
    names = sorted(path.parent.name for path in root.glob(f"*/{CARD}"))
    if name not in names:
        raise NotFound(f"no model {name!r} comes with emlake", fix=nearest(name, names))
    return root / name


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
