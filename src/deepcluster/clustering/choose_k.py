"""How many clusters a feature table has, when nobody says: k-means at several K, scored without labels.

k-means starts from the cuts of one tree (`ward`): nothing is drawn at random, and one candidate's score does not exceed
the next one's by luck.

The score is a mean of three. The silhouette (Rousseeuw 1987) in cosine distance asks whether rows are nearer to their
own cluster than to the next. Features are noisy, so it is also taken, and counts twice, after each row has been
averaged with its nearest neighbors, which plays the part of the UMAP space in which Lowe et al. (arXiv 2406.02465)
found that it follows the true quality of a clustering. The modularity (Newman and Girvan 2004) of the
clusters in the graph of nearest neighbors asks whether neighbors stay together; it keeps the silhouette from choosing a
few large groups over clear small ones. docs/groups.md compares them with other criteria on labeled images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.neighbor_start import spherical_k_means, with_neighbors
from deepcluster.clustering.plus_plus import distinct
from deepcluster.clustering.validation import seed_from
from deepcluster.clustering.ward import cut_tree, ward_tree
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, normalize_rows, require_finite
from deepcluster.features.knn import nearest_rows
from deepcluster.random import seeded

LARGEST = 200  # clusters, of the candidates that are made here
ROWS_EACH = 5  # fewest rows for each cluster of the largest candidate
RATIO = 1.12  # of one candidate to the next
SAMPLE = 10_000  # rows that are looked at
NEIGHBORS = 10  # that a row is averaged with
LINKS = 5  # nearest neighbors to which a row is linked in the graph
WEIGHTS = (1, 2, 1)  # in the score, of silhouette, smoothed silhouette and modularity
EQUAL = 1e-6  # scores no further apart than this are equal, whatever rounding says
PLAUSIBLE = 0.85  # of the best score, for a runner-up
WEAK = 0.1  # a silhouette that noise in 32 dimensions or more does not reach, and groups of images do


@dataclass(frozen=True)
class KChoice:
    """The number of clusters, and what speaks for it.

    Attributes:
        k: the candidate with the best score; the smallest of equally good ones.
        candidates: numbers of clusters that were tried, ascending; none where there was nothing to choose.
        scores: name of a score -> one number per candidate, in [-1, 1], the higher the better: "silhouette" of the
            rows, "smoothed silhouette" of the rows averaged with their neighbors, "modularity" of the graph of
            nearest neighbors, and "score", their mean, in which the second counts twice.
        runners_up: at most two candidates that are better than those beside them and not much worse than k, best
            first.
        rows: rows that were looked at.
    """

    k: int
    candidates: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    runners_up: tuple[int, ...]
    rows: int

    @property
    def sentence(self) -> str:
        """What to tell the user."""
        if not self.candidates:
            return f"k = {self.k}: there are too few different images to tell groups apart"
        at = self.candidates.index(self.k)
        silhouette, modularity = self.scores["silhouette"][at], self.scores["modularity"][at]
        message = (
            f"k = {self.k}: so many groups stand apart best (silhouette {silhouette:.2f}, modularity {modularity:.2f})"
        )
        if self.runners_up:
            message += f"; also plausible: {', '.join(map(str, self.runners_up))}"
        return message + ("; the groups hardly stand apart" if silhouette < WEAK else "")


def choose_k(
    x: Any,
    candidates: Sequence[int] | None = None,
    *,
    random_state: Any = 0,
    device: torch.device | str | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> KChoice:
    """The number of clusters that suits the rows of x (N, D) best.

    Args:
        x: embedded features, without NaN. Rows are compared by angle. Of more than 10,000 a uniform sample is taken.
        candidates: numbers of clusters to try; None = 2, 3, ... 13, 15, 17, ... up to N / 5 and 200. Those
            that exceed the number of different rows, or leave no cluster with two rows, are left out.
        random_state: seed of the sample, `numpy.random.RandomState`, or None = NumPy's global one.
        device: where to compute; None = where x is.
        tick: called with candidates done and candidates in all.

    Raises:
        DeepClusterError: a row holds NaN or infinity, x is not a table, or a candidate is below 1.
    """
    rows, seed = Rows(x, device), seed_from(random_state)
    if candidates is not None and any(k < 1 for k in candidates):
        raise DeepClusterError(f"The candidates {list(candidates)} must be at least 1.")
    index = torch.arange(rows.n)
    if rows.n > SAMPLE:
        index = distinct(rows.n, SAMPLE, seeded(seed)).sort().values
    unit = normalize_rows(rows.take(index))
    require_finite(unit, index)
    n = len(unit)
    most = min(len(torch.unique(unit, dim=0)), n - 1)
    tried = [k for k in sorted(set(grid(n) if candidates is None else candidates)) if 2 <= k <= most]
    if not tried:
        return KChoice(1, (), {"score": ()}, (), n)
    neighbors, _ = nearest_rows(unit, min(NEIGHBORS, n - 1), metric="cosine")
    smoothed = with_neighbors(unit, neighbors[:, : max(1, n // 4)])
    scores: dict[str, list[float]] = {"silhouette": [], "smoothed silhouette": [], "modularity": []}
    tree = ward_tree(unit)
    for done, k in enumerate(tried):
        start = torch.zeros(k, unit.shape[1], device=unit.device).index_add_(0, cut_tree(tree, k).to(unit.device), unit)
        labels = spherical_k_means(unit, k, seed, init=normalize_rows(start), precision="float32").labels_
        scores["silhouette"].append(float(silhouette(unit, labels).mean()))
        scores["smoothed silhouette"].append(float(silhouette(smoothed, labels).mean()))
        scores["modularity"].append(modularity(neighbors[:, :LINKS], labels))
        tick(done + 1, len(tried))
    scores["score"] = [
        sum(weight * score for weight, score in zip(WEIGHTS, each, strict=True)) / sum(WEIGHTS)
        for each in zip(*scores.values(), strict=True)
    ]
    best, others = _peaks(scores["score"])
    by_name = {name: tuple(values) for name, values in scores.items()}
    return KChoice(tried[best], tuple(tried), by_name, tuple(tried[each] for each in others), n)


def grid(n: int) -> list[int]:
    """The candidates for n rows: every number at first, then each 1.12 times the one before."""
    most = max(min(n // ROWS_EACH, LARGEST), min(n - 1, 3))
    found = [2]
    while (following := max(found[-1] + 1, round(found[-1] * RATIO))) <= most:
        found.append(following)
    return found


def silhouette(x: Tensor, labels: Tensor) -> Tensor:
    """(N,) silhouettes (Rousseeuw 1987) in cosine distance, of rows x (N, D) of unit length and their labels (N,).

    (b - a) / max(a, b), where a is a row's mean distance to the others of its cluster and b the least mean distance
    to another cluster; 0 where a row is alone or there is one cluster. Cosine distance is linear in each row, so means
    over a cluster follow from its sum: N K D operations instead of N N D.
    """
    used, own = torch.unique(labels, return_inverse=True)
    k, n = len(used), len(x)
    if k < 2:
        return torch.zeros(n, device=x.device)
    wide, one_hot = x.double(), torch.zeros(k, n, dtype=torch.float64, device=x.device)
    one_hot[own, torch.arange(n, device=x.device)] = 1
    counts = one_hot.sum(1)
    distances = (counts - wide @ (one_hot @ wide).T).clamp_min(0)  # (N, K) sums over each cluster
    itself = 1 - wide.square().sum(1)
    rest = counts[own] - 1
    within = ((distances.gather(1, own[:, None])[:, 0] - itself) / rest.clamp_min(1)).clamp_min(0)
    mean = distances / counts
    mean.scatter_(1, own[:, None], math.inf)
    beside = mean.amin(1)
    larger = torch.maximum(within, beside)
    # a distance of float32 rows below its own rounding is none
    known = (rest > 0) & (larger > torch.finfo(torch.float32).eps)
    return torch.where(known, (beside - within) / torch.where(known, larger, 1.0), 0.0).float()


def modularity(neighbors: Tensor, labels: Tensor) -> float:
    """Modularity (Newman and Girvan 2004) of clusters by their labels (N,), in the graph that links each row to each of
    its neighbors (N, M); a link counts twice where both rows are neighbors of each other.

    The share of links within clusters, less the share to expect if links only kept their numbers at each row.
    """
    n, m = neighbors.shape
    within = (labels[neighbors] == labels[:, None]).double().mean()
    ends = torch.bincount(neighbors.flatten(), minlength=n) + m
    share = torch.bincount(labels, ends.double()) / (2 * n * m)
    return float(within - share.square().sum())


def _peaks(scores: Sequence[float], most: int = 2) -> tuple[int, list[int]]:
    """Position of the best score, and of at most `most` other maxima that are PLAUSIBLE."""
    best = next(i for i, score in enumerate(scores) if score >= max(scores) - EQUAL)
    padded = [-math.inf, *scores, -math.inf]
    peaks = [i for i in range(len(scores)) if padded[i] + EQUAL < padded[i + 1] >= padded[i + 2]]
    peaks = [i for i in peaks if i != best and scores[i] >= PLAUSIBLE * scores[best]]
    return best, sorted(peaks, key=lambda i: (-scores[i], i))[:most]
