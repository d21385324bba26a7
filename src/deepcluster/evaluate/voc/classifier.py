"""What a classifier of VOC's classes is trained and scored on, and the trained one, loaded and used on any images.

A file of SVMs holds TAP.weight (C, D) and TAP.bias (C,) for each tap, and needs the network they were trained on. A
file of a fine-tuned network holds everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.engine.device import pick_device
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import CACHE_GB, Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import FrozenFeatures, Pooling
from deepcluster.evaluate.tensor_file import load_network, read_tensors, trained_file
from deepcluster.evaluate.voc.average_precision import Rule, classification_aps, mean_ap
from deepcluster.evaluate.voc.dataset import VOC
from deepcluster.evaluate.voc.finetune import TransferNetwork, summed_logits
from deepcluster.models.backbone import Backbone
from deepcluster.resume import ResumeFile

PROTOCOL = "voc-classification"
EPSILON = 1e-5  # of the L2 normalization, as in OpenSelfSup's benchmark


@dataclass(frozen=True)
class ClassificationTask:
    """What both ways of classifying are given."""

    subject: Subject
    train: VOC
    test: VOC
    labels: np.ndarray  # (N, C) 1, 0 or -1, of the images to train on
    truth: np.ndarray  # (M, C), likewise, of those to test
    ap: Rule
    seeds: Sequence[int]  # of the draws
    screen: Screen

    def files(self, depends_on: Any, save_seconds: float = 300.0) -> tuple[Path, ResumeFile]:
        """The file of the classifier and that of unfinished work; see `trained_file`."""
        images = [self.train.images.fingerprint(), self.test.images.fingerprint()]
        everything = [depends_on, images, self.labels, self.truth, self.ap, list(self.seeds)]
        return trained_file(self.subject, PROTOCOL, everything, self.screen, save_seconds)

    def scores(self, scores: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        """`map` and `ap_CLASS` of (m, C) scores of the test images `rows`."""
        values = classification_aps(scores, self.truth[rows], self.ap)
        named = {f"ap_{name}": float(value) for name, value in zip(self.train.classes, values, strict=True)}
        return {"map": mean_ap(values), **named}


def pooled_features(
    backbone: Backbone,
    pixels: Pixels,
    poolings: Mapping[str, Pooling],
    device: str,
    after_batch: Callable[[int], object] = lambda images: None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of whole images, resized to squares: (M,) int64 ascending, those that can be decoded, and of each tap (M, D)
    float32, pooled and L2-normalized."""
    resized = ViewGroup(size=backbone.image_size, crop_scale=None, flip=0.0, mean=backbone.mean, std=backbone.std)
    frozen = FrozenFeatures(backbone, {tap: partial(_normalized, pooling) for tap, pooling in poolings.items()}, device)
    decoded, tables = frozen.extract(pixels, np.arange(len(pixels)), RandomViews(resized), check=after_batch)
    return np.flatnonzero(decoded), tables


def _normalized(pooling: Pooling, activations: torch.Tensor) -> torch.Tensor:
    vectors = pooling(activations)
    normalized: torch.Tensor = vectors / (vectors.norm(dim=1, keepdim=True) + EPSILON)
    return normalized


class VOCClassifier:
    """What an evaluation trained, to score any images with; `load_voc_classifier` reads it.

    Attributes:
        classes: C names.
        about: what its file says of it.
    """

    def __init__(self, file: str | Path, subject: Subject | None, device: str) -> None:
        self.about, self._tensors = read_tensors(file, PROTOCOL)
        self.classes: tuple[str, ...] = self.about["classes"]
        self.device, self._subject = device, subject
        self._network: TransferNetwork | None = None
        if self.about["mode"] != "svm":
            self._network = load_network(
                file,
                PROTOCOL,
                lambda own, about: TransferNetwork(own, len(about["classes"]), about["mode"], **about["layers"]),
                device,
            )
        elif subject is None:
            raise DeepClusterError(
                f"{file} holds SVMs on features of {self.about['subject']}: give that network as subject."
            )

    def scores(self, data: Any, tap: str | None = None) -> np.ndarray:
        """(N, C) scores of any images, larger = more confident; NaN rows for images that cannot be decoded.

        Args:
            data: what `open_images` takes.
            tap: for SVMs of several layers, which; None = the deepest.
        """
        subject, about = self._subject, self.about
        cache_gb = CACHE_GB if subject is None else subject.cache_gb
        pixels = load_pixels(open_images(data), short_side=about["short_side"], cache_gb=cache_gb)
        if self._network is not None:
            views, crops = ViewGroup(**about["views"]), about["crops"]
            return summed_logits(self._network, pixels, views, len(self.classes), crops=crops, device=self.device)
        assert subject is not None
        tap = tap or list(about["poolings"])[-1]
        if tap not in about["poolings"]:
            raise DeepClusterError(f"There are no SVMs of {tap!r}, only of {', '.join(about['poolings'])}.")
        pooling = Pooling(**about["poolings"][tap])
        index, features = pooled_features(subject.backbone, pixels, {tap: pooling}, subject.device)
        weight, bias = (self._tensors[f"{tap}.{part}"].numpy() for part in ("weight", "bias"))
        scores = np.full((len(pixels), len(self.classes)), np.nan)
        scores[index] = features[tap] @ weight.T + bias
        return scores


def load_voc_classifier(file: str | Path, subject: Subject | None = None, device: str = "auto") -> VOCClassifier:
    """Reads the file of a classifier that an evaluation trained; its result names it.

    Args:
        subject: for SVMs, the network they were trained on (`engine.run.load_subject`); a fine-tuned network needs
            none.

    Raises:
        DeepClusterError: the file is something else or damaged, or the SVMs' network is missing.
    """
    return VOCClassifier(file, subject, pick_device(device))
