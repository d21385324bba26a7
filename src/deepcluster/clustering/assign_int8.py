"""The step of k-means by 8-bit products, with close cases decided in float32 and sure ones passed over.

CPUs with VNNI multiply 8-bit integers four times as fast as floats. Points and centroids are rounded to 8 bits; the
error this leaves in a score is known from what the rounding took away, and wherever the two best centroids are closer
to each other than that, both are compared in float32. Nothing else knows of this file but `KMeans`, which takes it
where the CPU supports it; tests compare it with float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from deepcluster.clustering.assign import LANES, ROWS, SPAN, WIDTH, ClusterSums, NearestSearch, Tally
from deepcluster.clustering.points import Points
from deepcluster.features.parallel import over_spans

LEVELS = 127
CUT = 8.0  # standard deviations at which coordinates are cut
STEPS = 15  # a centroid's scale is a multiple, up to this, of the finest one's unit
SIGMAS = 4.0  # width of a close case, in standard deviations of the rounding's error
DRIFTS = 4.0  # standard deviations of the change of scores that a margin must exceed
SAMPLE = 256  # points on which that change is measured
CACHE_NUMBERS = 1 << 28  # rounded coordinates that are kept between iterations: 256 MiB
CLOSE = 0.5  # share of close cases beyond which float32 alone is faster, and safer


@dataclass
class RoundedRows:
    """Rows as scale * integers; length and error are (B,) mean squares over dimensions."""

    rows: Tensor  # (B, D) int8
    length: Tensor
    error: Tensor

    def __getitem__(self, index: Tensor | slice) -> RoundedRows:
        return RoundedRows(self.rows[index], self.length[index], self.error[index])

    def __setitem__(self, index: Tensor | slice, other: RoundedRows) -> None:
        self.rows[index], self.length[index], self.error[index] = other.rows, other.length, other.error


class Int8AssignStep:
    """The step for the same points, call after call.

    Besides the rounded rows it keeps, for every point, the margin by which its best centroid led the second best. As
    long as the centroids' moves since then make up for less than that margin, the point is passed over: in later
    iterations nine of ten are. How much a move changes scores is measured each time on a sample of points; a margin
    must exceed DRIFTS standard deviations of that change, summed over the iterations. Triangle inequalities would
    prove it instead, but prove nothing in hundreds of dimensions, where all distances are alike; what is missed is a
    close case, and the final assignment passes over no point.

    Args:
        points: those of this process; scale and sample are of all processes' points.
        k: clusters.
    """

    def __init__(self, points: Points, k: int):
        moments = points.moments
        n, dim, total = points.n, points.dim, points.shard.total
        deviation = (moments.square / (moments.weight * dim)) ** 0.5
        # a few far-out coordinates are cut rather than let to coarsen all others: their rows become close cases
        self.scale = min(moments.peak, CUT * deviation) / LEVELS or 1.0
        # norm of a rounded row, at most
        self.reach = min(moments.longest / self.scale + dim**0.5, LEVELS * dim**0.5)
        self.rounded_rows: RoundedRows | None = None
        if n * dim <= CACHE_NUMBERS:  # an error of -1 marks what has not been rounded yet
            rows = torch.empty(n, dim, dtype=torch.int8)
            self.rounded_rows = RoundedRows(rows, torch.zeros(n), torch.full((n,), -1.0))
        self.useful = True
        self.labels = torch.zeros(n, dtype=torch.int64)
        self.margin = torch.full((n,), -1.0)
        self.norm = torch.zeros(n)
        index = torch.arange(0, total, -(-total // SAMPLE))
        self.sample = points.take(index)
        self.own_sample = points.shard.own(index)  # which of the sample are this process's, and their positions in it
        self.own_positions = index[self.own_sample] - points.shard.first
        self.sample_labels = torch.zeros(len(index), dtype=torch.int64)
        self.previous: Tensor | None = None
        self.clusters = ClusterSums(points, k, extra=2 + len(index))
        self.total = total
        self.compared = self.close = 0

    def __call__(self, centroids: Tensor) -> Tally:
        moved = 0.0
        while True:
            total = self.clusters.update(self.search(centroids), self._stats)
            moved += float(total.moved)
            compared, close = total.extra[:2].tolist()
            self.sample_labels = total.extra[2:].long()
            if not self.useful or close <= CLOSE * self.total:
                break
            self.useful = False  # where most cases are close, a third centroid may be closer yet: again, in float32
        if moved == 0 and compared < self.total:
            self.invalidate()
            moved = 1.0  # the next call tells
        total.moved.fill_(moved)
        return total

    def search(self, centroids: Tensor) -> Int8Search | NearestSearch:
        """A search for the nearest of these centroids; by float32 where rounding cannot tell them apart."""
        self.compared = self.close = 0
        if self.useful:
            search = Int8Search(centroids, self)
            if search.fits:
                self._reduce_margins(centroids)
                self.previous = centroids
                return search
        self.useful = False
        self.rounded_rows = None
        self.compared = len(self.labels)
        return NearestSearch(centroids)

    def invalidate(self) -> None:
        """Pass over no point in the next call."""
        self.margin.fill_(-1.0)

    def _stats(self) -> Tensor:
        """Points compared, close cases, and the labels of this process's part of the sample."""
        labels = torch.zeros_like(self.sample_labels)
        labels[self.own_sample] = self.labels[self.own_positions]
        return torch.cat([torch.tensor([self.compared, self.close]), labels]).double()

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

    def rounded(self, block: Tensor, start: int, of: Tensor | None = None) -> RoundedRows:
        """The rows that begin at row `start` of the points, or those at `of` among them, rounded."""
        span = slice(start, start + len(block))
        if self.rounded_rows is None:
            return self.round(block if of is None else block[of])
        if self.rounded_rows.error[start] < 0:
            self.rounded_rows[span] = self.round(block)
        kept = self.rounded_rows[span]
        return kept if of is None else kept[of]

    def round(self, block: Tensor) -> RoundedRows:
        """Rows (B, D), rounded."""
        integers = (block / self.scale).round_().clamp_(-LEVELS, LEVELS)
        rows = integers.to(torch.int8)
        error = integers.mul_(self.scale).sub_(block).square_().mean(1)
        return RoundedRows(rows, block.square().mean(1), error)


