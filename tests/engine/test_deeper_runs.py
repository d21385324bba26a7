"""Runs of DeeperCluster: resumed to the bit, every setting used, new images assigned, small and odd data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deepcluster as dc
from deepcluster.config import TrainRun, override
from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.methods.params import DeeperClusterParams
from deepcluster.presets import find_preset
from restarts import differing, finished, fit, images, state, stop_after

SMALL = {"epochs": 2, "k": 6, "whiten": 8, "batch_size": 16, "image_size": 12, "keep_every": 1}


def settings(**values: object) -> TrainRun:
    return override(find_preset("tiny-deepercluster").run, SMALL | values)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("values", [{"head": "centroids"}, {"optimizer.name": "sgd", "lr": 0.05, "reassign": 2.0}])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, steps: int, values: dict[str, Any]) -> None:
    run = settings(**values)
    whole = finished(run)
    stop_after(tmp_path / "cut", run, steps)
    train.train_again(tmp_path / "cut", images(), screen=Screen(quiet=True))
    assert differing(state(whole), state(tmp_path / "cut")) == []
    one, other = dc.load_run(whole), dc.load_run(tmp_path / "cut")
    np.testing.assert_array_equal(one.assignment, other.assignment)
    accuracies = [
        [row[f"accuracy_{name}"] for row in run.metrics for name in ("super", "joint")] for run in (one, other)
    ]
    assert accuracies[0] == accuracies[1]


CHANGES = {
    "k": 4,
    "super_clusters": 3,
    "rotations": False,
    "reassign": 0.5,
    "whiten": 4,
    "iterations": 1,
    "head": "centroids",
    "temperature": 0.5,
    "ema_decay": 0.5,
    "head_lr": 0.5,
}
BESIDE = {"temperature": {"head": "centroids"}}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_run(tmp_path: Path, name: str) -> None:
    assert set(CHANGES) == set(DeeperClusterParams.__dataclass_fields__)
    beside = BESIDE.get(name, {})
    plain = state(finished(settings(**beside)))
    other = state(finished(settings(**beside, **{f"method.{name}": CHANGES[name]})))
    assert differing(plain["method"], other["method"])


@pytest.mark.parametrize("preset", ["tiny-deepercluster", "tiny-rotnet"])
def test_new_images_get_the_clusters_of_the_tree(tmp_path: Path, preset: str) -> None:
    values = {name: value for name, value in SMALL.items() if name != "k" or preset == "tiny-deepercluster"}
    fit(tmp_path / "run", override(find_preset(preset).run, values))
    run = dc.load_run(tmp_path / "run")
    np.testing.assert_array_equal(run.assign(images()).cluster, run.assignment)
    assert len(run.centroids) == (6 if preset == "tiny-deepercluster" else 1)
    row = run.metrics[-1]
    assert 0 <= row["accuracy_joint"] <= row["accuracy_super"] <= 1 and np.isfinite(row["loss"])


def test_one_image_for_each_cluster(tmp_path: Path) -> None:
    fit(tmp_path / "run", settings(k=12, super_clusters=2), images(12))
    assert sorted(np.bincount(dc.load_run(tmp_path / "run").assignment, minlength=12))[-1] <= 12


def test_images_of_odd_sizes_and_a_damaged_one(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(40):
        height, width = rng.integers(5, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no image")
    fit(tmp_path / "run", settings(), str(folder))
    run = dc.load_run(tmp_path / "run")
    assert run.assignment[7] == -1 and (np.delete(run.assignment, 7) >= 0).all()


def test_starts_from_a_network_that_tells_turns(tmp_path: Path) -> None:
    """RotNet first, then DeeperCluster, as the paper begins."""
    values = {name: value for name, value in SMALL.items() if name != "k"}
    fit(tmp_path / "turns", override(find_preset("tiny-rotnet").run, values))
    weights = {"backbone.weights": str(tmp_path / "turns" / "model.safetensors"), "optimizer.lr": 0.0}
    fit(tmp_path / "run", settings(**weights, **{"optimizer.weight_decay": 0.0}))
    one, other = dc.load_run(tmp_path / "turns"), dc.load_run(tmp_path / "run")
    for name, value in one.backbone.named_parameters():
        assert value.equal(other.backbone.get_parameter(name)), name


def test_turns_alone_are_no_trivial_solution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: value for name, value in SMALL.items() if name != "k"}
    train.train(override(find_preset("tiny-rotnet").run, values), images(), tmp_path / "run")
    assert "trivial" not in capsys.readouterr().out
