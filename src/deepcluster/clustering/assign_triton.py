"""The step of k-means on a GPU in one kernel, by Triton: scores never reach memory, and nothing waits for the host.

A program takes a tile of rows over all centroids, tile by tile, and keeps the best score and its centroid. Rows that
changed their cluster it then adds to the new sum and takes from the old one, as whole multiples of the unit of the
exact sums (exact_sum.py): integers add up to the same in any order, so that sums are those of the CPU to the last bit.
Labels are those of the CPU where the two best scores differ by more than the rounding of float32 products.

Nothing else knows of this file but assign.py, which takes it on GPUs where `works`.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepcluster.clustering.points import Points
from deepcluster.clustering.tally import Tally
from deepcluster.features.block_reader import Rows
from deepcluster.gpu import kernel_works

FRACTION = tl.constexpr(52)  # bits of a float64's fraction,
LOWEST = tl.constexpr(1075)  # and how far its stored exponent lies above that of the fraction's lowest bit
# rows, centroids and columns of a tile of products, and warps: as much as registers hold
TILE = {torch.float32: (128, 128, 16, 8), torch.bfloat16: (128, 128, 64, 8)}
SUMMED = tl.constexpr(16)  # columns of a tile of rows that is added to the sums


@triton.jit
def _multiples(value, exponent):  # type: ignore[no-untyped-def]
    """Int64: the float64 `value` in units of 2^exponent, rounded to the nearest whole number, half of one to even.

    By its bits, so that no compiler's liberties with floats matter. Magnitudes are below 2^51, as units are chosen.
    """
    bits = value.to(tl.int64, bitcast=True)
    power = (bits >> FRACTION) & 0x7FF
    fraction = bits & 0xFFFFFFFFFFFFF
    fraction = tl.where(power > 0, fraction | 0x10000000000000, fraction)
    cut = LOWEST + exponent - tl.where(power > 1, power, 1)  # bits below the unit
    cut = tl.where(cut < 54, cut, 54)  # 54: the number is below half
    half = tl.full((), 1, tl.int64) << (cut - 1)
    size = (fraction + half - 1 + ((fraction >> cut) & 1)) >> cut
    return tl.where(bits < 0, -size, size)


@triton.jit  # type: ignore[untyped-decorator]
def _assign(  # type: ignore[no-untyped-def]
    rows,  # (n, D) float32
    row_stride,
    column_stride,
    centroids,  # (D, K) float32 or bfloat16: the type of the products
    bias,  # (K,) float32
    labels,  # (n,) int64: the clusters of the last step, of this one afterwards
    weights,  # (n,) float64
    sums,  # (K, D) int64, in units of 2^exponent
    counts,  # (K,) int64, in units of 2^weight_exponent
    moved,  # (1,) int64
    n,
    k,
    dim,
    exponent,
    weight_exponent,
    SUMS: tl.constexpr,  # whether anything but labels is asked for
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    first = rows + row[:, None] * row_stride
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    label = tl.zeros((ROWS,), tl.int64)
    for left in range(0, k, WIDTH):
        cluster = left + tl.arange(0, WIDTH).to(tl.int64)
        score = tl.zeros((ROWS, WIDTH), tl.float32)
        for top in range(0, dim, DEPTH):
            column = top + tl.arange(0, DEPTH)
            there = column < dim
            x = tl.load(
                first + column[None, :].to(tl.int64) * column_stride, mask=inside[:, None] & there[None, :], other=0.0
            )
            c = tl.load(
                centroids + column[:, None].to(tl.int64) * k + cluster[None, :],
                mask=(cluster < k)[None, :] & there[:, None],
                other=0.0,
            )
            score = tl.dot(x.to(c.dtype), c, score, input_precision="ieee")
        score += tl.load(bias + cluster, mask=cluster < k, other=float("-inf"))[None, :]
        value, place = tl.max(score, 1, return_indices=True)  # of equal ones the first
        better = value > best
        label = tl.where(better, left + place, label)
        best = tl.where(better, value, best)
    if SUMS:
        before = tl.load(labels + row, mask=inside, other=-1)
        changed = inside & (label != before)
        number = tl.sum(changed.to(tl.int64))
        if number > 0:
            left_one = changed & (before >= 0)
            tl.atomic_add(moved, number, sem="relaxed")
            one = tl.full((ROWS,), 1, tl.int64)
            weight = one.to(tl.float64)
            if WEIGHTED:
                weight = tl.load(weights + row, mask=inside, other=0.0)
                one = _multiples(weight, weight_exponent)
            tl.atomic_add(counts + label, one, mask=changed, sem="relaxed")
            tl.atomic_add(counts + before, -one, mask=left_one, sem="relaxed")
            for top in range(0, dim, SUMMED):
                column = top + tl.arange(0, SUMMED).to(tl.int64)
                there = (column < dim)[None, :]
                exact = tl.load(first + column[None, :] * column_stride, mask=changed[:, None] & there, other=0.0)
                exact = exact.to(tl.float64)
                if WEIGHTED:
                    exact = exact * weight[:, None]
                whole = _multiples(exact, exponent)
                into = sums + column[None, :]
                tl.atomic_add(into + label[:, None] * dim, whole, mask=changed[:, None] & there, sem="relaxed")
                tl.atomic_add(into + before[:, None] * dim, -whole, mask=left_one[:, None] & there, sem="relaxed")
    tl.store(labels + row, label, mask=inside)


class FusedSearch:
    """Nearest of fixed centroids by float32 or bfloat16 products.

    Args:
        centroids: (K, D) float32.
        half: take the products in bfloat16.
    """

    def __init__(self, centroids: Tensor, half: bool = False):
        centroids = centroids.bfloat16() if half else centroids
        self.columns = centroids.T.contiguous()
        self.bias = centroids.float().square().sum(1) / -2

    def __call__(self, block: Tensor) -> Tensor:
        """(B,) int64, the nearest centroid of each row of block (B, D)."""
        labels = torch.empty(len(block), dtype=torch.int64, device=block.device)
        self.assign(block, labels, None, None, None, None, 0, 0)
        return labels

    def assign(
        self,
        block: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        sums: Tensor | None,
        counts: Tensor | None,
        moved: Tensor | None,
        exponent: int,
        weight_exponent: int,
    ) -> None:
        """Write the labels (B,) of block (B, D); and where there are sums, move what changed; see `_assign`."""
        (dim, k), (rows, width, depth, warps) = self.columns.shape, TILE[self.columns.dtype]
        with torch.cuda.device_of(block):  # type: ignore[no-untyped-call]
            _assign[(triton.cdiv(len(block), rows),)](
                block, *block.stride(), self.columns, self.bias, labels, weights, sums, counts, moved,
                len(block), k, dim, exponent, weight_exponent, SUMS=sums is not None, WEIGHTED=weights is not None,
                ROWS=rows, WIDTH=width, DEPTH=depth, num_warps=warps,
            )  # fmt: skip


class FusedStep:
    """The step of some points that compares each of them with all centroids, on a GPU.

    Args:
        points: n of them; each call must get the same ones.
        k: clusters.
        unit: of the exact sums.
    """

    def __init__(self, points: Points, k: int, unit: float):
        self.units = unit, points.weight_unit
        self.labels = torch.full((points.n,), -1, dtype=torch.int64, device=points.device)
        self.counts = torch.zeros(k, dtype=torch.int64, device=points.device)

    def update(self, points: Points, centroids: Tensor, half: bool) -> Tally:
        """The points' tally."""
        search = FusedSearch(centroids, half)
        sums, moved = (torch.zeros(shape, dtype=torch.int64, device=points.device) for shape in (centroids.shape, (1,)))
        exponents = [math.frexp(unit)[1] - 1 for unit in self.units]  # they are powers of two
        for start, block in points.blocks():
            labels, weights = self.labels[start : start + len(block)], points.weights(start, len(block))
            search.assign(block, labels, weights, sums, self.counts, moved, *exponents)
        tally = Tally(len(sums), points.dim, device=points.device)
        tally.sums.copy_(sums).mul_(self.units[0])
        tally.counts.copy_(self.counts).mul_(self.units[1])
        tally.moved.copy_(moved)
        return tally


@cache
def works(device: torch.device, half: bool) -> bool:
    """Whether the kernel compiles for this GPU and does right by a small table; where not, a warning tells why."""
    return kernel_works("k-means", device, lambda: _is_right(device, half))


def _is_right(device: torch.device, half: bool) -> bool:
    # small whole numbers: products are exact in bfloat16, too, and some rows are equally near to two centroids
    x, centroids = (
        (torch.arange(rows * 40) * factor % 13 - 6).view(rows, 40).float() for rows, factor in ((300, 7), (5, 3))
    )
    points, sums = Points(Rows(x.to(device))), torch.zeros(5, 40, dtype=torch.float64)
    step = FusedStep(points, 5, 1.0)
    for start in (centroids.flip(0), centroids):
        tally = step.update(points, start.to(device), half)
        sums += tally.sums.cpu()
    labels = (x @ centroids.T - centroids.square().sum(1) / 2).argmax(1)
    expected = torch.zeros_like(sums).index_add_(0, labels, x.double())
    return torch.equal(step.labels.cpu(), labels) and torch.equal(sums, expected)
