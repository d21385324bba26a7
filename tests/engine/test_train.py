"""What a run leaves behind, on small, odd and awkward data."""

from __future__ import annotations

import csv
import json
import linecache
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster as dc
from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun, override
from deepcluster.engine import train
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.methods.params import DeepClusterParams

AVERAGED = "ema_backbone.trunk.features.0.0.weight"
TINY: dict[str, Any] = {"epochs": 1, "k": 4, "whiten": 8, "batch_size": 16, "image_size": 12, "quiet": True}


def images(n: int = 64, size: int = 12) -> np.ndarray:
    shapes = np.random.default_rng(0).integers(0, 200, (4, size, size, 3))
    noise = np.random.default_rng(1).integers(0, 55, (n, size, size, 3))
    return (shapes[np.arange(n) % 4] + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of odd sizes in class folders, one of them broken."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        kind = ("cat", "dog")[number % 2]
        (folder / kind).mkdir(exist_ok=True)
        size = draw.integers(9, 40, 2)
        pixels = (draw.integers(0, 120, (*size, 3)) + (100 if kind == "cat" else 0)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / kind / f"{number:03d}.png")
    (folder / "cat" / "broken.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dc.Run:
    out = tmp_path_factory.mktemp("runs") / "photos"
    return dc.train("tiny-deepcluster", photos, out, **{**TINY, "epochs": 2})


def test_the_run_folder_is_as_promised(run: dc.Run) -> None:
    there = {path.name for path in run.folder.iterdir()}
    assert {"run.json", "metrics.jsonl", "checkpoints", "model.safetensors", "assignment.npy", "tensorboard"} <= there
    assert "bad_images.csv" in there and not any(name.startswith(".") for name in there)
    assert (run.folder / "checkpoints/last.ckpt").exists()
    about = json.loads((run.folder / "run.json").read_text())
    assert {"preset", "seed", "settings", "versions", "source_fingerprint", "data", "images"} <= about.keys()


def test_everyone_may_read_what_their_neighbors_may(run: dc.Run) -> None:
    modes = {path.stat().st_mode & 0o777 for path in run.folder.iterdir() if path.is_file()}
    assert modes == {(run.folder / "metrics.jsonl").stat().st_mode & 0o777} and modes != {0o600}


def test_metrics_have_their_names(run: dc.Run) -> None:
    names = {"epoch", "loss", "nmi_previous", "reassigned", "clusters_used", "size_min", "size_max", "size_entropy"}
    names |= {"lr", "images_per_second", "seconds_train", "seconds_features", "seconds_cluster"}
    names |= {"nmi_labels", "purity", "rankme"}
    assert [row["epoch"] for row in run.metrics] == [0, 1]
    for row in run.metrics:
        assert names == set(row)
        assert math.isfinite(row["loss"]) and 1 <= row["rankme"] <= 128
    assert run.metrics[0]["nmi_previous"] is None and 0 <= run.metrics[1]["nmi_previous"] <= 1


def test_broken_files_keep_their_index_and_are_listed(run: dc.Run) -> None:
    rows = list(csv.DictReader((run.folder / "bad_images.csv").open()))
    assert [Path(row["path"]).name for row in rows] == ["broken.jpg"] and rows[0]["reason"]
    assert run.assignment.shape == (41,) and run.assignment[int(rows[0]["index"])] == -1
    assert (run.assignment >= 0).sum() == 40


def test_the_saved_model_alone_assigns_the_training_images_as_training_did(run: dc.Run, photos: Path) -> None:
    again = dc.load_run(run.folder).assign(photos)
    np.testing.assert_array_equal(again.cluster, run.assignment)
    assert (again.distance[again.cluster >= 0] >= 0).all() and np.isnan(again.distance[again.cluster < 0]).all()


def test_assignments_are_written_as_csv_and_parquet(run: dc.Run, photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    found = run.assign(photos)
    rows = list(csv.DictReader(found.save(tmp_path / "a.csv").open()))
    table = pyarrow.parquet.read_table(found.save(tmp_path / "a.parquet")).to_pydict()
    assert list(rows[0]) == ["index", "path", "cluster", "distance"] == list(table)
    assert [int(row["cluster"]) for row in rows] == table["cluster"] == found.cluster.tolist()
    assert table["path"] == [row["path"] for row in rows]
    with pytest.raises(DeepClusterError, match=r"a\.xlsx"):
        found.save(tmp_path / "a.xlsx")


def test_features_are_read_at_taps_and_bad_rows_are_nan(run: dc.Run, photos: Path) -> None:
    features = run.features(photos)
    assert features.shape == (41, run.backbone.dim)
    assert np.isnan(features).any(1).sum() == 1
    tap = run.backbone.taps[0]
    assert run.features(photos, tap=tap).shape[0] == 41


def test_folded_features_are_the_backbones(run: dc.Run) -> None:
    from deepcluster.models.folding import folded

    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(folded(run.backbone)(x), run.backbone(x), rtol=1e-4, atol=1e-5)


def test_a_folded_copy_goes_with_its_last_reader_and_its_graph_is_made_once(run: dc.Run) -> None:
    """Else each epoch would leave a network in memory until it is searched for cycles, and a graph for good."""
    from deepcluster.models.folding import folded

    folded(run.backbone)
    kept, gone = len(linecache.cache), weakref.ref(folded(run.backbone).trunk)
    assert gone() is None and len(linecache.cache) == kept


@pytest.mark.parametrize(
    ("n", "k", "batch"), [(64, 4, 256), (16, 16, 4), (2, 1, 256), (7, 3, 2)], ids=["64", "one-each", "two", "seven"]
)
def test_small_data(tmp_path: Path, n: int, k: int, batch: int) -> None:
    done = dc.train("tiny-deepcluster", images(n), tmp_path / "run", **{**TINY, "k": k, "batch_size": batch})
    assert sorted(set(done.assignment)) == list(range(k)) if n == k else (done.assignment >= 0).all()
    assert math.isfinite(done.metrics[0]["loss"])


def test_images_without_labels_have_no_label_scores(tmp_path: Path) -> None:
    done = dc.train("tiny-deepcluster", images(), tmp_path / "run", **TINY)
    assert not {"nmi_labels", "purity"} & set(done.metrics[0])


def test_learning_finds_the_kinds(tmp_path: Path) -> None:
    values: dict[str, Any] = {**TINY, "epochs": 3, "whiten": 3, "init": "k-means++"}
    done = dc.train("tiny-deepcluster", images(128), tmp_path / "run", **values)
    from deepcluster.clustering.metrics import nmi

    assert nmi(done.assignment, np.arange(128) % 4) > 0.95


def test_several_clusterings_and_averaged_weights(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        **TINY,
        "clusterings": 3,
        "ema_decay": 0.9,
        "head": "centroids",
        "init": "previous",
        "reassign": 0.5,
    }
    done = dc.train("tiny-deepcluster", images(), tmp_path / "run", **values)
    state = torch.load(done.folder / "checkpoints/last.ckpt", weights_only=True)["method"]
    assert state["assignments"].shape == (3, 64)
    average, now = state[AVERAGED], state[AVERAGED.replace("ema_backbone", "backbone")]
    assert not torch.equal(average, now)
    torch.testing.assert_close(done.backbone.state_dict()[AVERAGED.removeprefix("ema_backbone.")], average)


CHANGES: dict[str, Any] = {
    "epochs": 1,
    "minutes": None,  # tests/engine/test_minutes.py
    "batch_size": 8,
    "seed": 1,
    "image_size": 16,
    "precision": "bf16",
    "compile": None,  # the same function by another way
    "device": None,
    "keep_every": None,
    "save_minutes": None,
    "watch": None,  # these four follow the training and never change it: test_watch.py
    "watch_every": None,
    "patience": None,
    "stop": None,
    "method.k": 5,
    "method.algorithm": None,
    "method.neighbors": None,
    "method.sigma": None,
    "method.alpha": None,
    "method.pic_version": None,
    "method.reassign": 0.5,
    "method.whiten": 3,
    "method.iterations": 1,
    "method.init": "k-means++",
    "method.features": "remembered",
    "method.spherical": True,
    "method.backend": None,  # another engine to the same clusters, below
    "method.balance": "none",
    "method.head": "centroids",
    "method.temperature": None,  # of head centroids, below
    "method.clusterings": 2,
    "method.ema_decay": 0.5,
    "method.head_lr": 0.5,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.2,
    "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 0.1,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 1.0,
    "optimizer.step_epochs": None,
    "optimizer.step_factor": None,
    "optimizer.layer_decay": 0.5,
    "optimizer.clip": 0.01,
    "data.cache_gb": None,
    "data.workers": None,
    "data.describe": None,
    "data.clustered_size": 24,
    "data.views": None,
    "data.view_size": 8,
    "data.small_views": None,
    "data.small_view_size": None,
    "data.crop_scale": (0.3, 0.5),
    "data.small_crop_scale": None,
    "data.crop_ratio": None,
    "data.flip": 1.0,
    "data.jitter": 1.0,
    "data.brightness": None,
    "data.contrast": None,
    "data.saturation": None,
    "data.hue": None,
    "data.gray": 1.0,
    "data.blur": 1.0,
    "data.rotate": 90.0,
    "data.translate": 0.4,
    "data.zoom": (0.5, 0.6),
    "data.shear": 30.0,
    "backbone.name": "timm:test_resnet",
    "backbone.sobel": "paper",
    "backbone.weights": None,  # tests/engine/test_begin.py
    "backbone.frozen": 1,
    "backbone.fixed_statistics": True,
    "backbone.options": {"widths": [8, 8, 8, 8, 8]},
}
PIC = {"method.algorithm": "pic", "method.k": 0}
TOGETHER: dict[str, tuple[dict[str, Any], Any]] = {
    "method.neighbors": (PIC, 2),
    "method.sigma": (PIC, 1.0),
    "method.alpha": (PIC, 0.9),
    "method.pic_version": (PIC, "published"),
    "method.temperature": ({"method.head": "centroids"}, 0.5),
    "optimizer.step_epochs": ({"optimizer.schedule": "step"}, 0.5),
    "optimizer.step_factor": ({"optimizer.schedule": "step", "optimizer.step_epochs": 0.5}, 0.9),
    "data.describe": ({"data.crop_scale": (0.3, 0.5)}, "augmented"),
    "data.views": ({"data.flip": 0.5}, 2),
    "data.small_views": ({"data.small_view_size": 8}, 2),
    "data.small_view_size": ({"data.small_view_size": 8, "data.small_views": 2}, 9),
    "data.small_crop_scale": ({"data.small_view_size": 8, "data.small_views": 2}, (0.6, 0.9)),
    "data.crop_ratio": ({"data.crop_scale": (0.3, 0.5)}, (2.0, 3.0)),
    **{f"data.{name}": ({"data.jitter": 1.0}, 0.25) for name in ("brightness", "contrast", "saturation", "hue")},
}


def loss_of(values: dict[str, Any], out: Path) -> list[float]:
    noise = np.random.default_rng(0).integers(0, 255, (48, 12, 12, 3)).astype(np.uint8)  # every grouping differs
    done = dc.train(override(BASE, values), noise, out, quiet=True)
    return [row["loss"] for row in done.metrics]


BASE = TrainRun(
    epochs=2,
    precision="32",
    batch_size=16,
    image_size=12,
    keep_every=0,
    method=DeepClusterParams(k=4, whiten=8),
    optimizer=OptimizerParams(weight_decay=0.0),
    data=DataParams(crop_scale=None, flip=0.0),
    backbone=BackboneParams("convnet"),
)


def test_every_setting_is_listed_here() -> None:
    from deepcluster.config import names

    several = {"processes", "sync_batchnorm", "deterministic"}  # see test_processes.py
    assert set(CHANGES) == set(names()) - several


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return loss_of({}, tmp_path_factory.mktemp("base") / "run")


@pytest.mark.parametrize("name", [name for name, value in CHANGES.items() if value is not None])
def test_no_setting_is_accepted_and_ignored(name: str, baseline: list[float], tmp_path: Path) -> None:
    assert loss_of({name: CHANGES[name]}, tmp_path / "run") != baseline


@pytest.mark.parametrize("name", TOGETHER)
def test_no_setting_of_another_is_ignored(name: str, tmp_path: Path) -> None:
    others, value = TOGETHER[name]
    assert loss_of(others, tmp_path / "without") != loss_of({**others, name: value}, tmp_path / "with")


def test_the_backend_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepcluster.clustering import faiss_kmeans

    calls: list[int] = []
    original = faiss_kmeans.faiss_lloyd

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(faiss_kmeans, "faiss_lloyd", counting)
    loss_of({"method.backend": "faiss"}, tmp_path / "run")
    assert len(calls) == 3  # two epochs and the closing one


def test_the_same_seed_is_the_same_run(baseline: list[float], tmp_path: Path) -> None:
    assert loss_of({}, tmp_path / "run") == baseline


def test_a_model_file_needs_nothing_else(run: dc.Run, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((run.folder / "model.safetensors").read_bytes())
    model = Model.load(copy)
    assert torch.equal(model.centroids, run.centroids)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(copy.read_bytes()[:100])
    with pytest.raises(DeepClusterError, match=r"broken\.safetensors"):
        Model.load(broken)


def test_a_checkpoint_of_another_run_is_a_sentence(run: dc.Run, photos: Path, tmp_path: Path) -> None:
    other = dc.train("tiny-deepcluster", photos, tmp_path / "other", **TINY, options={"widths": [8] * 5})
    file = other.folder / "checkpoints/last.ckpt"
    file.write_bytes((run.folder / "checkpoints/last.ckpt").read_bytes())
    with pytest.raises(DeepClusterError, match="belongs to another run"):
        train.train_again(other.folder)


def test_a_checkpoint_that_wants_to_run_code_is_refused(run: dc.Run, tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "evil"),)

    file = run.folder / "checkpoints/last.ckpt"
    before = file.read_bytes()
    try:
        torch.save({"method": Evil(), "progress": {}}, file)
        with pytest.raises(DeepClusterError, match="not a checkpoint"):
            train.train_again(run.folder)
    finally:
        file.write_bytes(before)
    assert not (tmp_path / "evil").exists()


def test_changed_images_are_noticed_on_resuming(tmp_path: Path) -> None:
    done = dc.train("tiny-deepcluster", images(), tmp_path / "run", **TINY)
    with pytest.raises(DeepClusterError, match="not the ones"):
        train.train_again(done.folder, images()[:-1])


def test_overrides_by_name() -> None:
    base = TrainRun()
    for values in ({"k": 7}, {"method__k": 7}):
        method: Any = override(base, values).method
        assert method.k == 7
    assert override(base, {"method": {"k": 7}, "lr": 1}).optimizer.lr == 1.0
    with pytest.raises(DeepClusterError, match="several groups"):
        override(base, {"name": "x"})
    with pytest.raises(DeepClusterError, match=r"Did you mean method\.reassign"):
        override(base, {"reasign": 2})
    with pytest.raises(DeepClusterError, match="takes a int"):
        override(base, {"k": "many"})


@pytest.mark.parametrize("values", [{"epochs": 0}, {"batch_size": -4}, {"optimizer.lr": -1.0}])
def test_numbers_no_run_can_have_leave_no_folder(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="give"):
        dc.train(override(BASE, values), images(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("values", [{"data.view_size": 3}, {"data.small_views": 2}], ids=["views", "small views"])
def test_views_too_small_for_the_network_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    name = "--data.small-view-size" if "data.small_views" in values else "--data.view-size"
    with pytest.raises(DeepClusterError, match=f"cannot take views of . pixels .*{name}"):
        loss_of(values, tmp_path / "run")
