"""From the decoded images of a batch to its views: what a `Loader` calls as its `transform`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.data.augment import augment, center_crop, normalized, resized_side
from deepcluster.data.resample import resize_center
from deepcluster.data.resident import shapes_of
from deepcluster.data.views import IMAGENET_MEAN, IMAGENET_STD, ViewGroup, draw

Images = Sequence[np.ndarray]
"""(H, W, 3) uint8 each, of any sizes."""
Device = torch.device | str

PRINCIPAL_STD = torch.tensor([0.2175, 0.0188, 0.0045])
PRINCIPAL_AXES = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Principal axes of ImageNet's colors, (color, axis), and the deviations along them, as published with many codes."""


class Transform(Protocol):
    """Makes views of images; the same ones for the same images and generator."""

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        """Views of B images.

        Args:
            images: B decoded images.
            generator: source of all random numbers, on the CPU.
            device: where the views are made and left.
            first: position of these images in a batch that several processes share: an image gets the same random
                numbers whichever process makes its views.
            total: images of that batch; 0 = these are all.

        Returns:
            For each view (B, 3, S, S) float32, normalized, channels last in memory.
        """
        ...


class RandomViews:
    """Random views of each image, group after group; with a second group of small ones, SwAV's multi-crop
    (arXiv 2006.09882).

    Args:
        groups: views of one size each; what is drawn for a group does not depend on those after it.
        lighting: all colors of a view are shifted along the principal axes of ImageNet's by a normal draw with this
            standard deviation (Krizhevsky et al. 2012, §4.1: 0.1); 0 = none.
    """

    def __init__(self, *groups: ViewGroup, lighting: float = 0.0) -> None:
        self.groups = groups
        self.lighting = lighting

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        last = first + len(images)
        shapes = np.ones((total or last, 2), np.int64)  # no image's draw depends on the shape of another
        shapes[first:last] = shapes_of(images)
        views = []
        for group in self.groups:
            for _ in range(group.count):
                view = augment(images, draw(group, shapes, generator).part(first, last), group, device)
                if self.lighting:
                    along = torch.randn(len(shapes), 3, generator=generator)[first:last] * self.lighting
                    shift = (along * PRINCIPAL_STD) @ PRINCIPAL_AXES.T / torch.tensor(group.std)
                    view += shift.to(device)[:, :, None, None]
                views.append(view)
        return tuple(views)


@dataclass(frozen=True)
class _Crop:
    size: int = 224  # height and width, in pixels
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class CenterCrop(_Crop):
    """One view, without any draw: resized, and cropped about the center; see `center_crop`."""

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        return (center_crop(images, self.size, device, self.mean, self.std),)


@dataclass(frozen=True)
class RandomCrop(_Crop):
    """One view: a random crop of the resized central square, mirrored half of the time.

    Images up to 64 px are not enlarged for it: they are shifted by up to an eighth, black outside.
    """

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        side = resized_side(self.size)
        edge = self.size // 8 if side == self.size else 0
        squares = F.pad(resize_center(images, side, side, torch.device(device)), (edge,) * 4)
        drawn = torch.rand((total or len(images), 3), generator=generator, dtype=torch.float64)[first:][: len(images)]
        corner = (drawn[:, :2] * (side + 2 * edge - self.size + 1)).long()
        steps = torch.arange(self.size)
        rows = corner[:, :1] + steps
        columns = corner[:, 1:] + torch.where(drawn[:, 2:] < 0.5, steps.flip(0), steps)
        image = torch.arange(len(images), device=squares.device)[:, None, None]
        view = squares[image, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]  # (B, S, S, 3)
        return (normalized(view.permute(0, 3, 1, 2), self.mean, self.std),)


@dataclass(frozen=True)
class TenCrop(_Crop):
    """Ten views: corners and center of the resized image, and of its mirror image, in torchvision's order."""

    @property
    def resized(self) -> int:
        """Shorter side that images are resized to, in pixels."""
        return round(self.size * 256 / 224)

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        from torchvision.transforms.functional import ten_crop

        crops = []
        for image in images:
            picture = torch.from_numpy(image.transpose(2, 0, 1)[None])
            shape = [self.resized * side // min(image.shape[:2]) for side in image.shape[:2]]
            crops.append(ten_crop(F.interpolate(picture, shape, mode="bilinear", antialias=True)[0], self.size))
        views = (torch.stack(crop).to(device) for crop in zip(*crops, strict=True))
        return tuple(normalized(view, self.mean, self.std) for view in views)
