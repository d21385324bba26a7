"""Lloyd's iterations over rows that come in blocks: assign, average, split into empty clusters, repeat.

Knows rows and centroids; the public class is in kmeans.py, the search for the nearest in nearest.py. The rows may be
shared out over several processes: each assigns its own, and sums, sizes and whatever else decides are told to all
once a round. Sums are exact (exact.py), so that they are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepcluster.clustering.exact_sum import Total, round_, unit_for
from deepcluster.clustering.nearest import Nearest, Search
from deepcluster.clustering.row_partition import Shard, agreed, shard_of
from deepcluster.clustering.whitening import normalize_rows
from deepcluster.distributed import ALIGN
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Picked, Rows
from deepcluster.features.parallel import members, over_spans

BLOCK_NUMBERS = 1 << 24  # numbers in a block (64 MiB)
SUMMED = 512  # rows that are brought to float64 at a time: they stay in a core's own cache
SPLIT = 1 / 1024  # how far the two halves of a split cluster are moved apart, as in faiss


class Points:
    """The rows k-means sees: of unit length where it is spherical, about `offset` where that is given.

    Args:
        rows: those of this process.
        chunk: rows of a block, in multiples of 1,024; None = 64 MiB of them.
        shard: where they stand among those of all processes; None = there are no others.
    """

    def __init__(
        self,
        rows: Rows | Picked,
        spherical: bool = False,
        chunk: int | None = None,
        offset: Tensor | None = None,
        shard: Shard | None = None,
    ):
        self.rows, self.spherical, self.chunk, self.offset = rows, spherical, chunk, offset
        self.shard = shard or shard_of(rows)
        self.n, self.dim, self.device = rows.n, rows.dim, rows.device
        self.step = max(ALIGN, (chunk or BLOCK_NUMBERS // rows.dim) // ALIGN * ALIGN)

    def about(self, offset: Tensor | None) -> Points:
        """The same points with `offset` taken off each."""
        return Points(self.rows, self.spherical, self.chunk, offset, self.shard)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, (B, D) block) pairs of this process; a block is valid until the next one is read."""
        for start, block in self.rows.blocks(self.step):
            yield start, self._seen(block)

    def take(self, index: Tensor) -> Tensor:
        """(len(index), D) points, by their places among those of all processes; on all of them."""
        return self._seen(self.shard.take(self.rows, index))

    def _seen(self, block: Tensor) -> Tensor:
        if not self.spherical and self.offset is None:
            return block
        seen = torch.empty_like(block)

        def see(first: int, last: int) -> None:
            part = normalize_rows(block[first:last]) if self.spherical else block[first:last]
            seen[first:last] = part if self.offset is None else part - self.offset

        over_spans(see, len(block), ALIGN if block.device.type == "cpu" else len(block))
        return seen


@dataclass
class Moments:
    """What one reading of the points tells, those of all processes."""

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
    """Raises DeepClusterError, on all processes, where a point holds NaN or infinity."""
    shard = points.shard
    total, greatest = agreed(shard.group, lambda: _own_moments(points))
    shard.sum_(total.digits)
    shard.max_(greatest)
    sums, (peak, longest) = total.value(), greatest.tolist()
    return Moments(sums[:-1] / shard.total, float(sums[-1]), peak, longest)


def _own_moments(points: Points) -> tuple[Total, Tensor]:
    """Sums of coordinates and of squared norms, and (2,) the largest coordinate and norm, of this process's points."""
    total, greatest = Total(points.dim + 1, points.device), [0.0, 0.0]
    for start, block in points.blocks():

        def facts(first: int, last: int, block: Tensor = block) -> tuple[Tensor, float, float]:
            return _moments(block[first:last])

        sums, peaks, lengths = zip(*over_spans(facts, len(block), ALIGN), strict=True)
        added = torch.stack(sums)
        if not torch.isfinite(added).all():
            bad = (~torch.isfinite(block).all(1)).nonzero()
            if len(bad):
                raise DeepClusterError(
                    f"Row {points.shard.first + start + int(bad[0, 0])} of the features holds NaN or infinity; leave "
                    "out such rows before clustering."
                )
            raise DeepClusterError("The features are too large for float32 sums of squares; scale them down.")
        total.add(added)
        greatest = [max(greatest[0], *peaks), max(greatest[1], *lengths)]
    return total, torch.tensor(greatest, dtype=torch.float64, device=points.device)


