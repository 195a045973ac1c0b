"""One small 3D U-Net for every task, described by a frozen `Architecture` that fits in a model card.

::

    em (1, z, y, x) -- unshuffle 1x2x2 --> (4, z, y/2, x/2): isotropic 16 nm at a voxel of 16 x 8 x 8 nm
      level 0: widths[0] ------------------------------ + --> head 1x1x1, shuffle back --> (outputs, z, y, x) logits
        pool 2x2x2  level 1: widths[1] ------ + -- up --^
                      pool 2x2x2  level 2 -up-^                (+ is a sum: cheaper than stacking, as good here)

Nothing looks at the whole image: the grey value is scaled by constants and batch normalisation is folded into the
convolutions before a model is kept. So a voxel's result depends only on its receptive field and on its place modulo the
stride, never on the block it was computed in.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lake.errors import BadInput

Zyx = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything needed to build the network again, and nothing else.

    Parameters
    ----------
    outputs : int
        Channels predicted at full resolution.
    widths : tuple of int
        Channels per level; the number of levels is its length.
    encoder, decoder : tuple of int
        Convolutions per level on the way down, and on the way up (one level fewer).
    unshuffle : int
        Pixels of y and x folded into channels at the door.
    pool_z : tuple of int
        Reduction in z (1 or 2) at each step down; y and x are halved always.
    """

    outputs: int
    widths: tuple[int, ...] = (32, 48, 64)
    encoder: tuple[int, ...] = (2, 2, 2)
    decoder: tuple[int, ...] = (1, 1)
    unshuffle: int = 2
    pool_z: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if not (levels == len(self.encoder) == len(self.decoder) + 1 == len(self.pool_z) + 1) or levels < 1:
            raise BadInput(
                f"architecture with {levels} widths, {len(self.encoder)} encoder, {len(self.decoder)} decoder and "
                f"{len(self.pool_z)} pool_z entries",
                fix="give as many encoder entries as widths, and one decoder and pool_z entry fewer",
            )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Architecture":
        """Read what `to_json` wrote; `BadInput` names unknown fields."""
        known = set(cls.__slots__)
        if set(fields) - known - {"type"} or fields.get("type", "unet3d") != "unet3d":
            raise BadInput(
                f"architecture {dict(fields)} is not one that this version builds", fix="use the emlake that trained it"
            )
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k in known}
        return cls(**read)

    def to_json(self) -> dict[str, Any]:
        """Plain fields for a card."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"type": "unet3d", **fields}

    @property
    def stride(self) -> Zyx:
        """Blocks must start on multiples of this, in voxels zyx, for results that do not depend on the block."""
        deep, wide = 1, self.unshuffle
        for step in self.pool_z:
            deep, wide = deep * step, wide * 2
        return deep, wide, wide

    @property
    def halo(self) -> Zyx:
        """Context in voxels zyx beyond which nothing reaches a voxel, rounded up to a multiple of the stride."""
        reach_z, reach_x, cell_z, cell_x = 0, 0, 1, self.unshuffle
        for level, convolutions in enumerate(self.encoder):
            both = convolutions + (self.decoder[level] if level < len(self.decoder) else 0)
            # The first convolution of all is flat (1 x 3 x 3).
            reach_z += cell_z * (both - (level == 0))
            reach_x += cell_x * both
            if level < len(self.pool_z):
                cell_z, cell_x = cell_z * self.pool_z[level], cell_x * 2
        # Pooling and coming back lets a voxel see all of the coarsest cell that it lies in.
        reach_z, reach_x = reach_z + cell_z - 1, reach_x + cell_x - 1
        deep, wide, _ = self.stride
        return -(-reach_z // deep) * deep, -(-reach_x // wide) * wide, -(-reach_x // wide) * wide


class _Convolution(nn.Module):
    """Convolution, batch normalisation while training, rectifier."""

    def __init__(self, into: int, out: int, *, flat: bool, training: bool) -> None:
        super().__init__()
        self.conv = (_Flat if flat else _Full)(into, out, bias=not training)
        self.norm = nn.BatchNorm3d(out, momentum=0.05) if training else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.relu_(x if self.norm is None else self.norm(x))


class _Full(nn.Conv3d):
    """Convolution 3 x 3 x 3."""

    def __init__(self, into: int, out: int, *, bias: bool) -> None:
        super().__init__(into, out, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, into, z, y, x) to (batch, out, z, y, x)."""
        return super().forward(input) if self.training else _convolve(input, self.weight, self.bias)


class _Flat(nn.Conv3d):
    """Convolution 1 x 3 x 3, outside training as one in 2D, for which there is a faster kernel."""

    def __init__(self, into: int, out: int, *, bias: bool) -> None:
        super().__init__(into, out, (1, 3, 3), padding=(0, 1, 1), bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, into, z, y, x) to (batch, out, z, y, x)."""
        if self.training:
            return super().forward(input)
        batch, channels, z, y, x = input.shape
        planes = input.permute(0, 2, 1, 3, 4).reshape(batch * z, channels, y, x)
        planes = planes.contiguous(memory_format=torch.channels_last)
        planes = _convolve(planes, self.weight[:, :, 0], self.bias)
        return planes.reshape(batch, z, -1, y, x).permute(0, 2, 1, 3, 4)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with the one library, whatever the size.

    Left to itself torch takes another kernel for small inputs: slower, and with other last bits, so that a block's
    result would depend on its size.
    """
    axes = x.dim() - 2
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return torch.mkldnn_convolution(x, weight, bias, [1] * axes, [1] * axes, [1] * axes, 1)
    return (
        nn.functional.conv3d(x, weight, bias, padding=1)
        if axes == 3
        else nn.functional.conv2d(x, weight, bias, padding=1)
    )


