"""Crop, flip and resize many images to one size: antialiased bilinear, as torchvision resizes.

Two ways give the same pixels. Torch's uint8 resize takes one image at a time, and is best on a CPU for all but
tiny ones. Two matrix products take a whole batch, and are best for tiny images and on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.resident import ImagesOnDevice, shapes_of

# What F.interpolate calls; it spares a third of the time at 32 px, and can write into memory that is there already.
_resize: Any = torch._C._nn._upsample_bilinear2d_aa

#: Longest side up to which a CPU resamples by products. Measured on one core, a random crop and flip to the size of
#: the image: 32 px 18 against 33 microseconds, 64 px about even, 112 px 270 against 110.
TINY = 48
#: Images multiplied at a time on a CPU, so that they stay in its cache.
GROUP = 64


def crop_resize(
    images: Sequence[np.ndarray], box: np.ndarray, flip: np.ndarray, size: int, device: torch.device
) -> Tensor:
    """Crops of B images at one size.

    Args:
        images: B arrays (H, W, 3) uint8.
        box: (B, 4) int64 top, left, height, width in pixels.
        flip: (B,) bool, left to right after the crop.
        size: height and width of the result, in pixels.
        device: where the work is done.

    Returns:
        (B, 3, size, size), 0 … 255: uint8 with channels last in memory, or contiguous float32.
    """
    targets = np.full((len(images), 2), size)
    return _resample(images, box, flip, targets, np.zeros_like(targets), size, device)


def resize_center(images: Sequence[np.ndarray], short: int, size: int, device: torch.device) -> Tensor:
    """The central `size` x `size` pixels of B images resized to a shorter side of `short`, as by `crop_resize`."""
    shapes = shapes_of(images)
    if (shapes == short).all() and short == size:
        return _to(device, _block(images)).permute(0, 3, 1, 2)
    targets = short * shapes // shapes.min(1, keepdims=True)  # the longer side is floored, as torchvision does
    corner = np.rint((targets - size) / 2).astype(np.int64)
    box = np.concatenate([np.zeros_like(shapes), shapes], axis=1)
    return _resample(images, box, np.zeros(len(images), bool), targets, corner, size, device)


def _resample(
    images: Sequence[np.ndarray],
    box: np.ndarray,
    flip: np.ndarray,
    targets: np.ndarray,
    corner: np.ndarray,
    size: int,
    device: torch.device,
) -> Tensor:
    """Each crop `box` (B, 4), resized to `targets` (B, 2): `size` pixels of it, from `corner` (B, 2) on."""
    if device.type != "cpu" or shapes_of(images).max() <= TINY:
        return _by_products(images, box, flip, targets, corner, size, device)
    out = _channels_last(len(images), size, size)
    buffers: dict[tuple[int, int], Tensor] = {}  # fresh memory for each resize would cost more than the resize
    rows = zip(images, box.tolist(), flip.tolist(), map(tuple, targets.tolist()), corner.tolist(), strict=True)
    for place, (image, (top, left, height, width), mirrored, target, (down, right)) in zip(out, rows, strict=True):
        crop = torch.from_numpy(image[top : top + height, left : left + width].transpose(2, 0, 1)[None])
        if target == (size, size):
            _resize(crop, target, False, out=place[None])
        else:
            if target not in buffers:
                buffers[target] = _channels_last(1, *target)
            resized = _resize(crop, target, False, out=buffers[target])
            place.copy_(resized[0, :, down : down + size, right : right + size])
        if mirrored:
            place.copy_(place.flip(2))
    return out


def _channels_last(count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) uint8, not yet set, with channels last in memory."""
    return torch.empty((count, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def _by_products(
    images: Sequence[np.ndarray],
    box: np.ndarray,
    flip: np.ndarray,
    targets: np.ndarray,
    corner: np.ndarray,
    size: int,
    device: torch.device,
) -> Tensor:
    """Rows · image · columns: a resize is linear in both directions, and a flip reverses the columns.

    The weights of pixels outside the crop are zero, so that no image needs to be cut; arguments as of `_resample`.
    """
    shapes = shapes_of(images)
    if (shapes != shapes[0]).any():  # images of several sizes: cut, and padded to one block
        cut, box = box, np.concatenate([np.zeros_like(box[:, :2]), box[:, 2:]], axis=1)
        block = images.cut(cut) if isinstance(images, ImagesOnDevice) else torch.from_numpy(_padded(images, cut))
    else:
        block = _block(images)
    # (5, B, 2): first pixel and pixels of the crop, pixels of the whole result, first of these that is wanted, flip
    reverse = np.stack([np.zeros_like(flip), flip], axis=1)
    numbers = torch.from_numpy(np.stack([box[:, :2], box[:, 2:], targets, corner, reverse])).float()
    block, numbers = _to(device, block), _to(device, numbers)
    count, height, width, _ = block.shape
    step = min(count, GROUP) if device.type == "cpu" else count
    out, rows, columns, shrunk, planes = (
        torch.empty(shape, device=device)
        for shape in (
            (count, 3 * size, size),
            (step, size, height),
            (step, width, size),
            (step, size, width * 3),
            (step, 3, size, width),
        )
    )
    for first in range(0, count, step):
        values = block[first : first + step].view(-1, height, width * 3).float()
        b = len(values)
        _weights(numbers[:, first : first + step, 0], rows[:b], over=2)
        _weights(numbers[:, first : first + step, 1], columns[:b], over=1)
        torch.bmm(rows[:b], values, out=shrunk[:b])
        planes[:b].copy_(shrunk[:b].view(b, size, width, 3).permute(0, 3, 1, 2))
        torch.bmm(planes[:b].view(b, 3 * size, width), columns[:b], out=out[first : first + step])
    return out.view(count, 3, size, size)


def _block(images: Sequence[np.ndarray]) -> Tensor:
    """(B, H, W, 3) uint8, images of one size, where they are."""
    if isinstance(images, ImagesOnDevice):
        return images.cut(np.concatenate([np.zeros_like(images.sizes), images.sizes], axis=1))
    return torch.from_numpy(np.stack(images))


def _to(device: torch.device, x: Tensor) -> Tensor:
    """On the device, without waiting for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x.to(device)


def _padded(images: Sequence[np.ndarray], box: np.ndarray) -> np.ndarray:
    """The crops, each in the corner of an array that holds the largest."""
    block = np.zeros((len(images), *box[:, 2:].max(0), 3), np.uint8)
    for place, image, (top, left, height, width) in zip(block, images, box.tolist(), strict=True):
        place[:height, :width] = image[top : top + height, left : left + width]
    return block


def _weights(numbers: Tensor, out: Tensor, over: int) -> None:
    """Weights of an antialiased bilinear resize of part of each of B lines.

    Args:
        numbers: (5, B) first pixel and pixels of the part, pixels it is resized to, the first wanted of these, and
            1 where they are wanted from last to first.
        out: (B, pixels wanted, pixels of a line), or with these two exchanged; float32, overwritten.
        over: the dimension of `out` that counts pixels of the line; weights sum to one over it.
    """
    start, taken, target, wanted, reverse = numbers[:, :, None].unbind()
    pixel = torch.arange(out.shape[over], device=out.device) + 0.5
    steps = torch.arange(out.shape[3 - over], device=out.device)
    steps = torch.where(reverse > 0, steps.flip(0), steps)  # (B, wanted)
    scale = taken / target
    support = scale.clamp_min(1)
    centers = (start + (wanted + steps + 0.5) * scale) / support
    # In units of the triangle's half width; pixels outside the part get no weight.
    pixels = torch.where((pixel > start) & (pixel < start + taken), pixel / support, 1e6)  # (B, pixels)
    torch.sub(pixels.unsqueeze(3 - over), centers.unsqueeze(over), out=out)
    out.abs_().sub_(1).clamp_max_(0)  # minus the weights: the sign goes with the division
    out.div_(out.sum(over, keepdim=True))
