"""k-means under scikit-learn's names, on any device, for tables larger than memory.

This is the public class: arguments, checks and results. The work is in seeding.py, lloyd.py and nearest.py.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering import assign_int8
from deepcluster.clustering.exact_sum import unit_for
from deepcluster.clustering.grammar import Clusterer
from deepcluster.clustering.init import plus_plus, random_rows
from deepcluster.clustering.lloyd import (
    BLOCK_NUMBERS,
    Moments,
    Points,
    Solution,
    assign,
    lloyd,
    moments,
    settle,
    total_of,
)
from deepcluster.clustering.nearest import Plain, Search
from deepcluster.clustering.row_partition import agreed, common_seed, shard_of
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind, write_rows
from deepcluster.features.parallel import team
from deepcluster.random import seeded

SCREEN_FROM = 256  # clusters from which 8-bit products save more than they cost
EXACT = "donot_use_mm_for_euclid_dist"


class KMeans(Clusterer):
    """Lloyd's k-means as in the paper (arXiv 1807.05520 §3.3).

    Rows are read in blocks, so x may be a `numpy.memmap` of a file larger than memory, and N x K
    distances are never held. After the last update every row is assigned once more, in float32, to the
    final centroids: `labels_` always equals `predict(x)`, and `inertia_` belongs to both.

    Args:
        n_clusters: K.
        max_iter: largest number of rounds of assignment and update.
        init: "random" (K different rows), "k-means++" (drawn in growing batches), or a (K, D) array or
            tensor of centroids to start from, such as those of the last clustering.
        spherical: cluster by angle; rows are taken at unit length and centroids are kept at it.
        tol: stop when the objective falls by no more than this part of itself in a round; 0 = stop only
            when no row changes its cluster.
        n_init: runs from different starts, the best of which is kept; 1 for an array as `init`.
        random_state: seed; the same seed gives the same result. None = different every time.
        chunk: rows per reading from disk, in multiples of 1,024; None = 64 MiB of them. It changes no result.
        precision: of the products in the iterations. "float32"; "bfloat16", for devices with units for
            it; "int8" screens by 8-bit products and decides close cases in float32 (CPUs with VNNI);
            "auto" takes int8 where it pays and float32 elsewhere. The final assignment is always float32.
        device: where to compute; None = where x is (arrays: the CPU).
        backend: "torch", or "faiss" (float32, on the CPU, in memory).
        empty: "split" gives an empty cluster half of another one after each update, and at the end the
            farthest point; "keep" leaves its centroid where it is.
        group: the processes that cluster together. All call `fit`, each with its own rows of one table: those of
            process 0 come first, and a process may have none. Centroids, inertia and objectives are then those
            of the whole table and the same on every process, `labels_` are those of the process's own rows, and
            `predict` and `transform` concern nobody else. Where shares begin at multiples of 1,024 rows, as
            `ProcessGroup.row_range` cuts them, the result does not depend on the number of processes, to the last bit
            on CPUs.

    Attributes:
        cluster_centers_: (K, D) float32.
        labels_: (N,) int64.
        inertia_: sum of squared distances of the rows to their centroids (spherical: of unit rows).
        n_iter_: rounds done.
        objectives_: the objective at each round's assignment, before its update.
        n_features_in_: D.

    Tensors in give tensors out, on the same device; arrays in give arrays out.
    """

    cluster_centers_: Any
    labels_: Any
    inertia_: float
    n_iter_: int
    objectives_: list[float]
    n_features_in_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        max_iter: int = 20,
        init: Any = "random",
        spherical: bool = False,
        tol: float = 0.0,
        n_init: int = 1,
        random_state: int | None = None,
        chunk: int | None = None,
        precision: str = "auto",
        device: torch.device | str | None = None,
        backend: str = "torch",
        empty: str = "split",
        group: ProcessGroup = SINGLE,
    ):
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.init = init
        self.spherical = spherical
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state
        self.chunk = chunk
        self.precision = precision
        self.device = device
        self.backend = backend
        self.empty = empty
        self.group = group

    def fit(self, x: Any, y: None = None) -> KMeans:
        """Cluster the rows of x (N, D).

        Raises:
            DeepClusterError: fewer rows than clusters, a row with NaN or infinity, x or an argument of
                the wrong kind; on all processes alike.
        """
        self.check()
        with team():
            return self._fit(x)

    def _fit(self, x: Any) -> KMeans:
        rows = agreed(self.group, lambda: Rows(x, self.device, empty=not self.group.is_single))
        shard = shard_of(rows, self.group)
        require_rows(shard.total, self.n_clusters)
        seen = points = Points(rows, self.spherical, self.chunk, shard=shard)
        facts = moments(points)
        unit = unit_for(facts.peak, shard.total)
        # products lose the digits that a large common offset takes: work about the mean where it is large
        if not self.spherical and float(facts.mean.square().sum()) * shard.total > facts.square / 2:
            points = points.about(facts.mean.float())
            facts = moments(points)
        given = None if isinstance(self.init, str) else self._given_centroids(points)
        self.inertia_ = float("inf")
        for run in range(1 if given is not None else self.n_init):
            once = self._run(points, facts, given, run)
            if points.offset is not None:
                once.centroids = once.centroids + points.offset
            centroids, assignment, distance = settle(seen, once.centroids, self.empty == "split", unit)
            inertia = total_of(seen, distance)
            if inertia < self.inertia_:
                self.inertia_, solution, label, self._centroids = inertia, once, assignment, centroids
        self.cluster_centers_ = in_kind(self._centroids, x)
        self.labels_ = in_kind(label, x)
        self.objectives_ = solution.objectives
        self.n_iter_ = len(solution.objectives)
        self.n_features_in_ = rows.dim
        return self

    def _run(self, points: Points, facts: Moments, given: Tensor | None, run: int) -> Solution:
        seed = common_seed(self.group, secrets.randbits(31) if self.random_state is None else int(self.random_state))
        generator = seeded(seed, run)
        start = given
        if start is None:
            start = (plus_plus if self.init == "k-means++" else random_rows)(points, self.n_clusters, generator)
        if self.backend == "faiss":
            from deepcluster.clustering.faiss_kmeans import faiss_lloyd

            return faiss_lloyd(points, start, max_iter=self.max_iter, seed=seed)
        return lloyd(
            points,
            start,
            self._search(points, facts),
            facts=facts,
            max_iter=self.max_iter,
            tol=self.tol,
            split_empty=self.empty == "split",
            generator=generator,
        )

    def _search(self, points: Points, facts: Moments) -> Search:
        """`precision`, resolved for these points."""
        screened = self.precision == "int8"
        if self.precision == "auto":
            screened = points.device.type == "cpu" and self.n_clusters >= SCREEN_FROM
            screened = screened and not self.group.any(not assign_int8.supported())
        if screened:
            return assign_int8.Screen(points, square=facts.square, peak=facts.peak, longest=facts.longest)
        return Plain(half=self.precision == "bfloat16")

    def predict(self, x: Any) -> Any:
        """(N,) int64, the nearest centroid of each row of x (N, D)."""
        points = self._points(x)
        with team():
            return in_kind(assign(points, self._centroids)[0], x)

    def transform(self, x: Any, out: Any = None) -> Any:
        """(N, K) float32 Euclidean distances of the rows of x (N, D) to the centroids, into `out` if given."""
        return distances(self._points(x), self._centroids, x, out)

    def fit_transform(self, x: Any, y: None = None) -> Any:
        """`fit`, then `transform`, of the same rows."""
        return self.fit(x).transform(x)

    def __repr__(self) -> str:
        return f"KMeans(n_clusters={self.n_clusters}, max_iter={self.max_iter}, spherical={self.spherical})"

    def _points(self, x: Any) -> Points:
        if not hasattr(self, "_centroids"):
            raise DeepClusterError("This KMeans has not been fitted; call fit first.")
        rows = Rows(x, self.device, empty=not self.group.is_single)
        if rows.dim != self.n_features_in_:
            raise DeepClusterError(
                f"These features have {rows.dim} columns but the clusters have {self.n_features_in_}; "
                "use the same network, tap and whitening."
            )
        self._centroids = self._centroids.to(rows.device)
        return Points(rows, self.spherical, self.chunk)

    def _given_centroids(self, points: Points) -> Tensor:
        given = Rows(self.init, points.device, name="init centroids")
        if (given.n, given.dim) != (self.n_clusters, points.dim):
            raise DeepClusterError(
                f"init centroids are of shape {(given.n, given.dim)} but {self.n_clusters} clusters of "
                f"{points.dim}-wide rows need {(self.n_clusters, points.dim)}."
            )
        centroids = Points(given, points.spherical, offset=points.offset).take(torch.arange(given.n))
        if not torch.isfinite(centroids).all():
            raise DeepClusterError("init centroids hold NaN or infinity; give finite ones or init='random'.")
        return centroids.clone()

    def check(self) -> None:
        """Raises DeepClusterError where an argument cannot be."""
        for name, least in (("n_clusters", 1), ("max_iter", 1), ("n_init", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise DeepClusterError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        choices = {
            "precision": ("auto", "float32", "bfloat16", "int8"),
            "backend": ("torch", "faiss"),
            "empty": ("split", "keep"),
        }
        if isinstance(self.init, str):
            choices["init"] = ("random", "k-means++")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DeepClusterError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if not self.tol >= 0:
            raise DeepClusterError(f"tol must be 0 or more, not {self.tol}.")
        if self.backend == "faiss" and not self.group.is_single:
            raise DeepClusterError(
                f"backend='faiss' clusters in one process, not in {self.group.size}; take backend='torch'."
            )


def require_rows(rows: int, clusters: int) -> None:
    """Raises DeepClusterError where there are fewer rows than clusters."""
    if rows < clusters:
        raise DeepClusterError(
            f"{rows} rows cannot make {clusters} clusters; ask for at most {rows} clusters or give more rows."
        )


def distances(points: Points, centroids: Tensor, x: Any, out: Any = None) -> Any:
    """(N, K) float32 Euclidean distances of the points, which are the rows of x, into `out` if given."""
    shape = (points.n, len(centroids))
    result = torch.empty(shape, device=points.device) if out is None else out
    if tuple(result.shape) != shape:
        raise DeepClusterError(f"out must be of shape {shape}, not {tuple(result.shape)}.")
    points.step = max(1, min(points.step, BLOCK_NUMBERS // len(centroids)))
    for start, block in points.blocks():
        # differences, not products: a distance near zero keeps its digits
        write_rows(result, start, torch.cdist(block, centroids, compute_mode=EXACT))
    return in_kind(result, x) if out is None else out


def nearest_centroids(x: Any, centroids: Any, *, spherical: bool = False, device: Any = None) -> tuple[Any, Any]:
    """The cluster of each row of x (N, D) among given centroids (K, D), such as those a run has saved.

    Returns:
        (N,) int64 positions of the nearest centroids and (N,) float32 Euclidean distances to them, as
        tensors where x is one, else as arrays; the same clusters as `KMeans.predict` gives.
    """
    points = Points(Rows(x, device), spherical)
    given = Rows(centroids, points.device, name="centroids")
    if given.dim != points.dim:
        raise DeepClusterError(
            f"These features have {points.dim} columns but the centroids have {given.dim}; use the network, "
            "tap and whitening the centroids were made with."
        )
    with team():
        label, squared = assign(points, given.block(0, given.n))
    return in_kind(label, x), in_kind(squared.sqrt_(), x)
