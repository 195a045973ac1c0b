"""What networks see: affinity and synapse_sites. The networks themselves are in `transforms.models`.

A model's result for a voxel depends on a halo of its own, told by its card, and on the voxel's place modulo its stride:
so each block is read with that halo, from a multiple of the stride, and the inside does not depend on the block.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lake.box import Zyx
from lake.errors import BadInput
from lake.volume_spec import VolumeSpec
from transforms.stage import (
    Block,
    Inputs,
    ModelIn,
    Outputs,
    ReadPort,
    Scene,
    Stage,
    VolumeIn,
    VolumeOut,
    Voxels,
    WritePort,
)
from transforms.stages.segmentation import cells_shape


class _Predict(Stage):
    """Shared by both: one block with the model's halo."""

    kernels: ClassVar[tuple[str, ...]] = ("transforms.models.inference", "transforms.models.nets")
    libraries: ClassVar[tuple[str, ...]] = ("torch",)
    channels: ClassVar[int] = 3
    output: ClassVar[str] = ""

    model: str = Field(description="digest of the model")
    image: str = Field("em", description="volume to look at")
    cells: Zyx = Field((1, 4, 4), description="grid cells of one block: the larger, the less of the halo is done twice")
    halo: Zyx | None = Field(None, description="context in voxels; none = the model's own")

    def bind(self, card: Mapping[str, Any]) -> Self:
        """Take the halo from the model; another one may only be wider."""
        from transforms.models.nets import Architecture

        own = Architecture.from_json(card["architecture"]).halo
        if self.halo is not None and any(mine < least for mine, least in zip(self.halo, own, strict=True)):
            raise BadInput(
                f"stage {self.name!r}: halo {self.halo} is less than the model sees, {own}", fix="leave halo out"
            )
        return self.model_copy(update={"halo": self.halo or own})

    def numerics(self) -> dict[str, str]:
        from transforms.models.inference import numerics

        return numerics()

    def reads(self) -> tuple[ReadPort, ...]:
        return VolumeIn.around(self.image, self.halo or (0, 0, 0)), ModelIn()

    def writes(self) -> tuple[WritePort, ...]:
        return (VolumeOut(self.output),)

    def block_shape(self, scene: Scene) -> Zyx:
        return cells_shape(scene, self.cells)

    def memory_factor(self) -> float:
        # Feature maps: tens of float32 channels at half the size in y and x for each byte of the image.
        return 40.0

    def volumes(self, scene: Scene) -> dict[str, VolumeSpec]:
        image = scene.volume(self.image)
        spec = VolumeSpec(
            self.output,
            "affinity",
            "uint8",
            image.shape_zyx,
            image.voxel_nm_zyx,
            image.offset_zyx,
            channels=self.channels,
            chunk_zyx=scene.grid.block,
            driver="zarr3",
        )
        return {self.output: spec}

    def run_block(self, block: Block, inputs: Inputs) -> Outputs:
        assert block.box is not None
        image = inputs.volumes[self.image]
        shown, cut = aligned(image, inputs.model.stride)
        found = self._predict(inputs.model, shown)[(slice(None), *cut)]
        return Outputs({self.output: np.ascontiguousarray(found[(slice(None), *block.box.within(image.box))])})

    def _predict(self, model: Any, em: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raise NotImplementedError


class Affinity(_Predict):
    """Image to affinities with the next voxel along z, y and x."""

    name: ClassVar[str] = "affinity"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "affinity"

    def _predict(self, model: Any, em: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = model.predict_affinity(em)
        return found


class SynapseSites(_Predict):
    """Image to presynaptic and postsynaptic sites."""

    name: ClassVar[str] = "synapse_sites"
    version: ClassVar[int] = 1
    channels: ClassVar[int] = 2
    output: ClassVar[str] = "synapse_sites"

    def _predict(self, model: Any, em: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = model.predict_synapse(em)
        return found


def aligned(image: Voxels, stride: Zyx) -> tuple[NDArray[np.uint8], tuple[slice, slice, slice]]:
    """Give the voxels from a multiple of `stride` on, and where they are in that.

    Only a volume whose own start is no multiple of the stride has to be continued on its low side (by its rim).
    """
    before = [start % step for start, step in zip(image.box.start, stride, strict=True)]
    if not any(before):
        whole = tuple(slice(0, n) for n in image.array.shape)
        return image.array, (whole[0], whole[1], whole[2])
    padded = np.pad(image.array, [(n, 0) for n in before], mode="edge")
    inside = tuple(slice(n, None) for n in before)
    return padded, (inside[0], inside[1], inside[2])
