"""A frozen network's features: named layers, pooled, for batches or for whole splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.data.loader import Loader
from deepcluster.data.transforms import Transform
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.pooling import OUTPUT
from deepcluster.evaluate.linear.splits import Split
from deepcluster.models.backbone import Backbone
from deepcluster.models.folding import folded

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
        self, split: Split, transform: Transform, *, check: Callable[[int], object] = lambda images: None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One view of every image of a split.

        Returns:
            (n,) bool, the images that could be decoded, and tap -> (m, dim) float32 features of these.

        Raises:
            DeepClusterError: none of them can be decoded.
        """
        tables: dict[str, np.ndarray] = {}
        decoded = np.zeros(len(split), bool)
        filled = 0
        for batch in Loader(split.pixels, split.index, batch_size=256, transform=transform, device=self.device):
            for tap, vectors in self(batch.views[0]).items():
                if tap not in tables:
                    tables[tap] = np.empty((len(split), vectors.shape[1]), np.float32)
                tables[tap][filled : filled + len(vectors)] = vectors.cpu().numpy()
            decoded[batch.first + batch.position.numpy()] = True
            filled += len(batch.index)
            check(len(batch.index))
        if not filled:
            raise DeepClusterError(
                f"No image of {split.pixels.source.name} can be decoded and has a label: give another source."
            )
        return decoded, {tap: table[:filled] for tap, table in tables.items()}
