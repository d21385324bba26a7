"""Whole runs of SwAV and DeepCluster-v2: resume, settings, few and odd images, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deepcluster as dc
from deepcluster.config import TrainRun, names, override
from deepcluster.engine import checkpoint, train
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.presets import find_preset
from restarts import NOISE, differing, finished, fit, images, losses, state, stop_after

METHODS = ("swav", "deepcluster-v2")
SMALL: dict[str, Any] = {"epochs": 2, "k": 5, "feature_dim": 8, "hidden": 16, "batch_size": 16, "image_size": 12}
SMALL |= {"keep_every": 1, "small_views": 1, "small_view_size": 8}
OWN: dict[str, dict[str, Any]] = {
    "swav": {"queue_size": 40, "queue_epoch": 1.0, "freeze_epochs": 0.5},
    "deepcluster-v2": {},
}


def settings(method: str, **values: object) -> TrainRun:
    return override(find_preset(f"tiny-{method}").run, SMALL | OWN[method] | values)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_bit(method: str, steps: int, tmp_path: Path) -> None:
    run = settings(method, **({"ema_decay": 0.9} if method == "deepcluster-v2" else {}))
    whole = finished(run)
    stop_after(tmp_path / "cut", run, steps)
    train.train_again(tmp_path / "cut", images(), screen=Screen(quiet=True))
    assert differing(state(whole), state(tmp_path / "cut")) == []
    one, other = dc.load_run(whole), dc.load_run(tmp_path / "cut")
    np.testing.assert_array_equal(one.assignment, other.assignment)


@pytest.mark.parametrize("method", METHODS)
def test_one_epoch_and_one_more_are_two(method: str, tmp_path: Path) -> None:
    values = {"optimizer.schedule": "constant"}
    whole = finished(settings(method, **values))
    fit(tmp_path / "parts", settings(method, epochs=1, **values))
    train.train_again(tmp_path / "parts", images(), screen=Screen(quiet=True), epochs=2)
    assert differing(state(whole), state(tmp_path / "parts")) == []


CHANGES: dict[str, dict[str, Any]] = {
    "swav": {
        "k": 4, "feature_dim": 6, "hidden": 12, "temperature": 0.2, "epsilon": 0.2, "iterations": 1, "queue_size": 0,
        "queue_epoch": 0.0, "freeze_epochs": 0.0, "reassign": 0.5,
    },
    "deepcluster-v2": {
        "k": 4, "clusterings": 2, "memory_views": 1, "feature_dim": 6, "hidden": 12, "temperature": 0.2,
        "iterations": 1, "reassign": 0.5, "ema_decay": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_listed_here(method: str) -> None:
    assert {f"method.{name}" for name in CHANGES[method]} == {
        name for name in names(settings(method)) if name.startswith("method.")
    }


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in METHODS for name in CHANGES[method]])
def test_no_setting_is_accepted_and_ignored(method: str, name: str) -> None:
    common: dict[str, Any] = {"epochs": 3, "optimizer.lr": 0.02}
    changed = losses(settings(method, **common, **{f"method.{name}": CHANGES[method][name]}))
    assert changed != losses(settings(method, **common)) and np.isfinite(changed).all()


@pytest.mark.parametrize("method", ["deepcluster-v2", pytest.param("swav", marks=pytest.mark.slow)])
def test_new_images_get_the_clusters_of_the_run(method: str, tmp_path: Path) -> None:
    run = dc.train(settings(method, epochs=8, precision="32"), images(256), tmp_path / "run", quiet=True)
    again = run.assign(images(256))
    assert (again.cluster == run.assignment).mean() > 0.99
    assert np.isfinite(again.distance).all() and run.centroids.shape == (5, 8)
    assert run.embed(run.features(images())).shape == (64, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, 64])
def test_one_image_per_cluster(method: str, n: int, tmp_path: Path) -> None:
    run = dc.train(settings(method, k=n), NOISE[:n], tmp_path / "run", quiet=True)
    assert run.assignment.min() >= 0 and all(np.isfinite(row["loss"]) for row in run.metrics)
    if method == "deepcluster-v2":
        saved = checkpoint.load(run.folder / "checkpoints" / "last.ckpt")["method"]
        assert sorted(saved["assignments"][0].tolist()) == list(range(n))


@pytest.mark.parametrize("method", METHODS)
def test_all_images_alike(method: str, tmp_path: Path) -> None:
    run = dc.train(settings(method), np.full((64, 12, 12, 3), 90, np.uint8), tmp_path / "run", quiet=True)
    assert (run.assignment >= 0).all() and all(np.isfinite(row["loss"]) for row in run.metrics)


@pytest.mark.parametrize("method", METHODS)
def test_photos_of_any_size_some_of_them_damaged(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(24):
        height, width = (int(side) for side in rng.integers(5, 60, 2))
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no image")
    for number, cache in enumerate((20.0, 0.0)):  # found to be damaged at the beginning, or on the way
        run = settings(method, batch_size=7, **{"data.cache_gb": cache})
        done = dc.train(run, str(tmp_path / "photos"), tmp_path / str(number), quiet=True)
        assert np.flatnonzero(done.assignment < 0).tolist() == [7]
        assert np.isfinite(done.metrics[-1]["loss"])


def test_views_that_are_too_few_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        DeepClusterError, match=r"--data.views is 1, but swav compares views of an image: give at least"
    ):
        dc.train(settings("swav", views=1, small_views=0), images(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    dc.train(settings("swav", views=1, small_views=1, epochs=1), images(), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_clusterer_cannot_take_its_place(method: str, tmp_path: Path) -> None:
    from sklearn.cluster import AgglomerativeClustering

    with pytest.raises(DeepClusterError, match="in its own way"):
        dc.train(settings(method), images(), tmp_path / "run", clusterer=AgglomerativeClustering(3), quiet=True)
