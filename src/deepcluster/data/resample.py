"""Crop, flip and resize many pictures of any sizes to one size: antialiased bilinear, as torchvision resizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What F.interpolate calls; it spares a third of the time at 32 px, and can write into memory that is there already.
_resize: Any = torch._C._nn._upsample_bilinear2d_aa


def crop_resize(
    images: Sequence[np.ndarray],
    box: np.ndarray,
    flip: np.ndarray,
    size: int | tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Crops of B images at one size.

    Args:
        images: B arrays (H, W, 3) uint8.
        box: (B, 4) int top, left, height, width in pixels.
        flip: (B,) bool, left to right after the crop.
        size: height and width of the result, in pixels.
        device: where the work is done.

    Returns:
        (B, 3, height, width) uint8, channels last in memory.
    """
    size = (size, size) if isinstance(size, int) else size
    crops = [
        image[top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, box.tolist(), strict=True)
    ]
    if device.type == "cpu":
        return _one_by_one(crops, flip, size)
    return _by_products(crops, flip, size, device)


def resize_center(images: Sequence[np.ndarray], short: int, size: int, device: torch.device) -> Tensor:
    """B images resized to a shorter side of `short` pixels, of which the central `size` x `size` are given.

    Returns:
        (B, 3, size, size) uint8, channels last in memory.
    """
    shapes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
    targets = short * shapes // shapes.min(1, keepdims=True)  # the longer side is floored, as torchvision does
    corner = np.rint((targets - size) / 2).astype(int)
    if device.type != "cpu":
        return _by_products(list(images), np.zeros(len(images), bool), (size, size), device, targets, corner)
    out = torch.empty((len(images), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, place, target, (top, left) in zip(images, out, targets.tolist(), corner.tolist(), strict=True):
        resized = _resize(torch.from_numpy(image.transpose(2, 0, 1)[None]), target, False)
        place.copy_(resized[0, :, top : top + size, left : left + size])
    return out


def _one_by_one(crops: list[np.ndarray], flip: np.ndarray, size: tuple[int, int]) -> Tensor:
    out = torch.empty((len(crops), *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    shape = list(size)
    for crop, place in zip(crops, out.split(1), strict=True):
        _resize(torch.from_numpy(crop.transpose(2, 0, 1)[None]), shape, False, out=place)
    mirrored = torch.from_numpy(np.flatnonzero(flip))
    out[mirrored] = out[mirrored].flip(3)
    return out


def _by_products(
    crops: list[np.ndarray],
    flip: np.ndarray,
    size: tuple[int, int],
    device: torch.device,
    targets: np.ndarray | None = None,
    corner: np.ndarray | None = None,
) -> Tensor:
    """Rows · picture · columns: an antialiased resize is linear in both directions, a flip turns the columns round.

    Crops lie in one padded block; the weights are zero in the padding. Each is resized to `targets` (B, 2), of
    which `size` pixels from `corner` (B, 2) on are computed; as a rule the target is the size itself.
    """
    shapes = np.array([crop.shape[:2] for crop in crops])
    block = np.zeros((len(crops), *shapes.max(0), 3), np.uint8)
    for place, crop in zip(block, crops, strict=True):
        place[: crop.shape[0], : crop.shape[1]] = crop
    pictures = torch.from_numpy(block)
    if device.type == "cuda":
        pictures = pictures.pin_memory()
    pictures = pictures.to(device, non_blocking=True).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    targets = np.tile(size, (len(crops), 1)) if targets is None else targets
    corner = np.zeros_like(targets) if corner is None else corner
    numbers = torch.from_numpy(np.stack([shapes, targets, corner])).to(device, non_blocking=True)  # (3, B, 2)
    rows = triangle_weights(numbers[:, :, 0], size[0], block.shape[1])
    columns = triangle_weights(numbers[:, :, 1], size[1], block.shape[2])
    mirrored = torch.from_numpy(flip).to(device)[:, None, None]
    columns = torch.where(mirrored, columns.flip(1), columns)
    across = torch.matmul(pictures, columns.transpose(1, 2)[:, None])  # (B, 3, H, width)
    resized = torch.matmul(rows[:, None], across)  # (B, 3, height, width)
    return resized.add_(0.5).clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def triangle_weights(numbers: Tensor, count: int, padded: int) -> Tensor:
    """Weights of an antialiased bilinear resize of B lines.

    Args:
        numbers: (3, B) int64 pixels of each line, pixels it is resized to, and the first wanted of these.
        count: pixels wanted.
        padded: pixels of the longest line.

    Returns:
        (B, count, padded) float32, each row summing to one.
    """
    lengths, targets, first = numbers.unbind()
    scale = (lengths.float() / targets)[:, None, None]
    support = scale.clamp_min(1)
    centers = (first[:, None, None] + torch.arange(count, device=lengths.device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(padded, device=lengths.device)[None, None, :]
    weights = (1 - ((pixel + 0.5 - centers) / support).abs()).clamp_min(0)
    weights = weights * (pixel < lengths[:, None, None])
    return weights / weights.sum(2, keepdim=True)
