"""Average precision as PASCAL VOC scores classification and detection.

Rules: "11-point" is VOC 2007's, the mean over recalls 0, .1, ... 1 of the best precision at that recall or beyond;
"all-point" is that of VOC 2010 and later, the area below the same envelope; "sklearn" is scikit-learn's
`average_precision_score`, the area below the steps of precision itself, which DeepCluster's published code takes. (That
takes 1e-5 from the scores of positives, against ties, which changes this score only where two are nearer than that.)

Equal scores: for images of a class, the first two rules put negatives before positives, so that no order of files can
better a score and a constant one gains nothing; scikit-learn takes them as one. Detections of equal scores are taken
in the order they are given in. This file knows nothing of files, networks or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from deepcluster.errors import DeepClusterError

DETECTION_RULES = ("11-point", "all-point")
RULES = (*DETECTION_RULES, "sklearn")


class Truth(Protocol):
    """Objects of one image, such as `annotation.Objects`."""

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) x1, y1, x2, y2."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64."""
        ...

    @property
    def difficult(self) -> np.ndarray:
        """(n,) bool."""
        ...


class Predicted(Protocol):
    """Boxes found in one image."""

    @property
    def boxes(self) -> np.ndarray:
        """(m, 4) x1, y1, x2, y2, in the convention of the truth."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(m,) int64."""
        ...

    @property
    def scores(self) -> np.ndarray:
        """(m,) floats, larger = surer."""
        ...


def classification_ap(scores: np.ndarray, labels: np.ndarray, rule: str = "11-point") -> float:
    """Average precision of one class.

    Args:
        scores: (N,) floats, larger = surer that the class is there.
        labels: (N,) 1 = there, 0 = not, -1 = left out, as `VOC.labels_matrix` has them.
        rule: see the top of this file.

    Returns:
        A fraction of 1; NaN where no image shows the class.

    Raises:
        DeepClusterError: an unknown rule, or scores that are not finite.
    """
    labels, scores = np.asarray(labels), _finite(scores)
    _known(rule, RULES)
    kept = labels >= 0
    scores, positive = scores[kept], labels[kept] > 0
    if not positive.any():
        return float("nan")
    if rule in DETECTION_RULES:
        order = np.lexsort((positive, -scores))
        return _area(positive[order], int(positive.sum()), rule)
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive, scores))


def classification_aps(scores: np.ndarray, labels: np.ndarray, rule: str = "11-point") -> np.ndarray:
    """(C,) average precisions of (N, C) scores and labels; see `classification_ap`."""
    columns = zip(np.asarray(scores).T, np.asarray(labels).T, strict=True)
    return np.array([classification_ap(column, truth, rule) for column, truth in columns])


