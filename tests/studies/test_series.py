"""Series of runs as commands: trained once, gone on with, scored as an oracle scores, refused in a sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.cli.main import main
from deepcluster.config import override
from deepcluster.data.open import open_images
from deepcluster.engine import loop
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from deepcluster.evaluate.knn import knn
from deepcluster.presets import find_preset
from deepcluster.studies.series import SPLIT, Series, scored, split_score

QUIET = Screen(quiet=True)
SMALL = ["--epochs", "2", "--batch-size", "16", "--method.whiten", "8", "--image-size", "12"]
SHAPES = np.random.default_rng(0).integers(0, 200, (4, 12, 12, 3))


def write_images(folder: Path, n: int, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    for index in range(n):
        file = folder / "abcd"[index % 4] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noisy = 0.25 * SHAPES[index % 4] + draw.integers(0, 200, (12, 12, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "train", 96, 1)


@pytest.fixture(scope="module")
def study(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of k with three values, stopped in the second run and gone on with."""
    out = tmp_path_factory.mktemp("study") / "ks"
    steps, original = {"done": 0}, loop.step_all

    def stopping(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        steps["done"] += 1
        if steps["done"] == 15:
            os.kill(os.getpid(), signal.SIGINT)

    loop.step_all = stopping  # type: ignore[assignment]
    try:
        assert study_k(images, out, "2", "8", "24") == 130
    finally:
        loop.step_all = original
    assert not (out / "k-00024").exists() and len(list(csv.DictReader((out / "k.csv").open()))) == 1
    first = (out / "k-00002/run.json").stat().st_mtime_ns
    assert study_k(images, out, "24", "8", "2", "8") == 0
    assert (out / "k-00002/run.json").stat().st_mtime_ns == first  # reused, not touched
    return out


def study_k(images: Path, out: Path, *values: str, score: str = "knn", options: list[str] = SMALL) -> int:
    words = ["study", "k", "tiny-deepcluster", "--data", str(images), "--out", str(out), "--score", score]
    return main([*words, *options, "--values", *values])


def test_a_study_leaves_a_table_and_a_picture(study: Path) -> None:
    rows = list(csv.DictReader((study / "k.csv").open()))
    assert [row["k"] for row in rows] == ["2", "8", "24"]
    found = json.loads((study / "k.json").read_text())
    assert found["settings"]["classes"] == 4 and "classes, 4" in found["sentence"]
    assert [row["score"] for row in found["rows"]] == [float(row["score"]) for row in rows]
    with Image.open(study / "k.png") as picture:
        assert picture.width > 800
    for row in found["rows"]:
        run = load_run(study / row["run"])
        assert run.config["settings"]["method"]["k"] == row["k"] == len(run.centroids)
        assert len(run.metrics) == 2 and run.config["finished"] and run.config["seed"] == 0


def test_a_run_that_was_stopped_ends_as_one_that_was_not(study: Path, images: Path, tmp_path: Path) -> None:
    assert study_k(images, tmp_path / "alone", "8") == 0
    cut, alone = load_run(study / "k-00008"), load_run(tmp_path / "alone/k-00008")
    assert [row["loss"] for row in cut.metrics] == [row["loss"] for row in alone.metrics]
    np.testing.assert_array_equal(cut.assignment, alone.assignment)


def test_the_split_is_scored_as_scikit_learn_does(study: Path, images: Path) -> None:
    """A fifth, drawn once: predicted from the rest alone by 20 softmax votes."""
    source, run = open_images(str(images)), load_run(study / "k-00008")
    features = run.features(source).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert source.labels is not None
    import torch

    from deepcluster.random import seeded

    order = torch.randperm(96, generator=seeded(SPLIT)).numpy()
    asked, bank = order[:19], order[19:]
    model = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    right = model.fit(unit[bank], source.labels[bank]).predict(unit[asked]) == source.labels[asked]
    score, count = split_score(run, source, QUIET)
    assert count == 19 and score == pytest.approx(right.mean())
    row = json.loads((study / "k.json").read_text())["rows"][1]
    assert row["score"] == pytest.approx(score)
    assert row["error"] == pytest.approx(np.sqrt(score * (1 - score) / 19))


def test_other_scores_and_a_test_set(study: Path, images: Path, tmp_path: Path) -> None:
    """What is trained already is scored anew: on a test set, and by its features clustered into as many classes."""
    test, run = write_images(tmp_path / "test", 40, 2), load_run(study / "k-00024")
    source, preset = open_images(str(images)), find_preset("tiny-deepcluster").run

    def asked(score: str, test: Path | None) -> dict:
        series = Series("method.k", (24,), preset, "", str(images), test and str(test), score, study)  # type: ignore[arg-type]
        return scored(run, series, source, QUIET)

    assert asked("knn", test)["score"] == knn(run, source, str(test)).scores["knn20_top1"]
    values = {score: asked(score, None)["score"] for score in ("nmi", "purity", "accuracy")}
    assert all(0 < value <= 1 for value in values.values()) and len(set(values.values())) > 1
    assert "error" not in asked("nmi", test)


def test_reassign_varies_the_other_setting(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "reassign", "tiny-deepcluster", "--data", str(images), "--out", str(tmp_path / "re")]
    options = [*SMALL, "--method.k", "6", "--score", "nmi", "--values", "0.5", "2", "--json"]
    assert main([*words, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["reassign"] for row in found["rows"]] == [0.5, 2] and found["study"] == "reassign"
    assert load_run(tmp_path / "re/reassign-0.5").config["settings"]["method"]["reassign"] == 0.5
    assert (tmp_path / "re/reassign.png").exists()


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["study", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("deepcluster: ") and err.count("\n") == 1
    return err


def test_mistakes(study: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def k(*more: object, out: Path = tmp_path / "new", data: object = images) -> str:
        return mistake(capsys, "k", "tiny-deepcluster", "--data", data, "--out", out, *SMALL[2:], *more)

    assert "--epochs 2, not 3" in k("--epochs", 3, "--values", 2, 8, out=study)
    assert "up to 96" in k("--values", 2, 97)
    assert "above 0" in k("--values", 0, 5)
    assert "--values" in k("--method.k", 7)
    assert "names 10 alone" in k("--values", 10, 10)
    assert "PIC finds the number of clusters itself" in mistake(
        capsys, "k", "deepcluster-convnet", "--data", images, "--out", tmp_path / "new", "--method.algorithm", "pic"
    )
    odc = mistake(capsys, "reassign", "tiny-odc", "--data", images, "--out", tmp_path / "new")
    assert "tiny-odc has no --method.reassign" in odc and "ODC" in odc
    np.save(tmp_path / "plain.npy", np.zeros((9, 12, 12, 3), np.uint8))
    assert "has none" in k("--values", 2, 3, data=tmp_path / "plain.npy")
    assert not (tmp_path / "new").exists()  # nothing was trained before the mistake was seen
    other = write_images(tmp_path / "other", 97, 3)
    assert "not the ones" in k("--epochs", 2, "--values", 2, data=other, out=study)
    assert "no preset" in mistake(capsys, "k", "tini", "--data", "digits", "--out", tmp_path)
    assert "preset comes first" in mistake(capsys, "k", "--data", "digits")
    assert "Did you mean sizes?" in mistake(capsys, "size")
    assert "needs a run" in mistake(capsys, "stability") or "must be given" in mistake(capsys, "stability")
    assert "--k-study" in mistake(capsys, "figure2", "--out", tmp_path)
    assert "no run.json" in mistake(capsys, "sizes", tmp_path)


def test_studies_of_finished_runs(
    study: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(study / name) for name in ("k-00002", "k-00008")]
    (tmp_path / "tree.txt").write_text("a x\nb x\nc y\nd y\nx all\ny all\n")
    watched = tmp_path / "watched"
    options = [*SMALL, "--method.k", "6", "--keep-every", "1"]
    assert main(["train", "tiny-deepcluster", "--data", str(images), "--out", str(watched), *options]) == 0
    for words in (
        ["stability", *runs],
        ["agreement", *runs],
        ["sizes", *runs],
        ["stopping", str(watched)],
        ["tree", runs[1], "--tree", str(tmp_path / "tree.txt")],
        ["figure2", "--run", runs[1], "--k-study", str(study)],
    ):
        out = tmp_path / "out" / words[0]
        capsys.readouterr()
        assert main(["study", *words, "--out", str(out), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["study"] == words[0] and found["rows"] and found["sentence"].endswith(".")
        assert {f"{words[0]}.{end}" for end in ("csv", "json", "png")} <= {path.name for path in out.iterdir()}
    assert main(["study", "sizes", *runs]) == 0 and (study / "k-00002/studies/sizes.png").exists()
    stopping = json.loads((tmp_path / "out/stopping/stopping.json").read_text())
    assert [row["epoch"] for row in stopping["rows"]] == [1, 2]


def test_kept_checkpoints_score_what_watching_would_have(images: Path, tmp_path: Path) -> None:
    from deepcluster.engine.train import train
    from deepcluster.studies.curves import score_checkpoints

    values = {"epochs": 2, "k": 6, "whiten": 8, "batch_size": 16, "image_size": 12, "keep_every": 1, "watch": "knn"}
    run = train(override(find_preset("tiny-deepcluster").run, values), str(images), tmp_path / "r", screen=QUIET)
    rows = score_checkpoints(run, QUIET)
    assert [row["watched"] for row in rows] == pytest.approx([row["watched"] for row in run.metrics])


def test_a_series_that_begins_with_weights_goes_on(study: Path, images: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """run.json holds the file's whole path, the command a relative one."""
    monkeypatch.chdir(study)
    options = [*SMALL, "--backbone.weights", "k-00008/model.safetensors"]
    assert study_k(images, tmp_path / "w", "4", options=options) == 0
    first = (tmp_path / "w/k-00004/run.json").stat().st_mtime_ns
    assert study_k(images, tmp_path / "w", "4", options=options) == 0
    assert (tmp_path / "w/k-00004/run.json").stat().st_mtime_ns == first
