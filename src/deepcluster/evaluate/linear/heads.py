"""Classifiers to train, and the linear layers that are left of them when they are used."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded

INIT = 31
"""Purpose of a key."""
STD = 0.01
"""Standard deviation of new layers, as in the papers' code."""
FC_BIAS = 0.1
"""Biases of new fully connected layers, as in DeepCluster's evaluation on VOC."""
DROPOUT = 0.5

Layers = list[tuple[Tensor, Tensor]]
"""Weights (out, in) and biases (out,) of linear layers; a ReLU stands between each two."""


def perceptron(
    dim: int, classes: int, widths: Sequence[int] = (), *, norm: bool = True, seed: int, name: str = "top"
) -> nn.Sequential:
    """(B, dim) -> (B, classes): batch-norm without scale and shift where `norm` says so, hidden layers of these widths
    with ReLU and dropout, and a top layer of this name.

    The weights depend on seed and names alone, so that a layer's probe is the same alone and among others.
    """
    layers: list[nn.Module] = [nn.BatchNorm1d(dim, affine=False)] if norm else []
    for number, width in enumerate(widths):
        hidden = init_normal(dim, width, seed, f"hidden {number}", std=math.sqrt(2 / dim))
        layers += [hidden, nn.ReLU(), nn.Dropout(DROPOUT)]
        dim = width
    return nn.Sequential(*layers, init_normal(dim, classes, seed, name))


@torch.no_grad()
def fully_connected(backbone: Backbone, classes: int, seed: int) -> nn.Sequential:
    """New fc6, fc7 and top layer of AlexNet or VGG-16; the top layer has torch's usual initial weights."""
    layers: list[nn.Module] = []
    width = 0
    trunk: Any = backbone.trunk
    for number, layer in enumerate(trunk.classifier):
        if isinstance(layer, nn.Linear):
            layers.append(init_normal(layer.in_features, layer.out_features, seed, f"fc {number}", bias=FC_BIAS))
            width = layer.out_features
        else:
            layers.append(nn.Dropout(layer.p) if isinstance(layer, nn.Dropout) else nn.ReLU())
    top = nn.Linear(width, classes, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(width)
    top.weight.uniform_(-bound, bound, generator=seeded(seed, INIT, 0))
    top.bias.fill_(FC_BIAS)
    return nn.Sequential(*layers, nn.ReLU(), top)


@torch.no_grad()
def init_normal(dim: int, out: int, seed: int, name: str, *, bias: float = 0.0, std: float = STD) -> nn.Linear:
    """A linear layer with weights N(0, std), drawn from seed and name, and equal biases."""
    layer = nn.Linear(dim, out, device="meta").to_empty(device="cpu")
    generator = seeded(seed, INIT, zlib.crc32(name.encode()))
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
    layer.bias.fill_(bias)
    return layer


@torch.no_grad()
def layers_of(head: nn.Module) -> Layers:
    """The linear layers of a trained head; batch-norm before the first of them is folded into it."""
    layers = [(m.weight.double(), m.bias.double()) for m in head.modules() if isinstance(m, nn.Linear)]
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = layers[0]
            weight = weight * (norm.running_var.double() + norm.eps).rsqrt()
            layers[0] = weight, bias - weight @ norm.running_mean.double()
    return [(weight.float().cpu(), bias.float().cpu()) for weight, bias in layers]


def apply_layers(layers: Layers, vectors: Tensor) -> Tensor:
    """(B, K) logits of (B, dim) vectors."""
    for number, (weight, bias) in enumerate(layers):
        vectors = F.linear(F.relu(vectors) if number else vectors, weight.to(vectors.device), bias.to(vectors.device))
    return vectors
