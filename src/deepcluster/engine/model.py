"""A model that can assign: backbone, whitening or neck, and centroids in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.assign import nearest_centroids
from deepcluster.clustering.hierarchical import nearest_in_tree
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.extract import extract
from deepcluster.io import write_atomic
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import load_backbone
from deepcluster.models.neck import Neck
from deepcluster.models.released import load_released
from deepcluster.models.zoo import build_backbone

MODEL = "model.safetensors"


@dataclass
class Tree:
    """The levels above the centroids, where those were found level by level.

    Attributes:
        upper: (M, D) centroids of the super-clusters; each has K / M of the centroids, one after another.
        used: (K,) bool, false for centroids that no image had.
    """

    upper: Tensor
    used: Tensor


@dataclass
class Model:
    """Backbone, what leads from its features to the space of the centroids, and the (K, D) centroids: all that
    features and assignments need.

    Attributes:
        whitening: PCA-whitening and L2 normalization; None where there is a neck.
        neck: the small network of online methods, whose output is L2-normalized.
        tree: what leads to a centroid from above, in methods with several levels.
    """

    backbone: Backbone
    whitening: Whitening | None
    centroids: Tensor
    neck: Neck | None = None
    tree: Tree | None = None

    @property
    def between(self) -> tuple[str, Whitening | Neck]:
        """What lies between features and centroids, and its name."""
        if self.whitening is not None:
            return "whitening", self.whitening
        assert self.neck is not None
        return "neck", self.neck

    def embed(self, features: np.ndarray) -> np.ndarray:
        """(M, P) float32 unit rows in the space of the centroids, of (M, D) backbone features."""
        if self.whitening is not None:
            return np.asarray(self.whitening.transform(features))
        assert self.neck is not None
        neck = self.neck.cpu()
        parts = torch.from_numpy(np.ascontiguousarray(features, np.float32)).split(8192)
        return torch.cat([F.normalize(neck.calm(part), dim=1) for part in parts]).numpy()

    def features(
        self,
        pixels: Pixels,
        *,
        tap: str | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        file: Path | None = None,
        check: Callable[[int], None] = lambda images: None,
        group: ProcessGroup = SINGLE,
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
            group=group,
        )

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (M,) int64 and Euclidean distance (M,) float32 of (M, D) backbone features."""
        z = self.embed(features)
        if self.tree is None:
            return nearest_centroids(z, self.centroids)
        used = self.tree.used.long()
        counts = [used.view(len(self.tree.upper), -1).sum(1), used]
        return nearest_in_tree(z, [self.tree.upper, self.centroids], counts)

    def save(self, file: Path) -> None:
        """One safetensors file; the metadata rebuilds the backbone."""
        from safetensors.torch import save_file

        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        prefix, between = self.between
        tensors |= {f"{prefix}.{name}": value for name, value in between.state_dict().items()}
        tensors["centroids"] = self.centroids
        if self.tree is not None:
            tensors |= {"tree.upper": self.tree.upper, "tree.used": self.tree.used}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"format": "pt", "backbone": json.dumps(self.backbone.config)}
        if self.neck is not None:
            metadata["neck"] = json.dumps(self.neck.config)
        write_atomic(file, lambda beside: save_file(plain, beside, metadata))

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
                config = json.loads(metadata["backbone"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError) as error:
            raise DeepClusterError(f"{file} is not a model that deepcluster saved: {error}.") from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        backbone = build_backbone(**config)
        backbone.load_state_dict(part("backbone."))
        if "neck" in metadata:
            neck = Neck(**json.loads(metadata["neck"]))
            neck.load_state_dict(part("neck."))
            return cls(backbone.eval(), None, tensors["centroids"], neck.eval())
        whitening = Whitening()
        whitening.load_state_dict(part("whitening."))
        tree = Tree(**part("tree.")) if "tree.upper" in tensors else None
        return cls(backbone.eval(), whitening, tensors["centroids"], tree=tree)


def file_model(file: Path) -> Model:
    """A backbone from a file, without clusters; see `backbone_from`."""
    backbone = backbone_from(file)
    return Model(backbone, Whitening(), torch.zeros(0, backbone.dim))


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
    begun = backbone_from(file)
    made = ", ".join(f"{name} {value}" for name, value in begun.config.items())
    for network in networks:
        if _plan(begun) != _plan(network):
            ours = ", ".join(f"{name} {value}" for name, value in network.config.items())
            raise DeepClusterError(
                f"{file} holds another network ({made}) than the one to be trained ({ours}): make the --backbone"
                " settings and --image-size those of the file, or leave --backbone.weights out."
            )
        network.load_state_dict(begun.state_dict())


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
