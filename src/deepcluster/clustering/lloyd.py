"""Lloyd's iterations over rows that come in blocks: assign, average, split into empty clusters, repeat.

Knows rows and centroids; the public class is in kmeans.py, the search for the nearest in nearest.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.nearest import SPAN, Nearest, Search
from deepcluster.clustering.parallel import members, over_spans
from deepcluster.clustering.stream import Rows
from deepcluster.clustering.whitening import normalize_rows
from deepcluster.records import DeepClusterError

BLOCK_NUMBERS = 1 << 24  # numbers in a block (64 MiB): fixed, so that sums do not depend on where rows lie
BAG = 1024  # rows summed in float32 before the sum goes to float64
SPLIT = 1 / 1024  # how far the two halves of a split cluster are moved apart, as in faiss


class Points:
    """The rows k-means sees: of unit length where it is spherical, about `offset` where that is given.

    Args:
        chunk: rows of a block; None = 64 MiB of them.
    """

    def __init__(self, rows: Rows, spherical: bool = False, chunk: int | None = None, offset: Tensor | None = None):
        self.rows, self.spherical, self.chunk, self.offset = rows, spherical, chunk, offset
        self.n, self.dim, self.device = rows.n, rows.dim, rows.device
        self.step = chunk or max(256, BLOCK_NUMBERS // rows.dim)

    def about(self, offset: Tensor | None) -> Points:
        """The same points with `offset` taken off each."""
        return Points(self.rows, self.spherical, self.chunk, offset)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, (B, D) block) pairs; a block is valid until the next one is read."""
        for start, block in self.rows.blocks(self.step):
            yield start, self._seen(block)

    def take(self, index: Tensor) -> Tensor:
        """(len(index), D) points."""
        return self._seen(self.rows.take(index))

    def _seen(self, block: Tensor) -> Tensor:
        if not self.spherical and self.offset is None:
            return block
        seen = torch.empty_like(block)

        def see(first: int, last: int) -> None:
            part = normalize_rows(block[first:last]) if self.spherical else block[first:last]
            seen[first:last] = part if self.offset is None else part - self.offset

        over_spans(see, len(block), 1024 if block.device.type == "cpu" else len(block))
        return seen


@dataclass
class Moments:
    """What one reading of the points tells."""

    mean: Tensor  # (D,) float64
    square: float  # sum of squared norms
    peak: float  # largest magnitude of a coordinate
    longest: float  # largest norm


@dataclass
class Solution:
    """One run of Lloyd's iterations, before the final assignment."""

    centroids: Tensor
    objectives: list[float] = field(default_factory=list)


def moments(points: Points) -> Moments:
    """Raises DeepClusterError where a point holds NaN or infinity."""
    total = torch.zeros(points.dim, dtype=torch.float64, device=points.device)
    square, peak, longest = 0.0, 0.0, 0.0
    for start, block in points.blocks():

        def facts(first: int, last: int, block: Tensor = block) -> tuple[Tensor, float, float, float]:
            return _moments(block[first:last])

        for part_sum, part_square, part_peak, part_longest in over_spans(facts, len(block), 1024):
            total += part_sum
            square += part_square
            peak, longest = max(peak, part_peak), max(longest, part_longest)
        if not np.isfinite(square):
            bad = (~torch.isfinite(block).all(1)).nonzero()
            if len(bad):
                raise DeepClusterError(
                    f"Row {start + int(bad[0, 0])} of the features holds NaN or infinity; leave out such "
                    "rows before clustering."
                )
            raise DeepClusterError("The features are too large for float32 sums of squares; scale them down.")
    return Moments(total / points.n, square, peak, longest)


def _moments(block: Tensor) -> tuple[Tensor, float, float, float]:
    low, high = block.aminmax()
    norms = torch.linalg.vector_norm(block, dim=1).double()
    # NaN passes through the sum, whatever the maximum makes of it
    square, longest = float(norms.square().sum()), float(norms.max())
    return block.sum(0, dtype=torch.float64), square, max(float(high), -float(low)), longest


