"""The feature maps of a backbone for images of any size, and where on the image their cells lie.

Detection and segmentation build on these.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import tap_shapes
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.convnet import ConvNet
from deepcluster.models.sobel import input_layer

LAYERS = ("layer1", "layer2", "layer3", "layer4")
PROBE_SIZE = 256
"""Side in pixels of the empty image that maps are measured with."""


class Grid(NamedTuple):
    """Where the cells of a map lie: the receptive field of cell u is centered on pixel `first` + `stride` * u."""

    stride: int
    first: float

    def through(self, layers: Iterable[nn.Module]) -> Grid:
        """The grid of the map that these layers, one after another, make of a map with this grid."""
        stride, first = self
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                kernel, step, padding = (_side(value) for value in (layer.kernel_size, layer.stride, layer.padding))
                reach = (kernel - 1) * _side(getattr(layer, "dilation", 1))
                first += (reach / 2 - padding) * stride
                stride *= step
        return Grid(stride, first)


class FeatureMap(NamedTuple):
    """What is known of one map of a backbone."""

    channels: int
    grid: Grid


class FeatureMaps(nn.Module):
    """(B, 3, H, W) normalized images -> the maps of a backbone, from fine to coarse: `parts` behind its input layer
    lead from the input to the first map, from there to the next, and so on; `maps` is what is known of these."""

    def __init__(self, sobel: nn.Module, parts: Sequence[nn.Module], maps: Sequence[FeatureMap]) -> None:
        super().__init__()
        self.sobel = sobel
        self.parts = nn.ModuleList(parts)
        self.maps = tuple(maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One (B, C, h, w) for every part."""
        outputs = [self.sobel(images)]
        for part in self.parts:
            outputs.append(part(outputs[-1]))
        return outputs[1:]


class MapNetwork(nn.Module):
    """A network on the maps of a backbone that can be saved; for `kind` and `about` see `tensor_file.load_network`."""

    kind: str
    about: dict[str, Any]
    maps: FeatureMaps


