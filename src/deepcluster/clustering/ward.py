"""Groups of any number from one tree: at each step the two groups merge that raise the objective of k-means least.

Ward, "Hierarchical grouping to optimize an objective function" (1963). Nothing is drawn at random, and what is found at
one number of groups is that at the next with one group split, so scores along the number of groups hardly jump.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor


def ward_tree(x: Tensor) -> np.ndarray:
    """(N - 1, 2) int64 merges of the rows x (N, D), N > 1, the nearest first: merge i makes group N + i of two others.

    Holds N N / 2 distances in float64, twice.
    """
    merges: np.ndarray = linkage(x.double().cpu().numpy(), "ward")[:, :2].astype(np.int64)
    return merges


def cut_tree(tree: np.ndarray, k: int) -> Tensor:
    """(N,) int64 labels 0..k-1 of the k groups that are left after N - k merges of a `ward_tree`."""
    n = len(tree) + 1
    done = tree[: n - k]
    group = np.arange(n + len(done))
    group[done] = n + np.arange(len(done))[:, None]
    while (group[group] != group).any():
        group = group[group]
    return torch.from_numpy(np.unique(group[:n], return_inverse=True)[1])
