"""Batch-norm and dropout over the whole batch, though each process holds only a part of it.

One process alone keeps torch's own layers. With several, `convert_sync_batchnorm` turns them into layers that do what
those would do with all the images: statistics are those of all, and masks are drawn for all and cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError


@dataclass
class BatchSlice:
    """Which images of the whole batch this process holds; the engine sets it before each step.

    Attributes:
        position: (B,) int64 positions in the whole batch.
        total: number of images in the whole batch.
    """

    position: Tensor | None = None
    total: int = 0


class _SyncNorm(torch.autograd.Function):
    """(B, C, ...) normalized by mean and variance over the images of all processes.

    The gradient of the parameters is this process's part, to be summed over processes with all others.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        own = torch.zeros(2 * channels + 1, device=x.device)
        if x.numel():
            # The kernel of torch's own batch-norm: var_mean takes up to fifteen times as long.
            mean, variance = torch.batch_norm_update_stats(x.float(), None, None, 0.0)
            own = torch.cat([mean.new_tensor([x.numel() / channels]), mean, variance])
        parts = group.gather_equal(own[None]).double()
        count, means, variances = parts[:, :1], parts[:, 1 : channels + 1], parts[:, channels + 1 :]
        total = count.sum()
        mean = (count * means).sum(0) / total
        variance = (count * (variances + (means - mean).square())).sum(0) / total
        mean, variance = mean.float(), variance.float()
        out = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), total)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, total)
        return out, mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1, *(1,) * (x.ndim - 2))
        sums = _sums(grad.float(), x.float(), mean, scale)
        whole = ctx.group.sum_(sums.clone()) / total.float()
        # factor * (grad - whole[0] - normal * whole[1]) with normal = (x - mean) * scale, in two passes over memory
        factor = scale if weight is None else scale * weight
        slope = -factor * scale * whole[1]
        into = torch.addcmul((-factor * whole[0] - slope * mean).view(shape), grad.float(), factor.view(shape))
        into.addcmul_(x.float(), slope.view(shape))
        return into.to(x.dtype), *((None, None) if weight is None else (sums[1], sums[0])), None, None


def _sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(2, C), the sums of `grad` and of `grad` times the normalized `x`."""
    if not x.numel():
        return torch.zeros(2, x.shape[1], device=x.device)
    _, times, plain = torch.ops.aten.native_batch_norm_backward(
        grad, x, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return torch.stack([plain, times])


class SyncBatchNorm(_BatchNorm):
    """torch's BatchNorm1d and BatchNorm2d with the statistics of the whole batch, on CPUs too."""

    group: ProcessGroup
    plain: type[_BatchNorm]
    process_group: None

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normalized: tuple[Tensor, ...] = _SyncNorm.apply(input, self.weight, self.bias, self.eps, self.group)
        out, *statistics = normalized
        if self.running_mean is not None:
            self.group.once(lambda: self._follow(*statistics))
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Moves the running statistics towards those of a batch of `total` values a channel."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        unbiased = variance * (total / (total - 1).clamp(min=1)).float()
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class SyncBatchNormAct(SyncBatchNorm):
    """The same for timm's batch-norm with an activation in it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


class SyncDropout(nn.Dropout):
    """torch's Dropout with this process's part of a mask that is drawn for the whole batch.

    All processes draw the same mask, from generators that are in the same state.
    """

    batch_slice: BatchSlice
    group: ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p:
            return input
        assert self.batch_slice.position is not None, "the engine tells which images of the batch these are"
        ones = input.new_ones(self.batch_slice.total, *input.shape[1:])
        whole = self.group.once(lambda: F.dropout(ones, self.p))
        return input * whole[self.batch_slice.position.to(input.device)]


SYNCHRONIZED = (SyncBatchNorm, nn.SyncBatchNorm)


def convert_sync_batchnorm(
    network: nn.Module, group: ProcessGroup, batch_slice: BatchSlice, *, norm: bool = True, native: bool = False
) -> None:
    """Turns every batch-norm (where `norm`) and dropout within `network` into one that works on the whole batch.

    Parameters, buffers and names stay what they are. A single process changes nothing.

    Args:
        native: use torch's own SyncBatchNorm, which is faster and runs on GPUs only.

    Raises:
        DeepClusterError: a batch-norm of another kind.
    """
    if group.is_single:
        return
    for layer in network.modules():
        plain = type(layer)
        if norm and isinstance(layer, _BatchNorm) and not isinstance(layer, SYNCHRONIZED):
            if plain in (nn.BatchNorm1d, nn.BatchNorm2d):
                layer.__class__ = nn.SyncBatchNorm if native else SyncBatchNorm
            elif plain.__name__ == "BatchNormAct2d":
                layer.__class__ = SyncBatchNormAct
            else:
                raise DeepClusterError(
                    f"This network's {plain.__name__} cannot be computed over several processes: use"
                    " --sync-batchnorm False, or one process."
                )
            layer.plain, layer.process_group, layer.group = plain, None, group  # type: ignore[assignment]
        elif plain is nn.Dropout:
            layer.__class__ = SyncDropout
            layer.batch_slice, layer.group = batch_slice, group  # type: ignore[assignment]


def revert_sync_batchnorm(network: nn.Module) -> None:
    """Undoes `convert_sync_batchnorm`: torch's own layers, for a copy that one process uses by itself."""
    for layer in network.modules():
        if isinstance(layer, SYNCHRONIZED):
            plain: Any = layer.plain
            del layer.group, layer.plain, layer.process_group
            layer.__class__ = plain
        elif isinstance(layer, SyncDropout):
            del layer.batch_slice, layer.group
            layer.__class__ = nn.Dropout  # type: ignore[assignment]


@torch.no_grad()
def average_running_stats(network: nn.Module, group: ProcessGroup) -> None:
    """Running statistics that each process has of its own part of the batches become the means over processes."""
    if group.is_single:
        return
    statistics: list[Tensor] = []
    for layer in network.modules():
        # Of frozen ones the mean of equal numbers may differ from them in the last digit.
        if (
            isinstance(layer, _BatchNorm)
            and not isinstance(layer, SYNCHRONIZED)
            and not getattr(layer, "frozen", False)
        ):
            statistics += [s for s in (layer.running_mean, layer.running_var) if isinstance(s, Tensor)]
    group.sum_many_(statistics)
    for statistic in statistics:
        statistic.div_(group.size)
