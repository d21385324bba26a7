"""A model that can assign: backbone, embedding and centroids in one safetensors file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.clustering.tree import nearest_in_tree
from deepcluster.clustering.whitening import Whitening
from deepcluster.config import TrainRun
from deepcluster.data.cache import Pixels
from deepcluster.distributed import ALIGN, SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.features.extract import extract
from deepcluster.io import write_safetensors
from deepcluster.models import hugging_face
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import load_backbone
from deepcluster.models.heads import ProjectionHead
from deepcluster.models.pretrained import choose_backbone
from deepcluster.models.released import load_released
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import parse_json, read_tensors
from deepcluster.types import ClusterTree, Embedding

MODEL = "model.safetensors"
CLUSTERS = "clusters.safetensors"
"""The same in a folder for the hub, where model.safetensors is timm's name for the network."""
EMBEDDINGS: dict[str, type] = {"whitening": Whitening, "projection": ProjectionHead}
"""What a file calls the steps between features and centroids -> their class."""


@dataclass
class Model:
    """All that features and assignments need."""

    backbone: Backbone
    centroids: Tensor  # (K, P)
    embedding: Sequence[Embedding] = ()  # from features to them, in order: a whitening, or an online method's head
    tree: ClusterTree | None = None  # the level above the centroids, for methods with two

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
        multiple: int = ALIGN,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Index (M,) and features (M, D) of the images that can be decoded; see `features.extract`."""
        return extract(
            self.backbone.to(device),
            pixels,
            batch_size=batch_size,
            device=device,
            tap=tap,
            only=only,
            check=check,
            group=group,
            multiple=multiple,
        )

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (M,) int64 and Euclidean distance (M,) float32 of (M, D) backbone features."""
        z = self.embed(features)
        if self.tree is None:
            return nearest_in_tree(z, [self.centroids])
        used = self.tree.used.long()
        counts = [used.view(len(self.tree.upper), -1).sum(1), used]
        return nearest_in_tree(z, [self.tree.upper, self.centroids], counts)

    def save(self, file: Path, owner: str = "") -> None:
        """One safetensors file; the metadata rebuilds backbone and embedding, and has the id of the run."""
        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        steps = []
        for number, step in enumerate(self.embedding):
            kind = next(kind for kind, made in EMBEDDINGS.items() if isinstance(step, made))
            steps.append({"kind": kind, "config": getattr(step, "config", {})})
            tensors |= {f"embedding.{number}.{name}": value for name, value in step.state_dict().items()}
        tensors["centroids"] = self.centroids
        if self.tree is not None:
            tensors |= {"tree.upper": self.tree.upper, "tree.used": self.tree.used}
        metadata = {"format": "pt", "backbone": json.dumps(self.backbone.config), "embedding": json.dumps(steps)}
        if owner:
            metadata["owner"] = owner
        write_safetensors(file, tensors, metadata)

    @classmethod
    def load(cls, file: Path, *, finite: bool = True, owner: str = "") -> Model:
        """The inverse of `save`.

        Raises:
            DeepClusterError: missing, damaged, not written by `save`, of another run than `owner`, or, if `finite`,
                with values that are not.
        """
        advice = "restore it, or train again." if owner else "give a whole .safetensors file."
        metadata, tensors = read_tensors(file, advice=advice, finite=finite, owner=owner)
        try:
            return cls._built(parse_json(metadata["backbone"]), parse_json(metadata["embedding"]), tensors)
        except Exception as error:  # a header can be wrong in as many ways as networks have arguments
            why = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
            raise DeepClusterError(
                f"{file} is not a model that this version of deepcluster saved ({why}): give another file, or train"
                " again."
            ) from error

    @classmethod
    def _built(cls, config: dict[str, Any], steps: list[dict[str, Any]], tensors: dict[str, Tensor]) -> Model:
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
        model = cls(backbone.eval(), tensors["centroids"].float(), embedding, tree)
        if len(model.centroids):
            model.nearest(np.zeros((1, backbone.dim), np.float32))  # widths that do not fit are told here
        return model


def bare_model(backbone: Backbone) -> Model:
    """A backbone without clusters."""
    return Model(backbone.eval(), torch.zeros(0, backbone.dim))


