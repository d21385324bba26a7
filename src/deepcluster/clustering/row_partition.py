"""A table whose rows lie on several processes, and what they have to tell each other about it.

Every process holds the rows that follow those of the process before; it may hold none. With one process all of this
is the plain thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deepcluster import distributed
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Picked, Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The `n` rows from row `first` on, of `total`, are this process's."""

    group: ProcessGroup
    n: int
    first: int
    total: int

    def sum_(self, values: Tensor) -> Tensor:
        """`values` of any shape, in place: the sum over all processes."""
        return _told(self.group, values, self.group.sum_)

    def max_(self, values: Tensor) -> Tensor:
        """`values` of any shape, in place: the largest over all processes."""
        return _told(self.group, values, self.group.max_)

    def copy_(self, values: Tensor) -> Tensor:
        """`values` of any shape, in place: those of the first process."""
        return _told(self.group, values, self.group.broadcast_)

    def gather(self, rows: Tensor) -> Tensor:
        """(sum of M, ...) the (M, ...) `rows` of all processes."""
        if self.group.is_single:
            return rows
        return self.group.gather(rows.to(distributed.device())).to(rows.device)

    def own(self, index: Tensor) -> Tensor:
        """Positions in `index` (M,) of the rows that are this process's."""
        return ((index >= self.first) & (index < self.first + self.n)).nonzero()[:, 0]

    def take(self, rows: Rows | Picked, index: Tensor) -> Tensor:
        """(M, D) the rows at `index` (M,) of the whole table, of which `rows` are this process's; on all processes."""
        if self.group.is_single:
            return rows.take(index)
        own = self.own(index)
        taken = torch.zeros(len(index), rows.dim, device=rows.device)
        taken[own.to(rows.device)] = rows.take(index[own] - self.first)
        return self.sum_(taken)

    def largest(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the whole table with the `count` largest of `values` (n,), and these values; on all processes.

        The largest come first; of equal ones the lowest row.
        """
        own = min(count, self.n)
        position = torch.zeros(0, dtype=torch.int64, device=values.device)
        if own:
            least = values.topk(own).values[-1]
            above, level = (values > least).nonzero()[:, 0], (values == least).nonzero()[:, 0]
            position = torch.cat([above, level[: own - len(above)]]).sort().values
        index, found = self.gather(position + self.first), self.gather(values[position])
        order = found.argsort(descending=True, stable=True)[:count]
        return index[order], found[order]


def shard_of(rows: Rows | Picked, group: ProcessGroup = SINGLE) -> Shard:
    """Where the rows of this process stand among those of all.

    Raises:
        DeepClusterError: no rows on any process, or rows of different width.
    """
    if group.is_single:
        return Shard(group, rows.n, 0, rows.n)
    told = torch.tensor([[rows.n, rows.dim]], device=distributed.device())
    counts, widths = group.gather(told).T.tolist()
    if len(set(widths)) > 1:
        raise DeepClusterError(
            f"The processes' {rows.name} have {' and '.join(str(width) for width in sorted(set(widths)))} columns; "
            "give each its rows of one table."
        )
    if sum(counts) == 0:
        raise DeepClusterError(f"The {rows.name} of all processes are empty; give at least one row.")
    return Shard(group, rows.n, sum(counts[: group.rank]), sum(counts))


def agreed(group: ProcessGroup, work: Callable[[], T]) -> T:
    """What `work()` gives. Its error on one process, the first of them, is raised on all, so that none waits for it."""
    if group.is_single:
        return work()
    failed: DeepClusterError | None = None
    try:
        result = work()
    except DeepClusterError as error:
        failed = error
    device = distributed.device()
    who = int(group.max_(torch.tensor([group.size - group.rank if failed else 0], device=device)))
    if who == 0:
        return result
    source = group.size - who
    said = torch.tensor(list(str(failed or "").encode()), dtype=torch.uint8, device=device)
    length = int(group.broadcast_(torch.tensor([len(said)], device=device), source))
    told = said if group.rank == source else torch.zeros(length, dtype=torch.uint8, device=device)
    raise DeepClusterError(bytes(group.broadcast_(told, source).tolist()).decode())


def common_seed(group: ProcessGroup, seed: int) -> int:
    """The first process's `seed`, below 2^63, on all."""
    if group.is_single:
        return seed
    return int(group.broadcast_(torch.tensor([seed], device=distributed.device())))


def _told(group: ProcessGroup, values: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
    if group.is_single:
        return values
    where = distributed.device()
    if values.device.type == where.type and values.is_contiguous():
        return how(values)
    return values.copy_(how(values.to(where).contiguous()))
