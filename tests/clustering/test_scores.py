"""Scores against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from deepcluster.clustering import metrics as scores
from deepcluster.errors import DeepClusterError

grouping = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n)] * 2))


@given(grouping)
@settings(max_examples=50, deadline=None)
def test_equal_to_scikit_learn(pair: tuple[list[int], list[int]]) -> None:
    a, b = map(np.array, pair)
    theirs = metrics.normalized_mutual_info_score(a, b, average_method="geometric")
    assert scores.nmi(a, b) == pytest.approx(theirs, abs=1e-9)
    assert scores.ari(a, b) == pytest.approx(metrics.adjusted_rand_score(a, b), abs=1e-9)
    assert scores.ami(a, b) == pytest.approx(
        metrics.adjusted_mutual_info_score(a, b, average_method="geometric"), abs=1e-9
    )
    table = metrics.cluster.contingency_matrix(a, b)
    np.testing.assert_array_equal(scores.contingency(a, b).toarray(), table)
    assert scores.purity(a, b) == pytest.approx(table.max(1).sum() / len(a))


def test_many_groups_without_the_whole_table() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 20_000, 50_000), rng.integers(0, 10**12, 50_000) // 10**8
    assert scores.nmi(a, b) == pytest.approx(
        metrics.normalized_mutual_info_score(a, b, average_method="geometric"), abs=1e-9
    )
    assert scores.ari(a, b) == pytest.approx(metrics.adjusted_rand_score(a, b), abs=1e-9)
    assert scores.purity(a, b) == pytest.approx(
        metrics.cluster.contingency_matrix(a, b, sparse=True).max(1).sum() / 5e4
    )


def test_images_without_a_group_are_left_out() -> None:
    a, b = np.array([0, 0, 1, 1, -1, 1]), np.array([3, 3, 4, 4, 4, -1])
    assert scores.nmi(a, b) == pytest.approx(1)
    assert scores.ari(a, b) == scores.purity(a, b) == scores.accuracy(a, b) == 1
    for score in (scores.nmi, scores.ari, scores.ami, scores.purity, scores.accuracy):
        assert np.isnan(score([-1, 0], [0, -1]))


def test_accuracy_matches_clusters_to_labels_one_to_one() -> None:
    labels = np.repeat([0, 1, 2], 10)
    assert scores.accuracy((labels + 1) % 3, labels) == 1
    split = np.where(np.arange(30) < 5, 3, labels)  # half of class 0 in a cluster of its own
    assert scores.purity(split, labels) == 1
    assert scores.accuracy(split, labels) == pytest.approx(25 / 30)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    from itertools import permutations

    best = max((np.array(order)[a] == b).mean() for order in permutations(range(4)))
    assert scores.accuracy(a, b) == pytest.approx(best)


def test_size_stats() -> None:
    even = scores.size_stats(np.repeat(np.arange(4), 5), 4)
    assert even == {"clusters_used": 4, "size_min": 5, "size_max": 5, "size_entropy": pytest.approx(1)}
    one = scores.size_stats(torch.tensor([2, 2, 2, -1]), 4)
    assert one == {"clusters_used": 1, "size_min": 0, "size_max": 3, "size_entropy": 0}
    assert scores.size_stats([0, 0], 1)["size_entropy"] == 0
    p = np.array([0.75, 0.25])
    assert scores.size_stats([0, 0, 0, 1], 3)["size_entropy"] == pytest.approx(-(p * np.log(p)).sum() / np.log(3))


def test_invalid_input_raises() -> None:
    with pytest.raises(DeepClusterError, match="cover 2 and 3 images"):
        scores.nmi([0, 1], [0, 1, 2])
    with pytest.raises(DeepClusterError, match="must be \\(N,\\) integers"):
        scores.nmi([0.5, 1], [0, 1])


def test_rankme_is_the_entropy_of_the_singular_values() -> None:
    rng = np.random.default_rng(0)
    for shape in ((40, 12), (12, 40)):
        x = rng.normal(size=shape)
        values = np.linalg.svd(x, compute_uv=False)
        p = values / values.sum() + 1e-7
        assert scores.rank_me(x.astype(np.float32)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert scores.rank_me(np.ones((30, 5))) == pytest.approx(1, abs=1e-3)
    assert scores.rank_me(np.eye(7)) == pytest.approx(7, abs=1e-3)
    assert np.isfinite(scores.rank_me(np.zeros((4, 3))))
