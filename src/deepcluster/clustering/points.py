"""The points of k-means: rows that come in blocks, of unit length or about an offset, weighted or not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepcluster.distributed import ALIGN, SINGLE
from deepcluster.exact_sum import Total, added, round_, unit_for
from deepcluster.features.block_reader import Rows, normalize_rows, refuse_rows
from deepcluster.features.parallel import over_rows, over_spans
from deepcluster.features.resident import held
from deepcluster.features.row_partition import Shard, shard_of

BLOCK_NUMBERS = 1 << 24  # numbers in a block (64 MiB)


@dataclass
class Moments:
    """What one pass over the points of all processes tells of them."""

    weight: float  # number of points, or the sum of their weights
    mean: Tensor  # (D,) float64, weighted
    square: float  # weighted sum of squared norms
    peak: float  # largest magnitude of a coordinate
    longest: float  # largest norm
    unit: float  # what coordinates are rounded to so that sums over clusters are exact; see exact_sum.py


class Points:
    """The rows that k-means clusters.

    Args:
        rows: those of this process.
        spherical: scale each row to unit length.
        chunk: rows of a block, in multiples of 1,024; None = 64 MiB of them.
        offset: (D,) what is subtracted from each row.
        shard: where the rows lie among those of all processes; None = there are no others.
        weight: (N,) float64 weights; None = 1 for every row.
    """

    def __init__(
        self,
        rows: Rows,
        spherical: bool = False,
        chunk: int | None = None,
        *,
        offset: Tensor | None = None,
        shard: Shard | None = None,
        weight: Tensor | None = None,
    ):
        self.rows, self.spherical, self.chunk, self.offset = rows, spherical, chunk, offset
        self.shard = shard or shard_of(rows)
        self.n, self.dim, self.device = rows.n, rows.dim, rows.device
        self.step = max(ALIGN, (chunk or BLOCK_NUMBERS // rows.dim) // ALIGN * ALIGN)
        self.heaviest = self.weight_unit = 1.0
        if weight is not None:
            # rounded, so that their sums are exact, too
            self.heaviest = float(self.shard.group.max_(weight.max()[None] if len(weight) else weight.new_zeros(1)))
            self.weight_unit = unit_for(self.heaviest, self.shard.total)
            weight = round_(weight.to(self.device, torch.float64), self.weight_unit)
        self.weight = weight
        self._held: Tensor | None = None

    def __len__(self) -> int:
        return self.n

    def span(self, first: int, last: int) -> Points:
        """The points from `first` to before `last` of this process's, for work that sends no messages."""
        part = copy.copy(self)
        part.rows, part.n = self.rows.span(first, last), last - first
        part.shard = Shard(SINGLE, part.n, self.shard.first + first, self.shard.total)
        part.weight = self.weights(first, part.n)
        part._held = None if self._held is None else self._held[first:last]
        return part

    def hold(self, budget: int | None = None) -> None:
        """Keep the rows on the device, see `Rows.hold`, and beside them the points, where these are other numbers."""
        if self.rows.hold(budget) and (self.spherical or self.offset is not None):
            self._held = held(self.blocks(), self.n, self.dim, self.device, budget)

    def about(self, offset: Tensor | None) -> Points:
        """The same points with `offset` subtracted from each."""
        return Points(self.rows, self.spherical, self.chunk, offset=offset, shard=self.shard, weight=self.weight)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, (B, D) block) pairs of this process; a block is valid until the next one is read."""
        if self._held is not None:
            yield from ((start, self._held[start : start + self.step]) for start in range(0, self.n, self.step))
            return
        for start, block in self.rows.blocks(self.step):
            yield start, self._transformed(block)

    def take(self, index: Tensor) -> Tensor:
        """(len(index), D) points by their positions among those of all processes; collective."""
        return self._transformed(self.shard.take(self.rows, index))

    def weights(self, start: int, count: int) -> Tensor | None:
        """(count,) weights of the points from `start` on; None = 1 for each."""
        return None if self.weight is None else self.weight[start : start + count]

    def counts(self, labels: Tensor, k: int) -> Tensor:
        """(K,) float64 number of this process's points in each cluster by their labels (N,), or their weight."""
        return torch.bincount(labels, self.weight, minlength=k).double()

    def total(self, values: Tensor) -> float:
        """Weighted sum over all processes of `values` (N,) float32 of their points; collective."""
        if self.weight is not None:
            values = values * self.weight
        partial = [part.sum(dtype=torch.float64)[None] for part in torch.split(values, ALIGN)]
        total = Total(1, values.device)
        if partial:
            total.add(torch.stack(partial))
        self.shard.group.sum_(total.digits)
        return float(total.value())

    @cached_property
    def moments(self) -> Moments:
        """The moments of all processes' points; collective on first use.

        Raises:
            DeepClusterError: a point holds NaN or infinity; on all processes.
        """
        with self.shard.group.collective_section():
            totals, peaks = zip(*over_rows(_own_moments, [self]), strict=True)
        total, greatest = added(totals), torch.stack(peaks).amax(0)
        self.shard.group.sum_(total.digits)
        self.shard.group.max_(greatest)
        *sums, square, weight = total.value()
        peak, longest = greatest.tolist()
        unit = unit_for(peak * self.heaviest, self.shard.total)
        return Moments(float(weight), torch.stack(sums) / weight, float(square), peak, longest, unit)

    def _transformed(self, block: Tensor) -> Tensor:
        if not self.spherical and self.offset is None:
            return block
        result = torch.empty_like(block)

        def transform(first: int, last: int) -> None:
            part = normalize_rows(block[first:last]) if self.spherical else block[first:last]
            result[first:last] = part if self.offset is None else part - self.offset

        over_spans(transform, len(block), ALIGN if block.device.type == "cpu" else len(block))
        return result


def _own_moments(points: Points) -> tuple[Total, Tensor]:
    """Sums of coordinates, squared norms and weights, and (2,) the largest coordinate and norm, of these points."""
    total, greatest = Total(points.dim + 2, points.device), [0.0, 0.0]
    for start, block in points.blocks():

        def measure(first: int, last: int, start: int = start, block: Tensor = block) -> tuple[Tensor, float, float]:
            return _moments(block[first:last], points.weights(start + first, last - first))

        sums, peaks, lengths = zip(*over_spans(measure, len(block), ALIGN), strict=True)
        rows = torch.stack(sums)
        if not torch.isfinite(rows).all():
            refuse_rows(block, points.shard.first + start)
        total.add(rows)
        greatest = [max(greatest[0], *peaks), max(greatest[1], *lengths)]
    return total, torch.tensor(greatest, dtype=torch.float64, device=points.device)


def _moments(block: Tensor, weight: Tensor | None) -> tuple[Tensor, float, float]:
    """(D + 2,) float64 sums of coordinates, squared norms and weights; largest magnitude; largest norm."""
    low, high = block.aminmax()
    squares = torch.linalg.vector_norm(block, dim=1).double().square()
    # NaN passes through the sum, whatever the maximum makes of it
    if weight is None:
        sums, square, count = block.sum(0, dtype=torch.float64), squares.sum(), squares.new_tensor(len(block))
    else:
        sums, square, count = weight @ block.double(), weight @ squares, weight.sum()
    return torch.cat([sums, square[None], count[None]]), max(float(high), -float(low)), float(squares.max().sqrt())
