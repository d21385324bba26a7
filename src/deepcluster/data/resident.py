"""Decoded images that stay on a GPU from the first batch on, where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.gpu import free_bytes

SHARE = 0.25  # of a GPU's free memory, that the images may take: training needs most of it
CHUNK = 64 << 20  # bytes that are copied at a time


def fits(count: int, device: torch.device) -> bool:
    """Whether so many bytes may stay on a device: on GPUs up to a quarter of the free memory."""
    return count <= int(SHARE * free_bytes(device))


def held(pixels: np.ndarray, widest: int, device: torch.device) -> Tensor | None:
    """A copy of `pixels`, flat uint8, on a GPU, and behind it room for a row; None where there is no room after all.

    Args:
        widest: pixels of the longest row of an image.
    """
    try:
        copy = torch.zeros(len(pixels) + 3 * widest, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:  # free, but in pieces, or taken by another process since
        return None
    for start in range(0, len(pixels), CHUNK):
        part = torch.from_numpy(np.array(pixels[start : start + CHUNK]))
        copy[start : start + len(part)] = part
    return copy


@dataclass(frozen=True, eq=False)
class ImagesOnDevice(Sequence[Any]):
    """Some of the images that a GPU holds: a sequence of arrays as any, which are copied back where one is asked for,
    and blocks of them that never leave the GPU."""

    pixels: Tensor  # flat uint8, all images one after another, and room for the longest row behind them
    offsets: np.ndarray  # (B,) int64, where each image starts
    sizes: np.ndarray  # (B, 2) int64 height and width; 0, 0 for one that cannot be decoded

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, offsets=self.offsets[index], sizes=self.sizes[index])
        start, (height, width) = int(self.offsets[index]), self.sizes[index].tolist()
        if not height:
            return None
        return self.pixels[start : start + height * width * 3].view(height, width, 3).cpu().numpy()

    def stand_ins(self) -> ImagesOnDevice:
        """The same with a pixel, of whatever image, for each that cannot be decoded."""
        bad = self.sizes[:, :1] == 0
        return replace(self, offsets=np.where(bad[:, 0], 0, self.offsets), sizes=np.where(bad, 1, self.sizes))

    def cut(self, box: np.ndarray) -> Tensor:
        """Crops `box` (B, 4) of the images, each in the corner of a block (B, H, W, 3) that holds the largest; beyond
        them it has other pixels."""
        height, width = box[:, 2:].max(0).tolist()
        row = box[:, :1] + np.minimum(np.arange(height), box[:, 2:3] - 1)
        starts = self.offsets[:, None] + 3 * (row * self.sizes[:, 1:] + box[:, 1:2])  # (B, H), where each row begins
        # The table seen as a row of W pixels from every byte on, of which those rows are taken.
        table = self.pixels.as_strided((len(self.pixels) - 3 * width + 1, 3 * width), (1, 1))
        chosen = torch.from_numpy(starts.ravel()).to(self.pixels.device, non_blocking=True)
        return table.index_select(0, chosen).view(len(box), height, width, 3)


def shapes_of(images: Sequence[np.ndarray | None]) -> np.ndarray:
    """(B, 2) int64 height and width of images, all of which can be decoded."""
    if isinstance(images, ImagesOnDevice):
        return images.sizes
    return np.array([image.shape[:2] for image in images if image is not None])
