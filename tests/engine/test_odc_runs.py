"""Runs of ODC: resumed to the bit, every setting used, new images assigned, small and odd data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster as dc
from deepcluster.config import TrainRun, names, override
from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.models.heads import ProjectionHead
from deepcluster.presets import find_preset
from restarts import differing, finished, fit, images, losses, state, stop_after

SMALL = {"epochs": 2, "k": 5, "feature_dim": 8, "hidden": 16, "batch_size": 16, "image_size": 12, "keep_every": 1}
SMALL |= {"centroid_every": 3, "min_size": 4}


def settings(**values: object) -> TrainRun:
    return override(find_preset("tiny-odc").run, SMALL | values)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("values", [{}, {"dropout": 0.5, "start": "neck", "replace": True, "memory": "eval"}])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, steps: int, values: dict[str, Any]) -> None:
    run = settings(**values)
    whole = finished(run)
    stop_after(tmp_path / "cut", run, steps)
    train.train_again(tmp_path / "cut", images(), screen=Screen(quiet=True))
    assert differing(state(whole), state(tmp_path / "cut")) == []
    one, other = dc.load_run(whole), dc.load_run(tmp_path / "cut")
    np.testing.assert_array_equal(one.assignment, other.assignment)
    assert [row["changed"] for row in one.metrics] == [row["changed"] for row in other.metrics]


CHANGES = {
    "k": 4,
    "feature_dim": 6,
    "hidden": 12,
    "dropout": 0.5,
    "method.momentum": 0.9,
    "centroid_every": 1,
    "min_size": 1,
    "handle_every": 7,
    "reweight_power": 0.0,
    "nearest": "dot",
    "memory": "eval",
    "start": "neck",
    "iterations": 1,
    "replace": True,
    "ema_decay": 0.5,
    "head_lr": 0.5,
}
RESTLESS = {"method.momentum": 1.0, "min_size": 6, "optimizer.lr": 0.05, "centroid_every": 1}  # clusters become small
BESIDE: dict[str, dict[str, Any]] = {
    "memory": {"dropout": 0.5},
    "iterations": {"min_size": 1},
    "nearest": {"feature_dim": 3},
    "min_size": RESTLESS,
    "handle_every": RESTLESS,
}


def test_every_setting_is_listed_here() -> None:
    assert {f"method.{name.removeprefix('method.')}" for name in CHANGES} == {
        name for name in names(settings()) if name.startswith("method.")
    }


@pytest.mark.parametrize("name", CHANGES)
def test_no_setting_is_accepted_and_ignored(name: str) -> None:
    common = BESIDE.get(name, {}) | {"epochs": 3}
    changed = losses(settings(**(common | {name: CHANGES[name]})))
    assert changed != losses(settings(**common)) and np.isfinite(changed).all()


def test_new_images_get_the_clusters_of_the_memory(tmp_path: Path) -> None:
    run = dc.train(settings(epochs=8), images(256), tmp_path / "run", quiet=True)
    again = run.assign(images(256))
    # the memory holds averages of past views, the model sees each image as it is
    assert (again.cluster == run.assignment).mean() > 0.6
    assert np.isfinite(again.distance).all() and run.centroids.shape == (5, 8)
    with pytest.raises(DeepClusterError, match="has no whitening"):
        _ = run.whitening
    assert run.embed(run.features(images())).shape == (64, 8)


def test_the_run_tells_how_many_labels_changed(tmp_path: Path) -> None:
    run = dc.train(settings(), images(), tmp_path / "run", quiet=True)
    assert all(0 <= row["changed"] <= 1 for row in run.metrics)
    assert run.metrics[0]["nmi_previous"] is None and 0 <= run.metrics[1]["nmi_previous"] <= 1


@pytest.mark.parametrize("n", [5, 64])
def test_one_image_per_cluster(n: int, tmp_path: Path) -> None:
    run = dc.train(settings(k=n), images(n), tmp_path / "run", quiet=True)
    assert sorted(run.assignment) == list(range(n))


def test_fewer_images_than_clusters_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="There are 64 images for 65 clusters"):
        dc.train(settings(k=65), images(), tmp_path / "run", quiet=True)


def test_batches_of_one_image_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="--batch-size is 1, but the projection head of odc"):
        fit(tmp_path, settings(batch_size=1))


def test_all_images_alike(tmp_path: Path) -> None:
    run = dc.train(settings(), np.full((64, 12, 12, 3), 90, np.uint8), tmp_path / "run", quiet=True)
    assert np.bincount(run.assignment, minlength=5).min() >= 4


def test_a_trained_backbone_is_improved(tmp_path: Path) -> None:
    first = dc.train("tiny-deepcluster", images(), tmp_path / "first", epochs=1, k=5, image_size=12, quiet=True)
    weights = first.folder / "model.safetensors"
    run = settings(**{"backbone.weights": str(weights), "optimizer.lr": 1e-9, "head_lr": 1e-9, "start": "neck"})
    second = dc.train(run, images(), tmp_path / "second", quiet=True)
    for began, ended in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True):
        torch.testing.assert_close(began, ended, atol=1e-5, rtol=1e-4)


def test_a_clusterer_cannot_take_its_place(tmp_path: Path) -> None:
    from sklearn.cluster import AgglomerativeClustering

    with pytest.raises(DeepClusterError, match="in its own way"):
        dc.train(settings(), images(), tmp_path / "run", clusterer=AgglomerativeClustering(3), quiet=True)


def test_a_watched_run_keeps_its_best_epoch(tmp_path: Path) -> None:
    for number, pixels in enumerate(images(32)):
        file = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    run = dc.train(settings(watch="knn"), str(tmp_path / "data"), tmp_path / "run", quiet=True)
    best = Model.load(run.folder / "checkpoints" / "best.safetensors")
    assert isinstance(best.embedding[0], ProjectionHead) and len(best.centroids) == 5
    assert all(0 <= row["watched"] <= 1 for row in run.metrics)
