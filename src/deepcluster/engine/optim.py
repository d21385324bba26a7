"""Optimizers made from values, and the one way their learning rate is set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from deepcluster.distributed import SINGLE, ProcessGroup


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
    parameters: Iterable[nn.Parameter], name: str, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD or LARS with `momentum`, or AdamW whose first beta is `momentum`.

    Every group remembers `base_lr`, which `set_rate` multiplies.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(trained, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    elif name == "lars":
        optimizer = LARS(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    else:
        raise ValueError(f"unknown optimizer {name!r}")
    for param_group in optimizer.param_groups:
        param_group["base_lr"] = lr
    return optimizer


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
        parameters: all that are trained.
        clip: largest norm of all gradients together; 0 = any.
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
