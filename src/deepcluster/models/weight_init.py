"""How the networks of the paper begin."""

from __future__ import annotations

import math

from torch import nn


def initialize_(module: nn.Module) -> None:
    """Conv weights N(0, sqrt(2 / (kh * kw * out))), linear N(0, .01), batch-norm 1 and 0, every bias 0.

    Draws come from torch's global generator, as in every constructor of torch, torchvision and timm.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            height, width = part.kernel_size
            nn.init.normal_(part.weight, 0.0, math.sqrt(2 / (height * width * part.out_channels)))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
