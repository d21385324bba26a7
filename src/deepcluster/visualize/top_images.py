"""The images that excite each filter of a layer most: one pass over all of them, the best few kept.

As in the paper (arXiv 1807.05520 §4.1, figures 4 and 5), an image's score is the spatial mean of the filter's map
after the ReLU; by the maximum of the map, at will.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps
from deepcluster.visualize.grid import grid, thumbnail
from deepcluster.visualize.page import below, beside, line
from deepcluster.visualize.receptive_fields import Field
from deepcluster.visualize.style import INK

SCORES = ("mean", "max")


@dataclass
class Best:
    """The best images of F filters so far, each filter's best first; of equal ones the first that came.

    Attributes:
        score: (F, k) float32; -inf = no image yet.
        index: (F, k) int64 positions in the source; -1 = none.
        place: (F, k, 2) int64 row and column of the map's maximum.
        side: (2,) height and width of the map.
    """

    score: Tensor
    index: Tensor
    place: Tensor
    side: tuple[int, int] = (1, 1)

    @classmethod
    def none(cls, filters: int, count: int) -> Best:
        """Before the first image."""
        return cls(
            torch.full((filters, count), -torch.inf),
            torch.full((filters, count), -1),
            torch.zeros(filters, count, 2, dtype=torch.int64),
        )

    def see(self, maps: Tensor, index: Tensor, score: str = "mean") -> None:
        """Takes in (B, F, H, W) maps of the images `index` (B,).

        Raises:
            DeepClusterError: there is no such score.
        """
        if score not in SCORES:
            raise DeepClusterError(f"score={score!r} is no way to rank images: choose mean or max.")
        height, width = maps.shape[2:]
        self.side = (height, width)
        peak, where = maps.flatten(2).max(2)
        value = peak if score == "max" else maps.float().mean((2, 3))
        place = torch.stack([where // width, where % width], dim=2)
        count = self.score.shape[1]
        values = torch.cat([self.score, value.float().T.cpu()], dim=1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
        self.score = values.gather(1, order)
        self.index = torch.cat([self.index, index.cpu().expand(len(values), -1)], dim=1).gather(1, order)
        places = torch.cat([self.place, place.transpose(0, 1).cpu()], dim=1)
        self.place = places.gather(1, order[..., None].expand(-1, -1, 2))


def maps_of(activations: Tensor) -> Tensor:
    """(B, F, H, W) of what a tap gave: maps as they are, vectors as maps of one place, tokens as a row of them.

    A tap whose output was not rectified, such as a residual block's in some networks, is taken as it is.
    """
    if activations.ndim == 4:
        return activations
    if activations.ndim == 3:
        return activations.transpose(1, 2)[:, :, None, :]
    return activations[:, :, None, None]


@torch.inference_mode()
def top_images(
    backbone: Backbone,
    pixels: Pixels,
    filters: Mapping[str, Sequence[int]],
    *,
    count: int = 9,
    score: str = "mean",
    device: str = "cpu",
    batch_size: int = 128,
    check: Callable[[int], None] = lambda images: None,
) -> dict[str, Best]:
    """The `count` best images of some filters of several layers, in one pass over all images.

    Args:
        backbone: on `device`, in evaluation mode.
        filters: tap -> numbers of its filters.
        score: "mean" or "max" of the filter's map.
        check: called with the number of images after each batch.

    Raises:
        DeepClusterError: there is no such tap or filter.
    """
    loader = Loader(
        pixels,
        pixels.good,
        batch_size=batch_size,
        transform=CenterCrop(backbone.image_size, backbone.mean, backbone.std),
        device=device,
    )
    best = {tap: Best.none(len(numbers), count) for tap, numbers in filters.items()}
    for batch in loader:
        with read_taps(backbone, filters) as seen:
            backbone(batch.views[0])
        for tap, numbers in filters.items():
            maps = maps_of(seen[tap])
            there_is(tap, numbers, maps.shape[1])
            best[tap].see(maps[:, list(numbers)], batch.index, score)
        check(len(batch.index))
    return best


def there_is(tap: str, numbers: Sequence[int], width: int) -> None:
    """
    Raises:
        DeepClusterError: the layer does not have one of these filters.
    """
    for number in numbers:
        if not 0 <= number < width:
            raise DeepClusterError(f"{tap} has no filter {number}: its {width:,} filters are 0 to {width - 1}.")


def seen_pixels(backbone: Backbone, pixels: Pixels, index: np.ndarray) -> dict[int, np.ndarray]:
    """(S, S, 3) uint8 of each image as the network sees it: resized and cropped, before normalization."""
    wanted = np.unique(index[index >= 0])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
    crop = CenterCrop(backbone.image_size, backbone.mean, backbone.std)
    loader = Loader(pixels, wanted, batch_size=64, transform=crop)
    found: dict[int, np.ndarray] = {}
    for batch in loader:
        colors = ((batch.views[0] * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        found |= {int(number): colors[row].numpy() for row, number in enumerate(batch.index)}
    return found


def crops(best: Best, row: int, images: Mapping[int, np.ndarray], field: Field | None) -> list[np.ndarray]:
    """What the strongest place of one filter saw of each of its images, (h, w, 3) uint8 of various sizes.

    Args:
        row: of `best`.
        images: as the network saw them.
        field: of the layer; None = the whole image.
    """
    found = []
    for index, (y, x) in zip(best.index[row].tolist(), best.place[row].tolist(), strict=True):
        if index < 0:
            continue
        image = images[index]
        if field is None:
            found.append(image)
            continue
        top, left, bottom, right = field.box(y, x, *image.shape[:2])
        found.append(image[top:bottom, left:right])
    return found


def top_sheet(
    best: Best,
    numbers: Sequence[int],
    images: Mapping[int, np.ndarray],
    field: Field | None,
    *,
    side: int = 72,
    columns: int = 4,
    extra: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """A block for each filter: its number, its best images whole, and beside them what the filter saw of each.

    Args:
        numbers: of the filters, one a row of `best`.
        images: index -> the image as the network saw it.
        side: of a thumbnail, in pixels.
        columns: blocks in a row.
        extra: a picture of each filter to stand at the left, such as its activation maximized, (H, W, 3) uint8.
    """
    edge = max(1, round(best.score.shape[1] ** 0.5))
    blocks = []
    for row, number in enumerate(numbers):
        whole = [thumbnail(images[index], side) for index in best.index[row].tolist() if index >= 0]
        parts = [grid(whole, edge, gap=2)]
        if field is not None:
            seen = [fitted(each, side) for each in crops(best, row, images, field)]
            parts.append(grid(seen, edge, gap=2))
        if extra is not None:
            parts.insert(
                0, np.pad(thumbnail(extra[row], parts[0].shape[0] - 4), ((2, 2), (2, 2), (0, 0)), constant_values=255)
            )
        pictures = beside(parts, gap=6)
        values = best.score[row][best.index[row] >= 0]
        scores = f"  ({values[0]:#.3g} to {values[-1]:#.3g})" if len(values) and pictures.shape[1] > 240 else ""
        heading = line(f"filter {number}{scores}", pictures.shape[1], size=13, color=INK)
        blocks.append(below([heading, pictures], gap=0))
    return grid(same_size(blocks), columns, gap=10)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An (h, w, 3) picture enlarged or shrunk to a square, in its own proportions; the rest is pale gray."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    small = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
    page = np.full((side, side, 3), 232, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    page[top : top + size[1], left : left + size[0]] = small
    return page


def same_size(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures padded with white at the right and below to the size of the largest."""
    height, width = (max(each.shape[axis] for each in pictures) for axis in (0, 1))
    return [
        np.pad(each, ((0, height - each.shape[0]), (0, width - each.shape[1]), (0, 0)), constant_values=255)
        for each in pictures
    ]
