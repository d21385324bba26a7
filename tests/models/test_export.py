"""What leaves the house: safetensors that rebuild the backbone, and torchvision's own keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import export_backbone, load_backbone
from deepcluster.models.hugging_face import load_folder
from deepcluster.models.zoo import build_backbone


def used(backbone: Backbone, size: int) -> Backbone:
    """One pass in training mode, so that the running statistics are not those of a new network."""
    with torch.no_grad():
        backbone.train()(torch.randn(4, 3, size, size))
    return backbone.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"name": "convnet", "image_size": 16, "widths": (4, 8), "mean": (0.5, 0.5, 0.5)},
        {"name": "resnet18", "image_size": 32, "sobel": "paper"},
        {"name": "vit_tiny_patch16_224", "image_size": 32, "depth": 1},
    ],
    ids=lambda options: options["name"],
)
def test_safetensors_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    size = options["image_size"]
    backbone = used(build_backbone(**options), size)
    file = export_backbone(backbone, "safetensors", tmp_path / "new" / "b.safetensors", {"preset": "p", "k": 3})
    images = torch.randn(2, 3, size, size)

    state = torch.random.get_rng_state()
    again = load_backbone(file)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not again.training
    assert (again.config, again.mean, again.std) == (backbone.config, backbone.mean, backbone.std)
    with torch.no_grad():
        # The two differ in memory layout, hence in the order of their float32 sums.
        torch.testing.assert_close(again(images), backbone(images), rtol=1e-4, atol=1e-4)
    with safe_open(file, "pt") as opened:
        notes = opened.metadata()
    assert notes["preset"] == "p" and notes["k"] == "3" and json.loads(notes["mean"]) == list(backbone.mean)
    assert [path.name for path in file.parent.iterdir()] == ["b.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_a_resnet_is_torchvisions(name: str, tmp_path: Path) -> None:
    backbone = used(build_backbone(name, image_size=65), 65)
    file = export_backbone(backbone, "torchvision", tmp_path / "b.pth")
    theirs = torchvision.models.resnet18(num_classes=7)
    result = theirs.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"] and result.unexpected_keys == []
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), backbone(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_vgg16_is_torchvisions(tmp_path: Path) -> None:
    backbone = build_backbone("vgg16").eval()
    file = export_backbone(backbone, "torchvision", tmp_path / "b.pth")
    theirs = torchvision.models.vgg16_bn(num_classes=3).eval()
    result = theirs.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert result.missing_keys == ["classifier.6.weight", "classifier.6.bias"] and result.unexpected_keys == []
    theirs.classifier = theirs.classifier[:4]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), backbone(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "convnet", "image_size": 8},
        {"name": "alexnet", "image_size": 64},
        {"name": "resnet18", "image_size": 32},
        {"name": "resnet18", "image_size": 65, "sobel": "paper"},
        {"name": "timm:resnet10t", "image_size": 32},
    ],
)
def test_torchvision_has_no_such_network(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="export it as safetensors"):
        export_backbone(build_backbone(**options), "torchvision", tmp_path / "b.pth")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    backbone = build_backbone("convnet", image_size=8)
    with pytest.raises(DeepClusterError, match="choose one of safetensors, torchvision, timm"):
        export_backbone(backbone, "caffe", tmp_path / "b")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DeepClusterError, match="cannot be written"):
        export_backbone(backbone, "safetensors", tmp_path / "file" / "b.safetensors")
    with pytest.raises(DeepClusterError, match="is missing"):
        load_backbone(tmp_path / "missing.safetensors")
    with pytest.raises(DeepClusterError, match="cannot be read"):
        load_backbone(tmp_path / "file")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DeepClusterError, match="no config"):
        load_backbone(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "wrong.safetensors", {"config": json.dumps(backbone.config)})
    with pytest.raises(DeepClusterError, match="does not hold a backbone"):
        load_backbone(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "resnet18", "image_size": 65},
        {"name": "timm:resnet10t", "image_size": 32, "mean": (0.5, 0.4, 0.3)},
        {"name": "vit_tiny_patch16_224", "image_size": 32, "depth": 1, "patch_size": 8},
        {"name": "timm:tf_efficientnet_lite0", "image_size": 48},
    ],
    ids=lambda options: options["name"],
)
def test_timm_loads_the_folder(options: dict[str, Any], tmp_path: Path) -> None:
    size = options["image_size"]
    backbone = used(build_backbone(**options), size)
    folder = export_backbone(backbone, "timm", tmp_path / "new" / "net")
    images = torch.randn(2, 3, size, size)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = load_folder(folder)
    assert (ours.image_size, ours.mean, ours.std) == (size, backbone.mean, backbone.std)
    data = cast(Any, timm).data.resolve_model_data_config(theirs)
    assert list(data["input_size"]) == [3, size, size] and tuple(data["mean"]) == backbone.mean
    assert data["crop_pct"] == (1.0 if size <= 64 else 0.875) and data["interpolation"] == "bilinear"
    with torch.no_grad():
        for network in (theirs, ours):
            torch.testing.assert_close(network(images), backbone(images), rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(DeepClusterError, match="is not empty"):
        export_backbone(backbone, "timm", folder)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "convnet", "image_size": 8},
        {"name": "resnet18", "image_size": 32},
        {"name": "torchvision:mobilenet_v3_small", "image_size": 64},
        {"name": "torchvision:resnet18", "image_size": 65, "width_per_group": 64},
        {"name": "timm:resnet10t", "image_size": 32, "sobel": "paper"},
    ],
)
def test_timm_has_no_such_network(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=r"timm has no network like .* export it as safetensors"):
        export_backbone(build_backbone(**options), "timm", tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
