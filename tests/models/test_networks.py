"""AlexNet, VGG16 and the small ConvNet: sizes, counts, beginnings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.alexnet import build_alexnet, build_vgg16
from deepcluster.models.convnet import build_convnet
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    return build_alexnet(2, 224).trunk


def test_alexnet_has_the_map_sizes_of_the_paper(alexnet: Any) -> None:
    sides, maps = [], torch.zeros(1, 2, 224, 224)
    with torch.no_grad():
        for layer in alexnet.eval().features:
            maps = layer(maps)
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                sides.append(maps.shape[2])
    assert sides == [55, 27, 27, 13, 13, 13, 13, 6]
    assert maps.flatten(1).shape[1] == 9216


def test_alexnet_has_the_parameters_of_the_table(alexnet: nn.Module) -> None:
    convs = [(2, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    # weights, biases, and two numbers of batch-norm per channel
    expected = sum(i * o * k * k + 3 * o for i, o, k in convs) + 9216 * 4096 + 4096 + 4096 * 4096 + 4096
    assert sum(p.numel() for p in alexnet.parameters()) == expected


def test_state_dict_has_the_published_layout(alexnet: nn.Module) -> None:
    keys = set(alexnet.state_dict())
    assert {"features.0.weight", "features.1.running_mean", "features.4.bias", "classifier.4.weight"} <= keys
    linear = {key.split(".")[1] for key in keys if key.startswith("classifier")}
    assert linear == {"1", "4"}  # after a dropout each


@pytest.mark.parametrize(("size", "side"), [(112, 2), (63, 1), (227, 6)])
def test_alexnet_flattens_to_what_the_image_size_leaves(size: int, side: int) -> None:
    backbone = build_backbone("alexnet", sobel="paper", image_size=size).eval()
    trunk: Any = backbone.trunk
    assert trunk.classifier[1].in_features == 256 * side * side
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, size, size)).shape == (1, 4096)


def test_a_network_made_for_one_size_takes_another() -> None:
    backbone = build_backbone("alexnet", image_size=64).eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 131, 97)).shape == (1, 4096)


def test_alexnet_ends_before_its_last_relu() -> None:
    backbone = build_backbone("alexnet", image_size=64).eval()
    with torch.no_grad(), read_taps(backbone, backbone.taps) as seen:
        features = backbone(torch.randn(4, 3, 64, 64))
    assert backbone.head_relu and backbone.dim == 4096
    assert features.min() < 0
    assert torch.equal(seen["fc7"], features)
    assert all(seen[tap].min() == 0 for tap in backbone.taps if tap != "fc7")


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_an_image_too_small_is_refused(name: str) -> None:
    with pytest.raises(DeepClusterError, match=r"needs images of \d+ px"):
        build_backbone(name, image_size=28)


def test_the_smallest_images_are_the_smallest() -> None:
    for build, size in ((build_alexnet, 63), (build_vgg16, 32)):
        assert build(3, size).trunk.side == 1
        with pytest.raises(DeepClusterError):
            build(3, size - 1)


def test_weights_begin_as_in_the_paper() -> None:
    torch.manual_seed(0)
    trunk = build_alexnet(2, 64).trunk
    for part in trunk.modules():
        if isinstance(part, nn.Conv2d):
            expected = math.sqrt(2 / (part.kernel_size[0] * part.kernel_size[1] * part.out_channels))
            assert part.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert abs(part.weight.mean().item()) < 0.02 * expected
        elif isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.01, rel=0.01)
        elif isinstance(part, nn.BatchNorm2d):
            assert torch.equal(part.weight, torch.ones_like(part.weight))
        else:
            continue
        assert part.bias is not None and not part.bias.any()


def test_vgg_sizes_at_224_with_the_padding_of_deepercluster() -> None:
    with torch.device("meta"):
        trunk: Any = build_vgg16(2, 226).trunk.eval()
    sides, maps = [], torch.empty(1, 2, 226, 226, device="meta")
    for layer in trunk.features:
        maps = layer(maps)
        if isinstance(layer, nn.MaxPool2d):
            sides.append(maps.shape[2])
    assert sides == [113, 56, 28, 14, 7]
    assert trunk.classifier[0].in_features == 25088
    assert [type(layer) for layer in trunk.classifier] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_convnet_is_convolution_norm_relu_pool_written_plainly() -> None:
    backbone = build_backbone("convnet", image_size=32).train()
    images = torch.randn(5, 3, 32, 32)
    maps = images
    trunk: Any = backbone.trunk
    for number, block in enumerate(trunk.features, start=1):
        maps = F.conv2d(maps, block[0].weight, padding=1)
        maps = F.relu(F.batch_norm(maps, None, None, block[1].weight, block[1].bias, training=True))
        if number in (1, 3, 5):
            maps = F.max_pool2d(maps, 2)
    assert torch.allclose(backbone(images), maps.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(32, 4), (28, 3), (8, 1), (7, 1), (4, 1), (1, 1), (33, 4)])
def test_convnet_leaves_out_pools_that_would_leave_nothing(size: int, side: int) -> None:
    backbone = build_backbone("convnet", image_size=size).eval()
    with torch.no_grad(), read_taps(backbone, "conv5") as seen:
        assert backbone(torch.randn(2, 3, size, size)).shape == (2, 128)
    assert seen["conv5"].shape == (2, 128, side, side)


def test_convnet_widths_and_pools_are_options() -> None:
    parts = build_convnet(3, 16, widths=(4, 6), pools=())
    assert parts.dim == 6 and list(parts.taps) == ["conv1", "conv2", "pool"]
    trunk: Any = parts.trunk
    with torch.no_grad():
        assert trunk.features(torch.randn(1, 3, 16, 16)).shape == (1, 6, 16, 16)
    for wrong in ({"widths": ()}, {"widths": (8, 0)}, {"pools": (6,)}, {"pools": (0,)}):
        with pytest.raises(DeepClusterError):
            build_convnet(3, 16, **wrong)
