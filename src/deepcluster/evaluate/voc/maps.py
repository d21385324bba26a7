"""The maps of a backbone for whole images of any size, and where on the image their cells lie.

Detection and segmentation stand on these; this file knows neither.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.convnet import ConvNet
from deepcluster.models.sobel import input_layer

LAYERS = ("layer1", "layer2", "layer3", "layer4")
PROBE = 256
"""Side in pixels of the empty image that maps are measured with."""
CALIBRATION = 32
"""Training images that measure batch-norm's statistics where no training has."""


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie: the field of cell u is centered on pixel `first` + `stride` * u, counted from 0.

    Attributes:
        stride: pixels between two cells.
        first: the pixel that cell 0 is centered on.
    """

    stride: int
    first: float

    def through(self, layers: Sequence[nn.Module]) -> Grid:
        """The grid of the map that these layers, one after another, make of a map with this grid."""
        stride, first = self.stride, self.first
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                kernel, step, padding = (_one(value) for value in (layer.kernel_size, layer.stride, layer.padding))
                reach = (kernel - 1) * _one(getattr(layer, "dilation", 1))
                first += (reach / 2 - padding) * stride
                stride *= step
        return Grid(stride, first)


@dataclass(frozen=True)
class Map:
    """One map of a backbone: its channels, its grid."""

    channels: int
    grid: Grid


class Maps(nn.Module):
    """(B, 3, H, W) normalized images -> the maps of a backbone, from fine to coarse.

    Args:
        sobel: the backbone's input layer.
        parts: what leads from the input to the first map, from there to the next, and so on.
        maps: what they give.
    """

    def __init__(self, sobel: nn.Module, parts: Sequence[nn.Module], maps: Sequence[Map]) -> None:
        super().__init__()
        self.sobel = sobel
        self.parts = nn.ModuleList(parts)
        self.maps = tuple(maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One (B, C, h, w) for every part."""
        found = [self.sobel(images)]
        for part in self.parts:
            found.append(part(found[-1]))
        return found[1:]


