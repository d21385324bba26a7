"""Cluster scores against scikit-learn and brute force; Result to screen and disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import metrics
from sklearn.cluster import KMeans

from deepcluster.cli.main import main
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.clusters import (
    class_table,
    clusters,
    evaluate_clusters,
    matching,
    score_assignment,
    score_test,
)
from deepcluster.evaluate.knn import knn
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.retrieval.ground_truth import groups
from deepcluster.evaluate.tensor_file import trained_file
from deepcluster.models.zoo import build_backbone

from .conftest import FakeRun, Source, blobs

NAMES = ["nmi", "ami", "ari", "accuracy", "purity"]


def test_scores_are_those_of_scikit_learn_and_brute_force() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 80)
    assignment = np.where(random.random(80) < 0.6, labels, random.integers(0, 4, 80))
    found = score_assignment(assignment, labels)
    assert list(found) == NAMES
    assert found["nmi"] == pytest.approx(
        metrics.normalized_mutual_info_score(labels, assignment, average_method="geometric")
    )
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(labels, assignment))
    best = max(
        sum(int(((assignment == cluster) & (labels == label)).sum()) for label, cluster in enumerate(chosen))
        for chosen in itertools.permutations(range(4), 3)
    )
    assert found["accuracy"] == pytest.approx(best / 80)
    pure = sum(np.bincount(labels[assignment == cluster]).max() for cluster in range(4))
    assert found["purity"] == pytest.approx(pure / 80)


def test_images_without_cluster_or_label_do_not_count() -> None:
    labels = np.array([0, 0, 1, 1, -1, 0])
    assignment = np.array([1, 1, 0, 0, 0, -1])
    assert score_assignment(assignment, labels) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    with pytest.raises(DeepClusterError, match="both a cluster and a label"):
        score_assignment(np.full(3, -1), np.zeros(3, np.int64))


def test_own_clusters_of_the_training_images_and_of_new_ones(run: FakeRun) -> None:
    own, labels = clusters(run), run.source().labels
    assert labels is not None
    assert own.scores == score_assignment(run.assignment, labels)
    assert own.settings["assignment"] == "as training left it" and own.draws == []
    points, labels, _ = blobs(40, 5)
    points[3] = np.nan
    new = clusters(run, Source(points, labels, ("ant", "bee", "cat"), "new"))
    assert new.settings["images"] == 40 and new.settings["images_scored"] == 39
    assert new.settings["assignment"].startswith("nearest centroid")


def test_clustered_anew_gives_mean_deviation_and_draws(run: FakeRun) -> None:
    result = clusters(run, k="classes", draws=3, seed=5)
    assert [draw["seed"] for draw in result.draws] == [5, 6, 7] and all(draw["k"] == 3 for draw in result.draws)
    for name in NAMES:
        values = [draw[name] for draw in result.draws]
        assert result.scores[f"k3_{name}"] == pytest.approx(np.mean(values))
        assert result.scores[f"k3_{name}_std"] == pytest.approx(np.std(values, ddof=1))
    table = run.whitening.transform(run.source().points)[:, :2]  # the centers of three groups span a plane
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    theirs = KMeans(3, n_init=10, random_state=0).fit(table)
    assert result.draws[0]["inertia"] == pytest.approx(theirs.inertia_, rel=0.01)
    assert result.scores["k3_accuracy"] > 0.7
    assert clusters(run, k="classes", draws=3, seed=5).scores == result.scores
    single = clusters(run, k=2)
    assert "k2_nmi" in single.scores and "k2_nmi_std" not in single.scores
    assert "without a cluster count as wrong" in single.settings["k2_accuracy"]


def test_clustering_anew_leaves_bad_images_out() -> None:
    points, labels, _ = blobs(60, 0)
    broken = np.insert(points, 10, np.nan, axis=0)
    other = np.insert(labels, 10, 1)
    assert evaluate_clusters(broken, other, k=3) == evaluate_clusters(points, labels, k=3)


def test_mistakes_are_sentences(run: FakeRun, train_source: Source) -> None:
    with pytest.raises(DeepClusterError, match="choose 1 to 90"):
        clusters(run, k=91)
    with pytest.raises(DeepClusterError, match="or 'classes'"):
        clusters(run, k="many")  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="1 or more"):
        clusters(run, k=3, draws=0)
    with pytest.raises(DeepClusterError, match="plain has none"):
        clusters(run, Source(train_source.points, None, (), "plain"))


def test_labels_of_one_class_are_refused(run: FakeRun, train_source: Source) -> None:
    """Against one class any score would be perfect or nothing, in every protocol and for test images too."""
    one = Source(train_source.points, np.where(np.arange(90) % 2, 1, -1), ("ant", "bee"), "one")
    protocols: tuple[Any, ...] = (clusters, knn)
    for protocol in protocols:
        with pytest.raises(DeepClusterError, match=r"All labeled images of one are of one class \(bee\)"):
            protocol(run, one)
        with pytest.raises(DeepClusterError, match=r"one are of one class"):
            protocol(run, train_source, one)
    with pytest.raises(DeepClusterError, match="belong to one group"):
        groups(Source(train_source.points, np.zeros(90, np.int64), ("ant",), "one"))


def test_matching_says_what_is_left_over() -> None:
    assert matching(3, 3) == "best one-to-one matching of 3 clusters and 3 classes"
    assert "clusters without a class" in matching(10, 3)


def test_result_is_written_whole_and_in_plain_values(tmp_path: Path) -> None:
    settings = {"k": np.int64(3), "path": tmp_path, "rows": (1, 2), "note": "two words"}
    result = Result("clusters", settings, {"nmi": np.float32(0.5), "odd": float("nan")}, [{"seed": 0}])
    path = result.save(tmp_path)
    assert path == tmp_path / "clusters.json"
    content = json.loads(path.read_text())
    assert content["settings"] == {"k": 3, "path": str(tmp_path), "rows": [1, 2], "note": "two words"}
    assert content["scores"] == {"nmi": 0.5, "odd": None}
    assert [entry.name for entry in tmp_path.iterdir()] == ["clusters.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepClusterError, match="cannot be written"):
        result.save(tmp_path / "file")


def test_table_puts_deviations_beside_means() -> None:
    result = Result("clusters", {"note": "one [bold]two"}, {"nmi": 0.25, "k3_nmi": 0.5, "k3_nmi_std": 0.0123})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    text = console.export_text()
    assert "25.00" in text and "50.00" in text and "1.23" in text and "[bold]" in text
    assert "k3_nmi_std" not in text


def test_classes_are_told_one_by_one() -> None:
    assignment = np.array([0, 0, 0, 1, 1, 2, 2, -1])
    labels = np.array([0, 0, 1, 1, 1, 0, 2, 2])
    rows = class_table(assignment, labels, ("cat", "dog", "owl"))
    # cluster 2 has one cat and one owl: the first of equals, so the owl is nobody's
    assert [row["class"] for row in rows] == ["cat", "dog", "owl"]
    assert [row["images"] for row in rows] == [3, 3, 1]
    assert [row["clusters"] for row in rows] == [2, 1, 0]
    assert [row["found"] for row in rows] == pytest.approx([1, 2 / 3, 0])
    assert rows[0]["pure"] == pytest.approx(3 / 5) and rows[1]["pure"] == 1 and np.isnan(rows[2]["pure"])
    assert [row["taken_for"] for row in rows] == ["", "cat", "cat"]


def test_test_images_are_matched_by_the_others() -> None:
    known = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 7, 7, 7, 5])
    test = np.array([0, 1, 2, 2, 3, -1]), np.array([5, 7, 5, 7, 5, 5])
    scores = score_test(known, test)
    # one to one: 0 -> 5, 1 -> 7, 2 -> nothing; by majority 2 -> 5; cluster 3 was never seen
    assert scores["test_accuracy"] == pytest.approx(2 / 5) and scores["test_purity"] == pytest.approx(3 / 5)
    pair = test[0] >= 0
    assert scores["test_nmi"] == pytest.approx(
        metrics.normalized_mutual_info_score(test[1][pair], test[0][pair], average_method="geometric")
    )


def test_a_network_without_clusters_is_clustered_anew(run: FakeRun, train_source: Source) -> None:
    run.clustered = False
    result = clusters(run, train_source, train_source)
    assert set(result.scores) == {f"{prefix}k3_{name}" for prefix in ("", "test_") for name in NAMES}
    assert result.scores["test_k3_accuracy"] == pytest.approx(result.scores["k3_accuracy"])
    assert not result.details


def test_what_a_run_does_not_whiten_is_whitened(run: FakeRun) -> None:
    # ODC's neck orders its numbers as it was drawn: its first ones are no leading directions.
    run.model.whitening = None
    anew = {name: score for name, score in clusters(run, k=3).scores.items() if name.startswith("k3_")}
    run.clustered = False
    assert clusters(run, run.source(), k=3).scores == anew


def test_an_untrained_network_has_results_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluating the baseline leaves the scores and files of the trained network; scores are seen where they cannot be
    kept."""
    backbone = build_backbone("convnet", image_size=8, widths=(4,), pools=())
    subject = Subject("net", Model(backbone, torch.zeros(0, backbone.dim)), "cpu", tmp_path)
    assert subject.untrained().results == tmp_path / "untrained" and subject.results == tmp_path
    (tmp_path / "file").write_text("")
    words = ["evaluate", "convnet", "knn", "--untrained", "--image-size", "8", "--data", "digits", "--k", "1"]
    assert main([*words, "--out", str(tmp_path / "file" / "x")]) == 2
    captured = capsys.readouterr()
    assert "knn1_top1" in captured.out and "cannot be written" in captured.err
    with pytest.raises(DeepClusterError, match=r"file/linear-.* cannot be written \(.*file is no folder\)"):
        subject.results = tmp_path / "file"
        trained_file(subject, "linear", "settings", Screen(quiet=True))
