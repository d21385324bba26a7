"""Starts of k-means from rows averaged with their neighbors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.metrics import ami
from deepcluster.clustering.neighbor_start import neighbor_start, with_neighbors
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import normalize_rows
from deepcluster.features.knn import nearest_rows


def noisy(groups: int = 10, each: int = 40, dim: int = 64, spread: float = 0.25, seed: int = 0) -> np.ndarray:
    """(groups * each, dim) rows about random directions, with noise longer than the directions themselves."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rows: np.ndarray = np.repeat(centers, each, 0) + spread * rng.normal(size=(groups * each, dim))
    return rows.astype("f4")


def test_rows_are_averaged_with_their_neighbors() -> None:
    x = normalize_rows(torch.from_numpy(noisy(3, 8)))
    cosine = (x @ x.T).fill_diagonal_(-2)
    slow = torch.stack([x[i] + x[cosine[i].topk(4).indices].mean(0) for i in range(len(x))])
    near, _ = nearest_rows(x, 4, metric="cosine")
    torch.testing.assert_close(with_neighbors(x, near), slow / slow.norm(dim=1, keepdim=True))


def test_start_is_k_means_of_averaged_rows() -> None:
    x = noisy(4, 30)
    unit = normalize_rows(torch.from_numpy(x))
    averaged = with_neighbors(unit, nearest_rows(unit, 5, metric="cosine")[0])
    slow = KMeans(4, init="k-means++", n_init=10, max_iter=50, spherical=True, random_state=1, precision="float32")
    found = neighbor_start(x, 4, random_state=1)
    np.testing.assert_allclose(found, slow.fit(averaged).cluster_centers_, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_handwritten_digits_are_grouped_better_from_it() -> None:
    images, labels = load_digits(return_X_y=True)
    x = Whitening(32, whiten=False).fit_transform(images[:600].astype("f4"))
    plain, started = [], []
    for seed in range(3):
        again = KMeans(10, init="k-means++", n_init=10, max_iter=50, spherical=True, random_state=seed)
        plain.append(ami(again.fit(x).labels_, labels[:600]))
        start = neighbor_start(x, 10, random_state=seed)
        started.append(ami(KMeans(10, init=start, spherical=True).fit(x).labels_, labels[:600]))
    assert np.mean(started) > np.mean(plain) + 0.01  # measured: .794 and .766


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (3, 3), (9, 4), (12, 12)])
def test_few_rows(n: int, k: int) -> None:
    assert neighbor_start(noisy(n, 1), k).shape == (k, 64)


@pytest.mark.filterwarnings("error")
def test_equal_rows() -> None:
    assert np.isfinite(neighbor_start(np.ones((20, 3), "f4"), 4)).all()


def test_tensors_give_tensors_and_a_sample_is_taken_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noisy(3, 200, spread=0.05)
    start = neighbor_start(torch.from_numpy(x), 3)
    np.testing.assert_array_equal(start, neighbor_start(x, 3))
    monkeypatch.setattr("deepcluster.clustering.neighbor_start.SAMPLE", 90)
    sampled = neighbor_start(x, 3)
    assert not np.array_equal(start, sampled)
    assert (np.abs(sampled @ start.numpy().T).max(1) > 0.99).all()


def test_seeds_and_runs_change_it() -> None:
    x = noisy(spread=1)
    starts = [neighbor_start(x, 20, random_state=seed) for seed in range(4)]
    single = [neighbor_start(x, 20, n_init=1, random_state=seed) for seed in range(4)]
    assert not np.allclose(starts[0], starts[1])
    assert not np.allclose(starts, single)
    np.testing.assert_array_equal(starts[0], neighbor_start(x, 20))


def test_mistakes_are_told() -> None:
    with pytest.raises(DeepClusterError, match="cannot make 5 clusters"):
        neighbor_start(noisy(2, 2), 5)
    x = noisy()
    x[3, 1] = np.nan
    with pytest.raises(DeepClusterError, match="NaN or infinity"):
        neighbor_start(x, 3)
