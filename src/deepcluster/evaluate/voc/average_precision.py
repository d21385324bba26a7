"""Average precision as PASCAL VOC scores classification and detection.

Rules: "11-point" is VOC 2007's, the mean over recalls 0, .1, ... 1 of the best precision at that recall or beyond;
"all-point" is that of VOC 2010 and later, the area below the same envelope; "sklearn" is scikit-learn's
`average_precision_score`, the area below the steps of precision itself, which DeepCluster's published code uses. (That
code subtracts 1e-5 from the scores of positives, against ties, which changes the result only where two scores are
nearer than that.)

Equal scores: for images of a class, the first two rules put negatives before positives, so that no order of files can
better a score and a constant one gains nothing; scikit-learn treats them as one. Detections of equal scores keep the
order they are given in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torchvision.ops import box_iou

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.annotation import Objects

DetectionRule = Literal["11-point", "all-point"]
Rule = Literal["11-point", "all-point", "sklearn"]
RULES: dict[Rule, str] = {
    "11-point": "11-point interpolated, VOC 2007's own rule",
    "all-point": "area below the interpolated curve, VOC's rule from 2010 on",
    "sklearn": "scikit-learn's average_precision_score, as in the published code of DeepCluster",
}

MIN_IOU = 0.5
"""Intersection over union from which on a box finds an object."""


@dataclass(frozen=True)
class Detections:
    """The m boxes found in one image."""

    boxes: np.ndarray  # (m, 4) x1, y1, x2, y2, as `Objects` has them
    labels: np.ndarray  # (m,) int64
    scores: np.ndarray  # (m,) floats, larger = more confident


def classification_ap(scores: np.ndarray, labels: np.ndarray, rule: Rule = "11-point") -> float:
    """Average precision of one class, a fraction of 1, by a rule (see the top of this file); NaN where no image shows
    it.

    Args:
        scores: (N,) floats, larger = more confident that the image shows the class.
        labels: (N,) 1 = shown, 0 = not, -1 = left out, as `VOC.labels_matrix` has them.

    Raises:
        DeepClusterError: an unknown rule, or scores that are not finite.
    """
    labels, scores = np.asarray(labels), _finite(scores)
    scores, positive = scores[labels >= 0], labels[labels >= 0] > 0
    if not positive.any():
        return float("nan")
    if rule == "sklearn":
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(positive, scores))
    order = np.lexsort((positive, -scores))
    return _ranked_ap(positive[order], int(positive.sum()), rule)


def classification_aps(scores: np.ndarray, labels: np.ndarray, rule: Rule = "11-point") -> np.ndarray:
    """(C,) average precisions of (N, C) scores and labels; see `classification_ap`."""
    columns = zip(np.asarray(scores).T, np.asarray(labels).T, strict=True)
    return np.array([classification_ap(column, truth, rule) for column, truth in columns])


def mean_ap(values: np.ndarray) -> float:
    """Mean over the classes that have positives; NaN where none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def detection_aps(
    predicted: Sequence[Detections], truth: Sequence[Objects], classes: int, *, rule: DetectionRule = "11-point"
) -> np.ndarray:
    """(C,) average precision of each class over N images, fractions of 1; NaN for a class without an object that is not
    difficult. See `match` for how boxes meet objects.

    Args:
        predicted: boxes found in each of the N images.
        truth: objects of each of the N images, `VOC.objects`.
        classes: C.

    Raises:
        DeepClusterError: an unknown rule, or scores that are not finite.
    """
    values = np.full(classes, np.nan)
    for label in range(classes):
        outcomes, scores, positives = [np.zeros(0, np.int8)], [np.zeros(0)], 0
        for found, objects in zip(predicted, truth, strict=True):
            own, wanted = found.labels == label, objects.labels == label
            difficult = objects.difficult[wanted]
            positives += int((~difficult).sum())
            scores.append(_finite(found.scores[own]))
            outcomes.append(match(found.boxes[own], scores[-1], objects.boxes[wanted], difficult))
        if positives:
            ranked = np.concatenate(outcomes)[np.argsort(-np.concatenate(scores), kind="stable")]
            values[label] = _ranked_ap(ranked[ranked != 0] > 0, positives, rule)
    return values


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """Which boxes of one class find an object of one image, as VOC decides it.

    Each box is compared with the object that it overlaps most (the first of equals), found already or not. With an IoU
    of `MIN_IOU` or more it finds it; of several such boxes the one with the highest score is right and the others are
    wrong. A box on a difficult object is neither right nor wrong.

    Args:
        boxes, scores: (m, 4) and (m,), of each box.
        truth, difficult: (n, 4) boxes of the objects and (n,) bool.

    Returns:
        (m,) int8: 1 right, -1 wrong, 0 not counted.
    """
    outcome = np.full(len(boxes), -1, np.int8)
    if not len(boxes) or not len(truth):
        return outcome
    # in double precision: an IoU of just 1/2 counts
    iou = box_iou(*(torch.from_numpy(np.asarray(one, np.float64)) for one in (boxes, truth))).numpy()
    found: set[int] = set()
    for row in np.argsort(-scores, kind="stable"):
        target = int(iou[row].argmax())
        if iou[row, target] >= MIN_IOU:
            if difficult[target]:
                outcome[row] = 0
            elif target not in found:
                outcome[row] = 1
                found.add(target)
    return outcome


def _ranked_ap(right: np.ndarray, positives: int, rule: str) -> float:
    """Average precision of answers (M,) bool, highest score first, by one of VOC's two rules."""
    if rule not in get_args(DetectionRule):
        raise DeepClusterError(f"There is no rule {rule!r} for average precision: use {', '.join(get_args(Rule))}.")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or beyond
    if rule == "all-point":
        return float(envelope[right].sum() / positives)  # recall grows by 1 / positives at each right answer
    total = 0.0
    for tenth in range(11):
        # in integers: a recall of 3/10 is not 3 * 0.1 in floating point
        reached = int(np.searchsorted(10 * found, tenth * positives))
        total += envelope[reached] if reached < len(envelope) else 0.0
    return total / 11


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise DeepClusterError("Scores are not finite, so nothing can be ranked: check the network that gave them.")
    return scores