class TappedNetwork(nn.Module):
    """A whole network, read at one of its layers."""

    def __init__(self, trunk: nn.Module, path: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        handle = self.trunk.get_submodule(self.path).register_forward_hook(lambda *call: outputs.append(call[2]))
        try:
            self.trunk(images)
        finally:
            handle.remove()
        return outputs[-1]


def trainable_copy(backbone: Backbone) -> Backbone:
    """A copy on the CPU, all of whose weights can be trained; the original stays as it is."""
    return copy.deepcopy(backbone).cpu().eval().requires_grad_(True)


def linear_layers(trunk: ConvThenLinear) -> tuple[nn.Linear, nn.Linear, float]:
    """fc6 and fc7 of AlexNet or VGG, and the rate of their dropout."""
    fc6, fc7 = (layer for layer in trunk.classifier if isinstance(layer, nn.Linear))
    return fc6, fc7, next((layer.p for layer in trunk.classifier if isinstance(layer, nn.Dropout)), 0.0)


def sequential_maps(backbone: Backbone, *, drop_last_pool: bool, strides: Sequence[int] = ()) -> FeatureMaps | None:
    """The maps of a network that is one sequence of convolutions and pools (AlexNet, VGG, convnet); None for others.

    Args:
        drop_last_pool: leave out the pool before the linear layers, as Fast R-CNN does (arXiv 1504.08083 §2.2), where
            the pooling of regions takes its place.
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
    grid, channels = _input(backbone)
    maps = []  # behind each layer
    ends: dict[int, int] = {}  # stride of a pool -> layers up to it
    for count, layer in enumerate(layers, start=1):
        grid = grid.through(layer.modules())
        channels = ([channels] + [conv.out_channels for conv in _convolutions(layer)])[-1]
        maps.append(FeatureMap(channels, grid))
        if any(isinstance(module, nn.MaxPool2d) for module in layer.modules()):
            ends[grid.stride] = count
    missing = [stride for stride in strides if stride not in ends]
    if missing:
        available = ", ".join(map(str, sorted(ends))) or "none"
        raise DeepClusterError(f"{backbone.name} has no pool of stride {missing[0]}: it has {available}.")
    cuts = sorted({len(layers), *(ends[stride] for stride in strides)})
    parts = [nn.Sequential(*layers[first:last]) for first, last in pairwise([0, *cuts])]
    return FeatureMaps(backbone.sobel, parts, [maps[cut - 1] for cut in cuts])


def resnet_maps(backbone: Backbone, ends: Sequence[str]) -> FeatureMaps | None:
    """The maps of a ResNet behind the named ones of layer1..layer4; None for a network without such layers.

    Every convolution of a ResNet is padded alike on both sides, so that cell 0 is centered on pixel 0; every stride is
    a power of two.
    """
    children = dict(backbone.trunk.named_children())
    if not all(layer in children for layer in LAYERS):
        return None
    names = [*list(children)[: list(children).index("layer1")], *LAYERS]
    start, channels = _input(backbone)
    output = torch.zeros(1, channels, PROBE_SIZE, PROBE_SIZE)
    parts, maps = [], []
    for first, last in pairwise([0, *(names.index(end) + 1 for end in ends)]):
        part = nn.Sequential(*(children[name] for name in names[first:last]))
        with torch.no_grad():
            output = part(output)
        parts.append(part)
        stride = 2 ** round(math.log2(PROBE_SIZE / output.shape[2]))
        maps.append(FeatureMap(output.shape[1], Grid(stride, start.first)))
    return FeatureMaps(backbone.sobel, parts, maps)


def tapped_map(backbone: Backbone, coarsest: int = 16) -> FeatureMaps:
    """The map of any other convolutional network: the deepest of its taps whose stride is at most `coarsest`, whose
    cells are assumed to tile the image evenly. DeepClusterError where none of its taps is a map."""
    start, size, found = _input(backbone)[0], backbone.image_size, None
    for tap, shape in tap_shapes(backbone, backbone.taps).items():
        path = backbone._tap_paths[tap]
        if path and len(shape) == 3 and shape[1] > 1:
            stride = round(size / shape[1])
            if stride <= coarsest and stride & (stride - 1) == 0:
                found = path, FeatureMap(shape[0], Grid(stride, (stride - 1) / 2 + start.first))
    if found is None:
        raise DeepClusterError(
            f"{backbone.name} has no layer whose output is a map of the image: take a convolutional network."
        )
    return FeatureMaps(backbone.sobel, [TappedNetwork(backbone.trunk, found[0])], [found[1]])


def dilate(layers: Sequence[nn.Module], halvings: int) -> None:
    """Removes the last `halvings` strides of 2 from these residual layers, in place, and dilates the convolutions
    behind them, so that every second cell is what it was (the "hole algorithm", arXiv 1412.7062 §3.1)."""
    pools = any(isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)) for layer in layers for module in layer.modules())
    strided = [conv for layer in layers for conv in _convolutions(layer) if _side(conv.stride) == 2]
    strided = [conv for conv in strided if _side(conv.kernel_size) > 1]
    if len(strided) < halvings or (pools and halvings):
        count = 0 if pools else len(strided)
        raise DeepClusterError(
            f"{count} strides of 2 can be removed from this network, not {halvings}: raise --stride."
        )
    removed = {id(conv) for conv in strided[len(strided) - halvings :]}
    dilation = 1
    for layer in layers:
        for block in layer.children():
            before = dilation
            for conv in _convolutions(block):
                if _side(conv.kernel_size) > 1:
                    conv.dilation = (dilation, dilation)
                    conv.padding = (_side(conv.padding) * dilation,) * 2
                    if id(conv) in removed:
                        conv.stride, dilation = (1, 1), dilation * 2
            if dilation != before:
                for conv in _convolutions(block):
                    if _side(conv.kernel_size) == 1:
                        conv.stride = (1, 1)  # the shortcut around the block


def batch_norms(module: nn.Module) -> list[Any]:
    """Its batch-norm layers."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_batch_norms(module: nn.Module) -> None:
    """Statistics, scale and shift stay as they are: a batch of two images has no statistics to offer."""
    for layer in batch_norms(module):
        layer.eval().requires_grad_(False)


@torch.no_grad()
def calibrate_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Measures the statistics of batch-norm layers, if none was ever trained, before they are frozen.

    A randomly initialized network normalizes by means of 0 and variances of 1 that nobody measured; frozen, it would
    not be the network that training from scratch begins with (compare arXiv 1511.06856, which sets scales from data).
    The images are (B, 3, H, W), normalized.
    """
    untrained = [
        int(getattr(layer, "num_batches_tracked", 1)) == 0
        # files of weights without the counter have statistics all the same
        and not layer.running_mean.any()
        and bool((layer.running_var == 1).all())
        for layer in batch_norms(network)
    ]
    if untrained and all(untrained):
        update_bn([images], network)


def interpolation(target: int, to: Grid, cells: int, of: Grid, device: torch.device | None = None) -> Tensor:
    """(target, cells) weights that read a map of `cells` cells with grid `of` at the cells of grid `to`, linearly;
    beyond the first and the last cell their value holds. Rows sum to 1."""
    position = (to.first + to.stride * torch.arange(target, device=device) - of.first) / of.stride
    position = position.clamp(0, cells - 1)
    low = position.floor().clamp(max=max(cells - 2, 0)).long()
    share = (position - low).to(torch.float32)
    weights = torch.zeros(target, cells, device=device)
    weights.scatter_add_(1, low[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, (low + 1).clamp(max=cells - 1)[:, None], share[:, None])


def _input(backbone: Backbone) -> tuple[Grid, int]:
    """The grid and the channels of the trunk's input; some input layers pad the image."""
    _, channels, extra = input_layer(backbone.config.get("sobel", "none"))
    return Grid(1, -extra / 2), channels


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _side(value: Any) -> int:
    """Of a pair that is the same both ways, one."""
    return int(value[0] if isinstance(value, (tuple, list)) else value)
