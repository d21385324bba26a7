"""Gradient ascent: objectives that add up, waves and back, and images that excite more than noise does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from deepcluster.clustering.whitening import Whitening
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.neck import Neck
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded
from deepcluster.visualize.activation_maximization import ascend_pixels, ascend_waves, shown
from deepcluster.visualize.layers import chosen_filters, deepest, embedding, layers
from deepcluster.visualize.objectives import (
    Glass,
    against_others,
    channel,
    closeness,
    l2,
    logit,
    neuron,
    total_variation,
)
from deepcluster.visualize.parametrizations import COLORS, Shake, gaussian_blur, to_colors, to_waves, waves


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    made = build_backbone("convnet", image_size=16, sobel="paper")
    for _ in range(3):  # statistics that are not 0 and 1
        made.train()(torch.randn(8, 3, 16, 16))
    return made.eval()


def test_objectives_are_what_they_say_and_add_up(backbone: Backbone) -> None:
    images = torch.rand(3, 3, 16, 16)
    glass = Glass(backbone, normalize=True)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
    with torch.no_grad(), read_taps(backbone, ["conv2"]) as seen:
        output = backbone((images - mean) / std)
        maps = seen["conv2"]
        rows, filters = torch.arange(3), torch.tensor([4, 0, 9])
        means = maps.mean((2, 3))
        assert (maps.amax((2, 3))[rows, filters] > 0).all()
        told = {
            channel("conv2", [4, 0, 9]): means[rows, filters],
            neuron("conv2", [4, 0, 9]): maps[rows, filters, maps.shape[2] // 2, maps.shape[3] // 2],
            against_others("conv2", [4, 0, 9]): means.log_softmax(1)[rows, filters],
            l2(): images.flatten(1).square().sum(1),
            closeness(lambda x: x, output.flip(0)): -(output - output.flip(0)).square().sum(1) / 2,
            logit(output.flip(0), torch.ones(3)): (output * output.flip(0)).sum(1) + 1,
        }
        for objective, expected in told.items():
            torch.testing.assert_close(glass.see(images, objective), expected)
        both = 2 * channel("conv2", [4, 0, 9]) - l2() * 0.5 + -total_variation()
        flat = images.numpy()
        varied = np.abs(np.diff(flat, axis=2)).mean((1, 2, 3)) + np.abs(np.diff(flat, axis=3)).mean((1, 2, 3))
        expected = 2 * means[rows, filters] - images.flatten(1).square().sum(1) / 2 - torch.from_numpy(varied)
        torch.testing.assert_close(glass.see(images, both), expected)
    with pytest.raises(DeepClusterError, match="conv9"):
        glass.see(images, channel("conv9", [0, 0, 0]))
    with pytest.raises(DeepClusterError, match="conv2 has no filter 99"):
        glass.see(images, channel("conv2", [0, 0, 99]))
    with pytest.raises(DeepClusterError, match="one image each"):
        glass.see(images, channel("conv2", [0]))


def test_layers_behind_the_last_tap_do_not_compute(backbone: Backbone) -> None:
    asked = []
    handle = backbone.trunk.features[3].register_forward_hook(lambda *_: asked.append(1))  # type: ignore[index,union-attr]
    glass = Glass(backbone, normalize=True)
    glass.see(torch.rand(1, 3, 16, 16), channel("conv2", [0]))
    assert not asked
    glass.see(torch.rand(1, 3, 16, 16), channel("conv2", [0]) + logit(torch.ones(1, 128), torch.zeros(1)))
    handle.remove()
    assert asked


def test_a_silent_filter_is_woken_from_before_the_relu() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16)
    norm = backbone.trunk.features[0][1]  # type: ignore[index,union-attr]
    with torch.no_grad():
        norm.bias[5] = -30.0  # far below zero whatever comes
    glass = Glass(backbone, normalize=True)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(glass.see(images, channel("conv1", [5, 2])).sum(), images)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() > 0
    assert glass.see(images, channel("conv1", [5, 2]))[0] < -10


def test_waves_to_colors_and_back() -> None:
    for side in (15, 16):
        colors = torch.rand(2, 3, side, side, dtype=torch.float64) * 0.9 + 0.05
        torch.testing.assert_close(to_colors(to_waves(colors)), colors, atol=1e-6, rtol=0)
    faint = to_colors(waves(4, 32, seeded(0)))
    assert (faint - 0.5).abs().max() < 0.2 and faint.std() > 1e-4
    assert COLORS.norm(dim=0).max() == pytest.approx(1)


def test_a_wave_of_one_frequency_is_a_cosine() -> None:
    spectrum = torch.zeros(1, 3, 16, 9, 2, dtype=torch.float64)
    spectrum[0, 0, 0, 2, 0] = 3.0
    flat = to_colors(spectrum).logit()[0, 0, 5]
    across = np.cos(2 * np.pi * 2 * np.arange(16) / 16)
    np.testing.assert_allclose(flat / flat[0], across, atol=1e-6)
    half = spectrum.clone()
    half[0, 0, 0, 2, 0], half[0, 0, 0, 4, 0] = 0.0, 3.0
    peaks = [to_colors(each).logit().abs().max() for each in (spectrum, half)]
    assert float(peaks[0] / peaks[1]) == pytest.approx(2)  # one over the frequency


def test_blur_is_scipys() -> None:
    images = torch.rand(2, 3, 11, 13, dtype=torch.float64)
    for sigma in (0.3, 1.2):
        expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma))
        np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-9)
    assert gaussian_blur(images, 0.1) is images


def test_shake() -> None:
    images = torch.rand(3, 3, 20, 20)
    torch.testing.assert_close(Shake(0, 0, 0)(images, seeded(0)), images, atol=1e-5, rtol=0)
    moved = Shake(jitter=0.1, scale=0, rotate=0)(images, seeded(1))
    assert not torch.allclose(moved, images) and moved.shape == images.shape
    one = torch.zeros(1, 3, 21, 21)
    one[:, :, 10, 10] = 1
    turned = Shake(jitter=0, scale=0, rotate=45)(one, seeded(2))
    assert turned[0, 0, 10, 10] > 0.5  # turns about the middle


@pytest.mark.parametrize("recipe", ["paper", "fourier"])
def test_ascent_rises_and_repeats(backbone: Backbone, recipe: str) -> None:
    def found(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if recipe == "paper":
            glass = Glass(backbone, normalize=False)
            done = ascend_pixels(glass, against_others("conv3", [1, 7]), 2, size=16, steps=30, lr=20.0, seed=seed)
        else:
            glass = Glass(backbone, normalize=True)
            done = ascend_waves(glass, channel("conv3", [1, 7]), 2, size=16, steps=30, seed=seed)
        return done.images, done.before, done.after

    images, before, after = found(0)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8 and (after > before).all()
    np.testing.assert_array_equal(images, found(0)[0])
    assert (images != found(1)[0]).any()
    assert not any(parameter.grad is not None for parameter in backbone.parameters())


def test_one_step_of_the_papers_recipe_by_hand(backbone: Backbone) -> None:
    glass = Glass(backbone, normalize=False)
    start = 128 + 20 * torch.randn(1, 3, 16, 16, generator=seeded(4, 51))
    start.requires_grad_(True)
    with read_taps(backbone, ["conv1"]) as seen:
        backbone(start)
        loss = -functional.cross_entropy(seen["conv1"].mean((2, 3)), torch.tensor([3]))
        (gradient,) = torch.autograd.grad(loss - 1e-5 * start.square().sum(), start)
    expected = start.detach() + 3.0 * gradient / gradient.norm()
    done = ascend_pixels(glass, against_others("conv1", [3]), 1, size=16, steps=1, seed=4)
    np.testing.assert_array_equal(done.images, shown(expected))


def test_pixels_are_shown_with_mean_half_and_deviation_a_tenth() -> None:
    image = shown(torch.randn(1, 3, 64, 64) * 900 + 5)[0] / 255
    assert image.mean() == pytest.approx(0.5, abs=0.01) and image.std() == pytest.approx(0.1, abs=0.01)


def test_the_way_to_clusters_is_that_of_the_model(backbone: Backbone) -> None:
    features = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    whitened = Model(backbone, Whitening(8).fit(features), torch.zeros(2, 8))
    online = Model(backbone, None, torch.zeros(2, 8), neck=Neck(128, 16, 8, dropout=0.5, relu=True))
    for model in (whitened, online):
        rows = torch.from_numpy(features).requires_grad_(True)
        placed = embedding(model)(rows)
        np.testing.assert_allclose(placed.detach(), model.embed(features), atol=1e-5)
        placed[:, 0].sum().backward()
        assert rows.grad is not None and rows.grad.abs().max() > 0


def test_layers_and_chosen_filters(backbone: Backbone) -> None:
    assert layers(backbone)["conv2"] == (32, 8, 8) and layers(backbone)["pool"] == (128, 1, 1)
    assert deepest(backbone) == "conv5"
    assert chosen_filters(backbone, "conv1", [3, 1], 9, 0) == [3, 1]
    drawn = chosen_filters(backbone, "conv2", [], 5, 0)
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) and drawn != chosen_filters(backbone, "conv2", [], 5, 1)
    assert len(chosen_filters(backbone, "conv1", [], 99, 0)) == 16
    with pytest.raises(DeepClusterError, match="no tap 'conv7'"):
        chosen_filters(backbone, "conv7", [], 5, 0)
    with pytest.raises(DeepClusterError, match="conv1 has no filter 16"):
        chosen_filters(backbone, "conv1", [16], 5, 0)
