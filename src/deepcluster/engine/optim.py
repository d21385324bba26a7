"""Optimizers made from values, and the one way their learning rate is set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from deepcluster.distributed import SINGLE, ProcessGroup


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: str, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with `momentum`, or AdamW whose first beta is `momentum`.

    Every group remembers `base_lr`, which `set_rate` multiplies.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(trained, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
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
