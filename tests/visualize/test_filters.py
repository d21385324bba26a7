"""First-layer filters: what a tile's colors mean, and what Sobel and a filter amount to together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone, Parts
from deepcluster.models.zoo import build_backbone
from deepcluster.visualize.filters import filter_order, filter_tiles, first_filters, on_gray, tile_sheet


def test_the_first_convolution_is_found() -> None:
    colors = build_backbone("convnet", image_size=16)
    edges = build_backbone("convnet", image_size=16, sobel="paper")
    assert first_filters(colors).shape == (16, 3, 3, 3) and first_filters(edges).shape == (16, 2, 3, 3)
    np.testing.assert_array_equal(first_filters(edges), edges.trunk.features[0][0].weight.detach().numpy())  # type: ignore[index,union-attr]
    with pytest.raises(DeepClusterError, match="does not begin with a convolution over 3 channels"):
        first_filters(Backbone("linear", torch.nn.Identity(), _linear(), 8, {}))


def _linear() -> Parts:
    return Parts(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), 4, {"out": ""})


def test_zero_is_gray_and_the_largest_weight_is_saturated() -> None:
    weights = np.zeros((2, 3, 2, 2), np.float32)
    weights[0, 0, 0, 0], weights[0, 2, 1, 1] = 4.0, -2.0
    weights[1, 1, 0, 1] = 1.0
    first, second = filter_tiles(weights)
    assert first[0, 0].tolist() == [255, 128, 128] and first[1, 1].tolist() == [128, 128, 64]
    assert second[0, 1].tolist() == [128, 255, 128] and second[0, 0].tolist() == [128, 128, 128]
    assert filter_tiles(weights, shared=True)[1][0, 1].tolist() == [128, 159, 128]  # a quarter of the largest of all


def test_sobel_tiles() -> None:
    weights = np.zeros((1, 2, 3, 3), np.float32)
    weights[0, 0, 1, 1], weights[0, 1, 0, 0] = 1.0, -1.0
    (pair,) = filter_tiles(weights)
    assert pair.shape == (3, 6, 3) and pair[1, 1].tolist() == [255] * 3 and pair[0, 3].tolist() == [0] * 3
    (hue,) = filter_tiles(weights, sobel="direction")
    assert hue[1, 1].argmax() == 0 and hue[0, 0].argmax() == 2 and hue[2, 2].tolist() == [0, 0, 0]
    (gray,) = filter_tiles(weights, sobel="gray")
    assert gray.shape == (5, 5, 3)


def test_a_filter_on_gray_equals_sobel_followed_by_the_filter() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16, sobel="paper")
    image = np.random.default_rng(0).normal(size=(12, 12))
    shown = torch.from_numpy(np.stack([image] * 3))[None].float()
    conv: Any = backbone.trunk.features[0][0]  # type: ignore[index]
    with torch.no_grad():
        there = conv(backbone.sobel(shown))[0, 5].numpy()[2:-2, 2:-2]
    here = correlate2d(image, on_gray(conv.weight[5].detach().numpy()), mode="valid")
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_filter_orders() -> None:
    weights = np.random.default_rng(1).normal(size=(9, 3, 3, 3))
    norms = np.linalg.norm(weights.reshape(9, -1), axis=1)
    assert filter_order(weights, "norm").tolist() == np.argsort(-norms).tolist()
    assert filter_order(weights, "index").tolist() == list(range(9))
    copies = np.concatenate([weights[:1] * scale for scale in (1, -3)] + [weights[1:2]] * 4)
    places = np.flatnonzero(np.isin(filter_order(copies, "pca"), [0, 1]))
    assert places[1] - places[0] == 1  # a filter and its negative, three times as strong, stand together


def test_every_weight_is_enlarged_to_a_square() -> None:
    pictures = filter_tiles(np.random.default_rng(0).normal(size=(4, 3, 3, 3)))
    page = tile_sheet(pictures, side=30)
    assert page.shape == (2 * 36 + 6, 2 * 36 + 6, 3)
    assert (page[6:16, 6:16] == pictures[0][0, 0]).all() and (page[26:36, 26:36] == pictures[0][2, 2]).all()
    pairs = tile_sheet(filter_tiles(np.random.default_rng(0).normal(size=(1, 2, 3, 3))), side=30, halves=True)
    assert (pairs[14:44, 44:46] == 255).all() and pairs.shape[1] == 62 + 28
