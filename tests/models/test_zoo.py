"""Every backbone by name: taps, shapes, gradients, and being made again from its config."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone

CONV = tuple(f"conv{number}" for number in range(1, 14))
LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
CASES: list[tuple[str, dict[str, Any], int, tuple[str, ...]]] = [
    ("alexnet", {"image_size": 64, "sobel": "paper", "dropout": 0.1}, 4096, (*CONV[:5], "fc6", "fc7")),
    ("vgg16", {"image_size": 32, "sobel": "deepercluster"}, 4096, (*CONV, "fc6", "fc7")),
    ("convnet", {"image_size": 9, "widths": (4, 8), "pools": (2,)}, 8, ("conv1", "conv2", "pool")),
    ("resnet18", {"image_size": 33}, 512, LAYERS),
    ("resnet18", {"image_size": 65, "sobel": "paper"}, 512, LAYERS),
    ("resnet50", {"image_size": 32, "stem": "imagenet", "zero_init_residual": True}, 2048, LAYERS),
    ("torchvision:mobilenet_v3_small", {"image_size": 32}, 1024, ("features.0", "features.12", "pool")),
    ("timm:resnet10t", {"image_size": 32, "sobel": "paper"}, 512, ("layer1", "layer4", "pool")),
    ("vit_tiny_patch16_224", {"image_size": 32, "depth": 2}, 192, ("blocks.0", "blocks.1", "pool")),
]


@pytest.mark.parametrize(("name", "options", "dim", "taps"), CASES, ids=[case[0] for case in CASES])
def test_features_taps_gradients_and_round_trip(
    name: str, options: dict[str, Any], dim: int, taps: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, **options)
    images = torch.randn(2, 3, options["image_size"], options["image_size"])

    with read_taps(backbone, backbone.taps) as seen:
        features = backbone(images)
    assert features.shape == (2, dim) == (2, backbone.dim)
    assert tuple(seen) == backbone.taps
    assert set(taps) <= set(backbone.taps) and taps[-1] == backbone.taps[-1]
    assert torch.equal(seen[backbone.taps[-1]], features)
    assert backbone.head_relu == (name in ("alexnet", "vgg16"))

    features.square().sum().backward()
    first = next(backbone.trunk.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0

    again = build_backbone(**json.loads(json.dumps(backbone.config)))
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images), backbone.eval()(images))
    assert again.config == backbone.config


@pytest.mark.parametrize(("size", "stem", "side"), [(64, "auto", 64), (65, "auto", 33), (32, "imagenet", 16)])
def test_stem_follows_the_image_size(size: int, stem: str, side: int) -> None:
    backbone = build_backbone("resnet18", image_size=size, stem=stem).eval()
    with torch.no_grad(), read_taps(backbone, ["stem", "layer1"]) as seen:
        backbone(torch.randn(1, 3, size, size))
    assert seen["stem"].shape == (1, 64, side, side)
    assert (seen["layer1"].shape == seen["stem"].shape) == (side == size)


def test_the_same_seed_makes_the_same_weights() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(build_backbone("convnet", image_size=8).state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_taps_are_collected_only_inside_the_block() -> None:
    backbone = build_backbone("convnet", image_size=8).eval()
    images = torch.randn(2, 3, 8, 8)
    with read_taps(backbone, ["pool", "conv2"]) as seen:
        backbone(images)
        first = dict(seen)
        backbone(images[:1])
    backbone(images)
    assert list(seen) == ["conv2", "pool"]
    assert first["conv2"].shape[0] == 2 and seen["conv2"].shape[0] == 1


def test_hooks_go_whatever_happens() -> None:
    backbone = build_backbone("convnet", image_size=8)
    with pytest.raises(ZeroDivisionError), read_taps(backbone, backbone.taps):
        raise ZeroDivisionError
    wrong = pytest.raises(DeepClusterError, match=r"no tap 'conv9'; it has conv1, .*, pool")
    with wrong, read_taps(backbone, ["conv1", "conv9"]):
        pass
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "did you mean 'resnet18'"),
        ("alexnt", {}, "did you mean 'alexnet'"),
        ("vit_tiny_patch16_225", {}, "did you mean 'timm:vit_tiny_patch16_224'"),
        ("timm:resnet10", {}, "did you mean 'timm:resnet10t'"),
        ("torchvision:resnet51", {}, "did you mean 'torchvision:resnet50'"),
        ("hub:something", {}, "No backbone"),
        ("alexnet", {"pretrained": True}, "no option 'pretrained'; it has dropout"),
        ("convnet", {"width": 3}, "no option 'width'; it has widths, pools"),
        ("resnet18", {"stem": "large"}, "choose one of auto, imagenet, small"),
        ("resnet18", {"colour": 1}, "colour"),
        ("timm:resnet10t", {"colour": 1}, "colour"),
        ("torchvision:squeezenet1_0", {}, "does not end in a linear layer"),
        ("torchvision:mobilenet_v3_small", {"sobel": "paper"}, "takes colors only"),
        ("convnet", {"image_size": 0}, "image_size=0"),
        ("convnet", {"sobel": "yes"}, "choose one of none, paper"),
        ("convnet", {"mean": (0.5,)}, "three numbers"),
        ("convnet", {"std": (1, 0, 1)}, "std above 0"),
    ],
)
def test_mistakes_get_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeepClusterError, match=message) as caught:
        build_backbone(name, **options)
    assert "\n" not in str(caught.value)


def test_normalization_travels_in_the_config() -> None:
    plain = build_backbone("convnet", image_size=8)
    assert (plain.mean, plain.std) == (IMAGENET_MEAN, IMAGENET_STD) and "mean" not in plain.config
    other = build_backbone("convnet", image_size=8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert build_backbone(**other.config).mean == other.mean == (0.5, 0.5, 0.5)


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DeepClusterError, match="weights of resnet18 could not be fetched"):
        build_backbone("resnet18", pretrained=True)
    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(DeepClusterError, match="weights of timm:resnet10t could not be fetched"):
        build_backbone("timm:resnet10t", pretrained=True)