def mean_ap(values: np.ndarray) -> float:
    """Mean over the classes that have positives; NaN where none has."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def detection_aps(
    predicted: Sequence[Predicted],
    truth: Sequence[Truth],
    classes: int,
    *,
    rule: str = "11-point",
    least: float = 0.5,
    inclusive: bool = False,
) -> np.ndarray:
    """Average precision of each class over N images; see `match` for how boxes meet objects.

    Args:
        predicted: boxes found in each of the N images.
        truth: objects of each of the N images, `VOC.objects`.
        classes: C.
        rule: "11-point" (VOC 2007) or "all-point" (VOC 2010 and later).
        least: intersection over union from which on a box finds an object.
        inclusive: see `overlaps`.

    Returns:
        (C,) fractions of 1; NaN for a class without an object that is not difficult.

    Raises:
        DeepClusterError: an unknown rule, or scores that are not finite.
    """
    _known(rule, DETECTION_RULES)
    image = np.repeat(np.arange(len(predicted)), [len(one.labels) for one in predicted])
    labels = _joined([one.labels for one in predicted], (0,))
    scores = _finite(_joined([one.scores for one in predicted], (0,)))
    boxes = _joined([one.boxes for one in predicted], (0, 4))
    values = np.full(classes, np.nan)
    for number in range(classes):
        mine = labels == number
        chosen = [one.labels == number for one in truth]
        hard = [np.asarray(one.difficult)[rows] for one, rows in zip(truth, chosen, strict=True)]
        positives = sum(int((~rows).sum()) for rows in hard)
        if not positives:
            continue
        outcome = match(
            image[mine],
            boxes[mine],
            scores[mine],
            [np.asarray(one.boxes)[rows] for one, rows in zip(truth, chosen, strict=True)],
            hard,
            least=least,
            inclusive=inclusive,
        )
        order = np.argsort(-scores[mine], kind="stable")
        sorted_ = outcome[order]
        values[number] = _area(sorted_[sorted_ != 0] > 0, positives, rule)
    return values


def match(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    truth: Sequence[np.ndarray],
    difficult: Sequence[np.ndarray],
    *,
    least: float = 0.5,
    inclusive: bool = False,
) -> np.ndarray:
    """Which boxes of one class find an object, as VOC decides it.

    Each box is laid to the object of its image that it overlaps most (the first of equals), found already or not.
    With an overlap of `least` or more it finds it; of several boxes the surest does and the others are wrong. A box
    on a difficult object is neither right nor wrong.

    Args:
        image: (M,) int64, the image of each box.
        boxes: (M, 4).
        scores: (M,).
        truth: for each image (n, 4) boxes of the objects.
        difficult: for each image (n,) bool.

    Returns:
        (M,) int8: 1 right, -1 wrong, 0 not counted.
    """
    outcome = np.full(len(image), -1, np.int8)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    firsts = np.concatenate([[0], np.cumsum([len(one) for one in truth])])
    target = np.full(len(image), -1, np.int64)
    by_image = np.argsort(image, kind="stable")
    for rows in np.split(by_image, np.flatnonzero(np.diff(image[by_image])) + 1):
        if not len(rows):
            continue
        where = int(image[rows[0]])
        if not len(truth[where]):
            continue
        overlap = overlaps(boxes[rows], truth[where], inclusive=inclusive)
        best = overlap.argmax(axis=1)
        found = overlap[np.arange(len(rows)), best] >= least
        target[rows[found]] = firsts[where] + best[found]
    hard = _joined(list(difficult), (0,)).astype(bool)
    met = target >= 0
    outcome[met] = np.where(hard[target[met]], 0, -1)
    # of the boxes on one object, sorted by score, the first is right
    ranked = order[met[order]]
    _, surest = np.unique(target[ranked], return_index=True)
    winners = ranked[surest]
    outcome[winners[~hard[target[winners]]]] = 1
    return outcome


def overlaps(boxes: np.ndarray, others: np.ndarray, *, inclusive: bool = False) -> np.ndarray:
    """Intersection over union of (m, 4) and (n, 4) boxes: (m, n) float64.

    Args:
        inclusive: x2 and y2 belong to the box, whose width is x2 - x1 + 1: the arithmetic of VOC's own code on its
            own numbers. Boxes of this package end before x2, so that x2 - x1 is that same width, and the default
            gives the overlaps of VOC's code.
    """
    one = 1.0 if inclusive else 0.0
    a, b = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + one
    shared = np.maximum(sides, 0).prod(-1)
    areas = [np.maximum(side[..., 2:] - side[..., :2] + one, 0).prod(-1) for side in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(right: np.ndarray, positives: int, rule: str) -> float:
    """Average precision of answers (M,) bool, surest first, by one of VOC's two rules."""
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or beyond
    if rule == "all-point":
        return float(best[right].sum() / positives)  # recall grows by 1 / positives at each right answer, else not
    total = 0.0
    for tenth in range(11):
        # whole numbers: a recall of 3/10 is 0.3, which it would not be for 3 * 0.1 in floating point
        reached = int(np.searchsorted(10 * found, tenth * positives))
        total += best[reached] if reached < len(best) else 0.0
    return total / 11


def _joined(parts: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts]) if parts else np.zeros(empty)


def _finite(scores: np.ndarray) -> np.ndarray:
    found = np.asarray(scores, np.float64)
    if not np.isfinite(found).all():
        raise DeepClusterError("Scores are not finite, so that nothing can be ranked: look at what gave them.")
    return found


def _known(rule: str, rules: tuple[str, ...]) -> None:
    if rule not in rules:
        raise DeepClusterError(f"There is no rule {rule!r} for average precision: use {', '.join(rules)}.")
