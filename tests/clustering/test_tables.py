"""A table on disk is grouped by whatever clusterer it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.clustering import PIC, KMeans, Whitening, tables
from deepcluster.clustering.tables import TableClusters, cluster_table
from deepcluster.engine.cluster import cluster_features
from deepcluster.errors import DeepClusterError
from deepcluster.features.table_in_parts import TableInParts


def blobs(n: int = 400, d: int = 8, groups: int = 5, spread: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(groups, d))[np.arange(n) % groups] + spread * rng.normal(size=(n, d))).astype(np.float32)


def from_means(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(N,) distances to the mean of the own cluster."""
    result = np.full(len(x), np.nan)
    for k in set(label.tolist()) - {-1}:
        own = label == k
        result[own] = np.linalg.norm(x[own] - x[own].mean(0, dtype=np.float64), axis=1)
    return result


def clusters(
    x: np.ndarray, clusterer: Any, scratch: Path, embedding: Whitening | None = None, bad: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assignment, distance and centroids."""
    found = cluster_table(x, lambda rows: clusterer, embedding=embedding, scratch=scratch, bad=bad)
    assert found.clusterer is clusterer
    return found.assignment, found.distance, found.centroids.numpy()


def clusterers() -> dict[str, Any]:
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering, MiniBatchKMeans

    return {
        "PIC": PIC(sigma=0.5),
        "agglomerative": AgglomerativeClustering(7),
        "HDBSCAN": HDBSCAN(min_cluster_size=20, copy=True),
        "mini-batch": MiniBatchKMeans(6, random_state=0),
        "KMeans": KMeans(6, random_state=0),
    }


@pytest.mark.parametrize("name", ["PIC", "agglomerative", "HDBSCAN", "mini-batch", "KMeans"])
def test_clusters_equal_the_labels_of_the_clusterer(name: str, tmp_path: Path) -> None:
    clusterer = clusterers()[name]
    x = np.concatenate([blobs(), 9 * np.eye(8, dtype=np.float32)])  # the last rows are noise to HDBSCAN
    np.save(tmp_path / "x.npy", x)
    table = np.load(tmp_path / "x.npy", mmap_mode="r")
    cluster, distance, _ = clusters(table, clusterer, tmp_path)
    np.testing.assert_array_equal(cluster, clusterer.labels_)
    assert cluster.dtype == np.int64 and distance.dtype == np.float32
    centers = getattr(clusterer, "cluster_centers_", None)
    expected = from_means(x, cluster) if centers is None else np.linalg.norm(x - centers[cluster], axis=1)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-5)
    assert name != "HDBSCAN" or ((cluster == -1).any() and (cluster >= 0).any())
    if name == "PIC":
        np.testing.assert_allclose(distance, from_means(x, cluster), rtol=1e-4, atol=1e-5)


def test_k_means_writes_the_nearest_center(tmp_path: Path) -> None:
    x = blobs()
    cluster, distance, centroids = clusters(x, run := KMeans(9, random_state=0), tmp_path)
    np.testing.assert_array_equal(centroids, run.cluster_centers_)
    np.testing.assert_array_equal(cluster, run.predict(x))
    np.testing.assert_allclose(distance, run.transform(x).min(1), rtol=1e-5, atol=1e-6)


def test_whitened_without_bad_rows(tmp_path: Path) -> None:
    x = blobs()
    x[[3, 77]] = np.nan
    good = np.isfinite(x).all(1)
    for bad in (None, [3, 77]):
        cluster, distance, _ = clusters(x, PIC(), tmp_path, Whitening(4), bad)
        assert (cluster[~good] == -1).all() and np.isnan(distance[~good]).all()
        np.testing.assert_array_equal(cluster[good], PIC().fit_predict(Whitening(4).fit_transform(x[good])))


@pytest.mark.parametrize("algorithm", ["kmeans", "hierarchical", "pic"])
@pytest.mark.parametrize("whiten", [0, 4])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_table_in_parts_is_grouped_as_one_file_and_never_read_whole(
    algorithm: str, whiten: int, gaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = blobs()
    if gaps:
        x[[3, 77]] = np.nan
    for first, last in ((0, 150), (150, 151), (151, 400)):
        np.save(tmp_path / f"{first}.npy", x[first:last])
    parts = TableInParts([np.load(tmp_path / f"{first}.npy", mmap_mode="r") for first in (0, 150, 151)])
    options: dict[str, Any] = {} if algorithm == "pic" else {"k": 6}

    def found(table: Any, place: Path) -> TableClusters:
        place.mkdir()
        embedding = Whitening(whiten) if whiten else None
        return cluster_features(table, algorithm, options, scratch=place, embedding=embedding)[0]

    expected = found(x, tmp_path / "whole")
    monkeypatch.setattr(tables, "TOGETHER", 64)
    read, original = [], TableInParts.__getitem__

    def reading(self: TableInParts, rows: Any) -> np.ndarray:
        read.append(len(result := original(self, rows)))
        return result

    monkeypatch.setattr(TableInParts, "__getitem__", reading)
    ours = found(parts, tmp_path / "parts")
    np.testing.assert_array_equal(ours.assignment, expected.assignment)
    np.testing.assert_array_equal(ours.distance, expected.distance)
    assert max(read) == 64


class Wrong:
    def __init__(self, answer: Any):
        self.answer = answer

    def fit_predict(self, x: np.ndarray) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("clusterer", "x", "words"),
    [
        (KMeans(9), np.ones((4, 2)), "4 rows cannot make 9 clusters: lower --k"),
        (PIC(), np.ones((4, 2)), "ask for fewer neighbors"),
        (PIC(), np.full((4, 2), np.nan), "No row of the features is finite"),
        (Wrong(np.zeros(3, int)), np.ones((4, 2)), "Wrong.fit_predict gave int64 of shape"),
        (Wrong(np.zeros(4)), np.ones((4, 2)), "it must give one integer for each"),
    ],
)
def test_invalid_input_raises(clusterer: Any, x: np.ndarray, words: str, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=words):
        clusters(x, clusterer, tmp_path)


def test_labels_may_be_a_tensor(tmp_path: Path) -> None:
    cluster, distance, _ = clusters(blobs(4), Wrong(torch.tensor([0, 1, -7, 1])), tmp_path)
    assert cluster.tolist() == [0, 1, -1, 1] and np.isnan(distance).tolist() == [False, False, True, False]


@pytest.mark.parametrize("bad", [[0, 3], None])
@pytest.mark.parametrize("whiten", [False, True])
def test_a_row_that_cannot_be_grouped_is_named_as_the_table_counts(
    bad: list[int] | None, whiten: bool, tmp_path: Path
) -> None:
    x = blobs(60).astype(np.float64)
    x[[0, 3]] = np.nan
    x[7] = np.nan if bad else 1e39
    embedding = Whitening(4) if whiten else None
    with pytest.raises(DeepClusterError, match="Row 7 of the features holds " + ("NaN" if bad else "numbers beyond")):
        clusters(x, KMeans(3, random_state=0), tmp_path, embedding, bad)
