"""Classifiers: how they begin, and what is left of them when they are used: linear layers with ReLUs between.

This file does not know how they are trained.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.random import seeded

BEGIN = 31
"""What a key is for."""
STD = 0.01

Layers = list[tuple[Tensor, Tensor]]
"""Weights (out, in) and biases (out,) of linear layers; a ReLU stands between each two."""


def linear_head(dim: int, classes: int, *, norm: bool, seed: int, name: str) -> nn.Sequential:
    """(B, dim) -> (B, classes): perhaps batch-norm without scale and shift, then one layer, N(0, .01).

    What is drawn depends on seed and name alone, so that a layer's probe is the same alone and among others.
    """
    layer = nn.utils.skip_init(nn.Linear, dim, classes)
    draw_(layer, seed, name, bias=0.0)
    return nn.Sequential(nn.BatchNorm1d(dim, affine=False), layer) if norm else nn.Sequential(layer)


@torch.no_grad()
def draw_(layer: nn.Linear, seed: int, name: str, *, bias: float, std: float = STD) -> nn.Linear:
    """Weights N(0, std) of a key, every bias the same."""
    generator = seeded(seed, BEGIN, zlib.crc32(name.encode()))
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
    layer.bias.fill_(bias)
    return layer


@torch.no_grad()
def layers_of(head: nn.Module) -> Layers:
    """The layers of a trained sequence of linear layers, ReLUs, dropout and batch-norm, which is folded into them."""
    layers: Layers = []
    before: tuple[Tensor, Tensor] | None = None
    for module in head.modules():
        if isinstance(module, _BatchNorm):
            scale, shift = _affine(module)
            if layers:
                weight, bias = layers[-1]
                layers[-1] = (scale[:, None] * weight, scale * bias + shift)
            else:
                before = (scale, shift)
        elif isinstance(module, nn.Linear):
            weight, bias = module.weight.double(), module.bias.double()
            if before is not None:
                scale, shift = before
                weight, bias, before = weight * scale, bias + weight @ shift, None
            layers.append((weight, bias))
    return [(weight.float().cpu(), bias.float().cpu()) for weight, bias in layers]


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch-norm in evaluation mode, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def apply(layers: Layers, vectors: Tensor) -> Tensor:
    """(B, K) logits of (B, dim) vectors."""
    for number, (weight, bias) in enumerate(layers):
        vectors = F.linear(F.relu(vectors) if number else vectors, weight.to(vectors.device), bias.to(vectors.device))
    return vectors