def lloyd(
    points: Points,
    centroids: Tensor,
    search: Search,
    *,
    square: float,
    max_iter: int,
    tol: float,
    split_empty: bool,
    generator: torch.Generator,
) -> Solution:
    """At most `max_iter` rounds of assignment and update, from the given (K, D) centroids.

    Stops early when no point changes its cluster, or when the objective fell by at most tol times itself.

    Args:
        search: makes what finds the nearest of given centroids.
        square: sum of the points' squared norms.
    """
    solution = Solution(centroids)
    label = torch.full((points.n,), -1, dtype=torch.int64, device=points.device)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    for _ in range(max_iter):
        centroids = solution.centroids
        find = search(centroids)
        moved = 0
        for start, block in points.blocks():
            found, before = find(block, start), label[start : start + len(block)]
            moved += _move(sums, block, before, found)
            before.copy_(found)
        sizes = torch.bincount(label, minlength=len(centroids))
        solution.objectives.append(objective(sums, sizes, centroids, square))
        if moved == 0:
            if find.complete:
                break
            search.forget()
        solution.centroids = updated(sums, sizes, centroids, points.spherical, split_empty, generator)
        if tol > 0 and len(solution.objectives) > 1:
            last, now = solution.objectives[-2:]
            if last - now <= tol * last:
                break
    return solution


def _move(sums: Tensor, block: Tensor, before: Tensor, found: Tensor) -> int:
    """Move rows of a block that changed clusters from one sum to another; returns how many did."""
    if int(before[0]) < 0:  # the first round
        add_sums(sums, block, found)
        return len(block)
    changed = (found != before).nonzero()[:, 0]
    if len(changed):
        rows = block[changed]
        add_sums(sums, rows, found[changed])
        add_sums(sums, rows, before[changed], sign=-1)
    return len(changed)


