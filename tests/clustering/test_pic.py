"""Power iteration clustering against its formulas, spelled out in decimals of many digits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering import PIC
from deepcluster.errors import DeepClusterError

VERSIONS = ["paper", "published"]


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    rows: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return rows


def blobs(n: int = 600, d: int = 16, groups: int = 12, seed: int = 0, spread: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, d))
    return (centers[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def neighbors(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, k) nearest rows and float32 squared distances."""
    exact = np.asarray(x, np.float32).astype(np.float64)
    squared = np.stack([np.square(exact - row).sum(1) for row in exact])
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return near, np.take_along_axis(squared, near, 1).astype(np.float32)


def in_decimals(
    x: np.ndarray,
    *,
    version: str,
    n_neighbors: int = 5,
    sigma: float = 0.2,
    alpha: float = 0.001,
    max_iter: int = 200,
    join: bool = True,
    digits: int = 80,
) -> tuple[list[int], np.ndarray]:
    """Labels and v less its least entry, as the papers write them, one row and one edge after the other."""
    near, squared = neighbors(x, n_neighbors)
    n = len(x)
    with localcontext() as context:
        context.prec = digits
        level = Decimal(10) ** (20 - digits)  # what is closer than this is equal, but for rounding
        w: list[dict[int, Decimal]] = [{} for _ in range(n)]
        both: list[dict[int, Decimal]] = [{} for _ in range(n)]
        for i in range(n):
            for j, distance in zip(near[i].tolist(), squared[i].tolist(), strict=True):
                weight = (-(Decimal(distance) / Decimal(sigma) ** 2)).exp()
                w[i][j] = weight
                both[i][j] = both[i].get(j, Decimal(0)) + weight
                both[j][i] = both[j].get(i, Decimal(0)) + weight
        a = Decimal(alpha)
        v = [1 / Decimal(n)] * n
        for _ in range(max_iter):
            graph = [sum((weight * v[j] for j, weight in both[i].items()), Decimal(0)) for i in range(n)]
            if version == "paper":
                v = [a * graph[i] + (1 - a) * v[i] for i in range(n)]
            else:
                v = [a * graph[i] + (1 - a) / n for i in range(n)]
            total = sum(v)
            v = [each / total for each in v]
        edges = w if version == "paper" else both
        pointer = list(range(n))
        for i in range(n):
            best = Decimal(0)
            for j in sorted(edges[i]):
                rise = v[j] - v[i]
                if rise > level and edges[i][j] * rise > best * (1 + level.sqrt()):
                    best, pointer[i] = edges[i][j] * rise, j
        rises = np.array([float(each - min(v)) for each in v])
    root = list(range(n))
    for i in range(n):
        while pointer[root[i]] != root[i]:
            root[i] = pointer[root[i]]
    if join:
        sizes = {r: root.count(r) for r in root}
        old = list(root)
        for i in range(n):
            if sizes[old[i]] == 1:
                root[i] = next((old[j] for j in near[i] if sizes[old[j]] > 1), old[i])
    names = sorted(set(root), key=lambda r: (-root.count(r), root.index(r)))
    return [names.index(r) for r in root], rises


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


@given(
    st.integers(3, 24),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 10**6),
    st.sampled_from(VERSIONS),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_formulas(n: int, k: int, kind: int, seed: int, version: str, join: bool) -> None:
    rng = np.random.default_rng(seed)
    draws: list[Callable[[], np.ndarray]] = [
        lambda: rng.normal(size=(n, 3)) / 2,
        lambda: rng.integers(0, 3, (n, 2)) / 2,  # duplicates and ties
        lambda: np.repeat(rng.normal(size=(n, 4)), 2, axis=0)[:n] / 3,
        lambda: unit(n, 8, seed) / 2,
        lambda: np.concatenate([np.zeros((n - 1, 2)), np.ones((1, 2))]),  # one alone
    ]
    x = draws[kind]()
    k = min(k, n - 1)
    ours = PIC(k, 0.5, 0.01, version=version, max_iter=40, join_singletons=join).fit(x)
    expected, rise = in_decimals(
        x, version=version, n_neighbors=k, sigma=0.5, alpha=0.01, max_iter=40, join=join, digits=80
    )
    assert ours.labels_.tolist() == expected
    height = ours.heights_ * np.exp(-float(neighbors(x, k)[1].min()) / 0.5**2)
    np.testing.assert_allclose(height - height.min(), rise, rtol=1e-9, atol=1e-13 * height.max())
    assert ours.n_clusters_ == max(expected) + 1 and ours.n_iter_ == 40
    assert ours.stationary_.sum() == pytest.approx(1) and (ours.stationary_ >= 0).all()


