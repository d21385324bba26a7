"""The number of clusters that is chosen without labels: its silhouette against scikit-learn's, and known groups."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_samples, silhouette_score

from deepcluster.clustering.choose_k import _peaks, choose_k, grid, modularity, silhouette
from deepcluster.clustering.kmeans import KMeans
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import normalize_rows


def blobs(groups: int, each: int = 40, dim: int = 24, spread: float = 0.08, seed: int = 0) -> np.ndarray:
    """(groups * each, dim) rows about as many random directions."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rows: np.ndarray = np.repeat(centers, each, 0) + spread * rng.normal(size=(groups * each, dim))
    return rows.astype("f4")


def unit(x: np.ndarray) -> torch.Tensor:
    return normalize_rows(torch.from_numpy(x))


@pytest.mark.parametrize("k", [2, 5, 30])
def test_silhouette_is_scikit_learns(k: int) -> None:
    rng = np.random.default_rng(k)
    x = unit(rng.normal(size=(120, 7)).astype("f4") + 1)
    labels = rng.integers(0, k, 120)
    labels[:2] = k + 3, k + 5  # two rows that are alone, and names with gaps
    ours = silhouette(x, torch.from_numpy(labels))
    np.testing.assert_allclose(ours, silhouette_samples(x.numpy(), labels, metric="cosine"), atol=1e-5)


def test_silhouette_of_rows_of_zeros_is_scikit_learns() -> None:
    x = unit(blobs(3, 5))
    x[[0, 7]] = 0
    labels = np.repeat(np.arange(3), 5)
    expected = silhouette_samples(x.numpy(), labels, metric="cosine")
    np.testing.assert_allclose(silhouette(x, torch.from_numpy(labels)), expected, atol=1e-5)


def test_silhouette_of_one_cluster_and_of_equal_rows_is_zero() -> None:
    x = unit(blobs(2, 5))
    assert not silhouette(x, torch.zeros(10, dtype=torch.int64)).any()
    equal = x[:1].expand(10, -1)
    assert not silhouette(equal, torch.arange(10) % 2).any()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_modularity_is_that_of_the_definition(k: int) -> None:
    rng = np.random.default_rng(k)
    neighbors = np.stack([rng.permutation([j for j in range(30) if j != i])[:4] for i in range(30)])
    labels = rng.integers(0, k, 30)
    links = np.zeros((30, 30))
    for row, near in enumerate(neighbors):
        for other in near:
            links[row, other] += 1
            links[other, row] += 1
    ends, total = links.sum(1), links.sum()
    expected = sum(
        links[i, j] / total - ends[i] * ends[j] / total**2
        for i in range(30)
        for j in range(30)
        if labels[i] == labels[j]
    )
    assert modularity(torch.from_numpy(neighbors), torch.from_numpy(labels)) == pytest.approx(expected)


@pytest.mark.parametrize("groups", [2, 3, 5, 8, 12, 24])
def test_known_groups_are_found(groups: int) -> None:
    choice = choose_k(blobs(groups))
    assert choice.k == groups, choice.scores
    assert choice.sentence.startswith(f"k = {groups}: so many groups stand apart best (silhouette 0.")


def test_uneven_groups_are_found() -> None:
    x = blobs(6, 200, spread=0.05)
    assert choose_k(np.concatenate([x[:200], *(x[200 * g : 200 * g + 20] for g in range(1, 6))])).k == 6


def test_scores_are_those_of_k_means_from_wards_groups() -> None:
    x = blobs(4, 15, spread=0.3)
    choice = choose_k(x, [3, 4, 6, 9])
    rows = unit(x).numpy()
    for k, found in zip(choice.candidates, choice.scores["silhouette"], strict=True):
        groups = AgglomerativeClustering(k, linkage="ward").fit_predict(rows)
        start = unit(np.stack([rows[groups == group].sum(0) for group in range(k)])).numpy()
        clusterer = KMeans(k, init=start, max_iter=50, spherical=True, precision="float32")
        assert found == pytest.approx(silhouette_score(rows, clusterer.fit(rows).labels_, metric="cosine"), abs=1e-5)
    *parts, score = choice.scores.values()
    assert list(choice.scores) == ["silhouette", "smoothed silhouette", "modularity", "score"]
    assert score == pytest.approx(np.average(parts, 0, [1, 2, 1]))
    assert choice.k == choice.candidates[int(np.argmax(score))]


