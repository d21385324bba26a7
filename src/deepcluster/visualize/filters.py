"""The filters of the first convolution as small pictures: in colors, or over the two edge maps of Sobel.

Pure functions of a table of weights (F, C, H, W); `first_filters` alone knows networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize.grid import PAPER, grid
from deepcluster.visualize.page import enlarged

if TYPE_CHECKING:
    from deepcluster.models.backbone import Backbone

ORDERS = ("norm", "index", "pca")
SOBELS = ("pair", "direction", "gray")
TILE = 44
"""Pixels of a tile's side, at least."""

# the Sobel pair as models/sobel.py has it: left minus right, top minus bottom
_EDGES = np.array([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]], np.float64)


def first_filters(backbone: Backbone) -> np.ndarray:
    """(F, C, H, W) float32 weights of the first convolution; C is 3 for colors and 2 behind a Sobel layer.

    Raises:
        DeepClusterError: the network does not begin with a convolution over its input.
    """
    from torch import nn

    channels = 2 if "sobel" in type(backbone.sobel).__name__.lower() else 3
    for module in backbone.trunk.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == channels and module.groups == 1:
                return module.weight.detach().float().cpu().numpy()
            break
    raise DeepClusterError(
        f"{backbone.name} does not begin with a convolution over {channels} channels: its first layer has no filters"
        " that can be drawn; draw activations in their place."
    )


def ordered(filters: np.ndarray, order: str = "norm") -> np.ndarray:
    """(F,) numbers of (F, C, H, W) filters in the order they are drawn.

    Args:
        order: "norm" = the strongest first; "index" = as the network has them; "pca" = along the first principal
            component of the filters scaled to unit length, signs put aside, so that like ones stand together.

    Raises:
        DeepClusterError: there is no such order.
    """
    rows = filters.reshape(len(filters), -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    if order == "norm":
        return np.argsort(-norms, kind="stable")
    if order == "index":
        return np.arange(len(filters))
    if order == "pca":
        units = rows / np.maximum(norms, 1e-12)[:, None]
        first = np.linalg.svd(units, full_matrices=False)[2][0]
        return np.argsort(-np.abs(units @ first), kind="stable")
    raise DeepClusterError(f"order={order!r} is no order of filters: choose {', '.join(ORDERS)}.")


def tiles(filters: np.ndarray, *, shared: bool = False, sobel: str = "pair") -> list[np.ndarray]:
    """A small (h, w, 3) uint8 picture of each filter, one pixel a weight.

    Zero is mid-gray, and the largest weight of the filter is as far from it as colors go.

    Args:
        filters: (F, 3, H, W) as colors, or (F, 2, H, W) over the two edge maps.
        shared: one scale for all filters, so that weak ones look weak.
        sobel: how two channels are drawn. "pair": both in gray, left the one over horizontal differences, right the
            one over vertical ones, as in the paper (arXiv 1807.05520 fig. 3). "direction": the hue is the direction
            of the edge, brightness its weight. "gray": the filter of (H + 2, W + 2) on the gray image that the filter
            and Sobel amount to together.

    Raises:
        DeepClusterError: another number of channels, or no such way to draw.
    """
    count, channels = filters.shape[:2]
    if sobel not in SOBELS:
        raise DeepClusterError(f"sobel={sobel!r} is no way to draw filters: choose {', '.join(SOBELS)}.")
    if channels == 3:
        return [_colors(each) for each in _scaled(filters, shared)]
    if channels != 2:
        raise DeepClusterError(f"Filters over {channels} channels cannot be drawn: only 3 colors or 2 edge maps.")
    if sobel == "gray":
        return [_colors(each) for each in _scaled(np.stack([on_gray(each)[None] for each in filters]), shared)]
    scaled = _scaled(filters, shared)
    if sobel == "direction":
        peak = np.hypot(filters[:, 0], filters[:, 1]).reshape(count, -1).max(1)
        peak = np.full(count, peak.max(initial=0)) if shared else peak
        return [_direction(each / max(top, 1e-12)) for each, top in zip(filters, peak, strict=True)]
    return [np.concatenate([_colors(each[:1]), _colors(each[1:])], axis=1) for each in scaled]


def on_gray(one: np.ndarray) -> np.ndarray:
    """(H + 2, W + 2) filter on the gray image that a (2, H, W) filter behind Sobel amounts to, up to padding."""
    height, width = one.shape[1:]
    found = np.zeros((height + 2, width + 2))
    for row in range(3):
        for column in range(3):
            part = np.tensordot(_EDGES[:, row, column], one, axes=(0, 0))
            found[row : row + height, column : column + width] += part
    return found


def filter_sheet(
    pictures: list[np.ndarray], columns: int | None = None, side: int = TILE, halves: bool = False
) -> np.ndarray:
    """Tiles in rows, every weight enlarged to a square, (H, W, 3) uint8.

    Args:
        halves: each tile is a pair, which a thin line is to part.
        columns: by default about half as many rows as columns.
        side: pixels of a tile's height at least.
    """
    height, width = pictures[0].shape[:2]
    factor = max(1, -(-side // height))
    columns = columns or _columns(len(pictures), (2 * len(pictures) * height / width) ** 0.5)
    large = [enlarged(each, factor) for each in pictures]
    if halves:
        middle = width * factor // 2
        large = [np.insert(each, [middle] * 2, PAPER, axis=1) for each in large]
    return grid(large, columns, gap=14 if halves else 6)


def _columns(count: int, wanted: float) -> int:
    """About as many columns as wanted, and if possible so many that all rows are full."""
    near = range(max(1, round(0.65 * wanted)), round(1.5 * wanted) + 1)
    full = [columns for columns in near if count % columns == 0] or [max(1, round(wanted))]
    return min(full, key=lambda columns: abs(columns - wanted))


def _scaled(filters: np.ndarray, shared: bool) -> np.ndarray:
    """The same divided by the largest absolute weight, of each filter or of all."""
    peak = np.abs(filters).reshape(len(filters), -1).max(1)
    peak = np.full(len(filters), peak.max(initial=0)) if shared else peak
    return filters / np.maximum(peak, 1e-12)[:, None, None, None]


def _colors(one: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (1 or 3, H, W) in [-1, 1]; 0 becomes mid-gray."""
    level = np.clip(127.5 + 127.5 * one, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(level.transpose(1, 2, 0), (*one.shape[1:], 3)))


def _direction(one: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a (2, H, W) field of arrows of length 1 at most."""
    from matplotlib.colors import hsv_to_rgb

    hue = (np.arctan2(one[1], one[0]) / (2 * np.pi)) % 1
    length = np.clip(np.hypot(one[0], one[1]), 0, 1)
    return (255 * hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), length], axis=-1))).round().astype(np.uint8)
