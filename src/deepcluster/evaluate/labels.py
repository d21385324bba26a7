"""Labels for scoring, which a method never sees, and how the classes of two sources correspond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError


def labels_of(source: ImageSource, protocol: str) -> np.ndarray:
    """(N,) int64 labels of a source, -1 where an image has none; DeepClusterError for one without labels, or with one
    class only."""
    found = np.array([-1]) if source.labels is None else np.unique(source.labels[source.labels >= 0])
    if source.labels is None or not len(found):
        raise DeepClusterError(
            f"Protocol {protocol} compares with labels and {source.name} has none: give --data a source whose paths"
            " have class folders."
        )
    if len(found) == 1:
        name = source.classes[found[0]] if found[0] < len(source.classes) else found[0]
        raise DeepClusterError(
            f"All labeled images of {source.name} are of one class ({name}), so a score would say nothing: give a"
            " source of two classes or more."
        )
    return np.asarray(source.labels, dtype=np.int64)


@dataclass(frozen=True)
class LabeledSources:
    """Images to learn from and, where there are any, images to score, in one numbering of classes."""

    source: ImageSource
    test: ImageSource | None
    labels: np.ndarray  # (N,) int64, positions in `classes`; -1 = none
    test_labels: np.ndarray | None  # (M,) int64, likewise
    classes: tuple[str, ...]  # names, or numbers as text where the sources have no names


def open_labeled(subject: Subject, data: Any, test: Any, protocol: str) -> LabeledSources:
    """Opens labeled images (None = those of the run) and perhaps others to test; classes of the two are matched by
    name, as a test set may lack some. DeepClusterError where a source has no labels or one class only, or the two have
    no class in common."""
    source = subject.source() if data is None else open_images(data)
    labels, names = labels_of(source, protocol), dict.fromkeys(source.classes)
    tested, answers = None if test is None else open_images(test), None
    if tested is not None:
        answers = labels_of(tested, protocol)
        if source.classes and tested.classes:  # numbers without names can only mean themselves
            if not any(name in names for name in tested.classes):
                raise DeepClusterError(
                    f"No class of {tested.name} ({_some(tested.classes)}) is a class of {source.name}"
                    f" ({_some(source.classes)}): give --test a source of the same classes."
                )
            names |= dict.fromkeys(tested.classes)
            number = {name: position for position, name in enumerate(names)}
            renumbered = np.array([number[name] for name in tested.classes])
            answers = np.where(answers >= 0, renumbered[np.maximum(answers, 0)], -1)
    largest = max(int(one.max()) for one in (labels, answers) if one is not None)
    classes = tuple(names) if largest < len(names) else tuple(map(str, range(largest + 1)))
    return LabeledSources(source, tested, labels, answers, classes)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
