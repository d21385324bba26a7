"""The examples run as they stand, and with a broken file among their images."""

from __future__ import annotations

import importlib
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import deepcluster as dc
from deepcluster import open_images
from deepcluster.clustering.metrics import nmi
from deepcluster.methods import params

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """600 handwritten digits in class folders, and a file among them that is no image."""
    digits = load_digits()
    for index in range(600):
        file = tmp_path / str(digits.target[index]) / f"{index:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(file)
    (tmp_path / "1" / "100-broken.png").write_bytes(b"no image")
    return str(tmp_path)


def test_deepcluster_in_one_page() -> None:
    agreement, assignment = example("01_deepcluster_in_one_page")["train"](epochs=2)
    assert len(agreement) == 2 and min(agreement) > 0.4 and len(assignment) == 1797


def test_targets_belong_to_their_images_when_a_file_is_broken(broken: str) -> None:
    agreement, assignment = example("01_deepcluster_in_one_page")["train"](broken, epochs=2)
    source = open_images(broken)
    assert len(assignment) == 601 and (assignment < 0).sum() == 1
    bad = int((assignment < 0).nonzero())
    assert source.path(bad).endswith("100-broken.png")
    good = assignment >= 0
    assert nmi(np.asarray(source.labels)[good.numpy()], assignment[good]) == pytest.approx(agreement[-1])


def test_your_clusterer() -> None:
    found = example("04_your_clusterer")["compare"](epochs=2)
    assert found["agglomerative"][0] == found["k-means"][0] == 20 and found["HDBSCAN"][0] > 5
    assert min(agreement for _, agreement in found.values()) > 0.4


def test_your_clusterer_with_a_broken_file(broken: str) -> None:
    found = example("04_your_clusterer")["compare"](broken, epochs=1)
    assert found["agglomerative"][0] == found["k-means"][0] == 20


def test_photo_tiles(tmp_path: Path) -> None:
    assert example("photo_tiles")["cut"](tmp_path) == len(open_images(str(tmp_path))) == 267
    assert open_images(str(tmp_path)).classes == ("china", "flower", "portrait")


def test_your_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(params.METHODS, "center", params.METHODS["frozen"])  # is taken back afterwards
    module = importlib.import_module("your_method")
    run = module.train(tmp_path / "run", epochs=2, quiet=True)
    assert len(run.centroids) == 20 and run.metrics[-1]["nmi_labels"] > 0.5
    longer = dc.train(data="digits", out=tmp_path / "run", resume=True, epochs=3, quiet=True)
    assert len(longer.metrics) == 3 and longer.metrics[-1]["nmi_labels"] > 0.5
    again = dc.load_run(tmp_path / "run").assign("digits").cluster  # 16-bit features of other batches round otherwise
    assert np.mean(again == longer.assignment) > 0.99


METHODS = ["deepcluster", "deepercluster", "odc", "deepcluster-v2", "swav"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_a_plain_loop(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    loop = importlib.import_module("training_loop")
    assert set(METHODS) == set(loop.OPTIONS)
    agreement = loop.train(name, count=200, epochs=2, out=tmp_path)
    assert len(agreement) == 2 and agreement[0] > 0.15
    images, _ = loop.digits(200)
    opened = dc.from_pretrained(tmp_path, device="cpu")
    clusters = opened.assign(images.permute(0, 2, 3, 1).numpy().copy()).cluster
    assert clusters.min() >= 0 and 1 < len(set(clusters)) <= 20


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_lightning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed; `make test` installs it")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("lightning_module")
        trained = module.train(
            name, count=200, epochs=2, enable_model_summary=False, default_root_dir=tmp_path, **quiet
        )
    method, before = trained.method, module.make_method(name, 200)
    assert trained.trainer.global_step == 2 * 4 and 0 < float(trained.trainer.callback_metrics["loss"]) < 5
    assert (method.assignment >= 0).all() and 1 < len(method.assignment.unique()) <= 20
    now = method.backbone.state_dict()
    assert all(not torch.equal(now[part], value) for part, value in before.backbone.state_dict().items())
    assert all(optimizer.state for optimizer in method.optimizers().values())  # they have made steps, too
