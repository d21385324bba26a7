"""The middle of each group of rows, and how far each row is from its own, for any grouping.

Rows come in blocks; nothing here knows how the grouping was made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcluster.clustering.exact_sum import unit_for
from deepcluster.clustering.lloyd import Points, means
from deepcluster.clustering.nearest import SPAN
from deepcluster.features.block_reader import Rows
from deepcluster.features.parallel import over_spans


def group_means(rows: Rows, label: Tensor, k: int) -> Tensor:
    """(K, D) float32 means of the rows (N, D) by label (N,) int64; -1 = in no group, and zero where none is."""
    beside = torch.where(label < 0, k, label)
    peak = 0.0
    for start, block in rows.blocks():
        if len(grouped := block[label[start : start + len(block)] >= 0]):
            peak = max(peak, float(grouped.abs().max()))
    zeros = torch.zeros(k + 1, rows.dim, device=rows.device)
    return means(Points(rows), beside, zeros, unit_for(peak, rows.n))[:k]


def own_distances(rows: Rows, label: Tensor, centers: Tensor) -> Tensor:
    """(N,) float32 squared distances of the rows (N, D) to centers[label]; NaN where the label is -1."""
    squared = torch.full((rows.n,), torch.nan, device=rows.device)
    for start, block in rows.blocks():

        def measure(first: int, last: int, start: int = start, block: Tensor = block) -> None:
            own = label[start + first : start + last]
            apart = (block[first:last] - centers[own.clamp_min(0)]).square_().sum(1)
            squared[start + first : start + last] = apart.masked_fill_(own < 0, torch.nan)

        over_spans(measure, len(block), SPAN)
    return squared
