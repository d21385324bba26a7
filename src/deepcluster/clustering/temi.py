"""TEMI: linear heads that label rows of a pretrained network by themselves (Adaloglou et al. 2023, arXiv 2303.17896).

Neighbors in the space of a good network mostly show the same thing. A head gives each row x a distribution over K
clusters, q(c|x); it learns to give a row and one of its neighbors x' the same one (section 3 of the paper):

    pmi(x, x') = log sum_c (q_s(c|x) q_t(c|x'))^beta / q_t(c)
    w(x, x')   = mean over heads of sum_c q_t(c|x) q_t(c|x')
    loss       = -w(x, x') (pmi(x, x') + pmi(x', x)) / 2

s is the student, which gradients train; t is its teacher, the moving average of its weights; q_t(c) is the moving
average of the teacher's output. The weight w takes pairs back that are neighbors but unlike. Dividing by q_t(c) keeps
all clusters in use. Several heads learn from the same pairs, and the one with the least loss is kept.

Three things differ from the paper, measured in docs/groups-heads.md. A head is linear, with weights and rows of unit
length, q = softmax(cos(x, w_c) / temperature): its label is the nearest centroid of unit rows, so that whatever assigns
by centroids can assign by a head. Heads start from groups instead of from random weights. And beta is 1, not .6, since
the start keeps clusters from collapsing.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor
from torch.nn.functional import normalize

from deepcluster.clustering import validation
from deepcluster.clustering.assign import group_means, nearest
from deepcluster.clustering.neighbor_start import spherical_k_means
from deepcluster.clustering.plus_plus import distinct
from deepcluster.clustering.points import Points
from deepcluster.clustering.spectral import spectral_embedding
from deepcluster.features.block_reader import Rows, in_kind, normalize_rows, require_finite
from deepcluster.features.knn import nearest_rows
from deepcluster.random import seed_of, seeded

START_ROWS = 20_000  # rows drawn to find the starts from, where there are more: bounds their memory and time
SAMPLE, START, WEIGHTS, PAIRS = range(4)  # purposes of random draws


@dataclass(eq=False, repr=False)
class TEMI(ClusterMixin, BaseEstimator):
    """Self-labelling linear heads on rows of a pretrained network, a scikit-learn estimator.

    Rows are compared by their direction alone, so center them first, best in a subspace of their main directions:
    `Whitening(128, whiten=False)`. One batch at a time is read from X, which may be a `numpy.memmap`.

    Args:
        n_clusters: K.
        init: where heads start: "spectral" (k-means in the spectral embedding of the nearest-neighbor graph; its memory
            grows with K), "k-means", or "random" (as in the paper).
        n_heads: heads that learn side by side.
        n_neighbors: rows among which each row finds its partner; None = a quarter of the rows of an average cluster,
            between 5 and 10: classes that are smaller than the average have neighbors, too.
        temperature: of the softmax over cosines.
        beta: 1 = clear-cut clusters of a common size; less = softer ones.
        momentum: of the teacher, and of the average of its output.
        learning_rate: of Adam, at the first step; it falls to zero in a line.
        max_iter: steps; 0 = the start as it is.
        batch_size: pairs of a step.
        random_state: int, `numpy.random.RandomState`, or None = NumPy's global one.
        device: where to compute; None = where X is (arrays: the CPU).

    Attributes:
        cluster_centers_: (K, D) float32, the weights of the head, of unit length. A row belongs to the one nearest to
            it after it is scaled to unit length.
        labels_: (N,) int64.
        inertia_: sum of squared distances of the unit rows to their cluster's centroid.
        losses_: (H,) mean loss of each head in the last third of the steps; empty without steps.
        n_iter_: steps done.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns, where X is a data frame.

    Tensors in give tensors out, on the same device; arrays and data frames in give arrays out.
    """

    n_clusters: int = 8
    _: KW_ONLY
    init: str = "spectral"
    n_heads: int = 8
    n_neighbors: int | None = None
    temperature: float = 0.1
    beta: float = 1.0
    momentum: float = 0.99
    learning_rate: float = 0.01
    max_iter: int = 300
    batch_size: int = 512
    random_state: Any = None
    device: torch.device | str | None = None

    @validation.all_or_nothing
    def fit(self, X: Any, y: None = None) -> TEMI:
        """Cluster the rows of X (N, D).

        Raises:
            DeepClusterError: fewer rows than clusters, no more rows than neighbors, a row with NaN or infinity, X or an
                argument of the wrong kind.
        """
        self._check_arguments()
        rows = validation.read_table(self, X, reset=True)
        validation.require_rows(rows.n, self.n_clusters)
        seed = validation.seed_from(self.random_state)
        points = Points(rows, spherical=True)
        near = neighbors(rows, self._neighbors(rows.n))
        heads = self._starts(rows, near, seed)
        heads, self.losses_ = self._train(points, near, heads, seed)
        best = int(np.argmin(self.losses_)) if len(self.losses_) else 0
        self._centroids = heads[best].contiguous()
        labels, squared = nearest(points, self._centroids)
        self.labels_, self.cluster_centers_ = in_kind(labels, X), in_kind(self._centroids, X)
        self.inertia_ = float(squared.sum(dtype=torch.float64))
        self.n_iter_ = self.max_iter
        found = int((torch.bincount(labels, minlength=self.n_clusters) > 0).sum())
        why = "no row is nearest to the others; ask for fewer clusters"
        validation.warn_of_empty(found, self.n_clusters, why)
        return self

    def predict(self, X: Any) -> Any:
        """(N,) int64, the most likely cluster of each row of X (N, D)."""
        rows = validation.read_table(self, X)
        self._centroids = self._centroids.to(rows.device)
        labels, squared = nearest(Points(rows, spherical=True), self._centroids)
        require_finite(squared)
        return in_kind(labels, X)

    def _check_arguments(self) -> None:
        count, positive = validation.count, validation.positive
        validation.check_arguments(
            self,
            n_clusters=count(self.n_clusters),
            init=validation.choice(self.init, "spectral", "k-means", "random"),
            n_heads=count(self.n_heads),
            n_neighbors=count(1 if self.n_neighbors is None else self.n_neighbors),
            temperature=positive(self.temperature),
            beta=positive(self.beta),
            momentum=(0 <= self.momentum < 1, "at least 0 and less than 1"),
            learning_rate=positive(self.learning_rate),
            max_iter=count(1 if self.max_iter == 0 else self.max_iter),
            batch_size=count(self.batch_size),
        )

    def _neighbors(self, n: int) -> int:
        if self.n_neighbors is not None:
            return self.n_neighbors
        return min(max(5, min(10, n // (4 * self.n_clusters))), max(1, n - 1))

    def _starts(self, rows: Rows, near: Tensor, seed: int) -> Tensor:
        """(H, K, D) weights of unit length: means of groups of the unit rows, of a sample where there are many."""
        k, dim = self.n_clusters, rows.dim
        if self.init == "random":
            draw = torch.randn(self.n_heads, k, dim, generator=seeded(seed, WEIGHTS))
            return normalize(draw, dim=-1).to(rows.device)
        drawn = min(rows.n, max(START_ROWS, 4 * k))
        chosen = distinct(rows.n, drawn, seeded(seed, SAMPLE)).sort().values
        unit = normalize_rows(rows.take(chosen.to(rows.device)))
        table = unit
        if self.init == "spectral":
            if drawn < rows.n:
                near = neighbors(Rows(unit), self._neighbors(drawn))
            table = torch.from_numpy(spectral_embedding(near.numpy(), k, seed)).to(rows.device)
        starts = []
        for head in range(self.n_heads):
            label = spherical_k_means(table, k, seed_of(seed, START, head)).labels_
            mean = group_means(Rows(unit), label, k)
            # a group without rows, or without a direction, starts anywhere
            draw = torch.randn(mean.shape, generator=seeded(seed, WEIGHTS, head)).to(rows.device)
            starts.append(normalize_rows(torch.where(mean.any(1, keepdim=True), mean, draw)))
        return torch.stack(starts)

    def _train(self, points: Points, near: Tensor, heads: Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
        """Teachers' weights (H, K, D) of unit length, and each head's loss (H,) in the last third of the steps."""
        count, size = near.shape[1], min(self.batch_size, points.n)
        student, teacher = heads.clone().requires_grad_(True), heads
        prior = torch.full(heads.shape[:2], 1 / self.n_clusters, device=heads.device)
        optimizer = torch.optim.Adam([student], lr=self.learning_rate)
        total, steps = torch.zeros(len(heads), dtype=torch.float64, device=heads.device), 0
        for step in range(self.max_iter):
            generator = seeded(seed, PAIRS, step)
            one = torch.randint(points.n, (size,), generator=generator)
            other = near[one, torch.randint(count, (size,), generator=generator)].cpu()
            x = points.take(torch.cat([one, other]))
            with torch.no_grad():
                target = log_labels(x, teacher, self.temperature)
                prior.lerp_(target.exp().mean(1), 1 - self.momentum)
            with torch.enable_grad():
                loss = pair_losses(log_labels(x, student, self.temperature), target, prior, self.beta)
                optimizer.zero_grad()
                torch.autograd.backward(loss.sum())
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.max_iter)
            optimizer.step()
            teacher = teacher.lerp(normalize(student.detach(), dim=-1), 1 - self.momentum)
            if step >= self.max_iter * 2 // 3:
                total, steps = total + loss.detach(), steps + 1
        if not steps:
            return teacher, np.empty(0)
        return normalize(teacher, dim=-1), (total / steps).cpu().numpy()


def neighbors(rows: Rows, count: int) -> Tensor:
    """(N, M) int64 nearest rows of each row by cosine, on the CPU; of a single row, itself.

    Raises:
        DeepClusterError: no more rows than neighbors, or a row with NaN or infinity.
    """
    if rows.n == 1:
        require_finite(rows.block(0, 1).square().sum(1))
        return torch.zeros(1, 1, dtype=torch.int64)
    near, _ = nearest_rows(rows.x, count, metric="cosine", device=rows.device)
    return torch.as_tensor(near).cpu()


def log_labels(x: Tensor, heads: Tensor, temperature: float) -> Tensor:
    """(H, B, K) log q(c|x) of unit rows x (B, D) by heads (H, K, D), whose weights are scaled to unit length."""
    count, k, dim = heads.shape
    cosine = x @ normalize(heads, dim=-1).view(count * k, dim).T
    return (cosine.view(len(x), count, k).transpose(0, 1) / temperature).log_softmax(-1)


def pair_losses(student: Tensor, teacher: Tensor, prior: Tensor, beta: float) -> Tensor:
    """(H,) mean loss of each head over B pairs; the formula is at the head of this file.

    Args:
        student, teacher: (H, 2B, K) log q_s(c|x) and log q_t(c|x) of the pairs' rows x, and after them of their
            neighbors x' in the same order.
        prior: (H, K) q_t(c).
    """
    (one, other), (taught, taught_other) = student.chunk(2, 1), teacher.chunk(2, 1)
    weight = (taught + taught_other).exp().sum(-1).mean(0)
    share = prior.log()[:, None]
    forth = (beta * (one + taught_other) - share).logsumexp(-1)
    back = (beta * (other + taught) - share).logsumexp(-1)
    return -(weight * (forth + back) / 2).mean(1)
