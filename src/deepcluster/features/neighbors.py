"""Classification by the labels of the k nearest rows by cosine: a score of features without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.knn import nearest_rows


def nearest(
    bank: Tensor, queries: Tensor, k: int, *, leave_one_out: bool = False, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `bank` (N, D) for each of `queries` (M, D), exactly, by cosine.

    Args:
        leave_one_out: the queries are the bank itself; no row is its own neighbor.

    Returns:
        (M, k) float32 similarity in [-1, 1], descending, and (M, k) int64 rows of the bank.

    Raises:
        DeepClusterError: the bank has fewer than `k` rows.
    """
    available = len(bank) - leave_one_out
    if not 1 <= k <= available:
        raise DeepClusterError(
            f"k={k} neighbors cannot be found among {counted(available, 'image')}: choose 1 to {available}."
        )
    asked = None if leave_one_out else queries
    rows, squared = nearest_rows(bank, k, queries=asked, metric="cosine", device=device)
    return 1 - squared.cpu() / 2, rows.cpu()


def vote(
    similarity: Tensor, neighbor_labels: Tensor, classes: int, weights: str = "softmax", temperature: float = 0.07
) -> Tensor:
    """(M,) int64 class with the most votes among (M, k) neighbors; of equal classes the first.

    Args:
        similarity: (M, k) cosine of each neighbor.
        neighbor_labels: (M, k) int64 class of each neighbor.
        classes: number of classes.
        weights: "softmax": a vote counts exp(similarity / temperature), as in instance discrimination
            (arXiv 1805.01978 §3.4) and all later self-supervised work; "uniform": a vote is a vote.
        temperature: of the softmax.
    """
    if weights == "softmax":  # relative to the nearest, so that no exponential overflows
        ballots = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
    elif weights == "uniform":
        ballots = torch.ones_like(similarity, dtype=torch.float64)
    else:
        raise DeepClusterError(f"weights must be softmax or uniform, not {weights!r}.")
    urn = torch.zeros(len(ballots), classes, dtype=torch.float64)
    return urn.scatter_add_(1, neighbor_labels, ballots).argmax(dim=1)


def score_features(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray | None,
    answers: np.ndarray | None,
    *,
    k: Sequence[int] = (20,),
    classes: int,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield `knnK_top1` (softmax votes) and `knnK_majority_top1` (plain votes) for every K of `k`.

    Args:
        bank: (N, D) float32 features with (N,) labels.
        queries: (M, D) float32 features with (M,) answers; None = leave one out of the bank.
        k: numbers of neighbors; the search is made once, for the largest.
    """
    truth = torch.as_tensor(labels if answers is None else answers)
    table = torch.as_tensor(bank)
    asked = table if queries is None else torch.as_tensor(queries)
    similarity, rows = nearest(table, asked, max(k), leave_one_out=queries is None, device=device)
    voters = torch.as_tensor(labels)[rows]
    for count in k:
        for name, weights in (("top1", "softmax"), ("majority_top1", "uniform")):
            answer = vote(similarity[:, :count], voters[:, :count], classes, weights, temperature)
            yield f"knn{count}_{name}", float((answer == truth).double().mean())
