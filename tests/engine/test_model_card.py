"""A run as a folder for the Hugging Face hub: what is in it, what its card says, and that others can use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models._hub import save_for_hf

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.engine.model import Model
from deepcluster.evaluate.result import Result
from restarts import images

SMALL: dict[str, Any] = {"k": 5, "whiten": 8, "epochs": 1, "image_size": 12, "quiet": True}


def test_a_network_that_timm_has(tmp_path: Path) -> None:
    options: dict[str, Any] = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    save_for_hf(network, str(tmp_path / "vit"), model_args=options, safe_serialization=True)
    run = dc.cluster(images(), tmp_path / "run", backbone=str(tmp_path / "vit"), k=3, quiet=True)
    out = tmp_path / "shared"
    assert main(["export", str(run.folder), "--format", "huggingface", "--out", str(out)]) == 0
    names = ["README.md", "clusters.safetensors", "config.json", "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        torch.testing.assert_close(theirs(x), network(x))
    again = dc.cluster(images(), tmp_path / "again", backbone=str(out), k=3, quiet=True)
    np.testing.assert_array_equal(again.assignment, run.assignment)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n") and "| method | kmeans of the features of vit |" in card
    assert "Scores" not in card and "timm.create_model" in card and str(tmp_path) not in card


def test_a_network_that_only_we_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "my|images.npy", images())
    run = dc.train("tiny-deepcluster", tmp_path / "my|images.npy", tmp_path / "run", **SMALL)
    Result("knn", {"model": run.mark}, {"knn20_top1": 0.5, "knn20_top1_std": 0.01}).save(run.results)
    out = tmp_path / "shared"
    words = ["export", str(run.folder), "--format", "huggingface", "--out", str(out)]
    assert main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "clusters.safetensors"]
    features = run.features(images())
    np.testing.assert_array_equal(Model.load(out / "clusters.safetensors").nearest(features)[0], run.assignment)
    card = (out / "README.md").read_text()
    for line in (
        "| network | convnet, for images of 12 px |",
        "| method | deepcluster (preset tiny-deepcluster) |",
        "| initial weights | drawn at random |",
        "| data | my\\|images.npy, 64 images; no labels were used |",
        "| clusters | 5 |",
        "| epochs | 1 |",
        "| knn | knn20_top1 | 50.0 | 1.0 |",
    ):
        assert f"\n{line}\n" in card
    assert "timm" not in card and str(tmp_path) not in card
    command = next(line for line in card.splitlines() if line.startswith("deepcluster features"))
    named = command.replace("FOLDER", str(out))
    named = named.replace("photos/", str(tmp_path / "my|images.npy")).replace("features.npy", str(tmp_path / "f.npy"))
    assert main(named.split()[1:]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), features)
    capsys.readouterr()
    assert main(words) == 2 and "is not empty: choose a new folder." in capsys.readouterr().err
    assert main(["export", str(out / "clusters.safetensors"), *words[2:]]) == 2
    assert "is no run, of which a card could be written" in capsys.readouterr().err
