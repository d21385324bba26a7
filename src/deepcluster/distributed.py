"""The processes of a run and the messages between them; a single process is the ordinary case.

With a single process everything here does nothing, at no cost, so that the code is the same for one and for many.
Whoever launched the processes (torchrun, SLURM, Fabric) has initialized torch.distributed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

ALIGN = 1024
"""The rows of a table are divided at multiples of this number, so that blocks of rows, and with them every rounding,
are the same for any number of processes."""
TIMEOUT = timedelta(days=7)
"""How long processes wait for one that works alone, such as the one that decodes the images of a machine."""
MESSAGE = 32 << 20
"""Bytes of gradients that are summed over processes at once."""


@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes, of which this is number `rank`.

    Every method but `row_range` must be called by all processes, in the same order.
    """

    rank: int = 0
    size: int = 1
    control: Any = field(default=None, compare=False, repr=False)
    """The torch.distributed group for flags; None = the one for everything else."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessGroup:
        return self  # a module that holds its group may be copied, the processes may not

    @property
    def is_single(self) -> bool:
        """Whether there is only one process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def row_range(self, count: int, multiple: int = ALIGN) -> tuple[int, int]:
        """First and past-the-last of the rows 0..count-1 that belong to this process.

        The ranges of all processes follow each other, cover every row once, differ by at most `multiple`, and begin at
        multiples of it; those of the last processes are empty where there are few rows.
        """
        blocks = -(-count // multiple)
        # Rounded up: the first process is never the empty one.
        first, last = (-(-blocks * rank // self.size) for rank in (self.rank, self.rank + 1))
        return min(first * multiple, count), min(last * multiple, count)

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives, done once in this process, though layers may be run by several threads."""
        return work()

    def sum_(self, values: Tensor) -> Tensor:
        """`values` of any shape, in place: the sum over all processes; the same bits on each."""
        return self._in_place(values, lambda dist, sent: dist.all_reduce(sent, dist.ReduceOp.SUM))

    def max_(self, values: Tensor) -> Tensor:
        """`values` of any shape, in place: the largest over all processes."""
        return self._in_place(values, lambda dist, sent: dist.all_reduce(sent, dist.ReduceOp.MAX))

    def broadcast_(self, values: Tensor, source: int = 0) -> Tensor:
        """`values` of any shape, in place: those of process `source`."""
        return self._in_place(values, lambda dist, sent: dist.broadcast(sent, source))

    def _in_place(self, values: Tensor, send: Callable[[Any, Tensor], object]) -> Tensor:
        if not self.is_single:
            import torch.distributed as dist

            sent = values.to(device()).contiguous()
            send(dist, sent)
            if sent is not values:
                values.copy_(sent)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """(sum of M, ...) the (M, ...) `rows` of all processes one after another; M may differ, also be 0."""
        if self.is_single:
            return rows
        return self._gather(rows, self.row_counts(len(rows)))

    def gather_equal(self, rows: Tensor) -> Tensor:
        """`gather` where each process has the same number of rows, which saves a message."""
        return rows if self.is_single else self._gather(rows, [len(rows)] * self.size)

    def _gather(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        import torch
        import torch.distributed as dist

        padded = torch.zeros((max(lengths), *rows.shape[1:]), dtype=rows.dtype, device=device())
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).to(rows.device)

    def row_counts(self, count: int) -> list[int]:
        """The `count` of every process, by rank."""
        if self.is_single:
            return [count]
        import torch

        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = count
        return self.sum_(counts).tolist()

    def gather_rows(self, rows: Tensor, index: Tensor) -> Tensor:
        """(len(index), ...) rows at positions `index` of the table that the (M, ...) `rows` of all processes form."""
        index = index.to(rows.device)
        if self.is_single:
            return rows[index]
        own = index - sum(self.row_counts(len(rows))[: self.rank])
        mine = (own >= 0) & (own < len(rows))
        return self.combine_rows(rows[own[mine]], mine)

    def local_rows(self, table: Tensor, count: int) -> Tensor:
        """The `count` rows of this process out of the (N, ...) rows of all, which follow each other."""
        first = sum(self.row_counts(count)[: self.rank])
        return table[first : first + count]

    def combine_rows(self, rows: Tensor, mine: Tensor) -> Tensor:
        """(M, ...) rows of which each process has some: `rows` are those where `mine` (M,) bool is true.

        Exactly one process must have each row.
        """
        if self.is_single:
            return rows
        table = rows.new_zeros((len(mine), *rows.shape[1:]))
        table[mine] = rows
        return self.sum_(table)

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """This process's part of the (weighted) mean of the (B,) `values` of all processes: the parts add up to the
        mean, and so do their gradients."""
        if weight is not None:
            total = self.sum_(weight.sum())
            return (weight * values).sum() / (total if self.is_single else total.clamp(min=1e-12))
        if self.is_single:
            return values.mean()
        return values.sum() / self.sum_(values.new_tensor(len(values))).clamp(min=1)

    def sum_many_(self, tensors: Sequence[Tensor]) -> None:
        """Each of `tensors`, in place: the sum over all processes, in few large messages."""
        if self.is_single or not tensors:
            return
        import torch
        import torch.distributed as dist

        messages, size = [[tensors[0]]], tensors[0].nbytes
        for tensor in tensors[1:]:
            size += tensor.nbytes
            if size > MESSAGE or tensor.dtype != messages[-1][0].dtype:
                messages.append([])
                size = tensor.nbytes
            messages[-1].append(tensor)
        flat = [torch.cat([part.reshape(-1) for part in message]).to(device()) for message in messages]
        for pending in [dist.all_reduce(each, async_op=True) for each in flat]:
            pending.wait()
        for message, each in zip(messages, flat, strict=True):
            for part, total in zip(message, torch.split(each, [part.numel() for part in message]), strict=True):
                part.copy_(total.view_as(part))

    def gather_array(self, rows: np.ndarray) -> np.ndarray:
        """`gather` for arrays."""
        if self.is_single:
            return rows
        import torch

        return self.gather(torch.from_numpy(np.ascontiguousarray(rows))).numpy()

    def gather_strings(self, text: str) -> list[str]:
        """The `text` of every process, by rank."""
        if self.is_single:
            return [text]
        import torch

        characters = torch.frombuffer(bytearray(text.encode(errors="replace") + b"\0"), dtype=torch.uint8)
        return bytes(self.gather(characters).tolist()).decode().split("\0")[:-1]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """For each of `flags`, whether it is true on any process; one message for all of them."""
        if self.is_single:
            return list(flags)
        import torch
        import torch.distributed as dist

        values = torch.tensor(flags, dtype=torch.int64, device=device() if self.control is None else "cpu")
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in values.tolist()]

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self.any(False)

    @contextmanager
    def collective_section(self) -> Iterator[None]:
        """Code that all processes run, or the first one alone: where one fails, all of them fail with its error, as a
        DeepClusterError, and none waits for it."""
        if self.is_single:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must not wait
            failed = error
        expected = isinstance(failed, (DeepClusterError, OSError))
        message = "" if failed is None else str(failed) if expected else f"{type(failed).__name__}: {failed}"
        others = [text for text in self.gather_strings(message) if text]
        if failed is not None:
            raise failed
        if others:
            raise DeepClusterError(others[0])

    def gather_to_first(self, index: Tensor, rows: Tensor, count: int) -> Tensor | None:
        """(count, ...) rows at `index` (M,) of all processes, on the CPU of the first one; None on the others."""
        import torch

        table = torch.zeros((count, *rows.shape[1:]), dtype=rows.dtype) if self.is_first else None
        for positions, part in self.gather_in_blocks(index, rows):
            if table is not None:
                table[positions.cpu()] = part.cpu()
        return table

    def gather_in_blocks(self, index: Tensor, rows: Tensor, block: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """(m,) `index` and (m, ...) `rows` of all processes, at most `block` of each process at a time, so that a
        table that is too large for one process can be redistributed."""
        for start in range(0, max(self.row_counts(len(rows))), block):
            yield self.gather(index[start : start + block]), self.gather(rows[start : start + block])


SINGLE = ProcessGroup()


def current() -> ProcessGroup:
    """The processes that torch.distributed knows of. All of them must call this together."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return SINGLE
    # A flag sent over NCCL would wait for all the work that the GPU still has to do. The timeout covers what the first
    # process does alone.
    control = dist.new_group(backend="gloo", timeout=TIMEOUT) if dist.get_backend() == "nccl" else None
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), control)


def by_srun() -> bool:
    """Whether SLURM's srun has started this process and others. A job's own script has their number too, and alone."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in os.environ


def launched() -> tuple[int, int] | None:
    """(processes on each machine, machines) that torchrun or srun started; None where nobody has."""
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables or "LOCAL_WORLD_SIZE" in variables:
        size, here = int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_WORLD_SIZE", variables["WORLD_SIZE"]))
    elif by_srun():
        size, machines = int(variables["SLURM_STEP_NUM_TASKS"]), int(variables.get("SLURM_NNODES", 1))
        here = -(-size // machines)
    else:
        return None
    if size % here:
        raise DeepClusterError(
            f"{size} processes do not divide into {here} on each machine: start equally many on each."
        )
    return here, size // here


def is_secondary_process() -> bool:
    """Whether a launcher started this process besides the first one, which writes and prints; before it has joined."""
    variables = os.environ
    if "RANK" in variables:  # torchrun
        return int(variables["RANK"]) > 0
    if by_srun():
        return int(variables["SLURM_PROCID"]) > 0
    return int(variables.get("LOCAL_RANK", 0)) > 0 or int(variables.get("NODE_RANK", 0)) > 0  # Fabric's own launcher


def device() -> Any:
    """Where tensors must be to be sent to other processes."""
    import torch
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
