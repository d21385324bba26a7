"""Where k-means begins: random distinct rows, or k-means++ in batches.

Draws are among the rows of all processes and the same on each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcluster.clustering.lloyd import Points
from deepcluster.distributed import ALIGN
from deepcluster.features.parallel import over_spans

SHUFFLED = 1 << 24  # rows up to which all are shuffled for a draw of some
DRAWN = 1 << 20  # random numbers held at once


def random_rows(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) rows at K different positions, as faiss and the paper begin."""
    return points.take(distinct(points.shard.total, k, generator))


def distinct(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(k,) different numbers below n, each as likely as any other, in random order."""
    if n <= SHUFFLED or k > n // 4:
        return torch.randperm(n, generator=generator)[:k]
    seen: dict[int, None] = {}  # a hundred million numbers are too many to shuffle for a few
    while len(seen) < k:
        seen.update(dict.fromkeys(torch.randint(n, (k - len(seen),), generator=generator).tolist()))
    return torch.tensor(list(seen))


def plus_plus(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) rows drawn with probability in proportion to their squared distance to those drawn before.

    Arthur and Vassilvitskii (2007) draw one at a time, which reads all points K times. Here a draw takes
    one row for every 16 drawn before or still to draw, whichever is less, after the manner of k-means||
    (Bahmani et al. 2012): the whole costs one assignment and some 32 ln(K / 16) readings of the points.
    """
    shard = points.shard
    chosen = torch.randint(shard.total, (1,), generator=generator)
    centroids = points.take(chosen)
    nearest = torch.full((points.n,), torch.inf, device=points.device)
    fresh = centroids
    while True:
        for start, block in points.blocks():
            part = nearest[start : start + len(block)]

            def lower(first: int, last: int, block: Tensor = block, part: Tensor = part, fresh: Tensor = fresh) -> None:
                reached = _squared_distance(block[first:last], fresh)
                torch.minimum(part[first:last], reached, out=part[first:last])

            over_spans(lower, len(block), ALIGN)
        # rounding may leave a trace of distance to itself
        nearest[(chosen[shard.own(chosen)] - shard.first).to(nearest.device)] = 0
        if len(centroids) == k:
            return centroids
        count = max(1, min(len(centroids), k - len(centroids)) // 16)
        count = min(count, int(shard.sum_((nearest > 0).sum()[None])))
        if count == 0:  # fewer distinct rows than clusters: repeat some
            rest = distinct(shard.total, k - len(centroids), generator)
            return torch.cat([centroids, points.take(rest)])
        chosen = _draw(points, nearest.cpu().double(), count, generator)
        fresh = points.take(chosen)
        centroids = torch.cat([centroids, fresh])


def _draw(points: Points, weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different places among all processes' rows, in proportion to the `weight` (N,) of this process's."""
    # the largest of log(u) / w, in order, are a draw without replacement (Efraimidis and Spirakis 2006);
    # torch.multinomial stops at 2^24 positions
    shard, last = points.shard, points.shard.first + points.n
    for start in range(0, shard.total, DRAWN):  # every process draws for all rows, and keeps its own
        u = torch.rand(min(DRAWN, shard.total - start), generator=generator, dtype=torch.float64)
        own = u[max(shard.first - start, 0) : max(last - start, 0)]
        at = max(start - shard.first, 0)
        weight[at : at + len(own)] = own.log() / weight[at : at + len(own)]
    return shard.largest(weight, count)[0].cpu()


def _squared_distance(block: Tensor, centroids: Tensor) -> Tensor:
    """(B,) squared distance of each row to the nearest of a few centroids."""
    best = torch.full((len(block),), torch.inf, device=block.device)
    size = centroids.square().sum(1)
    length = block.square().sum(1)
    for i in range(0, len(centroids), 256):
        scores = torch.addmm(size[i : i + 256], block, centroids[i : i + 256].T, alpha=-2)
        torch.minimum(best, scores.amin(1), out=best)
    return (best + length).clamp_min_(0)
