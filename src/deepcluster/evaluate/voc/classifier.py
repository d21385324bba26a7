"""The trained classifier of a VOC evaluation: saved, loaded, and used on any images.

An SVM's file holds its weights and needs the backbone it was trained on; a fine-tuned network's file holds everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.fabric import pick_device
from deepcluster.engine.subject import CACHE_GB, Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import FrozenFeatures
from deepcluster.evaluate.linear.pooling import Pooling
from deepcluster.evaluate.linear.splits import Split
from deepcluster.evaluate.voc.finetune import TransferNetwork, summed_logits
from deepcluster.evaluate.voc.network_file import read_tensors, save_tensors
from deepcluster.evaluate.voc.svm import ClassSVM
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

PROTOCOL = "voc-classification"
EPSILON = 1e-5  # of the L2 normalization, as in OpenSelfSup's benchmark


def pooled_features(
    backbone: Backbone,
    pixels: Pixels,
    poolings: Mapping[str, Pooling],
    device: str,
    after_batch: Callable[[int], object] = lambda images: None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of whole images, resized to squares: of each tap pooled and L2-normalized.

    Returns:
        (M,) int64 ascending, the images that can be decoded, and for each tap (M, D) float32.
    """
    resized = ViewGroup(size=backbone.image_size, crop_scale=None, flip=0.0, mean=backbone.mean, std=backbone.std)
    frozen = FrozenFeatures(backbone, {tap: partial(_normalized, pooling) for tap, pooling in poolings.items()}, device)
    split = Split(pixels, np.arange(len(pixels)), np.full(len(pixels), -1))
    decoded, tables = frozen.extract(split, RandomViews(resized), check=after_batch)
    return np.flatnonzero(decoded), tables


def _normalized(pooling: Pooling, activations: torch.Tensor) -> torch.Tensor:
    vectors = pooling(activations)
    normalized: torch.Tensor = vectors / (vectors.norm(dim=1, keepdim=True) + EPSILON)
    return normalized


def save_svms(file: Path, svms: Mapping[str, Sequence[ClassSVM | None]], about: Mapping[str, Any]) -> Path:
    """Writes SVMs: for each tap TAP.weight (C, D) and TAP.bias (C,); `about` says what else is needed to use them."""
    tensors = {}
    for tap, row in svms.items():
        dim = next(len(svm.weight) for svm in row if svm is not None)
        weight = [np.zeros(dim) if svm is None else svm.weight for svm in row]
        tensors[f"{tap}.weight"] = torch.from_numpy(np.stack(weight)).float()
        tensors[f"{tap}.bias"] = torch.tensor([0.0 if svm is None else svm.bias for svm in row])
    return save_tensors(file, PROTOCOL, about, tensors)


class VOCClassifier:
    """What an evaluation trained, to score any images with.

    Attributes:
        classes: C names.
        about: what its file says of it.
    """

    def __init__(
        self, about: dict[str, Any], tensors: dict[str, torch.Tensor], subject: Subject | None, device: str
    ) -> None:
        self.about, self.device = about, device
        self.classes: tuple[str, ...] = about["classes"]
        self._tensors, self._subject = tensors, subject
        self._network: TransferNetwork | None = None
        if subject is None:
            with preserve_random_state():
                backbone = build_backbone(**about["backbone"])
                network = TransferNetwork(backbone, len(self.classes), about["mode"], **about["layers"])
            network.load_state_dict(tensors)
            self._network = network.to(device).eval()

    def scores(self, data: Any, tap: str | None = None) -> np.ndarray:
        """(N, C) scores of any images, larger = more confident; NaN rows for images that cannot be decoded.

        Args:
            data: what `open_images` takes.
            tap: for SVMs of several layers, which; None = the deepest.
        """
        source = open_images(data)
        subject = self._subject
        cache_gb = CACHE_GB if subject is None else subject.cache_gb
        pixels = load_pixels(source, short_side=self.about["short_side"], cache_gb=cache_gb)
        if self._network is not None:
            views, crops = ViewGroup(**self.about["views"]), self.about["crops"]
            return summed_logits(self._network, pixels, views, len(self.classes), crops=crops, device=self.device)
        assert subject is not None
        taps = list(self.about["poolings"])
        tap = tap or taps[-1]
        if tap not in taps:
            raise DeepClusterError(f"There are no SVMs of {tap!r}, only of {', '.join(taps)}.")
        pooling = Pooling(**self.about["poolings"][tap])
        index, features = pooled_features(subject.backbone, pixels, {tap: pooling}, self.device)
        weight, bias = (self._tensors[f"{tap}.{part}"].numpy() for part in ("weight", "bias"))
        scores = np.full((len(source), len(self.classes)), np.nan)
        scores[index] = features[tap] @ weight.T + bias
        return scores


def load_voc_classifier(file: str | Path, subject: Subject | None = None, device: str = "auto") -> VOCClassifier:
    """Reads the `voc-classification.safetensors` that an evaluation wrote.

    Args:
        subject: for SVMs, the network they were trained on (`engine.run.load_subject`); a fine-tuned network needs
            none.

    Raises:
        DeepClusterError: the file is something else or damaged, or the SVMs' network is missing.
    """
    about, tensors = read_tensors(file, PROTOCOL)
    if about["mode"] != "svm":
        return VOCClassifier(about, tensors, None, pick_device(device))
    if subject is None:
        raise DeepClusterError(f"{file} holds SVMs on features of {about['subject']}: give that network as subject.")
    return VOCClassifier(about, tensors, subject, subject.device)
