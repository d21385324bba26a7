"""Watching: the score is right, the best epoch is kept, a stop ends well, and training notices nothing of it."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.clustering.metrics import rank_me
from deepcluster.config import TrainRun, override
from deepcluster.data.arrays import Arrays
from deepcluster.engine import build, checkpoint, loop, monitor, train
from deepcluster.engine.log import Screen, line
from deepcluster.engine.model import Model
from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.io import keep_copy
from deepcluster.presets import find_preset
from restarts import differing, images, stop_after

SMALL = {"epochs": 4, "k": 5, "whiten": 8, "batch_size": 16, "image_size": 12, "keep_every": 1}
STEPS = 4  # of an epoch of 64 images


def settings(**values: object) -> TrainRun:
    return override(find_preset("tiny-deepcluster").run, SMALL | values)


def labelled(n: int = 64) -> Arrays:
    """Four shapes with noise; every tenth image has no label."""
    labels = np.where(np.arange(n) % 10 == 9, -1, np.arange(n) % 4)
    return Arrays("squares", images(n), labels, ("a", "b", "c", "d"))


def fit(out: Path, run: TrainRun) -> dict[str, Any]:
    train.train(run, labelled(), out, screen=Screen(quiet=True))
    return checkpoint.load(out / "checkpoints" / "last.ckpt")


def rows(*values: float | None) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "watched": value} for epoch, value in enumerate(values)]


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Watched values by epoch, in place of measured ones, so that the best epoch is known."""
    values = [0.2, 0.6, 0.5, 0.4, 0.3, 0.3]

    def watched(self: monitor.Monitor, c: loop.TrainContext, state: loop.TrainState, epoch: int) -> dict[str, Any]:
        return {"watched": values[epoch]} if self.watched is not None else {}

    monkeypatch.setattr(monitor.Monitor, "_measured", watched)
    return values


def test_knn_score_is_scikit_learns() -> None:
    """With features of equal length from their neighbors' point of view: one vote each is no tie to break."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 90)
    features = (np.eye(3)[labels] + 0.8 * draw.normal(size=(90, 3))).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for i in range(90):
        others = np.delete(np.arange(90), i)
        model = KNeighborsClassifier(
            20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(unit[others], labels[others])
        right += int(model.predict(unit[i : i + 1])[0] == labels[i])
    assert monitor.knn_score(features, labels) == pytest.approx(right / 90)
    assert 0.4 < right / 90 < 1
    with pytest.raises(DeepClusterError, match="two labelled images"):
        monitor.knn_score(features[:1], labels[:1])


def test_the_draw_takes_labelled_images_only_and_stays() -> None:
    labels = np.where(np.arange(100) % 2 == 0, -1, 3)
    drawn = monitor.draw_labelled(labels, 5, at_most=30)
    assert len(drawn) == 30 and (np.diff(drawn) > 0).all() and (labels[drawn] == 3).all()
    again, other = (monitor.draw_labelled(labels, seed, at_most=30).tolist() for seed in (5, 6))
    assert drawn.tolist() == again != other


def test_best_is_the_first_of_the_highest() -> None:
    assert monitor.best_of([]) is None and monitor.best_of([{"epoch": 0}, *rows(None)]) is None
    assert monitor.best_of(rows(0.1, 0.5, None, 0.5, 0.2)) == monitor.Best(1, 0.5, 2)
    assert monitor.best_of(rows(0.1, 0.2)) == monitor.Best(1, 0.2, 0)
    assert monitor.best_of(rows(0.1, 0.5, 0.2)[2:], monitor.Best(1, 0.5, 0)) == monitor.Best(1, 0.5, 1)


def test_the_sentence_is_said_once_and_anew_after_a_rise() -> None:
    values = [0.1, 0.513, 0.5, 0.4, 0.3, 0.3, 0.6, 0.1, 0.1]
    run = settings(watch="knn", patience=2)
    said = {
        until: monitor.stall_sentence(run, monitor.best_of(rows(*values[:until])))
        for until in range(1, len(values) + 1)
    }
    assert [until for until, sentence in said.items() if sentence] == [4, 9]
    assert said[4] == ("the kNN score has not improved since epoch 2 (51.3 %): checkpoints/best.ckpt holds that epoch")


def test_watched_values_are_those_of_the_epochs_end(tmp_path: Path) -> None:
    """The kept checkpoints hold the network that was watched."""
    fit(tmp_path / "knn", settings(watch="knn", watch_every=2))
    run, source = load_run(tmp_path / "knn"), labelled()
    assert ["watched" in row for row in run.metrics] == [False, True, False, True]
    network = build.at_checkpoint(run.config, run.folder / "checkpoints/epoch-0001.ckpt")
    features = Model(network, run.centroids).features(run.pixels(source))[1]
    assert source.labels is not None
    known = source.labels >= 0
    assert run.metrics[1]["watched"] == pytest.approx(monitor.knn_score(features[known], source.labels[known]))
    fit(tmp_path / "nmi", settings(watch="nmi", epochs=2))
    assert [row["watched"] for row in load_run(tmp_path / "nmi").metrics] == [
        row["nmi_labels"] for row in load_run(tmp_path / "nmi").metrics
    ]
    own = load_run(tmp_path / "nmi").assignment[known]
    assert 0 < normalized_mutual_info_score(source.labels[known], own) <= 1


@pytest.mark.parametrize("score", ["knn", "nmi"])
def test_watching_changes_no_bit_of_the_training(tmp_path: Path, score: str) -> None:
    plain, watched = fit(tmp_path / "plain", settings()), fit(tmp_path / "watched", settings(watch=score, patience=1))
    assert differing(plain, watched) == []
    assert same_tensors(tmp_path / "plain/model.safetensors", tmp_path / "watched/model.safetensors")
    np.testing.assert_array_equal(load_run(tmp_path / "plain").assignment, load_run(tmp_path / "watched").assignment)
    assert not (tmp_path / "plain/checkpoints/best.ckpt").exists()
    assert (tmp_path / "watched/checkpoints/best.ckpt").exists()


@pytest.mark.slow
def test_random_layers_are_not_disturbed(tmp_path: Path) -> None:
    """Stochastic depth draws from torch's global generator in every step."""
    network = {"backbone.name": "timm:test_resnet", "backbone.options": {"drop_path_rate": 0.9}, "image_size": 32}
    plain = fit(tmp_path / "plain", settings(**network, epochs=2, k=4))
    assert differing(plain, fit(tmp_path / "watched", settings(**network, epochs=2, k=4, watch="knn"))) == []


