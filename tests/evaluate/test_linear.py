"""The protocol `linear`, on real networks, small ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from deepcluster.cli.main import main
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.arrays import Arrays
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear import linear as module
from deepcluster.evaluate.linear.linear import linear
from deepcluster.evaluate.linear.probe import load_probe
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded


def subject(folder: Path, name: str = "convnet", size: int = 16, **options: object) -> Subject:
    """A network drawn at random."""
    options = {"widths": (8, 8, 16), "pools": (1, 2)} | options if name == "convnet" else options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(name, image_size=size, **options).eval()
    return Subject(name, Model(backbone, Whitening(), torch.zeros(0, backbone.dim)), "cpu", folder)


def stripes(count: int, seed: int = 0, classes: int = 3, side: int = 16) -> Arrays:
    """Noisy pictures whose color and stripes tell the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    block = random.integers(0, 256, (count, side, side, 3)) * 0.5
    for k, label in enumerate(labels):
        block[k, :: label + 2, :, label % 3] += 60
    names = tuple(f"class {k}" for k in range(classes))
    return Arrays(f"stripes {seed}", block.clip(0, 255).astype(np.uint8), labels, names)


QUICK = {"taps": ("conv1", "conv3"), "recipe": "quick", "epochs": 3, "batch_size": 16}


def test_output_is_scikit_learns_logistic_regression(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    result = linear(net, train, test, weight_decay=(1e-3,))
    known, asked = net.features(train), net.features(test)
    mean, std = known.mean(0), np.where(known.std(0) > 0, known.std(0), 1)
    theirs = LogisticRegression(C=1 / (1e-3 * 90), max_iter=5000, tol=1e-8).fit((known - mean) / std, train.labels)
    predicted = theirs.predict((asked - mean) / std)
    assert result.scores == {"linear_output_top1": pytest.approx((predicted == test.labels).mean(), abs=1e-9)}
    assert result.scores["linear_output_top1"] > 0.5
    probe = load_probe(tmp_path / "linear.safetensors")
    assert (probe.predict(test, net) == predicted).all() and probe.classes == train.classes
    chances = probe.probabilities(test, net)
    np.testing.assert_allclose(chances, theirs.predict_proba((asked - mean) / std), atol=5e-3)
    assert "report" not in result.settings and result.draws == []


def test_decay_is_chosen_on_training_images_alone(tmp_path: Path) -> None:
    net, train = subject(tmp_path), stripes(90)
    chosen = [linear(net, train, stripes(60, seed)).settings["chosen"] for seed in (1, 2)]
    assert chosen[0] == chosen[1]  # another test set changes nothing
    assert len(chosen[0]["output"][0]["held_out_accuracy"]) > 1


def test_logistic_regression_of_maps_and_several_seeds(tmp_path: Path) -> None:
    net = subject(tmp_path)
    result = linear(net, stripes(90), holdout=0.3, taps=("conv2", "output"), recipe="logistic", seeds=2)
    assert list(result.scores) == [
        "linear_conv2_top1", "linear_conv2_top1_std", "linear_output_top1", "linear_output_top1_std",
    ]  # fmt: skip
    assert [draw["seed"] for draw in result.draws] == [0, 1]
    assert "average pool to 4x4 (128)" in result.settings["features"]


def test_one_step_is_sgd_by_hand(tmp_path: Path) -> None:
    """One epoch of one batch, and a second: rate, momentum, decay and Bottou's schedule, worked out apart."""
    net, train, test = subject(tmp_path, "alexnet", 64), stripes(12, side=64), stripes(9, 1, side=64)
    linear(
        net, train, test, taps=("fc6",), recipe="deepcluster", epochs=2, lr=(0.1,), weight_decay=(0.5,), batch_size=12
    )
    probe = load_probe(tmp_path / "linear.safetensors")
    from deepcluster.evaluate.linear.feed import Crops, Feed
    from deepcluster.evaluate.linear.heads import linear_head
    from deepcluster.evaluate.linear.parts import Part
    from deepcluster.evaluate.linear.training import ORDER, VIEW
    from deepcluster.models.taps import read_taps

    part = Part(net.pixels(train), np.arange(12), train.labels)
    layer = linear_head(4096, 3, norm=False, seed=0, name="fc6")[0]
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert float(weight.std()) == pytest.approx(0.01, rel=0.05) and not bias.any()
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(2):
        order = torch.randperm(12, generator=seeded(0, ORDER, epoch)).numpy()
        make = Crops(64, net.backbone.mean, net.backbone.std).random
        ((rows, views),) = Feed(part, order, 12, make, (0, VIEW, epoch))
        with torch.no_grad(), read_taps(net.backbone, "fc6") as seen:
            net.backbone(views[0])
        x, truth = seen["fc6"], F.one_hot(torch.from_numpy(train.labels[rows]), 3)
        error = (F.linear(x, weight, bias).softmax(1) - truth) / 12
        rate = 0.1 / (1 + 0.1 * 0.5 * epoch) ** 0.5
        for value, moved, gradient in ((weight, speed[0], error.T @ x), (bias, speed[1], error.sum(0))):
            moved.mul_(0.9).add_(gradient + 0.5 * value)
            value.sub_(rate * moved)
    ((found, found_bias),) = probe.trained["fc6"].layers
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found_bias, bias, rtol=1e-3, atol=1e-5)


