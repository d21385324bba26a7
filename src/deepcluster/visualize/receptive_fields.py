"""Receptive fields: which pixels of the image a position of a map depends on, measured by gradients.

If all weights are equal and nothing saturates, the gradient of one position is zero for exactly the pixels that it
does not depend on. Along each axis, position p depends on the pixels p * step + first ... p * step + last. Behind
layers that depend on the whole map (squeeze and excitation, attention) there is no such field.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deepcluster.models.backbone import Backbone
from deepcluster.visualize.layers import tap_output


@dataclass(frozen=True)
class ReceptiveField:
    """What the positions of a map depend on, each of (vertical, horizontal).

    Attributes:
        step: pixels from one position to the next.
        first, last: first and last pixel of position 0; negative ones lie in the padding.
    """

    step: tuple[int, int]
    first: tuple[int, int]
    last: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.last[0] - self.first[0] + 1, self.last[1] - self.first[1] + 1

    def box(self, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right (exclusive) of a position's pixels in an image; at least one pixel."""
        start = np.clip(np.multiply((row, column), self.step) + self.first, 0, (height - 1, width - 1))
        end = np.clip(np.multiply((row, column), self.step) + self.last + 1, start + 1, (height, width))
        (top, left), (bottom, right) = start.tolist(), end.tolist()
        return top, left, bottom, right


def receptive_field(backbone: Backbone, tap: str) -> ReceptiveField | None:
    """The field of a tap's positions in the image; None = the whole image, or no field that is the same everywhere."""
    # in an image of twice the size, a field smaller than the image is not cut at the edges of the middle position
    image = torch.zeros(1, 3, *[2 * backbone.image_size] * 2, dtype=torch.float64, requires_grad=True)
    maps = _maps(backbone, tap, image)
    if maps is None or maps.ndim != 4 or min(maps.shape[2:]) < 3:
        return None
    middle = [side // 2 for side in maps.shape[2:]]
    here, below, right = (
        _extent(maps[0, :, middle[0] + down, middle[1] + across].sum(), image)
        for down, across in ((0, 0), (1, 0), (0, 1))
    )
    step = below[0, 0] - here[0, 0], right[1, 0] - here[1, 0]
    moved = np.array([[[step[0]] * 2, [0, 0]], [[0, 0], [step[1]] * 2]])
    whole = here.min() <= 0 or here.max() >= image.shape[2] - 1
    if whole or min(step) < 1 or (below - here != moved[0]).any() or (right - here != moved[1]).any():
        return None
    (top, bottom), (left, end) = (here - np.multiply(step, middle)[:, None]).tolist()
    return ReceptiveField((int(step[0]), int(step[1])), (top, left), (bottom, end))


def _maps(backbone: Backbone, tap: str, image: Tensor) -> Tensor | None:
    """The tap's output with equal weights; None where the network cannot be computed so."""
    # what a network does with an image of another size, or with float64, fails in many ways
    with suppress(Exception), _EqualWeights():
        return tap_output(backbone.eval(), tap, image)
    return None


def _extent(value: Tensor, image: Tensor) -> np.ndarray:
    """((top, bottom), (left, right)), inclusive, of the pixels that a number depends on."""
    (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
    touched = gradient[0].abs().amax(0) > 0
    spans = [torch.nonzero(touched.any(axis)).flatten() for axis in (1, 0)]
    return np.array([[int(span[0]), int(span[-1])] if len(span) else [0, 0] for span in spans])


class _EqualWeights(TorchFunctionMode):
    """Convolutions become means over their window, as all weights are equal; what acts on single pixels is left out."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(function.__name__, function)(*args, **(kwargs or {}))


def _conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    kernel = torch.full((1, 1, *weight.shape[2:]), 1 / weight[0, 0].numel(), dtype=image.dtype)
    mean = torch.conv2d(image.mean(1, keepdim=True), kernel, None, stride, padding, dilation)
    return mean.expand(-1, len(weight), -1, -1)


def _linear(rows: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return rows.mean(-1, keepdim=True).expand(*rows.shape[:-1], len(weight))


def _max_pool2d(
    image: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if dilation not in (1, (1, 1)):
        raise NotImplementedError  # `_maps` then knows of no field
    return torch.nn.functional.avg_pool2d(image, kernel_size, stride, padding, ceil_mode)


_POINTWISE = (
    "relu relu_ relu6 relu6_ leaky_relu leaky_relu_ elu elu_ gelu silu silu_ mish mish_ softplus sigmoid sigmoid_ tanh"
    " tanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ dropout dropout2d feature_dropout"
    " batch_norm layer_norm"
)
_REPLACED = {
    "conv2d": _conv2d, "linear": _linear, "max_pool2d": _max_pool2d, "__iadd__": torch.add, "add_": torch.add,
    "__imul__": torch.mul, "mul_": torch.mul,
    **dict.fromkeys(_POINTWISE.split(), lambda image, *rest, **options: image),
}  # fmt: skip
