"""Equal partition: rows are divided over clusters so that all clusters get the same share of them.

The Sinkhorn-Knopp algorithm scales a positive matrix until its rows and columns have the sums that are asked for
(Cuturi 2013, arXiv 1306.0895). SwAV takes the result as soft targets (arXiv 2006.09882 §3.1), SeLa its largest entries
as labels (arXiv 1911.05371 §3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcluster.distributed import ALIGN, SINGLE, ProcessGroup
from deepcluster.exact_sum import Total, sums_by_label

SMALLEST = -80.0
"""Natural logarithm of the smallest first scale of a row, relative to the largest."""


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float, iterations: int, group: ProcessGroup = SINGLE, exact: bool = False
) -> Tensor:
    """(M, K) codes of this process's rows: each row adds up to 1, and over all processes each cluster gets nearly the
    same weight, the more nearly, the more iterations.

    Args:
        scores: (M, K), how well each row fits each cluster; a process may have no rows.
        epsilon: smoothness: exp(scores / epsilon) is what is scaled. Small values give codes near 0 or 1.
        iterations: number of times that clusters and then rows are scaled.
        group: the processes that have the rows together.
        exact: the same bits for any number of processes, each of which has whole blocks of `ALIGN` rows.
    """
    logits = scores.float() / epsilon
    best = logits.amax(1, keepdim=True)
    # Scaled first so that every row and every column has a 1 and nothing is larger: no sum can be 0 or infinite. What
    # this takes from the rows they get back as their first scale.
    floor = logits.new_full((1, logits.shape[1] + 1), -torch.inf)  # for a process without rows
    largest = group.max_(torch.cat([floor, torch.cat([logits - best, best], dim=1)]).amax(0))
    kernel = (logits - best - largest[:-1]).exp_()
    row = (best[:, 0] - largest[-1]).clamp(min=SMALLEST).exp()
    for _ in range(iterations):
        cluster = 1 / (_exact_column_sums(row, kernel, group) if exact else group.sum_(row @ kernel))
        cluster /= cluster.mean()  # a common factor changes nothing, as rows are scaled next, but must not grow
        row = 1 / (_product(kernel, cluster) if exact else kernel @ cluster)
    return kernel.mul_(row[:, None]).mul_(cluster)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows @ matrix` by blocks of rows that are the same for any number of processes: how a product is rounded depends
    on how many rows are multiplied."""
    return torch.cat([block @ matrix for block in torch.split(rows, ALIGN)])


def _exact_column_sums(row: Tensor, kernel: Tensor, group: ProcessGroup) -> Tensor:
    """(K,) sums over all processes of the rows (M, K), each times its scale (M,)."""
    total = Total(kernel.shape[1], kernel.device)
    for scale, block in zip(torch.split(row, ALIGN), torch.split(kernel, ALIGN), strict=True):
        total.add((scale @ block).double()[None])
    group.sum_(total.digits)
    return total.value().to(kernel)


@torch.no_grad()
def equal_partition(
    x: Any,
    centroids: Tensor,
    group: ProcessGroup = SINGLE,
    *,
    device: torch.device | None = None,
    epsilon: float = 0.02,
    iterations: int = 100,
    rounds: int = 3,
) -> tuple[Tensor, Tensor]:
    """Clusters of nearly equal size near the given centroids, as SeLa assigns its labels (arXiv 1911.05371 §3.1): the
    cheapest transport of all rows to the clusters, each of which takes an equal share of them. Needs M x K numbers in
    memory.

    Args:
        x: (M, D) unit rows of this process, an array or a tensor.
        centroids: (K, D), such as those of k-means.
        epsilon: smoothness of the transport; the smaller, the nearer to the cheapest.
        device: where to compute; None = where x is.
        rounds: number of times that labels are given and the centroids moved to the means of their rows.

    Returns:
        (M,) int64 labels and the (K, D) centroids, which are the means of their rows; both on the CPU.
    """
    x = torch.as_tensor(x).to(device)
    centroids = centroids.to(x)
    for _ in range(rounds):
        scores = _product(x, centroids.T) - centroids.square().sum(1) / 2
        labels = sinkhorn(scores, epsilon, iterations, group, exact=True).argmax(1)
        sums = sums_by_label(x, labels, len(centroids), group)
        counts = group.sum_(torch.bincount(labels, minlength=len(centroids)).to(sums))[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids).float()
    return labels.cpu(), centroids.cpu()
