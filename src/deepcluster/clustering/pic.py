"""Power iteration clustering of a nearest-neighbor graph, under scikit-learn's names.

The graph G has an edge from each row i to each of its n nearest others j, of weight
w_ij = exp(-|x_i - x_j|^2 / sigma^2), and none from a row to itself. A power iteration on A = G + G^T (where an
edge that goes both ways counts twice) gives each row a height v_i; each row then points to the neighbor
that takes it uphill most, and those that lead to the same local maximum are one cluster. How many clusters
there are is an outcome. Two versions are offered by name:

=================  ============================================  ==========================================
                   "paper" (arXiv 1807.05520, appendix)          "published" (the authors' code)
=================  ============================================  ==========================================
start              v = 1/n                                       v = 1/n
one round          v <- alpha A v + (1 - alpha) v, then v / |v|  v <- alpha A v + (1 - alpha) / n, then v / |v|
what damps         the last v                                    a uniform vector
norm               L1; A is not row-normalized                   L1; A is not row-normalized
rounds             not stated: `max_iter`, `tol`                 200, no test of convergence
uphill             along edges of G, largest w_ij (v_j - v_i)    along edges of A, both ways, same measure
clusters           components of these edges                     the same
a row left alone   not stated: as in the code                    joins its nearest neighbor that is not alone
=================  ============================================  ==========================================

**Why v is never compared itself.** Whitened rows of unit length lie at |x_i - x_j|^2 of 1 to 2 from their
neighbors, so with sigma = .2 weights are e^-25 to e^-50 and v_i differs from 1/n by one part in 10^15 or
less: in float64 all differences would round to zero and every row be a local maximum. Hence v is kept as
`base` + `scale` * `height_i`, where the base is what all rows share. Each round maps the three on their own,
by sums and products of non-negative numbers alone, so every height keeps all its digits; and since
v_j - v_i = scale (height_j - height_i), heights are all the ascent needs. The weights are divided by their
largest, which goes into the scale, so that they do not underflow together. Two rows that are each other's
nearest, by more than 30 sigma^2 of squared distance (1.2 for .2), count as level: float64 holds no more.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClusterMixin

from deepcluster.clustering import validation
from deepcluster.clustering.assign import group_means, squared_distances
from deepcluster.clustering.points import Points
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import in_kind
from deepcluster.features.knn import nearest_rows
from deepcluster.features.parallel import team
from deepcluster.features.row_partition import centered, shard_of

ROUNDING = 2.0**-43  # part of a height by which two that are equal may differ after 200 rounds in float64


@dataclass(eq=False, repr=False)
class PIC(ClusterMixin, BaseEstimator):
    """Power iteration clustering as in the appendix of arXiv 1807.05520, or as in its published code.

    Rows are taken as they are; the paper whitens and L2-normalizes them first (`Whitening`). The search
    for neighbors is exact and reads rows in blocks from memory or from a memory-mapped file; graph and
    iteration take about 200 bytes a row and neighbor. Nothing is drawn: the same rows give the same clusters.

    Args:
        n_neighbors: edges from each row.
        sigma: width of the weights exp(-distance^2 / sigma^2).
        alpha: part of the graph in each round, between 0 and 1.
        version: "paper" or "published"; the table at the head of this file says how they differ.
        max_iter: rounds; 200 are the published code's, the paper states no number.
        tol: stop when the L1 change of v in a round is no more than this; 0 = always `max_iter` rounds.
        join_singletons: a cluster of one row joins that of its nearest neighbor whose cluster is larger
            (sizes before any joins); where all its neighbors are alone too, it stays.
        device: where neighbors are searched for; None = where x is (arrays: the CPU). The rest is on the CPU.

    Attributes:
        labels_: (N,) int64, 0 to K-1: the largest cluster first, equal ones by their first row.
        n_clusters_: K.
        cluster_centers_: (K, D) means of the clusters' rows; float32, or float64 as in `KMeans`.
        roots_: (K,) int64, the row that is each cluster's local maximum.
        stationary_: (N,) float64, v after the last round; sums to 1.
        heights_: (N,) float64, v less what all rows share, in a unit of its own: the digits of v's
            differences, which v itself cannot hold.
        inertia_: sum of squared distances of the rows to their cluster's mean.
        n_iter_: rounds done.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns, where X is a data frame.

    Tensors in give tensors out, on the same device; arrays in give arrays out.
    """

    n_neighbors: int = 5
    sigma: float = 0.2
    alpha: float = 0.001
    _: KW_ONLY
    version: str = "paper"
    max_iter: int = 200
    tol: float = 0.0
    join_singletons: bool = True
    device: torch.device | str | None = None

    @validation.all_or_nothing
    def fit(self, X: Any, y: None = None) -> PIC:
        """Cluster the rows of X (N, D), which `predict` keeps a reference to.

        Raises:
            DeepClusterError: no more rows than neighbors, a row with NaN or infinity, X or an argument of
                the wrong kind.
        """
        validation.check_arguments(
            self,
            n_neighbors=validation.count(self.n_neighbors),
            max_iter=validation.count(self.max_iter),
            sigma=validation.positive(self.sigma),
            alpha=(0 < self.alpha < 1, "between 0 and 1"),
            tol=(self.tol >= 0, "0 or more"),
            version=validation.choice(self.version, "paper", "published"),
        )
        rows = validation.read_table(self, X, reset=True, min_samples=2)
        rows = centered(rows, shard_of(rows))
        near, squared = nearest_rows(rows, self.n_neighbors, device=self.device)
        graph, scale = weights(near, squared, self.sigma)
        both_ways = symmetric(graph)
        base, height, self.n_iter_ = iterate(
            both_ways, scale, alpha=self.alpha, version=self.version, max_iter=self.max_iter, tol=self.tol
        )
        root = follow(uphill(graph if self.version == "paper" else both_ways, height))
        summit, label = np.unique(root, return_inverse=True)
        if self.join_singletons:
            label = joined(label, near)
        label, order = by_size(label)
        own = torch.from_numpy(label).to(rows.device)
        self.n_clusters_ = len(order)
        with team():
            centers = group_means(rows, own, self.n_clusters_)
            self.inertia_ = float(squared_distances(Points(rows), own, centers).sum(dtype=torch.float64))
        self._x, self._label = rows.x, own
        self.labels_ = in_kind(own, X)
        self.cluster_centers_ = validation.absolute(centers, rows.origin, X)
        self.roots_ = in_kind(torch.from_numpy(summit[order]), X)
        self.heights_ = in_kind(torch.from_numpy(height), X)
        self.stationary_ = in_kind(torch.from_numpy(base + scale * height), X)
        self._warn_of_degenerate(label)
        return self

    def _warn_of_degenerate(self, label: np.ndarray) -> None:
        sizes = np.bincount(label)
        if (lone := int((sizes == 1).sum())) > len(label) / 2:
            message = (
                f"{lone} of {len(label)} rows are a cluster of their own: remove rows that are there several times, or "
                f"raise n_neighbors (now {self.n_neighbors}) above their number, or sigma (now {self.sigma})."
            )
        elif len(sizes) == 1:
            message = f"All {len(label)} rows are one cluster: they are equal, or sigma ({self.sigma}) is too large."
        else:
            return
        warnings.warn(message, validation.DegenerateClusters, stacklevel=4)  # of whoever calls fit

    def predict(self, X: Any) -> Any:
        """(N,) int64, the cluster of the fitted row nearest to each row of X (N, D).

        A row that equals several fitted ones gets the cluster of the first of them.
        """
        asked = validation.read_table(self, X)
        near, _ = nearest_rows(self._x, 1, queries=asked, device=self.device)
        return in_kind(self._label[torch.as_tensor(near, device=self._label.device)[:, 0]], X)


def weights(near: np.ndarray, squared: np.ndarray, sigma: float) -> tuple[sparse.csr_array, float]:
    """The directed graph of neighbors (N, n) at squared distances (N, n).

    Returns:
        (N, N) weights exp(-distance^2 / sigma^2) over a scale, with which the largest is 1; and the scale,
        zero where it is too small for float64.
    """
    with np.errstate(over="ignore"):  # infinitely far for this sigma: weight zero
        exponent = np.square(np.sqrt(squared, dtype=np.float64) / sigma)
    least = exponent.min()
    if not np.isfinite(least):
        raise DeepClusterError(f"sigma {sigma} is too small for any two of these rows to be neighbors; raise it.")
    near, place = np.sort(near, axis=1), np.argsort(near, axis=1)
    value = np.exp(least - np.take_along_axis(exponent, place, 1))
    n, count = near.shape
    begins = np.arange(0, n * count + 1, count)
    return sparse.csr_array((value.ravel(), near.ravel(), begins), shape=(n, n)), float(np.exp(-least))


def symmetric(graph: sparse.csr_array) -> sparse.csr_array:
    """G + G^T with columns in order; edges of weight zero stay, so that every row has one."""
    edges = graph.tocoo()
    ends = np.concatenate([edges.row, edges.col]), np.concatenate([edges.col, edges.row])
    return sparse.coo_array((np.tile(edges.data, 2), ends), shape=graph.shape).tocsr()


def iterate(
    graph: sparse.csr_array, scale: float, *, alpha: float, version: str, max_iter: int, tol: float
) -> tuple[float, np.ndarray, int]:
    """Power iteration on `scale` times a symmetric graph (N, N) from v = 1/n.

    Returns:
        base, heights (N,) and rounds done, where v = base + scale * heights; see the head of this file.
    """
    n = graph.shape[0]
    base, height = 1 / n, np.zeros(n)
    done = 0
    while done < max_iter:
        done += 1
        new = alpha * (graph @ (base + scale * height))
        if version == "paper":
            new += (1 - alpha) * height
            new_base = (1 - alpha) * base
        else:
            new_base = (1 - alpha) / n
        total = n * new_base + scale * new.sum()
        new_base, new = new_base / total, new / total
        change = np.abs(new_base - base + scale * (new - height)).sum()
        base, height = new_base, new
        if tol > 0 and change <= tol:
            break
    return base, height, done


def uphill(graph: sparse.csr_array, height: np.ndarray) -> np.ndarray:
    """(N,) the neighbor j of each row i with the largest w_ij (height_j - height_i), itself where none is positive.

    Heights that differ by rounding alone are level, and of neighbors that are equally good but for rounding
    the first is taken, so that the order in which sums were made decides nothing.
    """
    begins, target = graph.indptr[:-1], graph.indices
    source = np.repeat(np.arange(len(height)), np.diff(graph.indptr))
    strongest = np.maximum.reduceat(graph.data, begins)
    weight = graph.data / np.where(strongest > 0, strongest, 1)[source]  # their products must not underflow
    rounding = ROUNDING * height[target]
    gain = height[target] - height[source]
    gain = np.where(gain > rounding, gain, 0)
    value = weight * gain
    best = np.maximum.reduceat(value, begins)
    good = (value > 0) & (weight * (gain + rounding) >= best[source])
    first = np.minimum.reduceat(np.where(good, target, len(height)), begins)
    return np.where(first < len(height), first, np.arange(len(height)))


def follow(pointer: np.ndarray) -> np.ndarray:
    """(N,) where each row ends that follows pointers (N,) without cycles; each turn doubles the steps taken."""
    while True:
        further = pointer[pointer]
        if np.array_equal(further, pointer):
            return pointer
        pointer = further


def joined(label: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Labels (N,) after each row that is alone has joined the first of its neighbors (N, n) that is not."""
    alone = np.bincount(label)[label] == 1
    single = np.flatnonzero(alone)
    company = ~alone[near[single]]
    chosen = near[single, company.argmax(1)]
    moved = company.any(1)
    label = label.copy()
    label[single[moved]] = label[chosen[moved]]
    return label


def by_size(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) renamed 0..K-1 by descending size, then by first row; and (K,) what each was called before."""
    old, first, name, size = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -size))
    new = np.empty(len(old), np.int64)
    new[order] = np.arange(len(old))
    return new[name], old[order]