def add_sums(sums: Tensor, block: Tensor, label: Tensor, sign: int = 1) -> Tensor:
    """Add sign times the rows of a block (B, D) to the (K, D) float64 sums of their clusters.

    Rows are summed in the order of the block, in float32 for up to 1,024 of a cluster and in float64
    beyond: the same result on every run, unlike scattered atomic additions.

    Returns:
        (K,) int64, rows of the block in each cluster.
    """
    k = len(sums)
    sizes = torch.bincount(label, minlength=k)
    order = by_cluster(label, k)
    bags = ((sizes + BAG - 1) // BAG).clamp_min_(1)
    owner = torch.repeat_interleave(torch.arange(k, device=block.device), bags)
    rank = torch.arange(len(owner), device=block.device) - (bags.cumsum(0) - bags)[owner]
    first = (sizes.cumsum(0) - sizes)[owner] + rank * BAG

    def add(start: int, stop: int) -> Tensor:
        last = int(first[stop]) if stop < len(first) else len(order)
        part = order[int(first[start]) : last]
        return torch.nn.functional.embedding_bag(part, block, first[start:stop] - first[start], mode="sum")

    span = -(-len(owner) // members()) if block.device.type == "cpu" else len(owner)
    part = torch.cat(over_spans(add, len(owner), span))
    if len(owner) == k:
        sums.add_(part, alpha=sign)
        return sizes
    for turn in range(int(bags.max())):  # one bag of each cluster at a time
        now = rank == turn
        sums[owner[now]] += sign * part[now]
    return sizes


def by_cluster(label: Tensor, k: int) -> Tensor:
    """(B,) int64, positions in the block sorted by cluster, in order within one."""
    if label.device.type == "cpu" and k <= 1 << 16:  # NumPy sorts 16-bit integers by radix
        return torch.from_numpy(np.argsort(label.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(label, stable=True)


def objective(sums: Tensor, sizes: Tensor, centroids: Tensor, square: float) -> float:
    """Sum of squared distances of points to their centroids, from sums alone: |x|^2 - 2 x.c + |c|^2."""
    c = centroids.double()
    return max(0.0, square - 2 * float((sums * c).sum()) + float((sizes * c.square().sum(1)).sum()))


def updated(
    sums: Tensor,
    sizes: Tensor,
    centroids: Tensor,
    spherical: bool,
    split_empty: bool,
    generator: torch.Generator,
) -> Tensor:
    """(K, D) means of the clusters; empty ones are split off others, or keep their centroid."""
    means = (sums / sizes.clamp_min(1)[:, None]).float()
    means = torch.where((sizes > 0)[:, None], means, centroids)
    if split_empty:
        means = split(means, sizes, generator)
    return normalize_rows(means) if spherical else means


def split(centroids: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Give every empty cluster half of another one, as the paper does (arXiv 1807.05520 §3.3).

    A donor is drawn with probability in proportion to its size less one; the empty cluster takes a copy
    of its centroid, and both are moved apart by 1/1024 of every coordinate, in alternating directions.
    No cluster gives twice before all that can have given once.
    """
    centroids, left = centroids.clone(), sizes.cpu().double()
    empty = (left == 0).nonzero()[:, 0]
    apart = torch.full((centroids.shape[1],), SPLIT, device=centroids.device)
    apart[1::2] *= -1
    while len(empty):
        weight = (left - 1).clamp_min(0)
        donors = torch.multinomial(weight, min(len(empty), int((weight > 0).sum())), generator=generator)
        now, empty = empty[: len(donors)], empty[len(donors) :]
        left[now] = (left[donors] / 2).floor()
        left[donors] -= left[now]
        copy = centroids[donors]
        centroids[now], centroids[donors] = copy * (1 + apart), copy * (1 - apart)
    return centroids


def assign(points: Points, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) int64 nearest centroid and (N,) float32 squared distance to it, in float32 throughout."""
    mean = centroids.mean(0)
    if mean.square().sum() > centroids.square().sum(1).mean() / 2:
        # products of float32 would lose the digits that a large common offset takes
        points, centroids = points.about(mean), centroids - mean
    find = Nearest(centroids)
    label = torch.empty(points.n, dtype=torch.int64, device=points.device)
    distance = torch.empty(points.n, device=points.device)
    for start, block in points.blocks():
        found = find(block)
        label[start : start + len(block)] = found
        measured = distance[start : start + len(block)]

        def measure(
            first: int, last: int, block: Tensor = block, found: Tensor = found, into: Tensor = measured
        ) -> None:
            into[first:last] = (block[first:last] - centroids[found[first:last]]).square_().sum(1)

        over_spans(measure, len(block), SPAN)
    return label, distance


def settle(points: Points, centroids: Tensor, fill_empty: bool, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """The final assignment, consistent with the centroids that are returned with it.

    The paper's splitting acts within iterations only, so clusters can be empty at the end. Where
    `fill_empty`, each then gets for centroid the point that lies farthest from its own, one point per
    cluster, and all centroids move to the means once more, both of which can only lower the objective; a
    cluster stays empty only where fewer distinct points than clusters are left.

    Returns:
        (K, D) centroids, (N,) labels, (N,) squared distances.
    """
    label, distance = assign(points, centroids)
    for _ in range(rounds if fill_empty else 0):
        empty = (torch.bincount(label, minlength=len(centroids)) == 0).nonzero()[:, 0]
        if not len(empty):
            break
        far, index = distance.topk(len(empty))
        # rounding leaves a distance of about 1e-7 of a point's length between it and an equal centroid
        noise = 1e-12 * points.take(index).square().sum(1)
        index = index[far > noise]
        if not len(index):
            break
        centroids = centroids.clone()
        centroids[empty[: len(index)]] = points.take(index)
        label, _ = assign(points, centroids)
        centroids = means(points, label, centroids)
        label, distance = assign(points, centroids)
    return centroids, label, distance


def means(points: Points, label: Tensor, centroids: Tensor) -> Tensor:
    """(K, D) means of the clusters; an empty one keeps its centroid."""
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    sizes = torch.zeros(len(centroids), dtype=torch.int64, device=points.device)
    for start, block in points.blocks():
        sizes += add_sums(sums, block, label[start : start + len(block)])
    never = torch.Generator()  # nothing is drawn
    return updated(sums, sizes, centroids, points.spherical, False, never)