class _Pointwise(nn.Conv3d):
    """Convolution of one voxel with itself, as a matrix product.

    torch has no fast kernel for it in 3D: its own takes five times as long and loses the memory order, which makes
    everything after it slow too.
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, into, z, y, x) to (batch, out, z, y, x), channels last in memory."""
        weight = self.weight.view(self.out_channels, self.in_channels)
        return nn.functional.linear(input.permute(0, 2, 3, 4, 1), weight, self.bias).permute(0, 4, 1, 2, 3)


class UNet(nn.Module):
    """The network of an `Architecture`; logits out.

    Parameters
    ----------
    architecture : Architecture
    training : bool
        With batch normalisation (to be trained, then `folded`) or without (to be used).
    """

    def __init__(self, architecture: Architecture, *, training: bool = False) -> None:
        super().__init__()
        self.architecture = a = architecture
        into = a.unshuffle**2
        down, up, narrow = [], [], []
        for level, (width, count) in enumerate(zip(a.widths, a.encoder, strict=True)):
            chain: list[nn.Module] = []
            for index in range(count):
                chain.append(_Convolution(into, width, flat=level == 0 and index == 0, training=training))
                into = width
            down.append(nn.Sequential(*chain))
        for level, count in enumerate(a.decoder):
            narrow.append(_Pointwise(a.widths[level + 1], a.widths[level]))
            width = a.widths[level]
            up.append(nn.Sequential(*(_Convolution(width, width, flat=False, training=training) for _ in range(count))))
        self.down, self.up, self.narrow = nn.ModuleList(down), nn.ModuleList(up), nn.ModuleList(narrow)
        self.head = _Pointwise(a.widths[0], a.outputs * a.unshuffle**2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, outputs, z, y, x) of grey values (batch, 1, z, y, x), whose shape is a multiple of stride."""
        return shuffled(self.unshuffled(x), self.architecture.unshuffle)

    def unshuffled(self, x: Tensor) -> Tensor:
        """The same before the channels are spread out again: (batch, outputs * unshuffle^2, z, y / unshuffle, ...)."""
        a = self.architecture
        x = _unshuffle(x, a.unshuffle).contiguous(memory_format=torch.channels_last_3d)
        kept = []
        for level, chain in enumerate(self.down):
            x = chain(x)
            if level < len(a.pool_z):
                kept.append(x)
                x = nn.functional.max_pool3d(x, (a.pool_z[level], 2, 2))
        for level in reversed(range(len(a.decoder))):
            # Narrowing before enlarging gives the same and costs an eighth.
            x = nn.functional.interpolate(self.narrow[level](x), scale_factor=(a.pool_z[level], 2, 2), mode="nearest")
            x = self.up[level](x.add_(kept.pop()))
        return cast(Tensor, self.head(x))


def _unshuffle(x: Tensor, by: int) -> Tensor:
    batch, channels, z, y, x_ = x.shape
    x = x.view(batch, channels, z, y // by, by, x_ // by, by).permute(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(batch, channels * by * by, z, y // by, x_ // by)


def shuffled(x: Tensor, by: int) -> Tensor:
    """Spread groups of `by`^2 channels out over y and x."""
    batch, channels, z, y, x_ = x.shape
    x = x.reshape(batch, channels // by**2, by, by, z, y, x_).permute(0, 1, 4, 5, 2, 6, 3)
    return x.reshape(batch, channels // by**2, z, y * by, x_ * by)


def folded(net: UNet, outputs: int | None = None) -> UNet:
    """Give the same function without batch normalisation, with the first `outputs` channels only."""
    old = net.architecture
    outputs = old.outputs if outputs is None else outputs
    new = UNet(Architecture(**{**asdict(old), "outputs": outputs}))
    state: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, _Convolution):
            norm = cast(nn.BatchNorm3d, module.norm)
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            scale = norm.weight / torch.sqrt(variance + norm.eps)
            state[f"{name}.conv.weight"] = module.conv.weight * scale[:, None, None, None, None]
            state[f"{name}.conv.bias"] = norm.bias - mean * scale
        elif isinstance(module, nn.Conv3d) and f"{name}.weight" in new.state_dict() and f"{name}.weight" not in state:
            rows = outputs * old.unshuffle**2 if name == "head" else None
            state[f"{name}.weight"] = module.weight[:rows]
            state[f"{name}.bias"] = cast(Tensor, module.bias)[:rows]
    new.load_state_dict({k: v.detach().clone() for k, v in state.items()})
    return new.eval()


def multiply_adds(net: nn.Module, shape_zyx: Zyx) -> int:
    """Multiplications (each with its addition) of all convolutions for one image of `shape_zyx`, counted by hooks."""
    total = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += out[:, 0].numel() * cast(nn.Conv3d, module).weight.numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv3d)]
    was = net.training
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 1, *shape_zyx))
    finally:
        net.train(was)
        for hook in hooks:
            hook.remove()
    return total
