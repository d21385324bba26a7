"""Greedy k-means++, and draws of different rows; they are among the rows of all processes and the same on each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepcluster.clustering.points import Points
from deepcluster.distributed import ALIGN
from deepcluster.features.parallel import over_spans

SHUFFLED = 1 << 24  # rows up to which all are shuffled for a draw of some
SEED_ROWS = 1 << 17  # rows, or 16 per cluster, among which k-means++ chooses


def distinct(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(k,) different integers below n, each as likely as any other, in random order."""
    if n <= SHUFFLED or k > n // 4:
        return torch.randperm(n, generator=generator)[:k]
    drawn: dict[int, None] = {}  # a hundred million numbers are too many to shuffle for a few
    while len(drawn) < k:
        drawn.update(dict.fromkeys(torch.randint(n, (k - len(drawn),), generator=generator).tolist()))
    return torch.tensor(list(drawn))


def random_rows(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) points at K different positions, as in faiss and the paper; heavy ones are likelier where weights are."""
    if points.weight is None:
        return points.take(distinct(points.shard.total, k, generator))
    weight = points.shard.group.gather(points.weight).cpu()
    # the largest of log(u) / w are a draw without replacement (Efraimidis and Spirakis 2006)
    keys = torch.rand(len(weight), generator=generator, dtype=torch.float64).log() / weight
    return points.take(keys.topk(k).indices)


def greedy_plus_plus(points: Points, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) points by greedy k-means++ (Arthur and Vassilvitskii 2007), as scikit-learn chooses them.

    Of 2 + ln K candidates, drawn in proportion to the squared distance to the points chosen before, the one is chosen
    that lowers the sum of these distances most. Every choice reads all points, so they are taken into memory: all of
    them, or of more than 131,072 (or 16 per cluster) a uniform sample. All processes choose by the same sample.
    """
    total, trials = points.shard.total, 2 + int(math.log(k))
    sample = max(SEED_ROWS, 16 * k)
    index = torch.arange(total) if total <= sample else distinct(total, sample, generator)
    x = points.take(index)
    weight = torch.ones(len(x), dtype=torch.float64, device=x.device)
    if points.weight is not None:
        weight = points.shard.group.gather(points.weight)[index.to(x.device)]
    norms = x.square().sum(1, keepdim=True)

    def reach(candidates: Tensor, closest: Tensor) -> tuple[Tensor, Tensor]:
        """(S, C) squared distance of each point to its closest if a candidate was chosen, and (C,) weighted sums."""
        reached = torch.empty(len(x), len(candidates), device=x.device)
        columns, bias = x[candidates].T, norms[candidates].T

        def measure(first: int, last: int) -> Tensor:
            squared = torch.addmm(norms[first:last] + bias, x[first:last], columns, alpha=-2).clamp_min_(0)
            reached[first:last] = torch.minimum(squared, closest[first:last, None])
            return weight[first:last] @ reached[first:last].double()

        return reached, torch.stack(over_spans(measure, len(x), ALIGN)).sum(0)

    closest = torch.full((len(x),), torch.inf, device=x.device)
    chance = weight
    chosen: list[int] = []
    while len(chosen) < k:
        cumulative = chance.cpu().cumsum(0)
        if not cumulative[-1] > 0:  # fewer distinct points than clusters: repeat some
            chosen += distinct(len(x), k - len(chosen), generator).tolist()
            break
        drawn = torch.rand(trials if chosen else 1, generator=generator, dtype=torch.float64) * cumulative[-1]
        candidates = torch.searchsorted(cumulative, drawn, right=True).clamp_max(len(x) - 1).to(x.device)
        reached, potential = reach(candidates, closest)
        best = int(potential.argmin())
        chosen.append(int(candidates[best]))
        closest = reached[:, best].clone()
        closest[chosen[-1]] = 0  # rounding may leave a trace of distance to itself
        chance = closest.double() * weight
    return x[torch.tensor(chosen, device=x.device)]
