"""Watching a run while it trains: when has the downstream measure stopped rising, and which epoch was best?

The values are the `watched` of metrics.jsonl and nothing else is remembered, so a run that was killed knows all it
knew. Watching reads the network and changes nothing of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from deepcluster.data.source import ImageSource
from deepcluster.errors import DeepClusterError
from deepcluster.features.neighbors import score_features
from deepcluster.random import seeded

IMAGES = 5_000
"""Labelled training images that the kNN score is computed on, at most."""
NEIGHBORS = 20
"""Neighbors that vote, as in `deepcluster evaluate RUN knn`."""
DRAW = 17
"""Purpose of the draw of these images; those of the loop are other numbers."""
NAMES = {"knn": "kNN score", "nmi": "NMI with the labels"}


@dataclass(frozen=True)
class Watch:
    """What is watched, how often, and what follows.

    Attributes:
        score: "knn": leave-one-out kNN of the feature_network's features of `images`; "nmi": NMI(t, labels) of the
            latest clusters (arXiv 1807.05520 §4.1, figure 2a).
        every: epochs from one value to the next.
        patience: values without a rise after which the run says so.
        stop: whether it ends there.
        images: (M,) int64 positions in the source, ascending; empty for "nmi".
        labels: (N,) int64, -1 = none. For scoring only.
    """

    score: Literal["knn", "nmi"]
    every: int
    patience: int
    stop: bool
    images: np.ndarray
    labels: np.ndarray

    @property
    def name(self) -> str:
        """What is watched, in words."""
        return NAMES[self.score]

    def due(self, epoch: int) -> bool:
        """Whether a value is due after `epoch`, counted from 0."""
        return (epoch + 1) % self.every == 0

    def over(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the run is to end after these rows of metrics.jsonl."""
        best = best_of(rows)
        return self.stop and best is not None and best.since >= self.patience

    def sentence(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """What is to be said after the last of these rows: once when the value has not risen for `patience`
        values, and again only if it rose after that and stalled anew."""
        best = best_of(rows)
        if best is None or best.since != self.patience or "watched" not in rows[-1]:
            return None
        return (
            f"the {self.name} has not risen since epoch {best.epoch + 1} ({100 * best.value:.1f} %):"
            " checkpoints/best.ckpt holds that epoch"
        )


@dataclass(frozen=True)
class Best:
    """The first epoch with the highest watched value.

    Attributes:
        epoch: counted from 0.
        value: a fraction of 1.
        since: values watched after it.
    """

    epoch: int
    value: float
    since: int


def best_of(rows: Sequence[Mapping[str, Any]]) -> Best | None:
    """The best of the rows of metrics.jsonl that have a `watched`; None when none has."""
    watched = [(row["epoch"], row["watched"]) for row in rows if row.get("watched") is not None]
    if not watched:
        return None
    place = max(range(len(watched)), key=lambda position: (watched[position][1], -position))
    return Best(*watched[place], since=len(watched) - 1 - place)


def make_watch(score: str, source: ImageSource, *, every: int, patience: int, stop: bool, seed: int) -> Watch | None:
    """The watch that the settings ask for; None for "none".

    Raises:
        DeepClusterError: no labels to compare with, numbers below 1, or an end that nothing is watched for.
    """
    if every < 1 or patience < 1:
        raise DeepClusterError(
            f"--watch-every {every} and --patience {patience} must be at least 1: they count epochs and values."
        )
    if score == "none":
        if stop:
            raise DeepClusterError("--stop needs something to watch: add --watch knn or --watch nmi.")
        return None
    if source.labels is None or not (np.asarray(source.labels) >= 0).any():
        raise DeepClusterError(
            f"--watch {score} compares with labels and {source.name} has none: give --data a source whose paths have"
            " class folders, or leave --watch out."
        )
    labels = np.asarray(source.labels, np.int64)
    if score == "nmi":
        return Watch("nmi", every, patience, stop, np.zeros(0, np.int64), labels)
    return Watch("knn", every, patience, stop, labelled_draw(labels, seed), labels)


def labelled_draw(labels: np.ndarray, seed: int) -> np.ndarray:
    """(M,) int64 ascending: up to `IMAGES` of the (N,) images that have a label, the same in every epoch."""
    known = np.flatnonzero(labels >= 0)
    order = torch.randperm(len(known), generator=seeded(seed, DRAW))[:IMAGES]
    return np.sort(known[order.numpy()])


def knn_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy of each image's class by the 20 nearest others (fewer where there are fewer).

    Args:
        features: (M, D) float32.
        labels: (M,) int64, all known.

    Raises:
        DeepClusterError: fewer than two images.
    """
    if len(features) < 2:
        raise DeepClusterError("The kNN score needs two labelled images that can be decoded: watch nmi, or nothing.")
    k = min(NEIGHBORS, len(features) - 1)
    scored = dict(score_features(features, labels, None, None, k=(k,), classes=int(labels.max()) + 1))
    return scored[f"knn{k}_top1"]
