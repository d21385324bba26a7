"""The filters of the first convolution as small pictures: in colors, or over the two edge maps of Sobel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.colors import hsv_to_rgb
from scipy.signal import convolve2d
from torch import nn

from deepcluster.data.naming import short_name
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.visualize.images import WHITE, enlarged, grid, titled
from deepcluster.visualize.style import Pictures

Order = Literal["norm", "index", "pca"]
Sobel = Literal["pair", "direction", "gray"]

# the Sobel pair as models/sobel.py has it: left minus right, top minus bottom
SOBEL = np.array([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]], np.float64)


def draw_filters(subject: Subject, *, order: Order = "norm", shared: bool = False, sobel: Sobel = "pair") -> Pictures:
    """The filters of the first convolution, in colors or over the two edge maps of Sobel (the paper's figure 3).

    Args:
        order: norm = the strongest first, index = as the network has them, pca = similar ones together.
        shared: one scale for all filters; by default each is as bright as it can be.
        sobel: behind Sobel: pair = both channels in gray, direction = edges by hue, gray = the filter on the gray image
            that filter and Sobel amount to together.
    """
    picture, text = filter_sheet(subject, order, shared, sobel)
    return {"filters": titled(picture, f"First-layer filters of {short_name(subject.name)}", text)}


def filter_sheet(
    subject: Subject, order: Order = "norm", shared: bool = False, sobel: Sobel = "pair"
) -> tuple[np.ndarray, str]:
    """The tiles of a network's first filters, and the sentences that explain them; options as in `draw_filters`."""
    weights = first_filters(subject.backbone)
    count, channels, height, width = weights.shape
    if channels == 3 and sobel != "pair":
        raise DeepClusterError(f"{subject.name} has no Sobel layer: leave out --sobel.")
    tiles = filter_tiles(weights[filter_order(weights, order)], shared=shared, sobel=sobel)
    layout = {
        "pair": "Left half: weights over the horizontal differences that Sobel gives (left minus right); right half:"
        " over the vertical ones (top minus bottom).",
        "direction": "Hue is the direction of the edge that a weight answers to, brightness is its strength.",
        "gray": f"Each filter is drawn together with Sobel before it, as {height + 2} x {width + 2} weights on the gray"
        " image.",
    }
    ordered = {"norm": "the strongest first", "index": "in the network's order", "pca": "similar ones together"}[order]
    sentences = [
        f"{count} filters of {height} x {width} pixels over {'two edge maps' if channels == 2 else 'colors'},"
        f" {ordered}.",
        layout[sobel] if channels == 2 else "",
        "" if channels == 2 and sobel == "direction" else "Mid-gray is zero.",
        "All filters share one scale." if shared else "Each filter has its own scale.",
    ]
    return tile_sheet(tiles, halves=channels == 2 and sobel == "pair"), " ".join(filter(None, sentences))


def first_filters(backbone: Backbone) -> np.ndarray:
    """(F, C, H, W) float32 weights of the first convolution; C is 3 for colors and 2 behind a Sobel layer. A
    DeepClusterError where the network does not begin with a convolution over its input."""
    channels = 2 if "sobel" in type(backbone.sobel).__name__.lower() else 3
    first = next((module for module in backbone.trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != channels or first.groups != 1:
        raise DeepClusterError(
            f"{backbone.name} does not begin with a convolution over {channels} channels: its first layer has no"
            " filters that can be drawn; draw activations instead."
        )
    return first.weight.detach().float().cpu().numpy()


def filter_order(filters: np.ndarray, order: Order = "norm") -> np.ndarray:
    """(F,) numbers of (F, C, H, W) filters in the order they are drawn.

    "pca" is along the first principal component of the filters scaled to unit length, regardless of sign.
    """
    rows = filters.reshape(len(filters), -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    if order == "norm":
        return np.argsort(-norms, kind="stable")
    if order == "index":
        return np.arange(len(filters))
    units = rows / np.maximum(norms, 1e-12)[:, None]
    first = np.linalg.svd(units, full_matrices=False)[2][0]
    return np.argsort(-np.abs(units @ first), kind="stable")


def filter_tiles(filters: np.ndarray, *, shared: bool = False, sobel: Sobel = "pair") -> list[np.ndarray]:
    """A small (h, w, 3) uint8 picture of each filter, one pixel a weight.

    Zero is mid-gray, and the largest weight of the filter is as far from it as colors go.

    Args:
        filters: (F, 3, H, W) as colors, or (F, 2, H, W) over the two edge maps.
        sobel: how two channels are drawn; "pair" is the paper's (arXiv 1807.05520 fig. 3), "gray" (H + 2, W + 2).
    """
    channels = filters.shape[1]
    if channels == 2 and sobel == "gray":
        filters = np.stack([on_gray(each)[None] for each in filters])
    size = np.hypot(filters[:, 0], filters[:, 1]) if sobel == "direction" and channels == 2 else np.abs(filters)
    peak = size.reshape(len(filters), -1).max(1)
    if shared:
        peak[:] = peak.max(initial=0)
    scaled = filters / np.maximum(peak, 1e-12)[:, None, None, None]
    if channels == 3 or sobel == "gray":
        return [_colors(each) for each in scaled]
    if sobel == "direction":
        return [_direction(each) for each in scaled]
    return [np.concatenate([_colors(each[:1]), _colors(each[1:])], axis=1) for each in scaled]


def on_gray(one: np.ndarray) -> np.ndarray:
    """(H + 2, W + 2) filter on the gray image that a (2, H, W) filter behind Sobel amounts to, up to padding."""
    return sum((convolve2d(weights, edges) for weights, edges in zip(one, SOBEL, strict=True)), np.zeros(()))


def tile_sheet(tiles: list[np.ndarray], side: int = 44, halves: bool = False) -> np.ndarray:
    """Tiles in full rows, about half as many as columns, every weight enlarged to a square, (H, W, 3) uint8.

    Args:
        side: least height of a tile.
        halves: each tile is a pair, to be parted by a thin line.
    """
    height, width = tiles[0].shape[:2]
    factor = max(1, -(-side // height))
    wanted = (2 * len(tiles) * height / width) ** 0.5
    near = range(max(1, round(0.65 * wanted)), round(1.5 * wanted) + 1)
    full = [each for each in near if len(tiles) % each == 0] or [max(1, round(wanted))]
    columns = min(full, key=lambda each: abs(each - wanted))
    large = [enlarged(each, factor) for each in tiles]
    if halves:
        large = [np.insert(each, [width * factor // 2] * 2, WHITE, axis=1) for each in large]
    return grid(large, columns, gap=14 if halves else 6)


def _colors(one: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (1 or 3, H, W) in [-1, 1]; 0 becomes mid-gray."""
    level = np.clip(127.5 + 127.5 * one, 0, 255).round().astype(np.uint8)
    return np.broadcast_to(level.transpose(1, 2, 0), (*one.shape[1:], 3))


def _direction(one: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a (2, H, W) field of arrows of length 1 at most."""
    hue = (np.arctan2(one[1], one[0]) / (2 * np.pi)) % 1
    length = np.clip(np.hypot(one[0], one[1]), 0, 1)
    colors = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), length], axis=-1))
    return np.round(255 * colors).astype(np.uint8)
