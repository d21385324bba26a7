"""The authors' checkpoints, on files that the test makes of plain layers in their layout."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.alexnet import build_alexnet
from deepcluster.models.heads import LinearClassifier
from deepcluster.models.released import LAYERS, load_released, save_released
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone

K = 12


class Reference(nn.Module):
    """Their network, made here of plain layers: `features`, `classifier` with its last ReLU, `top_layer`, `sobel`."""

    def __init__(self, arch: str, sobel: bool, k: int = K, parallel: bool = True) -> None:
        super().__init__()
        channels = 2 if sobel else 3
        features = alexnet_features(channels) if arch == "alexnet" else vgg_features(channels)
        self.features: nn.Module = nn.DataParallel(features) if parallel else features
        linear = [nn.Linear(9216 if arch == "alexnet" else 25088, 4096), nn.ReLU(True)]
        second = [nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(True)]
        first = [nn.Dropout(0.5)] if arch == "alexnet" else []
        self.classifier = nn.Sequential(*first, *linear, *second)
        self.top_layer = nn.Linear(4096, k)
        self.sobel: nn.Module | None = None
        if sobel:
            gray, edges = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)
            gray.weight.data.fill_(1 / 3)
            edges.weight.data[0, 0] = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
            edges.weight.data[1, 0] = torch.tensor([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
            gray.bias.data.zero_()  # type: ignore[union-attr]
            edges.bias.data.zero_()  # type: ignore[union-attr]
            self.sobel = nn.Sequential(gray, edges)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Maps after each convolution's ReLU, fc6, fc7 before its ReLU, logits."""
        x = images if self.sobel is None else self.sobel(images)
        maps, inner = [], []
        layers = self.features.module if isinstance(self.features, nn.DataParallel) else self.features
        for layer in layers:  # type: ignore[union-attr]
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x.clone())
        x = x.flatten(1)
        for layer in self.classifier:
            x = layer(x)
            inner.append(x.clone())
        fc6 = next(y for y, layer in zip(inner, self.classifier, strict=True) if isinstance(layer, nn.ReLU))
        return maps, fc6, inner[-2], self.top_layer(x)


def alexnet_features(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, 96, 11, 4, 2), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(96, 256, 5, 1, 2), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(256, 384, 3, 1, 1), nn.BatchNorm2d(384), nn.ReLU()]
    layers += [nn.Conv2d(384, 384, 3, 1, 1), nn.BatchNorm2d(384), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, 1, 1), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(3, 2)]
    return nn.Sequential(*layers)


