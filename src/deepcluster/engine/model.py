"""A model that can assign: backbone, whitening and centroids in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.kmeans import nearest_centroids
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels
from deepcluster.features.extract import extract
from deepcluster.files import write_whole
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.records import DeepClusterError

MODEL = "model.safetensors"


@dataclass
class Model:
    """Backbone, whitening and (K, D) centroids: all that features and assignments need."""

    backbone: Backbone
    whitening: Whitening
    centroids: Tensor

    def features(
        self,
        pixels: Pixels,
        *,
        tap: str | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        file: Path | None = None,
        check: Callable[[int], None] = lambda images: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Index (M,) and features (M, D) of the images that can be decoded; see `features.extract`."""
        self.backbone.to(device)
        return extract(
            self.backbone,
            pixels,
            size=self.backbone.image_size,
            mean=self.backbone.mean,
            std=self.backbone.std,
            batch_size=batch_size,
            device=device,
            tap=tap,
            file=file,
            check=check,
        )

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (M,) int64 and Euclidean distance (M,) float32 of (M, D) backbone features."""
        return nearest_centroids(self.whitening.transform(features), self.centroids)

    def save(self, file: Path) -> None:
        """One safetensors file; the metadata rebuilds the backbone."""
        from safetensors.torch import save_file

        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        tensors |= {f"whitening.{name}": value for name, value in self.whitening.state_dict().items()}
        tensors["centroids"] = self.centroids
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"format": "pt", "backbone": json.dumps(self.backbone.config)}
        write_whole(file, lambda beside: save_file(plain, beside, metadata))

    @classmethod
    def load(cls, file: Path) -> Model:
        """The inverse of `save`.

        Raises:
            DeepClusterError: missing, damaged, or not written by `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as handle:
                config = json.loads((handle.metadata() or {})["backbone"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError) as error:
            raise DeepClusterError(f"{file} is not a model that deepcluster saved: {error}.") from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        backbone = build_backbone(**config)
        backbone.load_state_dict(part("backbone."))
        whitening = Whitening()
        whitening.load_state_dict(part("whitening."))
        return cls(backbone.eval(), whitening, tensors["centroids"])


def named_model(name: str, image_size: int) -> Model:
    """A pretrained backbone by name, without clusters.

    Raises:
        DeepClusterError: an unknown name, or weights that cannot be had.
    """
    backbone = build_backbone(name, image_size=image_size, pretrained=True).eval()
    return Model(backbone, Whitening(), torch.zeros(0, backbone.dim))
