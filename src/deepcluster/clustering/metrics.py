"""How well two groupings of the same images agree, and how even a grouping is.

Every score takes two (N,) integer arrays; an image that is -1 in either of them is left out. This file
knows nothing of images or networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from deepcluster.errors import DeepClusterError


def contingency(a: Any, b: Any) -> np.ndarray:
    """(A, B) int64 counts of images by group of `a` and group of `b`, empty groups left out.

    For many groups on both sides use `_pair_counts`, which never makes the whole table.
    """
    pairs, count, rows, columns = _pair_counts(a, b)
    table = np.zeros((len(rows), len(columns)), np.int64)
    table[pairs[0], pairs[1]] = count
    return table


def nmi(a: Any, b: Any, average: str = "geometric") -> float:
    """Normalized mutual information in [0, 1]: I(a; b) / sqrt(H(a) H(b)).

    The paper divides by the geometric mean (arXiv 1807.05520 §4.1); `average` may also be "arithmetic",
    "min" or "max". Two groupings of one group each agree perfectly: 1.
    """
    means: dict[str, Callable[[float, float], float]] = {
        "geometric": lambda u, v: np.sqrt(u * v),
        "arithmetic": lambda u, v: (u + v) / 2,
        "min": min,
        "max": max,
    }
    if average not in means:
        raise DeepClusterError(f"average must be one of {', '.join(means)}, not {average!r}.")
    (left, right), count, rows, columns = _pair_counts(a, b)
    total = count.sum()
    if total == 0:
        return float("nan")
    if len(rows) == len(columns) == 1:
        return 1.0
    p = count / total
    # logs of counts, not of their ratio: products of counts leave int64 and lose digits in floats
    inside = np.log(count) + np.log(total) - np.log(rows[left]) - np.log(columns[right])
    mutual = float((p * inside).sum())
    mean = means[average](_entropy(rows), _entropy(columns))
    return float(np.clip(mutual / mean, 0.0, 1.0)) if mean > 0 else 0.0


def ami(a: Any, b: Any, average: str = "geometric") -> float:
    """Adjusted mutual information: 0 in expectation for random groupings of these sizes, 1 for equal ones."""
    from sklearn.metrics import adjusted_mutual_info_score

    a, b = _known_pairs(a, b)
    return float(adjusted_mutual_info_score(a, b, average_method=average)) if len(a) else float("nan")


def ari(a: Any, b: Any) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): 0 for random groupings on average, 1 for equal ones."""
    _, count, rows, columns = _pair_counts(a, b)
    total = int(count.sum())
    if total == 0:
        return float("nan")
    together, in_a, in_b = (float((c * (c - 1.0) / 2).sum()) for c in (count, rows, columns))
    pairs = total * (total - 1.0) / 2
    expected = in_a * in_b / pairs if pairs else 0.0
    most = (in_a + in_b) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def purity(assignment: Any, labels: Any) -> float:
    """Share of images whose label is the most frequent one of their cluster."""
    (left, _), count, rows, _ = _pair_counts(assignment, labels)
    if not len(count):
        return float("nan")
    largest = np.zeros(len(rows), np.int64)
    np.maximum.at(largest, left, count)
    return float(largest.sum() / count.sum())


def accuracy(assignment: Any, labels: Any) -> float:
    """Share of images that are right under the best one-to-one matching of clusters to labels (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    table = contingency(assignment, labels)
    if table.size == 0:
        return float("nan")
    row, column = linear_sum_assignment(table, maximize=True)
    return float(table[row, column].sum() / table.sum())


def size_stats(assignment: Any, k: int) -> dict[str, float | int]:
    """Evenness of K clusters.

    Returns:
        clusters_used: clusters with at least one image; size_min, size_max: images in the smallest
        (empty ones count) and largest cluster; size_entropy: entropy of the sizes in [0, 1], 1 = all even.
    """
    kept = _integers(assignment)
    sizes = np.bincount(kept[kept >= 0], minlength=k)
    entropy = _entropy(sizes[sizes > 0]) / np.log(k) if k > 1 and sizes.sum() else 0.0
    return {
        "clusters_used": int((sizes > 0).sum()),
        "size_min": int(sizes.min()),
        "size_max": int(sizes.max()),
        "size_entropy": float(min(entropy, 1.0)),
    }


def _entropy(sizes: np.ndarray) -> float:
    total = sizes.sum()
    return float(-(sizes / total * (np.log(sizes) - np.log(total))).sum()) if total else 0.0


def _integers(values: Any) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iub"):
        raise DeepClusterError(f"A grouping must be (N,) integers, not {values.dtype} of shape {values.shape}.")
    return values.astype(np.int64)


def _known_pairs(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = _integers(a), _integers(b)
    if len(a) != len(b):
        raise DeepClusterError(f"The two groupings cover {len(a)} and {len(b)} images; both must cover the same.")
    known = (a >= 0) & (b >= 0)
    return a[known], b[known]


def _pair_counts(a: Any, b: Any) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """The contingency table as its non-zero entries: at most N of them, however many groups there are.

    Returns:
        ((row, column), count) of the entries, then the sizes of the non-empty groups of a and of b.
    """
    a, b = _known_pairs(a, b)
    a, rows = _dense(a)
    b, columns = _dense(b)
    key, cells = a * max(len(columns), 1) + b, len(rows) * len(columns)
    if cells <= 4 * len(a) + 65536:  # counting is faster than sorting while the table is not larger than the data
        table = np.bincount(key, minlength=cells)
        entry = table.nonzero()[0]
        count = table[entry]
    else:
        entry, count = np.unique(key, return_counts=True)
    return (entry // max(len(columns), 1), entry % max(len(columns), 1)), count, rows, columns


def _dense(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups renumbered 0..G-1 without gaps, and their sizes."""
    if group.size and group.max() <= 4 * len(group) + 65536:
        sizes = np.bincount(group)
        rank = np.cumsum(sizes > 0) - 1
        return rank[group], sizes[sizes > 0]
    _, dense, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return dense, sizes
