"""A network that is read and never trained: named layers of it, pooled, for batches or for whole sources."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.feed import Feed, Make
from deepcluster.evaluate.linear.parts import Part
from deepcluster.evaluate.linear.pooling import OUTPUT, Pooling
from deepcluster.models.backbone import Backbone
from deepcluster.models.sync_batchnorm import revert_sync_batchnorm

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class _Enough(Exception):
    """The deepest layer that is wanted has been computed."""


class Frozen:
    """Taps of a backbone in evaluation mode, each pooled to (B, dim); layers behind the deepest are not computed.

    Args:
        backbone: left as it is; a copy with batch-norm folded into convolutions does the work.
        poolings: tap -> pooling, or another function of its activations.
        device: where to compute.
        precision: "32", "bf16" or "16", of the backbone alone.
        modules: tap -> path of a submodule of the trunk, for layers that are no tap.
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
        self.network = folded_in_place(backbone).to(self.device).to(memory_format=torch.channels_last)
        self._left = 0
        self._seen: dict[str, Tensor] = {}
        paths = modules or {}
        layers = {
            tap: self.network.trunk.get_submodule(paths[tap]) if tap in paths else self.network.tap_module(tap)
            for tap in self.poolings
            if tap != OUTPUT
        }
        for tap, layer in layers.items():
            layer.register_forward_hook(self._hook(tap))
        self._calls: int | None = None  # of all hooks in one pass; unknown before the first

    def _hook(self, tap: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            # Pooled at once: what follows may work in place.
            self._seen[tap] = self.poolings[tap](output)
            self._left -= 1
            if self._left == 0:
                raise _Enough

        return keep

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) images, normalized -> tap -> (B, dim) float32."""
        self._seen = {}
        stops = self._calls is not None and OUTPUT not in self.poolings
        self._left = self._calls if stops and self._calls is not None else 0
        try:
            with self._autocast():
                output = self.network(images)
            if OUTPUT in self.poolings:
                self._seen[OUTPUT] = self.poolings[OUTPUT](output)
            self._calls = -self._left if not stops else self._calls
        except _Enough:
            pass
        return {tap: self._seen[tap].float() for tap in self.poolings}

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def describe(
        self, part: Part, make: Make, *, batch_size: int = 256, check: Callable[[int], None] = lambda images: None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One view of every image of a part.

        Returns:
            (n,) bool, the images that could be decoded, and tap -> (m, dim) float32 features of these.

        Raises:
            DeepClusterError: none of them can be decoded.
        """
        tables: dict[str, np.ndarray] = {}
        kept = np.zeros(len(part), bool)
        filled = 0
        for rows, views in Feed(part, np.arange(len(part)), batch_size, make, (0,), self.device):
            for tap, vectors in self(views[0]).items():
                if tap not in tables:
                    tables[tap] = np.empty((len(part), vectors.shape[1]), np.float32)
                tables[tap][filled : filled + len(rows)] = vectors.cpu().numpy()
            kept[rows] = True
            filled += len(rows)
            check(len(rows))
        if not filled:
            raise DeepClusterError(
                f"No image of {part.pixels.source.name} can be decoded and has a label: give another source."
            )
        return kept, {tap: table[:filled] for tap, table in tables.items()}


def cached(
    backbone: Backbone,
    tap: str,
    pooling: Pooling,
    parts: list[Part],
    make: Make,
    device: str,
    precision: str = "32",
    check: Callable[[int], None] = lambda images: None,
) -> list[tuple[Tensor, Tensor]]:
    """(m, dim) features and (m,) labels of the images of each part that can be decoded, on `device`."""
    frozen = Frozen(backbone, {tap: pooling}, device, precision)
    out = []
    for part in parts:
        kept, tables = frozen.describe(part, make, check=check)
        out.append((torch.from_numpy(tables[tap]).to(device), torch.from_numpy(part.labels[kept]).to(device)))
    return out


def folded_in_place(backbone: Backbone) -> Backbone:
    """A copy for inference whose layers keep their places, batch-norm folded into convolutions where that is sure:
    where the network can be traced and nothing else reads the convolution."""
    inference = copy.deepcopy(backbone).eval().requires_grad_(False)
    revert_sync_batchnorm(inference)
    trunk = inference.trunk
    try:
        graph = torch.fx.symbolic_trace(trunk).graph
    except Exception:  # tracing fails in as many ways as there are networks
        return inference
    modules = dict(trunk.named_modules())
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm, convolution = modules[str(node.target)], modules[str(before.target)]
        once = called.count(node.target) == 1 and called.count(before.target) == 1
        tapped = any(inference.tap_module(tap) is convolution for tap in inference.taps)
        plain = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and type(convolution) is nn.Conv2d
        if plain and once and not tapped:
            trunk.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            trunk.set_submodule(str(node.target), nn.Identity())
    return inference
