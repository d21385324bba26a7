"""Where k-means begins: random distinct rows, or k-means++ in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcluster.clustering.lloyd import Points
from deepcluster.clustering.nearest import SPAN
from deepcluster.clustering.parallel import over_spans


def random_rows(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) rows at K different positions, as faiss and the paper begin."""
    return points.take(torch.randperm(points.n, generator=generator)[:k])


def plus_plus(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) rows drawn with probability in proportion to their squared distance to those drawn before.

    Arthur and Vassilvitskii (2007) draw one at a time, which reads all points K times. Here a draw takes
    one row for every 16 drawn before or still to draw, whichever is less, after the manner of k-means||
    (Bahmani et al. 2012): the whole costs one assignment and some 32 ln(K / 16) readings of the points.
    """
    chosen = torch.randint(points.n, (1,), generator=generator)
    centroids = points.take(chosen)
    nearest = torch.full((points.n,), torch.inf, device=points.device)
    fresh = centroids
    while True:
        for start, block in points.blocks():
            part = nearest[start : start + len(block)]

            def lower(first: int, last: int, block: Tensor = block, part: Tensor = part, fresh: Tensor = fresh) -> None:
                reached = _squared_distance(block[first:last], fresh)
                torch.minimum(part[first:last], reached, out=part[first:last])

            over_spans(lower, len(block), SPAN)
        nearest[chosen.to(nearest.device)] = 0  # rounding may leave a trace of distance to itself
        if len(centroids) == k:
            return centroids
        weight = nearest.cpu().double()
        count = max(1, min(len(centroids), k - len(centroids)) // 16)
        count = min(count, int((weight > 0).sum()))
        if count == 0:  # fewer distinct rows than clusters: repeat some
            rest = torch.randperm(points.n, generator=generator)[: k - len(centroids)]
            return torch.cat([centroids, points.take(rest)])
        chosen = _draw(weight, count, generator)
        fresh = points.take(chosen)
        centroids = torch.cat([centroids, fresh])


def _draw(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different positions, in proportion to weight; any number of positions."""
    # the largest of log(u) / w, in order, are a draw without replacement (Efraimidis and Spirakis 2006);
    # torch.multinomial stops at 2^24 positions
    u = torch.rand(len(weight), generator=generator, dtype=torch.float64)
    return (u.log() / weight).topk(count).indices


def _squared_distance(block: Tensor, centroids: Tensor) -> Tensor:
    """(B,) squared distance of each row to the nearest of a few centroids."""
    best = torch.full((len(block),), torch.inf, device=block.device)
    size = centroids.square().sum(1)
    length = block.square().sum(1)
    for i in range(0, len(centroids), 256):
        scores = torch.addmm(size[i : i + 256], block, centroids[i : i + 256].T, alpha=-2)
        torch.minimum(best, scores.amin(1), out=best)
    return (best + length).clamp_min_(0)
