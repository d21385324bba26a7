"""Optimizers made from values, and the one way their learning rate is set: a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from deepcluster.config import OptimizerParams
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone


class LARS(torch.optim.SGD):
    """SGD with momentum whose gradient of each weight, decay included, is scaled to a thousandth of the weight's norm
    (You et al. 2017, arXiv 1708.03888), so that large batches can take large rates in every layer.

    Biases and what normalizes, all that has one dimension, are neither scaled nor decayed.
    """

    TRUST = 0.001

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum)
        for param_group in self.param_groups:
            param_group["scaled_decay"] = weight_decay  # SGD would add its own after the scaling

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; overwrites the gradients."""
        for param_group in self.param_groups:
            decay = param_group["scaled_decay"]
            for weight in param_group["params"]:
                if weight.grad is not None and weight.ndim > 1:
                    size, slope = weight.norm(), weight.grad.norm()
                    scale = self.TRUST * size / (slope + decay * size)
                    weight.grad.add_(weight, alpha=decay).mul_(torch.where((size > 0) & (slope > 0), scale, 1.0))
        super().step()


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """SGD or LARS with `momentum`, or AdamW whose first beta it is, of the parameters that require gradients, or of
    groups {"params": ..., "lr": ...}. Every group remembers `base_lr`, which `set_rate` multiplies."""
    trained: list[Any] = [each for each in parameters if isinstance(each, dict) or each.requires_grad]
    if name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            trained, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay
        )
    else:
        kind = {"sgd": torch.optim.SGD, "lars": LARS}[name]
        optimizer = kind(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    for param_group in optimizer.param_groups:
        param_group["base_lr"] = param_group["lr"]
    return optimizer


def backbone_optimizer(o: OptimizerParams, backbone: Backbone) -> torch.optim.Optimizer:
    """The optimizer of a backbone's parameters, with rates that fall from stage to stage towards the input. The first
    group is that of the last stage, which has the rate of the run."""
    if not 0 < o.layer_decay <= 1:
        raise DeepClusterError(f"--optimizer.layer-decay is {o.layer_decay}: give a factor above 0 and at most 1.")
    groups: Iterable[Any] = backbone.parameters()
    if o.layer_decay < 1:
        groups = []
        for depth, stage in enumerate(reversed(backbone.stages)):
            own = [p for module in stage for p in module.parameters(recurse=False) if p.requires_grad]
            if own:
                groups.append({"params": own, "lr": o.lr * o.layer_decay**depth})
    return make_optimizer(groups, o.name, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)


def factor(o: OptimizerParams, step: int, *, steps: int, steps_per_epoch: int) -> float:
    """What the base learning rate is multiplied with at optimizer step `step` of `steps`.

    "constant" is DeepCluster's own (its published runs never lower the rate); "bottou" is
    1 / sqrt(1 + lr * weight_decay * t), used by its linear probes.
    """
    rise = o.warmup * steps_per_epoch
    if step < rise:
        return (step + 1) / rise if rise >= 1 else 1.0
    if o.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
    if o.schedule == "step":
        return o.step_factor ** int(step / max(1.0, o.step_epochs * steps_per_epoch))
    if o.schedule == "bottou":
        return 1 / math.sqrt(1 + o.lr * o.weight_decay * step)
    return 1.0


def set_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's rate to `factor` times its base rate, but for groups that say `scheduled` false."""
    for optimizer in optimizers:
        for param_group in optimizer.param_groups:
            if param_group.get("scheduled", True):
                param_group["lr"] = param_group["base_lr"] * factor


def step_all(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    clip: float,
    scaler: torch.amp.GradScaler | None = None,
    group: ProcessGroup = SINGLE,
    own: Sequence[nn.Parameter] | None = None,
    summed: bool = False,
) -> None:
    """One step of every optimizer on gradients of the same loss, clipped together, then zeroed.

    A loss scaler (16-bit floats) is updated once, after all of them: each must see the same scale.

    Args:
        clip: largest norm of the gradients of all parameters together; 0 = any.
        group: the processes whose losses, and with them gradients, add up to those of the whole batch.
        own: those of the parameters that only this process has, perhaps none; None = all have all of them.
        summed: whether the gradients are summed over processes already.
    """
    optimizers, parameters = list(optimizers), list(parameters)
    local = {id(parameter) for parameter in own or ()}
    shared = [p.grad for p in parameters if p.grad is not None and id(p) not in local]
    if not summed:
        group.sum_many_(shared)
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    if clip and own is None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    elif clip:
        rest = [p.grad for p in own or () if p.grad is not None]
        square = group.sum_(torch.nn.utils.get_total_norm(rest).square().to(shared[0]))
        norm = (torch.nn.utils.get_total_norm(shared).square() + square).sqrt()
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ has it
        for grad in (*shared, *rest):
            grad.mul_(factor)
    for optimizer in optimizers:
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad()
    if scaler is not None:
        scaler.update()
