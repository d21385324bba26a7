"""The protocol `linear`, on real networks, small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from deepcluster.cli.main import main
from deepcluster.data.arrays import Arrays
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import RandomCrop, TenCrop
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear import load_probe
from deepcluster.evaluate.linear.context import ORDER
from deepcluster.evaluate.linear.features import FrozenFeatures
from deepcluster.evaluate.linear.heads import apply_layers, perceptron
from deepcluster.evaluate.linear.linear import linear
from deepcluster.evaluate.linear.probe import Probe
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.trainer import VIEW
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded

from .steps import Steps, stopping


def subject(folder: Path, name: str = "convnet", size: int = 16, **options: Any) -> Subject:
    """A network drawn at random."""
    if name == "convnet":
        options = {"widths": (8, 8, 16), "pools": (1, 2)} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(name, image_size=size, **options).eval()
    return Subject(name, Model(backbone, torch.zeros(0, backbone.dim)), "cpu", folder)


def stripes(count: int, seed: int = 0, classes: int = 3, side: int = 16) -> Arrays:
    """Noisy pictures whose color and stripes tell the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    block = random.integers(0, 256, (count, side, side, 3)) * 0.5
    for k, label in enumerate(labels):
        block[k, :: label + 2, :, label % 3] += 60
    names = tuple(f"class {k}" for k in range(classes))
    return Arrays(f"stripes {seed}", block.clip(0, 255).astype(np.uint8), labels, names)


def probe_of(result: Result) -> Probe:
    """The classifiers that an evaluation saved."""
    return load_probe(probe_file(result))


def probe_file(result: Result) -> Path:
    return Path(result.settings["trained"].removesuffix(" (load_probe reads it)"))


QUICK: dict[str, Any] = {"taps": ("conv1", "conv3"), "recipe": "quick", "epochs": 3, "batch_size": 16}


def test_output_is_scikit_learns_logistic_regression(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    result = linear(net, train, test, weight_decay=(1e-3,))
    known, asked = net.features(train), net.features(test)
    mean, std = known.mean(0), np.where(known.std(0) > 0, known.std(0), 1)
    theirs = LogisticRegression(C=1 / (1e-3 * 90), max_iter=5000, tol=1e-8).fit((known - mean) / std, train.labels)
    predicted = theirs.predict((asked - mean) / std)
    assert result.scores == {"linear_output_top1": pytest.approx((predicted == test.labels).mean(), abs=1e-9)}
    assert result.scores["linear_output_top1"] > 0.5
    probe = probe_of(result)
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
    options: dict[str, Any] = {"epochs": 2, "lr": (0.1,), "weight_decay": (0.5,), "batch_size": 12}
    probe = probe_of(linear(net, train, test, taps=("fc6",), recipe="deepcluster", **options))
    layer: Any = perceptron(4096, 3, norm=False, seed=0, name="fc6")[0]
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert float(weight.std()) == pytest.approx(0.01, rel=0.05) and not bias.any()
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(2):
        order = torch.randperm(12, generator=seeded(0, ORDER, epoch)).numpy()
        crop = RandomCrop(64, net.backbone.mean, net.backbone.std)
        (batch,) = Loader(net.pixels(train), order, batch_size=12, transform=crop, key=(0, VIEW, epoch))
        with torch.no_grad(), read_taps(net.backbone, "fc6") as seen:
            net.backbone(batch.views[0])
        x, truth = seen["fc6"], F.one_hot(torch.from_numpy(train.labels)[batch.index], 3)
        error = (F.linear(x, weight, bias).softmax(1) - truth) / 12
        rate = 0.1 / (1 + 0.1 * 0.5 * epoch) ** 0.5
        for value, moved, gradient in ((weight, speed[0], error.T @ x), (bias, speed[1], error.sum(0))):
            moved.mul_(0.9).add_(gradient + 0.5 * value)
            value.sub_(rate * moved)
    ((found, found_bias),) = probe.classifiers["fc6"].layers
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found_bias, bias, rtol=1e-3, atol=1e-5)


