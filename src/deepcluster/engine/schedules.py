"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from deepcluster.config import OptimizerParams


def factor(
    schedule: str,
    step: int,
    *,
    steps: int,
    steps_per_epoch: int,
    warmup: float = 0.0,
    step_epochs: float = 30.0,
    step_factor: float = 0.1,
    lr: float = 0.05,
    weight_decay: float = 1e-5,
) -> float:
    """What the base learning rate is multiplied with at optimizer step `step` of `steps`.

    "constant" is DeepCluster's own (its published runs never lower the rate); "bottou" is
    1 / sqrt(1 + lr * weight_decay * t), used by its linear probes.
    """
    rise = warmup * steps_per_epoch
    if step < rise:
        return (step + 1) / rise if rise >= 1 else 1.0
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
    if schedule == "step":
        return step_factor ** int(step / max(1.0, step_epochs * steps_per_epoch))
    if schedule == "bottou":
        return 1 / math.sqrt(1 + lr * weight_decay * step)
    raise ValueError(f"unknown schedule {schedule!r}")


def rate_factor(o: OptimizerParams, step: int, total: int, steps_per_epoch: int) -> float:
    """`factor` with the settings of a run."""
    return factor(
        o.schedule,
        step,
        steps=total,
        steps_per_epoch=steps_per_epoch,
        warmup=o.warmup,
        step_epochs=o.step_epochs,
        step_factor=o.step_factor,
        lr=o.lr,
        weight_decay=o.weight_decay,
    )
