"""Gradient ascent: objectives that add up, spectra, and images that excite more than noise does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from deepcluster.clustering.whitening import Whitening
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import ProjectionHead
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded
from deepcluster.visualize.activations import displayed, embedding, maximize_pixels, maximize_spectrum
from deepcluster.visualize.layers import choose_filters, deepest_layer, layer_shapes
from deepcluster.visualize.objectives import (
    FrozenNetwork,
    channel,
    closeness,
    contrast,
    l2,
    logit,
    neuron,
    total_variation,
)
from deepcluster.visualize.parametrizations import COLORS, random_spectrum, random_views, spectrum_to_image


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    made = build_backbone("convnet", image_size=16, sobel="paper")
    for _ in range(3):  # statistics that are not 0 and 1
        made.train()(torch.randn(8, 3, 16, 16))
    return made.eval()


def test_objectives_match_their_definitions_and_add_up(backbone: Backbone) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 16, 16)
    network = FrozenNetwork(backbone, normalize=True)
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
            contrast("conv2", [4, 0, 9]): means.log_softmax(1)[rows, filters],
            l2(): images.flatten(1).square().sum(1),
            closeness(lambda x: x, output.flip(0)): -(output - output.flip(0)).square().sum(1) / 2,
            logit(output.flip(0), torch.ones(3)): (output * output.flip(0)).sum(1) + 1,
        }
        for objective, expected in told.items():
            torch.testing.assert_close(network.score(images, objective), expected)
        both = 2 * channel("conv2", [4, 0, 9]) - l2() * 0.5 + -total_variation()
        flat = images.numpy()
        varied = np.abs(np.diff(flat, axis=2)).mean((1, 2, 3)) + np.abs(np.diff(flat, axis=3)).mean((1, 2, 3))
        expected = 2 * means[rows, filters] - images.flatten(1).square().sum(1) / 2 - torch.from_numpy(varied)
        torch.testing.assert_close(network.score(images, both), expected)
    with pytest.raises(DeepClusterError, match="conv9"):
        network.score(images, channel("conv9", [0, 0, 0]))
    with pytest.raises(DeepClusterError, match="conv2 has no filter 99"):
        network.score(images, channel("conv2", [0, 0, 99]))
    with pytest.raises(DeepClusterError, match="one image each"):
        network.score(images, channel("conv2", [0]))


def test_layers_behind_the_last_tap_are_not_computed(backbone: Backbone) -> None:
    asked = []
    handle = backbone.trunk.features[3].register_forward_hook(lambda *_: asked.append(1))  # type: ignore[index,union-attr]
    network = FrozenNetwork(backbone, normalize=True)
    network.score(torch.rand(1, 3, 16, 16, generator=seeded(0)), channel("conv2", [0]))
    assert not asked
    network.score(
        torch.rand(1, 3, 16, 16, generator=seeded(0)), channel("conv2", [0]) + logit(torch.ones(1, 128), torch.zeros(1))
    )
    handle.remove()
    assert asked


def test_a_silent_filter_has_a_gradient_from_before_the_relu() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16)
    norm: Any = backbone.trunk.features[0][1]  # type: ignore[index]
    with torch.no_grad():
        norm.bias[5] = -30.0  # far below zero whatever comes
    network = FrozenNetwork(backbone, normalize=True)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.score(images, channel("conv1", [5, 2])).sum(), images)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() > 0
    assert network.score(images, channel("conv1", [5, 2]))[0] < -10


def test_a_random_spectrum_is_nearly_gray() -> None:
    faint = spectrum_to_image(random_spectrum(4, 32, seeded(0)))
    assert (faint - 0.5).abs().max() < 0.2 and faint.std() > 1e-4
    assert spectrum_to_image(random_spectrum(2, 15, seeded(0))).shape == (2, 3, 15, 15)
    assert COLORS.norm(dim=0).max() == pytest.approx(1)


def test_a_spectrum_of_one_frequency_is_a_cosine() -> None:
    spectrum = torch.zeros(1, 3, 16, 9, 2, dtype=torch.float64)
    spectrum[0, 0, 0, 2, 0] = 3.0
    flat = spectrum_to_image(spectrum).logit()[0, 0, 5]
    across = np.cos(2 * np.pi * 2 * np.arange(16) / 16)
    np.testing.assert_allclose(flat / flat[0], across, atol=1e-6)
    half = spectrum.clone()
    half[0, 0, 0, 2, 0], half[0, 0, 0, 4, 0] = 0.0, 3.0
    peaks = [spectrum_to_image(each).logit().abs().max() for each in (spectrum, half)]
    assert float(peaks[0] / peaks[1]) == pytest.approx(2)  # one over the frequency


def test_random_views_shift_scale_and_rotate() -> None:
    images = torch.rand(3, 3, 20, 20, generator=seeded(0))
    still = random_views(images, seeded(0), jitter=0, scale=0, rotate=0)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    moved = random_views(images, seeded(1), jitter=0.1, scale=0, rotate=0)
    assert not torch.allclose(moved, images) and moved.shape == images.shape
    one = torch.zeros(1, 3, 21, 21)
    one[:, :, 10, 10] = 1
    turned = random_views(one, seeded(2), jitter=0, scale=0, rotate=45)
    assert turned[0, 0, 10, 10] > 0.5  # turns about the middle


@pytest.mark.parametrize("recipe", ["paper", "fourier"])
def test_ascent_raises_the_objective_and_is_deterministic(backbone: Backbone, recipe: str) -> None:
    def found(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if recipe == "paper":
            network = FrozenNetwork(backbone, normalize=False)
            done = maximize_pixels(network, contrast("conv3", [1, 7]), 2, size=16, steps=30, lr=20.0, seed=seed)
        else:
            network = FrozenNetwork(backbone, normalize=True)
            done = maximize_spectrum(network, channel("conv3", [1, 7]), 2, size=16, steps=30, seed=seed)
        return done.images, done.before, done.after

    images, before, after = found(0)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8 and (after > before).all()
    np.testing.assert_array_equal(images, found(0)[0])
    assert (images != found(1)[0]).any()
    assert not any(parameter.grad is not None for parameter in backbone.parameters())


def test_one_step_of_the_paper_recipe_matches_a_step_by_hand(backbone: Backbone) -> None:
    network = FrozenNetwork(backbone, normalize=False)
    start = 128 + 20 * torch.randn(1, 3, 16, 16, generator=seeded(4, 51))
    start.requires_grad_(True)
    with read_taps(backbone, ["conv1"]) as seen:
        backbone(start)
        loss = -functional.cross_entropy(seen["conv1"].mean((2, 3)), torch.tensor([3]))
        (gradient,) = torch.autograd.grad(loss - 1e-5 * start.square().sum(), start)
    expected = start.detach() + 3.0 * gradient / gradient.norm()
    done = maximize_pixels(network, contrast("conv1", [3]), 1, size=16, steps=1, seed=4)
    np.testing.assert_array_equal(done.images, displayed(expected))


def test_pixels_are_displayed_with_mean_half_and_deviation_a_tenth() -> None:
    image = displayed(torch.randn(1, 3, 64, 64, generator=seeded(0)) * 900 + 5)[0] / 255
    assert image.mean() == pytest.approx(0.5, abs=0.01) and image.std() == pytest.approx(0.1, abs=0.01)


def test_embedding_matches_the_model_and_has_gradients(backbone: Backbone) -> None:
    features = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    whitened = Model(backbone, torch.zeros(2, 8), [Whitening(8).fit(features)])
    online = Model(backbone, torch.zeros(2, 8), [ProjectionHead(128, 16, 8, dropout=0.5, relu=True)])
    for model in (whitened, online):
        rows = torch.from_numpy(features).requires_grad_(True)
        placed = embedding(model)(rows)
        np.testing.assert_allclose(placed.detach(), model.embed(features), atol=1e-5)
        (gradient,) = torch.autograd.grad(placed[:, 0].sum(), rows)
        assert gradient.abs().max() > 0


def test_layer_shapes_and_choice_of_filters(backbone: Backbone) -> None:
    assert layer_shapes(backbone)["conv2"] == (32, 8, 8) and layer_shapes(backbone)["pool"] == (128, 1, 1)
    assert deepest_layer(backbone) == "conv5"
    assert choose_filters(backbone, "conv1", [3, 1], 9, 0) == [3, 1]
    drawn = choose_filters(backbone, "conv2", [], 5, 0)
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) and drawn != choose_filters(backbone, "conv2", [], 5, 1)
    assert len(choose_filters(backbone, "conv1", [], 99, 0)) == 16
    with pytest.raises(DeepClusterError, match="no tap 'conv7'"):
        choose_filters(backbone, "conv7", [], 5, 0)
    with pytest.raises(DeepClusterError, match="conv1 has no filter 16"):
        choose_filters(backbone, "conv1", [16], 5, 0)
