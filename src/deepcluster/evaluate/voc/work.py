"""What both ways of classifying a VOC set have in common: the network, the images, the labels, the score.

This file does not know how anything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.voc.average_precision import Rule, classification_aps, mean_ap
from deepcluster.evaluate.voc.dataset import VOC
from deepcluster.evaluate.voc.finetune import key_of

PROTOCOL = "voc-classification"


@dataclass(frozen=True)
class Work:
    """What is trained on and what is scored.

    Attributes:
        train, held: the two splits, of N and M images.
        labels, truth: (N, C) and (M, C) 1, 0 or -1.
        ap: rule of average precision.
    """

    subject: Subject
    train: VOC
    held: VOC
    labels: np.ndarray
    truth: np.ndarray
    ap: Rule
    screen: Screen

    def scores(self, scored: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """`map` and `ap_CLASS` of (m, C) scores of the test images `rows`."""
        values = classification_aps(scored, self.truth[rows], self.ap)
        named = {f"ap_{name}": float(value) for name, value in zip(self.train.classes, values, strict=True)}
        return {"map": mean_ap(values), **named}

    def key(self, *settings: Any) -> str:
        """A short text that is equal for the same settings, images, labels and weights to begin with."""
        weights = {name: float(value.double().sum()) for name, value in self.subject.backbone.state_dict().items()}
        images = [self.train.images.fingerprint(), self.held.images.fingerprint()]
        return key_of(settings, weights, images, self.labels.tolist(), self.truth.tolist(), self.ap)
