"""The protocol `mlp`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.cli.main import main
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear.heads import apply_layers, fully_connected, layers_of, perceptron
from deepcluster.evaluate.linear.mlp import mlp
from deepcluster.models.zoo import build_backbone

from .steps import stopping
from .test_linear import probe_file, probe_of, stripes, subject

SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 16, "hidden": 32}


def test_layers_begin_as_the_paper_has_them() -> None:
    head: Any = fully_connected(build_backbone("alexnet", image_size=64), 5, 0)
    other: Any = fully_connected(build_backbone("alexnet", image_size=64), 5, 1)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    for place in (1, 4):
        assert head[place].weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert head[place].weight.abs().max().item() > 0.03  # normal, not uniform
    assert head[6].weight.abs().max().item() <= 1 / 64 and head[6].weight.std().item() > 0.005
    assert all((head[place].bias == 0.1).all() for place in (1, 4, 6))
    assert not torch.equal(head[1].weight, other[1].weight)


def test_what_is_saved_is_what_was_trained() -> None:
    head = perceptron(6, 3, [5, 4], seed=0)
    with torch.no_grad():
        for _ in range(20):
            head(torch.randn(50, 6) * 3 + 1)  # statistics of its own
        head.eval()
        x = torch.randn(7, 6)
        torch.testing.assert_close(apply_layers(layers_of(head), x), head(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_alexnet_keeps_its_convolutions(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path, "alexnet", 64), stripes(24, side=64), stripes(12, 1, side=64)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    result = mlp(net, train, test, epochs=1, batch_size=12, crops=1)
    assert "new fc6 and fc7" in result.settings["layers"] and list(result.scores) == ["mlp_top1"]
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    probe = probe_of(result)
    assert (probe.predict(test, net) == test.labels).mean() == result.scores["mlp_top1"]
    # the layers read the flattened last map
    own = probe.classifiers["features"]
    trunk: Any = net.backbone.trunk
    with torch.no_grad():
        maps = trunk.features(torch.randn(2, 3, 64, 64))
    assert torch.equal(own.pooling(maps), maps.flatten(1)) and len(own.layers) == 3


def test_other_networks_get_hidden_layers_and_learn(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    result = mlp(net, train, test, epochs=6, batch_size=16, hidden=64, seeds=2, lr=0.1)
    assert result.scores["mlp_top1"] > 0.6 and "mlp_top1_std" in result.scores and len(result.draws) == 2
    assert len(probe_of(result).classifiers["output"].layers) == 3
    assert len(probe_of(mlp(net, train, test, depth=1, **SMALL)).classifiers["output"].layers) == 2


def test_dropout_is_the_same_after_a_stop(tmp_path: Path) -> None:
    train, test = stripes(60), stripes(30, 1)
    undisturbed = mlp(subject(tmp_path / "whole"), train, test, **SMALL)
    with pytest.raises(Interrupted):
        mlp(subject(tmp_path / "parts"), train, test, screen=stopping(6), **SMALL)
    torch.rand(17)  # the state of the global generator does not matter
    rest = mlp(subject(tmp_path / "parts"), train, test, **SMALL)
    assert probe_file(rest).read_bytes() == probe_file(undisturbed).read_bytes()


@pytest.mark.parametrize("options", [{"depth": 0}, {"hidden": 0}, {"recipe": "paper"}, {"epochs": 0}])
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(DeepClusterError):
        mlp(subject(tmp_path), stripes(60), stripes(30, 1), **options)


def test_alexnet_has_its_own_depth(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="--depth has no effect on alexnet"):
        mlp(subject(tmp_path, "alexnet", 64), stripes(6, side=64), holdout=0.5, depth=2)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "convnet", "mlp", "--untrained", "--image-size", "16", "--data", "digits", "--holdout", "0.5"]
    main([*words, "--epochs", "1", "--hidden", "16", "--out", str(tmp_path), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["scores"].keys() == {"mlp_top1", "mlp_top5"}
    assert np.isfinite(json.loads((tmp_path / "mlp.json").read_text())["scores"]["mlp_top1"])