class Tapped(nn.Module):
    """A whole network, read at one of its layers."""

    def __init__(self, trunk: nn.Module, path: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.trunk.get_submodule(self.path).register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            self.trunk(images)
        finally:
            handle.remove()
        return seen[-1]


def own_copy(backbone: Backbone) -> Backbone:
    """A copy on the CPU whose weights can be trained without those of the subject changing."""
    copied = copy.deepcopy(backbone).cpu().eval()
    copied.requires_grad_(True)
    return copied


def convolutions(backbone: Backbone, *, drop_last_pool: bool, strides: Sequence[int] = ()) -> Maps | None:
    """The maps of a network that is one row of convolutions and pools (AlexNet, VGG, convnet); None for others.

    Args:
        drop_last_pool: leave out the pool that stands before the linear layers, as Fast R-CNN does (arXiv 1504.08083
            §2.2), whose place is taken by the pooling of regions.
        strides: also give the map behind the pool that reaches each of these strides.

    Raises:
        DeepClusterError: no pool reaches such a stride.
    """
    trunk = backbone.trunk
    if not isinstance(trunk, (ConvThenLinear, ConvNet)):
        return None
    layers: list[nn.Module] = list(trunk.features)
    if drop_last_pool and isinstance(layers[-1], nn.MaxPool2d):
        layers = layers[:-1]
    start, channels = _input(backbone)
    ends, grid, reached = [len(layers)], start, {}
    for position, layer in enumerate(layers, start=1):
        grid = grid.through(list(layer.modules()))
        if any(isinstance(part, nn.MaxPool2d) for part in layer.modules()):
            reached[grid.stride] = position
    for stride in strides:
        if stride not in reached:
            have = ", ".join(str(known) for known in sorted(reached))
            raise DeepClusterError(f"{backbone.name} has no pool of stride {stride}: it has {have or 'none'}.")
        ends.append(reached[stride])
    ends, parts, maps, grid = sorted(set(ends)), [], [], start
    for first, last in pairwise([0, *ends]):
        part = nn.Sequential(*layers[first:last])
        grid = grid.through(list(part.modules()))
        channels = _last_width(part, channels)
        parts.append(part)
        maps.append(Map(channels, grid))
    return Maps(backbone.sobel, parts, maps)


def residual(backbone: Backbone, ends: Sequence[str]) -> Maps | None:
    """The maps of a ResNet behind the named ones of layer1..layer4; None for a network without such layers.

    Every convolution of a ResNet is padded alike on both sides, so that cell 0 is centered on pixel 0.
    """
    trunk = backbone.trunk
    if not all(hasattr(trunk, layer) for layer in LAYERS):
        return None
    children = dict(trunk.named_children())
    stem = list(children)[: list(children).index("layer1")]
    names, parts = [*stem, *LAYERS], []
    for first, last in pairwise([0, *(names.index(end) + 1 for end in ends)]):
        parts.append(nn.Sequential(*(children[name] for name in names[first:last])))
    start, channels = _input(backbone)
    return Maps(backbone.sobel, parts, _measured(parts, channels, start.first))


def tapped(backbone: Backbone, coarsest: int = 16) -> Maps:
    """The map of any other convolutional network: the deepest of its taps whose stride is at most `coarsest`.

    Its cells are taken to tile the image evenly.

    Raises:
        DeepClusterError: none of its taps is a map.
    """
    start, channels = _input(backbone)
    probe = torch.zeros(1, channels, backbone.image_size, backbone.image_size)
    found = None
    for path in (path for path in backbone._tap_paths.values() if path):
        part = Tapped(backbone.trunk, path)
        with torch.no_grad():
            out = part(probe)
        if out.ndim != 4 or out.shape[2] < 2:
            continue
        stride = round(backbone.image_size / out.shape[2])
        if stride <= coarsest and stride & (stride - 1) == 0:
            found = part, Map(out.shape[1], Grid(stride, (stride - 1) / 2 + start.first))
    if found is None:
        raise DeepClusterError(
            f"{backbone.name} has no layer whose output is a map of the image: take a convolutional network."
        )
    return Maps(backbone.sobel, [found[0]], [found[1]])


def dilate(layers: Sequence[nn.Module], halvings: int) -> None:
    """Takes the last `halvings` strides of 2 out of these residual layers, in place, and spreads the convolutions
    behind them, so that every second cell is what it was (the "hole algorithm", arXiv 1412.7062 §3.1)."""
    pools = any(isinstance(part, (nn.AvgPool2d, nn.MaxPool2d)) for layer in layers for part in layer.modules())
    strided = [conv for layer in layers for conv in _convolutions(layer) if _one(conv.stride) == 2]
    strided = [conv for conv in strided if _one(conv.kernel_size) > 1]
    if len(strided) < halvings or (pools and halvings):
        count = 0 if pools else len(strided)
        raise DeepClusterError(
            f"{count} strides of 2 can be taken out of this network, not {halvings}: raise --stride."
        )
    chosen = {id(conv) for conv in strided[len(strided) - halvings :]}
    spread = 1
    for layer in layers:
        for block in layer.children():
            before = spread
            for conv in _convolutions(block):
                if _one(conv.kernel_size) == 1:
                    continue
                conv.dilation = (spread, spread)
                conv.padding = (_one(conv.padding) * spread,) * 2
                if id(conv) in chosen:
                    conv.stride, spread = (1, 1), spread * 2
            if spread != before:
                for conv in _convolutions(block):
                    if _one(conv.kernel_size) == 1:
                        conv.stride = (1, 1)  # the way around the block


def norms(module: nn.Module) -> list[nn.Module]:
    """Its batch-norm layers."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def freeze_norms(module: nn.Module) -> None:
    """Statistics, scale and shift of batch-norm stay as they are: a batch of two images has no statistics to offer."""
    for part in norms(module):
        part.eval().requires_grad_(False)


@torch.no_grad()
def measure_norms(network: nn.Module, batches: Sequence[Tensor]) -> bool:
    """Where batch-norm was never trained, its statistics are measured on some images before they are frozen.

    A drawn network normalizes by means of 0 and deviations of 1 that nobody measured; frozen, it would not be the
    network that training from scratch begins with (compare arXiv 1511.06856, which sets scales from data too).

    Args:
        network: a module that takes one batch.
        batches: normalized images, (B, 3, H, W) each.

    Returns:
        Whether there was something to measure.
    """
    fresh: list[Any] = [part for part in norms(network) if int(getattr(part, "num_batches_tracked", 1)) == 0]
    untouched = [
        part for part in fresh if not part.running_mean.any() and bool((part.running_var == 1).all())
    ]  # files of weights without the counter have statistics all the same
    if not untouched:
        return False
    before = [part.momentum for part in untouched]
    for part in untouched:
        part.momentum = None  # the plain mean over the batches
        part.train()
    for batch in batches:
        network(batch)
    for part, momentum in zip(untouched, before, strict=True):
        part.momentum = momentum
        part.eval()
    return True


def interpolation(target: int, to: Grid, cells: int, of: Grid, device: torch.device | None = None) -> Tensor:
    """(target, cells) weights that read a map of `cells` cells with grid `of` at the cells of grid `to`, linearly;
    beyond the first and the last cell their value holds. Rows sum to 1."""
    place = (to.first + to.stride * torch.arange(target, device=device) - of.first) / of.stride
    place = place.clamp(0, cells - 1)
    low = place.floor().clamp(max=max(cells - 2, 0)).long()
    share = (place - low).to(torch.float32)
    weights = torch.zeros(target, cells, device=device)
    weights.scatter_add_(1, low[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, (low + 1).clamp(max=cells - 1)[:, None], share[:, None])


def _input(backbone: Backbone) -> tuple[Grid, int]:
    """The grid and the channels of what the trunk sees; some input layers pad the image."""
    _, channels, extra = input_layer(backbone.config.get("sobel", "none"))
    return Grid(1, -extra / 2), channels


def _measured(parts: Sequence[nn.Module], channels: int, first: float) -> list[Map]:
    """The maps of parts whose every stride is a power of two, by showing them an empty image."""
    found, maps = torch.zeros(1, channels, PROBE, PROBE), []
    with torch.no_grad():
        for part in parts:
            found = part(found)
            stride = 2 ** round(math.log2(PROBE / found.shape[2]))
            maps.append(Map(found.shape[1], Grid(stride, first)))
    return maps


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (part for part in module.modules() if isinstance(part, nn.Conv2d))


def _last_width(part: nn.Module, before: int) -> int:
    widths = [conv.out_channels for conv in _convolutions(part)]
    return widths[-1] if widths else before


def _one(value: Any) -> int:
    """Of a pair that is the same both ways, one."""
    return int(value[0] if isinstance(value, (tuple, list)) else value)
