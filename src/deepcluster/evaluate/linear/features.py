"""A frozen network's features: named layers, pooled to vectors that a linear classifier can take, of whole splits.

This file does not know how classifiers are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import Transform
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.folding import folded
from deepcluster.models.resnet import RESNETS
from deepcluster.models.taps import read_taps

WIDEST = 9600
"""Numbers that a map is pooled to, at most: those of the papers' probes."""
OUTPUT = "output"
"""The name of what the backbone gives itself."""

# kernel, stride, padding of average pools over the maps of 224 px images
ALEXNET = {"conv1": (6, 6, 3), "conv2": (4, 4, 0), "conv3": (3, 3, 1), "conv4": (3, 3, 1), "conv5": (2, 2, 0)}
"""The linear probes of DeepCluster (arXiv 1807.05520 §4.2): 9600, 9216, 9600, 9600 and 9216 numbers."""
VGG16 = {
    f"conv{number}": (side, side, 0) for number, side in enumerate((18, 18, 14, 14, 9, 9, 9, 6, 6, 6, 3, 3, 3), start=1)
}
"""Those of DeeperCluster (arXiv 1905.01278 §4)."""
RESNET = {"stem": (10, 10, 4), "layer1": (16, 8, 0), "layer2": (13, 5, 0), "layer3": (8, 3, 0), "layer4": (6, 1, 0)}
"""Those of OpenSelfSup's benchmark, made for ResNet-50."""


@dataclass(frozen=True)
class Pooling:
    """How one tap becomes (B, dim): "none" for vectors, "tokens" for the mean over (B, T, C), "average" with kernel,
    stride and padding, "adaptive" to `side` x `side`."""

    kind: str
    dim: int
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    side: int = 0
    last: bool = False  # channels are the last dimension of a map, not the second

    def __call__(self, activations: Tensor) -> Tensor:
        """(B, dim) float32."""
        if self.kind == "none":
            return activations.float()
        if self.kind == "tokens":
            return activations.float().mean(1)
        maps = activations.permute(0, 3, 1, 2) if self.last else activations
        if self.kind == "average":
            pooled = F.avg_pool2d(maps.float(), self.kernel, self.stride, self.padding)
        else:
            pooled = F.adaptive_avg_pool2d(maps.float(), self.side)
        return pooled.flatten(1)

    def __str__(self) -> str:
        said = {
            "none": "as it is",
            "tokens": "mean over tokens",
            "average": f"average pool {self.kernel}/{self.stride}/{self.padding}",
            "adaptive": f"average pool to {self.side}x{self.side}",
        }
        return f"{said[self.kind]} ({self.dim})"


def poolings(backbone: Backbone, taps: Sequence[str]) -> dict[str, Pooling]:
    """The pooling of each tap, in the order of depth; `all` = every tap that is a map or a sequence.

    The papers' pools where image size and network are the papers', else an average pool to the largest square of at
    most `WIDEST` numbers. DeepClusterError where there is no such tap, or none at all.
    """
    every = list(taps) == ["all"]
    wanted = list(backbone.taps) if every else [tap for tap in taps if tap != OUTPUT]
    if not taps or (not every and "all" in taps):
        raise DeepClusterError("--taps needs the names of layers, or `all` alone.")
    shapes = tap_shapes(backbone, wanted)
    if OUTPUT in taps:
        shapes[OUTPUT] = (backbone.dim,)
    if every:
        shapes = {tap: shape for tap, shape in shapes.items() if len(shape) > 1}
        if not shapes:
            raise DeepClusterError(f"Backbone {backbone.name!r} has no taps that are maps: give --taps output.")
    return {tap: _pooling(backbone, tap, shape) for tap, shape in shapes.items()}


