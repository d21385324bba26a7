"""Descriptors and ground truth -> average precisions, by dot products in blocks; exact, nothing is approximated.

This file knows neither networks nor files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import normalize_rows
from deepcluster.evaluate.retrieval.average_precision import precision_at, ranks_of, step_ap, trapezoid_ap
from deepcluster.evaluate.retrieval.ground_truth import GroundTruth

SIMILARITIES_AT_ONCE = 1 << 24
FIRST = (1, 5, 10)
"""Numbers of first images of which the precision is given."""


def score_rankings(
    truth: GroundTruth,
    database: np.ndarray,
    queries: np.ndarray,
    *,
    expansion: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean average precision over the queries that have a right image, and the numbers of each query.

    Average precision is by the trapezoid rule, in groups by steps. In the revisited sets and in groups the precision
    among the first 1, 5 and 10 is given too.

    Args:
        truth: N names and Q queries.
        database: (N, P) rows of length one.
        queries: (Q, P) rows of length one.
        expansion: add so many of the first found to each query, and search again (Chum et al., ICCV 2007).

    Returns:
        name -> fraction of 1, such as map_medium or mp10_medium; and for each query a dict of its name, and the
        average precision and number of right images by the same endings.
    """
    rows = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
    bank = torch.from_numpy(np.ascontiguousarray(database, np.float32)).to(device)
    if expansion:
        rows = expanded(truth, bank, rows, expansion)
    precise = step_ap if truth.kind == "groups" else trapezoid_ap
    firsts = FIRST if truth.kind in ("revisited", "groups") else ()
    sums: dict[str, list[float]] = {}
    single = []
    for query, similarity in _similarities(bank, rows):
        told: dict[str, Any] = {"query": truth.queries[query]}
        for ending, (right, junk) in truth.measures.items():
            ranks = ranks_of(similarity, truth.united(right, query), truth.united(junk, query))
            told |= {f"ap{ending}": precise(ranks), f"right{ending}": len(ranks)}
            told |= {f"p{k}{ending}": precision_at(ranks, k) for k in firsts}
        for name, value in told.items():
            if isinstance(value, float) and np.isfinite(value):
                sums.setdefault(f"m{name}", []).append(value)
        single.append(told)
    names = [f"m{name}{ending}" for ending in truth.measures for name in ("ap", *(f"p{k}" for k in firsts))]
    return {name: float(np.mean(sums[name])) if name in sums else float("nan") for name in names}, single


def expanded(truth: GroundTruth, database: Tensor, queries: Tensor, count: int) -> Tensor:
    """(Q, P) means of each query and the `count` rows of the database that are nearest to it, of length one.

    A query that is not looked for in its own image does not find that.
    """
    result = queries.clone()
    for query, similarity in _similarities(database, queries):
        if truth.own_left_out:
            similarity = similarity.copy()
            similarity[truth.sets["junk"][query]] = -np.inf
        found = np.argsort(-similarity, kind="stable")[:count]
        found = found[np.isfinite(similarity[found])]
        result[query] += database[torch.from_numpy(found).to(database.device)].sum(0)
    return normalize_rows(result)


def _similarities(database: Tensor, queries: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Each query and its (N,) dot products, made a block of queries at a time."""
    step = max(1, SIMILARITIES_AT_ONCE // max(1, len(database)))
    for start in range(0, len(queries), step):
        block = (queries[start : start + step] @ database.T).cpu().numpy()
        for offset, similarity in enumerate(block):
            yield start + offset, similarity
