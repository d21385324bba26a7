"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from deepcluster.config import OptimizerParams


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
