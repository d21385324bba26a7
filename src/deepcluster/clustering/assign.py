"""One step of k-means: (points, centroids) -> labels, and sums and counts of the clusters.

The nearest centroid is the one of largest score x.c - |c|^2 / 2. On a CPU the scores of 512 rows and 1,024 centroids
are computed at a time, few enough to stay in a core's own cache, and reduced there; N x K scores are never held. The
same step that passes over settled points is in assign_margins.py, that of GPUs with Triton in assign_triton.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.points import BLOCK_NUMBERS, Points
from deepcluster.clustering.tally import ClusterSums, Step, Tallies, Tally, add_sums, means_of
from deepcluster.distributed import ALIGN
from deepcluster.exact_sum import unit_for
from deepcluster.features.block_reader import Rows, require_finite
from deepcluster.features.parallel import joined, keep_over_rows, over_rows, over_spans, team
from deepcluster.features.product import multiply
from deepcluster.gpu import has_triton

ROWS = 512  # rows and
WIDTH = 1024  # centroids of a tile of scores on a CPU, 2 MiB; more rows where there are fewer centroids
SPAN = 4096  # rows that one thread takes at a time; more where there would be fewer than
WORTH = 1 << 26  # products, for which another thread costs more than it saves
COLUMNS = 16  # a tile's centroids are padded to a multiple of this many
NARROW = 32  # centroids up to which scores are compared column by column
GPU_SCORES = 1 << 27  # scores held at once on an accelerator: 512 MiB
EXACT = "donot_use_mm_for_euclid_dist"


class NearestSearch:
    """Nearest of fixed centroids by float32 or bfloat16 products.

    bfloat16 rounds rows and centroids to 8 bits of mantissa and sums their products in float32: fast
    where the device has such units, and the same numbers without the speed on a CPU that has none.

    Args:
        centroids: (K, D) float32.
        half: take the products in bfloat16.
    """

    def __init__(self, centroids: Tensor, half: bool = False):
        self.k = len(centroids)
        self.half = half
        self.on_cpu = centroids.device.type == "cpu"
        module = fused(centroids.device, half)
        self.fused = None if module is None else module.FusedSearch(centroids, half)
        if half:
            centroids = centroids.bfloat16() if not self.on_cpu else centroids.bfloat16().float()
        self.bias = centroids.float().square().sum(1) / -2
        self.columns = centroids.T
        # products of a few rows are rounded in another way than those of many: few rows are padded, so that a row's
        # cluster does not depend on which others are asked for with it
        self.least = min(ROWS, 16 + centroids.shape[1] // 16)
        if self.on_cpu:
            self.tiles = [_tile(centroids[i : i + WIDTH], self.bias[i : i + WIDTH]) for i in range(0, self.k, WIDTH)]
            self.rows = min(SPAN, ROWS * WIDTH // len(self.tiles[0][1]))

    def __call__(self, block: Tensor, start: int = 0) -> Tensor:
        """(B,) int64, the nearest centroid of each row of block (B, D); `start` is not needed here."""
        if self.fused is not None:
            found: Tensor = self.fused(block)
            return found
        if self.half:
            block = block.bfloat16() if not self.on_cpu else block.bfloat16().float()
        label = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        if self.on_cpu:

            def find(first: int, last: int) -> None:
                self._find_on_cpu(block[first:last], label[first:last])

            over_spans(find, len(block), span_of(self.k, block.shape[1]))
            return label
        step = max(1, GPU_SCORES // self.k)
        for i in range(0, len(block), step):
            label[i : i + step] = self._find(block[i : i + step])
        return label

    def _find(self, part: Tensor) -> Tensor:
        if self.half:
            scores = torch.mm(part, self.columns, out_dtype=torch.float32)
        else:
            scores = part @ self.columns
        return scores.add_(self.bias).argmax(1)

    def with_margins(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) int64 nearest centroids of the rows of block (B, D), and by how much their scores lead the second best.

        On CPUs, on the calling thread alone.
        """
        label, margin = torch.zeros(len(block), dtype=torch.int64), torch.empty(len(block))
        self._find_on_cpu(block, label, margin)
        return label, margin

    def _find_on_cpu(self, block: Tensor, label: Tensor, margin: Tensor | None = None) -> None:
        """Write the labels, and the margins where they are asked for."""
        if len(block) < self.least:
            padded = torch.zeros(self.least, dtype=torch.int64), torch.empty(self.least)
            self._find_on_cpu(torch.nn.functional.pad(block, (0, 0, 0, self.least - len(block))), *padded)
            label.copy_(padded[0][: len(label)])
            if margin is not None:
                margin.copy_(padded[1][: len(label)])
            return
        buffer = torch.empty(min(self.rows, len(block)) * self.tiles[0][0].shape[1])
        for i in range(0, len(block), self.rows):
            if i > 0 and len(block) - i < self.least:
                self._find_on_cpu(block[i:], label[i:], None if margin is None else margin[i:])
                return
            part, answer = block[i : i + self.rows], label[i : i + self.rows]
            best = second = torch.empty(0)
            for tile, (columns, bias) in enumerate(self.tiles):
                width = columns.shape[1]
                scores = buffer[: len(part) * width].view(len(part), width)
                multiply(part, columns, scores).add_(bias)
                where = largest(scores if self.k > NARROW else scores[:, : self.k])
                if margin is None and len(self.tiles) == 1:
                    answer.copy_(where)
                    break
                value = scores.gather(1, where[:, None])[:, 0]
                runner_up = value
                if margin is not None:
                    runner_up = scores.scatter_(1, where[:, None], -torch.inf).amax(1)
                if tile == 0:
                    answer.copy_(where)
                    best, second = value, runner_up
                    continue
                answer.copy_(torch.where(value > best, where + tile * WIDTH, answer))
                if margin is not None:
                    second = torch.maximum(torch.maximum(second, runner_up), torch.minimum(best, value))
                best = torch.maximum(best, value)
            if margin is not None:
                torch.sub(best, second, out=margin[i : i + self.rows])