def test_candidates_grow_from_steps_of_one_to_a_fifth_of_the_rows() -> None:
    assert grid(100) == [*range(2, 14), 15, 17, 19]
    assert grid(10) == [2, 3] and grid(5) == [2, 3] and grid(3) == [2]
    assert grid(10**6)[-1] <= 200 < grid(10**6)[-1] * 1.12


def test_levels_of_groups_are_runners_up() -> None:
    rng = np.random.default_rng(1)
    coarse = blobs(3, 1, 40, 0)
    fine = np.repeat(coarse, 4, 0) + 0.06 * rng.normal(size=(12, 40))
    x = np.repeat(fine, 30, 0) + 0.02 * rng.normal(size=(360, 40))
    choice = choose_k(x.astype("f4"))
    assert {choice.k, *choice.runners_up} >= {3, 12}
    assert choice.sentence.endswith(f"; also plausible: {', '.join(map(str, choice.runners_up))}")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("x", "k"),
    [
        (np.ones((50, 4), "f4"), 1),
        (np.zeros((50, 4), "f4"), 1),
        (np.repeat(np.eye(2, 4, dtype="f4"), 25, 0), 2),
        (np.eye(2, 4, dtype="f4"), 1),
        (np.eye(1, 4, dtype="f4"), 1),
        (np.repeat(np.eye(3, 4, dtype="f4"), 2, 0), 3),
        (np.repeat(np.eye(3, 4, dtype="f4"), 40, 0), 3),
    ],
    ids=["equal", "zeros", "two distinct", "two rows", "one row", "six rows", "duplicates"],
)
def test_few_different_rows(x: np.ndarray, k: int) -> None:
    choice = choose_k(x)
    assert choice.k == k
    assert all(each <= len(np.unique(x, axis=0)) for each in choice.candidates)
    assert choice.sentence.startswith(f"k = {k}")


@pytest.mark.parametrize("n", range(1, 10))
def test_fewer_than_ten_rows(n: int) -> None:
    choice = choose_k(blobs(n, 1))
    assert 1 <= choice.k <= max(1, min(3, n - 1))


def test_one_group_is_told_to_be_none() -> None:
    x = np.random.default_rng(0).normal(size=(500, 32)).astype("f4")
    assert "hardly stand apart" in choose_k(x).sentence
    assert "hardly stand apart" not in choose_k(blobs(4)).sentence


def test_ties_go_to_the_smallest() -> None:
    assert _peaks([0.5, 0.7, 0.7 + 1e-9, 0.1, 0.65]) == (1, [4])
    assert _peaks([0.4, 0.4]) == (0, [])


def test_the_same_for_a_seed_and_for_every_number_of_threads() -> None:
    x = blobs(7, 60, spread=0.2)
    before = torch.get_num_threads()
    try:
        choices = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            choices.append(choose_k(x, random_state=5))
    finally:
        torch.set_num_threads(before)
    assert choices[0].k == choices[1].k and choices[0].candidates == choices[1].candidates
    for name, values in choices[0].scores.items():
        assert choices[1].scores[name] == pytest.approx(values, abs=1e-5)
    assert choose_k(x, random_state=5) == choose_k(torch.from_numpy(x), random_state=5)


def test_a_sample_of_many_rows_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcluster.clustering.choose_k.SAMPLE", 200)
    x = blobs(5, 200)
    choice = choose_k(x)
    assert (choice.k, choice.rows) == (5, 200)
    assert choose_k(x, [4, 5], random_state=1).scores != choose_k(x, [4, 5], random_state=2).scores


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    choose_k(blobs(3), [2, 3, 5], tick=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_seed_changes_nothing_where_all_rows_are_looked_at() -> None:
    x = blobs(12, 30, spread=0.4)
    assert choose_k(x, random_state=1) == choose_k(x, random_state=2)


def test_mistakes_are_told() -> None:
    x = blobs(3)
    with pytest.raises(DeepClusterError, match=r"candidates \[0, 2\] must be at least 1"):
        choose_k(x, [0, 2])
    x[3, 1] = np.nan
    with pytest.raises(DeepClusterError, match="NaN or infinity"):
        choose_k(x)


def test_no_warning_of_equal_rows() -> None:
    x = np.repeat(blobs(4, 3), 5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_k(x).k == 12
