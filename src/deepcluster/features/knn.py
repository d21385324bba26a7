"""The k nearest rows of each row by Euclidean distance or cosine, exactly, without ever holding N x N distances.

Products in float32 choose a few candidates more than asked for; their distances are then taken by
differences in float64, so that near-duplicates keep their order. What rounding can have hidden is known:
where a row left out could still be nearer than the last one kept, the row's whole neighborhood is decided
by differences. Equal rows are all at distance zero, and a row is left out of its own neighbors by its
index, never by its place in the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.block_reader import Rows, in_kind, normalize_rows, require_finite
from deepcluster.features.parallel import over_spans, team
from deepcluster.features.row_partition import centered, shard_of

BLOCK_NUMBERS = 1 << 24  # numbers in a block (64 MiB)
GPU_SCORES = 1 << 27  # scores held at once on an accelerator: 512 MiB
TILE_ROWS = 256  # rows and
TILE_WIDTH = 8192  # columns of a tile of scores on a CPU: 8 MiB, the fastest of those tried
GROUP = 16  # columns that are first reduced to their largest score
SPAN = 2048  # rows that one thread takes at a time
SPARE = 8  # candidates beyond k
DECIDE_ROWS = 64  # rows decided by differences at a time,
PAIRS = 1 << 20  # numbers of float64 differences held at once by each thread


def nearest_rows(
    x: Any, k: int, *, queries: Any = None, metric: str = "euclidean", device: torch.device | str | None = None
) -> tuple[Any, Any]:
    """The k nearest rows of x (N, D) to each row of x, or to each of `queries` (Q, D).

    Args:
        x: array, memory-mapped array, tensor or nested sequence; read in blocks.
        k: how many.
        queries: None = the rows of x themselves, and then no row is a neighbor of itself.
        metric: "euclidean", or "cosine": rows are compared at unit length, and |a - b|^2 = 2 - 2 cos(a, b).
        device: where to compute; None = where x is (arrays: the CPU).

    Returns:
        (N, k) int64 positions in x, nearest first, equally near ones by position, and (N, k) float32
        squared distances; tensors where x (or `queries`) is one, else arrays.

    Raises:
        DeepClusterError: fewer rows than k, a row with NaN or infinity, tables of different widths.
    """
    if metric not in ("euclidean", "cosine"):
        raise DeepClusterError(f"metric must be one of euclidean, cosine, not {metric!r}.")
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise DeepClusterError(f"The number of neighbors must be an integer of at least 1, not {k!r}.")
    rows = Rows(x, device)
    if metric == "euclidean":
        rows = centered(rows, shard_of(rows))
    # a second reader of the same rows: a block is valid only until its reader's next one
    asked = Rows(x, rows.device) if queries is None else Rows(queries, rows.device, name="queries")
    asked.origin = rows.origin
    if asked.dim != rows.dim:
        raise DeepClusterError(
            f"The queries have {asked.dim} columns but the features have {rows.dim}; use the same network, tap "
            "and whitening."
        )
    others = rows.n - (queries is None)
    if others < k:
        raise DeepClusterError(
            f"{counted(rows.n, 'row')} {'has' if rows.n == 1 else 'have'} no more than {counted(others, 'neighbor')}"
            f" each, not {k}; ask for fewer neighbors or give "
            "more rows."
        )
    if rows.hold() and queries is None:
        asked = rows  # what is held stays valid
    with team():
        search = _Search(rows, int(k), queries is None, metric == "cosine", max(256, BLOCK_NUMBERS // rows.dim))
        index, squared = search(asked)
    like = x if queries is None else queries
    return in_kind(index, like), in_kind(squared, like)


@dataclass
class _Best:
    """The best candidates of Q rows so far, best first."""

    score: Tensor  # (Q, M) float32, -inf = none yet
    where: Tensor  # (Q, M) int64

    def add(self, scores: Tensor, first: int, at: slice) -> None:
        """Scores (R, W) of the rows `at` with columns from `first` on."""
        rows, width = scores.shape
        count = self.score.shape[1]
        groups = width // GROUP
        score, where = self.score[at], self.where[at]
        # on a GPU, too: the other way waits for it
        if width % GROUP or groups < 4 * count or scores.device.type != "cpu":
            value, column = scores.topk(min(count, width))
            score, where = self._merge(score, where, value, column + first)
            self.score[at], self.where[at] = score, where
            return
        # `topk` looks at one entry after the other. The best columns lie in the groups with the best peaks,
        # and peaks are found many at a time: column c belongs to group c % groups, so that whole lanes compare.
        peak = scores.view(rows, GROUP, groups).amax(1)
        hit = (peak.amax(1) > score[:, -1]).nonzero()[:, 0]
        if not len(hit):
            return
        top = peak[hit].topk(count, sorted=False).indices
        member = torch.arange(0, width, groups, device=scores.device)
        column = (top[:, None, :] + member[None, :, None]).flatten(1)
        value = scores.flatten().take(column + hit[:, None] * width)
        score[hit], where[hit] = self._merge(score[hit], where[hit], value, column + first)

    @staticmethod
    def _merge(score: Tensor, where: Tensor, value: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        best, place = torch.cat([score, value], 1).topk(score.shape[1])
        return best, torch.cat([where, column], 1).gather(1, place)


@dataclass
class _Search:
    """Rows to be searched, with what every search among them needs.

    The score of row x for query q is q.x - |x|^2 / 2: the largest belongs to the nearest.
    """

    rows: Rows
    k: int
    leave_one_out: bool  # the queries are the rows themselves, none of which is its own neighbor
    unit: bool  # compare rows at unit length
    step: int  # rows of a block

    def __post_init__(self) -> None:
        rows = self.rows
        self.offset: Tensor | None = None
        mean, square = self._mean(rows)
        # products lose the digits that a large common offset takes: work about the mean where it is large
        if float(mean.square().sum()) * rows.n > square / 2:
            self.offset = mean.float()
        self.bias = torch.empty(rows.n, device=rows.device)
        longest = mean.new_zeros(())
        for start, _, shifted in self._blocks(rows):
            norms = _squared_norms(shifted)
            longest = torch.maximum(longest, norms.max())
            self.bias[start : start + len(norms)] = norms / -2
        self.longest = float(longest) ** 0.5

    def __call__(self, asked: Rows) -> tuple[Tensor, Tensor]:
        """(Q, k) positions and (Q, k) squared distances."""
        if not self.leave_one_out:
            self._mean(asked)  # finds NaN and infinity
        index = torch.empty(asked.n, self.k, dtype=torch.int64, device=self.rows.device)
        squared = torch.empty(asked.n, self.k, device=self.rows.device)
        count = min(self.k + SPARE, self.rows.n - self.leave_one_out)
        for start, raw, shifted in self._blocks(asked):
            best = self._by_products(shifted, start, count)
            found, distance = self._measured(raw, best)
            norm = _squared_norms(shifted)
            doubt = self._doubt(norm)
            # nothing that was left out can be nearer than this
            least = norm - 2 * best.score[:, -1].double() - doubt
            unsure = (distance[:, -1] >= least).nonzero()[:, 0]
            if len(unsure):
                threshold = (norm - distance[:, -1] - doubt)[unsure] / 2
                found[unsure], distance[unsure] = self._decided(raw[unsure], shifted[unsure], threshold, unsure + start)
            index[start : start + len(raw)], squared[start : start + len(raw)] = found, distance.float()
        return index, squared

    def _mean(self, rows: Rows) -> tuple[Tensor, float]:
        """(D,) float64 mean of the rows and the sum of their squared norms.

        Raises:
            DeepClusterError: a row holds NaN or infinity.
        """
        total = torch.zeros(rows.dim, dtype=torch.float64, device=rows.device)
        square = total.new_zeros(())
        for _, raw, _ in self._blocks(rows):
            total += raw.sum(0, dtype=torch.float64)
            square += _squared_norms(raw).sum()
        if not torch.isfinite(square):  # of a sum, once: each look waits for a GPU
            for start, raw, _ in self._blocks(rows):
                require_finite(_squared_norms(raw), start, rows.name)
        return total / rows.n, float(square)

    def _blocks(self, rows: Rows) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first row, rows as they are compared, rows about the offset)."""
        for start, block in rows.blocks(self.step):
            raw = normalize_rows(block) if self.unit else block
            yield start, raw, raw if self.offset is None else raw - self.offset

    def _doubt(self, norm: Tensor) -> Tensor:
        """(Q,) bound on the error of squared distances by products, for queries of squared norm `norm`.

        A sum of D products in arithmetic of unit roundoff u is off by at most D u |q| |x| (Higham, Accuracy
        and Stability of Numerical Algorithms, §3.1); the rest is for norms, offset, the last additions, and
        for products too small for float32.
        """
        unit = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}[torch.get_float32_matmul_precision()]
        smallest = 4 * torch.finfo(torch.float32).tiny
        bound: Tensor = (self.rows.dim + 16) * (unit * (norm.sqrt() + self.longest) ** 2 + smallest)
        return bound

    def _by_products(self, block: Tensor, start: int, count: int) -> _Best:
        """The `count` best scores of each row of block (Q, D), whose first row is query `start`."""
        score = torch.full((len(block), count), -torch.inf, device=block.device)
        best = _Best(score, torch.zeros(len(block), count, dtype=torch.int64, device=block.device))
        on_cpu = block.device.type == "cpu"
        wide = TILE_WIDTH if on_cpu else min(self.rows.n, self.step, 1 << 16)
        high = TILE_ROWS if on_cpu else max(1, GPU_SCORES // wide)
        for first, _, columns in self._blocks(self.rows):

            def find(begin: int, end: int, first: int = first, columns: Tensor = columns) -> None:
                buffer = torch.empty(min(high, end - begin) * min(wide, len(columns)), device=block.device)
                for top in range(begin, end, high):
                    rows = slice(top, min(top + high, end))
                    part = block[rows]
                    for left in range(0, len(columns), wide):
                        tile, column = columns[left : left + wide], first + left
                        scores = buffer[: len(part) * len(tile)].view(len(part), len(tile))
                        torch.mm(part, tile.T, out=scores).add_(self.bias[column : column + len(tile)])
                        if self.leave_one_out:
                            _mask_own(scores, torch.arange(top, rows.stop, device=block.device) + start, column)
                        best.add(scores, column, rows)

            over_spans(find, len(block), SPAN if on_cpu else len(block))
        return best

    def _measured(self, raw: Tensor, best: _Best) -> tuple[Tensor, Tensor]:
        """The k nearest of the candidates of each row of `raw` (Q, D), by differences."""
        count = best.where.shape[1]
        # written where they stay: small results among large temporaries would keep theirs from being used again
        found = torch.empty(len(raw), self.k, dtype=torch.int64, device=raw.device)
        nearest = torch.empty(len(raw), self.k, dtype=torch.float64, device=raw.device)

        def measure(begin: int, end: int) -> None:
            where = best.where[begin:end].sort(1).values
            query = torch.arange(begin, end, device=raw.device).repeat_interleave(count)
            near = self.rows.take(where.flatten())
            near = normalize_rows(near) if self.unit else near
            distance = _squared_distances(raw[query], near).view(where.shape)
            distance, place = distance.sort(dim=1, stable=True)
            found[begin:end] = where.gather(1, place)[:, : self.k]
            nearest[begin:end] = distance[:, : self.k]

        over_spans(measure, len(raw), max(1, PAIRS // (count * self.rows.dim)))
        return found, nearest

    def _decided(self, raw: Tensor, shifted: Tensor, threshold: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest of each row of `raw` (U, D), which are the queries `own` (U,), by differences.

        Every column whose score reaches the row's `threshold` (U,) is measured, which by the choice of
        thresholds are all those that can be among the k nearest.
        """
        kept = [
            _Nearest(torch.arange(at, min(at + DECIDE_ROWS, len(raw)), device=raw.device), self.k)
            for at in range(0, len(raw), DECIDE_ROWS)
        ]
        for first, columns, moved in self._blocks(self.rows):

            def decide(
                begin: int, end: int, first: int = first, columns: Tensor = columns, moved: Tensor = moved
            ) -> None:
                nearest = kept[begin]
                left, wide = 0, DECIDE_ROWS  # narrow at first: of many equal rows few need to be seen
                while left < len(columns) and len(rows := nearest.open()):
                    scores = shifted[rows] @ moved[left : left + wide].T
                    scores += self.bias[first + left : first + left + scores.shape[1]]
                    if self.leave_one_out:
                        _mask_own(scores, own[rows], first + left)
                    row, column = (scores.double() >= threshold[rows, None]).nonzero(as_tuple=True)
                    row, column = rows[row], column + left
                    nearest.add(row, column + first, _pair_distances(raw, row, columns, column))
                    left, wide = left + wide, min(2 * wide, TILE_WIDTH)

            over_spans(decide, len(kept), 1)
        column, distance = (torch.cat([getattr(each, name) for each in kept]) for name in ("column", "distance"))
        return column.view(-1, self.k), distance.view(-1, self.k)


class _Nearest:
    """The k nearest of a few rows, from pairs that come in the order of columns."""

    def __init__(self, rows: Tensor, k: int):
        self.rows, self.k, self.row, self.column = rows, k, rows[:0], rows[:0]
        self.distance = torch.empty(0, dtype=torch.float64, device=rows.device)

    def open(self) -> Tensor:
        """Rows that a later column can still come near to: nothing beats k earlier ones at distance zero."""
        zeros = torch.bincount(self.row[self.distance == 0] - self.rows[0], minlength=len(self.rows))
        return self.rows[zeros < self.k]

    def add(self, row: Tensor, column: Tensor, distance: Tensor) -> None:
        row, column = torch.cat([self.row, row]), torch.cat([self.column, column])
        distance = torch.cat([self.distance, distance])
        order = column.argsort(stable=True)
        for key in (distance, row):  # the last key decides first
            order = order[key[order].argsort(stable=True)]
        sorted_row = row[order]
        rank = torch.arange(len(order), device=row.device) - torch.searchsorted(sorted_row, sorted_row)
        order = order[rank < self.k]
        self.row, self.column, self.distance = row[order], column[order], distance[order]


def _squared_norms(x: Tensor) -> Tensor:
    """(B,) float64 for rows (B, D)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    return norms.square()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(P,) float64 squared distances of the rows of a (P, D) to those of b (P, D), by differences."""
    return (a.double() - b).square_().sum(1)


def _pair_distances(a: Tensor, row: Tensor, b: Tensor, column: Tensor) -> Tensor:
    """(P,) float64 squared distances of a[row] to b[column], a part of them at a time."""
    step = max(1, PAIRS // a.shape[1])
    parts = zip(torch.split(row, step), torch.split(column, step), strict=True)
    return torch.cat([_squared_distances(a[i], b[j]) for i, j in parts])


def _mask_own(scores: Tensor, own: Tensor, first: int) -> None:
    """Set the scores (R, W) of rows, whose columns begin at `first`, for their own columns `own` (R,) to -inf."""
    column = (own - first)[:, None]
    here = (column >= 0) & (column < scores.shape[1])
    column = column.clamp(0, scores.shape[1] - 1)
    scores.scatter_(1, column, torch.where(here, -torch.inf, scores.gather(1, column)))
