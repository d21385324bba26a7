"""How well two groupings of the same images agree, and how even a grouping is.

Every score takes two (N,) integer arrays; an image that is -1 in either of them is left out. Scores are scikit-learn's
where it has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deepcluster.errors import DeepClusterError


def contingency(a: Any, b: Any) -> Any:
    """(A, B) sparse counts of images by group of `a` and group of `b`, empty groups left out."""
    from sklearn.metrics.cluster import contingency_matrix

    return contingency_matrix(*_known_pairs(a, b), sparse=True)


def nmi(a: Any, b: Any) -> float:
    """Normalized mutual information in [0, 1]: I(a; b) / sqrt(H(a) H(b)), as in the paper (arXiv 1807.05520 §4.1).

    Two groupings of one group each agree perfectly: 1.
    """
    from sklearn.metrics import normalized_mutual_info_score

    a, b = _known_pairs(a, b)
    return float(normalized_mutual_info_score(a, b, average_method="geometric")) if len(a) else float("nan")


def ami(a: Any, b: Any) -> float:
    """Adjusted mutual information: 0 in expectation for random groupings of these sizes, 1 for equal ones."""
    from sklearn.metrics import adjusted_mutual_info_score

    a, b = _known_pairs(a, b)
    return float(adjusted_mutual_info_score(a, b, average_method="geometric")) if len(a) else float("nan")


def ari(a: Any, b: Any) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): 0 for random groupings on average, 1 for equal ones."""
    from sklearn.metrics import adjusted_rand_score

    a, b = _known_pairs(a, b)
    return float(adjusted_rand_score(a, b)) if len(a) else float("nan")


def purity(assignment: Any, labels: Any) -> float:
    """Share of images whose label is the most frequent one of their cluster."""
    table = contingency(assignment, labels)
    return float(table.max(axis=1).sum() / table.sum()) if table.sum() else float("nan")


def accuracy(assignment: Any, labels: Any) -> float:
    """Share of images that are right under the best one-to-one matching of clusters to labels (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    table = contingency(assignment, labels).toarray()
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
    used, total = sizes[sizes > 0], sizes.sum()
    entropy = -(used / total * (np.log(used) - np.log(total))).sum() / np.log(k) if k > 1 and total else 0.0
    return {
        "clusters_used": int((sizes > 0).sum()),
        "size_min": int(sizes.min()),
        "size_max": int(sizes.max()),
        "size_entropy": float(min(entropy, 1.0)),
    }


def effective(sizes: np.ndarray) -> float:
    """exp of the entropy of (K,) sizes: as many equal clusters would be as even; K at most."""
    from scipy.stats import entropy

    return float(np.exp(entropy(sizes))) if sizes.any() else 0.0


def rank_me(features: np.ndarray) -> float:
    """RankMe (arXiv 2210.02885, equation 1): in how many directions (M, D) features vary, from 1 to min(M, D): the
    exponential of the entropy of their singular values. It falls when features collapse, and needs no labels."""
    x = np.asarray(features, np.float64)
    squares = np.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    values = np.sqrt(squares.clip(0))
    shares = values / max(values.sum(), 1e-300) + 1e-7  # the paper's epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _integers(values: Any) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iub"):
        raise DeepClusterError(f"A grouping must be (N,) integers, not {values.dtype} of shape {values.shape}.")
    result: np.ndarray = values.astype(np.int64)
    return result


def _known_pairs(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = _integers(a), _integers(b)
    if len(a) != len(b):
        raise DeepClusterError(f"The two groupings cover {len(a)} and {len(b)} images; both must cover the same.")
    known = (a >= 0) & (b >= 0)
    return a[known], b[known]