@torch.no_grad()
def tap_shapes(backbone: Backbone, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shape of each tap's activations for one image, in the order of depth."""
    if not taps:
        return {}
    training = backbone.training
    device = next((tensor.device for tensor in backbone.state_dict().values()), torch.device("cpu"))
    size = backbone.image_size
    try:
        with read_taps(backbone.eval(), taps) as seen:
            backbone(torch.zeros(1, 3, size, size, device=device))
    finally:
        backbone.train(training)
    return {tap: tuple(seen[tap].shape[1:]) for tap in backbone.taps if tap in seen}


def _pooling(backbone: Backbone, tap: str, shape: tuple[int, ...]) -> Pooling:
    if len(shape) == 1:
        return Pooling("none", shape[0])
    if len(shape) == 2:
        return Pooling("tokens", shape[1])
    if len(shape) != 3:
        raise DeepClusterError(f"Tap {tap!r} of {backbone.name!r} gives neither maps nor vectors: leave it out.")
    last = getattr(backbone.trunk, "output_fmt", "NCHW") == "NHWC"
    channels, height, width = (shape[2], shape[0], shape[1]) if last else shape
    resnet = backbone.name.rpartition(":")[2] in RESNETS
    table = RESNET if resnet else {"alexnet": ALEXNET, "vgg16": VGG16}.get(backbone.name, {})
    if tap in table and backbone.image_size == 224 and height == width:
        kernel, stride, padding = table[tap]
        side = (height + 2 * padding - kernel) // stride + 1
        if 0 < channels * side * side <= WIDEST:
            return Pooling("average", channels * side * side, kernel, stride, padding)
    side = max(1, min(height, width, math.isqrt(WIDEST // channels)))
    return Pooling("adaptive", channels * side * side, side=side, last=last)


PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class _Complete(Exception):
    """All wanted layers have been computed; those behind them need not be."""


class FrozenFeatures:
    """Taps of a backbone in evaluation mode, each pooled to (B, dim); layers behind the deepest are not computed.

    Args:
        backbone: left as it is; a copy with batch-norm folded into convolutions does the work.
        poolings: tap -> pooling, or another function of its activations.
        device: where to compute.
        precision: "32", "bf16" or "16", of the backbone alone.
        modules: tap -> path of a submodule of the trunk, for layers that are not taps.
    """

    def __init__(
        self,
        backbone: Backbone,
        poolings: Mapping[str, Callable[[Tensor], Tensor]],
        device: str | torch.device = "cpu",
        precision: str = "32",
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self.poolings = dict(poolings)
        self.device = torch.device(device)
        self.dtype = PRECISIONS[precision]
        self.network = folded(backbone, backbone.taps).to(self.device).to(memory_format=torch.channels_last)
        self._pooled: dict[str, Tensor] = {}
        for tap in self.poolings.keys() - {OUTPUT}:
            path = (modules or {}).get(tap)
            layer = self.network.tap_module(tap) if path is None else self.network.trunk.get_submodule(path)
            layer.register_forward_hook(self._pool_as(tap))

    def _pool_as(self, tap: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._pooled[tap] = self.poolings[tap](output)  # at once: the next layer may work in place
            if len(self._pooled) == len(self.poolings):
                raise _Complete

        return hook

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) images, normalized -> tap -> (B, dim) float32."""
        self._pooled = {}
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.network(images)
            self._pooled[OUTPUT] = self.poolings[OUTPUT](output)
        except _Complete:
            pass
        return {tap: self._pooled[tap].float() for tap in self.poolings}

    def extract(
        self,
        pixels: Pixels,
        index: np.ndarray,
        transform: Transform,
        *,
        check: Callable[[int], object] = lambda images: None,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of one view of each of the images at (n,) `index`: (n,) bool, those that could be decoded, and tap -> (m,
        dim) float32 features of these; DeepClusterError where there are none."""
        tables: dict[str, np.ndarray] = {}
        decoded = np.zeros(len(index), bool)
        filled = 0
        for batch in Loader(pixels, index, batch_size=256, transform=transform, device=self.device):
            for tap, vectors in self(batch.views[0]).items():
                if tap not in tables:
                    tables[tap] = np.empty((len(index), vectors.shape[1]), np.float32)
                tables[tap][filled : filled + len(vectors)] = vectors.cpu().numpy()
            decoded[batch.first + batch.position.numpy()] = True
            filled += len(batch.index)
            check(len(batch.index))
        if not filled:
            raise DeepClusterError(
                f"No image of {pixels.source.name} can be decoded and has a label: give another source."
            )
        return decoded, {tap: table[:filled] for tap, table in tables.items()}
