"""Clusters in levels from below, the balanced sample and near-duplicates, against slow counting."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deepcluster.clustering import KMeans
from deepcluster.clustering.curation import (
    LevelsFromBelow,
    balanced_sample,
    check_levels,
    default_levels,
    nearest_members,
    share_out,
    sizes_of,
)
from deepcluster.clustering.duplicates import repeats
from deepcluster.errors import DeepClusterError


def one_at_a_time(total: int, sizes: np.ndarray) -> np.ndarray:
    """Each goes to the first of those that were given fewest and have more."""
    taken = np.zeros(len(sizes), int)
    for _ in range(total):
        taken[min(np.flatnonzero(taken < sizes), key=lambda cluster: taken[cluster])] += 1
    return taken


@settings(deadline=None)
@given(arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 30)), st.data())
def test_sharing_out_is_giving_one_at_a_time(sizes: np.ndarray, data: st.DataObject) -> None:
    total = data.draw(st.integers(0, int(sizes.sum())))
    assert share_out(total, sizes).tolist() == one_at_a_time(total, sizes).tolist()


@st.composite
def trees(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Labels of images, parents, and numbers of clusters, with some images and some clusters in none."""
    clusters = [draw(st.integers(3, 9)), draw(st.integers(2, 4)), draw(st.integers(1, 2))]
    label = draw(arrays(np.int64, st.integers(1, 80), elements=st.integers(-1, clusters[0] - 1)))
    parents = []
    for below, above in pairwise(clusters):
        parents.append(draw(arrays(np.int64, below, elements=st.integers(0, above - 1))))
    parents[0][~np.isin(np.arange(clusters[0]), label)] = -1
    return label, parents, clusters


@settings(deadline=None)
@given(trees(), st.data())
def test_a_sample_is_shared_out_on_each_level(
    tree: tuple[np.ndarray, list[np.ndarray], list[int]], data: st.DataObject
) -> None:
    label, parents, clusters = tree
    size = data.draw(st.integers(0, int((label >= 0).sum())))
    found = balanced_sample(size, label, parents, clusters, seed=3)
    assert len(found) == size == len(np.unique(found)) and (label[found] >= 0).all() and (np.diff(found) > 0).all()
    before, after = sizes_of(label, parents, clusters), sizes_of(label[found], parents, clusters)
    path = [label]  # the cluster of each image on each level, image by image
    for parent in parents:
        path.append(np.array([parent[cluster] if cluster >= 0 else -1 for cluster in path[-1]]))
    for level, own in enumerate(path):
        assert before[level].tolist() == [int((own == cluster).sum()) for cluster in range(clusters[level])]
    assert after[2].tolist() == one_at_a_time(size, before[2]).tolist()
    for level in (1, 0):
        for above in range(clusters[level + 1]):
            children = np.flatnonzero(parents[level] == above)
            if len(children):
                wanted = one_at_a_time(int(after[level + 1][above]), before[level][children])
                assert after[level][children].tolist() == wanted.tolist()
    if size:
        assert np.isin(balanced_sample(size - 1, label, parents, clusters, seed=3), found).all()


