"""The loss of several processes, with gradients summed while the backward pass is still computing."""
# No postponed annotations: torch looks at those of the communication hook.

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepcluster.distributed import ProcessGroup
from deepcluster.methods.base import Method
from deepcluster.types import Batch, TrainStep

Loss = Callable[[Batch, TrainStep], dict[str, Tensor]]


class _LossModule(nn.Module):
    """The method's loss as a module's forward, as DistributedDataParallel wants it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        return self.method.loss(batch, step)


def parallel_loss(method: Method, group: ProcessGroup, deterministic: bool) -> tuple[Loss, bool]:
    """The method's loss, and whether its gradients are summed over processes once backward is done.

    They are by DistributedDataParallel, which sends one part of the gradients while the next is computed. Otherwise
    `optim.step_all` sums them afterwards in a fixed order: with `deterministic`, and for methods with parameters that
    only one process has, whose own messages in the backward pass would mix with those of DistributedDataParallel.

    Called after each clustering, which may have replaced the method's parameters.
    """
    if group.is_single or deterministic or method.local_parameters is not None:
        return method.loss, False
    with warnings.catch_warnings():  # newer versions of torch want another option, which cannot do this yet
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers stay as they are: some methods keep other rows of a table on each process.
        parallel = DistributedDataParallel(_LossModule(method), broadcast_buffers=False, init_sync=False)
    parallel.register_comm_hook(None, _sum_gradients)
    return parallel, True


def _sum_gradients(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """The losses of all processes add up, and so do their gradients, where the usual hook takes the mean."""
    pending = dist.all_reduce(bucket.buffer(), async_op=True)
    return pending.get_future().then(lambda done: done.value()[0])
