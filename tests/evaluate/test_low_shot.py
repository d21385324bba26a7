"""The protocol `low-shot`."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from torch import nn

from deepcluster.cli.main import main
from deepcluster.data.arrays import Arrays
from deepcluster.engine.run import load_subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear.context import Learner
from deepcluster.evaluate.linear.low_shot import low_shot
from deepcluster.evaluate.linear.recipes import SEMI_SUPERVISED
from deepcluster.evaluate.result import Result

from .steps import stopping
from .test_linear import probe_file, probe_of, stripes, subject


def backbone_file(result: Result) -> Path:
    file = probe_file(result)
    return file.with_stem(f"{file.stem}-backbone")


@pytest.mark.parametrize("classifier", ["logistic", "svm"])
def test_each_draw_is_scikit_learns(tmp_path: Path, classifier: Literal["logistic", "svm"]) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    assert train.labels is not None
    result = low_shot(net, train, test, shots=(2, 8), draws=3, classifier=classifier, c=10.0)
    known, asked = normalize(net.features(train)), normalize(net.features(test))
    assert len(result.draws) == 6
    for draw in result.draws:
        rows = np.array(draw["images"])
        shots = int(draw["of"].removeprefix("shots_"))
        assert len(set(rows)) == len(rows) and np.bincount(train.labels[rows]).tolist() == [shots] * 3
        options = {"C": 10.0, "max_iter": 100_000, "tol": 1e-7}
        model = LogisticRegression(**options) if classifier == "logistic" else LinearSVC(**options)
        theirs = (model.fit(known[rows], train.labels[rows]).predict(asked) == test.labels).mean()
        assert draw[f"{draw['of']}_top1"] == pytest.approx(theirs, abs=1 / 60 + 1e-9)  # at most one on the border
    values = [draw["shots_8_top1"] for draw in result.draws if draw["of"] == "shots_8"]
    assert result.scores["shots_8_top1"] == pytest.approx(np.mean(values))
    assert result.scores["shots_8_top1_std"] == pytest.approx(np.std(values, ddof=1))
    assert list(result.scores) == ["shots_2_top1", "shots_2_top1_std", "shots_8_top1", "shots_8_top1_std"]
    probe = probe_of(result)
    assert (probe.predict(test, net) == test.labels).mean() == pytest.approx(values[0])


def test_draws_are_repeated_nested_and_different(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(30, 1)
    first = low_shot(net, train, test, shots=(1, 4), draws=2)
    again = low_shot(net, train, test, shots=(1, 4), draws=2)
    assert first.draws == again.draws and first.scores == again.scores
    one, other, four, _ = (set(draw["images"]) for draw in first.draws)
    assert one < four and one != other
    assert low_shot(net, train, test, shots=(1,), draws=1, seed=9).draws[0]["images"] != first.draws[0]["images"]


def test_share_of_the_labels_is_of_each_class(tmp_path: Path) -> None:
    net, test = subject(tmp_path), stripes(30, 1)
    whole = stripes(120)
    assert whole.labels is not None
    rows = np.concatenate([np.flatnonzero(whole.labels == k)[:n] for k, n in enumerate((40, 20, 3))])
    train = Arrays("uneven", np.asarray(whole.images)[rows], whole.labels[rows], whole.classes)
    assert train.labels is not None
    result = low_shot(net, train, test, fraction=(0.1, 0.5), draws=2)
    sizes = {draw["of"]: np.bincount(train.labels[draw["images"]]).tolist() for draw in result.draws}
    assert sizes == {"fraction_0.1": [4, 2, 1], "fraction_0.5": [20, 10, 2]}
    assert "fraction_0.5_top1_std" in result.scores and "shots_1_top1" not in result.scores


def test_fine_tuning_trains_the_whole_network(tmp_path: Path) -> None:
    net, train, test = subject(tmp_path), stripes(90), stripes(60, 1)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    options: dict[str, Any] = {
        "fraction": (0.5,),
        "fine_tune": True,
        "draws": 1,
        "epochs": 6,
        "batch_size": 8,
        "lr": 0.05,
    }
    result = low_shot(net, train, test, **options)
    assert result.scores["fine_tuned_0.5_top1"] > 0.6 and len(result.draws) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    tuned = load_subject(backbone_file(result), device="cpu")
    moved = [not torch.equal(v, before[n]) for n, v in tuned.backbone.state_dict().items() if n.endswith("weight")]
    assert all(moved)
    probe = probe_of(result)
    assert (probe.predict(test, tuned) == test.labels).mean() == result.draws[0]["fine_tuned_0.5_top1"]
    assert "the new layer is 10 times" in result.settings["fine_tuning"]


def test_rates_of_fine_tuning(tmp_path: Path) -> None:
    network = nn.Sequential(
        OrderedDict(backbone=subject(tmp_path).backbone.requires_grad_(True), head=nn.Linear(16, 3))
    )
    groups = Learner("network", network, 0.01, 5e-4, ("head", 100.0)).parameter_groups()
    assert [(group["multiplier"], len(group["params"])) for group in groups] == [(1.0, 9), (100.0, 2)]
    assert (SEMI_SUPERVISED.epochs, SEMI_SUPERVISED.batch_size, SEMI_SUPERVISED.weight_decay) == (20, 256, (5e-4,))
    assert [SEMI_SUPERVISED.factor(e * 7, 140, 7, 0.01, 0) for e in (11, 12, 16)] == pytest.approx([1, 0.2, 0.04])


def test_stopped_fine_tuning_goes_on_to_the_bit(tmp_path: Path) -> None:
    train, test = stripes(60), stripes(30, 1)
    options: dict[str, Any] = {"fraction": (0.3,), "fine_tune": True, "draws": 2, "epochs": 2, "batch_size": 8}
    undisturbed = low_shot(subject(tmp_path / "whole"), train, test, **options)
    for after in (4, 5, 3):  # of 2 draws of 2 epochs of 3 steps
        with pytest.raises(Interrupted):
            low_shot(subject(tmp_path / "parts"), train, test, screen=stopping(after), **options)
    rest = low_shot(subject(tmp_path / "parts"), train, test, **options)
    assert rest.scores == undisturbed.scores
    for file_of in (probe_file, backbone_file):
        one, other = load_file(file_of(undisturbed)), load_file(file_of(rest))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"shots": (31,)}, "'class 0' has 30"),
        ({"shots": (0,)}, "--shots 0 is too few"),
        ({"fraction": (1.5,)}, "above 0 and at most 1"),
        ({"draws": 0}, "--draws 0"),
        ({"fine_tune": True}, "needs shares"),
        ({"lr": 0.1}, "add --fine-tune"),
        ({"fraction": (0.1,), "c": 1.0}, "--c is of"),
        ({"fraction": (0.1,), "fine_tune": True, "classifier": "svm"}, "leave out --classifier"),
        ({"fraction": (0.1,), "fine_tune": True, "precision": "16"}, "bf16 or 32"),
        ({"classifier": "forest"}, "choose one of logistic, svm"),
        ({"tap": "all"}, "one layer"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence):
        low_shot(subject(tmp_path), stripes(90), stripes(30, 1), **options)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "convnet", "low-shot", "--untrained", "--image-size", "16", "--data", "digits"]
    main(
        [
            *words,
            "--holdout",
            "0.5",
            "--shots",
            "1",
            "4",
            "--draws",
            "2",
            "--out",
            str(tmp_path),
            "--device",
            "cpu",
            "--json",
        ]
    )
    said = json.loads(capsys.readouterr().out)
    assert said["scores"]["shots_4_top1"] > said["scores"]["shots_1_top1"] > 0.2
    assert (tmp_path / "low-shot.json").exists()