def test_taps_together_are_taps_alone_and_the_network_is_left_alone(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    both = linear(net, train, test, **QUICK)
    layers = probe_of(both).classifiers["conv3"].layers
    alone = linear(net, train, test, **(QUICK | {"taps": ("conv3",)}))
    assert alone.scores["linear_conv3_top1"] == both.scores["linear_conv3_top1"] > 0.4
    torch.testing.assert_close(probe_of(alone).classifiers["conv3"].layers, layers)
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    assert not net.backbone.training and not list(tmp_path.glob("*.state"))


def test_saved_probe_gives_the_score(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90, classes=7), stripes(63, 1, classes=7)
    assert test.labels is not None
    result = linear(net, train, test, **QUICK)
    probe = probe_of(result)
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
    with pytest.raises(DeepClusterError, match="as a deepcluster probe"):
        load_probe(tmp_path / "other.safetensors")


def test_ten_crops_average_softmax(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    result = linear(net, train, test, crops=10, **(QUICK | {"taps": ("conv3",)}))
    probe = probe_of(result)
    own = probe.classifiers["conv3"]
    views = TenCrop(16, net.backbone.mean, net.backbone.std)(list(test.images), seeded(0))
    frozen = FrozenFeatures(net.backbone, {"conv3": own.pooling})
    mean: Any = sum(apply_layers(own.layers, frozen(view)["conv3"]).softmax(1) for view in views) / 10
    right = (mean.argmax(1).numpy() == test.labels).mean()
    assert result.scores["linear_conv3_top1"] == pytest.approx(right)
    assert "ten crops" in result.settings["test_crops"]


@pytest.mark.parametrize("after", [3, 7, 10, 15])
def test_stopped_evaluation_continues_to_the_bit(tmp_path: Path, after: int) -> None:
    train, test = stripes(60), stripes(30, 1)
    more = QUICK | {"lr": (0.1, 0.01), "cross_validate": True, "folds": 2, "epochs": 2, "report": "best-epoch"}
    undisturbed = linear(subject(tmp_path / "whole"), train, test, **more)
    with pytest.raises(Interrupted):
        linear(subject(tmp_path / "parts"), train, test, screen=stopping(after), **more)
    (state,) = (tmp_path / "parts").glob("linear-*.state")
    steps = Steps()
    rest = linear(subject(tmp_path / "parts"), train, test, screen=steps, **more)
    # Two folds of 2 epochs of 2 steps, then 2 epochs of 4 steps; the state is saved after each epoch.
    saved = max(end for end in (0, 2, 4, 6, 8, 12, 16) if end <= after)
    assert steps.count == 16 - saved
    assert rest.scores == undisturbed.scores and rest.settings["held_out"] == undisturbed.settings["held_out"]
    assert probe_file(rest).read_bytes() == probe_file(undisturbed).read_bytes() and not state.exists()


def test_other_settings_have_files_of_their_own(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    results = [linear(net, train, test, **QUICK), linear(net, train, test, **(QUICK | {"seed": 4}))]
    untrained = net.untrained(3)
    untrained.results = net.results
    results.append(linear(untrained, train, test, **QUICK))
    assert len({probe_file(result) for result in results}) == 3
    assert (probe_of(results[0]).predict(test, net) == test.labels).mean() == results[0].scores["linear_conv3_top1"]
    again = linear(net, train, test, **QUICK)
    assert probe_file(again) == probe_file(results[0])


def test_other_settings_start_over_and_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train, test = stripes(60), stripes(30, 1)
    with pytest.raises(Interrupted):
        linear(subject(tmp_path), train, test, screen=stopping(5), **QUICK)
    steps = Steps()
    linear(subject(tmp_path), train, test, screen=steps, **(QUICK | {"seed": 4}))
    assert steps.count == 12
    (state,) = tmp_path.glob("linear-*.state")  # of the evaluation that was stopped
    state.write_bytes(b"broken")
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
        ({"recipe": "best"}, "--recipe 'best' does not exist"),
        ({"crops": 3}, "--crops 3"),
        ({"report": "first"}, "best-epoch"),
        ({"seeds": 0}, "--seeds 0"),
        ({"folds": 1}, "--folds 1"),
        ({"precision": "8"}, "precision"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence):
        linear(subject(tmp_path), stripes(60), stripes(30, 1), **options)


def test_precision_changes_the_frozen_network_alone(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(60), stripes(30, 1)
    exact, rough = (
        probe_of(linear(net, train, test, precision=precision, **QUICK)).classifiers["conv3"].layers[0][0]
        for precision in ("32", "bf16")
    )
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
    assert len(list(tmp_path.glob("linear-*.safetensors"))) == 1


@pytest.mark.slow
def test_trained_colors_of_real_images(shared_data: Path, tmp_path: Path) -> None:
    """On CIFAR-10 a probe of an untrained network beats a guess by far."""
    net = subject(tmp_path, size=32, widths=(16, 32, 64), pools=(1, 2))
    train, test = (str(shared_data / "cifar10" / name) for name in ("train-000.tar", "test.tar"))
    assert linear(net, train, test).scores["linear_output_top1"] > 0.25
