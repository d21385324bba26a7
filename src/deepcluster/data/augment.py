"""A batch of images in, a batch of views out: crop, flip, affine, color, blur, normalize.

Images become float late, and are worked on in blocks that fit a core's cache. For the same draw every step
equals torchvision's functional one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.data.color import Plan, Recolor
from deepcluster.data.resample import crop_resize, resize_center
from deepcluster.data.views import BLOCK, IMAGENET_MEAN, IMAGENET_STD, Draw, ViewGroup, draw
from deepcluster.gpu import has_triton, kernel_works
from deepcluster.random import seeded

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
    if has_triton(device) and _kernel_works(device):
        return _whole_batch(small, draws, group, out)
    pixels = out.permute(0, 2, 3, 1).view(count, size * size, 3)
    target = pixels.numpy() if device.type == "cpu" else pixels
    recolor = Recolor(BLOCK, size, device)
    plan = Plan(draws.image_orders, draws.factors, draws.gray, group.mean, group.std, size * size, device)
    for block in range(draws.first // BLOCK, -(-(draws.first + count) // BLOCK)):
        first, last = (max(0, min(count, edge * BLOCK - draws.first)) for edge in (block, block + 1))
        steps = [step for step in draws.orders[block].tolist() if active[step]]
        for start in range(first, last, recolor.images):
            rows = slice(start, min(start + recolor.images, last))
            x = affine(small[rows].float(), draws.affine[rows]) if group.moves else small[rows]
            change = partial(_blur_some, sigma=draws.sigma[rows]) if draws.sigma[rows].any() else None
            recolor(x, plan, rows, steps, target[rows], change)
    return out


def _whole_batch(small: Tensor, draws: Draw, group: ViewGroup, out: Tensor) -> Tensor:
    """The views of crops (B, 3, S, S), in as few launches for many images as for one."""
    from deepcluster.data import color_triton

    small = small.float()
    color_triton.recolor(affine(small, draws.affine) if group.moves else small, draws, group, out)
    if draws.sigma.any():  # behind normalization, which is linear, too
        _blur_some(out, draws.sigma)
    return out


@cache
def _kernel_works(device: torch.device) -> bool:
    """Whether color_triton.py does on this GPU what the CPU does."""
    group = ViewGroup(size=11, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5, jitter=0.9, gray=0.2, blur=0.5)
    count = BLOCK * 4
    draws = draw(group, np.full((count, 2), 11), seeded(0))
    draws = replace(draws, orders=np.array([(0, 1, 2, 3), (1, 3, 0, 2), (2, 0, 3, 1), (3, 2, 1, 0)]))
    images = list((np.arange(count * 11 * 11 * 3) * 97 % 256).astype(np.uint8).reshape(count, 11, 11, 3))

    def is_right() -> bool:
        small = crop_resize(images, draws.box, draws.flip, group.size, device)
        views = _whole_batch(small, draws, group, torch.empty_like(small, memory_format=torch.channels_last))
        return torch.allclose(views.cpu(), augment(images, draws, group), atol=0.03)  # pixels were rounded there

    return kernel_works("color jitter", device, is_right)


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


def _blur_some(x: Tensor, sigma: np.ndarray) -> None:
    """Blurs those images of x (n, 3, S, S) whose `sigma` (n,) is not 0, in place."""
    which = torch.from_numpy(np.flatnonzero(sigma)).to(x.device, non_blocking=True)
    chosen = torch.from_numpy(sigma[sigma > 0]).to(x.device, non_blocking=True)
    x.index_copy_(0, which, blur(x.index_select(0, which), chosen))


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images (n, 3, S, S), each with its `sigma` (n,) in pixels, edges reflected.

    By products with the matrix that blurs a line, which take a batch as they take one image.
    """
    n, _, _, size = x.shape
    radius = min(max(1, round(size * BLUR_KERNEL / 2)), size - 1)
    distance = torch.arange(radius + 1, device=x.device)
    kernel = F.pad(torch.exp(-0.5 * (distance / sigma[:, None]) ** 2), (0, 1))
    kernel /= 2 * kernel.sum(1, keepdim=True) - kernel[:, :1]
    weights = kernel[:, _distances(size, radius, x.device)].sum(1)  # (n, pixel of the result, pixel)
    columns = torch.bmm(x.reshape(n, 3 * size, size), weights.mT).view(n, 3, size, size)
    return weights[:, None] @ columns


@lru_cache(16)
def _distances(size: int, radius: int, device: torch.device) -> Tensor:
    """(3, size, size) int64: how far each pixel of a line is from another, from its reflection on the first pixel and
    on the last, which are not reflected themselves; `radius` + 1 where that is more than `radius`."""
    place = torch.arange(size, device=device)
    i, j = place[:, None], place
    far, last = radius + 1, size - 1
    ways = (i - j).abs(), torch.where(j > 0, i + j, far), torch.where(j < last, 2 * last - i - j, far)
    return torch.stack(ways).clamp_(max=far)
