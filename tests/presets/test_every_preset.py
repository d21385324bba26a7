"""Every preset builds its network, takes steps on small images, and goes on from a checkpoint to the bit."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.config import TrainRun, override
from deepcluster.engine import checkpoint, train
from deepcluster.engine.log import Screen
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import PRESETS

SMALLEST = {"alexnet": 63, "vgg16": 32}
SLOW = ("alexnet", "vgg16", "resnet18", "resnet50")
N = 64


def parameters() -> list[Any]:
    """Every preset; large networks, and a second preset with the same method and network, are slow ones."""
    seen, found = set(), []
    for name, preset in PRESETS.items():
        kind = (type(preset.run.method), preset.run.backbone.name)
        slow = preset.run.backbone.name in SLOW or kind in seen
        seen.add(kind)
        found.append(pytest.param(name, marks=[pytest.mark.slow] if slow else []))
    return found


def shrunk(run: TrainRun) -> TrainRun:
    """The preset for 64 images as small as its network allows, in two epochs of one step."""
    small = {"epochs": 2, "batch_size": N, "keep_every": 1, "device": "cpu", "precision": "32"}
    small |= {"image_size": SMALLEST.get(run.backbone.name, 12), "data.view_size": 0}
    small |= {"data.small_view_size": min(run.data.small_view_size, 12)}
    few = {"k": 4, "whiten": 8}
    method: Any = run.method
    has = {item.name for item in dataclasses.fields(method)} - (set() if method.k else {"k"})  # PIC finds its own
    return override(run, small | {f"method.{name}": value for name, value in few.items() if name in has})


@pytest.mark.parametrize("name", parameters())
def test_it_trains_and_resumes(name: str, tmp_path: Path) -> None:
    run = shrunk(PRESETS[name].run)
    images = np.random.default_rng(0).integers(0, 255, (N, 12, 12, 3)).astype(np.uint8)
    quiet = Screen(quiet=True)
    done = train.train(run, images, tmp_path / "run", preset=name, screen=quiet)
    assert [row["epoch"] for row in done.metrics] == [0, 1]
    assert all(math.isfinite(row["loss"]) for row in done.metrics) and (done.assignment >= 0).all()
    folder = done.folder / "checkpoints"
    whole, assignment = checkpoint.load(folder / "last.ckpt"), done.assignment
    assert whole["progress"]["step"] == 2
    half = checkpoint.load(folder / "epoch-0000.ckpt")
    assert half["progress"]["step"] == 1 and different(half["method"], whole["method"])
    del half
    (folder / "epoch-0000.ckpt").replace(folder / "last.ckpt")  # as if it had been stopped there
    again = train.train_again(done.folder, images, quiet)
    assert different(whole, checkpoint.load(folder / "last.ckpt")) == []
    assert [row["epoch"] for row in again.metrics] == [0, 1]
    np.testing.assert_array_equal(again.assignment, assignment)
    shutil.rmtree(done.folder)  # pytest would keep it


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """Names of the leaves in which two checkpoints differ, timings apart."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in a.keys() | b.keys() if not str(name).startswith("seconds")]
        return [leaf for name in names for leaf in different(a.get(name), b.get(name), f"{where}/{name}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [leaf for place, (x, y) in pairs for leaf in different(x, y, f"{where}/{place}")]
    return [] if a == b else [where]


@pytest.mark.parametrize("name", PRESETS)
def test_it_says_where_it_comes_from(name: str) -> None:
    about = PRESETS[name].about
    assert f"deepcluster train {name} --data" in about and "Source:" in about
    assert "Cost" in about and "core" in about  # Score, or score
    assert not PRESETS[name].summary.endswith(" ") and len(PRESETS[name].summary) > 20


@pytest.mark.parametrize("name", PRESETS)
def test_its_network_is_made_for_its_images(name: str) -> None:
    run = PRESETS[name].run
    with torch.device("meta"):
        backbone = build_backbone(
            run.backbone.name, sobel=run.backbone.sobel, image_size=run.image_size, **run.backbone.options
        )
    first = next(part for part in backbone.modules() if isinstance(part, torch.nn.Conv2d))
    assert first.in_channels == (3 if run.backbone.sobel == "none" else 2)


def test_a_variant_differs_in_what_its_name_says() -> None:
    def values(name: str) -> dict[str, Any]:
        run = dataclasses.asdict(PRESETS[name].run)
        return {
            f"{group}.{key}": v
            for group in ("method", "optimizer", "data", "backbone")
            for key, v in run[group].items()
        }

    def changed(name: str, base: str) -> dict[str, Any]:
        ours, theirs = values(name), values(base)
        assert PRESETS[name].run.epochs == PRESETS[base].run.epochs
        return {key: ours[key] for key in ours if ours[key] != theirs[key]}

    assert changed("deepcluster-alexnet-rgb", "deepcluster-alexnet") == {"backbone.sobel": "none"}
    assert changed("deepcluster-vgg16-rgb", "deepcluster-vgg16") == {"backbone.sobel": "none"}
    assert changed("deepcluster-resnet18-sobel", "deepcluster-resnet18") == {"backbone.sobel": "paper"}
    assert changed("deepcluster-alexnet-uncurated", "deepcluster-alexnet") == {}
    rgb = {"backbone.sobel": "none", "optimizer.lr": 0.3}
    assert changed("deepcluster-resnet50-rgb", "deepcluster-resnet50") == rgb
