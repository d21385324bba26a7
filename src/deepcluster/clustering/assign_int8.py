"""The nearest centroid by 8-bit products, with close cases decided in float32 and sure ones passed over.

CPUs with VNNI multiply 8-bit integers four times as fast as floats. Rows and centroids are rounded to
8 bits; the error this leaves in a score is known from what the rounding took away, and wherever the two
best centroids are nearer to each other than that, both are compared in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.lloyd import Points
from deepcluster.clustering.nearest import LANES, ROWS, SPAN, WIDTH, Nearest
from deepcluster.features.parallel import over_spans

LEVELS = 127
CUT = 8.0  # standard deviations at which coordinates are cut
STEPS = 15  # a centroid's scale is a multiple, up to this, of the finest one's unit
SIGMAS = 4.0  # margin, in standard deviations of the rounding's error
DRIFTS = 4.0  # standard deviations of the change of scores that a lead must exceed
SAMPLE = 256  # points on which that change is measured
CACHE_NUMBERS = 1 << 28  # rounded rows that are kept between iterations: 256 MiB
CLOSE = 0.5  # part of close cases beyond which float32 alone is faster, and safer


@dataclass
class RoundedRows:
    """Rows as scale * whole numbers; length and error are (B,) mean squares over dimensions."""

    rows: Tensor  # (B, D) int8
    length: Tensor
    error: Tensor

    def __getitem__(self, index: Tensor | slice) -> RoundedRows:
        return RoundedRows(self.rows[index], self.length[index], self.error[index])

    def __setitem__(self, index: Tensor | slice, other: RoundedRows) -> None:
        self.rows[index], self.length[index], self.error[index] = other.rows, other.length, other.error


class Screen:
    """Makes finders of nearest centroids for the same points, round after round.

    Besides the rounded rows it keeps, for every point, how far its best centroid led the second best. As
    long as the centroids' moves since then make up for less than that lead, the point is passed over: in
    later rounds nine of ten are. How much a move changes scores is measured each round on a sample of
    points; a lead must exceed DRIFTS standard deviations of that change, summed over the rounds. Triangle
    inequalities would prove it instead, but prove nothing in hundreds of dimensions, where all distances are
    alike; what is missed is a close case, and the final assignment passes over no point.

    Args:
        points: those of this process; scale and sample are of all processes' points.
        square: sum of the points' squared norms.
        peak: largest magnitude of a coordinate.
        longest: largest norm of a point.
    """

    def __init__(self, points: Points, *, square: float, peak: float, longest: float):
        n, dim, total = points.n, points.dim, points.shard.total
        deviation = (square / (total * dim)) ** 0.5
        # a few far-out coordinates are cut rather than let to coarsen all others: their rows become close cases
        self.scale = min(peak, CUT * deviation) / LEVELS or 1.0
        self.reach = min(longest / self.scale + dim**0.5, LEVELS * dim**0.5)  # norm of a rounded row, at most
        self.kept: RoundedRows | None = None
        if n * dim <= CACHE_NUMBERS:  # an error of -1 marks what has not been rounded yet
            rows = torch.empty(n, dim, dtype=torch.int8)
            self.kept = RoundedRows(rows, torch.zeros(n), torch.full((n,), -1.0))
        self.useful = True
        self.label = torch.zeros(n, dtype=torch.int64)
        self.lead = torch.full((n,), -1.0)
        self.norm = torch.zeros(n)
        index = torch.arange(0, total, -(-total // SAMPLE))
        self.sample = points.take(index)
        self.sampled = points.shard.own(index)  # which of the sample are this process's, and its rows' places
        self.places = index[self.sampled] - points.shard.first
        self.sample_label = torch.zeros(len(index), dtype=torch.int64)
        self.before: Tensor | None = None
        self.total = total
        self.extra = 2 + len(index)
        self.seen = self.close = 0
        self.complete = True

    def __call__(self, centroids: Tensor) -> Screened | Nearest:
        """A finder for these centroids; plain float32 where rounding cannot tell them apart."""
        self.seen = self.close = 0
        if self.useful:
            screened = Screened(centroids, self)
            if screened.fits:
                self._measure_drift(centroids)
                self.before = centroids
                return screened
        self.useful = False
        self.kept = None
        self.seen = len(self.label)
        return Nearest(centroids)

    def to_tell(self) -> Tensor:
        """Points looked at, close cases, and the clusters of this process's part of the sample."""
        label = torch.zeros_like(self.sample_label)
        label[self.sampled] = self.label[self.places]
        return torch.cat([torch.tensor([self.seen, self.close]), label]).double()

    def heard(self, told: Tensor) -> bool:
        """Whether the round stands: not where most cases were close, which may also be closer to a third centroid."""
        self.complete = float(told[0]) == self.total
        self.sample_label = told[2:].long()
        if self.useful and float(told[1]) > CLOSE * self.total:
            self.useful = False
            return False
        return True

    def forget(self) -> None:
        """Pass over no point in the next round."""
        self.lead.fill_(-1.0)

    def _measure_drift(self, centroids: Tensor) -> None:
        """Take the change of scores since the last round off every point's lead."""
        if self.before is None:
            return
        move = centroids - self.before
        change = self.sample @ move.T
        change -= (centroids.square().sum(1) - self.before.square().sum(1)) / 2
        own = self.sample_label[:, None]
        own_change, own_move = change.gather(1, own), move[own[:, 0]].norm(dim=1)
        change.scatter_(1, own, 0.0)
        # of other centroids' scores, per length of the point; of its own, per length of its centroid's move
        other = float(change.square().sum() / (self.sample.square().sum() * (len(centroids) - 1)).clamp_min(1e-30))
        mine = float(own_change.square().sum() / own_move.square().sum().clamp_min(1e-30))
        own_variance = mine * move.square().sum(1)
        self.lead -= DRIFTS * (other * self.norm.square() + own_variance[self.label]).sqrt_()

    def rounded(self, block: Tensor, start: int, of: Tensor | None = None) -> RoundedRows:
        """The rows that begin at row `start` of the points, or those at `of` among them, rounded."""
        span = slice(start, start + len(block))
        if self.kept is None:
            return self.round(block if of is None else block[of])
        if self.kept.error[start] < 0:
            self.kept[span] = self.round(block)
        kept = self.kept[span]
        return kept if of is None else kept[of]

    def round(self, block: Tensor) -> RoundedRows:
        """Rows (B, D), rounded."""
        whole = (block / self.scale).round_().clamp_(-LEVELS, LEVELS)
        rows = whole.to(torch.int8)
        error = whole.mul_(self.scale).sub_(block).square_().mean(1)
        return RoundedRows(rows, block.square().mean(1), error)


