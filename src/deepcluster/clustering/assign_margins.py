"""The step of k-means that passes over settled points.

After a few iterations most points are much nearer to their centroid than to any other, and centroids hardly move: their
cluster is known without another product. The products of the others are float32's (assign.py), or 8-bit ones
(assign_int8.py) where the CPU is faster with those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepcluster.clustering.assign import ClusterSums, NearestSearch, Tally, span_of
from deepcluster.clustering.assign_int8 import Int8Search, Rounding
from deepcluster.clustering.points import Points
from deepcluster.features.parallel import over_spans

DRIFTS = 4.0  # standard deviations of the change of scores that a margin must exceed
SAMPLE = 256  # points on which that change is measured
CLOSE = 0.5  # share of close cases beyond which float32 alone is faster than 8-bit products, and safer

Compare = Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor, int]]
"""(block (B, D), its first row, which of its rows) -> nearest centroids of these rows, their margins over the second
best in scores x.c - |c|^2 / 2, and how many cases were close."""


class MarginStep:
    """The step for the same points, call after call.

    It keeps, for every point, the margin by which its best centroid led the second best. As long as the centroids'
    moves since then make up for less than that margin, the point is passed over: in later iterations nine of ten are.
    How much a move changes scores is measured each time on a sample of points; a margin must exceed DRIFTS standard
    deviations of that change, summed over the iterations. Triangle inequalities would prove it instead, but prove
    nothing in hundreds of dimensions, where all distances are alike; what is missed is a close case, and the final
    assignment passes over no point.

    Args:
        points: those of this process; the sample is of all processes' points.
        k: clusters.
        rounding: of the points, for 8-bit products; None = float32.
    """

    def __init__(self, points: Points, k: int, rounding: Rounding | None = None):
        n, total = points.n, points.shard.total
        self.rounding = rounding
        self.labels = torch.zeros(n, dtype=torch.int64)
        self.margin = torch.full((n,), -1.0)
        self.norm = torch.zeros(n)
        index = torch.arange(0, total, -(-total // SAMPLE))
        self.sample = points.take(index)
        self.own_sample = points.shard.own(index)  # which of the sample are this process's, and their positions in it
        self.own_positions = index[self.own_sample] - points.shard.first
        self.sample_labels = torch.zeros(len(index), dtype=torch.int64)
        self.previous: Tensor | None = None
        self.clusters = ClusterSums(points, k, extra=1 + len(index))
        self.total = total
        self.compared = self.close = 0

    def __call__(self, centroids: Tensor) -> Tally:
        moved = 0.0
        while True:
            total = self.clusters.update(self.search(centroids), self._stats)
            moved += float(total.moved)
            close = float(total.extra[0])
            self.sample_labels = total.extra[1:].long()
            if self.rounding is None or close <= CLOSE * self.total:
                break
            self.rounding = None  # where most cases are close, a third centroid may be closer yet: again, in float32
            self.invalidate()
        total.moved.fill_(moved)
        return total

    def search(self, centroids: Tensor) -> Callable[[Tensor, int], Tensor]:
        """(block (B, D), its first row) -> (B,) nearest of these centroids."""
        self.compared = self.close = 0
        self._reduce_margins(centroids)
        self.previous = centroids
        compare = self._comparison(centroids)

        def find(block: Tensor, start: int) -> Tensor:
            def find_span(first: int, last: int) -> tuple[int, int]:
                return self._find(compare, block[first:last], start + first)

            counts = over_spans(find_span, len(block), span_of(*centroids.shape))
            compared, close = (sum(each) for each in zip(*counts, strict=True))
            self.compared += compared
            self.close += close
            return self.labels[start : start + len(block)]

        return find

    def invalidate(self) -> None:
        """Pass over no point in the next call."""
        self.margin.fill_(-1.0)

    def _comparison(self, centroids: Tensor) -> Compare:
        """By 8-bit products where there are some and they can tell these centroids apart, by float32 else."""
        if self.rounding is not None:
            search = Int8Search(centroids, self.rounding)
            if search.fits:
                return search
            self.rounding = None
        nearest = NearestSearch(centroids)
        return lambda block, _, of: (*nearest.with_margins(block if of is None else block[of]), 0)

    def _find(self, compare: Compare, block: Tensor, start: int) -> tuple[int, int]:
        """Write labels and margins of points whose margin has expired; returns how many, and how many were close."""
        span = slice(start, start + len(block))
        labels, margin = self.labels[span], self.margin[span]
        expired = (margin < 0).nonzero()[:, 0]
        if not len(expired):
            return 0, 0
        if len(expired) > 0.9 * len(block):
            labels[:], margin[:], close = compare(block, start, None)
            self.norm[span] = torch.linalg.vector_norm(block, dim=1)
            return len(block), close
        labels[expired], margin[expired], close = compare(block, start, expired)
        return len(expired), close

    def _stats(self) -> Tensor:
        """Close cases, and the labels of this process's part of the sample."""
        labels = torch.zeros_like(self.sample_labels)
        labels[self.own_sample] = self.labels[self.own_positions]
        return torch.cat([torch.tensor([self.close]), labels]).double()

    def _reduce_margins(self, centroids: Tensor) -> None:
        """Subtract the change of scores since the last call from every point's margin."""
        if self.previous is None:
            return
        move = centroids - self.previous
        change = self.sample @ move.T
        change -= (centroids.square().sum(1) - self.previous.square().sum(1)) / 2
        own = self.sample_labels[:, None]
        own_change, own_move = change.gather(1, own), move[own[:, 0]].norm(dim=1)
        change.scatter_(1, own, 0.0)
        # of other centroids' scores, per length of the point; of its own, per length of its centroid's move
        other = float(change.square().sum() / (self.sample.square().sum() * (len(centroids) - 1)).clamp_min(1e-30))
        mine = float(own_change.square().sum() / own_move.square().sum().clamp_min(1e-30))
        own_variance = mine * move.square().sum(1)
        self.margin -= DRIFTS * (other * self.norm.square() + own_variance[self.labels]).sqrt_()
