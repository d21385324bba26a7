"""Training that begins with given weights, and what a run tells of its classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepcluster.config import TrainRun, override
from deepcluster.engine import build, checkpoint, loop, train
from deepcluster.engine.log import Screen
from deepcluster.engine.model import backbone_from, load_initial_weights
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import export_backbone
from deepcluster.models.heads import CosineClassifier
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import find_preset

SMALL = {"epochs": 2, "k": 5, "whiten": 8, "batch_size": 16, "image_size": 12, "clusterings": 1, "ema_decay": 0.0}
IMAGES = np.random.default_rng(0).integers(0, 255, (64, 12, 12, 3)).astype(np.uint8)


def settings(**values: object) -> TrainRun:
    return override(find_preset("tiny-deepcluster").run, SMALL | values)


def fit(out: Path, **values: object) -> Run:
    return train.train(settings(**values), IMAGES, out, screen=Screen(quiet=True))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tmp_path_factory.mktemp("runs") / "earlier", epochs=1)


def parameters(backbone: Backbone) -> dict[str, torch.Tensor]:
    return dict(backbone.named_parameters())


def same(a: Backbone, b: Backbone) -> bool:
    ours, theirs = parameters(a), parameters(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_begins_where_another_ended(earlier: Run, tmp_path: Path, ema_decay: float) -> None:
    """At learning rate 0 the weights stay what they were at the beginning; the running average too."""
    still = {"lr": 0.0, "optimizer.weight_decay": 0.0, "ema_decay": ema_decay}
    drawn = fit(tmp_path / "drawn", **still)
    given = fit(tmp_path / "given", **still, **{"backbone.weights": str(earlier.folder / "model.safetensors")})
    assert same(given.backbone, earlier.backbone) and not same(drawn.backbone, earlier.backbone)
    last = checkpoint.load(given.folder / "checkpoints/last.ckpt")["method"]
    for name, tensor in parameters(earlier.backbone).items():
        assert torch.equal(last[f"backbone.{name}"], tensor)


def test_every_file_of_ours_will_do(earlier: Run, tmp_path: Path) -> None:
    exported = export_backbone(earlier.backbone, "safetensors", tmp_path / "b.safetensors")
    assert same(backbone_from(exported), earlier.backbone)
    assert same(backbone_from(earlier.folder / "model.safetensors"), earlier.backbone)


def test_the_file_is_read_at_a_fresh_start_only(earlier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export_backbone(earlier.backbone, "safetensors", tmp_path / "begin.safetensors")
    monkeypatch.chdir(tmp_path)
    run = settings(**{"backbone.weights": "begin.safetensors"})
    whole = train.train(run, IMAGES, tmp_path / "whole", screen=Screen(quiet=True))
    stop_after(1, run, tmp_path / "cut", monkeypatch)
    recorded = json.loads((tmp_path / "cut/run.json").read_text())["settings"]["backbone"]["weights"]
    assert recorded == str(file)  # found from every working directory
    monkeypatch.chdir("/")
    assert same(build.untrained(load_run(tmp_path / "cut").config), earlier.backbone)

    # A run that was killed before its first checkpoint starts afresh, and needs the file.
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/run.json").write_text((tmp_path / "cut/run.json").read_text())
    fresh = train.train_again(tmp_path / "fresh", IMAGES, Screen(quiet=True))
    file.unlink()
    resumed = train.train_again(tmp_path / "cut", IMAGES, Screen(quiet=True))
    assert same(resumed.backbone, whole.backbone) and same(fresh.backbone, whole.backbone)
    assert not same(whole.backbone, earlier.backbone)
    with pytest.raises(DeepClusterError, match="is missing"):
        build.untrained(load_run(tmp_path / "cut").config)


def stop_after(steps: int, run: TrainRun, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until so many steps are done, then stops as Ctrl-C does."""
    import os
    import signal

    module: Any = loop
    original, done = module.step_all, []

    def counting(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "step_all", counting)
        with pytest.raises(Interrupted):
            train.train(run, IMAGES, out, screen=Screen(quiet=True))


@pytest.mark.parametrize(
    "values",
    [
        {"backbone.sobel": "paper"},
        {"backbone.name": "resnet18", "backbone.options": {}},
        {"backbone.options": {"widths": [32, 64, 96], "pools": [1, 2]}},
        {"backbone.options": {"widths": [32, 64, 128], "pools": [1, 3]}},  # the shapes are the same
        {"backbone.options": {"widths": [32, 64, 128], "pools": [1, 2], "mean": [0.5, 0.5, 0.5]}},
    ],
    ids=["sobel", "resnet", "widths", "pools", "mean"],
)
def test_another_network_is_refused(earlier: Run, tmp_path: Path, values: dict[str, Any]) -> None:
    weights = {"backbone.weights": str(earlier.folder / "model.safetensors")}
    with pytest.raises(DeepClusterError, match=r"holds another network .*name convnet.* make the --backbone settings"):
        fit(tmp_path / "run", **values, **weights)
    assert not (tmp_path / "run").exists()


def test_the_padding_of_sobel_matters_and_the_dropout_does_not(tmp_path: Path) -> None:
    backbone = build_backbone("alexnet", sobel="paper", image_size=63)
    file = export_backbone(backbone, "safetensors", tmp_path / "b.safetensors")
    load_initial_weights(file, [build_backbone("alexnet", sobel="paper", image_size=63, dropout=0.1)])
    with pytest.raises(DeepClusterError, match="another network"):
        load_initial_weights(file, [build_backbone("alexnet", sobel="deepercluster", image_size=63)])
    file.unlink()


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth.tar", "text.safetensors", "text.pth.tar"])
def test_a_file_that_holds_no_backbone(name: str, tmp_path: Path) -> None:
    if name.startswith("text"):
        (tmp_path / name).write_text("text")
    with pytest.raises(DeepClusterError, match=rf"{name} (is missing|cannot be read|is not a file of torch)"):
        fit(tmp_path / "run", **{"backbone.weights": str(tmp_path / name)})
    assert not (tmp_path / "run").exists()


def test_the_classifier_of_a_run_is_its_last_checkpoints(earlier: Run, tmp_path: Path) -> None:
    assert earlier.head is not None
    weight, bias = earlier.head
    saved = checkpoint.load(earlier.folder / "checkpoints/last.ckpt")["method"]
    assert weight.shape == (5, earlier.backbone.dim) and bias.any()  # trained: it was drawn with a bias of zero
    assert torch.equal(weight, saved["heads.0.linear.weight"]) and torch.equal(bias, saved["heads.0.linear.bias"])
    cosine = fit(tmp_path / "cosine", head="centroids")
    assert cosine.head is not None
    weight, bias = cosine.head
    head = CosineClassifier(cosine.backbone.dim, 5, relu=cosine.backbone.head_relu, temperature=0.1)
    head.directions.data = checkpoint.load(cosine.folder / "checkpoints/last.ckpt")["method"]["heads.0.directions"]
    features = torch.from_numpy(cosine.features(IMAGES))
    assert torch.equal(F.linear(head.directions_of(features), weight, bias).argmax(1), head(features).argmax(1))
    (cosine.folder / "checkpoints/last.ckpt").unlink()
    assert cosine.head is None
