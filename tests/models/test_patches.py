"""`PatchNet` beside its definition, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcluster.data.arrays import open_digits
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.engine.patches import fit_patches
from deepcluster.errors import DeepClusterError
from deepcluster.features.extract import extract
from deepcluster.models.patches import CONTRAST, TINY, PatchNet
from deepcluster.models.zoo import build_backbone


def slow(net: PatchNet, image: Tensor) -> Tensor:
    """(dim,), the output for one image (3, S, S) of one side and two cells."""
    p, (filters, bias) = net.patch, (net.filters.weight, net.filters.bias)
    assert bias is not None
    places = image.shape[1] - p + 1
    response = torch.zeros(places, places, len(filters))
    for row in range(places):
        for column in range(places):
            patch = image[:, row : row + p, column : column + p].flatten()
            patch = (patch - patch.mean()) / (patch.var() + CONTRAST).sqrt()
            response[row, column] = ((filters.flatten(1) * patch).sum(1) + bias).clamp_min(0)
    low, high = slice(0, -(-places // 2)), slice(places // 2, places)
    cells = [response[rows, columns].mean((0, 1)) for rows in (low, high) for columns in (low, high)]
    out: Tensor = net.whitening((torch.stack(cells, dim=1).flatten() + TINY).sqrt())
    return out


def test_the_output_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    net = build_backbone("patches", image_size=13, filters=5, patch=4, cells=2, dim=3).trunk
    assert isinstance(net, PatchNet)
    images = torch.rand(20, 3, 13, 13)  # more than pass through at once
    with torch.no_grad():
        torch.testing.assert_close(net(images), torch.stack([slow(net, image) for image in images]))


def test_larger_images_are_seen_at_each_side() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("patches", image_size=40, filters=4, patch=3, sides=(40, 10), cells=1, dim=2)
    net, images = backbone.trunk, torch.rand(2, 3, 40, 40)
    assert isinstance(net, PatchNet)
    assert [each.shape[-1] for each in net.at_sides(images)] == [40, 10]
    assert net.whitening.in_features == 2 * 4
    backbone(images).square().sum().backward()
    for parameter in backbone.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0 and parameter.grad.isfinite().all()


def test_fitted_features_are_whitened_and_better_than_random_ones() -> None:
    digits = open_digits()
    pixels = load_pixels(digits, short_side=None, cache_gb=1)
    fitted = build_backbone("patches", image_size=16, filters=32, patch=4, cells=2, dim=64)
    untrained = extract(fitted, pixels)[1]
    seen: list[int] = []
    fit_patches(fitted, pixels, seed=0, check=seen.append)
    assert sum(seen) == 2 * len(digits)
    features = extract(fitted, pixels)[1]
    covariance = np.cov(features.T)
    scales = np.sqrt(np.diag(covariance))
    assert (np.diff(scales) < 1e-3 * scales[0]).all(), "the main directions come first"
    off = covariance / np.outer(scales, scales) - np.eye(64)
    assert np.abs(off).max() < 0.02
    assert digits.labels is not None
    wrong, wrong_untrained = (1 - nearest_agree(each, digits.labels) for each in (features, untrained))
    assert wrong < 0.8 * wrong_untrained
    again = build_backbone("patches", image_size=16, filters=32, patch=4, cells=2, dim=64)
    fit_patches(again, pixels, seed=0)
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def nearest_agree(features: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose nearest other row (cosine) has their label."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -2)
    return float((labels[similar.argmax(1)] == labels).mean())


@pytest.mark.parametrize("images", [np.full((3, 16, 16, 3), 7, np.uint8), np.zeros((1, 16, 16, 3), np.uint8)])
def test_flat_and_few_images_give_finite_features(images: np.ndarray) -> None:
    backbone = build_backbone("patches", image_size=16, filters=8, patch=4, cells=2, dim=8)
    pixels = load_pixels(open_images(images), short_side=None, cache_gb=1)
    fit_patches(backbone, pixels, seed=0)
    assert np.isfinite(extract(backbone, pixels)[1]).all()


def test_impossible_sizes_are_told() -> None:
    with pytest.raises(DeepClusterError, match="a side at least 7 pixels"):
        build_backbone("patches", image_size=6, patch=6, cells=2)
    with pytest.raises(DeepClusterError, match="filters"):
        build_backbone("patches", image_size=32, filters=0)
