"""A table whose rows lie on several processes, each of which holds the rows after those of the process before.

A process may hold none. With one process every method is the plain operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster import distributed
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, find_origin

SAMPLE = 1024  # rows by which is decided whether they lie far from zero


@dataclass(frozen=True)
class Shard:
    """The `n` rows from row `first` on, of `total`, are this process's."""

    group: ProcessGroup
    n: int
    first: int
    total: int

    def own(self, index: Tensor) -> Tensor:
        """Positions in `index` (M,) of the rows that are this process's."""
        return ((index >= self.first) & (index < self.first + self.n)).nonzero()[:, 0]

    def take(self, rows: Rows, index: Tensor) -> Tensor:
        """(M, D) the rows at `index` (M,) of the whole table, of which `rows` are this process's; collective."""
        if self.group.is_single:
            return rows.take(index)
        own = self.own(index)
        taken = torch.zeros(len(index), rows.dim, device=rows.device)
        taken[own.to(rows.device)] = rows.take(index[own] - self.first)
        return self.group.sum_(taken)

    def largest(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the whole table with the `count` largest of `values` (n,), and these values; collective.

        The largest come first; of equal ones the lowest row.
        """
        own = min(count, self.n)
        position = torch.zeros(0, dtype=torch.int64, device=values.device)
        if own:
            least = values.topk(own).values[-1]
            above, level = (values > least).nonzero()[:, 0], (values == least).nonzero()[:, 0]
            position = torch.cat([above, level[: own - len(above)]]).sort().values
        index, found = self.group.gather(position + self.first), self.group.gather(values[position])
        order = found.argsort(descending=True, stable=True)[:count]
        return index[order], found[order]


def shard_of(rows: Rows, group: ProcessGroup = SINGLE) -> Shard:
    """Where the rows of this process lie among those of all.

    Raises:
        DeepClusterError: no rows on any process, or rows of different width.
    """
    if group.is_single:
        return Shard(group, rows.n, 0, rows.n)
    counts, widths = group.row_counts(rows.n), set(group.row_counts(rows.dim))
    if len(widths) > 1:
        raise DeepClusterError(
            f"The processes' {rows.name} have {' and '.join(str(width) for width in sorted(widths))} columns; "
            "give each its rows of one table."
        )
    if sum(counts) == 0:
        raise DeepClusterError(f"The {rows.name} of all processes are empty; give at least one row.")
    return Shard(group, rows.n, sum(counts[: group.rank]), sum(counts))


def centered(rows: Rows, shard: Shard) -> Rows:
    """The rows about a common origin where float32 would lose their differences to a large offset; collective."""
    if rows.origin is not None or not shard.group.any(rows.is_wide):
        return rows
    index = torch.arange(0, shard.total, -(-shard.total // SAMPLE))
    own = shard.own(index)
    sample = torch.zeros(len(index), rows.dim, dtype=torch.float64)
    sample[own] = torch.as_tensor(rows.taken(index[own] - shard.first)).double().cpu()
    rows.origin = find_origin(shard.group.sum_(sample))
    return rows


def common_seed(group: ProcessGroup, seed: int) -> int:
    """The first process's `seed`, below 2^63, on all."""
    if group.is_single:
        return seed
    return int(group.broadcast_(torch.tensor([seed], device=distributed.device())))
