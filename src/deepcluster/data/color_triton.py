"""Color jitter of a batch on a GPU in two kernels, by Triton, whatever the order of each image's operations.

The first finds the mean luma that contrast blends with, the second does all the rest, pixel by pixel, and normalizes.
Both equal torchvision's `adjust_*` functions for the same factors. Nothing else knows of this file but augment.py,
which takes it on GPUs where it works.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from deepcluster.data.views import Draw, ViewGroup

# Columns of what the kernels know of an image.
PLACE = tl.constexpr(4)  # of contrast among the four operations, which come first
FACTORS = tl.constexpr(5)  # of brightness, contrast, saturation; then the turn of hue, in sixths of the circle
GRAY = tl.constexpr(9)
NUMBERS = tl.constexpr(10)
BRIGHTNESS, CONTRAST, SATURATION = (tl.constexpr(step) for step in range(3))
PIXELS = 1024  # of an image, that a program works on at a time


@triton.jit
def _limited(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _luma(red, green, blue):  # type: ignore[no-untyped-def]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _channel(hue, chroma, top):  # type: ignore[no-untyped-def]
    """One channel, from HSV; `hue` is in sixths of the circle, plus 5 for red, 3 for green and 1 for blue."""
    place = hue - 6 * tl.floor(hue / 6)
    return top - chroma * tl.minimum(tl.maximum(tl.minimum(place, 4 - place), 0.0), 1.0)


@triton.jit
def _turned(red, green, blue, turn):  # type: ignore[no-untyped-def]
    """The hue moved by `turn` sixths of the circle; the largest channel and its distance to the smallest kept."""
    top = tl.maximum(tl.maximum(red, green), blue)
    chroma = top - tl.minimum(tl.minimum(red, green), blue)
    some = tl.where(chroma > 0, chroma, 1.0)
    of_others = tl.where(top == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    hue = tl.where(top == red, (green - blue) / some, of_others) + turn
    return _channel(hue + 5, chroma, top), _channel(hue + 3, chroma, top), _channel(hue + 1, chroma, top)


@triton.jit  # type: ignore[untyped-decorator]
def _changed(red, green, blue, row, mean, FIRST: tl.constexpr, LAST: tl.constexpr, before):  # type: ignore[no-untyped-def]
    """After operations FIRST to LAST of the image, but for those that are not `before` that place."""
    for place in tl.static_range(FIRST, LAST):
        if place < before:
            step = tl.load(row + place)
            factor = tl.load(row + FACTORS + step.to(tl.int32))
            if step == BRIGHTNESS:
                if factor != 1:
                    red, green, blue = _limited(factor * red), _limited(factor * green), _limited(factor * blue)
            elif step <= SATURATION:
                if factor != 1:
                    other = (1 - factor) * (mean + tl.zeros_like(red))
                    if step == SATURATION:
                        other = (1 - factor) * _luma(red, green, blue)
                    red, green, blue = (
                        _limited(factor * red + other),
                        _limited(factor * green + other),
                        _limited(factor * blue + other),
                    )
            else:
                if factor != 0:
                    red, green, blue = _turned(red, green, blue, factor)
    return red, green, blue


@triton.jit  # type: ignore[untyped-decorator]
def _mean_luma(images, plan, means, pixels, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each image of (B, 3, pixels) float32, as it is when contrast changes it, into means (B,)."""
    image = tl.program_id(0).to(tl.int64)
    row = plan + image * NUMBERS
    total = tl.zeros((SIZE,), tl.float32)
    if tl.load(row + FACTORS + CONTRAST) != 1:
        before = tl.load(row + PLACE)
        for start in range(0, pixels, SIZE):
            pixel = start + tl.arange(0, SIZE)
            inside, first = pixel < pixels, images + image * 3 * pixels + pixel
            red = tl.load(first, mask=inside, other=0.0)
            green = tl.load(first + pixels, mask=inside, other=0.0)
            blue = tl.load(first + 2 * pixels, mask=inside, other=0.0)
            red, green, blue = _changed(red, green, blue, row, 0.0, 0, 3, before)
            total += tl.where(inside, _luma(red, green, blue), 0.0)
    tl.store(means + image, tl.sum(total) / pixels)


@triton.jit  # type: ignore[untyped-decorator]
def _recolor(  # type: ignore[no-untyped-def]
    images,  # (B, 3, pixels) float32, 0 … 255
    plan,  # (B, NUMBERS) float32
    means,  # (B,) float32
    out,  # (B, pixels, 3) float32
    pixels,
    scale0,  # of each channel, and what is added to it
    scale1,
    scale2,
    shift0,
    shift1,
    shift2,
    SIZE: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    row, inside, first = plan + image * NUMBERS, pixel < pixels, images + image * 3 * pixels + pixel
    red = tl.load(first, mask=inside, other=0.0)
    green = tl.load(first + pixels, mask=inside, other=0.0)
    blue = tl.load(first + 2 * pixels, mask=inside, other=0.0)
    red, green, blue = _changed(red, green, blue, row, tl.load(means + image), 0, 4, 4.0)
    if tl.load(row + GRAY) != 0:
        red = _luma(red, green, blue)
        green, blue = red, red
    to = out + (image * pixels + pixel) * 3
    tl.store(to, red * scale0 + shift0, mask=inside)
    tl.store(to + 1, green * scale1 + shift1, mask=inside)
    tl.store(to + 2, blue * scale2 + shift2, mask=inside)


def recolor(x: Tensor, draws: Draw, group: ViewGroup, out: Tensor) -> None:
    """Jitter, gray and normalization of B images.

    Args:
        x: (B, 3, S, S) float32, 0 … 255.
        draws: theirs, and
        group: what they were drawn for.
        out: (B, 3, S, S) float32, channels last in memory: overwritten.
    """
    orders = draws.image_orders
    place = orders.argsort(1)[:, 1:2]
    factors = draws.factors * np.array([1, 1, 1, 6], np.float32)
    plan = np.concatenate([orders, place, factors, draws.gray[:, None]], 1).astype(np.float32)
    images, (count, _, height, width) = x.contiguous(), x.shape
    means, pixels = x.new_empty(count), height * width
    scale = [1 / (255 * s) for s in group.std]
    shift = [-m / s for m, s in zip(group.mean, group.std, strict=True)]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        numbers = torch.from_numpy(plan).to(x.device, non_blocking=True)
        _mean_luma[(count,)](images, numbers, means, pixels, SIZE=PIXELS)
        tiles = triton.cdiv(pixels, PIXELS)
        _recolor[(count, tiles)](images, numbers, means, out, pixels, *scale, *shift, SIZE=PIXELS)
