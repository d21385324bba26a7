"""The exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """Moves the weights and batch-norm statistics of `average` towards those of `network`.

    Args:
        decay: weight of the old average.
        updates: number of updates, this one included; the first ones forget faster, or the initial weights would
            stay for long.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    now = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - decay)
        else:
            value.copy_(now[name])
