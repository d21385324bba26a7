"""k-means on any device, for tables larger than memory: initialization, Lloyd's iterations, empty clusters.

One iteration is one step (assign.py): (points, centroids) -> labels, and sums and counts of the clusters, of all
processes. `fit` comes first, then what it calls, in the order of the calls.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from deepcluster.clustering import assign, assign_int8, assign_margins, validation
from deepcluster.clustering.plus_plus import greedy_plus_plus, random_rows
from deepcluster.clustering.points import Points
from deepcluster.clustering.tally import Step, iteration_stats, means_of
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind, normalize_rows, require_finite
from deepcluster.features.parallel import team
from deepcluster.features.row_partition import centered, common_seed, shard_of
from deepcluster.random import seeded

INT8_FROM = 256  # clusters from which 8-bit products save more than they cost
MARGINS_FROM = 64  # clusters from which passing over settled points does
SPLIT = 1 / 1024  # how far the two halves of a split cluster are moved apart, as in faiss


@dataclass(eq=False, repr=False)
class KMeans(validation.Float32Transformer, ClusterMixin, BaseEstimator):
    """Lloyd's k-means as in the paper (arXiv 1807.05520 §3.3), a scikit-learn estimator.

    Rows are read in blocks, so X may be a `numpy.memmap` of a file larger than memory. After the last update every
    row is assigned once more, in float32: `labels_` always equals `predict(X)`, and `inertia_` belongs to both.

    Args:
        n_clusters: K.
        max_iter: largest number of iterations.
        init: "random" (K different rows), "k-means++" (greedy, as in scikit-learn), or (K, D) initial centroids.
        spherical: cluster by angle; rows are scaled to unit length and so are centroids.
        tol: stop when the objective falls by no more than this part of itself; 0 = when no row changes its cluster.
        n_init: runs from different starts, the best of which is kept; "auto" = 10 of "random" and 1 of
            "k-means++"; always 1 where `init` is an array.
        random_state: int, `numpy.random.RandomState`, or None = NumPy's global one.
        chunk: rows per reading from disk, in multiples of 1,024; None = 64 MiB of them. It changes no result.
        precision: of the products: "float32", "bfloat16", "int8" (with close cases in float32; on CPUs with VNNI), or
            "auto": int8 where it pays, else float32. On CPUs the last two pass over settled points (assign_margins.py).
        device: where to compute; None = where X is (arrays: the CPU).
        backend: "torch", or "faiss" (float32, on the CPU, in memory, without weights).
        empty: "split" gives an empty cluster half of another one after each update, and at the end the
            farthest point; "keep" leaves its centroid where it is.
        group: the processes that cluster together. All call `fit`, each with its own rows of one table: those of
            process 0 come first, and a process may have none. Centroids, inertia and objectives are then those
            of the whole table and the same on every process, `labels_` are those of the process's own rows, and
            `predict`, `transform` and `score` concern nobody else. Where each process's rows begin at a multiple of
            1,024, as `ProcessGroup.row_range` cuts them, the result does not depend on the number of processes, to
            the last bit on CPUs. None = one process.

    Attributes:
        cluster_centers_: (K, D) float32; float64 where X is and lies too far from zero for float32.
        labels_: (N,) int64.
        inertia_: (weighted) sum of squared distances of the rows to their centroids (spherical: of unit rows).
        n_iter_: iterations done.
        objectives_: the objective at each iteration's assignment, before its update.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns, where X is a data frame.

    Tensors in give tensors out, on the same device; arrays and data frames in give arrays out.
    """

    n_clusters: int = 8
    _: KW_ONLY
    max_iter: int = 20
    init: Any = "random"
    spherical: bool = False
    tol: float = 0.0
    n_init: int | str = 1
    random_state: Any = None
    chunk: int | None = None
    precision: str = "auto"
    device: torch.device | str | None = None
    backend: str = "torch"
    empty: str = "split"
    group: ProcessGroup | None = None

    @validation.all_or_nothing
    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> KMeans:
        """Cluster the rows of X (N, D).

        Args:
            sample_weight: (N,) weights; an integer weight counts like as many equal rows, 0 like none.

        Raises:
            DeepClusterError: fewer rows than clusters, a row with NaN or infinity, X or an argument of
                the wrong kind; on all processes alike.
        """
        self.check_arguments()
        with team():
            original = self._read_points(X, sample_weight)
            points, moments = original, original.moments
            # products lose the digits that a large common offset takes: work about the mean where it is large
            if not self.spherical and float(moments.mean.square().sum()) * moments.weight > moments.square / 2:
                points = original.about(moments.mean.float())
                points.hold()
            seed = common_seed(points.shard.group, validation.seed_from(self.random_state))
            self.inertia_ = math.inf
            for run in range(self._runs()):
                generator = seeded(seed, run)
                start = self._initial_centroids(points, generator)
                centroids, objectives = self._iterate(points, start, generator)
                if points.offset is not None:
                    centroids = centroids + points.offset
                centroids, labels, squared = settle(original, centroids, self.empty == "split")
                inertia = original.total(squared)
                if inertia < self.inertia_:
                    self.inertia_, self.objectives_, self._centroids, best = inertia, objectives, centroids, labels
        self._origin = points.rows.origin
        self.labels_, self.cluster_centers_ = in_kind(best, X), validation.absolute(self._centroids, self._origin, X)
        self.n_iter_ = len(self.objectives_)
        found = int((points.shard.group.sum_(original.counts(best, self.n_clusters)) > 0).sum())
        if points.shard.group.is_first:
            why = "there are fewer distinct rows than clusters" if self.empty == "split" else "the others have no rows"
            validation.warn_of_empty(found, self.n_clusters, f"{why}; ask for fewer clusters")
        return self

    def check_arguments(self) -> None:
        """Raises DeepClusterError where an argument cannot be."""
        count, choice = validation.count, validation.choice
        validation.check_arguments(
            self,
            n_clusters=count(self.n_clusters),
            max_iter=count(self.max_iter),
            n_init=count(1 if self.n_init == "auto" else self.n_init),
            precision=choice(self.precision, "auto", "float32", "bfloat16", "int8"),
            backend=choice(self.backend, "torch", "faiss"),
            empty=choice(self.empty, "split", "keep"),
            init=choice(self.init, "random", "k-means++") if isinstance(self.init, str) else (True, ""),
            tol=(self.tol >= 0, "0 or more"),
        )
        if self.backend == "faiss" and self.group is not None and not self.group.is_single:
            raise DeepClusterError(f"backend='faiss' clusters in one process, not in {self.group.size}; take 'torch'.")

    def _read_points(self, X: Any, sample_weight: Any) -> Points:
        group = self.group or SINGLE
        with group.collective_section():
            rows = validation.read_table(self, X, reset=True)
            weight = validation.read_weights(sample_weight, rows)
        shard = shard_of(rows, group)
        validation.require_rows(shard.total, self.n_clusters)
        if not self.spherical:
            rows = centered(rows, shard)
        points = Points(rows, self.spherical, self.chunk, shard=shard, weight=weight)
        if points.heaviest == 0:
            raise DeepClusterError("Sample weights must contain at least one non-zero number.")
        with group.collective_section():
            points.hold()
        return points

    def _runs(self) -> int:
        if not isinstance(self.init, str):
            return 1
        if self.n_init == "auto":
            return 10 if self.init == "random" else 1
        return int(self.n_init)

    def _initial_centroids(self, points: Points, generator: torch.Generator) -> Tensor:
        if isinstance(self.init, str):
            return (greedy_plus_plus if self.init == "k-means++" else random_rows)(points, self.n_clusters, generator)
        given = Rows(self.init, points.device, name="init centroids")
        if (given.n, given.dim) != (self.n_clusters, points.dim):
            raise DeepClusterError(
                f"init centroids are of shape {(given.n, given.dim)} but {self.n_clusters} clusters of "
                f"{points.dim}-wide rows need {(self.n_clusters, points.dim)}."
            )
        given.origin = points.rows.origin
        centroids = Points(given, points.spherical, offset=points.offset).take(torch.arange(given.n))
        if not torch.isfinite(centroids).all():
            raise DeepClusterError("init centroids hold NaN or infinity; give finite ones or init='random'.")
        return centroids.clone()

    def _iterate(self, points: Points, start: Tensor, generator: torch.Generator) -> tuple[Tensor, list[float]]:
        """Centroids and objectives of one run."""
        if self.backend == "faiss":
            from deepcluster.clustering.faiss_kmeans import faiss_lloyd

            return faiss_lloyd(points, start, max_iter=self.max_iter, seed=generator.initial_seed() & 0x7FFFFFFF)
        split_empty = self.empty == "split"
        return lloyd(points, start, self._step(points), self.max_iter, self.tol, split_empty, generator)

    def _step(self, points: Points) -> Step:
        """The step of this `precision`."""
        on_cpu, k = points.device.type == "cpu", self.n_clusters
        auto, int8 = on_cpu and self.precision == "auto", on_cpu and self.precision == "int8"
        if int8 or (auto and k >= MARGINS_FROM):
            usable = assign_int8.exact_products if int8 else assign_int8.supported
            round_it = (int8 or k >= INT8_FROM) and not points.shard.group.any(not usable())
            return assign_margins.MarginStep(points, k, assign_int8.Rounding(points) if round_it else None)
        return assign.nearest_step(points, k, half=self.precision == "bfloat16")

    def predict(self, X: Any) -> Any:
        """(N,) int64, the nearest centroid of each row of X (N, D)."""
        return in_kind(self._nearest(self._fitted_points(X))[0], X)

    def transform(self, X: Any) -> Any:
        """(N, K) float32 Euclidean distances of the rows of X (N, D) to the centroids."""
        return in_kind(assign.distances(self._fitted_points(X), self._centroids), X)

    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Minus the (weighted) sum of squared distances of the rows of X (N, D) to their nearest centroids."""
        points = self._fitted_points(X, sample_weight)
        return -points.total(self._nearest(points)[1])

    def _nearest(self, points: Points) -> tuple[Tensor, Tensor]:
        labels, squared = assign.nearest(points, self._centroids)
        require_finite(squared)
        return labels, squared

    def _fitted_points(self, X: Any, sample_weight: Any = None) -> Points:
        rows = validation.read_table(self, X)
        rows.origin = self._origin
        self._centroids = self._centroids.to(rows.device)
        return Points(rows, self.spherical, self.chunk, weight=validation.read_weights(sample_weight, rows))


