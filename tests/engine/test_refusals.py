"""What is refused before anything is made, and run folders that hold something else than they should."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import AgglomerativeClustering

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.engine import scores
from deepcluster.engine.log import Screen
from deepcluster.engine.model import backbone_from
from deepcluster.engine.train import train_again
from deepcluster.errors import DeepClusterError
from deepcluster.explore.explorer import _centroids_of
from restarts import SMALL, fit, images, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "images.npy", images())
    dc.train(settings(), str(folder / "images.npy"), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence of a command that must fail."""
    status, err = main([str(word) for word in words]), capsys.readouterr().err
    assert status == 2, err
    assert err.startswith("deepcluster: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("text", ["[]", "{}", '{"preset": "x"}', '{"preset": 3, "settings": []}', "3", "\x00"])
def test_a_run_json_that_says_nothing_of_a_run(
    text: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text(text)
    data = tmp_path / "images.npy"
    np.save(data, images())
    for words in (
        ("doctor", run),
        ("report", run),
        ("assign", run, "--data", data, "--out", tmp_path / "a.csv"),
        ("train", "--resume", run),
    ):
        sentence = mistake(capsys, *words)
        assert f"{run}/run.json cannot be read (" in sentence and "restore it" in sentence


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"epoch": "x"}', "its epoch is no whole number"),
        ('{"epoch": 1.5, "loss": 1}', "its epoch is no whole number"),
        ("[]", "it is no JSON object"),
        ('{"loss": 3}', "its epoch is no whole number"),
        ('{"epoch": 2, "loss": "low"}', "its loss is no number"),
        ('{"epoch": 2, "loss": 1, "nmi_previous": [1]}', "its nmi_previous is no number"),
        ("{", "Expecting"),
    ],
)
def test_rows_of_metrics_with_something_else_than_numbers(
    line: str, said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    sentence = mistake(capsys, "report", run)
    assert f"Line 3 of {run}/metrics.jsonl cannot be read (" in sentence and said in sentence and "delete" in sentence


def test_missing_and_null_quantities_are_none(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        '{"epoch": 0, "loss": null}\n{"epoch": 1, "loss": 2, "of_a_later_version": "x"}\n'
    )
    assert [row.get("loss") for row in dc.load_run(run).metrics] == [None, 2]


@pytest.mark.parametrize(
    ("name", "how"),
    [*(("assignment.npy", how) for how in ("short", "empty", "text", "table")), ("distance.npy", "short")],
)
def test_arrays_that_are_cut_short(name: str, how: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / name
    if how == "table":
        np.save(file, np.zeros((3, 2)))
    else:
        file.write_bytes({"short": file.read_bytes()[:-9], "empty": b"", "text": b"text"}[how])
    said = f"{file} cannot be read ("
    if name == "assignment.npy":
        assert said in mistake(capsys, "report", run)
    else:  # the page is written all the same, and says why
        assert main(["report", str(run)]) == 0
        assert said in (run / "report.html").read_text()
    with pytest.raises(DeepClusterError, match=r"cannot be read \(.*train --resume"):
        getattr(dc.load_run(run), name.removesuffix(".npy"))


@pytest.mark.parametrize("name", ["assignment", "distance"])
def test_arrays_of_another_run(name: str, finished: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "run.json").read_text())
    assert np.load(run / f"{name}.npy").shape == np.load(run / f"{name}.npy", mmap_mode="r").shape == (64,)
    config["id"] = "0" * 32
    (run / "run.json").write_text(json.dumps(config))
    said = f"{run / name}.npy cannot be read (it belongs to another run): write it again"
    if name == "assignment":
        assert said in mistake(capsys, "report", run)
    with pytest.raises(DeepClusterError, match=re.escape(said)):
        getattr(dc.load_run(run), name)
    assert main(["doctor", str(run)]) in (0, 1) and "it belongs to another run" in capsys.readouterr().out
    del config["id"]  # of an earlier version
    (run / "run.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(getattr(dc.load_run(run), name), getattr(dc.load_run(finished), name))


def test_a_model_of_another_run(finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "other", settings(seed=1, epochs=1), str(finished.parent / "images.npy"))
    model, data = run / "model.safetensors", finished.parent / "images.npy"
    shutil.copy(tmp_path / "other/model.safetensors", model)  # as many clusters, as wide
    said = f"{model} cannot be read (it belongs to another run): restore it"
    for words in (
        ("assign", run, "--data", data, "--out", tmp_path / "a.csv"),
        ("features", run, "--data", data, "--out", tmp_path / "f.npy"),
    ):
        assert said in mistake(capsys, *words)
    with pytest.raises(DeepClusterError, match="it belongs to another run"):
        _centroids_of(dc.load_run(run))
    assert main(["doctor", str(run)]) in (0, 1) and "it belongs to another run" in capsys.readouterr().out
    assert backbone_from(model).dim == dc.load_run(finished).backbone.dim  # a network can be taken from anywhere


def test_scores_of_a_run_that_was_trained_further_say_so(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images())
    labelled = tmp_path / "photos"
    photos(labelled)
    for words in ((), ("--untrained", "True")):
        assert main(["evaluate", str(run), "knn", "--data", str(labelled), *words]) == 0
    assert [table.protocol for table in scores.evaluations(run)] == ["knn", "knn, untrained"]
    train_again(run, epochs=3, screen=Screen(quiet=True))
    assert [table.protocol for table in scores.evaluations(run)] == [
        "knn, of the run before it was trained further: evaluate it again",
        "knn, untrained",
    ]


@pytest.mark.parametrize("clusterer", [3, "kmeans", AgglomerativeClustering, object()])
def test_a_clusterer_that_is_none_leaves_nothing(clusterer: object, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=r"clusterer is .* fit_predict, such as Agg"):
        dc.train("tiny-deepcluster", images(), tmp_path / "run", clusterer=clusterer, **SMALL)
    assert not (tmp_path / "run").exists()


def photos(folder: Path) -> Path:
    for number, pixels in enumerate(images(32)):
        file = folder / f"{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def test_a_run_folder_among_the_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tmp_path / "data")
    monkeypatch.chdir(data)
    for source, out in ((str(data), data / "run"), (".", Path("runs/a")), (str(data), Path("../data/b"))):
        with pytest.raises(DeepClusterError, match="choose an --out outside"):
            fit(out, settings(), source)
        assert not out.exists()
    fit(tmp_path / "data-run", settings(epochs=1), str(data))  # beside it, with a name that begins alike
    fit(data / ".runs/a", settings(epochs=1), str(data))  # hidden folders are not read
    (data / "list.txt").write_text("0/0.png\n1/1.png\n0/2.png\n1/3.png\n0/4.png\n")
    fit(data / "run", settings(epochs=1, k=2), str(data / "list.txt"))


def test_what_a_failing_run_says_of_bad_images_is_true_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "data")
    (data / "0" / "0.png").write_bytes(b"")
    words = ["train", "tiny-deepcluster", "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*words, "--method.k", "100"]) == 2
    out = capsys.readouterr().out
    assert "1 of 32 files cannot be decoded" in out and "0/0.png (" in out and "bad_images.csv" not in out
    assert not (tmp_path / "run").exists()
    assert main([*words, "--method.k", "3"]) == 0
    assert "bad_images.csv lists what cannot be decoded: 1 of 32 files" in capsys.readouterr().out.replace("\n", " ")


def test_a_folder_as_weights_must_be_a_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=r"a folder, .* give a file"):
        fit(tmp_path / "new", settings(**{"backbone.weights": str(tmp_path)}))


def test_algorithm_custom_without_python_says_where_a_clusterer_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "tiny-deepcluster", "--data", "digits", "--out", tmp_path / "r", "--method.algorithm", "custom")
    sentence = mistake(capsys, *words, "--method.k", 0, "--method.clusterings", 1)
    assert "deepcluster.train(..., clusterer=...)" in sentence and "This run" not in sentence
    assert not (tmp_path / "r").exists()


def test_a_finished_run_without_its_checkpoint_is_not_trained_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a copy leaves the checkpoints out, which are large."""
    shutil.rmtree(run / "checkpoints")
    before = (run / "model.safetensors").read_bytes()
    assert "is a finished run without checkpoints/last.ckpt" in mistake(capsys, "train", "--resume", run)
    assert (run / "model.safetensors").read_bytes() == before