def test_the_best_epoch_is_kept(tmp_path: Path, made_up: list[float]) -> None:
    fit(tmp_path / "run", settings(watch="knn", epochs=5))
    kept = tmp_path / "run/checkpoints"
    best = checkpoint.load(kept / "best.ckpt")
    assert differing(best, checkpoint.load(kept / "epoch-0001.ckpt")) == []
    assert differing(best, checkpoint.load(kept / "last.ckpt")) != []
    model = Model.load(kept / "best.safetensors")
    there = build.at_checkpoint(load_run(tmp_path / "run").config, kept / "best.ckpt").state_dict()
    assert all(torch.equal(value, there[name]) for name, value in model.backbone.state_dict().items())


def test_the_kept_model_has_clusters_of_its_own_network(tmp_path: Path, made_up: list[float]) -> None:
    """Those of the clustering after the best epoch, as the model of a run that ends there has them."""
    fit(tmp_path / "whole", settings(watch="knn", epochs=5))
    fit(tmp_path / "short", settings(watch="knn", epochs=2, **{"optimizer.schedule": "constant"}))
    fit(tmp_path / "long", settings(watch="knn", epochs=5, **{"optimizer.schedule": "constant"}))
    kept = Model.load(tmp_path / "long/checkpoints/best.safetensors")
    alone = load_run(tmp_path / "short").model
    assert torch.equal(kept.centroids, alone.centroids)
    whole = Model.load(tmp_path / "whole/checkpoints/best.safetensors")
    assert not torch.equal(whole.centroids, load_run(tmp_path / "whole").centroids)


def test_a_run_that_is_to_stop_stops_and_finishes(
    tmp_path: Path, made_up: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = settings(watch="knn", epochs=6, patience=2, stop=True)
    train.train(run, labelled(), tmp_path / "run")
    out = capsys.readouterr().out
    assert out.count("has not improved since epoch 2 (60.0 %)") == 1
    done = load_run(tmp_path / "run")
    assert [row["watched"] for row in done.metrics] == made_up[:4]
    assert done.config["finished"] and (done.assignment >= 0).all()
    before = checkpoint.load(tmp_path / "run/checkpoints/last.ckpt")
    train.train_again(tmp_path / "run", labelled(), screen=Screen(quiet=True))
    assert differing(before, checkpoint.load(tmp_path / "run/checkpoints/last.ckpt")) == []
    fit(tmp_path / "on", settings(watch="knn", epochs=6, patience=2))
    assert len(load_run(tmp_path / "on").metrics) == 6


@pytest.mark.parametrize(
    "steps", [2, 2 * STEPS, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (2 * STEPS + 1, 3 * STEPS))]
)
def test_a_stopped_run_keeps_the_same_best(tmp_path: Path, made_up: list[float], steps: int) -> None:
    run = settings(watch="knn")
    whole = fit(tmp_path / "whole", run)
    stop_after(tmp_path / "cut", run, steps, labelled())
    train.train_again(tmp_path / "cut", labelled(), screen=Screen(quiet=True))
    for name, state in (("last", whole), ("best", checkpoint.load(tmp_path / "whole/checkpoints/best.ckpt"))):
        assert differing(state, checkpoint.load(tmp_path / f"cut/checkpoints/{name}.ckpt")) == []
    for folder in ("whole", "cut"):
        assert [row["watched"] for row in load_run(tmp_path / folder).metrics] == made_up[:4]
    assert same_tensors(*(tmp_path / folder / "checkpoints/best.safetensors" for folder in ("whole", "cut")))


