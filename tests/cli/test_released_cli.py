"""Checkpoints released by the authors of DeepCluster, on the command line: features of them, and both exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from deepcluster.cli.main import main
from deepcluster.models.alexnet import CONVS
from deepcluster.models.export import load_backbone
from deepcluster.models.released import SOBEL, load_released

K = 6


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet with random convolutions; its linear layers have one number each, so that the file stays small."""
    draw = torch.Generator().manual_seed(0)
    weights, inputs = dict(SOBEL), 2
    for place, (width, kernel, _, _, _) in zip((0, 4, 8, 11, 14), CONVS, strict=True):
        conv, norm = f"features.module.{place}", f"features.module.{place + 1}"
        weights[f"{conv}.weight"] = (
            torch.randn(width, inputs, kernel, kernel, generator=draw) * (inputs * kernel**2) ** -0.5
        )
        weights |= {f"{conv}.bias": torch.zeros(width), f"{norm}.weight": torch.ones(width)}
        weights |= {f"{norm}.bias": torch.zeros(width), f"{norm}.running_mean": torch.zeros(width)}
        weights |= {f"{norm}.running_var": torch.ones(width)}
        inputs = width
    for place, width in ((1, 9216), (4, 4096)):
        weights[f"classifier.{place}.weight"] = torch.tensor(1 / width).expand(4096, width)
        weights[f"classifier.{place}.bias"] = torch.randn(4096, generator=draw)
    weights |= {"top_layer.weight": torch.ones(1).expand(K, 4096), "top_layer.bias": torch.arange(K) / K}
    file = tmp_path_factory.mktemp("released") / "checkpoint.pth.tar"
    torch.save({"epoch": 9, "arch": "alexnet", "state_dict": weights, "optimizer": {}}, file)
    return file


@pytest.fixture(autouse=True)
def _no_large_files_stay(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size > 1e7:
            file.unlink()


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("deepcluster: ")
    return err


def test_features_of_a_released_checkpoint(released: Path, tmp_path: Path) -> None:
    """256 px are what images are resized to, so that the view is the middle 224 and nothing else."""
    images = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    words = ["features", released, "--data", tmp_path / "images.npy", "--device", "cpu", "--out"]
    assert main([str(word) for word in [*words, tmp_path / "fc7.npy"]]) == 0
    assert main([str(word) for word in [*words, tmp_path / "conv3.npy", "--tap", "conv3"]]) == 0
    backbone = load_released(released).backbone
    x = torch.from_numpy(images[:, 16:240, 16:240]).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]
    with torch.no_grad():
        expected = backbone(x)
        maps = cast(Any, backbone.trunk).features[:11](backbone.sobel(x))
    np.testing.assert_allclose(np.load(tmp_path / "fc7.npy"), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "conv3.npy"), maps.mean((2, 3)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected[0], expected[1])


def test_export_of_a_released_checkpoint(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = load_released(released)
    file = tmp_path / "alexnet.safetensors"
    assert main(["export", str(released), "--out", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "safetensors"
    ours = load_backbone(file)
    assert ours.config == theirs.backbone.config
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.backbone.state_dict().items())
    again = tmp_path / "again.pth.tar"
    assert main(["export", str(released), "--format", "released", "--out", str(again)]) == 0
    found = load_released(again)
    assert found.head_bias is not None and theirs.head_bias is not None
    assert (found.epoch, found.k) == (9, K) and torch.equal(found.head_bias, theirs.head_bias)


def test_checkpoint_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.mkdir, (str(tmp_path / "made"),)

    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": Command(), "arch": "alexnet", "state_dict": {}}, file)
    out = tmp_path / "f.npy"
    assert "could run code" in mistake(capsys, "features", file, "--data", "digits", "--out", out)
    assert "could run code" in mistake(capsys, "export", file, "--out", tmp_path / "b.safetensors")
    train = ("train", "tiny-deepcluster", "--data", "digits", "--out", tmp_path / "run", "--backbone.weights", file)
    assert "could run code" in mistake(capsys, *train)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth.tar"]


def test_missing_weights_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = mistake(capsys, "features", tmp_path / "no.pth.tar", "--data", "digits", "--out", tmp_path / "f.npy")
    assert "no.pth.tar cannot be read (No such file or directory)" in said


def test_weights_of_another_network_are_refused(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "tiny-deepcluster", "--data", "digits", "--out", tmp_path / "run", "--backbone.weights", released)
    assert "name alexnet, sobel paper, image_size 224" in mistake(capsys, *train)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_released_weights_survive_training_at_zero_learning_rate_and_export(released: Path, tmp_path: Path) -> None:
    """One step at 224 px that begins with their weights, at rate 0 so that they stay; then written as theirs."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8))
    words = ["train", "deepcluster-alexnet", "--data", str(tmp_path / "images.npy"), "--out", str(tmp_path / "run")]
    words += ["--method.k", "2", "--method.whiten", "2", "--epochs", "1", "--optimizer.lr", "0", "--device", "cpu"]
    words += ["--method.head-lr", "0.1", "--optimizer.weight-decay", "0", "--backbone.weights", str(released)]
    assert main(words) == 0
    file = tmp_path / "ours.pth.tar"
    assert main(["export", str(tmp_path / "run"), "--format", "released", "--out", str(file)]) == 0
    ours, theirs = load_released(file), load_released(released)
    assert (ours.epoch, ours.k, ours.arch) == (1, 2, "alexnet")
    assert ours.head_bias is not None and ours.head_bias.any()
    for name, parameter in theirs.backbone.named_parameters():
        assert torch.equal(dict(ours.backbone.named_parameters())[name], parameter), name
