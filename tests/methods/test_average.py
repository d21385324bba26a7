"""The moving average of the network, of which some methods cluster the features: one setting, the same in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import deepcluster as dc
from deepcluster.config import TrainRun, override
from deepcluster.engine import train
from deepcluster.engine.build import build_method
from deepcluster.engine.log import Screen
from deepcluster.methods.base import Features
from deepcluster.presets import find_preset
from deepcluster.types import Batch, TrainStep
from groups import STEP
from restarts import differing, fit, images, stop_after

METHODS: dict[str, dict[str, Any]] = {
    "deepcluster": {"whiten": 8, "clusterings": 1},
    "deepercluster": {"k": 6, "whiten": 8},
    "deepcluster-v2": {"feature_dim": 8, "hidden": 16, "clusterings": 2},
    "odc": {"feature_dim": 8, "hidden": 16},
}
WITH_NECK = ("deepcluster-v2", "odc")


def of(method: str, **values: Any) -> TrainRun:
    small = {"epochs": 2, "k": 4, "batch_size": 16, "image_size": 12, "keep_every": 0, "precision": "32"}
    return override(find_preset(f"tiny-{method}").run, small | {"ema_decay": 0.9} | METHODS[method] | values)


def described(dim: int) -> Features:
    """Four groups of features."""
    rng = np.random.default_rng(0)
    return Features(np.arange(64), (4 * np.eye(4, dim)[np.arange(64) % 4] + rng.random((64, dim))).astype(np.float32))


@pytest.mark.parametrize("name", METHODS)
def test_the_average_is_that_of_the_weights_after_every_step(name: str) -> None:
    torch.manual_seed(0)
    method: Any = build_method(of(name), 64).train()
    names = ["backbone", "neck"] if name in WITH_NECK else ["backbone"]
    method.refresh(lambda: described(method.backbone.dim), (0, 0))
    pairs = [(method.averaged(each), getattr(method, each)) for each in names]
    expected = [{key: value.clone() for key, value in now.state_dict().items()} for _, now in pairs]
    optimizer = torch.optim.SGD(method.backbone.parameters(), lr=0.1)
    for step in range(4):
        index = torch.arange(16 * step, 16 * step + 16)
        views = tuple(torch.randn(16, 3, 12, 12) for _ in range(2))
        batch = Batch(index, views, torch.arange(16), 16)
        torch.autograd.backward(loss := method.loss(batch, TrainStep(step, 4, 8))["loss"])
        assert loss.isfinite()
        for _, now in pairs:  # the averages take no part, and all else does from the first step
            assert all(part.grad is not None for part in now.parameters())
            assert step or any(part.grad.any() for part in now.parameters())
        for each in (optimizer, *method.optimizers().values()):
            each.step()
            each.zero_grad()
        method.after_step(batch)
        weight = 1 - min(0.9, (2 + step) / (11 + step))
        for oracle, (average, now) in zip(expected, pairs, strict=True):
            assert (
                average is not now and not average.training and not any(p.requires_grad for p in average.parameters())
            )
            for key, value in now.state_dict().items():
                oracle[key] = (1 - weight) * oracle[key] + weight * value if value.is_floating_point() else value
                torch.testing.assert_close(average.state_dict()[key], oracle[key])
    assert method.feature_network is method.ema_backbone
    assert name not in WITH_NECK or method.embedding == [method.ema_neck]


@pytest.mark.parametrize("name", WITH_NECK)
def test_memories_take_what_the_average_sees(name: str) -> None:
    torch.manual_seed(0)
    method: Any = build_method(of(name, **({"method.momentum": 1.0} if name == "odc" else {})), 64).train()
    method.refresh(lambda: described(method.backbone.dim), (0, 0))
    batch = Batch(torch.arange(16), (torch.randn(16, 3, 12, 12),), torch.arange(16), 16)
    with torch.no_grad():
        for part in (*method.ema_backbone.parameters(), *method.ema_neck.parameters()):
            part.mul_(1.5)
        z = F.normalize(method.ema_neck(method.ema_backbone(batch.views[0])), dim=1)
    method.loss(batch, STEP)
    method.after_step(batch)
    found = method.features[:16] if name == "odc" else method.memory[:16, 0]
    torch.testing.assert_close(found, z)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "odc")) for name in METHODS])
def test_one_epoch_and_one_more_are_two(name: str, tmp_path: Path) -> None:
    """Bit for bit; and what the run gives is the average."""
    whole = fit(tmp_path / "whole", of(name))
    stop_after(tmp_path / "cut", of(name), 4)
    train.train_again(tmp_path / "cut", images(), screen=Screen(quiet=True))
    again = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    assert differing(whole, again) == []
    run = dc.load_run(tmp_path / "cut")
    for key, value in run.backbone.state_dict().items():
        assert torch.equal(value, again["method"][f"ema_backbone.{key}"])
    weights = "backbone.trunk.features.0.0.weight"
    assert not torch.equal(again["method"][weights], again["method"][f"ema_{weights}"])
    if name != "odc":  # whose labels are those of its memory
        np.testing.assert_array_equal(run.assignment, run.assign(images()).cluster)


def test_a_checkpoint_that_does_not_count_steps_is_read() -> None:
    method = build_method(of("deepcluster-v2", ema_decay=0.0), 64)
    state = method.state_dict()
    assert not [name for name in state if "ema_" in name]
    del state["steps"]
    method.load_state_dict(state)
