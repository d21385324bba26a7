"""k-means in levels: rows into super-clusters, the rows of each into clusters of its own, and so on.

As in DeeperCluster (arXiv 1905.01278 §3.2), which cuts m super-clusters into k / m clusters each: N rows are then
compared with m + k / m centroids instead of k.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from deepcluster.clustering import validation
from deepcluster.clustering.assign import distances, nearest
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.points import Points
from deepcluster.clustering.redistribute import Redistribution, scratch_table
from deepcluster.clustering.tree import descend
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind, require_finite
from deepcluster.features.parallel import over_calls, team
from deepcluster.features.row_partition import centered, common_seed, shard_of
from deepcluster.random import seed_of


@dataclass(eq=False, repr=False)
class HierarchicalKMeans(validation.Float32Transformer, ClusterMixin, BaseEstimator):
    """k-means in two or more levels, each super-cluster cut into as many clusters as any other.

    Cluster `label` lies in super-cluster `label // (n_clusters // m)` of m. A new row goes down greedily: to the
    nearest super-cluster, then to the nearest cluster within it, as the rows of `fit` did. Super-clusters are worked
    on one after another, each with its own rows only, so x may be a `numpy.memmap` of a file larger than memory.

    A super-cluster with fewer (different) rows than clusters leaves the rest of these empty. Empty ones keep their
    places, have a count of 0 and their super-cluster's centroid, and never are the nearest. All other parameters are
    those of `KMeans`.

    Args:
        n_clusters: K, of the last level.
        branches: children of each node at every level but the last: (4,) makes 4 super-clusters of K / 4, (4, 10)
            three levels. Their product must divide K. None = two levels, with as many super-clusters as the divisor
            of K that is nearest to its square root in ratio, the lower of two; where K is a prime that is 1.
        max_iter: largest number of rounds of each k-means (the paper: 10).
        init: "random" or "k-means++", where each k-means begins.
        scratch: a folder for the rows of a super-cluster that are more than `max_bytes`; None = the system's.
        max_bytes: largest table of a super-cluster's rows that is kept in memory, on each process.
        group: the processes that cluster together, each with its own rows of one table, as in `KMeans`. The rows of
            each super-cluster are redistributed evenly, so that all work on it wherever its rows lie.

    Attributes:
        labels_: (N,) int64.
        cluster_centers_: (K, D), those of the last level; float32, or float64 as in `KMeans`.
        levels_: the centroids of each level, (prod(branches[: i + 1]), D), the last being (K, D).
        counts_: rows of `fit` in each of them, (prod(branches[: i + 1]),) int64, of all processes.
        inertia_: sum of squared distances of the rows to the centroids of their clusters.
        n_iter_: most iterations of any of the k-means.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns, where X is a data frame.
    """

    n_clusters: int = 8
    _: KW_ONLY
    branches: Sequence[int] | None = None
    max_iter: int = 20
    init: str = "random"
    spherical: bool = False
    tol: float = 0.0
    n_init: int | str = 1
    random_state: Any = None
    chunk: int | None = None
    precision: str = "auto"
    device: torch.device | str | None = None
    scratch: str | Path | None = None
    max_bytes: int = 2 << 30
    group: ProcessGroup | None = None

    @validation.all_or_nothing
    def fit(self, X: Any, y: None = None) -> HierarchicalKMeans:
        """Cluster the rows of X (N, D).

        Raises:
            DeepClusterError: branches that do not divide n_clusters, fewer rows than clusters, a row with NaN or
                infinity, X or an argument of the wrong kind; on all processes alike.
        """
        self._k_means(self.n_clusters, 0).check_arguments()
        if not isinstance(self.init, str):
            raise DeepClusterError("init must be 'random' or 'k-means++': centroids cannot be given for each branch.")
        children = levels_for(self.n_clusters, self.branches)
        group = self.group or SINGLE
        with team(), warnings.catch_warnings():
            warnings.simplefilter("ignore", validation.DegenerateClusters)  # of one branch; said once, of all
            with group.collective_section():
                rows = validation.read_table(self, X, reset=True)
            shard = shard_of(rows, group)
            validation.require_rows(shard.total, self.n_clusters)
            if not self.spherical:
                rows = centered(rows, shard)
            seed = common_seed(group, validation.seed_from(self.random_state))
            found = self._grow(rows, children, seed)
        self._levels, self._counts = found.levels, found.counts
        self.inertia_, self.n_iter_ = math.fsum(found.inertias), found.rounds
        for depth in range(1, len(children)):  # empty clusters get their super-cluster's centroid
            above = self._levels[depth - 1].repeat_interleave(children[depth], 0)
            filled = self._counts[depth][:, None] > 0
            self._levels[depth] = torch.where(filled, self._levels[depth], above)
        self._origin, self.labels_ = rows.origin, in_kind(found.label, X)
        self.levels_ = [validation.absolute(level, rows.origin, X) for level in self._levels]
        self.counts_ = [in_kind(counts, X) for counts in self._counts]
        self.cluster_centers_ = self.levels_[-1]
        if group.is_first:
            why = "super-clusters have fewer distinct rows than clusters; ask for fewer clusters or other branches"
            validation.warn_of_empty(int((self._counts[-1] > 0).sum()), self.n_clusters, why)
        return self

    def _grow(self, rows: Rows, children: list[int], seed: int, depth: int = 0, node: int = 0) -> _Branch:
        """Cut the rows of a node down to the last level."""
        cut = self._cut(rows, children[depth], seed_for(seed, depth, node))
        if depth + 1 == len(children):
            return cut
        alone = HierarchicalKMeans(**self.get_params(deep=False))  # without what an earlier fit found
        sizes = torch.bincount(cut.label, minlength=children[depth]).tolist()
        members = torch.split(cut.label.argsort(stable=True), sizes)
        calls = [(index, node * children[depth] + child) for child, index in enumerate(members)]
        below = over_calls(_grow_branch, calls, alone, rows, children, seed, depth + 1)
        label, width = torch.empty_like(cut.label), math.prod(children[depth + 1 :])
        for child, (index, branch) in enumerate(zip(members, below, strict=True)):
            label[index] = child * width + branch.label
        return _Branch(
            label,
            cut.levels + [torch.cat(level) for level in zip(*(branch.levels for branch in below), strict=True)],
            cut.counts + [torch.cat(level) for level in zip(*(branch.counts for branch in below), strict=True)],
            [inertia for branch in below for inertia in branch.inertias],
            max(cut.rounds, *(branch.rounds for branch in below)),
        )

    def _cut(self, rows: Rows, children: int, seed: int) -> _Branch:
        """k-means of a node's rows; a branch of one level, with the labels of this process's rows."""
        shard = shard_of(rows, self.group or SINGLE)
        k = min(children, shard.total)
        run = self._k_means(k, seed).fit(rows)
        points = Points(rows, self.spherical, self.chunk, shard=shard)
        label, inertia = torch.as_tensor(run.labels_, device=rows.device), run.inertia_
        centroids = run._centroids.to(rows.device)  # about the origin of the rows
        alive = torch.arange(k, device=rows.device)
        while True:
            sizes = shard.group.sum_(points.counts(label, k)).long()
            if (sizes[alive] > 0).all():
                break
            # rounding of products depends on which centroids there are: go down as later rows will
            alive = (sizes > 0).nonzero()[:, 0]
            label, squared = nearest(points, centroids[alive])
            label, inertia = alive[label], points.total(squared)
        empty = _Branch.empty(rows, [children])
        empty.levels[0][:k], empty.counts[0][:k] = centroids, sizes
        return _Branch(label, empty.levels, empty.counts, [inertia], run.n_iter_)

    def _k_means(self, k: int, seed: int) -> KMeans:
        shared = ("max_iter", "init", "spherical", "tol", "n_init", "chunk", "precision", "device", "group")
        return KMeans(k, random_state=seed, **{name: getattr(self, name) for name in shared})

    def predict(self, X: Any) -> Any:
        """(N,) int64, the cluster of each row of X (N, D), going down greedily."""
        return in_kind(self._descended(X)[0], X)

    def transform(self, X: Any) -> Any:
        """(N, K) float32 Euclidean distances of the rows of X (N, D) to the last level's centroids."""
        points = Points(self._read(X), self.spherical, self.chunk)
        return in_kind(distances(points, self._levels[-1].to(points.device)), X)

    def score(self, X: Any, y: None = None) -> float:
        """Minus the sum of squared distances of the rows of X (N, D) to the centroids of their clusters."""
        squared = self._descended(X)[1]
        return -float(squared.sum(dtype=torch.float64))

    def _descended(self, X: Any) -> tuple[Tensor, Tensor]:
        labels, squared = descend(self._read(X), self._levels, self._counts, self.spherical)
        require_finite(squared)
        return labels, squared

    def _read(self, X: Any) -> Rows:
        rows = validation.read_table(self, X)
        rows.origin = self._origin
        return rows