def vgg_features(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def lived(network: nn.Module) -> nn.Module:
    """Batch-norms as training leaves them, each with its own numbers, so that no two could be exchanged unseen."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
                tensor.normal_(0.5, 0.2)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            layer.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    return network.eval()


def publish(network: nn.Module, arch: str, file: Path, zipped: bool = False) -> Path:
    """As their training script saves."""
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=1e-5)
    state = {"epoch": 500, "arch": arch, "state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file


def compare(network: nn.Module, released: Any, size: int = 224) -> None:
    torch.manual_seed(3)
    images = torch.randn(1, 3, size, size)
    backbone = released.backbone
    with torch.no_grad(), read_taps(backbone, backbone.taps) as seen:
        features = backbone(images)
        maps, fc6, fc7, logits = network(images)
        head = LinearClassifier(4096, released.k, relu=backbone.head_relu)
        head.linear.load_state_dict({"weight": released.head_weight, "bias": released.head_bias})
        assert len(maps) == len([tap for tap in backbone.taps if tap.startswith("conv")])
        for number, expected in enumerate(maps, start=1):
            torch.testing.assert_close(seen[f"conv{number}"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen["fc6"], fc6, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features, fc7, rtol=1e-4, atol=1e-4)
        assert features.min() < 0  # before the last ReLU
        torch.testing.assert_close(head(features), logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def sobel_alexnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, Path]]:
    torch.manual_seed(0)
    network = lived(Reference("alexnet", sobel=True))
    file = publish(network, "alexnet", tmp_path_factory.mktemp("released") / "checkpoint.pth.tar")
    yield network, file
    file.unlink()


@pytest.fixture(autouse=True)
def _no_large_files_stay(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of three sessions."""
    yield
    for file in tmp_path.rglob("*.tar"):
        file.unlink()


def test_alexnet_computes_what_theirs_does(sobel_alexnet: tuple[nn.Module, Path]) -> None:
    network, file = sobel_alexnet
    state = torch.random.get_rng_state()
    released = load_released(file)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (released.arch, released.epoch, released.k) == ("alexnet", 500, K)
    assert released.backbone.config == {"name": "alexnet", "sobel": "paper", "image_size": 224}
    assert not released.backbone.training
    compare(network, released)


def test_alexnet_on_colors_without_dataparallel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = lived(Reference("alexnet", sobel=False, parallel=False))
    released = load_released(publish(network, "alexnet", tmp_path / "checkpoint.pth.tar", zipped=True))
    assert released.backbone.config["sobel"] == "none"
    compare(network, released)


@pytest.mark.slow
@pytest.mark.parametrize("sobel", [True, False])
def test_vgg16_computes_what_theirs_does(sobel: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = lived(Reference("vgg16", sobel))
    released = load_released(publish(network, "vgg16", tmp_path / "checkpoint.pth.tar"))
    compare(network, released)
    assert released.head_weight is not None and released.head_bias is not None
    head = (released.head_weight, released.head_bias)
    again = load_released(save_released(released.backbone, tmp_path / "ours.pth.tar", head, 3))
    assert differing(released, again) == []


def differing(a: Any, b: Any) -> list[str]:
    ours, theirs = (
        each.backbone.state_dict() | {"weight": each.head_weight, "bias": each.head_bias} for each in (a, b)
    )
    assert list(ours) == list(theirs)
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def as_their_scripts_do(file: Path) -> tuple[nn.Module, int]:
    """arch, K from top_layer.bias, Sobel from its key, `.module` taken out; everything must be there."""
    checkpoint = torch.load(file, weights_only=False)
    weights = checkpoint["state_dict"]
    arch, k, sobel = checkpoint["arch"], weights["top_layer.bias"].size(0), "sobel.0.weight" in weights
    with torch.device("meta"):  # no weights are drawn that are replaced
        network = Reference(arch, sobel, int(k), parallel=False)
    plain = {key.replace(".module", ""): value for key, value in weights.items()}
    network.load_state_dict(plain, strict=True, assign=True)
    return network.eval(), checkpoint["epoch"]


def test_their_scripts_read_ours_and_the_round_trip_is_exact(
    sobel_alexnet: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    released = load_released(sobel_alexnet[1])
    assert released.head_weight is not None and released.head_bias is not None
    head = (released.head_weight, released.head_bias)
    released.backbone.to(memory_format=torch.channels_last)
    file = save_released(released.backbone, tmp_path / "new" / "ours.pth.tar", head, epoch=7)
    keys = torch.load(file, weights_only=True)["state_dict"].keys()
    assert set(keys) == set(sobel_alexnet[0].state_dict())
    assert "features.module.0.weight" in keys and "classifier.1.weight" in keys
    again = load_released(file)
    assert differing(released, again) == [] and (again.epoch, again.arch, again.k) == (7, "alexnet", K)
    network, epoch = as_their_scripts_do(file)
    assert epoch == 7
    compare(network, released)
    assert [path.name for path in file.parent.iterdir()] == ["ours.pth.tar"]


def test_without_a_classifier_zeros_stand_for_it(tmp_path: Path) -> None:
    backbone = build_backbone("alexnet").eval()
    network: Any = as_their_scripts_do(save_released(backbone, tmp_path / "ours.pth.tar", k=5))[0]
    assert network.top_layer.weight.shape == (5, 4096) and not network.top_layer.weight.any()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[2], backbone(images), rtol=1e-4, atol=1e-4)


def test_every_tensor_of_ours_is_in_the_tables() -> None:
    for arch, layers in LAYERS.items():
        with torch.device("meta"):
            names = {name.rpartition(".")[0] for name in build_backbone(arch, image_size=63).state_dict()}
        assert sorted(f"trunk.{layer}" for layer in layers) == sorted(names)


def light(arch: str = "alexnet", sobel: bool = True) -> OrderedDict[str, Tensor]:
    """Their tensors by name and shape, each of them one number long in the file."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Reference(arch, sobel=False).state_dict().items()}
    weights = OrderedDict((name, torch.zeros(()).expand(shape)) for name, shape in shapes.items())
    if sobel:
        weights["features.module.0.weight"] = torch.zeros(()).expand(96, 2, 11, 11)
        weights |= sobel_layers()
    return weights


def written(file: Path, weights: Any, **more: Any) -> Path:
    torch.save({"epoch": 1, "arch": "alexnet", "state_dict": weights, "optimizer": {}} | more, file)
    return file


def sobel_layers() -> dict[str, Tensor]:
    edges = torch.tensor([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]], [[[1, 2, 1], [0, 0, 0], [-1, -2, -1]]]])
    gray = torch.full((1, 3, 1, 1), 1 / 3)
    zeros = {"sobel.0.bias": torch.zeros(1), "sobel.1.bias": torch.zeros(2)}
    return {"sobel.0.weight": gray, "sobel.1.weight": edges, **zeros}


def test_old_files_without_counters_or_classifier_are_read(tmp_path: Path) -> None:
    """Before torch 0.4.1 batch-norm counted nothing; a file saved between clusterings has no classifier."""
    old = {name: tensor for name, tensor in light(sobel=False).items() if "num_batches" not in name}
    headless = {name: tensor for name, tensor in old.items() if not name.startswith("top_layer")}
    released = load_released(written(tmp_path / "a", headless))
    assert (released.head_weight, released.head_bias, released.k) == (None, None, 0)
    assert load_released(written(tmp_path / "b", old)).k == K


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("features.module.14.bias"), "has no features.14.bias"),
        (lambda weights: weights.pop("top_layer.weight"), "has no top_layer.weight"),
        (lambda weights: weights.pop("sobel.1.bias"), "has no sobel.1.bias"),
        (
            lambda weights: weights.update({"classifier.6.weight": torch.zeros(1)}),
            "holds classifier.6.weight, which the alexnet",
        ),
        (
            lambda weights: weights.update({"classifier.4.bias": torch.zeros(9)}),
            r"classifier.4.bias of .* \(9,\) and sho",
        ),
        (
            lambda weights: weights.update({"top_layer.weight": torch.zeros(3, 4096)}),
            r"shape \(3, 4096\) and should have \(12",
        ),
        (
            lambda weights: weights.update({"sobel.0.weight": torch.ones(1, 3, 1, 1)}),
            "not the paper's fixed Sobel filter",
        ),
        (
            lambda weights: weights.update({"features.module.4.bias": torch.full((256,), torch.nan)}),
            r"not finite, in features\.4\.bias",
        ),
        (
            lambda weights: weights.update({"features.module.0.weight": "text"}),
            "no tensor at 'features.module.0.weight'",
        ),
    ],
)
def test_tensors_that_do_not_fit_get_one_sentence(change: Any, sentence: str, tmp_path: Path) -> None:
    weights = light()
    change(weights)
    with pytest.raises(DeepClusterError, match=sentence) as refused:
        load_released(written(tmp_path / "checkpoint", weights))
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")


def test_other_layouts_get_one_sentence(tmp_path: Path) -> None:
    contents: list[object] = [
        torch.zeros(3),
        {"a": 1},
        {"arch": "alexnet"},
        {"state_dict": {}},
        {"arch": "alexnet", "state_dict": 1},
    ]
    for content in contents:
        torch.save(content, tmp_path / "checkpoint")
        with pytest.raises(DeepClusterError, match="has not the layout of DeepCluster's checkpoints"):
            load_released(tmp_path / "checkpoint")
    for arch in ("resnet50", ["alexnet"], None):
        with pytest.raises(DeepClusterError, match="checkpoints are of alexnet and vgg16"):
            load_released(written(tmp_path / "checkpoint", {}, arch=arch))
    with pytest.raises(DeepClusterError, match=r"features\.0\.weight of .* should have"):
        load_released(written(tmp_path / "checkpoint", light(sobel=False), arch="vgg16"))


def test_backbones_that_their_scripts_have_no_place_for(tmp_path: Path) -> None:
    small: dict[str, Any] = {"image_size": 64}
    for options, sentence in (
        ({"name": "convnet", "image_size": 16}, "its network is convnet"),
        ({"name": "alexnet", **small}, "images of 64 px, theirs for 224 px"),
        ({"name": "alexnet", "sobel": "deepercluster", **small}, "its input layer is deepercluster"),
    ):
        with pytest.raises(DeepClusterError, match=sentence):
            save_released(build_backbone(**options), tmp_path / "ours.pth.tar")
    backbone = build_backbone("alexnet", mean=(0.5, 0.5, 0.5))
    with pytest.raises(DeepClusterError, match="not normalized with ImageNet's"):
        save_released(backbone, tmp_path / "ours.pth.tar")
    backbone.mean = build_alexnet(3, 63).mean
    for head in ((torch.zeros(3, 9), torch.zeros(3)), (torch.zeros(3, 4096), torch.zeros(2))):
        with pytest.raises(DeepClusterError, match=r"weight of shape \(K, 4096\)"):
            save_released(backbone, tmp_path / "ours.pth.tar", head)
    assert list(tmp_path.iterdir()) == []