class Int8Search:
    """Nearest of fixed centroids by 8-bit products.

    The score of centroid k is q.q_k * multiple_k + bias_k in integers, five bits further left: there the position
    within its lane is written, so that a plain maximum finds the best centroid and its position.
    """

    def __init__(self, centroids: Tensor, step: Int8AssignStep):
        self.centroids, self.step = centroids, step
        k = len(centroids)
        scales = centroids.abs().amax(1) / LEVELS
        unit = float(scales.max()) / STEPS or 1.0
        multiple = (scales / unit).ceil().clamp_min(1)
        integers = (centroids / (multiple * unit)[:, None]).round_().clamp_(-LEVELS, LEVELS)
        self.error = (integers * (multiple * unit)[:, None]).sub_(centroids).square_().mean(1)
        self.length = centroids.square().mean(1)
        self.unit = unit * step.scale  # of a score
        bias = centroids.double().square().sum(1) / (-2 * self.unit)
        bias -= bias.max()
        # the largest score possible must fit, by Cauchy-Schwarz
        reach = float((integers.square().sum(1).sqrt() * multiple).max()) * step.reach
        self.fits = (reach + float(-bias.min())) * LANES < 2**31 - LANES
        if self.fits:
            parts = (slice(i, i + WIDTH) for i in range(0, k, WIDTH))
            self.tiles = [_tile(integers[part], multiple[part], bias[part]) for part in parts]

    def __call__(self, block: Tensor, start: int) -> Tensor:
        """(B,) int64, the nearest centroid of each row of block (B, D), which begins at row `start`."""

        def find(first: int, last: int) -> tuple[int, int]:
            return self._find(block[first:last], start + first)

        counts = over_spans(find, len(block), SPAN)
        compared, close = (sum(each) for each in zip(*counts, strict=True))
        self.step.compared += compared
        self.step.close += close
        return self.step.labels[start : start + len(block)]

    def _find(self, block: Tensor, start: int) -> tuple[int, int]:
        """Write labels and margins of points whose margin has expired; returns how many, and how many were close."""
        step = self.step
        span = slice(start, start + len(block))
        labels, margin = step.labels[span], step.margin[span]
        expired = (margin < 0).nonzero()[:, 0]
        if not len(expired):
            return 0, 0
        if len(expired) > 0.9 * len(block):
            rounded = step.rounded(block, start)
            labels[:], margin[:], close = self._search(block, rounded)
            step.norm[span] = (rounded.length * block.shape[1]).sqrt()
            return len(block), close
        rounded = step.rounded(block, start, of=expired)
        labels[expired], margin[expired], close = self._search(block[expired], rounded)
        return len(expired), close

    def _search(self, block: Tensor, rounded: RoundedRows) -> tuple[Tensor, Tensor, int]:
        """Nearest centroids, their margins over the second best, and how many cases were close."""
        best, second = (torch.empty(2, len(block), dtype=torch.int64) for _ in range(2))
        lanes = torch.empty(min(ROWS, len(block)), len(self.tiles) * LANES, dtype=torch.int32)
        buffer = torch.empty(len(lanes) * self.tiles[0][0].shape[1], dtype=torch.int32)
        for i in range(0, len(block), ROWS):
            part = rounded.rows[i : i + ROWS]
            folded = lanes[: len(part)]
            for tile, (columns, multiple, bias) in enumerate(self.tiles):
                width = columns.shape[1]
                scores = buffer[: len(part) * width].view(len(part), width)
                torch._int_mm(part, columns, out=scores)
                torch.addcmul(bias, scores, multiple, out=scores)
                into = folded[:, tile * LANES : (tile + 1) * LANES]
                torch.amax(scores.view(len(part), -1, LANES), 1, out=into)
            for answer in (best, second):
                value, lane = folded.max(1)
                answer[0, i : i + ROWS], answer[1, i : i + ROWS] = value, lane
                folded.scatter_(1, lane[:, None], -(2**31))
        return self._decide(block, rounded, best, second)

    def _decide(self, block: Tensor, rounded: RoundedRows, best: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int]:
        labels, other = _column(*best), _column(*second)
        margin = ((best[0] >> 5) - (second[0] >> 5)).float() * self.unit
        # rounding errors of D coordinates add up like independent ones: variances, not magnitudes
        variance = rounded.error * (self.length[labels] + self.length[other])
        variance += rounded.length * (self.error[labels] + self.error[other])
        close = (margin.square() < SIGMAS**2 * block.shape[1] * variance).nonzero()[:, 0]
        a, b = self.centroids[labels[close]], self.centroids[other[close]]
        # the lead of a over b: x.a - |a|^2 / 2 - x.b + |b|^2 / 2 = (a - b).(2x - a - b) / 2
        between = block[close].mul_(2).sub_(a).sub_(b).mul_(a.sub_(b)).sum(1) / 2
        labels[close] = torch.where(between < 0, other[close], labels[close])
        margin[close] = between.abs()
        return labels, margin, len(close)


