"""The fixed input layer against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.sobel import SOBELS, Sobel, input_layer

VERTICAL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], float)


def scipy_sobel(images: Tensor, around: int) -> np.ndarray:
    """Zeros around the colors, gray, then each kernel where it lies wholly inside."""
    found = []
    for image in images.double().numpy():
        gray = np.pad(image, ((0, 0), (around, around), (around, around))).mean(0)
        found.append([ndimage.correlate(gray, kernel)[1:-1, 1:-1] for kernel in (VERTICAL, VERTICAL.T)])
    return np.array(found)


@pytest.mark.parametrize(("name", "around"), [("paper", 1), ("deepercluster", 2)])
@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (16, 16)])
def test_equals_scipy(name: str, around: int, shape: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    layer, channels, extra = input_layer(name)
    edges = layer(images)
    assert edges.shape == (2, channels, shape[0] + extra, shape[1] + extra)
    np.testing.assert_allclose(edges.numpy(), scipy_sobel(images, around), atol=1e-5)


def test_a_ramp_has_the_slope_of_the_kernel() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    edges = Sobel()(ramp)[0, :, 1:-1, 1:-1]
    assert torch.allclose(edges[0], torch.tensor(-8.0))  # left minus right, weights 1 2 1, two pixels apart
    assert torch.allclose(edges[1], torch.tensor(0.0), atol=1e-5)


def test_nothing_to_learn_and_nothing_to_save() -> None:
    layer = Sobel()
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}

    def clear(module: nn.Module) -> None:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)

    nn.Sequential(layer).apply(clear)
    assert layer.kernel.abs().sum() > 0


def test_follows_dtype_and_autocast_and_passes_gradients() -> None:
    images = torch.randn(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    Sobel().double()(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert Sobel()(torch.randn(1, 3, 6, 6)).dtype == torch.bfloat16


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DeepClusterError, match=", ".join(SOBELS)):
        input_layer("canny")
