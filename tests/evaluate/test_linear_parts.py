"""What probes are made of: splits, poolings, frozen features, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.data.arrays import Arrays
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.linear.features import VGG16, FrozenFeatures, poolings
from deepcluster.evaluate.linear.recipes import LINEAR, MLP, Recipe, default_recipe, length, override
from deepcluster.evaluate.linear.splits import draw_shots, split_data, stratified_folds
from deepcluster.models.folding import folded
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def subject(name: str = "convnet", size: int = 32, **options: Any) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(name, image_size=size, **options).eval()
    return Subject(name, Model(backbone, torch.zeros(0, backbone.dim)), "cpu", Path("unused"))


class Broken(Arrays):
    """Pictures, some of which cannot be decoded."""

    bad = (3, 7)
    block = None

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        if index in self.bad:
            raise BadImage("cut short")
        return super().read(index, short_side)


# --- splits


def test_holdout_takes_the_same_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2, -1], [50, 20, 2, 9])
    source = Arrays("set", pictures(len(labels)), labels, ("a", "b", "c"))
    found = split_data(subject(), source, holdout=0.2)
    assert np.bincount(found.test.labels).tolist() == [10, 4, 1]
    assert np.bincount(found.train.labels).tolist() == [40, 16, 1]
    assert not set(found.train.index) & set(found.test.index)
    for split in (found.train, found.test):
        assert (labels[split.index] == split.labels).all()
    assert found.unlabeled == 9 and "held out with seed 0" in found.test_description
    again, other = split_data(subject(), source, holdout=0.2), split_data(subject(), source, holdout=0.2, seed=1)
    assert (again.test.index == found.test.index).all() and (other.test.index != found.test.index).any()


def test_test_classes_are_matched_by_name_and_losses_are_counted() -> None:
    train = Broken("train", pictures(20), np.arange(20) % 2, ("ant", "bee"))
    test = Arrays("test", pictures(6), np.array([0, 0, 1, 1, -1, 2]), ("bee", "ant", "cat"))
    found = split_data(subject(), train, test)
    assert found.classes == ("ant", "bee", "cat") and found.test.labels.tolist() == [1, 1, 0, 0, 2]
    said = found.settings()
    assert said["images_data"] == 18 and said["images_test"] == 5
    assert said["left_out"] == "1 image without a label and 2 that cannot be decoded"


@pytest.mark.parametrize(
    "labels, options, sentence",
    [
        (np.zeros(10, int), {"holdout": 0.5}, r"of one class \(a\)"),
        (np.arange(10) % 2, {}, "no test images"),
        (np.arange(10) % 2, {"holdout": 0.5, "test": "x"}, "both"),
        (np.arange(10) % 2, {"holdout": 1.5}, "not a share"),
        (np.arange(10), {"holdout": 0.5}, "no test images"),  # one image a class: none can be held out
        (None, {"holdout": 0.5}, "has none"),
    ],
)
def test_images_that_cannot_be_split_are_refused(
    labels: np.ndarray | None, options: dict[str, Any], sentence: str
) -> None:
    source = Arrays("set", pictures(10), labels, tuple("abcdefghij"))
    with pytest.raises(DeepClusterError, match=sentence):
        split_data(subject(), source, options.get("test"), options.get("holdout"))


def test_folds_and_few_are_even() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 203)
    fold = stratified_folds(labels, 4, 0)
    for label in range(5):
        sizes = np.bincount(fold[labels == label], minlength=4)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    names = tuple("abcde")
    rows = draw_shots(labels, 7, 0, names)
    assert np.bincount(labels[rows]).tolist() == [7] * 5 and len(set(rows)) == 35
    assert rows.tolist() != draw_shots(labels, 7, 1, names).tolist()
    share = draw_shots(labels, 0.1, 0, names)
    assert np.bincount(labels[share]).tolist() == [round(0.1 * n) for n in np.bincount(labels)]
    assert np.bincount(labels[draw_shots(labels, 0.001, 0, names)]).tolist() == [1] * 5
    with pytest.raises(DeepClusterError, match="ask for fewer --shots"):
        draw_shots(labels, 200, 0, names)


# --- poolings and frozen features


def test_dimensions_are_the_papers() -> None:
    alexnet = build_backbone("alexnet", sobel="paper", image_size=224)
    pools = poolings(alexnet, ["all"])
    assert [(tap, pool.dim) for tap, pool in pools.items()] == [
        ("conv1", 9600), ("conv2", 9216), ("conv3", 9600), ("conv4", 9600), ("conv5", 9216),
    ]  # fmt: skip
    assert {pool.kind for pool in pools.values()} == {"average"}
    assert [VGG16[f"conv{k}"][0] for k in range(1, 14)] == [18, 18, 14, 14, 9, 9, 9, 6, 6, 6, 3, 3, 3]
    with torch.device("meta"):
        resnet = build_backbone("resnet50")
    from deepcluster.evaluate.linear.features import _pooling

    shapes = {"stem": (64, 112, 112), "layer1": (256, 56, 56), "layer2": (512, 28, 28), "layer3": (1024, 14, 14)}
    found = {tap: _pooling(resnet, tap, shape).dim for tap, shape in shapes.items()}
    assert found == {"stem": 9216, "layer1": 9216, "layer2": 8192, "layer3": 9216}
    assert _pooling(resnet, "layer4", (2048, 7, 7)).dim == 8192
    vgg = {f"conv{k}": (c, s, s) for k, (c, s) in enumerate([(64, 224)] * 2 + [(128, 112)] * 2 + [(256, 56)] * 3
           + [(512, 28)] * 3 + [(512, 14)] * 3, start=1)}  # fmt: skip
    with torch.device("meta"):
        vgg16 = build_backbone("vgg16")
    dims = [_pooling(vgg16, tap, shape).dim for tap, shape in vgg.items()]
    assert dims == [9216, 9216, 8192, 8192, 9216, 9216, 9216, 8192, 8192, 8192, 8192, 8192, 8192]


def test_other_sizes_get_the_largest_square() -> None:
    pools = poolings(build_backbone("convnet", image_size=32), ["all"])
    assert [(pool.kind, pool.side, pool.dim) for pool in pools.values()] == [
        ("adaptive", 16, 16 * 256), ("adaptive", 16, 32 * 256), ("adaptive", 8, 64 * 64), ("adaptive", 8, 128 * 64),
        ("adaptive", 4, 128 * 16),
    ]  # fmt: skip
    assert list(poolings(build_backbone("convnet", image_size=32), ["output", "conv3"])) == ["conv3", "output"]
    with pytest.raises(DeepClusterError, match="no tap 'conv9'"):
        poolings(build_backbone("convnet", image_size=32), ["conv9"])
    with pytest.raises(DeepClusterError, match="`all` alone"):
        poolings(build_backbone("convnet", image_size=32), ["all", "conv1"])


def test_tokens_are_averaged_and_channels_may_come_last() -> None:
    vit = build_backbone("timm:vit_tiny_patch16_224", image_size=32, depth=2)
    (pool,) = poolings(vit, ["blocks.1"]).values()
    tokens = torch.randn(2, 5, 192)
    assert pool.kind == "tokens" and torch.equal(pool(tokens), tokens.mean(1))
    swin = build_backbone(
        "timm:swin_tiny_patch4_window7_224", image_size=64, embed_dim=24, depths=(1, 1), num_heads=(1, 2), window_size=4
    )
    pool = poolings(swin, ["layers.0"])["layers.0"]
    maps = torch.randn(2, 16, 16, 24)
    assert pool.last and pool.side == 16
    torch.testing.assert_close(pool(maps), maps.permute(0, 3, 1, 2).flatten(1))


@pytest.mark.parametrize(
    "name, size, taps",
    [
        ("convnet", 32, ("conv1", "conv4", "output")),
        ("resnet18", 32, ("stem", "layer2")),
        ("alexnet", 64, ("conv2", "fc6")),
    ],
)
def test_frozen_layers_are_the_networks_own(name: str, size: int, taps: tuple[str, ...]) -> None:
    backbone = build_backbone(name, image_size=size)
    with torch.no_grad():
        backbone(torch.randn(16, 3, size, size))  # batch-norm statistics of its own
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    backbone.eval()
    pools = poolings(backbone, taps)
    frozen = FrozenFeatures(backbone, pools)
    images = torch.randn(4, 3, size, size)
    inner = [tap for tap in taps if tap != "output"]
    seen = {}
    with torch.no_grad():
        for tap in inner:  # one at a time: what follows may work in place
            with read_taps(backbone, [tap]) as read:
                output = backbone(images)
            seen[tap] = pools[tap](read[tap])
    if "output" in taps:
        seen["output"] = output
    for _ in range(2):  # the first pass runs through, later ones stop at the deepest tap
        found = frozen(images)
        assert list(found) == list(pools)
        for tap in taps:
            torch.testing.assert_close(found[tap], seen[tap], rtol=1e-3, atol=1e-4)


def test_batch_norm_is_folded_and_deeper_layers_are_not_computed() -> None:
    backbone = build_backbone("resnet18", image_size=32).eval()
    inference = folded(backbone, backbone.taps)
    assert not [m for m in inference.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    frozen = FrozenFeatures(backbone, poolings(backbone, ["layer1"]))
    frozen(torch.zeros(1, 3, 32, 32))
    calls: list[int] = []
    trunk: Any = frozen.network.trunk
    trunk.layer2.register_forward_hook(lambda *_: calls.append(1))
    frozen(torch.zeros(1, 3, 32, 32))
    assert not calls


# --- recipes


def test_recipes_are_the_papers() -> None:
    paper = LINEAR["deepcluster"]
    assert (paper.epochs, paper.lr, paper.batch_size, paper.momentum) == (90, (0.01,), 256, 0.9)
    assert paper.factor(1000, 9000, 100, 0.01, 1e-7) == pytest.approx(1 / (1 + 0.01 * 1e-7 * 1000) ** 0.5)
    deeper = LINEAR["deepercluster"]
    rates = [deeper.rates(f"conv{k}")[0] for k in range(1, 14)]
    assert rates == [0.005, 0.01, 0.03, 0.03, 0.03, 0.03, 0.02, 0.03, 0.03, 0.03, 0.02, 0.02, 0.02]
    assert LINEAR["deepercluster-places"].rates("conv10") == (0.03,)
    steps = LINEAR["openselfsup"]
    assert [steps.factor(e * 10, 900, 10, 0.01, 0) for e in (29, 30, 59, 60)] == pytest.approx([1, 0.1, 0.1, 0.01])
    voc = MLP["deepcluster"]
    assert length(voc, 5000) == (80_000, 313) and voc.factor(9999, 80_000, 313, 0.003, 0) == 0.5


def test_values_take_the_place_of_a_recipes_own() -> None:
    changed = override(LINEAR["openselfsup"], epochs=9, lr=[0.1, 0.2])
    assert changed.milestones == (3, 6) and changed.lr == (0.1, 0.2) and "with changed epochs, lr" in str(changed)
    assert override(LINEAR["deepercluster"], lr=(0.5,)).rates("conv3") == (0.5,)
    assert length(override(MLP["deepcluster"], epochs=2), 160) == (20, 10)
    assert override(Recipe("own", 6), schedule="step").milestones == (2, 4)
    assert override(LINEAR["quick"]) is LINEAR["quick"]
    for values in ({"epochs": 0}, {"batch_size": 0}, {"lr": ()}, {"lr": (0.0,)}, {"schedule": "linear"}):
        with pytest.raises(DeepClusterError):
            override(LINEAR["quick"], **values)
    assert default_recipe(build_backbone("convnet", image_size=32)) == "quick"
    assert default_recipe(build_backbone("resnet18", image_size=128)) == "openselfsup"
