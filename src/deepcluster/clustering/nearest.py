"""Which of K centroids is nearest to each row, without ever holding N x K distances.

The nearest centroid is the one of largest score x.c - |c|^2 / 2. On a CPU the scores of 512 rows and
1,024 centroids are made at a time, small enough to stay in a core's own cache, and reduced there.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from deepcluster.features.parallel import over_spans

ROWS = 512  # rows and
WIDTH = 1024  # centroids of a tile of scores on a CPU: 2 MiB
SPAN = 4096  # rows that one thread takes at a time
LANES = 32  # a tile's columns are reduced in this many interleaved groups, which vectorizes
GPU_SCORES = 1 << 27  # scores held at once on an accelerator: 512 MiB


class Finder(Protocol):
    """What finds nearest centroids: `Nearest` here, `Screened` in int8.py."""

    def __call__(self, block: Tensor, start: int) -> Tensor: ...


class Search(Protocol):
    """What makes the finders of a run of k-means, one for each round's centroids.

    Where points are shared out over processes, each has a search for its own; after a round the sum of what these have
    `to_tell` is `heard` by all, so that they decide alike.
    """

    extra: int  # how many numbers it has to tell
    complete: bool  # every point of every process was looked at in the last round

    def __call__(self, centroids: Tensor) -> Finder: ...

    def to_tell(self) -> Tensor: ...

    def heard(self, told: Tensor) -> bool: ...

    def forget(self) -> None: ...


class Plain:
    """Makes finders that compare every point with every centroid."""

    extra = 0
    complete = True

    def __init__(self, half: bool = False):
        self.half = half

    def __call__(self, centroids: Tensor) -> Nearest:
        return Nearest(centroids, self.half)

    def to_tell(self) -> Tensor:
        """Nothing."""
        return torch.zeros(0, dtype=torch.float64)

    def heard(self, told: Tensor) -> bool:
        """The round stands."""
        return True

    def forget(self) -> None:
        """There is nothing to forget."""


class Nearest:
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
        if half:
            centroids = centroids.bfloat16() if not self.on_cpu else centroids.bfloat16().float()
        self.bias = centroids.float().square().sum(1) / -2
        self.columns = centroids.T
        # products of a few rows are rounded in another way than those of many: rows alone get company, so that a
        # row's cluster does not depend on which others are asked for with it
        self.least = min(ROWS, 16 + centroids.shape[1] // 16)
        if self.on_cpu:
            self.tiles = [_tile(centroids[i : i + WIDTH], self.bias[i : i + WIDTH]) for i in range(0, self.k, WIDTH)]

    def __call__(self, block: Tensor, start: int = 0) -> Tensor:
        """(B,) int64, the nearest centroid of each row of block (B, D); `start` is not needed here."""
        if self.half:
            block = block.bfloat16() if not self.on_cpu else block.bfloat16().float()
        label = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        if self.on_cpu:

            def find(first: int, last: int) -> None:
                self._find_on_cpu(block[first:last], label[first:last])

            over_spans(find, len(block), SPAN)
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

    def _find_on_cpu(self, block: Tensor, label: Tensor) -> None:
        if len(block) < self.least:
            padded = torch.zeros(self.least, dtype=torch.int64)
            self._find_on_cpu(torch.nn.functional.pad(block, (0, 0, 0, self.least - len(block))), padded)
            label.copy_(padded[: len(label)])
            return
        buffer = torch.empty(min(ROWS, len(block)) * self.tiles[0][0].shape[1])
        for i in range(0, len(block), ROWS):
            if i > 0 and len(block) - i < self.least:
                self._find_on_cpu(block[i:], label[i:])
                return
            part, answer = block[i : i + ROWS], label[i : i + ROWS]
            best = torch.full((len(part),), -torch.inf)
            for tile, (columns, bias) in enumerate(self.tiles):
                width = columns.shape[1]
                scores = buffer[: len(part) * width].view(len(part), width)
                torch.mm(part, columns, out=scores).add_(bias)
                value, where = largest(scores)
                answer.copy_(torch.where(value > best, where + tile * WIDTH, answer))
                torch.maximum(best, value, out=best)


def largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each row and its column, for a number of columns divisible by LANES.

    `Tensor.max(1)` looks at one entry at a time; here whole lanes are compared, and only the lane that
    holds the largest entry is searched.
    """
    folded = scores.view(len(scores), -1, LANES)
    value, lane = folded.amax(1).max(1)
    member = folded.gather(2, lane[:, None, None].expand(-1, folded.shape[1], 1))[..., 0].argmax(1)
    return value, member * LANES + lane


def _tile(centroids: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(D, W) columns and (W,) bias, padded with centroids that nothing is nearest to."""
    padding = -len(centroids) % LANES
    centroids = torch.nn.functional.pad(centroids, (0, 0, 0, padding))
    return centroids.T, torch.nn.functional.pad(bias, (0, padding), value=-torch.inf)
