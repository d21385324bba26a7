"""The step of k-means that passes over settled points.

After a few iterations most points are much nearer to their centroid than to any other, and centroids hardly move: their
cluster is known without another product. The products of the others are float32's (assign.py), or 8-bit ones
(assign_int8.py) where the CPU is faster with those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepcluster.clustering.assign import NearestSearch, span_of
from deepcluster.clustering.assign_int8 import Int8Search, Rounding
from deepcluster.clustering.points import Points
from deepcluster.clustering.tally import ClusterSums, Tallies, Tally
from deepcluster.features.parallel import keep_over_rows, over_spans

DRIFTS = 4.0  # standard deviations of the change of scores that a margin must exceed
SAMPLE = 256  # points on which that change is measured
CLOSE = 0.5  # share of close cases beyond which float32 alone is faster than 8-bit products, and safer

Compare = Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor, int]]
"""(block (B, D), its first row, which of its rows) -> nearest centroids of these rows, their margins over the second
best in scores x.c - |c|^2 / 2, and how many cases were close."""
Drift = tuple[float, Tensor] | None
"""Variances of the change of scores since the last call: of other centroids', per squared length of the point, and
(K,) of its own one's; None = no margin is known."""


class MarginStep:
    """The step for the same points, call after call.

    For every point the margin is kept by which its best centroid led the second best. As long as the centroids'
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
        self.total = points.shard.total
        index = torch.arange(0, self.total, -(-self.total // SAMPLE))
        self.sample = points.take(index)
        self.sample_labels = torch.zeros(len(index), dtype=torch.int64)
        self.previous: Tensor | None = None
        self.rounded = rounding is not None
        self.parts = keep_over_rows(MarginPart, [points], k, points.moments.unit, index, rounding)
        self.tallies = Tallies(self.parts, points.shard.group)

    def __call__(self, centroids: Tensor) -> Tally:
        moved, drift = 0.0, self._drift(centroids)
        while True:
            total = self.tallies.update(centroids, drift, self.rounded)
            moved += float(total.moved)
            close = float(total.extra[0])
            self.sample_labels = total.extra[1:].long()
            if not self.rounded or close <= CLOSE * self.total:
                break
            # where most cases are close, a third centroid may be closer yet: all again, in float32
            self.rounded, drift = False, None
        total.moved.fill_(moved)
        return total

    def _drift(self, centroids: Tensor) -> Drift:
        """How much scores have changed since the last call."""
        previous, self.previous = self.previous, centroids
        if previous is None:
            return None
        move = centroids - previous
        change = self.sample @ move.T
        change -= (centroids.square().sum(1) - previous.square().sum(1)) / 2
        own = self.sample_labels[:, None]
        own_change, own_move = change.gather(1, own), move[own[:, 0]].norm(dim=1)
        change.scatter_(1, own, 0.0)
        # of other centroids' scores, per length of the point; of its own, per length of its centroid's move
        other = float(change.square().sum() / (self.sample.square().sum() * (len(centroids) - 1)).clamp_min(1e-30))
        mine = float(own_change.square().sum() / own_move.square().sum().clamp_min(1e-30))
        return other, mine * move.square().sum(1)


class MarginPart:
    """The step of some points, with their margins.

    Args:
        points: n of them; each call must get the same ones.
        k, rounding: as in `MarginStep`.
        unit: of the exact sums.
        sample: (S,) rows of the sample among all points.

    Attributes:
        labels: (n,) int64.
        compared: points that the last call compared with all centroids.
    """

    def __init__(self, points: Points, k: int, unit: float, sample: Tensor, rounding: Rounding | None):
        self.rounding = rounding
        self.labels = torch.zeros(points.n, dtype=torch.int64)
        self.margin = torch.full((points.n,), -1.0)
        self.norm = torch.zeros(points.n)
        self.own_sample = points.shard.own(sample)  # which of the sample are here, and where
        self.own_positions = sample[self.own_sample] - points.shard.first
        self.clusters = ClusterSums(points, k, unit, extra=1 + len(sample))
        self.compared = 0

    def update(self, points: Points, centroids: Tensor, drift: Drift, rounded: bool) -> Tally:
        """The points' tally, with close cases and the labels of the sample as extra numbers.

        Args:
            rounded: whether 8-bit products may be taken.
        """
        if drift is None:
            self.margin.fill_(-1.0)
        else:
            other, own = drift
            self.margin -= DRIFTS * (other * self.norm.square() + own[self.labels]).sqrt_()
        self.rounding = self.rounding if rounded else None
        compare, close = self._comparison(centroids), 0
        self.compared = 0

        def find(block: Tensor, start: int) -> Tensor:
            nonlocal close

            def find_span(first: int, last: int) -> tuple[int, int]:
                return self._find(compare, block[first:last], start + first)

            for compared, these in over_spans(find_span, len(block), span_of(*centroids.shape)):
                self.compared += compared
                close += these
            return self.labels[start : start + len(block)]

        tally = self.clusters.update(points, find)
        tally.extra[0] = close
        tally.extra[1:][self.own_sample] = self.labels[self.own_positions].double()
        return tally

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
            found, lead, close = compare(block, start, None)
            # of the others nothing changes: which of them are in this span must not matter
            labels[expired], margin[expired] = found[expired], lead[expired]
            self.norm[span] = torch.linalg.vector_norm(block, dim=1)
            return len(block), close
        labels[expired], margin[expired], close = compare(block, start, expired)
        return len(expired), close
