"""Members of clusters against a plain list of labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering.cluster_index import Members


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10_000))
def test_members_follow_the_labels(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, k, n)
    members = Members(labels, k)
    for _ in range(20):
        placed = np.flatnonzero(labels >= 0)
        rows = rng.permutation(placed)[: rng.integers(0, len(placed) + 1)]
        new = rng.integers(0, k, len(rows))
        members.move(rows, labels[rows], new)
        labels[rows] = new
        np.testing.assert_array_equal(members.sizes, np.bincount(labels[labels >= 0], minlength=k))
        for cluster in range(k):
            np.testing.assert_array_equal(members.of(cluster), np.flatnonzero(labels == cluster))