def lloyd(
    points: Points,
    centroids: Tensor,
    step: Step,
    max_iter: int,
    tol: float,
    split_empty: bool,
    generator: torch.Generator,
) -> tuple[Tensor, list[float]]:
    """At most `max_iter` iterations of assignment and update from the given (K, D) centroids.

    Stops early when no point changes its cluster, or when the objective fell by at most tol times itself.

    Returns:
        (K, D) centroids, and the objective at each assignment.
    """
    objectives: list[float] = []
    for _ in range(max_iter):
        found = step(centroids)
        value, moved, empty = iteration_stats(found, centroids, points.moments.square)
        objectives.append(value)
        if not moved:
            break
        centroids = means_of(found.sums, found.counts, centroids)
        if split_empty and empty:
            centroids = split(centroids, found.counts, generator)
        if points.spherical:
            centroids = normalize_rows(centroids)
        if tol > 0 and len(objectives) > 1:
            last, now = objectives[-2:]
            if points.shard.group.any(last - now <= tol * last):
                break
    return centroids, objectives


def split(centroids: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Give every empty cluster half of another one, as the paper does (arXiv 1807.05520 §3.3).

    A donor is drawn with probability in proportion to its count less one; the empty cluster takes a copy
    of its centroid, and both are moved apart by 1/1024 of every coordinate, in alternating directions.
    No cluster gives twice before all that can have given once.
    """
    left = counts.cpu().double()
    empty = (left == 0).nonzero()[:, 0]
    if not len(empty):
        return centroids
    centroids = centroids.clone()
    apart = torch.full((centroids.shape[1],), SPLIT, device=centroids.device)
    apart[1::2] *= -1
    while len(empty):
        chance = (left - 1).clamp_min(0)
        if not chance.any():  # weights below 1
            break
        donors = torch.multinomial(chance, min(len(empty), int((chance > 0).sum())), generator=generator)
        now, empty = empty[: len(donors)], empty[len(donors) :]
        left[now] = (left[donors] / 2).floor()
        left[donors] -= left[now]
        copy = centroids[donors]
        centroids[now], centroids[donors] = copy * (1 + apart), copy * (1 - apart)
    return centroids


def settle(points: Points, centroids: Tensor, fill_empty: bool, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """The final assignment, consistent with the centroids that are returned with it.

    The paper's splitting acts within iterations only, so clusters can be empty at the end. Where
    `fill_empty`, each then gets for centroid the point that lies farthest from its own, one point per
    cluster, and all centroids move to the means once more, both of which can only lower the objective; a
    cluster stays empty only where fewer distinct points than clusters are left.

    Returns:
        (K, D) centroids, (N,) labels and (N,) squared distances of this process's points.
    """
    labels, squared = assign.nearest(points, centroids)
    for _ in range(rounds if fill_empty else 0):
        empty = (points.shard.group.sum_(points.counts(labels, len(centroids))) == 0).nonzero()[:, 0]
        if not len(empty):
            break
        far = squared if points.weight is None else squared * (points.weight > 0)
        index, distance = points.shard.largest(far, len(empty))
        taken = points.take(index)
        # rounding leaves a distance of about 1e-7 of a point's length between it and an equal centroid
        taken = taken[distance > 1e-12 * taken.square().sum(1)]
        if not len(taken):
            break
        centroids = centroids.clone()
        centroids[empty[: len(taken)]] = taken
        labels, _ = assign.nearest(points, centroids)
        centroids = assign.cluster_means(points, labels, centroids, points.moments.unit)
        if points.spherical:
            centroids = normalize_rows(centroids)
        labels, squared = assign.nearest(points, centroids)
    return centroids, labels, squared
