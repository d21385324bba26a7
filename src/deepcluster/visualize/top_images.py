"""The images that excite each filter of a layer most: one pass over all of them, the best few kept.

As in the paper (arXiv 1807.05520 §4.1, figures 4 and 5), an image's score is the spatial mean of the filter's map
after the ReLU; optionally the maximum of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.naming import short_name
from deepcluster.data.transforms import CenterCrop
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps
from deepcluster.visualize.activations import Recipe, filter_objective, maximize
from deepcluster.visualize.clustered_images import SILENT, open_pixels
from deepcluster.visualize.images import grid, letterboxed, padded, side_by_side, stacked, text_line, thumbnail, titled
from deepcluster.visualize.layers import choose_filters, deepest_layer, feature_maps
from deepcluster.visualize.receptive_fields import ReceptiveField, receptive_field
from deepcluster.visualize.style import Picture, Pictures

Score = Literal["mean", "max"]


def draw_top_images(
    subject: Subject,
    *,
    data: Any = None,
    taps: tuple[str, ...] = (),
    filters: tuple[int, ...] = (),
    count: int = 12,
    images: int = 9,
    score: Score = "mean",
    beside: Recipe | None = None,
    steps: int | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """The nine images that excite each filter most, whole and cropped to what it saw (the paper's figures 4 and 5).

    Args:
        data: images to search; by default those the run was trained on.
        taps: layers, such as conv1 conv3 conv5, all in one pass; by default the deepest one that has maps.
        filters: numbers of filters of each layer; by default `count` of them drawn at random.
        count: how many filters of each layer where none are named.
        images: images of each filter.
        score: what ranks the images: the mean of the filter's map (the paper's), or its maximum.
        beside: also draw, at the left, the image found to excite the filter most by this recipe of `activations`.
        steps: steps of that recipe; by default its own.
        seed: of the filters that are drawn.
    """
    if steps is not None and beside is None:
        raise DeepClusterError("--steps belong to a recipe: name it by --beside paper or --beside fourier.")
    if images < 1:
        raise DeepClusterError(f"--images {images} is not a number of images: ask for one or more.")
    backbone = subject.backbone.to(subject.device).eval()
    taps = taps or (deepest_layer(backbone),)
    wanted = {tap: choose_filters(backbone, tap, filters, count, seed) for tap in taps}
    pixels = open_pixels(subject, data)
    with screen.bar("images", len(pixels)) as bar:
        ranking = rank_images(backbone, pixels, wanted, count=images, score=score, device=subject.device, check=bar)
    pictures = network_input(backbone, pixels, np.concatenate([each.index.flatten() for each in ranking.values()]))
    pages: dict[str, Picture] = {}
    for tap, ranked in ranking.items():
        field = receptive_field(backbone, tap)
        if field is not None and min(field.size) >= backbone.image_size:
            field = None
        extra = None
        if beside is not None:
            objective_of = filter_objective(tap, beside)
            extra = maximize(subject, objective_of, wanted[tap], beside, {"steps": steps}, seed=seed, screen=screen)
        columns = (3 if field else 4) - (extra is not None)
        sheet = top_sheet(ranked, wanted[tap], pictures, field, columns=columns, side=64 if field else 84, extra=extra)
        text = (
            f"{short_name(subject.name)}, out of {len(pixels):,} images of {short_name(pixels.source.name)}, by the"
            f" {'mean' if score == 'mean' else 'maximum'} of the filter's map."
        )
        text += " At the left, an image found to excite the filter." if extra else ""
        if field is not None:
            size = f"{field.size[0]} x {field.size[1]}"
            text += f" At the right, the {size} pixels that the strongest position of the map depends on."
        else:
            text += " Each position of the map depends on the whole image."
        title = f"The {images} images that excite filters of {tap} most"
        pages[f"top-images-{tap.replace('/', '-')}"] = titled(sheet, title, text)
    return pages


@dataclass
class Ranking:
    """The best images of F filters so far, each filter's best first; of equal ones the first that came.

    Attributes:
        score: (F, k) float32; -inf = no image yet.
        index: (F, k) int64 positions in the source; -1 = none.
        peak: (F, k, 2) int64 row and column of the map's maximum.
    """

    score: Tensor
    index: Tensor
    peak: Tensor

    @classmethod
    def empty(cls, filters: int, count: int) -> Ranking:
        """Before the first image."""
        peak = torch.zeros(filters, count, 2, dtype=torch.int64)
        return cls(torch.full((filters, count), -torch.inf), torch.full((filters, count), -1), peak)

    def update(self, maps: Tensor, index: Tensor, score: Score = "mean") -> None:
        """Take in (B, F, H, W) maps of the images `index` (B,)."""
        highest, where = maps.flatten(2).max(2)
        value = highest if score == "max" else maps.float().mean((2, 3))
        peak = torch.stack([where // maps.shape[3], where % maps.shape[3]], dim=2).transpose(0, 1)
        scores = torch.cat([self.score, value.float().T.cpu()], dim=1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.score.shape[1]]
        self.score = scores.gather(1, order)
        self.index = torch.cat([self.index, index.cpu().expand(len(scores), -1)], dim=1).gather(1, order)
        self.peak = torch.cat([self.peak, peak.cpu()], dim=1).take_along_dim(order[..., None], dim=1)


@torch.inference_mode()
def rank_images(
    backbone: Backbone,
    pixels: Pixels,
    filters: Mapping[str, Sequence[int]],
    *,
    count: int = 9,
    score: Score = "mean",
    device: str = "cpu",
    batch_size: int = 128,
    check: Callable[[int], None] = lambda images: None,
) -> dict[str, Ranking]:
    """The `count` best images of the filters (numbers by tap) of several layers, in one pass over all images.

    Args:
        backbone: on `device`, in evaluation mode.
        check: called with the number of images after each batch.
    """
    ranking = {tap: Ranking.empty(len(numbers), count) for tap, numbers in filters.items()}
    for batch in _loader(backbone, pixels, pixels.good, batch_size, device):
        with read_taps(backbone, filters) as activations:
            backbone(batch.views[0])
        for tap, numbers in filters.items():
            ranking[tap].update(feature_maps(activations[tap])[:, list(numbers)], batch.index, score)
        check(len(batch.index))
    return ranking


def network_input(backbone: Backbone, pixels: Pixels, index: np.ndarray) -> dict[int, np.ndarray]:
    """(S, S, 3) uint8 of each image as the network sees it: resized and cropped, before normalization."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
    found: dict[int, np.ndarray] = {}
    for batch in _loader(backbone, pixels, np.unique(index[index >= 0]), 64, "cpu"):
        colors = ((batch.views[0] * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        found |= dict(zip(batch.index.tolist(), colors, strict=True))
    return found


def crops(
    ranked: Ranking, row: int, images: Mapping[int, np.ndarray], field: ReceptiveField | None
) -> list[np.ndarray]:
    """The pixels that a filter's strongest position depends on (all without `field`), in each of its images."""
    found = []
    for index, (y, x) in zip(ranked.index[row].tolist(), ranked.peak[row].tolist(), strict=True):
        if index >= 0:
            image = images[index]
            top, left, bottom, right = field.box(y, x, *image.shape[:2]) if field else (0, 0, *image.shape[:2])
            found.append(image[top:bottom, left:right])
    return found


def top_sheet(
    ranked: Ranking,
    numbers: Sequence[int],
    images: Mapping[int, np.ndarray],
    field: ReceptiveField | None,
    *,
    side: int = 72,
    columns: int = 4,
    extra: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """A block for each filter: its number, its best images whole, and beside them what the filter saw of each.

    Args:
        numbers: of the filters, one a row of `ranked`.
        images: index -> the image as the network sees it.
        field: None = no crops.
        extra: an image of each filter to stand at the left, such as one found to excite it, (H, W, 3) uint8.
    """
    edge = max(1, round(ranked.score.shape[1] ** 0.5))
    blocks = []
    for row, number in enumerate(numbers):
        parts = [grid([thumbnail(each, side) for each in crops(ranked, row, images, None)], edge, gap=2)]
        if field is not None:
            parts.append(grid([letterboxed(each, side) for each in crops(ranked, row, images, field)], edge, gap=2))
        if extra is not None:
            large = thumbnail(extra[row], parts[0].shape[0] - 4)
            parts.insert(0, padded(large, top=2, bottom=2, left=2, right=2))
        block = side_by_side(parts, gap=6)
        values = ranked.score[row][ranked.index[row] >= 0]
        scores = f"  ({values[0]:#.3g} to {values[-1]:#.3g})" if len(values) and block.shape[1] > 240 else ""
        heading = text_line(f"filter {number}{scores}", block.shape[1], size=13)
        blocks.append(stacked([heading, block], gap=0))
    return grid(blocks, columns, gap=10)


def _loader(backbone: Backbone, pixels: Pixels, index: np.ndarray, batch_size: int, device: str) -> Loader:
    crop = CenterCrop(backbone.image_size, backbone.mean, backbone.std)
    return Loader(pixels, index, batch_size=batch_size, transform=crop, device=device)