def test_killed_between_the_last_and_the_best_checkpoint(
    tmp_path: Path, made_up: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(watch="knn", keep_every=0)
    fit(tmp_path / "whole", run)
    copies = {"best": 0}
    original = keep_copy

    def dies(file: Path, copy: Path) -> None:
        copies["best"] += 1
        if copies["best"] == 2:  # of the second epoch, which is the best
            raise KeyboardInterrupt
        original(file, copy)

    monkeypatch.setattr(monitor, "keep_copy", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", run)
    assert checkpoint.load(tmp_path / "cut/checkpoints/best.ckpt")["progress"]["step"] == STEPS
    train.train_again(tmp_path / "cut", labelled(), screen=Screen(quiet=True))
    best = checkpoint.load(tmp_path / "cut/checkpoints/best.ckpt")
    assert best["progress"]["step"] == 2 * STEPS
    assert differing(best, checkpoint.load(tmp_path / "whole/checkpoints/best.ckpt")) == []


def test_interrupted_while_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(watch="knn")
    whole = fit(tmp_path / "whole", run)
    module: Any = monitor
    original, calls = module.extract_all, {"watched": 0}

    def describe(w: loop.TrainContext, step: int, only: np.ndarray | None = None) -> object:
        if only is not None:
            calls["watched"] += 1
            if calls["watched"] == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return original(w, step, only)

    monkeypatch.setattr(monitor, "extract_all", describe)
    with pytest.raises(Interrupted):
        fit(tmp_path / "cut", run)
    assert len(load_run(tmp_path / "cut").metrics) == 1
    train.train_again(tmp_path / "cut", labelled(), screen=Screen(quiet=True))
    assert differing(whole, checkpoint.load(tmp_path / "cut/checkpoints/last.ckpt")) == []
    watched = functools.partial(map, lambda row: (row["epoch"], row["loss"], row["watched"]))
    assert list(watched(load_run(tmp_path / "cut").metrics)) == list(watched(load_run(tmp_path / "whole").metrics))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stop": True}, "--stop needs a score to watch"),
        ({"watch": "knn", "patience": 0}, "at least 1"),
        ({"watch": "nmi", "watch_every": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence):
        fit(tmp_path / "run", settings(**values))
    assert not (tmp_path / "run").exists()


def test_nothing_to_watch_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="squares has none"):
        train.train(settings(watch="nmi"), Arrays("squares", images(), None, ()), tmp_path / "run")


def test_what_needs_no_label_is_on_the_screen() -> None:
    row = {"epoch": 0, "loss": 1.0, "clusters_used": 3, "size_min": 1, "size_max": 9, "images_per_second": 5.0}
    assert "RankMe" not in line(row, 2)  # the features of all were not extracted
    assert line(row | {"rankme": 12.34}, 2).endswith("3 clusters of 1-9  RankMe 12.3  5 images/s")


@pytest.mark.parametrize(("preset", "kept"), [("tiny-odc", "features"), ("tiny-deepcluster-v2", "memory")])
def test_methods_that_remember_embeddings_have_rankme_in_every_epoch(tmp_path: Path, preset: str, kept: str) -> None:
    sizes = {"epochs": 2, "k": 5, "feature_dim": 8, "hidden": 16, "batch_size": 16, "image_size": 12}
    state = fit(tmp_path / "run", override(find_preset(preset).run, sizes))
    rows = state["method"][kept].reshape(64, -1, 8)[:, 0].numpy()
    measured = [row["rankme"] for row in load_run(tmp_path / "run").metrics]
    assert len(measured) == 2 and all(1 <= value <= 8 for value in measured)
    assert measured[1] == pytest.approx(rank_me(rows))
