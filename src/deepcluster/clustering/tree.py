"""The nearest of centroids that are a tree: from the nearest at the top down to the nearest of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.assign import nearest
from deepcluster.clustering.points import Points
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind
from deepcluster.features.parallel import team
from deepcluster.features.row_partition import centered, shard_of


def nearest_in_tree(
    x: Any, levels: Sequence[Any], counts: Sequence[Any] | None = None, *, spherical: bool = False
) -> tuple[Any, Any]:
    """The cluster of each row of x (N, D) in a tree of centroids, such as `levels_` and `counts_` that a run has saved.

    A tree of one level is plain centroids, with the clusters that `KMeans.predict` gives.

    Args:
        levels: centroids of each level, (K_i, D), each K_i a multiple of the one before.
        counts: rows each had, (K_i,); those with 0 are never the nearest. None = all had some.
        spherical: compare at unit length.

    Returns:
        (N,) int64 clusters of the last level and (N,) float32 Euclidean distances to their centroids, as tensors where
        x is one, else as arrays; the same clusters as `HierarchicalKMeans.predict` gives.
    """
    rows = Rows(x, empty=True)  # a process may have no images
    tables = [Rows(level, rows.device, name="centroids") for level in levels]
    widths = {table.dim for table in tables}
    if widths != {rows.dim}:
        theirs = " and ".join(map(str, sorted(widths)))
        raise DeepClusterError(
            f"These features have {rows.dim} columns but the centroids have {theirs}; use the network, tap and "
            "whitening the centroids were made with."
        )
    sizes = [table.n for table in tables]
    if any(below % above for above, below in pairwise(sizes)):
        raise DeepClusterError(f"Levels of {sizes} centroids are no tree; each must be a multiple of the one before.")
    known = [torch.ones(size) for size in sizes] if counts is None else [torch.as_tensor(each) for each in counts]
    if [len(each) for each in known] != sizes:
        raise DeepClusterError(f"counts are of {[len(each) for each in known]} centroids but the levels have {sizes}.")
    if not spherical:
        origin = centered(tables[-1], shard_of(tables[-1])).origin
        for table in (rows, *tables):
            table.origin = origin
    label, squared = descend(rows, [table.block(0, table.n) for table in tables], known, spherical)
    return in_kind(label, x), in_kind(squared.sqrt_(), x)


@team()
def descend(rows: Rows, levels: Sequence[Tensor], counts: Sequence[Tensor], spherical: bool) -> tuple[Tensor, Tensor]:
    """(N,) int64 clusters of the last level and (N,) float32 squared distances to their centroids."""
    label = torch.zeros(rows.n, dtype=torch.int64, device=rows.device)
    squared = torch.zeros(rows.n, device=rows.device)
    nodes = 1
    for level, count in zip(levels, counts, strict=True):
        children = len(level) // nodes
        order = label.argsort(stable=True)
        sizes = torch.bincount(label, minlength=nodes).tolist()
        for node, index in enumerate(torch.split(order, sizes)):
            if not len(index):
                continue
            own = slice(node * children, (node + 1) * children)
            alive = (count[own] > 0).nonzero()[:, 0].to(rows.device)
            if not len(alive):
                raise DeepClusterError(f"Branch {node} of {nodes} has no centroid that counts; save the tree again.")
            centroids = level[own].to(rows.device)[alive]
            for part in [index] if nodes == 1 else torch.split(index, Points(rows).step):
                some = rows if nodes == 1 else Rows(rows.take(part))
                found, squared[part] = nearest(Points(some, spherical), centroids)
                label[part] = node * children + alive[found]
        nodes = len(level)
    return label, squared
