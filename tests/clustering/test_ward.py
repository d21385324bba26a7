"""Ward's tree against scikit-learn's, and its cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from deepcluster.clustering.ward import cut_tree, ward_tree


@pytest.mark.parametrize("k", [1, 2, 7, 30, 79, 80])
def test_cuts_are_the_clusters_of_scikit_learn(k: int) -> None:
    x = np.random.default_rng(0).normal(size=(80, 5)).astype("f4")
    labels = cut_tree(ward_tree(torch.from_numpy(x)), k).numpy()
    assert set(labels) == set(range(k))
    assert adjusted_rand_score(labels, AgglomerativeClustering(k, linkage="ward").fit_predict(x)) == 1


def test_each_cut_splits_one_group_of_the_cut_before() -> None:
    tree = ward_tree(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)))
    for k in range(1, 60):
        assert len(torch.unique(torch.stack([cut_tree(tree, k), cut_tree(tree, k + 1)]), dim=1).T) == k + 1


def test_equal_rows_are_cut_into_as_many_groups_as_asked() -> None:
    tree = ward_tree(torch.ones(9, 3))
    assert [int(cut_tree(tree, k).max()) + 1 for k in range(1, 10)] == list(range(1, 10))
