"""Sums and counts of clusters: of the points of a part, and of all parts and processes, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.points import Points
from deepcluster.distributed import ProcessGroup
from deepcluster.exact_sum import round_
from deepcluster.features.parallel import Kept, members, over_spans

SUMMED = 512  # rows that are converted to float64 at a time, so that they stay in a core's own cache, or more where
SUMMED_NUMBERS = 1 << 16  # these are fewer numbers
FEW = 1 << 17  # numbers that one thread sums faster than several


class Tally:
    """What a step finds: of some points, or of all points of all processes, which sum it in one message.

    Attributes:
        flat: (K * D + K + 1 + extra,) float64; the others are views of its parts.
        sums: (K, D), weighted sums of the points in each cluster; of some points what the step adds to them.
        counts: (K,) points in each, or their weight.
        moved: (1,) points that changed their cluster since the last step, or may have.
        extra: (extra,) what an implementation of the step wants summed, too.
    """

    def __init__(self, k: int, dim: int, extra: int = 0, device: torch.device | None = None):
        self.flat = torch.zeros(k * dim + k + 1 + extra, dtype=torch.float64, device=device)
        sums, self.counts, self.moved, self.extra = torch.split(self.flat, [k * dim, k, 1, extra])
        self.sums = sums.view(k, dim)

    def __reduce__(self) -> Any:
        return _tally, (*self.sums.shape, len(self.extra), self.flat)


def _tally(k: int, dim: int, extra: int, flat: Tensor) -> Tally:
    tally = Tally(k, dim, extra, flat.device)
    tally.flat.copy_(flat)
    return tally


Step = Callable[[Tensor], Tally]
"""The step from (K, D) centroids over the points of one run, of which it may remember what earlier calls told."""


class ClusterSums:
    """Labels of some points, and what each step adds to the sums of their clusters: only points that changed their
    cluster are added anew.

    Sums are exact (exact_sum.py), so a point that is subtracted leaves no trace, and neither the order of additions nor
    the number of parts and processes matters.

    Args:
        points: n of them; each call must get the same ones.
        k: clusters.
        unit: of the exact sums.
        extra: numbers to be summed besides.
    """

    def __init__(self, points: Points, k: int, unit: float, extra: int = 0):
        self.k, self.unit, self.extra = k, unit, extra
        self.labels = torch.full((points.n,), -1, dtype=torch.int64, device=points.device)
        self.is_first = True

    def update(self, points: Points, find: Callable[[Tensor, int], Tensor]) -> Tally:
        """Assign every point by `find(block, start)`."""
        tally, moved = Tally(self.k, points.dim, self.extra, points.device), 0
        for start, block in points.blocks():
            found, before = find(block, start), self.labels[start : start + len(block)]
            moved += self._move(tally.sums, block, before, found, points.weights(start, len(block)))
            before.copy_(found)
        self.is_first = False
        tally.counts.copy_(points.counts(self.labels, self.k))
        tally.moved.fill_(moved)
        return tally

    def _move(self, sums: Tensor, block: Tensor, before: Tensor, found: Tensor, weight: Tensor | None) -> int:
        """Move the rows of a block that changed clusters from one sum to another; returns how many did."""
        unit = self.unit
        if self.is_first:
            add_sums(sums, block, found, unit, weight)
            return len(block)
        changed = (found != before).nonzero()[:, 0]
        if len(changed):
            rows, weight = block[changed], None if weight is None else weight[changed]
            add_sums(sums, rows, found[changed], unit, weight, before[changed])
        return len(changed)


class Tallies:
    """The tally of all points, step after step, from those of the parts; exact, like these.

    Args:
        parts: objects with an `update` that gives the tally of a part.
        group: the processes, each with its parts.
    """

    def __init__(self, parts: Kept, group: ProcessGroup):
        self.parts, self.group = parts, group
        self.sums: Tensor | None = None

    def update(self, *arguments: Any) -> Tally:
        """Of all points and all processes; collective."""
        total, *others = self.parts.each("update", *arguments)
        for other in others:
            total.flat += other.flat
        self.group.sum_(total.flat)
        if self.sums is not None:
            total.sums += self.sums
        self.sums = total.sums
        return total  # type: ignore[no-any-return]


def add_sums(
    sums: Tensor,
    block: Tensor,
    labels: Tensor,
    unit: float,
    weight: Tensor | None = None,
    before: Tensor | None = None,
) -> None:
    """Add the weighted rows of a block (B, D) to the (K, D) float64 sums of their clusters, exactly, and take them from
    those of the clusters `before` (B,), where they are given.

    Rows are rounded to `unit` first; with a unit from `unit_for` nothing is lost in the additions.
    """

    def move(into: Tensor, rows: Tensor, part: slice) -> None:
        into.index_add_(0, labels[part], round_(rows, unit))
        if before is not None:
            into.index_add_(0, before[part], rows, alpha=-1)

    if block.device.type != "cpu":
        move(sums, block.double() if weight is None else block.double() * weight[:, None], slice(None))
        return

    def add(first: int, last: int) -> None:  # these columns, which are one thread's
        into = sums[:, first:last]
        step = max(SUMMED, SUMMED_NUMBERS // (last - first))
        buffer = torch.empty(min(step, len(block)), last - first, dtype=torch.float64)
        for start in range(0, len(block), step):
            part = slice(start, min(start + step, len(block)))
            exact = buffer[: part.stop - start].copy_(block[part, first:last])
            if weight is not None:
                exact.mul_(weight[part, None])
            move(into, exact, part)

    over_spans(add, block.shape[1], -(-block.shape[1] // (members() if block.numel() > FEW else 1)))


def means_of(sums: Tensor, counts: Tensor, centroids: Tensor) -> Tensor:
    """(K, D) float32 means from sums and counts; an empty cluster keeps its centroid."""
    filled = counts > 0
    return torch.where(filled[:, None], (sums / torch.where(filled, counts, 1.0)[:, None]).float(), centroids)


def iteration_stats(found: Tally, centroids: Tensor, square: float) -> tuple[float, float, float]:
    """The objective, points that moved and empty clusters: what is read of an iteration, once, as a GPU waits for it.

    The objective is the sum of squared distances of points to centroids, from sums alone: |x|^2 - 2 x.c + |c|^2.
    """
    c = centroids.double()
    sums = (found.sums * c).sum(), (found.counts * c.square().sum(1)).sum()
    cross, own, moved, empty = torch.stack([*sums, found.moved[0], (found.counts == 0).sum()]).tolist()
    return max(0.0, square - 2 * cross + own), moved, empty