def test_taps_together_are_taps_alone_and_the_network_is_left_alone(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    both = linear(net, train, test, **QUICK)
    layers = load_probe(tmp_path / "linear.safetensors").trained["conv3"].layers
    alone = linear(net, train, test, **(QUICK | {"taps": ("conv3",)}))
    assert alone.scores["linear_conv3_top1"] == both.scores["linear_conv3_top1"] > 0.4
    torch.testing.assert_close(load_probe(tmp_path / "linear.safetensors").trained["conv3"].layers, layers)
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    assert not net.backbone.training and not (tmp_path / "linear.state").exists()


def test_saved_probe_gives_the_score(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90, classes=7), stripes(63, 1, classes=7)
    result = linear(net, train, test, **QUICK)
    probe = load_probe(tmp_path / "linear.safetensors")
    assert probe.taps == ("conv1", "conv3")
    for tap in probe.taps:
        chances = probe.probabilities(test, net, tap)
        assert result.scores[f"linear_{tap}_top1"] == (chances.argmax(1) == test.labels).mean()
        five = (np.argsort(-chances, 1)[:, :5] == test.labels[:, None]).any(1).mean()
        assert result.scores[f"linear_{tap}_top5"] == pytest.approx(five)
    with pytest.raises(DeepClusterError, match="not the network"):
        probe.predict(test, net.untrained(5))
    with pytest.raises(DeepClusterError, match="no classifier of 'conv2'"):
        probe.predict(test, net, "conv2")
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(DeepClusterError, match="no probe"):
        load_probe(tmp_path / "other.safetensors")


def test_ten_crops_average_softmax(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    result = linear(net, train, test, crops=10, **(QUICK | {"taps": ("conv3",)}))
    probe = load_probe(tmp_path / "linear.safetensors")
    from deepcluster.evaluate.linear.feed import Crops
    from deepcluster.evaluate.linear.frozen import Frozen
    from deepcluster.evaluate.linear.heads import apply

    own = probe.trained["conv3"]
    views = Crops(16, net.backbone.mean, net.backbone.std).ten(list(test.pictures), seeded(0), torch.device("cpu"))
    frozen = Frozen(net.backbone, {"conv3": own.pooling})
    mean = sum(apply(own.layers, frozen(view)["conv3"]).softmax(1) for view in views) / 10
    right = (mean.argmax(1).numpy() == test.labels).mean()
    assert result.scores["linear_conv3_top1"] == pytest.approx(right)
    assert "ten crops" in result.settings["test_crops"]


class Stop:
    """Ends an evaluation after so many epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("enough")


@pytest.mark.parametrize("after", [2, 4, 5])
def test_stopped_evaluations_go_on_to_the_bit(tmp_path: Path, after: int) -> None:
    train, test = stripes(60), stripes(30, 1)
    more = QUICK | {"lr": (0.1, 0.01), "cross_validate": True, "folds": 2, "epochs": 2, "report": "best-epoch"}
    whole = linear(subject(tmp_path / "whole"), train, test, **more)
    with pytest.raises(Interrupted):
        linear(subject(tmp_path / "parts"), train, test, pause=Stop(after), **more)
    assert (tmp_path / "parts" / "linear.state").exists()
    epochs: list[int] = []
    rest = linear(subject(tmp_path / "parts"), train, test, pause=lambda: epochs.append(1), **more)
    assert len(epochs) == 6 - after  # two folds and one training of two epochs, less those that were done
    assert rest.scores == whole.scores and rest.settings["held_out"] == whole.settings["held_out"]
    files = [(tmp_path / name / "linear.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1] and not (tmp_path / "parts" / "linear.state").exists()


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    train, test = stripes(60), stripes(30, 1)
    with pytest.raises(Interrupted):
        linear(subject(tmp_path), train, test, pause=Stop(1), **QUICK)
    epochs: list[int] = []
    linear(subject(tmp_path), train, test, pause=lambda: epochs.append(1), **(QUICK | {"seed": 4}))
    assert len(epochs) == 3
    (tmp_path / "linear.state").write_bytes(b"broken")
    with pytest.raises(DeepClusterError, match="damaged"):
        linear(subject(tmp_path), train, test, **QUICK)


def test_cross_validation_never_looks_at_the_test_images(tmp_path: Path) -> None:
    net, train = subject(tmp_path), stripes(60)
    more = QUICK | {"lr": (0.02, 1e-9), "cross_validate": True, "folds": 2, "weight_decay": (0.0, 1e-4)}
    held = [linear(net, train, stripes(30, seed), **more).settings["held_out"] for seed in (1, 2)]
    assert held[0] == held[1] and len(held[0]["conv1"]) == 4
    said = linear(net, train, stripes(30, 1), **more).settings["chosen"]
    for tap, tried in held[0].items():
        best = max(tried, key=lambda option: tried[option])  # the first of equals
        assert f"{tap} {best.removeprefix('lr ').replace(', weight decay', ' and')}" in said
    assert "conv1 0.02 and" in said  # not the rate that learns nothing


def test_best_epoch_is_said_and_is_the_best(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    best = linear(net, train, test, report="best-epoch", seeds=2, **QUICK)
    last = linear(net, train, test, seeds=2, **QUICK)
    for one, other in zip(best.draws, last.draws, strict=True):
        assert one["linear_conv1_top1"] >= other["linear_conv1_top1"] and 1 <= one["linear_conv1_epoch"] <= 3
    assert "TEST" in best.settings["report"] and "last" in last.settings["report"]
    assert best.scores["linear_conv1_top1"] == np.mean([draw["linear_conv1_top1"] for draw in best.draws])
    assert "linear_conv1_top1_std" in best.scores


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"epochs": 3}, "--epochs has no meaning"),
        ({"crops": 10}, "--crops has no meaning"),
        ({"weight_decay": (0.0,)}, "above 0"),
        ({"weight_decay": (0.1,), "cross_validate": True}, "nothing to choose"),
        (QUICK | {"lr": (0.1, 0.2)}, "add --cross-validate"),
        (QUICK | {"cross_validate": True}, "nothing to choose"),
        (QUICK | {"cross_validate": True, "lr": (0.1, 0.2), "folds": 40}, "too few for 40 folds"),
        (QUICK | {"recipe": "deepercluster", "taps": ("output",)}, "none for 'output'"),
        ({"recipe": "best"}, "no recipe 'best'"),
        ({"crops": 3}, "central crop"),
        ({"report": "first"}, "best-epoch"),
        ({"seeds": 0}, "--seeds 0"),
        ({"folds": 1}, "--folds 1"),
        ({"precision": "8"}, "precision"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict, sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence):
        linear(subject(tmp_path), stripes(60), stripes(30, 1), **options)


def test_precision_changes_the_frozen_network_alone(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    linear(net, train, test, **QUICK)
    exact = load_probe(tmp_path / "linear.safetensors").trained["conv3"].layers[0][0]
    linear(net, train, test, precision="bf16", **QUICK)
    rough = load_probe(tmp_path / "linear.safetensors").trained["conv3"].layers[0][0]
    assert rough.dtype == torch.float32 and 0 < (exact - rough).abs().max() < 0.1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.uint8))
    words = [
        "evaluate",
        "convnet",
        "linear",
        "--untrained",
        "--image-size",
        "16",
        "--data",
        "digits",
        "--holdout",
        "0.5",
    ]
    options = ["--taps", "conv3", "conv5", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu", "--json"]
    main([*words, *options])
    said = json.loads(capsys.readouterr().out)
    assert said["scores"].keys() == {f"linear_conv{k}_top{n}" for k in (3, 5) for n in (1, 5)}
    assert json.loads((tmp_path / "linear.json").read_text()) == said
    assert (tmp_path / "linear.safetensors").exists() and module.__doc__


@pytest.mark.slow
def test_trained_colors_of_real_images(shared_data: Path, tmp_path: Path) -> None:
    """On CIFAR-10 a probe of an untrained network beats a guess by far."""
    net = subject(tmp_path, size=32, widths=(16, 32, 64), pools=(1, 2))
    train, test = (str(shared_data / "cifar10" / name) for name in ("train-000.tar", "test.tar"))
    assert linear(net, train, test).scores["linear_output_top1"] > 0.25
