"""Batches of labelled images in a given order, with the crops that linear probes are trained and judged on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.data.augment import augment, center_crop
from deepcluster.data.cache import StreamedPixels
from deepcluster.data.decode_pool import decode_batches
from deepcluster.data.loader import prefetched
from deepcluster.data.resample import resize_center
from deepcluster.data.views import ViewGroup, draw
from deepcluster.evaluate.linear.parts import Part
from deepcluster.random import seeded
from deepcluster.types import Batch

Make = Callable[[Sequence[np.ndarray], torch.Generator, torch.device], tuple[Tensor, ...]]
"""Pictures (H, W, 3) uint8, a generator, a device -> views (B, 3, S, S) float32, normalized."""

_STAND_IN = np.zeros((1, 1, 3), np.uint8)


class Feed:
    """Iterates over (rows, views): places in the part, (b,) int64, and views of these images.

    Images that cannot be decoded are left out of their batch, without a change of what is drawn for the others.

    Args:
        part: labelled images.
        order: (m,) places in the part, in the order they are shown.
        batch_size: images a batch; the last may be smaller.
        make: makes the views.
        key: what is drawn depends on this and on the number of the batch.
        device: where views are made and left.
    """

    def __init__(
        self,
        part: Part,
        order: np.ndarray,
        batch_size: int,
        make: Make,
        key: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self.part = part
        self.batches = [np.asarray(order[first : first + batch_size]) for first in range(0, len(order), batch_size)]
        self.make = make
        self.key = key
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        with contextlib.closing(prefetched(self._made(), 2)) as batches:
            for batch in batches:
                if len(batch.index):
                    yield batch.index.numpy(), batch.views

    def _made(self) -> Generator[Batch, None, None]:
        for number, (rows, images) in enumerate(self._pictures()):
            keep = [place for place, image in enumerate(images) if image is not None]
            views: tuple[Tensor, ...] = ()
            if keep:
                full = [_STAND_IN if image is None else image for image in images]
                views = self.make(full, seeded(*self.key, number), self.device)
                if len(keep) < len(full):
                    views = tuple(view[keep] for view in views)
            yield Batch(torch.from_numpy(rows[keep]), views, torch.tensor(keep), len(rows))

    def _pictures(self) -> Iterator[tuple[np.ndarray, list[np.ndarray | None]]]:
        pixels = self.part.pixels
        wanted = [self.part.index[rows] for rows in self.batches]
        if not isinstance(pixels, StreamedPixels):
            for rows, index in zip(self.batches, wanted, strict=True):
                yield rows, pixels.gather(index)
            return
        arriving = decode_batches(pixels.source, wanted, pixels.short_side, pixels.workers, pixels.image_bytes)
        for rows, decoded in zip(self.batches, arriving, strict=True):
            pixels.bad.update(decoded.reasons)
            yield rows, decoded.images()


@dataclass(frozen=True)
class Crops:
    """The views of one network's probes.

    Attributes:
        size: side of a view, in pixels.
        mean, std: what the network expects images to be normalized with.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def short(self) -> int:
        """Shorter side that images are resized to before a crop: 256 for 224."""
        return round(self.size * 256 / 224)

    def center(self, images: Sequence[np.ndarray], generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
        """One view: the package's plain one."""
        return (center_crop(images, self.size, device, self.mean, self.std),)

    def ten(self, images: Sequence[np.ndarray], generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        """Ten views: corners and center of the resized image and of its mirror image, in torchvision's order."""
        cut: list[list[Tensor]] = [[] for _ in range(10)]
        for image in images:
            picture = torch.from_numpy(image.transpose(2, 0, 1)[None])
            height, width = (self.short * side // min(image.shape[:2]) for side in image.shape[:2])
            picture = F.interpolate(picture, (height, width), mode="bilinear", antialias=True)
            down, right = height - self.size, width - self.size
            corners = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))
            for place, (top, left) in enumerate(corners):
                for turned, whole in enumerate((picture, picture.flip(3))):
                    cut[place + 5 * turned].append(whole[0, :, top : top + self.size, left : left + self.size])
        return tuple(self._normalized(torch.stack(place).to(device)) for place in cut)

    def random(self, images: Sequence[np.ndarray], generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
        """One view: a random crop of the central square, and perhaps its mirror image.

        Images up to 64 px are not made larger for it: they are shifted by up to an eighth, black outside.
        """
        if self.size <= 64:
            side, edge = self.size, self.size // 8
            small = F.pad(resize_center(images, side, side, device), (edge,) * 4)
        else:
            side, edge = self.short, 0
            small = resize_center(images, side, side, device)
        room = side + 2 * edge - self.size + 1
        drawn = torch.rand((len(images), 3), generator=generator, dtype=torch.float64)
        corner = (drawn[:, :2] * room).long()
        steps = torch.arange(self.size)
        rows = corner[:, :1] + steps
        columns = corner[:, 1:] + torch.where(drawn[:, 2:] < 0.5, steps.flip(0), steps)
        picture = torch.arange(len(images)).to(device)[:, None, None]
        view = small[picture, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]  # (B, S, S, 3)
        return (self._normalized(view.permute(0, 3, 1, 2)),)

    def resized(
        self,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        color: float = 0.0,
    ) -> Make:
        """Random resized crops with a flip; with `color`, brightness, contrast and saturation vary by so much, and
        colors along the principal axes of ImageNet's (Krizhevsky et al. 2012, §4.1)."""
        views = ViewGroup(
            size=self.size,
            crop_scale=scale,
            crop_ratio=ratio,
            brightness=color,
            contrast=color,
            saturation=color,
            mean=self.mean,
            std=self.std,
        )

        def make(images: Sequence[np.ndarray], generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
            sizes = np.array([image.shape[:2] for image in images])
            view = augment(images, draw(views, sizes, generator), views, device)
            if color:
                shift = (torch.randn(len(images), 3, generator=generator) * LIGHT * PRINCIPAL_STD) @ PRINCIPAL.T
                view += (shift / torch.tensor(self.std)).to(device)[:, :, None, None]
            return (view,)

        return make

    def _normalized(self, view: Tensor) -> Tensor:
        """(B, 3, S, S) 0 ... 255 -> float32, channels last in memory."""
        mean, std = (torch.tensor(three, device=view.device).view(3, 1, 1) * 255 for three in (self.mean, self.std))
        return view.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


LIGHT = 0.1
PRINCIPAL_STD = torch.tensor([0.2175, 0.0188, 0.0045])
PRINCIPAL = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Principal axes of ImageNet's colors, (color, axis), and the deviations along them, as published with many codes."""