def test_draws_depend_on_the_seed_alone() -> None:
    label = np.zeros(100, np.int64)
    draws = [balanced_sample(10, label, [], [1], seed=seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_images_are_drawn_uniformly_within_a_cluster() -> None:
    label = np.zeros(20, np.int64)
    counts = np.bincount(np.concatenate([balanced_sample(5, label, [], [1], seed=s) for s in range(2000)]))
    assert abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


@settings(deadline=None)
@given(st.data())
def test_nearest_members_are_those_of_sorting_each_cluster(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    label = data.draw(arrays(np.int64, n, elements=st.integers(0, 5)))
    distance = data.draw(arrays(np.float32, n, elements=st.floats(0, 1, width=16)))
    each = data.draw(st.integers(1, 5))
    wanted = [i for c in range(6) for i in sorted(np.flatnonzero(label == c), key=lambda i: distance[i])[:each]]
    assert nearest_members(label, distance, each).tolist() == sorted(wanted)


def unbalanced(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8) rows of ten kinds, the first with a hundred times as many as the last, and the kind of each."""
    kind = np.repeat(np.arange(10), np.round(1000 * 0.01 ** (np.arange(10) / 9)).astype(int))
    x = (3 * rng.normal(size=(10, 8)))[kind] + 0.5 * rng.normal(size=(len(kind), 8))
    return x.astype(np.float32), kind


def test_levels_from_below_are_k_means_of_centroids() -> None:
    x, _ = unbalanced(np.random.default_rng(0))
    tree = LevelsFromBelow([60, 10, 3], resamplings=0, seed=1)
    label = tree.fit_predict(x)
    centroids = tree.cluster_centers_.numpy()
    for level, parent in enumerate(tree.parents_):
        alive = np.flatnonzero(parent >= 0)
        means = np.stack([centroids[alive][parent[alive] == c].mean(0) for c in range(tree.clusters[level + 1])])
        own = np.square(centroids[alive, None] - means).sum(2)
        assert (own.argmin(1) == parent[alive]).mean() > 0.95  # Lloyd's iterations may stop before the last change
        centroids = means
    assert np.array_equal(np.square(x[:, None] - tree.cluster_centers_.numpy()).sum(2).argmin(1), label)
    again = LevelsFromBelow([60, 10, 3], resamplings=0, seed=1)
    assert np.array_equal(again.fit_predict(x), label)
    assert not np.array_equal(LevelsFromBelow([60, 10, 3], resamplings=0, seed=2).fit_predict(x), label)


def test_resampling_spreads_centroids_over_rare_kinds() -> None:
    spread = []
    for resamplings in (0, 10):
        shares = []
        for seed in range(3):
            x, kind = unbalanced(np.random.default_rng(seed))
            label = LevelsFromBelow([60], resamplings=resamplings, seed=seed).fit_predict(x)
            shares.append(len(np.unique(label[kind >= 5])))
        spread.append(np.mean(shares))
    assert spread[1] > 1.3 * spread[0], spread


def test_a_balanced_sample_has_more_of_rare_kinds_than_the_same_number_at_random() -> None:
    x, kind = unbalanced(np.random.default_rng(0))
    tree = LevelsFromBelow([50, 10], seed=0)
    label = tree.fit_predict(x)
    taken = np.bincount(kind[balanced_sample(300, label, tree.parents_, tree.clusters)], minlength=10)
    flat = np.bincount(kind[balanced_sample(300, KMeans(50, random_state=0).fit(x).labels_, [], [50])], minlength=10)
    assert taken.min() >= 10 > 300 * 10 / len(x)  # all ten of the rarest
    assert taken.max() < flat.max()


@pytest.mark.parametrize("rows", [64, 3])
def test_equal_and_few_rows_make_levels(rows: int) -> None:
    x = np.ones((rows, 4), np.float32)
    tree = LevelsFromBelow([2, 1])
    label = tree.fit_predict(x)
    assert len(balanced_sample(3, label, tree.parents_, [2, 1])) == 3


def test_points_around_centroids_may_lie_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, _ = unbalanced(np.random.default_rng(0))
    in_memory = LevelsFromBelow([40, 5], scratch=tmp_path).fit_predict(x)
    monkeypatch.setattr("deepcluster.clustering.curation.IN_MEMORY", 0)
    assert np.array_equal(LevelsFromBelow([40, 5], scratch=tmp_path).fit_predict(x), in_memory)


def test_default_levels() -> None:
    assert default_levels(64) == [8]
    assert default_levels(12_406) == default_levels(20_000) == [28]
    assert default_levels(20_001) == [270, 27]
    assert default_levels(743_000_000) == [10_040_540, 1_004_054, 100_405, 10_040]
    assert default_levels(1) == [1]


@pytest.mark.parametrize("clusters", [[], [0], [5, 5], [5, 6], [11], [5, 0]])
def test_levels_that_cannot_be_are_refused(clusters: list[int]) -> None:
    check_levels([10, 3], 10)
    with pytest.raises(DeepClusterError, match="are no levels of 10 images"):
        check_levels(clusters, 10)


@settings(deadline=None)
@given(st.data())
def test_repeats_are_those_of_going_through_all_pairs(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    n = data.draw(st.integers(1, 30))
    angle = rng.uniform(0, 2 * np.pi, n).astype(np.float32)
    x, label = np.stack([np.cos(angle), np.sin(angle)], 1), rng.integers(-1, 3, n)
    wanted: list[int] = []
    kept: list[int] = []
    for row in range(n):
        similar = [other for other in kept if label[other] == label[row] >= 0 and x[other] @ x[row] >= 0.9]
        (wanted if similar else kept).append(row)
    for at_once in (1 << 22, 5):  # all rows of a cluster at a time, or one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deepcluster.clustering.duplicates.AT_ONCE", at_once)
            assert np.flatnonzero(repeats(x, label, 0.9)).tolist() == wanted


def test_equal_rows_are_repeats_at_a_cosine_of_1_and_none_above() -> None:
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    x = np.concatenate([x, x]) / np.linalg.norm(x, axis=1).repeat(2).reshape(5, 2).T.reshape(10, 1)
    assert repeats(x, np.zeros(10, int), 1.0).tolist() == [False] * 5 + [True] * 5
    assert not repeats(x, np.zeros(10, int), 1.1).any()
