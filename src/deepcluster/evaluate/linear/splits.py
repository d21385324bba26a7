"""Labeled images divided for a protocol: a training and a test split, folds, and a few images of each class.

Every draw comes from a key (seed, purpose), so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcluster.data.cache import Pixels
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.labels import open_labeled
from deepcluster.random import seed_of

HOLDOUT, FOLDS, SHOTS = 11, 12, 13
"""Purposes of keys."""


@dataclass(frozen=True)
class Split:
    """n labeled images of a source."""

    pixels: Pixels  # of the whole source
    index: np.ndarray  # (n,) int64 ascending, positions in the source
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, rows: np.ndarray) -> Split:
        """The images at (m,) ascending rows of this split."""
        return Split(self.pixels, self.index[rows], self.labels[rows])

    def decodable(self) -> np.ndarray:
        """(n,) bool: images not known to be undecodable."""
        return ~np.isin(self.index, np.fromiter(self.pixels.bad, np.int64, len(self.pixels.bad)))


@dataclass(frozen=True)
class LabeledData:
    """What a protocol learns from and is scored on."""

    train: Split
    test: Split
    classes: tuple[str, ...]  # K names; labels are positions in it
    unlabeled: int  # images without a label, which are left out
    test_description: str  # which images the test split holds, in words

    def settings(self) -> dict[str, Any]:
        """For the result, once all images have been decoded."""
        bad = sum(int((~split.decodable()).sum()) for split in (self.train, self.test))
        return {
            "data": self.train.pixels.source.name,
            "test": self.test_description,
            "images_data": int(self.train.decodable().sum()),
            "images_test": int(self.test.decodable().sum()),
            "classes": len(self.classes),
            "left_out": f"{counted(self.unlabeled, 'image')} without a label and {bad} that cannot be decoded",
        }


def split_data(
    subject: Subject,
    data: Any,
    test: Any = None,
    holdout: float | None = None,
    *,
    protocol: str = "linear",
    seed: int = 0,
) -> LabeledData:
    """Opens labeled images (None = those of the run), and others to test or, instead, holds out that share of them, the
    same of each class. DeepClusterError where there are no labels, no test images, or a single class."""
    if (test is None) == (holdout is None):
        problem = "has no test images" if test is None else "was given both --test and --holdout"
        raise DeepClusterError(
            f"Protocol {protocol} {problem}: give --test SOURCE, or --holdout 0.2 for a fifth of the data."
        )
    if holdout is not None and not 0 < holdout < 1:
        raise DeepClusterError(f"--holdout {holdout:g} is not a share of the images: give one between 0 and 1.")
    images = open_labeled(subject, data, test, protocol)
    train = _labeled(subject.pixels(images.source), images.labels)
    unlabeled = int((images.labels < 0).sum())
    if images.test is None or images.test_labels is None:
        assert holdout is not None
        held_out = _held_out(train.labels, holdout, seed)
        train, tested = (train.subset(np.flatnonzero(rows)) for rows in (~held_out, held_out))
        described = f"{100 * holdout:g} % of each class of {images.source.name}, held out with seed {seed}"
    else:
        tested, described = _labeled(subject.pixels(images.test), images.test_labels), images.test.name
        unlabeled += int((images.test_labels < 0).sum())
    for split, name in ((train, "training"), (tested, "test")):
        if not split.decodable().any():
            raise DeepClusterError(
                f"There are no {name} images: none of {split.pixels.source.name} is in that split, has a label and can"
                " be decoded; give other --data, --test or --holdout."
            )
    return LabeledData(train, tested, images.classes, unlabeled, described)


def _labeled(pixels: Pixels, labels: np.ndarray) -> Split:
    index = np.flatnonzero(labels >= 0)
    return Split(pixels, index, labels[index])


def _held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: that share of each class, rounded, but never all of it."""
    held_out = np.zeros(len(labels), bool)
    for _, rows in _shuffled_classes(labels, seed, HOLDOUT):
        held_out[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return held_out


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64 fold of each image; each class is spread evenly over the folds, which are of equal size."""
    fold = np.zeros(len(labels), np.int64)
    start = 0
    for _, rows in _shuffled_classes(labels, seed, FOLDS):
        fold[rows] = (start + np.arange(len(rows))) % folds
        start += len(rows)  # the next class continues where this one ended, so that folds are of equal size
    return fold


def draw_shots(labels: np.ndarray, shots: int | float, seed: int, classes: Sequence[str]) -> np.ndarray:
    """(m,) int64 ascending rows: `shots` images of each class, or that share (a float) and at least one;
    DeepClusterError where a class has fewer."""
    rows = []
    for label, own in _shuffled_classes(labels, seed, SHOTS):
        wanted = shots if isinstance(shots, int) else max(1, round(shots * len(own)))
        if wanted > len(own):
            raise DeepClusterError(
                f"{counted(wanted, 'image')} of each class {'was' if wanted == 1 else 'were'} asked for and"
                f" {classes[label]!r} has {len(own)}: ask for fewer --shots."
            )
        rows.append(own[:wanted])
    return np.sort(np.concatenate(rows))


def _shuffled_classes(labels: np.ndarray, seed: int, purpose: int) -> list[tuple[int, np.ndarray]]:
    """Each class that occurs, and its rows in random order."""
    order = np.random.default_rng(seed_of(seed, purpose)).permutation(len(labels))
    return [(int(label), order[labels[order] == label]) for label in np.unique(labels)]
