"""Clustering by 1, 2 and 3 processes, which must not be told apart by its result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering.hierarchical import HierarchicalKMeans
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.plus_plus import distinct
from deepcluster.clustering.points import Points
from deepcluster.clustering.whitening import Whitening
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.exact_sum import Total, round_, unit_for
from deepcluster.features.block_reader import Rows
from processes import together


def mixture(n: int, d: int, groups: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, d))[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d))
    return (x * rng.uniform(0.5, 2, d)).astype(np.float32)


def few() -> np.ndarray:
    """Rows of which there are fewer different ones than clusters, so that clusters stay empty."""
    return np.repeat(mixture(20, 6, 20), 200, axis=0)[np.random.default_rng(3).permutation(4000)]


KMEANS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (lambda: mixture(5000, 24, 40), {"n_clusters": 40, "precision": "float32"}),
    "int8": (lambda: mixture(7000, 32, 300), {"n_clusters": 300, "precision": "int8"}),
    "settled": (lambda: mixture(7000, 32, 150), {"n_clusters": 200}),
    "unscreenable": (
        lambda: mixture(3000, 16, 300) + 3e3 * (np.arange(3000)[:, None] % 2) * np.eye(16, dtype=np.float32)[0],
        {"n_clusters": 280, "precision": "int8", "max_iter": 4},
    ),
    "k-means++": (lambda: mixture(5000, 24, 40), {"n_clusters": 90, "init": "k-means++", "max_iter": 3}),
    "spherical": (lambda: mixture(5000, 24, 40), {"n_clusters": 30, "spherical": True, "tol": 1e-3}),
    "far from zero": (lambda: mixture(4000, 8, 5) + 1000, {"n_clusters": 5, "n_init": 3}),
    "few": (few, {"n_clusters": 60, "max_iter": 4}),
    "few++": (few, {"n_clusters": 60, "max_iter": 4, "init": "k-means++"}),
    "one process has all": (lambda: mixture(700, 8, 5), {"n_clusters": 50}),
    "cold": (lambda: mixture(3000, 8, 9), {"n_clusters": 80, "init": np.full((80, 8), 9.0) + np.arange(80)[:, None]}),
}


def _kmeans(group: ProcessGroup, uneven: bool) -> dict[str, Any]:
    results = {}
    for name, (make, arguments) in KMEANS.items():
        x = make()
        first, last = group.row_range(len(x))
        if uneven:  # most rows on the last process, and none on the first of three
            first, last = ([0, 0, 777, len(x)] if group.size == 3 else [0, 333, len(x)])[group.rank :][:2]
        # each process has its own copy, not a part of one
        run = KMeans(**{"random_state": 0, **arguments}, group=group).fit(x[first:last].copy())
        assert np.array_equal(run.predict(x[first:last]), run.labels_)
        results[name] = {
            "labels": run.labels_,
            "same": [run.cluster_centers_, np.array([run.inertia_, *run.objectives_])],
        }
    return results


WHITENING: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (lambda: mixture(5000, 24, 40), {"n_components": 10}),
    "one row far away": (lambda: np.concatenate([mixture(3000, 12, 9), np.full((1, 12), 1e6)]), {"n_components": 4}),
    "all rows alike": (lambda: np.full((2100, 5), 0.1), {"n_components": 3}),
    "few": (lambda: mixture(9, 12, 3), {"n_components": 6}),
}


def _whitening(group: ProcessGroup) -> dict[str, list[np.ndarray]]:
    results = {}
    for name, (make, arguments) in WHITENING.items():
        x = make().astype(np.float32)
        first, last = group.row_range(len(x))
        fitted = Whitening(**arguments, group=group).fit(x[first:last].copy())
        assert fitted.transform(x[first:last]).shape == (last - first, len(fitted.components_))
        once = [fitted.mean_.numpy(), fitted.components_.numpy(), fitted.explained_variance_.numpy()]
        again = fitted.partial_fit(x[first:last] * 2 + 1)
        results[name] = [*once, again.mean_.numpy(), again.components_.numpy()]
    return results


TREES: dict[str, tuple[Any, dict[str, Any]]] = {
    "two levels": (lambda: mixture(6000, 16, 40), {"n_clusters": 60, "branches": (4,)}),
    "three levels": (lambda: mixture(5000, 16, 40), {"n_clusters": 60, "branches": (3, 4), "max_iter": 3}),
    "sorted": (lambda: np.sort(mixture(5000, 4, 40), axis=0), {"n_clusters": 24, "branches": (6,), "max_iter": 4}),
    "few": (few, {"n_clusters": 60, "branches": (10,), "max_iter": 2}),
    "one process has all": (lambda: mixture(100, 16, 40), {"n_clusters": 100, "branches": (5,)}),
}


def _trees(group: ProcessGroup) -> dict[str, Any]:
    results = {}
    for name, (make, arguments) in TREES.items():
        x = make()
        first, last = group.row_range(len(x))
        run = HierarchicalKMeans(**{"random_state": 0, **arguments}, group=group).fit(x[first:last].copy())
        assert np.array_equal(run.predict(x[first:last]), run.labels_)
        results[name] = {"labels": run.labels_, "same": [*run.levels_, *run.counts_, np.array(run.inertia_)]}
    return results


def _everything(group: ProcessGroup) -> dict[str, Any]:
    kmeans = {"aligned": _kmeans(group, False), "uneven": _kmeans(group, True)}
    return {**kmeans, "whitening": _whitening(group), "trees": _trees(group)}


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    results: dict[str, Any] = together(_everything, 1)[0]
    return results


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def several(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of 2 or 3 processes found; started once, since that takes longer than all they do."""
    return together(_everything, request.param)


