"""The two best centroids by 8-bit products, with close cases decided in float32.

CPUs with VNNI multiply 8-bit integers four times as fast as floats. Points and centroids are rounded to 8 bits; the
error this leaves in a score is known from what the rounding took away, and wherever the two best centroids are closer
to each other than that, both are compared in float32. Nothing else knows of this file but the step (assign_margins.py)
and `KMeans`, which takes it where the CPU supports it; tests compare it with float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.assign import ROWS, WIDTH
from deepcluster.clustering.points import Points

LANES = 32  # a tile's columns are reduced in this many interleaved groups, which vectorizes
LEVELS = 127
CUT = 8.0  # standard deviations at which coordinates are cut
STEPS = 15  # a centroid's scale is a multiple, up to this, of the finest one's unit
SIGMAS = 4.0  # width of a close case, in standard deviations of the rounding's error
CACHE_NUMBERS = 1 << 28  # rounded coordinates that are kept between iterations: 256 MiB


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


class Rounding:
    """The points of this process rounded to 8 bits, kept from iteration to iteration where they are not too many.

    Args:
        points: those of this process; the scale is of all processes' points.
    """

    def __init__(self, points: Points):
        moments = points.moments
        n, dim = points.n, points.dim
        deviation = (moments.square / (moments.weight * dim)) ** 0.5
        # a few far-out coordinates are cut rather than let to coarsen all others: their rows become close cases
        self.scale = min(moments.peak, CUT * deviation) / LEVELS or 1.0
        # norm of a rounded row, at most
        self.reach = min(moments.longest / self.scale + dim**0.5, LEVELS * dim**0.5)
        self.kept: RoundedRows | None = None
        if n * dim <= CACHE_NUMBERS:  # an error of -1 marks what has not been rounded yet
            self.kept = RoundedRows(torch.empty(n, dim, dtype=torch.int8), torch.zeros(n), torch.full((n,), -1.0))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}  # a process that gets this rounds anew

    def rounded(self, block: Tensor, start: int, of: Tensor | None = None) -> RoundedRows:
        """The rows of the block (B, D), which begins at row `start` of the points, or those at `of` among them."""
        span = slice(start, start + len(block))
        if self.kept is None:
            return self.round(block if of is None else block[of])
        if self.kept.error[start] < 0:
            self.kept[span] = self.round(block)
        kept = self.kept[span]
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

    def __init__(self, centroids: Tensor, rounding: Rounding):
        self.centroids, self.rounding = centroids, rounding
        k = len(centroids)
        scales = centroids.abs().amax(1) / LEVELS
        unit = float(scales.max()) / STEPS or 1.0
        multiple = (scales / unit).ceil().clamp_min(1)
        integers = (centroids / (multiple * unit)[:, None]).round_().clamp_(-LEVELS, LEVELS)
        self.error = (integers * (multiple * unit)[:, None]).sub_(centroids).square_().mean(1)
        self.length = centroids.square().mean(1)
        self.unit = unit * rounding.scale  # of a score
        bias = centroids.double().square().sum(1) / (-2 * self.unit)
        bias -= bias.max()
        # the largest score possible must fit, by Cauchy-Schwarz
        reach = float((integers.square().sum(1).sqrt() * multiple).max()) * rounding.reach
        self.fits = (reach + float(-bias.min())) * LANES < 2**31 - LANES
        if self.fits:
            parts = (slice(i, i + WIDTH) for i in range(0, k, WIDTH))
            self.tiles = [_tile(integers[part], multiple[part], bias[part]) for part in parts]

    def __call__(self, block: Tensor, start: int, of: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        """Nearest centroids, their margins over the second best, and how many cases were close; see MarginStep."""
        return self._search(block if of is None else block[of], self.rounding.rounded(block, start, of))

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
                if exact_products():
                    torch._int_mm(part, columns, out=scores)
                else:  # one of several machines is older than the one that decided
                    scores.copy_(part.double() @ columns.double())
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
