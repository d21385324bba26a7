"""Rows of one cluster, redistributed evenly over the processes in their order, and results sent back.

The members of one cluster may all lie on one process. To cluster them by all, each process gets its range of them;
ranges are those of a table of these rows alone, so that no result depends on where the rows were before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster import distributed, io
from deepcluster.distributed import ProcessGroup
from deepcluster.features.block_reader import BLOCK_BYTES, Rows, write_rows


class Redistribution:
    """Where the rows that are picked on each process go.

    Args:
        group: the processes.
        picked: rows picked on this one.

    Attributes:
        total: rows picked on all.
        n: rows this process receives.
    """

    def __init__(self, group: ProcessGroup, picked: int):
        self.group = group
        counts = [picked]
        if not group.is_single:
            counts = group.gather(torch.tensor([picked], device=distributed.device())).tolist()
        self.total = sum(counts)
        self.held = [(sum(counts[:rank]), sum(counts[: rank + 1])) for rank in range(group.size)]
        self.ranges = [ProcessGroup(rank, group.size).row_range(self.total) for rank in range(group.size)]
        first, last = self.ranges[group.rank]
        self.n = last - first

    def send(self, rows: Rows, index: Tensor, into: Any) -> None:
        """Fill `into` (n, D) with this process's range of all `rows` at `index` (picked,)."""
        step = max(1, BLOCK_BYTES // (4 * rows.dim))
        sent = torch.zeros(0, rows.dim, device=rows.device)
        for source, target, first, last in self._steps(self.held, self.ranges, step):
            start, stop = (at - self.held[self.group.rank][0] for at in (first, last))
            mine = rows.take(index[start:stop]) if source == self.group.rank else sent
            got = self._pass(mine, source, target, last - first)
            if target == self.group.rank:
                write_rows(into, first - self.ranges[target][0], got)

    def send_back(self, values: Tensor) -> Tensor:
        """(picked,) the `values` (n,) of the rows that this process had picked."""
        begin, end = self.held[self.group.rank]
        result = torch.empty(end - begin, dtype=values.dtype, device=values.device)
        for source, target, first, last in self._steps(self.ranges, self.held, BLOCK_BYTES // 8):
            start, stop = (at - self.ranges[self.group.rank][0] for at in (first, last))
            mine = values[start:stop] if source == self.group.rank else values[:0]
            got = self._pass(mine, source, target, last - first)
            if target == self.group.rank:
                result[first - begin : last - begin] = got
        return result

    def _steps(self, held: list[Any], wanted: list[Any], step: int) -> Iterator[tuple[int, int, int, int]]:
        """(source, target, first, last) of what this process sends or gets, in an order that is the same on all."""
        me = self.group.rank
        for source, (a, b) in enumerate(held):
            for target, (c, d) in enumerate(wanted):
                if me in (source, target):
                    for first in range(max(a, c), min(b, d), step):
                        yield source, target, first, min(first + step, b, d)

    def _pass(self, values: Tensor, source: int, target: int, count: int) -> Tensor:
        """`values` of process `source` on process `target`, as they were on the source; others' calls do nothing."""
        if source == target:
            return values
        import torch.distributed as dist

        where = distributed.device()
        if self.group.rank == source:
            dist.send(values.to(where).contiguous(), target)
            return values
        got = torch.empty(count, *values.shape[1:], dtype=values.dtype, device=where)
        dist.recv(got, source)
        return got.to(values.device)


@contextmanager
def scratch_table(n: int, rows: Rows, folder: str | Path | None, max_bytes: int) -> Iterator[Any]:
    """An uninitialized (n, D) float32 table on the device of `rows`; of more than `max_bytes`, in a temporary file."""
    if n * rows.dim * 4 <= max_bytes:
        yield torch.empty(n, rows.dim, device=rows.device)
        return
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        yield io.scratch_table(Path(temporary) / "rows.npy", n, rows.dim)
