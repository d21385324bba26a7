"""What a random view of an image is, and the draw of its random numbers, with torchvision's distributions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from deepcluster.errors import DeepClusterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The four operations of color jitter, and every order they may come in.
JITTER = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))
#: Images that share the order of the four operations, so that they can be computed together.
BLOCK = 32

BLUR_SIGMA = (0.1, 2.0)  # pixels, as in SimCLR (arXiv 2002.05709, appendix A)


@dataclass(frozen=True)
class ViewGroup:
    """Random views of one size; the defaults are the crop and flip of arXiv 1807.05520 §3.4."""

    size: int = 224  # height and width of a view, in pixels
    count: int = 1  # views of each image
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    """Share of the area that a random crop takes; None: no random crop, the whole image resized."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a random crop
    flip: float = 0.5  # probability of a horizontal flip
    brightness: float = 0.0  # factor drawn from 1 ± this; so are contrast and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift of the hue, drawn from ± this share of the color circle, at most 0.5
    jitter: float = 1.0  # probability that brightness, contrast, saturation and hue vary at all
    gray: float = 0.0  # probability of a gray view
    blur: float = 0.0  # probability of a Gaussian blur with sigma from 0.1 to 2 pixels
    rotate: float = 0.0  # rotation drawn from ± this, in degrees
    translate: float = 0.0  # shift in x and y drawn from ± this share of the size
    zoom: tuple[float, float] = (1.0, 1.0)  # range of the scale about the center
    shear: float = 0.0  # shear in x drawn from ± this, in degrees
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise DeepClusterError(f"views: {name}={getattr(self, name)} is not a probability: give 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise DeepClusterError(f"views: hue={self.hue} is out of range: give 0 to 0.5")
        if self.size < 1 or self.count < 1:
            raise DeepClusterError(f"views: size={self.size} and count={self.count} must be at least 1")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise DeepClusterError(f"views: crop_scale={self.crop_scale} must be two shares of the area, ascending")

    @property
    def jitters(self) -> tuple[float, float, float, float]:
        """Strength of brightness, contrast, saturation and hue."""
        return self.brightness, self.contrast, self.saturation, self.hue

    @property
    def moves(self) -> bool:
        """Whether views are rotated, shifted, zoomed or sheared."""
        return bool(self.rotate or self.translate or self.shear or tuple(self.zoom) != (1.0, 1.0))


@dataclass(frozen=True)
class Draw:
    """The random numbers of B views."""

    box: np.ndarray  # (B, 4) int64 top, left, height, width of the crop, in pixels of the image
    flip: np.ndarray  # (B,) bool
    # (B, 4) float32 of brightness, contrast and saturation, and shift of hue; 1, 1, 1, 0 = as it is
    factors: np.ndarray
    orders: np.ndarray  # (ceil(B / BLOCK), 4) int64, the order in which these follow, for each block of images
    gray: np.ndarray  # (B,) bool
    sigma: np.ndarray  # (B,) float32 of the blur in pixels; 0 = none
    affine: np.ndarray  # (B, 5) float32 angle in degrees, shift right and down in pixels, scale, shear in degrees
    first: int = 0  # place of the first of these B images within the batch that `orders` is of

    def __len__(self) -> int:
        return len(self.box)

    @property
    def image_orders(self) -> np.ndarray:
        """(B, 4) int64, of each image the row of `orders` that holds for it."""
        return self.orders[(self.first + np.arange(len(self))) // BLOCK]

    def part(self, first: int, last: int) -> Draw:
        """Those of images `first` to `last`, exclusive, of the batch."""
        per_image = ("box", "flip", "factors", "gray", "sigma", "affine")
        return replace(self, first=first, **{name: getattr(self, name)[first:last] for name in per_image})


def draw(group: ViewGroup, sizes: np.ndarray, generator: torch.Generator) -> Draw:
    """One random view for each of B images.

    The same count of random numbers is spent on each image whatever its size, so that a bad image in a batch
    changes no other.

    Args:
        group: how strongly images vary.
        sizes: (B, 2) int64 height and width of each image.
        generator: source of the draw, on the CPU.
    """
    count = len(sizes)
    random = torch.rand((count, 40), generator=generator, dtype=torch.float64).numpy()
    blocks = torch.randint(len(ORDERS), (-(-count // BLOCK),), generator=generator).numpy()

    def between(low: float, high: float, column: int) -> np.ndarray:
        return low + (high - low) * random[:, column]

    factors = np.stack(
        [between(max(0.0, 1 - s), 1 + s, 24 + k) for k, s in enumerate(group.jitters[:3])]
        + [between(-group.hue, group.hue, 27)],
        axis=1,
    )
    factors[random[:, 28] >= group.jitter] = 1, 1, 1, 0
    shift = group.translate * group.size
    affine = np.stack(
        [
            between(-group.rotate, group.rotate, 29),
            np.rint(between(-shift, shift, 30)),  # whole pixels, as torchvision draws them
            np.rint(between(-shift, shift, 31)),
            between(*group.zoom, 32),
            between(-group.shear, group.shear, 33),
        ],
        axis=1,
    )
    return Draw(
        box=_boxes(group, np.asarray(sizes, np.int64), random[:, :22]),
        flip=random[:, 22] < group.flip,
        factors=factors.astype(np.float32),
        orders=np.array(ORDERS)[blocks],
        gray=random[:, 34] < group.gray,
        sigma=np.where(random[:, 35] < group.blur, between(*BLUR_SIGMA, 36), 0).astype(np.float32),
        affine=affine.astype(np.float32),
    )


def _boxes(group: ViewGroup, sizes: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Crops (B, 4) as torchvision's RandomResizedCrop draws them: ten tries, then the largest central one."""
    height, width = sizes[:, 0], sizes[:, 1]
    if group.crop_scale is None:
        return np.stack([np.zeros_like(height), np.zeros_like(width), height, width], axis=1)
    low, high = np.log(group.crop_ratio)
    area = (height * width)[:, None] * (
        group.crop_scale[0] + (group.crop_scale[1] - group.crop_scale[0]) * random[:, :10]
    )
    ratio = np.exp(low + (high - low) * random[:, 10:20])
    wide = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    tall = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (wide > 0) & (wide <= width[:, None]) & (tall > 0) & (tall <= height[:, None])
    rows, first = np.arange(len(sizes)), fits.argmax(1)
    wide, tall = wide[rows, first], tall[rows, first]
    # No try fits a very long image: then all of its shorter side, within the allowed ratios.
    shape = width / np.maximum(height, 1)
    narrow, broad = shape < group.crop_ratio[0], shape > group.crop_ratio[1]
    central_wide = np.where(broad, np.rint(height * group.crop_ratio[1]), width).astype(np.int64)
    central_tall = np.where(narrow, np.rint(width / group.crop_ratio[0]), height).astype(np.int64)
    found = fits.any(1)
    wide, tall = np.where(found, wide, central_wide), np.where(found, tall, central_tall)
    top = np.where(found, (random[:, 20] * (height - tall + 1)).astype(np.int64), (height - tall) // 2)
    left = np.where(found, (random[:, 21] * (width - wide + 1)).astype(np.int64), (width - wide) // 2)
    return np.stack([top, left, tall, wide], axis=1)
