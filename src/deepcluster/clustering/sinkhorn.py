"""Equal partition: rows are divided over clusters so that all clusters get the same share of them.

The Sinkhorn-Knopp algorithm scales a positive matrix until its rows and columns have the sums that are asked for
(Cuturi 2013, arXiv 1306.0895). SwAV takes the result as soft targets (arXiv 2006.09882 §3.1), SeLa its largest entries
as labels (arXiv 1911.05371 §3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcluster.distributed import SINGLE, ProcessGroup

SMALLEST = -80.0
"""Natural logarithm of the smallest first scale of a row, relative to the largest."""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, group: ProcessGroup = SINGLE) -> Tensor:
    """(M, K) codes of this process's rows: each row adds up to 1, and over all processes each cluster gets nearly the
    same weight, the more nearly, the more iterations.

    Args:
        scores: (M, K), how well each row fits each cluster; a process may have no rows.
        epsilon: smoothness: exp(scores / epsilon) is what is scaled. Small values give codes near 0 or 1.
        iterations: number of times that clusters and then rows are scaled.
        group: the processes that have the rows together.
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
        cluster = 1 / group.sum_(row @ kernel)
        cluster /= cluster.mean()  # a common factor changes nothing, as rows are scaled next, but must not grow
        row = 1 / (kernel @ cluster)
    return kernel.mul_(row[:, None]).mul_(cluster)
