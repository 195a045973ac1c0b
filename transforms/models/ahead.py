"""Batches made ahead in other processes: an accelerator learns faster than one core draws neuropil.

Which batches there are, and their order, does not depend on how many processes make them: a batch depends on its step
alone. A process makes `CHUNK` batches in a row, so that the volumes behind them are drawn once for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from transforms.models.samples import Batch, Source

CHUNK = 16  # steps, as many as a synthetic volume is in use (`SyntheticSource.renew`)
Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]


def batches(source: Source, first: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches of steps `first` to `stop`, made here (0) or ahead by so many processes."""
    if workers == 0:
        yield from (source.batch(step) for step in range(first, stop))
        return
    loader = DataLoader(
        cast("Dataset[list[Packed]]", _Chunks(source, first, stop)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=1,
        multiprocessing_context="spawn",
    )
    for chunk in loader:
        yield from (_unpacked(*packed) for packed in chunk)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """What a process of the loader is asked for: the batches of one chunk."""

    source: Source
    first: int
    stop: int

    def __len__(self) -> int:
        return -(-(self.stop - self.first) // CHUNK)

    def __getitem__(self, number: int) -> list[Packed]:
        start = self.first + number * CHUNK
        return [_packed(self.source.batch(step)) for step in range(start, min(start + CHUNK, self.stop))]


def _packed(batch: Batch) -> Packed:
    # Eight answers to a byte: what crosses between processes is a sixth of it.
    wanted, known = (torch.from_numpy(np.packbits(answers)) for answers in (batch.wanted, batch.known))
    return torch.from_numpy(batch.em), wanted, known, batch.wanted.shape


def _unpacked(em: torch.Tensor, wanted: torch.Tensor, known: torch.Tensor, shape: tuple[int, ...]) -> Batch:
    count = int(np.prod(shape))
    answers = (np.unpackbits(bits.numpy(), count=count).reshape(shape).view(np.bool_) for bits in (wanted, known))
    return Batch(em.numpy(), *answers)
