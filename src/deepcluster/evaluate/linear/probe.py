"""Trained probes as a file: `load_probe(file).predict(images, subject)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from deepcluster.data.transforms import CenterCrop
from deepcluster.digest import digest
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import FrozenFeatures, Pooling
from deepcluster.evaluate.linear.heads import Layers, apply_layers
from deepcluster.evaluate.tensor_file import read_tensors, save_tensors
from deepcluster.models.backbone import Backbone

KIND = "deepcluster probe"
"""The metadata entry that tells such a file from others."""


@dataclass(frozen=True)
class Classifier:
    """One trained classifier and what it reads."""

    pooling: Pooling  # of the tap's activations
    layers: Layers
    unit: bool = False  # features are L2-normalized first
    module: str = ""  # path of the layer within the trunk, where it is not a tap


@dataclass(frozen=True)
class Probe:
    """The classifiers of a probe file."""

    classifiers: Mapping[str, Classifier]  # by tap, in the order of depth
    classes: tuple[str, ...]  # names; predictions are positions in it
    weights: str  # digest of the network that they were trained on
    settings: Mapping[str, Any]  # of the evaluation that trained them

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers that have a classifier."""
        return tuple(self.classifiers)

    def predict(self, images: Any, subject: Subject, tap: str | None = None) -> np.ndarray:
        """(N,) int64 class of each image; -1 for images that cannot be decoded.

        Args:
            images: whatever `open_images` takes.
            subject: the network that the probe was trained on; see `engine.run.load_subject`.
            tap: which of the classifiers; None = the deepest.

        Raises:
            DeepClusterError: another network, or no such classifier.
        """
        probabilities = self.probabilities(images, subject, tap)
        return np.where(np.isfinite(probabilities[:, 0]), probabilities.argmax(1), -1)

    def probabilities(self, images: Any, subject: Subject, tap: str | None = None) -> np.ndarray:
        """(N, K) float32 softmax of the scores; NaN for images that cannot be decoded. See `predict`."""
        tap = tap or self.taps[-1]
        if tap not in self.classifiers:
            raise DeepClusterError(f"This probe has no classifier of {tap!r}; it has {', '.join(self.taps)}.")
        if network_digest(subject.backbone) != self.weights:
            raise DeepClusterError(
                f"{subject.name} is not the network that this probe was trained on: give"
                f" {self.settings.get('subject', 'that one')} with the weights it had."
            )
        own = self.classifiers[tap]
        pixels = images if hasattr(images, "gather") else subject.pixels(images)
        modules = {tap: own.module} if own.module else {}
        frozen = FrozenFeatures(subject.backbone, {tap: own.pooling}, subject.device, modules=modules)
        crop = CenterCrop(subject.image_size, subject.backbone.mean, subject.backbone.std)
        decoded, tables = frozen.extract(pixels, np.arange(len(pixels)), crop)
        out = np.full((len(pixels), len(self.classes)), np.nan, np.float32)
        vectors = torch.from_numpy(tables[tap])
        out[decoded] = apply_layers(own.layers, F.normalize(vectors, dim=1) if own.unit else vectors).softmax(1).numpy()
        return out

    def save(self, file: Path) -> Path:
        """Writes one safetensors file, atomically."""
        tensors: dict[str, torch.Tensor] = {}
        for tap, own in self.classifiers.items():
            for number, (weight, bias) in enumerate(own.layers):
                tensors |= {f"{tap}/{number}.weight": weight, f"{tap}/{number}.bias": bias}
        heads = [[tap, asdict(own.pooling), own.unit, own.module] for tap, own in self.classifiers.items()]
        about = {"heads": heads, "classes": self.classes, "weights": self.weights, "settings": self.settings}
        return save_tensors(file, KIND, about, tensors)


def network_digest(backbone: Backbone) -> str:
    """Equal for networks of the same settings and weights."""
    return digest(backbone.config, backbone)


def load_probe(file: str | Path) -> Probe:
    """The probes that `deepcluster evaluate RUN linear|mlp|low-shot` saved next to their result.

    Raises:
        DeepClusterError: the file is missing or is not such a file.
    """
    about, tensors = read_tensors(file, KIND)
    classifiers = {}
    for tap, pooling, unit, module in about["heads"]:
        count = sum(name.startswith(f"{tap}/") and name.endswith(".weight") for name in tensors)
        layers = [(tensors[f"{tap}/{number}.weight"], tensors[f"{tap}/{number}.bias"]) for number in range(count)]
        classifiers[tap] = Classifier(Pooling(**pooling), layers, unit, module)
    return Probe(classifiers, about["classes"], about["weights"], about["settings"])
