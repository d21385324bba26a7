"""Average precision of exact rankings by dot products. This file knows neither networks nor files.

All measures are computed from the ranks (P,) of a query's relevant images, ascending, 0 = first, in the ranking without
the images that are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.evaluate.retrieval.ground_truth import GroundTruth
from deepcluster.features.block_reader import normalize_rows

PRECISION_AT = (1, 5, 10)
"""Numbers of first images whose precision is reported."""
BLOCK = 1 << 24
"""Similarities that are computed at once."""


def relevant_ranks(similarity: np.ndarray, relevant: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(P,) int64 ascending: the rank of each relevant image by decreasing similarity (N,).

    Ignored images (junk) are removed first, as if they did not exist; an image that is both is ignored. Among equal
    similarities the irrelevant images come first, so that constant features score nothing, whatever the order of the
    files.
    """
    kind = np.zeros(len(similarity), np.int8)
    kind[relevant] = 1
    kind[ignored] = 2
    right = np.sort(similarity[kind == 1])[::-1]
    wrong = np.sort(similarity[kind == 0])
    before = len(wrong) - np.searchsorted(wrong, right, side="left")
    return before.astype(np.int64) + np.arange(len(right))


def trapezoid_ap(ranks: np.ndarray) -> float:
    """Area under precision over recall by the trapezoid rule, of ranks (P,); NaN without relevant images.

    Each step of recall counts the mean of the precision just before the relevant image and at it, where the precision
    before the first image of all is 1. This is how the authors of the Oxford buildings compute it (Philbin et al.,
    CVPR 2007), and after them Holidays and the revisited sets.
    """
    if not len(ranks):
        return float("nan")
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    at = (found + 1) / (ranks + 1)
    return float((before + at).mean() / 2)


def step_ap(ranks: np.ndarray) -> float:
    """The mean of the precision at each relevant image, as in scikit-learn, of ranks (P,); NaN without any."""
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean()) if len(ranks) else float("nan")


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Share of relevant images among the first k, or down to the last relevant one where that comes sooner.

    Of ranks (P,). A query with fewer than k relevant images can reach 1 (Radenović et al., CVPR 2018, and their
    published evaluation). NaN without relevant images.
    """
    if not len(ranks):
        return float("nan")
    first = min(int(ranks[-1]) + 1, k)
    return float((ranks < first).sum() / first)


def score_rankings(
    truth: GroundTruth,
    database: np.ndarray,
    queries: np.ndarray,
    *,
    expansion: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean average precision over the queries that have a relevant image, and the numbers of each query.

    Average precision is by the trapezoid rule, for groups by steps. For the revisited sets and groups the precision
    among the first 1, 5 and 10 is computed too.

    Args:
        truth: N names and Q queries.
        database: (N, P) rows of length one.
        queries: (Q, P) rows of length one.
        expansion: add this many of the first images to each query, and search again (Chum et al., ICCV 2007).
        device: where similarities are computed.

    Returns:
        name -> fraction of 1, such as map_medium or mp10_medium; and for each query a dict of its name, and the
        average precision and number of relevant images with the same suffixes.
    """
    rows = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
    bank = torch.from_numpy(np.ascontiguousarray(database, np.float32)).to(device)
    if expansion:
        rows = expand_queries(truth, bank, rows, expansion)
    average_precision = step_ap if truth.kind == "groups" else trapezoid_ap
    cutoffs = PRECISION_AT if truth.kind in ("revisited", "groups") else ()
    values: dict[str, list[float]] = {}
    single = []
    for query, similarity in _similarities(bank, rows):
        entry: dict[str, Any] = {"query": truth.queries[query]}
        for suffix, (relevant, ignored) in truth.measures.items():
            ranks = relevant_ranks(similarity, truth.union(relevant, query), truth.union(ignored, query))
            entry |= {f"ap{suffix}": average_precision(ranks), f"right{suffix}": len(ranks)}
            entry |= {f"p{k}{suffix}": precision_at(ranks, k) for k in cutoffs}
        for name, value in entry.items():
            if isinstance(value, float) and np.isfinite(value):
                values.setdefault(f"m{name}", []).append(value)
        single.append(entry)
    names = [f"m{name}{suffix}" for suffix in truth.measures for name in ("ap", *(f"p{k}" for k in cutoffs))]
    return {name: float(np.mean(values[name])) if name in values else float("nan") for name in names}, single


def expand_queries(truth: GroundTruth, database: Tensor, queries: Tensor, count: int) -> Tensor:
    """(Q, P) means of each query and the `count` rows of the database that are nearest to it, of length one.

    A query whose own image is ignored does not find it.
    """
    result = queries.clone()
    for query, similarity in _similarities(database, queries):
        if truth.ignores_own_image:
            similarity = similarity.copy()
            similarity[truth.sets["junk"][query]] = -np.inf
        found = np.argsort(-similarity, kind="stable")[:count]
        found = found[np.isfinite(similarity[found])]
        result[query] += database[torch.from_numpy(found).to(database.device)].sum(0)
    return normalize_rows(result)


def _similarities(database: Tensor, queries: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Each query and its (N,) dot products, computed for several queries at a time."""
    step = max(1, BLOCK // max(1, len(database)))
    for start in range(0, len(queries), step):
        rows = (queries[start : start + step] @ database.T).cpu().numpy()
        for offset, similarity in enumerate(rows):
            yield start + offset, similarity