def _tile(integers: Tensor, multiple: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(D, W) int8 columns, (W,) int32 multiples and biases with the position in the lane, padded."""
    padding = -len(integers) % LANES
    width = len(integers) + padding
    lowest = -(2**31) // LANES
    bias = torch.nn.functional.pad(bias.round(), (0, padding), value=lowest)
    bias = bias * LANES + torch.arange(width) // LANES
    columns = torch.nn.functional.pad(integers, (0, 0, 0, padding)).to(torch.int8).T
    multiple = torch.nn.functional.pad(multiple * LANES, (0, padding))
    return columns, multiple.to(torch.int32), bias.to(torch.int32)


def _column(value: Tensor, lane: Tensor) -> Tensor:
    """The centroid that a score's low bits and its lane name."""
    return (lane // LANES) * WIDTH + (value & (LANES - 1)) * LANES + lane % LANES


def supported() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than floats, and this torch lets it."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _vnni() and exact_products()


@cache
def exact_products() -> bool:
    """Whether products of 8-bit integers are exact.

    x86 CPUs without VNNI add pairs of them in 16 bits, which overflow.
    """
    if not hasattr(torch, "_int_mm"):
        return False
    rows = torch.full((64, 64), LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(rows, rows) == 64 * LEVELS**2).all())


def _vnni() -> bool:
    probe = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_avx512_vnni_supported", None)
    return bool(probe and probe())
