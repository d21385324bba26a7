"""Hierarchical k-means against plain k-means composed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering.hierarchical import HierarchicalKMeans, levels_for, seed_for
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.tree import nearest_in_tree
from deepcluster.errors import DeepClusterError
from deepcluster.random import seeded


def nested(n: int = 3000, d: int = 12, seed: int = 0, spread: float = 0.1) -> np.ndarray:
    """Four far-apart groups of five each."""
    rng = np.random.default_rng(seed)
    centers = 6 * rng.normal(size=(4, 1, d)) + rng.normal(size=(4, 5, d))
    return (centers.reshape(20, d)[rng.integers(20, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def lloyd_by_scikit_learn(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and labels, from the rows that `KMeans(k, random_state=seed)` begins with."""
    from sklearn.cluster import KMeans as Reference

    start = x[torch.randperm(len(x), generator=seeded(seed, 0))[:k].numpy()]
    run = Reference(k, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x)
    return run.cluster_centers_, run.labels_


def test_equals_scikit_learn_on_each_subset() -> None:
    x = nested(spread=0.8)  # no cluster gets empty on the way, which both fill in their own manner
    ours = HierarchicalKMeans(20, branches=(4,), max_iter=300, random_state=5).fit(x)
    top, group = lloyd_by_scikit_learn(x, 4, seed_for(5, 0, 0))
    np.testing.assert_allclose(ours.levels_[0], top, atol=1e-4)
    expected, inertia = np.empty(len(x), np.int64), 0.0
    for s in range(4):
        members = np.flatnonzero(group == s)
        centroids, label = lloyd_by_scikit_learn(x[members], 5, seed_for(5, 1, s))
        expected[members] = 5 * s + label
        inertia += np.square(x[members] - centroids[label]).sum()
        np.testing.assert_allclose(ours.cluster_centers_[5 * s : 5 * s + 5], centroids, atol=1e-4)
    np.testing.assert_array_equal(ours.labels_, expected)
    assert ours.inertia_ == pytest.approx(inertia, rel=1e-4)
    for level, counts in enumerate(ours.counts_):
        np.testing.assert_array_equal(counts, np.bincount(expected // [5, 1][level], minlength=len(counts)))


def going_down(x: np.ndarray, levels: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
    """The cluster of each row, one row at a time."""
    found = []
    for row in x.astype(np.float64):
        node = 0
        for above, level, count in zip([1, *(len(each) for each in levels)], levels, counts, strict=False):
            children = len(level) // above
            squared = np.square(row - level[node * children : (node + 1) * children].astype(np.float64)).sum(1)
            squared[count[node * children : (node + 1) * children] == 0] = np.inf
            node = node * children + int(squared.argmin())
        found.append(node)
    return np.array(found)


@pytest.mark.parametrize("branches", [(4,), (2, 3), (1, 2, 3), (24,), (1,), None])
@pytest.mark.parametrize("spherical", [False, True])
def test_predict_descends_as_fit_did(branches: Any, spherical: bool) -> None:
    x, new = nested(900), nested(200, seed=1) * 1.1
    run = HierarchicalKMeans(24, branches=branches, spherical=spherical, random_state=0, max_iter=5).fit(x)
    assert [len(level) for level in run.levels_] == np.cumprod(levels_for(24, branches)).tolist()
    np.testing.assert_array_equal(run.predict(x), run.labels_)
    np.testing.assert_array_equal(run.predict(x[40:41]), run.labels_[40:41])
    unit = new / np.linalg.norm(new, axis=1, keepdims=True) if spherical else new
    np.testing.assert_array_equal(run.predict(new), going_down(unit, run.levels_, run.counts_))
    label, distance = nearest_in_tree(new, run.levels_, run.counts_, spherical=spherical)
    np.testing.assert_array_equal(label, run.predict(new))
    np.testing.assert_allclose(distance, np.linalg.norm(unit - run.cluster_centers_[label], axis=1), rtol=1e-4)
    exact = np.linalg.norm(unit[:, None] - run.cluster_centers_, axis=2)
    np.testing.assert_allclose(run.transform(new), exact, rtol=1e-4, atol=1e-4)


def test_one_super_cluster_is_plain_k_means() -> None:
    x = nested()
    tree = HierarchicalKMeans(30, branches=(1,), random_state=3).fit(x)
    flat = KMeans(30, random_state=seed_for(3, 1, 0)).fit(x)
    np.testing.assert_array_equal(tree.labels_, flat.labels_)
    np.testing.assert_array_equal(tree.cluster_centers_, flat.cluster_centers_)
    assert tree.inertia_ == flat.inertia_
    found = nearest_in_tree(x, [flat.cluster_centers_])[0]
    np.testing.assert_array_equal(found, flat.predict(x))


@given(st.integers(1, 64), st.sampled_from([(1,), (2,), (4,), (2, 2), (8,)]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_any_small_table(n: int, branches: tuple[int, ...], kind: int) -> None:
    rng = np.random.default_rng(n)
    normal = rng.normal(size=(n, 3))
    x = [normal, rng.integers(0, 2, (n, 3)), np.full((n, 3), 7.7), normal * 1e-6][kind]
    x, k = x.astype(np.float32), 8
    if n < k:
        with pytest.raises(DeepClusterError, match=r"rows? cannot make"):
            HierarchicalKMeans(k, branches=branches).fit(x)
        return
    run = HierarchicalKMeans(k, branches=branches, random_state=0).fit(x)
    np.testing.assert_array_equal(run.predict(x), run.labels_)
    np.testing.assert_array_equal(run.counts_[-1], np.bincount(run.labels_, minlength=k))
    assert np.isfinite(run.cluster_centers_).all() and np.isfinite(run.inertia_)
    exact = np.square(x.astype(np.float64) - run.cluster_centers_[run.labels_]).sum()
    assert run.inertia_ == pytest.approx(exact, rel=1e-4, abs=1e-9 * float(np.square(x).sum()))
    for above, below in zip(run.counts_, run.counts_[1:], strict=False):
        np.testing.assert_array_equal(below.reshape(len(above), -1).sum(1), above)


def test_empty_clusters_keep_their_index_and_are_never_nearest() -> None:
    x = np.concatenate([np.zeros((10, 2)), np.full((2, 2), 100.0) + np.eye(2)]).astype(np.float32)
    run = HierarchicalKMeans(12, branches=(2,), random_state=0).fit(x)
    near, far = run.labels_[0] // 6, run.labels_[-1] // 6
    assert near != far and (run.labels_[:10] // 6 == near).all()
    assert sorted(run.counts_[1].tolist()) == [0] * 9 + [1, 1, 10]
    for node in (near, far):
        empty = 6 * node + np.flatnonzero(run.counts_[1][6 * node : 6 * node + 6] == 0)
        np.testing.assert_array_equal(run.cluster_centers_[empty], np.tile(run.levels_[0][node], (len(empty), 1)))
    # the middle of the two far rows is where the empty clusters' centroids lie
    assert run.counts_[1][run.predict(run.levels_[0])].min() > 0


def test_large_super_clusters_go_through_files(tmp_path: Path) -> None:
    x = nested()
    memory = HierarchicalKMeans(20, branches=(2, 2), random_state=0).fit(x)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "scratch").mkdir()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    file = HierarchicalKMeans(20, branches=(2, 2), random_state=0, scratch=tmp_path / "scratch", max_bytes=0).fit(
        mapped
    )
    np.testing.assert_array_equal(file.labels_, memory.labels_)
    np.testing.assert_array_equal(file.cluster_centers_, memory.cluster_centers_)
    np.testing.assert_array_equal(file.predict(mapped), memory.labels_)
    assert not list((tmp_path / "scratch").iterdir())


def test_levels() -> None:
    assert levels_for(12, None) == [3, 4] and levels_for(100, None) == [10, 10] and levels_for(7, None) == [1, 7]
    assert levels_for(320_000, (4,)) == [4, 80_000] and levels_for(80, (4, 10)) == [4, 10, 2]


def test_speaks_scikit_learn() -> None:
    from sklearn.base import clone

    x = nested(200)
    run = HierarchicalKMeans(8, branches=(2,), random_state=0)
    twin = clone(run)
    assert twin.get_params() == run.get_params()
    tensor = torch.from_numpy(x)
    assert isinstance(twin.fit(tensor).labels_, torch.Tensor) and isinstance(twin.counts_[0], torch.Tensor)
    np.testing.assert_array_equal(twin.labels_.numpy(), run.fit_predict(x))
    assert run.fit_transform(x).shape == (200, 8) and run.n_features_in_ == 12
    other = HierarchicalKMeans(8, branches=(2,), random_state=1).fit(x)
    assert not np.array_equal(other.labels_, run.labels_)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"branches": (3,)}, "8 clusters cannot be shared out evenly to 3 branches; ask for 6 or 9"),
        ({"branches": (0,)}, "branches must be whole numbers"),
        ({"branches": (2.5,)}, "branches must be whole numbers"),
        ({"n_clusters": 0}, "n_clusters must be"),
        ({"n_clusters": 400}, "200 rows cannot make 400 clusters"),
        ({"init": np.zeros((8, 12))}, "centroids cannot be given for each branch"),
        ({"init": "best"}, "init must be one of"),
    ],
)
def test_invalid_input_raises(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        HierarchicalKMeans(**{"n_clusters": 8, **arguments}).fit(nested(200))


def test_invalid_trees_raise() -> None:
    x, tops, leaves = np.zeros((3, 2)), np.zeros((2, 2)), np.zeros((4, 2))
    with pytest.raises(DeepClusterError, match="is not fitted yet"):
        HierarchicalKMeans(2).predict(x)
    with pytest.raises(DeepClusterError, match="are no tree"):
        nearest_in_tree(x, [tops, np.zeros((3, 2))])
    with pytest.raises(DeepClusterError, match="2 columns but the centroids have 2 and 3"):
        nearest_in_tree(x, [tops, np.zeros((4, 3))])
    with pytest.raises(DeepClusterError, match="counts are of"):
        nearest_in_tree(x, [tops, leaves], [np.ones(2), np.ones(3)])
    with pytest.raises(DeepClusterError, match="Branch 0 of 2 has no centroid that counts"):
        nearest_in_tree(x, [tops, leaves], [np.array([1, 0]), np.array([0, 0, 1, 1])])


def test_a_fit_that_fails_leaves_the_tree_of_the_one_before() -> None:
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    clusterer = HierarchicalKMeans(12, branches=(3,), random_state=0).fit(x)
    bad = x.copy()
    bad[7, 1] = np.nan
    with pytest.raises(DeepClusterError, match="Row 7"):
        clusterer.fit(bad)
    np.testing.assert_array_equal(clusterer.predict(x), clusterer.labels_)
