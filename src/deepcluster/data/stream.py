"""Decoding on demand: the one place in the package that starts a DataLoader.

It serves what the pixel cache is built from, and what does not fit into that cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from deepcluster.data.sources import ImageSource
from deepcluster.records import BadImage

#: Fewer images than this are decoded where we stand: starting processes would take longer.
FEW = 256


@dataclass(frozen=True)
class Decoded:
    """Some images of a source, decoded.

    Attributes:
        index: (n,) int64 positions in the source.
        pixels: uint8, the images one after another, each (h, w, 3).
        sizes: (n, 2) int64 height and width; 0, 0 for one that cannot be decoded.
        reasons: index -> why it cannot be decoded.
    """

    index: np.ndarray
    pixels: np.ndarray
    sizes: np.ndarray
    reasons: dict[int, str]

    def images(self) -> list[np.ndarray | None]:
        """The n pictures (h, w, 3) as views of `pixels`; None for one that cannot be decoded."""
        ends = np.cumsum(self.sizes.prod(1) * 3)
        return [
            None if not height else self.pixels[end - height * width * 3 : end].reshape(height, width, 3)
            for end, (height, width) in zip(ends.tolist(), self.sizes.tolist(), strict=True)
        ]


def decode_batch(source: ImageSource, index: Sequence[int] | np.ndarray, short_side: int | None) -> Decoded:
    """Read the images `index` of `source`, one after another."""
    pictures: list[np.ndarray] = []
    sizes = np.zeros((len(index), 2), np.int64)
    reasons: dict[int, str] = {}
    for row, position in enumerate(index):
        try:
            picture = source.read(int(position), short_side)
        except BadImage as error:
            reasons[int(position)] = str(error)
            continue
        sizes[row] = picture.shape[:2]
        pictures.append(np.ascontiguousarray(picture).reshape(-1))
    pixels = np.concatenate(pictures) if pictures else np.zeros(0, np.uint8)
    return Decoded(np.asarray(index, np.int64), pixels, sizes, reasons)


def stream(
    source: ImageSource, batches: Sequence[np.ndarray], short_side: int | None, workers: int = 0
) -> Iterator[Decoded]:
    """Decode `batches` of indices in their order, in `workers` processes (0: as many as there are cores).

    The result does not depend on the number of workers. One image alone, or a machine with one core, needs none.
    """
    many = sum(map(len, batches)) > FEW
    count = (workers or os.cpu_count() or 1) if many else 0
    if count <= 1:
        for index in batches:
            yield decode_batch(source, index, short_side)
        return
    loader = DataLoader(
        _Batches(source, batches, short_side),
        batch_size=None,
        shuffle=False,
        num_workers=min(count, len(batches)),
        collate_fn=_as_tensors,
        prefetch_factor=2,
        generator=torch.Generator(),  # else it draws from, and so moves on, the global random state
    )
    for index, pixels, sizes, reasons in loader:
        yield Decoded(index.numpy(), pixels.numpy(), sizes.numpy(), reasons)


class _Batches(Dataset):
    """Item k is batch k, decoded."""

    def __init__(self, source: ImageSource, batches: Sequence[np.ndarray], short_side: int | None) -> None:
        self.source = source
        self.batches = batches
        self.short_side = short_side

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Decoded:
        return decode_batch(self.source, self.batches[k], self.short_side)


def _as_tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[int, str]]:
    """Tensors travel between processes through shared memory, arrays through a pipe."""
    return torch.from_numpy(batch.index), torch.from_numpy(batch.pixels), torch.from_numpy(batch.sizes), batch.reasons