def fused(device: torch.device, half: bool) -> Any:
    """assign_triton.py, where it works: on GPUs, with Triton, which not every torch comes with; None elsewhere."""
    if not has_triton(device):
        return None
    from deepcluster.clustering import assign_triton

    return assign_triton if assign_triton.works(device, half) else None


def span_of(k: int, dim: int) -> int:
    return max(SPAN, WORTH // (k * dim))


def largest(scores: Tensor) -> Tensor:
    """(B,) int64 column of the largest entry of each row of scores (B, K) on the CPU; of equal ones the first.

    By NumPy, which compares several entries of a row at a time, or of a column where rows are short: torch's `argmax`
    looks at one.
    """
    values, k = scores.numpy(), scores.shape[1]
    if k > NARROW:
        return torch.from_numpy(values.argmax(1))
    columns = np.ascontiguousarray(values.T)
    rank = (columns == columns.max(0)) * np.arange(k, 0, -1, dtype=np.uint8)[:, None]
    return torch.from_numpy(k - np.maximum(rank.max(0), 1).astype(np.int64))  # 1: rows that hold NaN, refused elsewhere


def _tile(centroids: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(D, W) columns and (W,) bias, padded with centroids that nothing is nearest to."""
    padding = -len(centroids) % COLUMNS
    centroids = torch.nn.functional.pad(centroids, (0, 0, 0, padding))
    return centroids.T.contiguous(), torch.nn.functional.pad(bias, (0, padding), value=-torch.inf)


class NearestStep:
    """The step of some points that compares each of them with all centroids."""

    def __init__(self, points: Points, k: int, unit: float):
        self.clusters = ClusterSums(points, k, unit)

    def update(self, points: Points, centroids: Tensor, half: bool) -> Tally:
        """The points' tally, see `NearestSearch`."""
        return self.clusters.update(points, NearestSearch(centroids, half))


def nearest_step(points: Points, k: int, half: bool) -> Step:
    """The step by float32 or bfloat16 products."""
    module = fused(points.device, half)
    kind = NearestStep if module is None else module.FusedStep
    parts = keep_over_rows(kind, [points], k, points.moments.unit)
    tallies = Tallies(parts, points.shard.group)
    return lambda centroids: tallies.update(centroids, half)


def cluster_means(points: Points, labels: Tensor, centroids: Tensor, unit: float) -> Tensor:
    """(K, D) float32 means of all processes' points by their labels (N,); an empty cluster keeps its centroid."""
    own, *others = over_rows(_sums, [points, labels], len(centroids), unit)
    for other in others:
        own.flat += other.flat
    points.shard.group.sum_(own.flat)
    return means_of(own.sums, own.counts, centroids)


def _sums(points: Points, labels: Tensor, k: int, unit: float) -> Tally:
    own = Tally(k, points.dim, device=points.device)
    for start, block in points.blocks():
        add_sums(own.sums, block, labels[start : start + len(block)], unit, points.weights(start, len(block)))
    own.counts.copy_(points.counts(labels, k))
    return own


def group_means(rows: Rows, labels: Tensor, k: int) -> Tensor:
    """(K, D) float32 means of the rows (N, D) by any labels (N,); -1 = in no group; zero where a group is empty."""
    peak = 0.0
    for start, block in rows.blocks():
        if len(grouped := block[labels[start : start + len(block)] >= 0]):
            peak = max(peak, float(grouped.abs().max()))
    zeros = torch.zeros(k + 1, rows.dim, device=rows.device)
    return cluster_means(Points(rows), torch.where(labels < 0, k, labels), zeros, unit_for(peak, rows.n))[:k]


@team()
def nearest(points: Points, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) int64 nearest centroid of each point of this process and (N,) squared distance to it, float32 throughout."""
    mean = centroids.mean(0)
    if mean.square().sum() > centroids.square().sum(1).mean() / 2:
        # float32 products would lose the digits that a large common offset takes
        points, centroids = points.about(mean), centroids - mean
    labels, squared = zip(*over_rows(_nearest, [points], centroids), strict=True)
    return joined(labels), joined(squared)


def _nearest(points: Points, centroids: Tensor) -> tuple[Tensor, Tensor]:
    find = NearestSearch(centroids)
    labels = torch.empty(points.n, dtype=torch.int64, device=points.device)
    squared = torch.empty(points.n, device=points.device)
    for start, block in points.blocks():
        labels[start : start + len(block)] = find(block)
        _measure(block, labels, centroids, start, squared)
    return labels, squared


@team()
def squared_distances(points: Points, labels: Tensor, centroids: Tensor) -> Tensor:
    """(N,) float32 squared distances of the points to centroids[labels]; NaN where the label is -1."""
    return joined(over_rows(_squared_distances, [points, labels], centroids))


def _squared_distances(points: Points, labels: Tensor, centroids: Tensor) -> Tensor:
    squared = torch.empty(points.n, device=points.device)
    for start, block in points.blocks():
        _measure(block, labels, centroids, start, squared)
    return squared.masked_fill_(labels < 0, torch.nan)


def _measure(block: Tensor, labels: Tensor, centroids: Tensor, start: int, squared: Tensor) -> None:
    def measure(first: int, last: int) -> None:
        own = centroids[labels[start + first : start + last].clamp_min(0)]
        squared[start + first : start + last] = (block[first:last] - own).square_().sum(1)

    over_spans(measure, len(block), ALIGN)


def distances(points: Points, centroids: Tensor) -> Tensor:
    """(N, K) float32 Euclidean distances of the points to the centroids."""
    result = torch.empty(points.n, len(centroids), device=points.device)
    points.step = max(1, min(points.step, BLOCK_NUMBERS // len(centroids)))
    for start, block in points.blocks():
        # differences, not products: a distance near zero keeps its digits
        measured = torch.cdist(block, centroids, compute_mode=EXACT)
        require_finite(measured[:, 0], start)
        result[start : start + len(block)] = measured
    return result