@pytest.mark.parametrize("what", ["aligned", "trees"])
def test_clusters_are_the_same_to_the_last_bit(several: list[dict[str, Any]], one: dict[str, Any], what: str) -> None:
    for name, alone in one[what].items():
        found = [run[what][name] for run in several]
        np.testing.assert_array_equal(np.concatenate([each["labels"] for each in found]), alone["labels"], name)
        for each in found:
            for ours, theirs in zip(each["same"], alone["same"], strict=True):
                np.testing.assert_array_equal(ours, theirs, name)


def test_any_sharding_gives_the_same_clusters(several: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for name in ("float32", "spherical", "int8", "settled", "one process has all"):
        found = [run["uneven"][name] for run in several]
        labels = np.concatenate([each["labels"] for each in found])
        np.testing.assert_array_equal(labels, one["aligned"][name]["labels"], name)
        for each in found:
            np.testing.assert_allclose(each["same"][0], one["aligned"][name]["same"][0], atol=1e-5)
            np.testing.assert_array_equal(each["same"][0], found[0]["same"][0])


def test_whitening_is_the_same_to_the_last_bit(several: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for run in several:
        for name, alone in one["whitening"].items():
            for ours, theirs in zip(run["whitening"][name], alone, strict=True):
                np.testing.assert_array_equal(ours, theirs, name)


def test_whitening_of_rows_far_from_the_sample() -> None:
    """The guess of the mean and of the size is far off, the result is not."""
    x = mixture(6000, 6, 3).astype(np.float64)
    x[1::2] += 1e3  # of 6,000 rows every sixth is in the sample: even ones only
    fitted = Whitening(6, l2=False).fit(x)
    centered = x.astype(np.float32).astype(np.float64) - x.astype(np.float32).mean(0, dtype=np.float64)
    variance = np.linalg.eigvalsh(centered.T @ centered / len(x))[::-1]
    np.testing.assert_allclose(fitted.explained_variance_, variance, rtol=1e-6)


def _mistakes(group: ProcessGroup) -> list[str]:
    x = mixture(50, 4, 3)
    holed, wide = x.copy(), group.rank == 1
    if group.rank == 1:
        holed[7, 2] = np.nan
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"n_clusters": 50 * group.size + 1}, x),
        ({}, holed),
        ({}, x[:0]),
        ({}, np.zeros((50, 5), np.float32) if wide else x),
        ({}, np.zeros(3, np.float32) if wide else x),
        ({"backend": "faiss"}, x),
    ]
    said = []
    for arguments, rows in cases:
        with pytest.raises(DeepClusterError) as caught:
            KMeans(**{"n_clusters": 3, "random_state": 0, **arguments}, group=group).fit(rows)
        said.append(str(caught.value))
    with pytest.raises(DeepClusterError, match="Row 57 of the features holds NaN"):
        Whitening(2, group=group).fit(holed)
    unseeded = KMeans(3, group=group).fit(x).cluster_centers_
    assert np.array_equal(group.gather_array(unseeded), np.concatenate([unseeded] * group.size))
    return said


def test_an_error_of_one_process_is_raised_on_all() -> None:
    first, second = together(_mistakes, 2)
    assert first == second
    expected = [
        "100 rows cannot make 101 clusters",
        "Row 57 of the features holds NaN",
        "The features of all processes are empty",
        "4 and 5 columns",
        "Expected 2D array",
        "in one process, not in 2",
    ]
    for said, words in zip(first, expected, strict=True):
        assert words in said


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60), st.randoms())
@settings(max_examples=80, deadline=None)
def test_totals_do_not_depend_on_order_or_grouping(numbers: list[float], random: Any) -> None:
    import math

    values = torch.tensor(numbers, dtype=torch.float64)[:, None]
    once = Total(1)
    once.add(values)
    shuffled = list(range(len(numbers)))
    random.shuffle(shuffled)
    parts = [Total(1), Total(1)]
    for place in shuffled:
        parts[place % 2].add(values[place : place + 1])
    together_ = Total(1)
    together_.digits = parts[0].digits + parts[1].digits
    assert torch.equal(once.digits, together_.digits)
    assert float(once.value()) == pytest.approx(math.fsum(numbers), rel=1e-15, abs=1e-300)


@given(st.integers(0, 10_000), st.sampled_from([1e-30, 1e-3, 1.0, 7e4]))
@settings(max_examples=30, deadline=None)
def test_sums_of_rounded_numbers_lose_nothing(seed: int, scale: float) -> None:
    from fractions import Fraction

    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=200) * np.geomspace(1e-6, 1, 200)).astype(np.float32)
    unit = unit_for(float(np.abs(x).max()), len(x))
    rounded = round_(torch.from_numpy(x).double(), unit)
    exact = sum((Fraction(float(value)) for value in rounded), Fraction(0))
    for order in (np.arange(200), rng.permutation(200)):
        assert Fraction(float(np.cumsum(rounded.numpy()[order])[-1])) == exact
    np.testing.assert_allclose(rounded.numpy(), x, atol=float(np.abs(x).max()) * 2.0**-40)


def test_distinct_draws_are_uniform() -> None:
    for n, k in ((10, 10), (1000, 3), (1 << 25, 3000)):
        drawn = distinct(n, k, torch.Generator().manual_seed(0))
        assert len(set(drawn.tolist())) == k and int(drawn.min()) >= 0 and int(drawn.max()) < n
    assert 0.45 < float((drawn < n // 2).float().mean()) < 0.55


def test_largest_prefers_the_lowest_of_equal_rows() -> None:
    shard = Points(Rows(np.zeros((6, 1)))).shard
    index, value = shard.largest(torch.tensor([1.0, 3, 0, 3, 1, 1]), 4)
    assert index.tolist() == [1, 3, 0, 4] and value.tolist() == [3, 3, 1, 1]
    assert shard.group == SINGLE
