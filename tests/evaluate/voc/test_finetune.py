"""Fine-tuning against a plain loop, resumed against uninterrupted, and piece by piece."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear.recipes import Recipe
from deepcluster.evaluate.trainer import VIEW
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.finetune import (
    ORDER,
    RANDOM_CROPS,
    TEST,
    Crops,
    FineTuneMode,
    TransferNetwork,
    finetune,
    multilabel_loss,
    recipe_of,
    summed_logits,
)
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded
from deepcluster.resume import ResumeFile

from ..steps import Steps, stopping


def test_loss_is_the_sum_over_known_labels_divided_by_the_batch() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(5, 4)), random.integers(-1, 2, (5, 4))
    total = 0.0
    for row in range(5):
        for column in range(4):
            if labels[row, column] >= 0:
                p = 1 / (1 + np.exp(-logits[row, column]))
                total -= np.log(p if labels[row, column] else 1 - p)
    assert float(multilabel_loss(torch.tensor(logits), torch.tensor(labels))) == pytest.approx(total / 5)


def test_recipes_are_those_of_the_published_code() -> None:
    recipe = recipe_of("deepcluster", "fc6-8")
    assert (recipe.iterations, recipe.batch_size, recipe.lr, recipe.step) == (80_000, 16, (0.003,), 5_000)
    assert (recipe.momentum, recipe.weight_decay, recipe.clip, recipe.schedule) == (0.9, (1e-6,), 10, "halving")
    views = recipe.resized_views(build_backbone("convnet", image_size=16, widths=(4,), pools=(1,)))
    assert views.crop_scale == (0.1, 0.5) and views.crop_ratio == (1, 1)
    deeper = {mode: recipe_of("deepercluster", mode) for mode in get_args(FineTuneMode)}
    assert [r.weight_decay for r in deeper.values()] == [(1e-5,), (1e-4,)] and deeper["all"].iterations == 150_000
    assert [r.step for r in deeper.values()] == [20_000, 10_000] and deeper["all"].views == "resized"
    assert recipe_of("deepcluster", "all", lr=0.1, batch_size=None).lr == (0.1,)
    with pytest.raises(DeepClusterError, match="give 1 or more"):
        recipe_of("deepcluster", "all", iterations=0)


def test_new_layers_of_alexnet_are_random_and_the_others_kept() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("alexnet", image_size=64, sobel="paper").eval()
    before = copy.deepcopy(backbone)
    network = TransferNetwork(backbone, 20, "fc6-8", draw_top=True).eval()
    fc6, fc7 = (network.layers[k] for k in (1, 4))  # type: ignore[index]
    for layer in (fc6, fc7, network.top):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02) and (layer.bias == 0.1).all()
    assert (fc6.weight != before.trunk.classifier[1].weight).any()  # type: ignore[union-attr,index]
    kept, old = network.kept.state_dict(), before.trunk.features.state_dict()  # type: ignore[union-attr]
    assert kept.keys() == old.keys() and all((kept[name] == old[name]).all() for name in old)
    images = torch.randn(2, 3, 64, 64)
    expected = network.top(torch.relu(backbone(images)))  # the backbone's fc6 and fc7 are the new ones
    torch.testing.assert_close(network(images), expected)
    default = TransferNetwork(copy.deepcopy(before), 20, "fc6-8")
    assert default.top.weight.abs().max().item() <= 4096**-0.5 and (default.top.bias == 0.1).all()


def trained(network: TransferNetwork) -> set[str]:
    return {name.split(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}


def test_trained_parameters_of_each_mode(subject: Subject) -> None:
    def made(*args: object, **options: object) -> TransferNetwork:
        return TransferNetwork(copy.deepcopy(subject.backbone), 3, *args, **options)  # type: ignore[arg-type]

    assert trained(made("fc6-8", hidden=8)) == {"layers", "top"}
    assert trained(made("all")) == {"kept", "top"}
    assert made("all").top.in_features == 12 and made("fc6-8", hidden=8).top.in_features == 8
    normal = made("fc6-8", hidden=8, train_batchnorm=True)
    names = [name for name, weight in normal.kept.named_parameters() if weight.requires_grad]
    assert len(names) == 4 and all(".1." in name for name in names)  # scale and shift of two batch-norms
    network = normal.train()
    assert network.layers.training and not network.kept.training


def prepared(subject: Subject, colors: Path) -> tuple[Pixels, np.ndarray, ViewGroup]:
    voc = open_voc(colors, "trainval")
    pixels = load_pixels(voc.images, short_side=None, cache_gb=1)
    return pixels, voc.labels_matrix(), recipe_of("deepcluster", "all").resized_views(subject.backbone)


def run(
    subject: Subject,
    colors: Path,
    recipe: Recipe,
    mode: FineTuneMode,
    file: Path,
    screen: Steps | None = None,
) -> TransferNetwork:
    pixels, labels, views = prepared(subject, colors)
    torch.manual_seed(4)
    network = TransferNetwork(copy.deepcopy(subject.backbone), labels.shape[1], mode, hidden=8)
    resume = ResumeFile(file, "settings", save_seconds=0.0)
    options: dict[str, Any] = {"resume": resume, "screen": screen or Steps(), "seed": 1, "device": "cpu"}
    resume.run("stage", lambda: finetune(network, pixels, labels, recipe, views, **options))
    return network


def test_training_matches_a_plain_loop(subject: Subject, colors: Path, tmp_path: Path) -> None:
    recipe = replace(
        recipe_of("deepcluster", "all", iterations=7, batch_size=5, lr=0.5, step=2, weight_decay=0.01), clip=0.3
    )
    ours = run(subject, colors, recipe, "all", tmp_path / "s")
    pixels, labels, views = prepared(subject, colors)
    torch.manual_seed(4)
    network = TransferNetwork(copy.deepcopy(subject.backbone), labels.shape[1], "all", hidden=8).train()
    order = torch.randperm(24, generator=seeded(1, ORDER)).numpy()
    velocity = [torch.zeros_like(weight) for weight in network.parameters()]
    batches = [
        b for e in range(2) for b in Loader(pixels, order, batch_size=5, transform=RandomViews(views), key=(1, VIEW, e))
    ]
    assert [len(batch.index) for batch in batches[:5]] == [5, 5, 5, 5, 4]  # the same order in every epoch
    assert batches[0].index.tolist() == batches[5].index.tolist()
    for iteration, batch in enumerate(batches[:7]):
        loss = multilabel_loss(network(batch.views[0]), torch.from_numpy(labels[batch.index].astype(int)))
        grads = torch.autograd.grad(loss, list(network.parameters()))
        norm = torch.stack([(g**2).sum() for g in grads]).sum().sqrt()
        scale = min(1.0, 0.3 / (float(norm) + 1e-6))
        with torch.no_grad():
            for weight, grad, speed in zip(network.parameters(), grads, velocity, strict=True):
                speed.mul_(0.9).add_(grad * scale + 0.01 * weight)
                weight.sub_(0.5 * 0.5 ** (iteration // 2) * speed)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        changes = "running" not in name and "num_batches" not in name
        moved = name.startswith("kept") and (value != subject.backbone.trunk.state_dict()[name[5:]]).any()
        assert not name.startswith("kept") or bool(moved) == changes, name


def test_killed_and_resumed_is_equal_to_the_bit(subject: Subject, colors: Path, tmp_path: Path) -> None:
    recipe = recipe_of("deepcluster", "fc6-8", iterations=11, batch_size=5, lr=0.1)
    expected = run(subject, colors, recipe, "fc6-8", tmp_path / "uninterrupted")

    with pytest.raises(Interrupted):
        run(subject, colors, recipe, "fc6-8", tmp_path / "state", stopping(7))
    steps = Steps()
    again = run(subject, colors, recipe, "fc6-8", tmp_path / "state", steps)
    assert steps.count == 4
    assert all((again.state_dict()[name] == value).all() for name, value in expected.state_dict().items())


@pytest.mark.parametrize("crops", get_args(Crops))
def test_logits_are_summed_over_crops(crops: Crops) -> None:
    random = np.random.default_rng(0)
    source = open_images([random.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(3)])
    pixels = load_pixels(source, short_side=None, cache_gb=1)
    views = ViewGroup(size=16, crop_scale=(0.1, 0.5), crop_ratio=(1.0, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3)

    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))[:, :2]

    class Missing:
        """The second image cannot be decoded."""

        def __getattr__(self, name: str) -> object:
            return getattr(pixels, name)

        def __len__(self) -> int:
            return 3

        def gather(self, index: np.ndarray) -> list[np.ndarray | None]:
            return [None if k == 1 else image for k, image in zip(index, pixels.gather(index), strict=True)]

        def gather_all(self, batches: list[np.ndarray]) -> Iterator[list[np.ndarray | None]]:
            return map(self.gather, batches)

    scores = summed_logits(Mean(), Missing(), views, 2, crops=crops, seed=5)  # type: ignore[arg-type]
    assert np.isnan(scores[1]).all() and np.isfinite(scores[[0, 2]]).all()
    means = np.stack([np.asarray(source.read(k)).mean((0, 1))[:2] / 127.5 - 1 for k in (0, 2)])
    np.testing.assert_allclose(scores[[0, 2]] / (1 if crops == "center" else 10), means, atol=0.25)
    if crops == "random":
        transform = RandomViews(replace(views, count=RANDOM_CROPS))
        (batch,) = Loader(pixels, [0, 1, 2], batch_size=64, transform=transform, key=(5, TEST))
        slow = sum(view.mean((2, 3))[:, :2].double().numpy() for view in batch.views)
        np.testing.assert_allclose(scores[[0, 2]], slow[[0, 2]], atol=1e-5)  # type: ignore[index]
        other = summed_logits(Mean(), pixels, views, 2, crops=crops, seed=6)
        assert (scores[0] != other[0]).all()
