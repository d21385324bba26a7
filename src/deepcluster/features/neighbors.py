"""k nearest rows of a table by cosine, and what their labels say: the quickest honest score of features.

Nothing is trained. This file does not know how features come about, nor anything of images or clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcluster.errors import DeepClusterError

SIMILARITIES_AT_ONCE = 2**25  # 128 MiB of float32: bounds the memory for any number of images


def nearest(
    bank: Tensor, queries: Tensor, k: int, *, leave_one_out: bool = False, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `bank` for each query, exactly, by cosine.

    Args:
        bank: (N, D) float32.
        queries: (M, D) float32.
        leave_one_out: the queries are the bank itself; no row is its own neighbor.

    Returns:
        (M, k) float32 similarity in [-1, 1], falling, and (M, k) int64 rows of the bank.

    Raises:
        DeepClusterError: the bank has fewer than `k` rows.
    """
    available = len(bank) - leave_one_out
    if not 1 <= k <= available:
        raise DeepClusterError(f"k={k} neighbors cannot be found among {available} images: choose 1 to {available}.")
    columns = functional.normalize(bank.to(device, torch.float32), dim=1).T.contiguous()
    step = max(1, SIMILARITIES_AT_ONCE // len(bank))
    similarity = torch.empty(len(queries), k)
    rows = torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        near = functional.normalize(queries[part].to(device, torch.float32), dim=1) @ columns
        if leave_one_out:
            near[torch.arange(len(near)), torch.arange(part.start, part.stop)] = -torch.inf
        value, row = near.topk(k, dim=1)
        similarity[part], rows[part] = value.cpu(), row.cpu()
    return similarity, rows


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
        raise DeepClusterError(f"weights={weights!r} is no way to vote: choose softmax or uniform.")
    urn = torch.zeros(len(ballots), classes, dtype=torch.float64)
    return urn.scatter_add_(1, neighbor_labels, ballots).argmax(dim=1)


def knn_predict(
    bank: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    queries: np.ndarray | Tensor,
    k: int,
    classes: int,
    weights: str = "softmax",
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> Tensor:
    """(M,) int64 class of each of (M, D) `queries`, from (N, D) `bank` with (N,) `labels`, by cosine."""
    known = torch.as_tensor(labels, dtype=torch.int64)
    similarity, rows = nearest(torch.as_tensor(bank), torch.as_tensor(queries), k, device=device)
    return vote(similarity, known[rows], classes, weights, temperature)


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
    similarity, rows = nearest(
        table,
        table if queries is None else torch.as_tensor(queries),
        max(k),
        leave_one_out=queries is None,
        device=device,
    )
    voters = torch.as_tensor(labels)[rows]
    for count in k:
        for name, weights in (("top1", "softmax"), ("majority_top1", "uniform")):
            answer = vote(similarity[:, :count], voters[:, :count], classes, weights, temperature)
            yield f"knn{count}_{name}", float((answer == truth).double().mean())