class Screened:
    """Nearest of fixed centroids by 8-bit products.

    The score of centroid k is q.q_k * multiple_k + bias_k in whole numbers, five bits further left: there
    the position within its lane is written, so that a plain maximum finds the best centroid and its place.
    """

    def __init__(self, centroids: Tensor, screen: Screen):
        self.centroids, self.screen = centroids, screen
        k = len(centroids)
        scales = centroids.abs().amax(1) / LEVELS
        unit = float(scales.max()) / STEPS or 1.0
        multiple = (scales / unit).ceil().clamp_min(1)
        whole = (centroids / (multiple * unit)[:, None]).round_().clamp_(-LEVELS, LEVELS)
        self.error = (whole * (multiple * unit)[:, None]).sub_(centroids).square_().mean(1)
        self.length = centroids.square().mean(1)
        self.unit = unit * screen.scale  # of a score
        bias = centroids.double().square().sum(1) / (-2 * self.unit)
        bias -= bias.max()
        # the largest score possible must fit, by Cauchy-Schwarz
        reach = float((whole.square().sum(1).sqrt() * multiple).max()) * screen.reach
        self.fits = (reach + float(-bias.min())) * LANES < 2**31 - LANES
        if self.fits:
            parts = (slice(i, i + WIDTH) for i in range(0, k, WIDTH))
            self.tiles = [_tile(whole[part], multiple[part], bias[part]) for part in parts]

    def __call__(self, block: Tensor, start: int) -> Tensor:
        """(B,) int64, the nearest centroid of each row of block (B, D), which begins at row `start`."""

        def find(first: int, last: int) -> tuple[int, int]:
            return self._find(block[first:last], start + first)

        counts = over_spans(find, len(block), SPAN)
        seen, close = (sum(each) for each in zip(*counts, strict=True))
        self.screen.seen += seen
        self.screen.close += close
        return self.screen.label[start : start + len(block)]

    def _find(self, block: Tensor, start: int) -> tuple[int, int]:
        """Write labels and leads of points whose lead is spent; returns how many, and how many were close."""
        screen = self.screen
        span = slice(start, start + len(block))
        label, lead = screen.label[span], screen.lead[span]
        spent = (lead < 0).nonzero()[:, 0]
        if not len(spent):
            return 0, 0
        if len(spent) > 0.9 * len(block):
            rounded = screen.rounded(block, start)
            label[:], lead[:], close = self._search(block, rounded)
            screen.norm[span] = (rounded.length * block.shape[1]).sqrt()
            return len(block), close
        rounded = screen.rounded(block, start, of=spent)
        label[spent], lead[spent], close = self._search(block[spent], rounded)
        return len(spent), close

    def _search(self, block: Tensor, rounded: RoundedRows) -> tuple[Tensor, Tensor, int]:
        """Nearest centroids, their leads over the second best, and how many cases were close."""
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
        label, other = _column(*best), _column(*second)
        lead = ((best[0] >> 5) - (second[0] >> 5)).float() * self.unit
        # rounding errors of D coordinates add up like independent ones: variances, not magnitudes
        variance = rounded.error * (self.length[label] + self.length[other])
        variance += rounded.length * (self.error[label] + self.error[other])
        close = (lead.square() < SIGMAS**2 * block.shape[1] * variance).nonzero()[:, 0]
        a, b = self.centroids[label[close]], self.centroids[other[close]]
        # the lead of a over b: x.a - |a|^2 / 2 - x.b + |b|^2 / 2 = (a - b).(2x - a - b) / 2
        between = block[close].mul_(2).sub_(a).sub_(b).mul_(a.sub_(b)).sum(1) / 2
        label[close] = torch.where(between < 0, other[close], label[close])
        lead[close] = between.abs()
        return label, lead, len(close)


def _tile(whole: Tensor, multiple: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(D, W) int8 columns, (W,) int32 multiples and biases with the position in the lane, padded."""
    padding = -len(whole) % LANES
    width = len(whole) + padding
    lowest = -(2**31) // LANES
    bias = torch.nn.functional.pad(bias.round(), (0, padding), value=lowest)
    bias = bias * LANES + torch.arange(width) // LANES
    columns = torch.nn.functional.pad(whole, (0, 0, 0, padding)).to(torch.int8).T
    multiple = torch.nn.functional.pad(multiple * LANES, (0, padding))
    return columns, multiple.to(torch.int32), bias.to(torch.int32)


def _column(value: Tensor, lane: Tensor) -> Tensor:
    """The centroid that a score's low bits and its lane name."""
    return (lane // LANES) * WIDTH + (value & (LANES - 1)) * LANES + lane % LANES


def supported() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than floats, and this torch lets it."""
    return hasattr(torch, "_int_mm") and torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _vnni()


def _vnni() -> bool:
    probe = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_avx512_vnni_supported", None)
    return bool(probe and probe())
