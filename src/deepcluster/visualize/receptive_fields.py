"""Receptive fields: which pixels of the image a place on a map can see, exactly.

Along each axis, position p of a map sees the pixels p * step + first ... p * step + last. Convolutions and pools
change these three numbers; branches that join see what any of them sees. The network is traced, not run; behind what
looks at the whole map, and where tracing fails, a position sees the whole image.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from deepcluster.models.backbone import Backbone

Pair = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """What the positions of a map see, each of (vertical, horizontal).

    Attributes:
        step: pixels from one position to the next.
        first, last: first and last pixel that position 0 sees; negative ones lie in the padding.
    """

    step: Pair = (1, 1)
    first: Pair = (0, 0)
    last: Pair = (0, 0)

    @property
    def size(self) -> Pair:
        """Height and width in pixels."""
        return self.last[0] - self.first[0] + 1, self.last[1] - self.first[1] + 1

    def through(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Field:
        """The field behind one more convolution or pool."""
        first = tuple(f - j * p for f, j, p in zip(self.first, self.step, padding, strict=True))
        last = tuple(
            o + j * ((k - 1) * d - p)
            for o, j, k, d, p in zip(self.last, self.step, kernel, dilation, padding, strict=True)
        )
        step = tuple(j * s for j, s in zip(self.step, stride, strict=True))
        return Field(step, first, last)  # type: ignore[arg-type]  # pairs

    def joined(self, other: Field) -> Field | None:
        """What either sees; None where positions do not lie on top of each other."""
        if self.step != other.step:
            return None
        first = min(self.first[0], other.first[0]), min(self.first[1], other.first[1])
        last = max(self.last[0], other.last[0]), max(self.last[1], other.last[1])
        return Field(self.step, first, last)

    def box(self, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right (exclusive) of what a position sees of an image; at least one pixel."""
        found = []
        for axis, (position, length) in enumerate(((row, height), (column, width))):
            start = min(max(position * self.step[axis] + self.first[axis], 0), length - 1)
            stop = min(max(position * self.step[axis] + self.last[axis] + 1, start + 1), length)
            found.append((start, stop))
        return found[0][0], found[1][0], found[0][1], found[1][1]


def receptive_field(backbone: Backbone, tap: str) -> Field | None:
    """The field of a tap's positions in the image; None = the whole image."""
    path = _path(backbone, tap)
    tracer = _Tracer()
    # what is traced before the network does something that tracing cannot follow is all that is needed
    with contextlib.suppress(Exception):  # tracing fails in as many ways as there are networks
        tracer.trace(_Whole(backbone.sobel, backbone.trunk).eval())
    wanted = tracer.outputs.get(path)
    fields: dict[fx.Node, Field | None] = {}
    for node in tracer.graph.nodes:
        fields[node] = _field_of(node, fields, tracer)
        if node is wanted:
            break
    return fields.get(wanted) if wanted is not None else None


def _path(backbone: Backbone, tap: str) -> str:
    """Where the tap's module is in a `_Whole`."""
    module = backbone.tap_module(tap)
    return next(f"trunk.{path}".rstrip(".") for path, each in backbone.trunk.named_modules() if each is module)


class _Whole(nn.Module):
    """Input layer and trunk, which share their modules with the backbone."""

    def __init__(self, sobel: nn.Module, trunk: nn.Module) -> None:
        super().__init__()
        self.sobel, self.trunk = sobel, trunk

    def forward(self, images: Any) -> Any:
        return self.trunk(self.sobel(images))


class _Tracer(fx.Tracer):
    """Remembers what each module gave last, those with modules inside too."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _ONE_TO_ONE) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        found = super().call_module(m, forward, args, kwargs)
        if isinstance(found, fx.Proxy):
            self.outputs[path] = found.node
        return found


_ONE_TO_ONE = (
    nn.BatchNorm2d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish,
    nn.Hardsigmoid, nn.Mish, nn.Softplus, nn.Tanh, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_SAME = {functional.relu, functional.dropout, functional.silu, functional.gelu, torch.relu, operator.getitem}
_JOIN = {operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.mul, torch.cat}
_SAME_METHODS = {"relu", "relu_", "contiguous", "float", "clone", "sigmoid"}
_JOIN_METHODS = {"add", "add_", "mul", "mul_"}


def _field_of(node: fx.Node, fields: dict[fx.Node, Field | None], tracer: _Tracer) -> Field | None:
    """The field of one node, from those of its inputs."""
    if node.op == "placeholder":
        return Field()
    inputs = [fields[each] for each in node.all_input_nodes if each.op != "get_attr"]
    known = [each for each in inputs if each is not None]
    if not inputs or len(known) < len(inputs):
        return None
    if node.op == "call_module":
        return _behind(tracer.root.get_submodule(str(node.target)), known[0])
    same = node.target in (_SAME if node.op == "call_function" else _SAME_METHODS)
    join = node.target in (_JOIN if node.op == "call_function" else _JOIN_METHODS)
    if node.target is functional.conv2d:
        return _sobel(node, known[0], tracer)
    if not (same or join):
        return None
    if node.target is operator.getitem and not _keeps_places(node.args[1]):
        return None
    found: Field | None = known[0]
    for other in known[1:]:
        found = None if found is None else found.joined(other)
    return found


def _behind(module: nn.Module, field: Field) -> Field | None:
    if isinstance(module, _ONE_TO_ONE):
        return field
    if isinstance(module, nn.ConstantPad2d):
        left, _, top, _ = module.padding
        return Field(field.step, _moved(field, field.first, top, left), _moved(field, field.last, top, left))
    if not isinstance(module, _SLIDING) or isinstance(module.padding, str):
        return None
    dilation = _pair(getattr(module, "dilation", 1))
    stride = _pair(module.stride if module.stride is not None else module.kernel_size)
    return field.through(_pair(module.kernel_size), stride, _pair(module.padding), dilation)


def _moved(field: Field, place: Pair, top: int, left: int) -> Pair:
    return place[0] - field.step[0] * top, place[1] - field.step[1] * left


def _sobel(node: fx.Node, field: Field, tracer: _Tracer) -> Field | None:
    """Behind `functional.conv2d` with a kernel that is a buffer, as `models.sobel.Sobel` has it."""
    kernel = node.args[1]
    if not isinstance(kernel, fx.Node) or kernel.op != "get_attr" or set(node.kwargs) - {"padding"}:
        return None
    parent, _, name = str(kernel.target).rpartition(".")
    weight = getattr(tracer.root.get_submodule(parent), name)
    padding: Any = node.kwargs.get("padding", 0)
    return field.through(tuple(weight.shape[2:]), (1, 1), _pair(padding), (1, 1))


def _keeps_places(key: Any) -> bool:
    """Whether an index takes channels or images and leaves the map as it is."""
    return isinstance(key, tuple) and all(part == slice(None) for part in key[2:])


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
