"""A balanced sample of uncurated images, as in Vo et al. 2024 (arXiv 2405.15613), written from the paper.

Hierarchical k-means goes from below: the images are clustered, then the centroids of these clusters, then those of the
clusters of clusters. On each level a centroid counts once, however many images it stands for, and k-means is repeated
with equally many points around each centroid (resampling, §3.3), so that centroids spread over what there is and not
over what there is most of. `HierarchicalKMeans` goes the other way, from super-clusters of all images down; there a
common kind of image takes many of the super-clusters, which then could not balance the sample.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.assign import nearest
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.points import Points
from deepcluster.clustering.redistribute import scratch_table
from deepcluster.clustering.validation import DegenerateClusters
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, write_rows
from deepcluster.features.parallel import is_spread, over_rows
from deepcluster.random import seed_of, seeded

CLUSTERS, DRAW = 0, 1
"""Purposes of random draws."""
IMAGES_EACH = 74
"""Images per cluster of the lowest level, as the paper's 743 million in 10 million clusters."""
MOST_LEVELS, NARROWING, FEWEST = 4, 10, 10
"""The paper has four levels from 10 million to 10,000 clusters; here each has a tenth of the one below, and 10 at
least."""
SMALL, FEW = 20_000, 28
"""So many clusters in one level up to so many images, where the paper's numbers balance less: docs/scale.md."""
IN_MEMORY = 2 << 30
"""Bytes of points around centroids that are kept in memory."""


@dataclass(eq=False)
class LevelsFromBelow:
    """k-means of (N, D) rows, then of the centroids of each level.

    Args:
        clusters: numbers of clusters from the lowest level up, each smaller than the one before.
        resamplings: how often k-means is repeated on each level, with the points nearest to its centroids.
        seed: of all random draws.
        scratch: a folder for points that are more than fit in memory.

    Attributes:
        labels_: (N,) int64, clusters of the lowest level.
        cluster_centers_: (K, D) float32 centroids of the lowest level.
        parents_: of each level but the highest, the cluster above of each of its clusters, -1 = it is empty.
    """

    clusters: Sequence[int]
    resamplings: int = 10
    seed: int = 0
    scratch: Path | None = None

    def fit_predict(self, X: Any) -> np.ndarray:
        """(N,) int64 clusters of the lowest level, of rows that may lie in a file larger than memory."""
        self.cluster_centers_, self.labels_ = self._level(X, 0)
        self.parents_: list[np.ndarray] = []
        centroids, label = self.cluster_centers_, self.labels_
        for level in range(1, len(self.clusters)):
            used = torch.from_numpy(np.unique(label))
            parent = np.full(len(centroids), -1, np.int64)
            centroids, label = self._level(centroids[used], level)
            parent[used.numpy()] = label
            self.parents_.append(parent)
        return self.labels_

    def _level(self, points: Any, level: int) -> tuple[Tensor, np.ndarray]:
        """(K, D) centroids of the points (n, D), and the cluster of each (n,)."""
        rows = Rows(points)
        k = min(self.clusters[level], rows.n)
        centroids = self._k_means(points, k, level, 0)
        label, squared = nearest(Points(rows), centroids)
        each = max(2, rows.n // (2 * k))  # half of what a cluster has on average: below it all points would be taken
        for step in range(1, self.resamplings + 1):
            chosen = torch.from_numpy(nearest_members(label.numpy(), squared.numpy(), each))
            if len(chosen) < k:  # several clusters are empty: there are hardly more different points than clusters
                break
            with scratch_table(len(chosen), rows, self.scratch, 0 if is_spread() else IN_MEMORY) as table:
                over_rows(_take, [chosen, table], rows)
                centroids = self._k_means(table, k, level, step)
            label, squared = nearest(Points(rows), centroids)
        return centroids, label.numpy()

    def _k_means(self, points: Any, k: int, *key: int) -> Tensor:
        seed = seed_of(self.seed, CLUSTERS, *key) & 0x7FFFFFFF
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateClusters)  # empty clusters are left out
            centers = KMeans(k, init="k-means++", random_state=seed).fit(points).cluster_centers_
        return torch.as_tensor(centers).float()


