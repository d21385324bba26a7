"""What one image costs a network: counted on a network without numbers, so the largest takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from deepcluster.models.backbone import Backbone


@dataclass(frozen=True)
class Network:
    """A backbone in numbers.

    Attributes:
        name: backbone, input layer and side of the images it was counted at.
        dim: width of its features.
        head_relu: the classifier begins with a ReLU.
        parameters: trained numbers. state: bytes of its state dict.
        tensors: trained tensors.
        forward, training: floating-point operations of an image, a multiplication and an addition as two; forward
            alone, and forward and backward.
        kept: bytes that an image leaves for the way back, in float32.
        widest: bytes that go in and out of the layer where these are most, of an image.
        norms: channels of each batch-norm.
    """

    name: str
    dim: int
    head_relu: bool
    parameters: int
    tensors: int
    state: int
    forward: int
    training: int
    kept: int
    widest: int
    norms: tuple[int, ...]


def look(draw: Callable[[], Backbone], view_size: int | None = None) -> Network:
    """The network that `draw` makes, counted without making its numbers.

    Args:
        draw: makes the backbone.
        view_size: side of the training views; None = the images it was built for. Descriptions are always of those.
    """
    with torch.device("meta"):
        backbone = draw().to("meta")
    size = backbone.image_size
    side = view_size or size
    trained = [p for p in backbone.parameters() if p.requires_grad]
    return Network(
        name=name_of(backbone, side),
        dim=backbone.dim,
        head_relu=backbone.head_relu,
        parameters=sum(p.numel() for p in trained),
        tensors=len(trained),
        state=sum(t.nbytes for t in backbone.state_dict().values()),
        forward=_forward(backbone, size),
        training=_training(backbone, side),
        kept=_kept(backbone, side, 3) - _kept(backbone, side, 2),
        widest=_widest(backbone, size),
        norms=tuple(layer.num_features for layer in backbone.modules() if isinstance(layer, _BatchNorm)),
    )


def name_of(backbone: Backbone, side: int) -> str:
    """What tells a network's speed from another's."""
    return f"{backbone.name}, sobel {backbone.config['sobel']}, {side} px"


def _images(count: int, side: int) -> Tensor:
    return torch.empty(count, 3, side, side, device="meta")


def _forward(backbone: Backbone, side: int) -> int:
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone.eval()(_images(1, side))
    return int(counted.get_total_flops())


def _training(backbone: Backbone, side: int) -> int:
    with FlopCounterMode(display=False) as counted:
        backbone.train()(_images(2, side)).sum().backward()  # batch-norm wants two images
    backbone.zero_grad()
    return int(counted.get_total_flops()) // 2


def _kept(backbone: Backbone, side: int, count: int) -> int:
    """Bytes of all that autograd keeps of `count` images but the network itself."""
    own = {t.untyped_storage()._cdata for t in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage()._cdata
        if where not in own:
            kept[where] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone.train()(_images(count, side))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _widest(backbone: Backbone, side: int) -> int:
    seen = [0]

    def see(layer: nn.Module, given: Any, out: Any) -> None:
        tensors = [t for t in (*given, out) if isinstance(t, Tensor)]
        seen.append(sum(t.nbytes for t in tensors))

    layers = [layer for layer in backbone.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        with torch.no_grad():
            backbone.eval()(_images(1, side))
    finally:
        for hook in hooks:
            hook.remove()
    return max(seen)
