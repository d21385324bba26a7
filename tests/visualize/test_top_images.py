"""The images that excite a filter most: the running best against a sort, and what a place of a map sees."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone
from deepcluster.visualize.images import letterboxed
from deepcluster.visualize.receptive_fields import ReceptiveField, receptive_field
from deepcluster.visualize.top_images import Ranking, crops, network_input, rank_images, top_sheet

NETWORKS = [
    ("alexnet", {"sobel": "paper", "image_size": 96}, ["conv1", "conv2"]),
    ("convnet", {"sobel": "deepercluster", "image_size": 40}, ["conv1", "conv3", "conv5"]),
    ("vgg16", {"sobel": "deepercluster", "image_size": 32}, ["conv2", "conv4"]),
    ("resnet18", {"image_size": 48}, ["stem", "layer1", "layer2"]),
    ("torchvision:densenet121", {"image_size": 64}, ["features.denseblock1"]),
    ("timm:resnet26d", {"image_size": 64}, ["layer1", "layer2"]),
]


@pytest.mark.parametrize(("name", "options", "taps"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_the_field_of_a_position_contains_all_pixels_with_a_gradient(
    name: str, options: dict[str, Any], taps: list[str]
) -> None:
    """By the gradient of one place of the map, summed over all channels and a few images."""
    torch.manual_seed(0)
    backbone = build_backbone(name, **options).eval()
    size = options["image_size"]
    for tap in taps:
        field = receptive_field(backbone, tap)
        assert field is not None
        images = torch.randn(2, 3, size, size, requires_grad=True)
        with read_taps(backbone, [tap]) as seen:
            backbone(images)
        maps = seen[tap]
        for row, column in ((0, 0), (maps.shape[2] // 2, maps.shape[3] // 2), (maps.shape[2] - 1, 0)):
            weights = torch.randn(maps.shape[1])
            (gradient,) = torch.autograd.grad((maps[:, :, row, column] * weights).sum(), images, retain_graph=True)
            touched = gradient.abs().amax((0, 1)) > 0
            top, left, bottom, right = field.box(row, column, size, size)
            rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
            assert top <= rows[0] and rows[-1] < bottom and left <= columns[0] and columns[-1] < right
            # pools hand on one of their inputs only, so that the outermost pixels may be missed by a few
            if tap in ("conv1", "stem") and name != "convnet":
                assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (top, bottom, left, right)


def test_pixels_outside_the_field_do_not_change_the_position() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("alexnet", sobel="paper", image_size=96).eval()
    field = receptive_field(backbone, "conv2")
    assert field is not None and field.size == (53, 53) and field.step == (8, 8)
    images = torch.randn(1, 3, 96, 96)
    top, left, bottom, right = field.box(2, 3, 96, 96)
    others = torch.randn(1, 3, 96, 96)
    others[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right]
    with torch.no_grad(), read_taps(backbone, ["conv2"]) as seen:
        backbone(images)
        before = seen["conv2"][0, :, 2, 3].clone()
        backbone(others)
        assert torch.equal(seen["conv2"][0, :, 2, 3], before)
        others[:, :, bottom - 1, right - 1] += 50
        backbone(others)
        assert not torch.equal(seen["conv2"][0, :, 2, 3], before)


def test_layers_that_depend_on_the_whole_image_have_no_field() -> None:
    backbone = build_backbone("resnet18", image_size=32)
    assert receptive_field(backbone, "pool") is None
    assert receptive_field(build_backbone("alexnet", image_size=96), "conv5") is None  # larger than the image
    assert receptive_field(build_backbone("timm:efficientnet_b0", image_size=32), "blocks.2") is None  # it squeezes
    assert ReceptiveField((4, 4), (-3, -3), (9, 9)).box(0, 100, 32, 32) == (0, 31, 10, 32)  # never empty


@pytest.mark.parametrize("score", ["mean", "max"])
def test_the_running_best_equals_the_head_of_a_sort(score: Literal["mean", "max"]) -> None:
    maps = torch.rand(50, 6, 4, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    index = torch.arange(100, 150)
    best = Ranking.empty(6, 9)
    for start in range(0, 50, 7):
        best.update(maps[start : start + 7], index[start : start + 7], score)
    values = maps.amax((2, 3)) if score == "max" else maps.mean((2, 3))
    for row in range(6):
        order = np.argsort(-values[:, row].numpy(), kind="stable")[:9]
        assert best.index[row].tolist() == (order + 100).tolist()
        np.testing.assert_allclose(best.score[row], values[order, row], atol=1e-6)
        for place, image in zip(best.peak[row].tolist(), order, strict=True):
            assert maps[image, row, place[0], place[1]] == maps[image, row].max()


def test_images_of_several_layers_are_ranked_in_one_pass() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=24).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3), dtype=np.uint8)
    pixels = load_pixels(open_images(pictures), short_side=None, cache_gb=0)
    wanted = {"conv1": [3, 0], "conv3": [5]}
    found = rank_images(backbone, pixels, wanted, count=4, batch_size=8)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad(), read_taps(backbone, wanted) as seen:
        backbone(images)
    for tap, numbers in wanted.items():
        for row, number in enumerate(numbers):
            values = seen[tap][:, number].mean((1, 2))
            assert found[tap].index[row].tolist() == values.argsort(descending=True)[:4].tolist()
    shown = network_input(backbone, pixels, found["conv1"].index.numpy())
    for index, image in shown.items():
        np.testing.assert_array_equal(image, pictures[index])
    field = receptive_field(backbone, "conv3")
    (first, *_) = crops(found["conv3"], 0, network_input(backbone, pixels, found["conv3"].index.numpy()), field)
    assert field is not None and 1 <= first.shape[0] <= field.size[0]
    page = top_sheet(found["conv1"], wanted["conv1"], shown, receptive_field(backbone, "conv1"), side=20)
    assert page.dtype == np.uint8 and page.shape[1] > 2 * 2 * 2 * 20


def test_fewer_images_than_asked_for() -> None:
    best = Ranking.empty(1, 9)
    best.update(torch.rand(2, 1, 3, 3), torch.tensor([4, 5]))
    assert (best.index[0] >= 0).sum() == 2
    images = {4: np.zeros((8, 8, 3), np.uint8), 5: np.zeros((8, 8, 3), np.uint8)}
    assert len(crops(best, 0, images, None)) == 2
    assert top_sheet(best, [0], images, None, side=16).ndim == 3


def test_letterboxed_keeps_proportions() -> None:
    page = letterboxed(np.zeros((4, 8, 3), np.uint8), 16)
    assert (page[4:12] == 0).all() and (page[:4] == 232).all()
