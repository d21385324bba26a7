"""kNN against scikit-learn and against a loop over single queries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.knn import knn
from deepcluster.features.neighbors import nearest, score_features, vote

from .conftest import FakeRun, Source, blobs


def knn_predict(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, **how: object) -> torch.Tensor:
    """The class of each query out of three."""
    similarity, rows = nearest(torch.as_tensor(bank), torch.as_tensor(queries), k)
    return vote(similarity, torch.as_tensor(labels)[rows], 3, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 4, 20])
def test_majority_is_scikit_learns(k: int) -> None:
    bank, labels, _ = blobs(120, 0, spread=4)
    queries, _, _ = blobs(70, 1, spread=4)
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(bank, labels).predict(queries)
    ours = knn_predict(bank, labels, queries, k, weights="uniform")
    assert ours.tolist() == theirs.tolist()


def test_softmax_votes_are_those_of_a_loop() -> None:
    bank, labels, _ = blobs(60, 0, spread=5)
    queries, _, _ = blobs(40, 1, spread=5)
    similarity = cosine_similarity(queries.astype(np.float64), bank.astype(np.float64))
    expected = []
    for row in similarity:
        near = np.argsort(-row)[:15]
        votes = [np.exp(row[near[labels[near] == c]] / 0.07).sum() for c in range(3)]
        expected.append(int(np.argmax(votes)))
    assert knn_predict(bank, labels, queries, 15).tolist() == expected
    uniform = knn_predict(bank, labels, queries, 15, weights="uniform").tolist()
    assert uniform != expected  # the two kinds of votes do differ on these points


def test_softmax_does_not_overflow_at_a_low_temperature() -> None:
    bank = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=np.float32)
    assert knn_predict(bank, np.array([1, 0, 0]), bank[:1], 3, temperature=1e-4).tolist() == [1]


def test_leave_one_out_never_finds_itself() -> None:
    bank, labels, _ = blobs(50, 0, spread=5)
    _, rows = nearest(torch.from_numpy(bank), torch.from_numpy(bank), 5, leave_one_out=True)
    assert not (rows == torch.arange(50)[:, None]).any()
    scored = dict(score_features(bank, labels, None, None, k=(5,), classes=3))
    right = 0
    for i in range(50):
        others = np.delete(np.arange(50), i)
        model = KNeighborsClassifier(5, metric="cosine").fit(bank[others], labels[others])
        right += int(model.predict(bank[i : i + 1])[0] == labels[i])
    assert scored["knn5_majority_top1"] == pytest.approx(right / 50)


def test_too_many_neighbors_is_a_sentence() -> None:
    points = torch.eye(3)
    with pytest.raises(DeepClusterError, match="k=3 neighbors cannot be found among 2 images"):
        nearest(points, points, 3, leave_one_out=True)
    with pytest.raises(DeepClusterError, match="softmax or uniform"):
        knn_predict(points.numpy(), np.arange(3), points.numpy(), 1, weights="distance")


def test_protocol_without_test_leaves_one_out_and_says_so(run: FakeRun, tmp_path: object) -> None:
    result = knn(run, k=(5, 1, 5))  # type: ignore[arg-type]
    assert list(result.scores) == ["knn1_top1", "knn1_majority_top1", "knn5_top1", "knn5_majority_top1"]
    assert result.settings["leave_one_out"] is True
    assert "leave one out" in result.settings["test"]
    assert 0.5 < result.scores["knn5_top1"] <= 1
    path = result.save(tmp_path)  # type: ignore[arg-type]
    assert path.name == "knn.json"
    written = json.loads(path.read_text())
    assert written["scores"] == result.scores and written["protocol"] == "knn" and written["draws"] == []


def test_classes_are_matched_by_name_and_bad_images_left_out(run: FakeRun) -> None:
    points, labels, _ = blobs(60, 3)
    points[4] = np.nan
    shuffled = np.array([2, 0, 1])  # the test source numbers the same classes differently
    test = Source(points, shuffled[labels], ("bee", "cat", "ant"), "test")
    same = Source(points, labels, ("ant", "bee", "cat"), "test")
    scored = knn(run, test=test, k=(5,))  # type: ignore[arg-type]
    assert scored.scores == knn(run, test=same, k=(5,)).scores  # type: ignore[arg-type]
    assert scored.scores["knn5_top1"] > 0.8
    assert scored.settings["images_test"] == 59 and scored.settings["images_data"] == 90


def test_sources_that_cannot_be_compared(run: FakeRun, train_source: Source) -> None:
    points = train_source.points
    with pytest.raises(DeepClusterError, match="has none"):
        knn(run, data=Source(points, None, (), "plain"))  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="No class of other"):
        knn(run, test=Source(points, train_source.labels, ("x", "y", "z"), "other"))  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="either a tap or whitened"):
        knn(run, tap="layer1", whitened=True)  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="from 1 up"):
        knn(run, k=(0,))  # type: ignore[arg-type]


def test_tap_and_whitened_change_what_is_compared(run: FakeRun, train_source: Source) -> None:
    def expected(table: np.ndarray) -> float:
        assert train_source.labels is not None
        return dict(score_features(table, train_source.labels, None, None, k=(3,), classes=3))["knn3_top1"]

    tapped = knn(run, k=(3,), tap="layer1")  # type: ignore[arg-type]
    white = knn(run, k=(3,), whitened=True)  # type: ignore[arg-type]
    assert tapped.settings["dim"] == 2 and tapped.scores["knn3_top1"] == expected(train_source.points[:, :2])
    assert white.scores["knn3_top1"] == expected(run.whitening.transform(train_source.points))
    assert "whitened" in white.settings["features"]


def test_baseline_scores_the_untrained_network(run: FakeRun) -> None:
    noise = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)

    def before() -> FakeRun:
        other = FakeRun(run.source(), blobs(1, 0)[2])
        other.features = lambda data, tap=None, check=None: noise  # type: ignore[method-assign]
        return other

    run.untrained = before  # type: ignore[attr-defined]
    result = knn(run, k=(5,), baseline=True)  # type: ignore[arg-type]
    assert result.scores["knn5_top1"] == knn(run, k=(5,)).scores["knn5_top1"]  # type: ignore[arg-type]
    assert result.scores["untrained_knn5_top1"] < result.scores["knn5_top1"]
