"""The same bits on 1, 2 and 4 processes (`--deterministic True`, on a CPU).

Rounding depends on which images are added up first, and clustering amplifies it. So each batch is cut into the same
four parts, whatever the number of processes: a process computes its parts in threads, on one core each, and the parts
meet where batch-norm needs statistics of all. Every process then has the features of the whole batch, and computes the
loss and all after it as one process alone would; the gradient of the features goes back into the parts, and those of
the weights are added up part by part, always in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from deepcluster.config import TrainRun
from deepcluster.data.transforms import Device, Images, Transform
from deepcluster.distributed import MESSAGE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.parallel import team
from deepcluster.methods.base import Method
from deepcluster.models.sync_batchnorm import BatchSlice, convert_sync_batchnorm
from deepcluster.types import Batch

PARTS = 4
"""Parts that every batch is cut into: the largest number of processes."""

T = TypeVar("T")


class PartGroup(ProcessGroup):
    """The parts of a batch, to the layers that each of them goes through in a thread of its own: they send each other
    what processes do."""

    processes: ProcessGroup
    threads: threading.local  # which part each thread computes
    meeting: threading.Barrier
    given: dict[int, Tensor]
    made: list[Any]

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__(0, PARTS)
        fields = {"processes": group, "threads": threading.local(), "given": {}, "made": [None]}
        fields["meeting"] = threading.Barrier(PARTS // group.size)
        self.__dict__.update(fields)  # a process group is frozen

    def enter(self, part: int, rows: slice) -> None:
        """This thread computes the rows `rows` of the batch, its part number `part`."""
        self.threads.part, self.threads.rows = part, rows

    def _meet(self, make: Callable[[], T]) -> T:
        """What `make` gives in one of the threads, while all others of the process wait."""
        if self.meeting.wait() == 0:
            self.made[0] = make()
        self.meeting.wait()
        made: T = self.made[0]
        return made

    def once(self, work: Callable[[], T]) -> T:
        return self._meet(work)

    def gather_equal(self, rows: Tensor) -> Tensor:
        self.given[self.threads.part] = rows

        def gather() -> Tensor:
            return self.processes.gather_equal(torch.cat([self.given[part] for part in sorted(self.given)]))

        return self._meet(gather)

    def sum_(self, values: Tensor) -> Tensor:
        return values.copy_(_ordered_sum(list(self.gather_equal(values[None]))))


class _Slice(BatchSlice):
    """The images of the part that a thread computes."""

    def __init__(self, parts: PartGroup) -> None:
        self.parts, self.whole = parts, torch.zeros(0, dtype=torch.int64)

    @property
    def position(self) -> Tensor:
        found: Tensor = self.whole[self.parts.threads.rows]
        return found

    @position.setter
    def position(self, positions: Tensor) -> None:
        self.whole = positions


class InParts:
    """The parts of the batches that this process, of 1, 2 or 4, computes, one thread each. Batch-norm and dropout of
    the method's backbone become those of the whole batch."""

    def __init__(
        self, method: Method, group: ProcessGroup, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.method, self.group, self.autocast = method, group, autocast
        per_process = PARTS // group.size
        self.own = range(group.rank * per_process, (group.rank + 1) * per_process)
        self.parts = PartGroup(group)
        self.slice = _Slice(self.parts)
        self.pool = ThreadPoolExecutor(len(self.own), "deepcluster-part", torch.set_num_threads, (1,))
        convert_sync_batchnorm(method.backbone, self.parts, self.slice)

    @contextmanager
    def whole_batch(self, batch: Batch) -> Iterator[Batch]:
        """The batch of all processes; inside, the method's networks compute the rows of this process only, but return
        those of all. Operations stay on one core, since a sum over several would be cut into as many parts."""
        position = self.group.gather(batch.position)
        edges = [ProcessGroup(part, PARTS).row_range(batch.whole, 1)[0] for part in range(PARTS)] + [batch.whole]
        cuts = torch.searchsorted(position, torch.tensor(edges)).tolist()
        spans = [slice(start, end) for start, end in pairwise(cuts)]
        first, last = spans[self.own[0]].start, spans[self.own[-1]].stop
        views = []
        for view in batch.views:
            whole = view.new_zeros(len(position), *view.shape[1:]).to(memory_format=torch.channels_last)
            whole[first:last] = view
            views.append(whole)
        self.slice.position, self.slice.total = position, batch.whole
        networks = {id(each): each for each in (self.method.backbone, self.method.averaged("backbone"))}.values()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for network in networks:
                network.__dict__["forward"] = _PartedNetwork(self, network, network.forward, spans)
            yield replace(batch, index=self.group.gather(batch.index), views=tuple(views), position=position)
        finally:
            for network in networks:
                network.__dict__.pop("forward", None)
            torch.set_num_threads(threads)

    def map(self, work: Callable[[int], T], spans: Sequence[slice]) -> list[T]:
        """What `work` gives for each part of this process, each in its thread."""
        meeting = self.parts.meeting

        def run(part: int) -> T:
            self.parts.enter(part, spans[part])
            try:
                return work(part)
            except BaseException:
                meeting.abort()  # the other parts must not wait for this one
                raise

        running = [self.pool.submit(run, part) for part in self.own]
        failed = [error for error in (each.exception() for each in running) if error is not None]
        if failed:
            self.parts.meeting.reset()
            raise next((each for each in failed if not isinstance(each, threading.BrokenBarrierError)), failed[0])
        return [each.result() for each in running]

    def sum_of_parts(self, parts: list[list[Tensor]]) -> list[Tensor]:
        """The sum over all parts of each of some tensors, of which `parts` holds those of this process's parts."""
        own = [_ordered_sum(list(same)) for same in zip(*parts, strict=True)]
        if self.group.is_single:
            return own
        flat = torch.cat([each.reshape(-1) for each in own])
        blocks = [
            _ordered_sum(list(self.group.gather_equal(block[None])))
            for block in torch.split(flat, MESSAGE // flat.element_size())
        ]
        sums = torch.split(torch.cat(blocks), [each.numel() for each in own])
        return [total.view(each.shape) for total, each in zip(sums, own, strict=True)]


def _ordered_sum(parts: list[Tensor]) -> Tensor:
    """Neighbors are added first, then their sums: so it does not matter who of 1, 2 or 4 processes adds them."""
    while len(parts) > 1:
        parts = [one + other for one, other in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@dataclass(frozen=True)
class ViewsByPart:
    """The views of each part of a batch, made by themselves: how colors are rounded may depend on how many images are
    worked on."""

    views: Transform

    def __call__(
        self, images: Images, generator: torch.Generator, device: Device = "cpu", first: int = 0, total: int = 0
    ) -> tuple[Tensor, ...]:
        """See `Transform`."""
        last, state, made = first + len(images), generator.get_state(), []
        for part in range(PARTS):
            start, end = ProcessGroup(part, PARTS).row_range(total or last, 1)
            start, end = max(start, first), min(end, last)
            if start < end:
                generator.set_state(state)
                made.append(self.views(images[start - first : end - first], generator, device, start, total or last))
        return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


class _PartedNetwork:
    """A network's forward pass on the parts of this process, and the results of all."""

    def __init__(
        self, step: InParts, network: nn.Module, forward: Callable[[Tensor], Tensor], spans: list[slice]
    ) -> None:
        self.step, self.network, self.forward, self.spans = step, network, forward, spans

    def __call__(self, view: Tensor) -> Tensor:
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        if torch.is_grad_enabled() and weights:
            features: Tensor = _Differentiable.apply(self, view, *weights)
            return features
        return self.gather(self.outputs(view, grad=False))

    def outputs(self, view: Tensor, grad: bool) -> list[Tensor]:
        """(m, D) features of each of this process's parts."""

        def forward(part: int) -> Tensor:
            with torch.set_grad_enabled(grad), self.step.autocast():
                return self.forward(view[self.spans[part]])

        return self.step.map(forward, self.spans)

    def gather(self, outputs: list[Tensor]) -> Tensor:
        """(B, D) features of the whole batch."""
        own = torch.cat([each.detach() for each in outputs])
        return self.step.group.gather(own.float()).to(own.dtype)


class _Differentiable(torch.autograd.Function):
    """`_PartedNetwork` with gradients; those of the weights are already summed over all parts."""

    @staticmethod
    def forward(ctx: Any, parts: _PartedNetwork, view: Tensor, *weights: Tensor) -> Tensor:
        ctx.parts, ctx.weights = parts, weights
        ctx.outputs = parts.outputs(view, grad=True)
        return parts.gather(ctx.outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        step, spans, outputs = ctx.parts.step, ctx.parts.spans, dict(zip(ctx.parts.step.own, ctx.outputs, strict=True))

        def backward(part: int) -> list[Tensor]:
            grads = torch.autograd.grad(
                outputs[part], ctx.weights, grad[spans[part]], allow_unused=True, materialize_grads=True
            )
            return list(grads)

        return None, None, *step.sum_of_parts(step.map(backward, spans))


@contextmanager
def one_core_each() -> Iterator[None]:
    """Inside, every operation is computed by one core, since a sum over several is cut into as many parts. Images and
    blocks of rows are still divided among all."""
    with threadpool_limits(1, "blas"), team():
        yield


def check(run: TrainRun, group: ProcessGroup) -> None:
    """DeepClusterError for settings with which runs on other numbers of processes could not have the same bits."""
    if PARTS % group.size:
        raise DeepClusterError(
            f"--deterministic True cuts each batch into {PARTS} parts, which {group.size} processes cannot share"
            " equally: use 1, 2 or 4 processes, or leave it out."
        )
    for option, value, wanted in (("--compile", run.compile, False), ("--sync-batchnorm", run.sync_batchnorm, True)):
        if value is not wanted:
            raise DeepClusterError(f"--deterministic True does not go together with {option} {value}: leave that out.")