def backbone_from(file: Path | str, image_size: int | None = None) -> Backbone:
    """The backbone in a run's model.safetensors, in a .safetensors of `deepcluster export`, in a checkpoint that
    DeepCluster's authors released, or in a Hugging Face folder, which may be given another image size in pixels; in
    eval mode, on the CPU. DeepClusterError where the file is none of them, or damaged."""
    file = Path(file)
    if hugging_face.is_folder(file):
        return hugging_face.load_folder(file, image_size)
    if file.is_dir():
        advice = f"give its {file / MODEL}" if (file / MODEL).is_file() else "give a file"
        raise DeepClusterError(f"{file} is a folder, not a file of weights: {advice}.")
    if file.suffix != ".safetensors":
        return load_released(file).backbone
    exported = "config" in read_tensors(file)[0]
    return load_backbone(file) if exported else Model.load(file).backbone


PRETRAINED = "pretrained"
"""In place of a file of initial weights: the published ones of the network."""


def file_of(weights: Path | str) -> Path:
    """The file of weights itself, where a run folder was given, or what was shared of one."""
    path = Path(weights)
    found = [path / name for name in (MODEL, CLUSTERS) if (path / name).is_file()]
    return found[0] if found and not hugging_face.is_folder(path) else path


def published_backbone(name: str, **options: Any) -> Backbone:
    """A backbone with its published weights; nothing is drawn from torch's global generator. DeepClusterError for ours,
    of which none are published under a name, and where they cannot be had."""
    if name in ("alexnet", "vgg16", "convnet", "patches"):
        raise DeepClusterError(
            f"No weights are published under the name {name}: give a run, a file of weights, or --untrained."
        )
    with torch.random.fork_rng(devices=[]):
        return build_backbone(name, pretrained=True, **options)


def begin(run: TrainRun, start: Path | str, image_size: int | None = None) -> TrainRun:
    """The settings of a run that begins with trained weights: network, Sobel filters and normalization are theirs.

    Args:
        start: a run folder, a file of weights, the name of a backbone with published weights, or "auto", which
            `choose_backbone` explains.
        image_size: side of the images in pixels; None = what a run or file was trained at, or that of the settings.

    Raises:
        DeepClusterError: there is no such folder, file or backbone, or its weights cannot be had.
    """
    path = Path(start)
    if path.exists() or path.suffix in (".tar", ".pth", ".safetensors"):
        backbone, weights = backbone_from(file_of(path)), str(file_of(path).absolute())
        size = image_size or backbone.image_size
    else:
        name, weights = choose_backbone(str(start))[0], PRETRAINED
        own = {"sobel": run.backbone.sobel, **run.backbone.options} if name == run.backbone.name else {}
        patch = re.search(r"patch(\d+)", name)
        side = int(patch[1]) if patch else 1  # of the patches that images must divide into
        size = image_size or -(-run.image_size // side) * side
        backbone = published_backbone(name, image_size=size, **own)
    options = {key: value for key, value in backbone.config.items() if key not in ("name", "sobel", "image_size")}
    view, clustered = (round(each * size / run.image_size) for each in (run.data.view_size, run.data.clustered_size))
    if weights != PRETRAINED or (clustered and backbone.refusal(clustered)):
        clustered = 0  # a network of ours is best at the size it was trained at
    if view and backbone.refusal(view):
        view = 0  # transformers take one size
    return replace(
        run,
        image_size=size,
        data=replace(run.data, view_size=view, clustered_size=clustered),
        backbone=replace(
            run.backbone, name=backbone.config["name"], sobel=backbone.config["sobel"], weights=weights, options=options
        ),
    )


def load_initial_weights(weights: Path | str, networks: Iterable[Backbone]) -> None:
    """Puts initial weights into `networks`, which were drawn alike: those of a run folder or file (see
    `backbone_from`), or, for `PRETRAINED`, those that are published. DeepClusterError where they are of another
    network, or not there."""
    networks = list(networks)
    like = networks[0]
    if str(weights) == PRETRAINED:
        initial = published_backbone(**like.config)
    else:
        initial = backbone_from(file_of(weights), like.image_size)
    made = ", ".join(f"{name} {value}" for name, value in initial.config.items())
    for network in networks:
        if _plan(initial) != _plan(network):
            ours = ", ".join(f"{name} {value}" for name, value in network.config.items())
            raise DeepClusterError(
                f"{weights} holds another network ({made}) than the one to be trained ({ours}): make the --backbone"
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
