"""Training: from a configuration and a source of crops to a model folder, the same one every time on one machine.

::

    TrainConfig --source--> batches --> UNet with batch norm --fold--> model.safetensors (half precision) + card.json
                                           ^  |
                     state/ (every `checkpoint` steps: a killed training goes on where it was)

Decisions: the state is safetensors and JSON, never pickles. Batches depend on the step alone, so continuing gives the
weights that an undisturbed training gives. (An accelerator adds in another order each time: there, equal
configurations give equally good models, not equal bits.) Weights are kept in half precision (a quarter of a per cent of
the weights' size is lost, a thousandth of a bit of VI) and computed with in single precision.
"""

import json
import os
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.nn import functional

from lake.errors import BadInput
from transforms.models.ahead import batches
from transforms.models.inference import CARD, WEIGHTS, describe, normalised
from transforms.models.nets import Architecture, UNet, folded, multiply_adds
from transforms.models.samples import Batch, Crops, Kind, Source, SyntheticSource
from transforms.models.targets import FAR, NEAREST

Progress = Callable[[int, int, float], None]
_STATE = "state"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training, wholly: equal configurations give equal models on one machine.

    Parameters
    ----------
    name : str
        What the model will be called.
    kind : "affinity" or "synapse"
    architecture : Architecture
        `outputs` is what is kept; affinity training adds outputs for far affinities and drops them at the end.
    steps : int
    crop : (z, y, x) int
        A multiple of the architecture's stride.
    crops : int
        In a step.
    seed : int
        First seed of the synthetic volumes, and of everything drawn at random.
    odd_share : float
        Share of the synthetic volumes that is stained oddly.
    learning_rate : float
        Its highest value; it rises over the first tenth and falls as a cosine.
    positive_weight : float
        How much more a positive counts than a negative.
    strength : float
        Of the changes of grey values.
    isotropic : bool
        Whether crops may be turned from z into y and x.
    threads : int
        Of torch; another number may give other last bits.
    """

    name: str
    kind: Kind
    architecture: Architecture
    steps: int = 300
    crop: tuple[int, int, int] = (24, 128, 128)
    crops: int = 2
    seed: int = 1000
    odd_share: float = 0.0
    learning_rate: float = 3e-3
    positive_weight: float = 1.0
    strength: float = 1.0
    isotropic: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("affinity", "synapse"):
            raise BadInput(f"models of kind {self.kind!r} are not known", fix="use 'affinity' or 'synapse'")
        wrong = [n for n, s in zip(self.crop, self.architecture.stride, strict=True) if n % s]
        if wrong or self.steps < 1 or self.crops < 1:
            raise BadInput(
                f"{self.steps} steps with {self.crops} crops of {self.crop}",
                fix=f"give at least one step and one crop, its sides multiples of {self.architecture.stride}",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain fields for cards and digests."""
        fields = asdict(self)
        return {**fields, "crop": list(self.crop), "architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """Read a configuration; `BadInput` names fields that do not exist."""
        unknown = sorted(set(fields) - set(cls.__slots__))
        missing = sorted({"name", "kind", "architecture"} - set(fields))
        if unknown or missing:
            raise BadInput(
                f"training configuration has unknown fields {unknown} and lacks {missing}",
                fix=f"the fields are {', '.join(cls.__slots__)}",
            )
        architecture = Architecture.from_json(fields["architecture"])
        crop = tuple(fields.get("crop", (24, 128, 128)))
        return cls(**{**fields, "architecture": architecture, "crop": crop})

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Read a TOML file."""
        try:
            return cls.from_json(tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
            raise BadInput(
                f"training configuration {path} cannot be read: {error}", fix="see transforms/models/configs/"
            ) from error

    def crop_settings(self) -> Crops:
        """How a source is to take crops for this training."""
        return Crops(self.kind, self.crop, self.crops, self.seed, isotropic=self.isotropic, strength=self.strength)

    def synthetic_source(self) -> SyntheticSource:
        """Give the source that is used unless another one is given."""
        return SyntheticSource(self.crop_settings(), self.seed, odd_share=self.odd_share)


def config_folder() -> Path:
    """Where the configurations of the models that come with the project lie."""
    return Path(__file__).parent / "configs"


def train(
    config: TrainConfig,
    folder: Path,
    *,
    source: Source | None = None,
    progress: Progress | None = None,
    data: Mapping[str, Any] | None = None,
    checkpoint: int = 50,
    device: str = "cpu",
    workers: int = 0,
) -> Path:
    """Train a model into `folder`; go on with a training of the same configuration that was cut short there.

    Parameters
    ----------
    source : Source, optional
        Of crops; synthetic neuropil unless given.
    progress : callable(step, steps, loss), optional
    data : mapping, optional
        What the card says about the data, when `source` is given.
    checkpoint : int
        Steps between two saved states.
    device : str
        Where the network learns, as torch names it: "cpu", "cuda", "cuda:1". `BadInput` if it is not there, or if
        `folder` cannot be written.
    workers : int
        Processes that make batches ahead; 0 makes them in turn with learning.

    Returns
    -------
    Path
        `folder`, with model.safetensors and card.json.
    """
    run = _Run(config, folder, _device(device))
    _make_writable(folder)
    source = source or config.synthetic_source()
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        for batch in batches(source, run.step, config.steps, workers):
            loss = run.advance(batch)
            if progress is not None:
                progress(run.step, config.steps, loss)
            if run.step % checkpoint == 0 or run.step == config.steps:
                run.save()
    finally:
        torch.set_num_threads(before)
    run.finish(data or {"synthetic": {"first_seed": config.seed, "odd_share": config.odd_share}})
    return folder


def _make_writable(folder: Path) -> None:
    """Make the folder, and find out that nothing can be written there before hours are spent on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}", fix="train into a folder of yours") from error


class _Run:
    """A training under way; `save` and construction are inverse."""

    def __init__(self, config: TrainConfig, folder: Path, device: torch.device) -> None:
        self.config, self.folder, self.device, self.step, self.seconds = config, folder, device, 0, 0.0
        self.losses: list[float] = []
        self.code = _versions() | {"device": device.type}
        outputs = len(NEAREST + FAR) if config.kind == "affinity" else config.architecture.outputs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = UNet(replace(config.architecture, outputs=outputs), training=True)
        if config.kind == "synapse":
            # Sites are rare: begun at even odds, the network spends its features on saying "not here".
            torch.nn.init.constant_(cast(Tensor, self.net.head.bias), -3.0)
        self.net.to(device).to(memory_format=torch.channels_last_3d).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.learning_rate, weight_decay=1e-3)
        state = folder / _STATE
        if (state / "state.json").is_file():
            self._load(state)

    def advance(self, batch: Batch) -> float:
        """One step of the optimiser; the loss before it."""
        started = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _schedule(self.step / self.config.steps)
        logits = self.net(normalised(batch.em).to(self.device))
        wanted, known = (torch.from_numpy(a).to(self.device, torch.float32) for a in (batch.wanted, batch.known))
        loss = _loss(logits, wanted, known, self.config.positive_weight)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - started
        value = float(loss.detach())
        self.losses.append(value)
        return value

    def save(self) -> None:
        """Keep everything needed to go on; the JSON is written last and proves the rest."""
        state = self.folder / _STATE
        state.mkdir(parents=True, exist_ok=True)
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in entry.items()}
        name = f"step-{self.step}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, state / name)
        known = {
            "config": self.config.to_json(),
            "step": self.step,
            "tensors": name,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        _replace(state / "state.json", json.dumps(known).encode())
        for old in state.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def _load(self, state: Path) -> None:
        known = json.loads((state / "state.json").read_text())
        if known["config"] != self.config.to_json():
            raise BadInput(
                f"{self.folder} holds a training with another configuration", fix="train into an empty folder"
            )
        tensors = load_file(state / known["tensors"])
        self.net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                entries.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.step, self.seconds, self.losses = known["step"], known["seconds"], known["losses"]

    def finish(self, data: Mapping[str, Any]) -> None:
        """Fold, round and write the model with its card."""
        config = self.config
        net = folded(self.net.cpu(), config.architecture.outputs)
        weights = {k: v.to(torch.float16).contiguous() for k, v in net.state_dict().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / WEIGHTS, save(weights))
        block = (32, 128, 128)
        card = describe(config.kind, config.architecture) | {
            "name": config.name,
            "command": f"emlake train {_config_of(config)} FOLDER",
            "training": config.to_json(),
            "data": dict(data),
            "multiply_adds_per_voxel": round(multiply_adds(net, block) / float(np.prod(block)), 1),
            "metrics": {"loss": round(float(np.mean(self.losses[-20:])), 5)},
            "seconds": {"training": round(self.seconds)},
            "code": self.code,
        }
        _replace(self.folder / CARD, json.dumps(card, indent=2).encode() + b"\n")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"device {name!r} cannot be used: {reason}", fix="train on cpu, or name one that is there"
        ) from error
    return device


def _config_of(config: TrainConfig) -> str:
    """Path of the configuration in the project, or a word for one that the project does not hold."""
    path = config_folder() / f"{config.name}.toml"
    if path.is_file() and TrainConfig.read(path) == config:
        return f"transforms/models/configs/{path.name}"
    return "CONFIG"  # which is the card's own `training`


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"emlake": version("emlake"), "torch": torch.__version__, "numpy": np.__version__}


def _schedule(share: float) -> float:
    warm = 0.1
    return (
        (share + 0.005) / warm
        if share < warm
        else 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * (share - warm) / (1 - warm)))
    )


def _loss(logits: Tensor, wanted: Tensor, known: Tensor, positive_weight: float) -> Tensor:
    weight = known * (1 + (positive_weight - 1) * wanted)
    cross = functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum") / weight.sum()
    if positive_weight == 1:
        return cross
    # Sites are a few voxels in a thousand: the overlap term keeps them from being outvoted.
    share = torch.sigmoid(logits)
    overlap = (2 * (share * wanted).sum((0, 2, 3, 4)) + 50) / ((share + wanted).sum((0, 2, 3, 4)) + 50)
    return cross + 0.5 * (1 - overlap).mean()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