def naive(x: np.ndarray, version: str) -> int:
    """Clusters of the iteration as written, in float64 on v itself, without joins."""
    near, squared = neighbors(x, 5)
    n = len(x)
    w = np.zeros((n, n))
    np.put_along_axis(w, near, np.exp(-squared.astype(np.float64) / 0.2**2), 1)
    both, v = w + w.T, np.full(n, 1 / n)
    for _ in range(200):
        v = 0.001 * both @ v + 0.999 * (v if version == "paper" else 1 / n)
        v /= v.sum()
    gain = (w if version == "paper" else both) * (v[None, :] - v[:, None])
    return int((gain.max(1) <= 0).sum())


@pytest.mark.parametrize("version", VERSIONS)
def test_tiny_weights_keep_their_precision(version: str) -> None:
    """Weights of e^-40 vanish beside 1/n in float64; the clusters must be those of exact arithmetic."""
    x = unit(60, 200)
    assert naive(x, version) == 60  # every row a local maximum
    expected, _ = in_decimals(x, version=version, join=False)
    ours = PIC(version=version, join_singletons=False).fit(x)
    assert ours.labels_.tolist() == expected
    assert 1 < ours.n_clusters_ < 30
    assert np.ptp(ours.stationary_) < 1e-15


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_do_not_underflow_together(version: str) -> None:
    x = unit(18, 20000) * 4  # exp(-800) is zero in float64
    expected, _ = in_decimals(x, version=version, max_iter=20, join=False, digits=480)
    ours = PIC(version=version, max_iter=20, join_singletons=False).fit(x)
    assert ours.labels_.tolist() == expected and ours.n_clusters_ < 20


def test_versions_differ() -> None:
    x = unit(400, 12)
    paper, published = (PIC(version=version).fit(x) for version in VERSIONS)
    assert not same_partition(paper.labels_, published.labels_)


def test_each_argument_changes_something() -> None:
    x = blobs(300, 3, 8, spread=0.4)
    plain = PIC(sigma=0.3, alpha=0.1, join_singletons=False).fit(x)
    changes: list[dict[str, Any]] = [{"n_neighbors": 9}, {"sigma": 0.1}, {"alpha": 0.9}, {"max_iter": 1}]
    for change in changes:
        other = PIC(**{"sigma": 0.3, "alpha": 0.1, "join_singletons": False, **change}).fit(x)
        assert not same_partition(plain.labels_, other.labels_), change
    alike = np.zeros((40, 3))
    assert [PIC(join_singletons=join).fit(alike).n_clusters_ for join in (True, False)] == [1, 5]


def test_tol_stops_when_little_changes() -> None:
    x = blobs(300, 3, 8, spread=0.1)
    long, short = PIC(alpha=0.2, max_iter=2000).fit(x), PIC(alpha=0.2, max_iter=2000, tol=1e-3).fit(x)
    assert long.n_iter_ == 2000 and 1 < short.n_iter_ < 2000
    before = PIC(alpha=0.2, max_iter=short.n_iter_ - 1).fit(x).stationary_
    assert np.abs(short.stationary_ - before).sum() <= 1e-3
    earlier = PIC(alpha=0.2, max_iter=short.n_iter_ - 2).fit(x).stationary_
    assert np.abs(before - earlier).sum() > 1e-3


@pytest.mark.parametrize("version", VERSIONS)
def test_fitted_attributes(version: str) -> None:
    x = blobs()
    run = PIC(version=version).fit(x)
    sizes = np.bincount(run.labels_)
    assert (np.diff(sizes) <= 0).all() and sizes.min() > 0 and len(sizes) == run.n_clusters_
    means = np.stack([x[run.labels_ == k].mean(0, dtype=np.float64) for k in range(run.n_clusters_)])
    np.testing.assert_allclose(run.cluster_centers_, means, atol=1e-5)
    assert run.inertia_ == pytest.approx(np.square(x - means[run.labels_]).sum(), rel=1e-4)
    np.testing.assert_array_equal(run.labels_[run.roots_], np.arange(run.n_clusters_))
    np.testing.assert_array_equal(run.predict(x), run.labels_)
    assert run.labels_.dtype == run.roots_.dtype == np.int64
    near, _ = neighbors(x, 5)
    height = run.heights_
    assert (height[near[run.roots_]] <= height[run.roots_, None] * (1 + 1e-12)).all()  # local maxima


def test_the_number_of_clusters_is_an_outcome() -> None:
    few, many = (PIC().fit(blobs(600, 16, groups)) for groups in (6, 60))
    assert few.n_clusters_ < many.n_clusters_
    truth = blobs(600, 16, 1000, spread=0.0)  # equal rows only
    assert PIC(1).fit(np.repeat(truth[:20], 6, axis=0)).n_clusters_ >= 20


