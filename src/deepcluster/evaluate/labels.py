"""Labels for scoring: those a source has, and how the classes of two sources correspond.

This file does not know what is scored; a method never sees what is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource


def labels_of(source: ImageSource, protocol: str) -> np.ndarray:
    """(N,) int64 labels of a source; -1 where an image has none.

    Raises:
        DeepClusterError: the source has no label at all.
    """
    if source.labels is None or not (source.labels >= 0).any():
        raise DeepClusterError(
            f"Protocol {protocol} compares with labels and {source.name} has none: give --data a source whose paths"
            " have class folders."
        )
    return np.asarray(source.labels, dtype=np.int64)


def labels_alike(bank: ImageSource, test: ImageSource, protocol: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels of two sources in one numbering of classes, matched by the names of the classes.

    A test set may lack a class, and then its own numbers differ from those of the training set.

    Returns:
        (N,) int64 labels of `bank`, (M,) int64 labels of `test`, and the number of classes in either.

    Raises:
        DeepClusterError: a source has no labels, or the two have no class in common.
    """
    own, other = labels_of(bank, protocol), labels_of(test, protocol)
    if not bank.classes or not test.classes:  # numbers without names can only mean themselves
        return own, other, int(max(own.max(), other.max())) + 1
    number = {name: position for position, name in enumerate(bank.classes)}
    if not any(name in number for name in test.classes):
        raise DeepClusterError(
            f"No class of {test.name} ({_some(test.classes)}) is a class of {bank.name} ({_some(bank.classes)}): give"
            " --test a source of the same classes."
        )
    renumbered = np.array([number.setdefault(name, len(number)) for name in test.classes], dtype=np.int64)
    return own, np.where(other >= 0, renumbered[np.maximum(other, 0)], -1), len(number)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
