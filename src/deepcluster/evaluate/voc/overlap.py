"""Intersection over union of classes of pixels, from counts that add up over images.

This file knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepcluster.evaluate.voc.layout import VOID


def confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: pixels of true class i that were given class j; void pixels of the truth do not count.

    Args:
        truth, guess: integers of the same shape, below `classes`; truth may be `VOID`.
    """
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + guess[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def overlap_scores(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """`miou`, `pixel_accuracy` and iou_NAME of each class, from a confusion matrix summed over all images.

    A class is left out of the mean where no pixel has it, neither in truth nor as guess: there its IoU is 0/0.
    (VOC's test sets show all classes, so that this does not matter there.)
    """
    right = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - right
    with np.errstate(invalid="ignore", divide="ignore"):
        each = right / union
    there = union > 0
    scores = {
        "miou": float(each[there].mean()) if there.any() else float("nan"),
        "pixel_accuracy": float(right.sum() / counts.sum()) if counts.sum() else float("nan"),
    }
    return scores | {
        f"iou_{name}": float(value) for name, value, known in zip(names, each, there, strict=True) if known
    }