def _moments(block: Tensor) -> tuple[Tensor, float, float]:
    low, high = block.aminmax()
    norms = torch.linalg.vector_norm(block, dim=1).double()
    # NaN passes through the sum, whatever the maximum makes of it
    sums = torch.cat([block.sum(0, dtype=torch.float64), norms.square().sum()[None]])
    return sums, max(float(high), -float(low)), float(norms.max())


class Tally:
    """What processes tell each other after a round, in one piece.

    Args:
        k: clusters.
        dim: D.
        extra: numbers the search wants to be told besides.

    Attributes:
        flat: (K * D + K + 1 + extra,) float64, all of it; the others are views of its parts.
        sums: (K, D) of the points in each cluster.
        sizes: (K,) points in each.
        moved: (1,) points that changed their cluster.
        extra: (extra,) the search's own.
    """

    def __init__(self, k: int, dim: int, extra: int = 0, device: torch.device | None = None):
        self.flat = torch.zeros(k * dim + k + 1 + extra, dtype=torch.float64, device=device)
        sums, self.sizes, self.moved, self.extra = self.flat.split([k * dim, k, 1, extra])
        self.sums = sums.view(k, dim)

    def of_all(self, shard: Shard) -> Tally:
        """The sum over all processes; the tally itself where there is one only."""
        if shard.group.is_single:
            return self
        k, dim = self.sums.shape
        total = Tally(k, dim, len(self.extra), self.flat.device)
        shard.sum_(total.flat.copy_(self.flat))
        return total


def lloyd(
    points: Points,
    centroids: Tensor,
    search: Search,
    *,
    facts: Moments,
    max_iter: int,
    tol: float,
    split_empty: bool,
    generator: torch.Generator,
) -> Solution:
    """At most `max_iter` rounds of assignment and update, from the given (K, D) centroids.

    Stops early when no point changes its cluster, or when the objective fell by at most tol times itself.

    Args:
        search: makes what finds the nearest of given centroids.
        facts: the points' moments.
    """
    solution = Solution(centroids)
    label = torch.full((points.n,), -1, dtype=torch.int64, device=points.device)
    own = Tally(len(centroids), points.dim, search.extra, points.device)
    unit = unit_for(facts.peak, points.shard.total)
    for _ in range(max_iter):
        centroids = solution.centroids
        moved = 0.0
        while True:
            all_ = _assigned(points, centroids, search, label, own, unit)
            moved += float(all_.moved)
            if search.heard(all_.extra):
                break
        solution.objectives.append(objective(all_.sums, all_.sizes, centroids, facts.square))
        if moved == 0:
            if search.complete:
                break
            search.forget()
        sizes = all_.sizes.long()
        solution.centroids = updated(all_.sums, sizes, centroids, points.spherical, split_empty, generator)
        if tol > 0 and len(solution.objectives) > 1:
            last, now = solution.objectives[-2:]
            if points.shard.group.any(last - now <= tol * last):
                break
    return solution


def _assigned(points: Points, centroids: Tensor, search: Search, label: Tensor, own: Tally, unit: float) -> Tally:
    """Bring `label` (N,) and the process's `own` tally up to date with `centroids`; what all processes have."""
    find = search(centroids)
    moved = 0
    for start, block in points.blocks():
        found, before = find(block, start), label[start : start + len(block)]
        moved += _move(own.sums, block, before, found, unit)
        before.copy_(found)
    own.sizes.copy_(torch.bincount(label, minlength=len(centroids)))
    own.moved.fill_(moved)
    own.extra.copy_(search.to_tell())
    return own.of_all(points.shard)


