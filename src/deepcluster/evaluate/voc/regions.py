"""Boxes around the cells of a map, and maps read inside boxes: what every detector needs, where cells really lie.

This file knows no backbone and no training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, box_iou, roi_align, roi_pool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from deepcluster.evaluate.voc.maps import Grid

RATIOS = (0.5, 1.0, 2.0)
PYRAMID_WIDTH = 256
BACKGROUND = (0.1, 0.5)
"""Fast R-CNN learns background from proposals of such overlap with the truth (arXiv 1504.08083 §2.3)."""


class Anchors(nn.Module):
    """Boxes of some sides and the shapes `RATIOS` around the center of each cell of some maps.

    Args:
        grids: where the cells lie, one for each map.
        sides: for each map, the roots of the boxes' areas, in pixels.
    """

    def __init__(self, grids: Sequence[Grid], sides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.sides = tuple(tuple(level) for level in sides)

    def num_anchors_per_location(self) -> list[int]:
        """Boxes around each cell, for each map."""
        return [len(level) * len(RATIOS) for level in self.sides]

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """(A, 4) for each image: all boxes of all maps, row by row."""
        found = []
        for grid, sides, cells in zip(self.grids, self.sides, maps, strict=True):
            device = cells.device
            side = torch.tensor(sides, dtype=torch.float32, device=device).repeat(len(RATIOS))
            root = torch.tensor(RATIOS, device=device).sqrt().repeat_interleave(len(sides))
            half = torch.stack([-side / root, -side * root, side / root, side * root], 1) / 2
            rows, columns = (
                grid.first + 0.5 + grid.stride * torch.arange(length, device=device) for length in cells.shape[-2:]
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centers = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            found.append((centers + half).reshape(-1, 4))
        return [torch.cat(found)] * len(images.image_sizes)


class RegionPool(nn.Module):
    """(R, C, side, side) from one map and R boxes, where the cells of that map really lie.

    Args:
        grid: of the map.
        side: cells that a region is pooled to.
        kind: "max" takes the cells nearest to a region's first and last pixel and the maxima between them, "align"
            reads the map between its cells.
    """

    def __init__(self, grid: Grid, side: int, kind: Literal["max", "align"]) -> None:
        super().__init__()
        self.grid, self.side, self.kind = grid, side, kind

    def forward(self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        (cells,) = maps.values()
        stride, first = self.grid.stride, self.grid.first
        if self.kind == "max":
            shift = boxes[0].new_tensor([-first, -first, -first - 1, -first - 1])
            return roi_pool(cells, [box + shift for box in boxes], self.side, 1 / stride)
        moved = [box + (stride / 2 - 0.5 - first) for box in boxes]
        return roi_align(cells, moved, self.side, 1 / stride, sampling_ratio=2, aligned=True)


class Pyramid(nn.Module):
    """The four maps of a ResNet and one more, all of `PYRAMID_WIDTH` channels."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(list(channels), PYRAMID_WIDTH, LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.network(OrderedDict((str(level), cells) for level, cells in enumerate(maps)))


def hard(boxes: Tensor, truth: Tensor) -> Tensor:
    """Those of the boxes (P, 4) that overlap the truth (G, 4) by `BACKGROUND[0]` or more; all where none does."""
    if not len(truth) or not len(boxes):
        return boxes
    near = box_iou(boxes, truth).amax(1) >= BACKGROUND[0]
    return boxes[near] if near.any() else boxes
