"""Labelled images, divided: a part to learn from and a part to be judged on, folds, and a few of each class.

This file does not know what is learned. Every draw comes from a key, so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.data.cache import Pixels
from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.labels import labels_alike, labels_of
from deepcluster.random import seed_of

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

HOLDOUT, FOLDS, FEW = 11, 12, 13
"""What a key is for."""


@dataclass(frozen=True)
class Part:
    """n labelled images of a source.

    Attributes:
        pixels: the pictures of the whole source.
        index: (n,) int64 ascending, which of them.
        labels: (n,) int64.
    """

    pixels: Pixels
    index: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def of(self, rows: np.ndarray) -> Part:
        """Those rows (m,) of this part, ascending."""
        return Part(self.pixels, self.index[rows], self.labels[rows])

    def seen(self) -> np.ndarray:
        """(n,) bool: images that can be decoded, as far as is known."""
        return ~np.isin(self.index, np.fromiter(self.pixels.bad, np.int64, len(self.pixels.bad)))


@dataclass(frozen=True)
class Exam:
    """What is learned from, what judges, and the classes.

    Attributes:
        names: of the classes; a label is a place in it.
        unlabelled: images without a label, which are left out.
        said: how the two parts came about, in words.
    """

    train: Part
    test: Part
    names: tuple[str, ...]
    unlabelled: int
    said: str

    @property
    def classes(self) -> int:
        """K."""
        return len(self.names)

    def settings(self) -> dict[str, Any]:
        """For the result, once all images have been looked at."""
        lost = sum(int((~part.seen()).sum()) for part in (self.train, self.test))
        return {
            "data": self.train.pixels.source.name,
            "test": self.said,
            "images_data": int(self.train.seen().sum()),
            "images_test": int(self.test.seen().sum()),
            "classes": self.classes,
            "left_out": f"{self.unlabelled} images without a label and {lost} that cannot be decoded",
        }


def divide(
    subject: Subject,
    data: Any,
    test: Any = None,
    holdout: float | None = None,
    *,
    protocol: str = "linear",
    seed: int = 0,
) -> Exam:
    """Opens the images and divides them.

    Args:
        data: labelled images; None = the images of the run.
        test: labelled images to be judged on.
        holdout: in place of `test`, the share of `data` that is held out, the same of each class.

    Raises:
        DeepClusterError: no labels, no test images, or one class alone.
    """
    if (test is None) == (holdout is None):
        trouble = "has no test images" if test is None else "was given both --test and --holdout"
        raise DeepClusterError(
            f"Protocol {protocol} {trouble}: give --test SOURCE, or --holdout 0.2 for a fifth of the data."
        )
    source = subject.source() if data is None else open_images(data)
    if test is None:
        assert holdout is not None
        if not 0 < holdout < 1:
            raise DeepClusterError(f"--holdout {holdout:g} is no share of the images: give one between 0 and 1.")
        labels = labels_of(source, protocol)
        whole = _part(subject.pixels(source), labels)
        held = _held_out(whole.labels, holdout, seed)
        exam = Exam(
            whole.of(np.flatnonzero(~held)),
            whole.of(np.flatnonzero(held)),
            _names(source.classes, int(labels.max()) + 1),
            int((labels < 0).sum()),
            f"{100 * holdout:g} % of {source.name}, of each class alike, held out with seed {seed}",
        )
    else:
        other = open_images(test)
        labels, answers, classes = labels_alike(source, other, protocol)
        more = [name for name in other.classes if name not in set(source.classes)]
        exam = Exam(
            _part(subject.pixels(source), labels),
            _part(subject.pixels(other), answers),
            _names((*source.classes, *more), classes),
            int((labels < 0).sum() + (answers < 0).sum()),
            other.name,
        )
    _look(exam)
    return exam


def _part(pixels: Pixels, labels: np.ndarray) -> Part:
    index = np.flatnonzero(labels >= 0)
    return Part(pixels, index, labels[index])


def _names(classes: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(classes) if len(classes) == count else tuple(str(number) for number in range(count))


def _look(exam: Exam) -> None:
    for part, word in ((exam.train, "training"), (exam.test, "test")):
        if not part.seen().any():
            raise DeepClusterError(
                f"There are no {word} images: none of {part.pixels.source.name} is in that part, has a label and can be"
                " decoded; give other --data, --test or --holdout."
            )
    if len(np.unique(exam.train.labels)) < 2:
        raise DeepClusterError(
            f"All training images of {exam.train.pixels.source.name} are of one class, so there is nothing to tell"
            " apart: give images of two classes or more."
        )


def _held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: that share of each class, rounded, but never all of it."""
    held = np.zeros(len(labels), bool)
    for _, rows in _shuffled(labels, seed, HOLDOUT):
        held[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return held


def folds_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64 fold of each image; every fold has of each class as many as any other, give or take one."""
    fold = np.zeros(len(labels), np.int64)
    start = 0
    for _, rows in _shuffled(labels, seed, FOLDS):
        fold[rows] = (start + np.arange(len(rows))) % folds
        start += len(rows)  # the next class goes on where this one stopped, so that folds are of one size
    return fold


def few(labels: np.ndarray, count: int | float, seed: int) -> np.ndarray:
    """(m,) int64 ascending rows: `count` images of each class, or that share (a float) and at least one.

    Raises:
        DeepClusterError: a class has fewer images.
    """
    rows = []
    for label, own in _shuffled(labels, seed, FEW):
        wanted = count if isinstance(count, int) else max(1, round(count * len(own)))
        if wanted > len(own):
            raise DeepClusterError(
                f"{wanted} images of each class were asked for and class {label} has {len(own)}: ask for fewer shots."
            )
        rows.append(own[:wanted])
    return np.sort(np.concatenate(rows))


def _shuffled(labels: np.ndarray, seed: int, purpose: int) -> list[tuple[int, np.ndarray]]:
    """Each class that occurs, and its rows in random order."""
    random = np.random.default_rng(seed_of(seed, purpose))
    order = random.permutation(len(labels))
    return [(int(label), order[labels[order] == label]) for label in np.unique(labels)]
