"""A run that was stopped anywhere ends with the same bits as one that was not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.config import override
from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from restarts import differing, finished, fit, images, settings, state, stop_after


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"init": "previous", "balance": "weight", "features": "remembered"},
        {"reassign": 0.4, "optimizer.name": "adamw", "optimizer.schedule": "cosine", "optimizer.clip": 1.0},
        {"reassign": 2.0, "balance": "published", "optimizer.schedule": "step", "optimizer.step_epochs": 1.0},
        {"head": "centroids", "balance": "none", "optimizer.schedule": "bottou", "optimizer.warmup": 0.5},
    ],
    ids=["plain", "weight", "fractional-adamw", "every-other-published", "centroids"],
)
def test_one_epoch_and_one_more_are_two(tmp_path: Path, values: dict[str, Any]) -> None:
    run = settings(**values)
    whole = finished(run)
    first = tmp_path / "halves"
    stop_after(first, run, 4)
    train.train_again(first, images(), screen=Screen(quiet=True))
    assert differing(state(whole), state(first)) == []
    rows = [row["loss"] for row in load_run(first).metrics]
    assert rows == [row["loss"] for row in load_run(whole).metrics]
    np.testing.assert_array_equal(load_run(first).assignment, load_run(whole).assignment)


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
def test_stopping_in_the_middle_of_an_epoch_changes_nothing(tmp_path: Path, steps: int) -> None:
    run = settings(reassign=0.6)
    whole = finished(run)
    stop_after(tmp_path / "cut", run, steps)
    assert not list((tmp_path / "cut").rglob("*.part"))
    train.train_again(tmp_path / "cut", images(), screen=Screen(quiet=True))
    assert differing(state(whole), state(tmp_path / "cut")) == []


def test_random_layers_go_on_from_the_saved_generator(tmp_path: Path) -> None:
    """Stochastic depth draws from torch's global generator in every step."""
    network = {"backbone.name": "timm:test_resnet", "backbone.options": {"drop_path_rate": 0.9}}
    run = override(settings(), {**network, "image_size": 32, "k": 4, "epochs": 1, "batch_size": 16})
    data = images(48, 32)
    whole = tmp_path / "whole"
    fit(whole, run, data)
    stop_after(tmp_path / "cut", run, 1, data)
    torch.rand(100)  # another program's draws in between
    random.random()
    train.train_again(tmp_path / "cut", data, screen=Screen(quiet=True))
    assert differing(state(whole), state(tmp_path / "cut")) == []


def test_kept_checkpoints_are_whole_runs_too(tmp_path: Path) -> None:
    run = settings()
    whole = fit(tmp_path / "run", run)
    (tmp_path / "run/checkpoints/epoch-0000.ckpt").replace(tmp_path / "run/checkpoints/last.ckpt")
    train.train_again(tmp_path / "run", images(), screen=Screen(quiet=True))
    assert differing(whole, state(tmp_path / "run")) == []
    assert [row["epoch"] for row in load_run(tmp_path / "run").metrics] == [0, 1]


def test_the_comparison_notices_a_difference() -> None:
    one, other = state(finished(settings())), state(finished(settings(seed=1)))
    assert any("backbone" in name for name in differing(one, other))