@dataclass
class _Branch:
    """The tree below a node.

    Attributes:
        label: (n,) int64, the clusters of this process's rows of the node, counted from the node's first.
        levels, counts: of each level below the node, centroids (nodes, D) and rows of all processes (nodes,).
        inertias: of each k-means of the last level.
        rounds: most iterations of any k-means.
    """

    label: Tensor
    levels: list[Tensor]
    counts: list[Tensor]
    inertias: list[float]
    rounds: int

    @classmethod
    def empty(cls, rows: Rows, children: list[int]) -> _Branch:
        """Of a node without rows."""
        nodes = [math.prod(children[: depth + 1]) for depth in range(len(children))]
        levels = [torch.zeros(count, rows.dim, device=rows.device) for count in nodes]
        counts = [torch.zeros(count, dtype=torch.int64, device=rows.device) for count in nodes]
        return cls(torch.zeros(0, dtype=torch.int64, device=rows.device), levels, counts, [], 0)


def _grow_branch(
    index: Tensor, node: int, tree: HierarchicalKMeans, rows: Rows, children: list[int], seed: int, depth: int
) -> _Branch:
    """The branch of a node, to which the rows at `index` (n,) of this process's belong."""
    moved = Redistribution(tree.group or SINGLE, len(index))
    if moved.total == 0:
        return _Branch.empty(rows, children[depth:])
    with scratch_table(moved.n, rows, tree.scratch, tree.max_bytes) as table:
        moved.send(rows, index, table)
        part = Rows(table, rows.device, empty=True)
        found = tree._grow(part, children, seed, depth, node)
        del part
    found.label = moved.send_back(found.label)
    return found


def levels_for(n_clusters: int, branches: Sequence[int] | int | None) -> list[int]:
    """The children of a node at each level, the last included, as in `HierarchicalKMeans`.

    Raises:
        DeepClusterError: branches that are not whole numbers from 1 on, or do not divide n_clusters.
    """
    if branches is None:
        divisors = [number for number in range(1, math.isqrt(n_clusters) + 1) if n_clusters % number == 0]
        return [divisors[-1], n_clusters // divisors[-1]]
    given = [branches] if isinstance(branches, (int, np.integer)) else list(branches)
    for each in given:
        if not isinstance(each, (int, np.integer)) or each < 1:
            raise DeepClusterError(f"branches must be whole numbers of at least 1, not {each!r}.")
    product = math.prod(given)
    if n_clusters % product:
        lower = max(1, n_clusters // product) * product
        raise DeepClusterError(
            f"{n_clusters} clusters cannot be shared out evenly to {product} branches; ask for {lower} or "
            f"{lower + product} clusters, or other branches."
        )
    return [*(int(each) for each in given), n_clusters // product]


def seed_for(seed: int, depth: int, node: int) -> int:
    """The seed of the k-means that cuts one node of a level."""
    return seed_of(seed, depth, node) & 0x7FFFFFFF
