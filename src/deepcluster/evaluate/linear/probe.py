"""Trained probes as a file: `load_probe(file).predict(images, subject)`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.feed import Crops
from deepcluster.evaluate.linear.frozen import Frozen
from deepcluster.evaluate.linear.heads import Layers, apply
from deepcluster.evaluate.linear.parts import Part
from deepcluster.evaluate.linear.pooling import Pooling
from deepcluster.io import write_atomic
from deepcluster.models.backbone import Backbone

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject


KIND = "deepcluster probe"
"""The metadata entry that tells such a file from others."""


@dataclass(frozen=True)
class Trained:
    """One classifier and what it reads.

    Attributes:
        pooling: of the tap's activations.
        layers: of the classifier.
        unit: vectors are L2-normalized first.
        module: path of the layer within the trunk, where it is no tap.
    """

    pooling: Pooling
    layers: Layers
    unit: bool = False
    module: str = ""


class Probe:
    """The classifiers of a probe file.

    Attributes:
        taps: the layers they read, in the order of depth.
        classes: names; predictions are places in it.
        settings: of the evaluation that trained them.
    """

    def __init__(
        self, trained: Mapping[str, Trained], classes: tuple[str, ...], weights: str, settings: Mapping[str, Any]
    ) -> None:
        self.trained = dict(trained)
        self.taps = tuple(trained)
        self.classes = classes
        self.weights = weights
        self.settings = dict(settings)

    def predict(self, images: Any, subject: Subject, tap: str | None = None) -> np.ndarray:
        """(N,) int64 class of each image; -1 for images that cannot be decoded.

        Args:
            images: whatever `open_images` takes.
            subject: the network that the probe was trained on; see `engine.runs.load_subject`.
            tap: which of the classifiers; None = the deepest.

        Raises:
            DeepClusterError: another network, or no such classifier.
        """
        chances = self.probabilities(images, subject, tap)
        return np.where(np.isfinite(chances[:, 0]), chances.argmax(1), -1)

    def probabilities(
        self,
        images: Any,
        subject: Subject,
        tap: str | None = None,
        check: Callable[[int], None] = lambda images: None,
    ) -> np.ndarray:
        """(N, K) float32 softmax of the scores; NaN for images that cannot be decoded. See `predict`."""
        tap = tap or self.taps[-1]
        if tap not in self.trained:
            raise DeepClusterError(f"This probe has no classifier of {tap!r}; it has {', '.join(self.taps)}.")
        if digest(subject.backbone) != self.weights:
            raise DeepClusterError(
                f"{subject.name} is not the network that this probe was trained on: give"
                f" {self.settings.get('subject', 'that one')} with the weights it had."
            )
        own = self.trained[tap]
        pixels = images if hasattr(images, "gather") else subject.pixels(images)
        everything = Part(pixels, np.arange(len(pixels)), np.zeros(len(pixels), np.int64))
        modules = {tap: own.module} if own.module else {}
        frozen = Frozen(subject.backbone, {tap: own.pooling}, subject.device, modules=modules)
        crops = Crops(subject.image_size, subject.backbone.mean, subject.backbone.std)
        kept, tables = frozen.describe(everything, crops.center, check=check)
        out = np.full((len(pixels), len(self.classes)), np.nan, np.float32)
        out[kept] = torch.cat([self._scores(own, part) for part in torch.from_numpy(tables[tap]).split(8192)]).numpy()
        return out

    def _scores(self, own: Trained, vectors: Tensor) -> Tensor:
        return apply(own.layers, F.normalize(vectors, dim=1) if own.unit else vectors).softmax(1)

    def save(self, file: Path) -> Path:
        """One safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {}
        for tap, own in self.trained.items():
            for number, (weight, bias) in enumerate(own.layers):
                tensors[f"{tap}/{number}.weight"] = weight.detach().cpu().contiguous()
                tensors[f"{tap}/{number}.bias"] = bias.detach().cpu().contiguous()
        heads = [[tap, own.pooling.as_dict(), own.unit, own.module] for tap, own in self.trained.items()]
        notes = {"heads": heads, "classes": self.classes, "weights": self.weights, "settings": self.settings}
        # One entry alone: safetensors writes several in random order, and equal probes should be equal files.
        text = {KIND: json.dumps(notes, default=str)}
        return write_atomic(file, lambda beside: save_file(tensors, beside, text))


def load_probe(file: str | Path) -> Probe:
    """The probes that `deepcluster evaluate RUN linear|mlp|low-shot` left beside their result.

    Raises:
        DeepClusterError: the file is missing or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            text = (handle.metadata() or {}).get(KIND)
            if text is None:
                raise ValueError("it holds something else")
            notes = json.loads(text)
            trained = {}
            for tap, pooling, unit, module in notes["heads"]:
                count = sum(name.startswith(f"{tap}/") and name.endswith(".weight") for name in handle.keys())  # noqa: SIM118
                layers = [
                    (handle.get_tensor(f"{tap}/{k}.weight"), handle.get_tensor(f"{tap}/{k}.bias")) for k in range(count)
                ]
                trained[tap] = Trained(Pooling(**pooling), layers, unit, module)
            return Probe(trained, tuple(notes["classes"]), notes["weights"], notes["settings"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DeepClusterError(
            f"{file} is no probe that deepcluster saved ({error}): give the .safetensors beside an evaluation's result."
        ) from error


def digest(backbone: Backbone) -> str:
    """Of all weights: equal for equal networks."""
    sum_ = hashlib.blake2b(json.dumps(backbone.config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(backbone.state_dict().items()):
        sum_.update(name.encode())
        sum_.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sum_.hexdigest()
