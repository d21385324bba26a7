"""The protocol `voc-classification` from end to end: on synthetic colors, and on blood cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from deepcluster.cli.main import main
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.average_precision import classification_aps
from deepcluster.evaluate.voc.classification import voc_classification
from deepcluster.evaluate.voc.classifier import load_voc_classifier
from deepcluster.evaluate.voc.dataset import open_voc

from ..steps import Steps, stopping
from .make import annotation, make_voc

FEW = (1.0, 100.0)


def tuning(mode: str = "fc6-8", iterations: int = 30) -> dict[str, Any]:
    hidden = 16 if mode == "fc6-8" else None
    return {"mode": mode, "iterations": iterations, "batch_size": 8, "lr": 0.2, "hidden": hidden}


def test_svms_classify_colors_and_can_be_loaded(subject: Subject, colors: Path) -> None:
    result = voc_classification(subject, colors, costs=FEW)
    assert result.protocol == "voc-classification" and result.scores["map"] == 1.0
    assert set(result.scores) == {"map", "ap_blue", "ap_green", "ap_red"}
    assert "VOC 2007" in result.settings["ap"] and result.settings["images_train"] == 24
    json.loads(result.json())
    classifier = load_voc_classifier(result.settings["file"].split()[0], subject)
    test = open_voc(colors, "test")
    scores, truth = classifier.scores(test.images), test.labels_matrix()
    assert classifier.classes == ("blue", "green", "red") and scores.shape == (12, 3)
    for column in range(3):
        told = truth[:, column] >= 0
        assert average_precision_score(truth[told, column] == 1, scores[told, column]) == 1
    with pytest.raises(DeepClusterError, match="give that network"):
        load_voc_classifier(result.settings["file"].split()[0])
    assert not list(subject.results.glob("*.state"))


def test_several_taps_seeds_and_shots(subject: Subject, colors: Path) -> None:
    options: dict[str, Any] = {"taps": ("conv1", "conv2"), "shots": (1, 2), "samples": 3, "costs": FEW}
    result = voc_classification(subject, colors, **options, seeds=2, seed=5, ap="sklearn")
    for tap in options["taps"]:
        assert {f"{tap}_map", f"{tap}_map_std", f"{tap}_ap_red", f"{tap}_map_1shot_std"} <= set(result.scores)
    assert [draw["seed"] for draw in result.draws] == [5, 6]
    samples = [value for draw in result.draws for value in draw["conv1_map_2shot_samples"]]
    assert len(samples) == 6 and result.scores["conv1_map_2shot"] == pytest.approx(np.mean(samples))
    assert result.scores["conv1_map_2shot_std"] == pytest.approx(np.std(samples, ddof=1))
    assert result.draws[0]["conv1_costs"].keys() == {"blue", "green", "red"}
    assert not any(name.endswith("samples") or "costs" in name for name in result.scores)
    assert "average pool" in result.settings["features"]


@pytest.mark.parametrize("mode", ["fc6-8", "all"])
def test_fine_tuning_learns_and_its_network_can_be_loaded(subject: Subject, colors: Path, mode: str) -> None:
    result = voc_classification(subject, colors, **tuning(mode, 60), crops="ten")
    assert result.scores["map"] > 0.9
    assert result.settings["iterations"] == 60 and result.settings["recipe"] == "deepcluster"
    classifier = load_voc_classifier(result.settings["file"].split()[0])
    test = open_voc(colors, "test")
    scores, truth = classifier.scores(test.images), test.labels_matrix()
    assert classification_aps(scores, truth).mean() == pytest.approx(result.scores["map"])
    assert [str(file) for file in subject.results.iterdir()] == [result.settings["file"].split()[0]]
    voc_classification(subject, colors, **tuning(mode, 2))  # leaves what the first one trained
    assert len(list(subject.results.glob("*.safetensors"))) == 2


def test_fine_tuning_killed_in_the_second_of_two_seeds(subject: Subject, colors: Path) -> None:
    whole = voc_classification(subject, colors, **tuning(iterations=5), seeds=2)
    assert whole.scores["map_std"] >= 0 and len({draw["loss"] for draw in whole.draws}) == 2
    with pytest.raises(KeyboardInterrupt):
        voc_classification(subject, colors, **tuning(iterations=5), seeds=2, screen=stopping(7, KeyboardInterrupt()))
    steps = Steps()
    again = voc_classification(subject, colors, **tuning(iterations=5), seeds=2, screen=steps)
    assert steps.count == 5 and again.as_dict() == whole.as_dict()  # the first seed was done


def test_unknown_labels_are_left_out_of_the_score(subject: Subject, tmp_path: Path) -> None:
    texts = {
        "a": annotation([("dog", (1, 1, 9, 9), False)]),
        "b": annotation([("cat", (1, 1, 9, 9), False)]),
        "c": annotation([("dog", (1, 1, 9, 9), False)]),
        "d": annotation([("cat", (1, 1, 9, 9), False), ("dog", (1, 1, 9, 9), True)]),
    }
    paint = {"a": (250, 0, 0), "b": (0, 0, 250), "c": (120, 0, 130), "d": (255, 0, 0)}
    root = make_voc(tmp_path / "v", {"train": ["a", "b"], "test": ["c", "d"]}, texts, colors=paint)
    result = voc_classification(subject, root, costs=(1.0,), split="train")
    assert result.scores["ap_dog"] == 1.0  # d looks more like a dog than c does, but is not counted
    assert result.as_dict()["scores"]["ap_sheep"] is None and result.scores["map"] < 1  # cat: c comes before d


def test_refuses(subject: Subject, colors: Path, tmp_path: Path) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(DeepClusterError, match=match):
            voc_classification(subject, colors, **options)  # type: ignore[arg-type]

    refused("share 24 images", test_split="trainval")
    refused("share 12 images", split="all")
    refused("no split 'minival'", test_split="minival")
    refused("--ap 'best' does not exist", ap="best")
    refused("--seeds 0", seeds=0)
    refused("--shots 0", shots=(0,))
    refused("--mode 'conv' does not exist", mode="conv")
    refused("--crops 'many' does not exist", mode="fc6-8", crops="many")
    refused("--recipe 'caffe' does not exist", mode="all", recipe="caffe")
    refused("--hidden", mode="all", hidden=3)
    refused("--hidden 0", mode="fc6-8", hidden=0)
    refused("--lr -1", mode="fc6-8", lr=-1.0)
    refused("trains batch-norm anyway", mode="all", train_batchnorm=True)
    bare = make_voc(tmp_path / "bare", {"test": ["z"]}, {"z": annotation([])})
    refused("known to show a class", test=bare)


def test_command_line(colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "convnet", "voc-classification", "--untrained", "--image-size", "16", "--data", str(colors)]
    given += ["--out", str(tmp_path / "o"), "--json"]
    tune = ["--mode", "fc6-8", "--hidden", "16", "--iterations", "3", "--batch-size", "4", "--crops", "center"]
    assert main([*given, *tune]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "o/voc-classification.json").read_text())
    assert 0 < found["scores"]["map"] <= 1 and found["settings"]["batch"] == 4
    assert main([*given, "--taps", "conv1", "--shots", "2", "--samples", "2", "--costs", "1", "100"]) == 0
    assert {"map", "map_2shot", "map_2shot_std"} <= set(json.loads(capsys.readouterr().out)["scores"])
    for extra, word in (
        (["--iterations", "3"], "--iterations has no meaning"),
        (["--mode", "all", "--shots", "1"], "--shots has no meaning"),
        (["--samples", "3"], "give --shots"),
        (["--train-batchnorm"], "--train-batchnorm has no meaning"),
    ):
        assert main([*given, *extra]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.data
def test_blood_cells(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "convnet", "voc-classification", "--untrained", "--image-size", "32", "--json"]
    given += ["--data", str(shared_data / "voc/bccd.tar"), "--split", "val", "--out", str(tmp_path)]
    assert main(given) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {"map", "ap_RBC", "ap_WBC", "ap_Platelets"} == set(scores)
    assert scores["ap_WBC"] > 0.9  # nearly every image shows one
    assert main([*given, "--mode", "all", "--iterations", "4", "--crops", "center"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["map"] > 0.5
