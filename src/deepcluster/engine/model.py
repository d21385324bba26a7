"""A model that can assign: backbone, embedding and centroids in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.clustering.hierarchical import nearest_in_tree
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.extract import extract
from deepcluster.io import write_atomic
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import load_backbone
from deepcluster.models.heads import ProjectionHead
from deepcluster.models.released import load_released
from deepcluster.models.zoo import build_backbone
from deepcluster.types import ClusterTree, Embedding

MODEL = "model.safetensors"
EMBEDDINGS: dict[str, type] = {"whitening": Whitening, "projection": ProjectionHead}
"""What a file calls the steps between features and centroids -> their class."""


@dataclass
class Model:
    """Backbone, the steps from its features to the space of the centroids, and the (K, P) centroids: all that features
    and assignments need.

    Attributes:
        embedding: applied in order, such as a whitening, or the projection head of an online method.
        tree: the level above the centroids, for methods with two.
    """

    backbone: Backbone
    centroids: Tensor
    embedding: Sequence[Embedding] = ()
    tree: ClusterTree | None = None

    @property
    def whitening(self) -> Whitening | None:
        """The first step of the embedding that whitens."""
        return next((step for step in self.embedding if isinstance(step, Whitening)), None)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """(M, P) float32 rows in the space of the centroids, of (M, D) backbone features."""
        for step in self.embedding:
            features = step.transform(features)
        return np.asarray(features)

    def features(
        self,
        pixels: Pixels,
        only: np.ndarray | None = None,
        *,
        tap: str | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        check: Callable[[int], None] = lambda images: None,
        group: ProcessGroup = SINGLE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Index (M,) and features (M, D) of the images that can be decoded; see `features.extract`."""
        self.backbone.to(device)
        return extract(
            self.backbone,
            pixels,
            batch_size=batch_size,
            device=device,
            tap=tap,
            only=only,
            check=check,
            group=group,
        )

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (M,) int64 and Euclidean distance (M,) float32 of (M, D) backbone features."""
        z = self.embed(features)
        if self.tree is None:
            return nearest_in_tree(z, [self.centroids])
        used = self.tree.used.long()
        counts = [used.view(len(self.tree.upper), -1).sum(1), used]
        return nearest_in_tree(z, [self.tree.upper, self.centroids], counts)

    def save(self, file: Path) -> None:
        """One safetensors file; the metadata rebuilds backbone and embedding."""
        from safetensors.torch import save_file

        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        steps = []
        for number, step in enumerate(self.embedding):
            kind = next(kind for kind, made in EMBEDDINGS.items() if isinstance(step, made))
            steps.append({"kind": kind, "config": getattr(step, "config", {})})
            tensors |= {f"embedding.{number}.{name}": value for name, value in step.state_dict().items()}
        tensors["centroids"] = self.centroids
        if self.tree is not None:
            tensors |= {"tree.upper": self.tree.upper, "tree.used": self.tree.used}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"format": "pt", "backbone": json.dumps(self.backbone.config), "embedding": json.dumps(steps)}
        write_atomic(file, lambda temporary: save_file(plain, temporary, metadata))

    @classmethod
    def load(cls, file: Path) -> Model:
        """The inverse of `save`.

        Raises:
            DeepClusterError: missing, damaged, or not written by `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as handle:
                metadata = handle.metadata() or {}
                config, steps = json.loads(metadata["backbone"]), json.loads(metadata["embedding"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DeepClusterError(
                f"{file} is not a model that this version of deepcluster saved ({why}): give another file, or train"
                " again."
            ) from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        backbone = build_backbone(**config)
        backbone.load_state_dict(part("backbone."))
        embedding: list[Any] = []
        for number, step in enumerate(steps):
            made = EMBEDDINGS[step["kind"]](**step["config"])
            made.load_state_dict(part(f"embedding.{number}."))
            embedding.append(made.eval() if isinstance(made, nn.Module) else made)
        tree = ClusterTree(**part("tree.")) if "tree.upper" in tensors else None
        return cls(backbone.eval(), tensors["centroids"], embedding, tree)


def file_model(file: Path) -> Model:
    """A backbone from a file, without clusters; see `backbone_from`."""
    backbone = backbone_from(file)
    return Model(backbone, torch.zeros(0, backbone.dim))


def backbone_from(file: Path | str) -> Backbone:
    """The backbone in a run's model.safetensors, in a .safetensors of `deepcluster export`, or in a checkpoint that
    DeepCluster's authors released; in eval mode, on the CPU.

    Raises:
        DeepClusterError: the file is none of them, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    if file.is_dir():
        advice = f"give its {file / MODEL}" if (file / MODEL).is_file() else "give a file"
        raise DeepClusterError(f"{file} is a folder, not a file of weights: {advice}.")
    if file.suffix != ".safetensors":
        return load_released(file).backbone
    try:
        with safe_open(file, "pt") as handle:
            exported = "config" in (handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DeepClusterError(f"{file} cannot be read as safetensors ({error}): give a whole file.") from error
    return load_backbone(file) if exported else Model.load(file).backbone


def load_initial_weights(file: Path | str, networks: Iterable[Backbone]) -> None:
    """Puts the weights in `file` into `networks`, which were drawn alike.

    Raises:
        DeepClusterError: the file holds another network, or none.
    """
    initial = backbone_from(file)
    made = ", ".join(f"{name} {value}" for name, value in initial.config.items())
    for network in networks:
        if _plan(initial) != _plan(network):
            ours = ", ".join(f"{name} {value}" for name, value in network.config.items())
            raise DeepClusterError(
                f"{file} holds another network ({made}) than the one to be trained ({ours}): make the --backbone"
                " settings and --image-size those of the file, or leave --backbone.weights out."
            )
        network.load_state_dict(initial.state_dict())


def _plan(backbone: Backbone) -> tuple[object, ...]:
    """All that must be alike for weights to mean the same: layers with their settings, shapes, normalization.
    What only training uses, such as the rate of dropout, may differ."""
    layers = [
        (name, type(layer).__name__, layer.extra_repr())
        for name, layer in backbone.named_modules()
        if "Drop" not in type(layer).__name__ and not isinstance(layer, nn.Identity)
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    return layers, shapes, backbone.mean, backbone.std