def _take(index: Tensor, into: Any, rows: Rows) -> None:
    """Fills a table with the rows at `index`."""
    step = Points(rows).step
    for first in range(0, len(index), step):
        write_rows(into, first, rows.take(index[first : first + step]))


def default_levels(images: int) -> list[int]:
    """Numbers of clusters from the lowest level up, for so many images."""
    if images <= SMALL:
        return [max(1, min(FEW, math.isqrt(images)))]
    levels = [images // IMAGES_EACH]
    while len(levels) < MOST_LEVELS and levels[-1] // NARROWING >= FEWEST:
        levels.append(levels[-1] // NARROWING)
    return levels


def check_levels(clusters: Sequence[int], images: int) -> None:
    """Raises DeepClusterError unless the numbers of clusters fall from level to level, and the images are as many."""
    if not clusters or clusters[-1] < 1 or clusters[0] > images or (np.diff(clusters) >= 0).any():
        given = " ".join(map(str, clusters))
        raise DeepClusterError(
            f"--clusters {given} are no levels of {images:,} images: give numbers from the lowest level up, each"
            f" smaller than the one before and the first at most {images}."
        )


def nearest_members(label: np.ndarray, distance: np.ndarray, each: int) -> np.ndarray:
    """Ascending places of the `each` members nearest to the centroid of every cluster, or all where it has fewer.

    Args:
        label: (N,) clusters.
        distance: (N,) to their centroids.
    """
    order = np.lexsort((distance, label))
    sizes = np.bincount(label)
    rank = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < each])


def members_of(label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each cluster that is not empty, with the ascending places of its members; those labeled -1 are in none."""
    order = np.argsort(label, kind="stable")
    order = order[label[order] >= 0]
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        if len(members):
            yield int(label[members[0]]), members


def share_out(total: int, sizes: np.ndarray) -> np.ndarray:
    """How many of `total` to take from each of (K,) clusters, as evenly as their sizes permit: all of the small ones
    and equally many of the others, like water in vessels that are joined. What is left over goes to the first
    that have more."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the highest level for which there is enough
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    taken: np.ndarray = np.minimum(sizes, low)
    taken[np.flatnonzero(sizes > low)[: total - int(taken.sum())]] += 1
    return taken


def sizes_of(label: np.ndarray, parents: Sequence[np.ndarray], clusters: Sequence[int]) -> list[np.ndarray]:
    """How many of the images labeled (N,) are in each cluster of each level, from the lowest up."""
    sizes = [np.bincount(label[label >= 0], minlength=clusters[0])]
    for parent, k in zip(parents, clusters[1:], strict=True):
        above = np.zeros(k, np.int64)
        np.add.at(above, parent[parent >= 0], sizes[-1][parent >= 0])
        sizes.append(above)
    return sizes


def balanced_sample(
    size: int, label: np.ndarray, parents: Sequence[np.ndarray], clusters: Sequence[int], *, seed: int = 0
) -> np.ndarray:
    """Ascending places of `size` images: shared out to the highest clusters, within each of these to the clusters
    below, and drawn at random within the lowest. A larger sample holds the smaller one.

    Args:
        label: (N,) cluster of the lowest level, -1 = not to be taken.
        parents: as in `LevelsFromBelow`.
        clusters: how many there are on each level.
    """
    sizes = sizes_of(label, parents, clusters)
    share = share_out(size, sizes[-1])
    for parent, below in zip(reversed(parents), reversed(sizes[:-1]), strict=True):
        taken = np.zeros_like(below)
        for cluster, children in members_of(parent):
            taken[children] = share_out(int(share[cluster]), below[children])
        share = taken
    drawn = [np.empty(0, np.int64)]
    for cluster, members in members_of(label):
        order = torch.randperm(len(members), generator=seeded(seed, DRAW, cluster))
        drawn.append(members[order[: int(share[cluster])].numpy()])
    return np.sort(np.concatenate(drawn))
