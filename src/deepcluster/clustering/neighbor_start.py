"""Where k-means begins in the features of a pretrained network: at the means of rows averaged with their neighbors.

An image's nearest neighbors mostly show the same thing, so the mean of a row and its neighbors is the row with less
noise. k-means of such rows has fewer and better local optima, and k-means of the rows themselves goes on from its
centroids. docs/groups.md shows what that gains.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.plus_plus import distinct
from deepcluster.clustering.validation import DegenerateClusters, require_rows, seed_from
from deepcluster.features.block_reader import Rows, in_kind, normalize_rows
from deepcluster.features.knn import nearest_rows
from deepcluster.random import seeded

NEIGHBORS = 5
SAMPLE = 20_000  # rows, or 16 per cluster, that are looked at: bounds memory and time


def neighbor_start(x: Any, k: int, *, n_init: int = 10, random_state: Any = 0) -> Any:
    """(K, D) centroids of unit length, for `KMeans(k, init=..., spherical=True)`.

    Args:
        x: (N, D) features, without NaN. Rows are compared by angle. Of more than 20,000 (or 16 per cluster) a uniform
            sample is taken.
        n_init: runs of k-means++, the best of which counts.
        random_state: seed, `numpy.random.RandomState`, or None = NumPy's global one.

    Raises:
        DeepClusterError: fewer rows than clusters, a row with NaN or infinity, or x is not a table.
    """
    rows, seed = Rows(x), seed_from(random_state)
    require_rows(rows.n, k)
    drawn = min(rows.n, max(SAMPLE, 16 * k))
    unit = normalize_rows(rows.take(distinct(rows.n, drawn, seeded(seed)).sort().values))
    # neighbors of a cluster's rows should lie in it
    near = min(NEIGHBORS, drawn // (2 * k))
    if near:
        unit = with_neighbors(unit, nearest_rows(unit, near, metric="cosine")[0])
    centroids = spherical_k_means(unit, k, seed, n_init=n_init, precision="float32").cluster_centers_
    return in_kind(centroids, x)


def spherical_k_means(x: Any, k: int, seed: int, *, init: Any = "k-means++", **parameters: Any) -> KMeans:
    """k-means of the rows x (N, D) by angle. Whoever goes on from its clusters warns of empty ones."""
    clusterer = KMeans(k, init=init, max_iter=50, spherical=True, random_state=seed, **parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusters)
        return clusterer.fit(x)


def with_neighbors(x: Tensor, neighbors: Tensor) -> Tensor:
    """(N, D) rows x of unit length plus the mean of their neighbors (N, M), at unit length again."""
    return normalize_rows(x + x[neighbors].mean(1))
