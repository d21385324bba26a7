"""A batch of images in, a batch of views out: crop, flip, affine, color, blur, normalize.

Images become float late, and are worked on in blocks that fit a core's cache. For the same draw every step
equals torchvision's functional one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.data.color import Plan, Recolor
from deepcluster.data.resample import crop_resize, resize_center
from deepcluster.data.views import BLOCK, IMAGENET_MEAN, IMAGENET_STD, Draw, ViewGroup

#: Edge of torchvision's blur kernel as a share of the view, as in SimCLR (arXiv 2002.05709, appendix A).
BLUR_KERNEL = 0.1


def augment(images: Sequence[np.ndarray], draws: Draw, group: ViewGroup, device: torch.device | str = "cpu") -> Tensor:
    """Random views of B images.

    Args:
        images: B arrays (H, W, 3) uint8, of any sizes.
        draws: the random numbers of each, from `draw`.
        group: what they were drawn for.
        device: where the views are made and left.

    Returns:
        (B, 3, S, S) float32, normalized, channels last in memory.
    """
    device = torch.device(device)
    small = crop_resize(images, draws.box, draws.flip, group.size, device)
    count, size = len(small), group.size
    active = [bool(strength) and group.jitter > 0 for strength in group.jitters]
    if not (group.moves or any(active) or group.gray or group.blur):
        return normalized(small, group.mean, group.std)
    out = torch.empty((count, 3, size, size), device=device, memory_format=torch.channels_last)
    pixels = out.permute(0, 2, 3, 1).view(count, size * size, 3)
    target = pixels.numpy() if device.type == "cpu" else pixels
    recolor = Recolor(BLOCK, size, device)
    orders = draws.orders[(draws.first + np.arange(count)) // BLOCK]
    plan = Plan(orders, draws.factors, draws.gray, group.mean, group.std, size * size, device)
    for block in range(draws.first // BLOCK, -(-(draws.first + count) // BLOCK)):
        first, last = (max(0, min(count, edge * BLOCK - draws.first)) for edge in (block, block + 1))
        steps = [step for step in draws.orders[block].tolist() if active[step]]
        for start in range(first, last, recolor.images):
            rows = slice(start, min(start + recolor.images, last))
            x = affine(small[rows].float(), draws.affine[rows]) if group.moves else small[rows]
            blurred = np.flatnonzero(draws.sigma[rows])
            change = partial(_blur_some, which=blurred, sigma=draws.sigma[rows]) if len(blurred) else None
            recolor(x, plan, rows, steps, target[rows], change)
    return out


def center_crop(
    images: Sequence[np.ndarray],
    size: int,
    device: torch.device | str = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """The deterministic view of each image: resized to a shorter side of `resized_side(size)`, its center cropped.

    Returns:
        (B, 3, S, S) float32, normalized, channels last in memory.
    """
    return normalized(resize_center(images, resized_side(size), size, torch.device(device)), mean, std)


def resized_side(size: int) -> int:
    """Shorter side to which images are resized before a crop of `size`: 256 for 224, as usual; no more up to 64 px."""
    return size if size <= 64 else round(size * 256 / 224)


def normalized(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, 3, S, S), 0 … 255 -> float32, (x / 255 - mean) / std, channels last in memory."""
    out = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
    scale = [1 / (255 * s) for s in std]
    bias = [-m / s for m, s in zip(mean, std, strict=True)]
    if x.dtype == torch.uint8 and x.device.type == "cpu":
        # One row holds its pixels' channels side by side, so that a row of constants lines up with it.
        width = x.shape[3]
        flat = out.permute(0, 2, 3, 1).view(len(x), x.shape[2], width * 3)
        flat.copy_(x.permute(0, 2, 3, 1).reshape(flat.shape))
        torch.addcmul(torch.tensor(bias).repeat(width), flat, torch.tensor(scale).repeat(width), out=flat)
        return out
    for channel in range(3):  # transposes, scales and shifts in one pass
        torch.add(out.new_tensor(bias[channel]), x[:, channel], alpha=scale[channel], out=out[:, channel])
    return out


def affine(x: Tensor, numbers: np.ndarray) -> Tensor:
    """Rotate, shift, zoom and shear each image about its center, bilinear, black outside.

    Args:
        x: (n, 3, S, S) float32.
        numbers: (n, 5), see `Draw.affine`.
    """
    size = x.shape[-1]
    angle, right, down, scale, shear = numbers.astype(np.float64).T
    angle, shear = np.radians(angle), np.radians(shear)
    # Inverse of rotation · shear · scale, from output to input coordinates, as in torchvision's `affine`.
    a, b = np.cos(angle), -np.cos(angle) * np.tan(shear) - np.sin(angle)
    c, d = np.sin(angle), -np.sin(angle) * np.tan(shear) + np.cos(angle)
    inverse = np.stack([d, -b, -c, a], 1) / scale[:, None]
    theta = np.zeros((len(x), 2, 3))
    theta[:, :, :2] = inverse.reshape(-1, 2, 2)
    shift = np.stack([right, down], 1) * (2 / size)  # in the grid's units: the image spans -1 … 1
    theta[:, :, 2] = -np.einsum("nij,nj->ni", theta[:, :, :2], shift)
    grid = F.affine_grid(torch.from_numpy(theta).float().to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur_some(x: Tensor, which: np.ndarray, sigma: np.ndarray) -> None:
    """Blurs some of the images (n, 3, S, S), in place."""
    for k in which.tolist():
        x[k] = blur(x[k], float(sigma[k]))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of one image (3, S, S) with `sigma` in pixels, edges reflected."""
    size = x.shape[-1]
    radius = min(max(1, round(size * BLUR_KERNEL / 2)), size - 1)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(x[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]
