"""Regions of images: anchors, pooled maps, and what another program proposed, such as Selective Search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, roi_align, roi_pool

from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.voc.maps import Grid
from deepcluster.reading import judged, read_npz

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors of each size (arXiv 1506.01497 §3.3)."""
NEAR = 0.1
"""Fast R-CNN learns background from proposals of at least this IoU with an object (arXiv 1504.08083 §2.3)."""


class Anchors(nn.Module):
    """Boxes of some sides and the shapes `RATIOS` around the center of each cell of some maps.

    torchvision's own take the first cell to lie at pixel 0, which padding moves.

    Args:
        grids: where the cells lie, one for each map.
        sides: for each map, the square roots of the boxes' areas, in pixels.
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
        boxes = []
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
            boxes.append((centers + half).reshape(-1, 4))
        return [torch.cat(boxes)] * len(images.image_sizes)


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
            pooled: Tensor = roi_pool(cells, [box + shift for box in boxes], self.side, 1 / stride)
            return pooled
        moved = [box + (stride / 2 - 0.5 - first) for box in boxes]
        aligned: Tensor = roi_align(cells, moved, self.side, 1 / stride, sampling_ratio=2, aligned=True)
        return aligned


def near_objects(boxes: Tensor, truth: Tensor) -> Tensor:
    """Those of the boxes (P, 4) whose IoU with the truth (G, 4) is `NEAR` or more; all where none's is."""
    if not len(truth) or not len(boxes):
        return boxes
    near = box_iou(boxes, truth).amax(1) >= NEAR
    return boxes[near] if near.any() else boxes


def read_proposals(files: Sequence[Path | str], ids: Sequence[str]) -> list[np.ndarray]:
    """(P, 4) float32 boxes for each of the images named `ids`: x0, y0, x1, y1 in pixels from 0, x1 and y1 exclusive.

    Args:
        files: .npz with one (P, 4) array of such boxes under each image's name; or .mat (up to version 7) with
            `images`, a cell of names, and `boxes`, a cell of (P, 4) rows y0, x0, y1, x1 from 1, the last inclusive,
            the form in which the regions of Selective Search were published.

    Raises:
        DeepClusterError: a file is missing, damaged or of another form, or an image has no proposals.
    """
    found: dict[str, np.ndarray] = {}
    advice = "give a .npz with one (P, 4) array for each image, or a .mat with `images` and `boxes`."
    for path in map(Path, files):
        with judged(path, advice):
            boxes = _read_mat(path) if path.suffix.lower() == ".mat" else read_npz(path, advice=advice)
        for name, rows in boxes.items():
            if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
                raise DeepClusterError(
                    f"The proposals of {name} in {path} are not (P, 4) numbers: write x0, y0, x1, y1."
                )
            found[name] = np.ascontiguousarray(rows, np.float32)
    missing = [name for name in ids if name not in found or not len(found[name])]
    if missing:
        raise DeepClusterError(
            f"There are no proposals for {len(missing)} of {counted(len(ids), 'image')}, such as {missing[0]}: give"
            " --proposals files that hold those of the training and the test images."
        )
    return [found[name] for name in ids]


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    content = loadmat(path, variable_names=("images", "boxes"))
    names = [str(np.ravel(cell)[0]) for cell in content["images"].ravel()]
    rows = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in content["boxes"].ravel()]
    # y0, x0, y1, x1 from 1, the last inclusive
    return {name: cell[:, [1, 0, 3, 2]] - (1, 1, 0, 0) for name, cell in zip(names, rows, strict=True)}