def _move(sums: Tensor, block: Tensor, before: Tensor, found: Tensor, unit: float) -> int:
    """Move rows of a block that changed clusters from one sum to another; returns how many did."""
    if int(before[0]) < 0:  # the first round
        add_sums(sums, block, found, unit)
        return len(block)
    changed = (found != before).nonzero()[:, 0]
    if len(changed):
        rows = block[changed]
        add_sums(sums, rows, found[changed], unit)
        add_sums(sums, rows, before[changed], unit, sign=-1)
    return len(changed)


def add_sums(sums: Tensor, block: Tensor, label: Tensor, unit: float, sign: int = 1) -> None:
    """Add sign times the rows of a block (B, D), rounded to `unit`, to the (K, D) float64 sums of their clusters.

    With a unit from `unit_for` nothing is lost in the additions, so their order does not matter, and what is taken
    off a sum again leaves no trace.
    """
    if block.device.type != "cpu":
        sums.index_add_(0, label, round_(block.double(), unit), alpha=sign)
        return

    def add(first: int, last: int) -> None:  # these columns, which are one thread's
        into = sums[:, first:last]
        buffer = torch.empty(min(SUMMED, len(block)), last - first, dtype=torch.float64)
        for start in range(0, len(block), SUMMED):
            own = label[start : start + SUMMED]
            exact = buffer[: len(own)].copy_(block[start : start + SUMMED, first:last])
            into.index_add_(0, own, round_(exact, unit), alpha=sign)

    over_spans(add, block.shape[1], -(-block.shape[1] // members()))


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
    """(N,) int64 nearest centroid and (N,) float32 squared distance to it, in float32 throughout.

    Of this process's points; nothing is told to others.
    """
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

        over_spans(measure, len(block), ALIGN)
    return label, distance


def settle(
    points: Points, centroids: Tensor, fill_empty: bool, unit: float, rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """The final assignment, consistent with the centroids that are returned with it.

    The paper's splitting acts within iterations only, so clusters can be empty at the end. Where
    `fill_empty`, each then gets for centroid the point that lies farthest from its own, one point per
    cluster, and all centroids move to the means once more, both of which can only lower the objective; a
    cluster stays empty only where fewer distinct points than clusters are left.

    Args:
        unit: what sums of these points are rounded to, see `add_sums`.

    Returns:
        (K, D) centroids, (N,) labels and (N,) squared distances of this process's points.
    """
    label, distance = assign(points, centroids)
    for _ in range(rounds if fill_empty else 0):
        empty = (sizes_of(points, label, len(centroids)) == 0).nonzero()[:, 0]
        if not len(empty):
            break
        index, far = points.shard.largest(distance, len(empty))
        taken = points.take(index)
        # rounding leaves a distance of about 1e-7 of a point's length between it and an equal centroid
        taken = taken[far > 1e-12 * taken.square().sum(1)]
        if not len(taken):
            break
        centroids = centroids.clone()
        centroids[empty[: len(taken)]] = taken
        label, _ = assign(points, centroids)
        centroids = means(points, label, centroids, unit)
        label, distance = assign(points, centroids)
    return centroids, label, distance


def sizes_of(points: Points, label: Tensor, k: int) -> Tensor:
    """(K,) int64, points in each cluster, of all processes, by the `label` (N,) of this one's."""
    return points.shard.sum_(torch.bincount(label, minlength=k))


def means(points: Points, label: Tensor, centroids: Tensor, unit: float) -> Tensor:
    """(K, D) means of the clusters; an empty one keeps its centroid."""
    own = Tally(len(centroids), points.dim, device=points.device)
    for start, block in points.blocks():
        add_sums(own.sums, block, label[start : start + len(block)], unit)
    own.sizes.copy_(torch.bincount(label, minlength=len(centroids)))
    all_ = own.of_all(points.shard)
    never = torch.Generator()  # nothing is drawn
    return updated(all_.sums, all_.sizes.long(), centroids, points.spherical, False, never)


def total_of(points: Points, values: Tensor) -> float:
    """Sum over all processes of `values` (N,) float32 of their points."""
    partial = [part.sum(dtype=torch.float64)[None] for part in values.split(ALIGN)]
    total = Total(1, values.device)
    if partial:
        total.add(torch.stack(partial))
    points.shard.sum_(total.digits)
    return float(total.value())
