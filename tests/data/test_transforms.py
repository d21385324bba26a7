"""Crops of evaluation protocols against torchvision; what is drawn for one image depends on no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from deepcluster.data.arrays import Arrays
from deepcluster.data.cache import load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop, RandomCrop, RandomViews, TenCrop, Transform
from deepcluster.data.views import IMAGENET_MEAN, IMAGENET_STD, ViewGroup
from deepcluster.errors import BadImage
from deepcluster.random import seeded


def noise(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1))


def test_ten_crops_equal_torchvision() -> None:
    crop = TenCrop(96)
    images = [noise(1, 130, k)[0][: 130 - 9 * k] for k in range(3)]
    views = crop(images, seeded(0))
    resize, ten = v2.Resize(crop.resized, antialias=True), v2.TenCrop(96)
    for row, image in enumerate(images):
        for view, their in zip(views, ten(resize(chw(image))), strict=True):
            their = v2.functional.normalize(their / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
            # without AVX2 resizing rounds some pixels to the next of 255 levels
            torch.testing.assert_close(view[row], their, atol=1.1 / 255 / min(IMAGENET_STD), rtol=0)
            assert (view[row] - their).abs().mean() < 0.3 / 255 / min(IMAGENET_STD)


@pytest.mark.parametrize("size", [72, 32])
def test_random_crops_are_crops_of_the_resized_square(size: int) -> None:
    images = [noise(1, size + 20, k)[0] for k in range(24)]
    (views,) = RandomCrop(size)(images, seeded(5))
    assert views.shape == (24, 3, size, size)
    side, edge = (size, size // 8) if size <= 64 else (TenCrop(size).resized, 0)
    places, mirrored = set(), 0
    for image, view in zip(images, views, strict=True):
        square = F.pad(v2.functional.resize(chw(image), [side, side], antialias=True), (edge,) * 4)
        square = v2.functional.normalize(square / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
        found = [
            (top, left, flip)
            for top in range(square.shape[1] - size + 1)
            for left in range(square.shape[2] - size + 1)
            for flip, crop in ((False, view), (True, view.flip(2)))
            # resized in another way, pixels may differ by one of 255
            if (square[:, top : top + size, left : left + size] - crop).abs().max() < 0.04
        ]
        assert len(found) == 1
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert len(places) > 12 and 5 < mirrored < 19


def test_lighting_shifts_all_pixels_of_an_image_by_one_color() -> None:
    group = ViewGroup(size=8, crop_scale=None, flip=0, std=(0.5, 0.5, 0.5))
    images = list(noise(500, 8))
    (still,), (lit,) = RandomViews(group)(images, seeded(0)), RandomViews(group, lighting=0.1)(images, seeded(0))
    shift = (lit - still) * 0.5
    torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), atol=1e-5, rtol=0)
    variance = torch.linalg.eigvalsh(torch.cov(shift.mean((2, 3)).T)).flip(0)
    np.testing.assert_allclose(variance.sqrt(), [0.02175, 0.00188, 0.00045], rtol=0.15)


class WithBadImages(Arrays):
    """Images, some of which cannot be decoded."""

    bad = (3, 7)
    block = None

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        if index in self.bad:
            raise BadImage("cut short")
        return super().read(index, short_side)


COLOR = ViewGroup(size=32, brightness=0.4, contrast=0.4, saturation=0.4)


@pytest.mark.parametrize(
    "transform",
    [CenterCrop(32), RandomCrop(32), TenCrop(32), RandomViews(COLOR, replace(COLOR, size=8, count=2), lighting=0.1)],
    ids=["center", "random", "ten", "views"],
)
def test_bad_images_are_left_out_and_change_no_draw(transform: Transform) -> None:
    order = np.random.default_rng(0).permutation(12)
    found: list[dict[tuple[int, int], torch.Tensor]] = []
    for kind in (WithBadImages, Arrays):
        pixels = load_pixels(kind("set", noise(12)), short_side=None, cache_gb=1)
        batches = Loader(pixels, order, batch_size=5, transform=transform, key=(1, 2))
        views: dict[tuple[int, int], torch.Tensor] = {}
        for batch in batches:
            for number, view in enumerate(batch.views):
                views |= {(int(index), number): image for index, image in zip(batch.index, view, strict=True)}
        found.append(views)
    bad, good = found
    assert {index for index, _ in bad} == set(range(12)) - set(WithBadImages.bad)
    for key, view in bad.items():
        torch.testing.assert_close(view, good[key], atol=1e-5, rtol=0)