def test_predict_takes_the_cluster_of_the_nearest_fitted_row() -> None:
    x, new = blobs(seed=0), blobs(seed=1)
    run = PIC().fit(x)
    nearest = np.stack([np.square(x.astype(np.float64) - row).sum(1).argmin() for row in new])
    np.testing.assert_array_equal(run.predict(new), run.labels_[nearest])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("n", [2, 3, 40])
def test_identical_rows_form_one_cluster(version: str, n: int) -> None:
    run = PIC(min(5, n - 1), version=version).fit(np.full((n, 4), 0.3))
    assert np.isfinite(run.stationary_).all() and np.isfinite(run.heights_).all()
    assert np.isfinite(run.cluster_centers_).all() and run.inertia_ == pytest.approx(0, abs=1e-9)
    if n == 40:
        assert run.n_clusters_ == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_clusters_do_not_depend_on_the_order_of_rows(version: str) -> None:
    x = np.concatenate([unit(500, 30), blobs(300, 30)])
    order = np.random.default_rng(0).permutation(len(x))
    one, other = PIC(version=version).fit(x), PIC(version=version).fit(x[order])
    assert same_partition(one.labels_[order], other.labels_)
    assert one.n_clusters_ > 20
    again = PIC(version=version).fit(x)
    np.testing.assert_array_equal(one.labels_, again.labels_)
    np.testing.assert_array_equal(one.heights_, again.heights_)


def test_files_and_tensors_give_the_same(tmp_path: Path) -> None:
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    plain = PIC().fit(x)
    file = PIC().fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_array_equal(file.labels_, plain.labels_)
    np.testing.assert_array_equal(file.cluster_centers_, plain.cluster_centers_)
    np.testing.assert_array_equal(PIC().fit_predict(x.tolist()), plain.labels_)
    tensor = PIC().fit(torch.from_numpy(x))
    for name in ("labels_", "roots_", "cluster_centers_", "stationary_", "heights_"):
        assert isinstance(getattr(tensor, name), torch.Tensor) and isinstance(getattr(plain, name), np.ndarray)
        np.testing.assert_array_equal(getattr(tensor, name).numpy(), getattr(plain, name))
    assert isinstance(plain.predict(torch.from_numpy(x)), torch.Tensor)
    assert isinstance(tensor.predict(x), np.ndarray)


def test_speaks_scikit_learn() -> None:
    from sklearn.base import clone, is_clusterer
    from sklearn.pipeline import make_pipeline

    run = PIC(7, sigma=0.3, version="published")
    twin = clone(run)
    assert twin is not run and twin.get_params() == run.get_params()
    assert is_clusterer(run) and repr(run) == "PIC(n_neighbors=7, sigma=0.3, version='published')"
    assert run.set_params(sigma=0.5).sigma == 0.5
    with pytest.raises(ValueError, match="Invalid parameter 'k'"):
        run.set_params(k=3)
    x = blobs(100, 6)
    assert make_pipeline(twin).fit(x).predict(x).shape == (100,)
    assert twin.n_features_in_ == 6
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twin)).predict(x), twin.labels_)


@pytest.mark.parametrize(
    ("arguments", "x", "words"),
    [
        ({}, np.ones((5, 2)), "5 rows have no more than 4 neighbors each, not 5; ask for fewer neighbors"),
        ({"n_neighbors": 0}, np.ones((9, 2)), "n_neighbors must be an integer"),
        ({"n_neighbors": 2.5}, np.ones((9, 2)), "n_neighbors must be an integer"),
        ({"max_iter": 0}, np.ones((9, 2)), "max_iter must be an integer"),
        ({"sigma": 0.0}, np.ones((9, 2)), "sigma must be a number above 0"),
        ({"sigma": float("nan")}, np.ones((9, 2)), "sigma must be a number above 0"),
        ({"sigma": 1e-200}, np.arange(18.0).reshape(9, 2), "sigma 1e-200 is too small"),
        ({"alpha": 1.0}, np.ones((9, 2)), "alpha must be between 0 and 1"),
        ({"tol": -1.0}, np.ones((9, 2)), "tol must be"),
        ({"version": "mine"}, np.ones((9, 2)), "version must be one of paper, published"),
        ({}, np.where(np.eye(9) == 1, np.nan, 0), "Row 0 of the features holds NaN"),
        ({}, np.ones(9), "Expected 2D array"),
    ],
)
def test_invalid_input_raises(arguments: dict[str, Any], x: np.ndarray, words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        PIC(**arguments).fit(x)


def test_predict_refuses_unfitted_and_another_number_of_columns() -> None:
    with pytest.raises(DeepClusterError, match="is not fitted yet"):
        PIC().predict(np.ones((3, 2)))
    run = PIC().fit(blobs(30, 4))
    with pytest.raises(DeepClusterError, match="X has 3 features, but PIC is expecting 4"):
        run.predict(np.ones((3, 3)))
