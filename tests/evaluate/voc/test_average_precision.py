"""Average precision against slow plain versions, scikit-learn, and values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.annotation import Objects
from deepcluster.evaluate.voc.average_precision import (
    DetectionRule,
    Detections,
    Rule,
    classification_ap,
    classification_aps,
    detection_aps,
    match,
    mean_ap,
)


def slow_area(answers: list[bool], positives: int, rule: str) -> float:
    """In exact fractions, from the definitions: a recall and a precision after each answer."""
    points = []
    for k in range(1, len(answers) + 1):
        found = sum(answers[:k])
        points.append((Fraction(found, positives), Fraction(found, k)))

    def best(recall: Fraction) -> Fraction:
        return max((p for r, p in points if r >= recall), default=Fraction(0))

    if rule == "11-point":
        return float(sum(best(Fraction(t, 10)) for t in range(11)) / 11)
    recalls = sorted({r for r, _ in points if r > 0})
    return float(sum((r - before) * best(r) for before, r in zip([Fraction(0), *recalls], recalls, strict=False)))


@pytest.mark.parametrize("rule", ["11-point", "all-point"])
def test_classification_matches_exact_fractions(rule: Rule) -> None:
    random = np.random.default_rng(0)
    for trial in range(60):
        count = int(random.integers(1, 41))
        labels = random.integers(-1, 2, count)
        labels[random.integers(count)] = 1
        scores = random.normal(size=count).round(1 if trial % 2 else 8)  # half of them with ties
        kept = labels >= 0
        rows = sorted(zip(-scores[kept], labels[kept], strict=True))  # of equal scores the negative comes first
        expected = slow_area([label == 1 for _, label in rows], int((labels == 1).sum()), rule)
        assert classification_ap(scores, labels, rule) == pytest.approx(expected, abs=1e-12)


def test_values_worked_out_by_hand() -> None:
    # + - + -: precision 1 at recall 1/2, 2/3 at recall 1
    scores, labels = np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0])
    assert classification_ap(scores, labels) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert classification_ap(scores, labels, "all-point") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert classification_ap(scores, labels, "sklearn") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # - + - - + +: 1/2, then 1/2 once more at recall 1: the envelope lifts 2/5
    labels = np.array([0, 1, 0, 0, 1, 1])
    scores = -np.arange(6.0)
    assert classification_ap(scores, labels) == pytest.approx(1 / 2)
    assert classification_ap(scores, labels, "all-point") == pytest.approx(1 / 2)
    assert classification_ap(scores, labels, "sklearn") == pytest.approx((1 / 2 + 2 / 5 + 1 / 2) / 3)
    # the left out one neither helps nor harms
    assert classification_ap(np.append(scores, 9.0), np.append(labels, -1)) == pytest.approx(1 / 2)


def test_recall_of_three_tenths_is_compared_in_integers() -> None:
    """Three of ten positives first, then nothing but negatives in between: recall .3 must count with precision 1."""
    labels = np.array([1] * 3 + [0] * 90 + [1] * 7)
    value = classification_ap(-np.arange(100.0), labels)
    assert value == pytest.approx((4 * 1 + 7 * 10 / 100) / 11)


def test_sklearn_rule_matches_sklearn_also_with_the_published_guard_against_ties() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.normal(size=200).round(1), random.integers(-1, 2, 200)
    kept = labels >= 0
    truth = labels[kept] == 1
    assert classification_ap(scores, labels, "sklearn") == average_precision_score(truth, scores[kept])
    guarded = average_precision_score(truth, scores[kept] - 1e-5 * truth)
    assert guarded == pytest.approx(classification_ap(scores, labels, "sklearn"), abs=1e-12)


def test_constant_scores_gain_nothing_in_any_order() -> None:
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    for order in (labels, labels[::-1]):
        assert classification_ap(np.zeros(8), order, "all-point") == pytest.approx((2 / 8 + 2 / 8) / 2)
        assert classification_ap(np.zeros(8), order, "sklearn") == pytest.approx(2 / 8)


def test_classes_without_positives_are_left_out_of_the_mean() -> None:
    scores, labels = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[1, 0], [0, -1]])
    values = classification_aps(scores, labels)
    assert values[0] == 1 and np.isnan(values[1]) and mean_ap(values) == 1
    assert np.isnan(mean_ap(np.array([np.nan])))
    with pytest.raises(DeepClusterError, match="no rule 'best'"):
        classification_ap(scores[:, 0], labels[:, 0], "best")  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="not finite"):
        classification_ap(np.array([np.nan, 1]), np.array([0, 1]))


def slow_iou(a: np.ndarray, b: np.ndarray, one: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    return float(width * height / (areas[0] + areas[1] - width * height))


def slow_detection(predicted: list[Detections], truth: list[Objects], label: int, rule: str, one: float) -> float:
    """One box after another, as VOC's own evaluation goes through them."""
    rows = [
        (-score, image, number)
        for image, found in enumerate(predicted)
        for number, score in enumerate(found.scores)
        if found.labels[number] == label
    ]
    found_already: set[tuple[int, int]] = set()
    answers = []
    for _, image, number in sorted(rows):
        best, at = -1.0, -1
        for k in np.flatnonzero(truth[image].labels == label):
            overlap = slow_iou(predicted[image].boxes[number], truth[image].boxes[k], one)
            if overlap > best:
                best, at = overlap, int(k)
        if best < 0.5:
            answers.append(False)
        elif not truth[image].difficult[at]:
            answers.append((image, at) not in found_already)
            found_already.add((image, at))
    positives = sum(int(((one.labels == label) & ~one.difficult).sum()) for one in truth)
    return slow_area(answers, positives, rule) if positives else float("nan")


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corner = random.integers(0, 12, (count, 2))
    return np.concatenate([corner, corner + random.integers(3, 10, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("rule", ["11-point", "all-point"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_detection_matches_a_box_by_box_evaluation(rule: DetectionRule, inclusive: bool) -> None:
    """Also by VOC's own arithmetic on its own numbers, which count from 1 and include the last pixel."""
    random = np.random.default_rng(2)
    some_ignored = 0
    for _ in range(8):
        truth, predicted = [], []
        for _ in range(int(random.integers(1, 9))):
            n, m = int(random.integers(0, 5)), int(random.integers(0, 9))
            boxes, hard = random_boxes(random, n), random.random(n) < 0.3
            truth.append(Objects(boxes, random.integers(0, 3, n), hard))
            found = random_boxes(random, m)
            near = min(n, m)
            found[:near] = boxes[:near] + random.integers(-1, 2, (near, 4))  # so that some do meet
            labels = random.integers(0, 3, m)
            labels[:near] = truth[-1].labels[:near]
            predicted.append(Detections(found, labels, random.random(m).round(1)))  # ties are frequent
        ours = detection_aps(predicted, truth, 3, rule=rule)
        if inclusive:
            shift = np.array([1, 1, 0, 0])  # x1 = xmin - 1
            predicted = [replace(one, boxes=one.boxes + shift) for one in predicted]
            truth = [replace(one, boxes=one.boxes + shift) for one in truth]
        slow = [slow_detection(predicted, truth, label, rule, float(inclusive)) for label in range(3)]
        np.testing.assert_allclose(ours, slow, atol=1e-12)
        some_ignored += sum(int(one.difficult.sum()) for one in truth)
    assert some_ignored > 3


def test_matching_worked_out_by_hand() -> None:
    truth, hard = np.array([[0, 0, 10, 10], [100, 0, 110, 10.0]]), np.array([False, True])
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [100, 0, 110, 10], [100, 1, 110, 10], [50, 50, 60, 60.0]])
    assert match(boxes, np.array([0.5, 0.9, 0.8, 0.7, 0.1]), truth, hard).tolist() == [-1, 1, 0, 0, -1]
    assert match(boxes, np.array([0.5, 0.5, 0.8, 0.7, 0.1]), truth, hard).tolist() == [1, -1, 0, 0, -1]
    # exactly one half is enough: 10 x 10 against 10 x 5 of it
    assert match(np.array([[0, 0, 10, 5]]), np.ones(1), truth, hard).tolist() == [1]
    assert match(np.array([[0, 0, 10, 4.9]]), np.ones(1), truth, hard).tolist() == [-1]


def test_a_box_is_matched_to_the_object_it_overlaps_most_even_if_that_is_found_already() -> None:
    """VOC does not look for the second best: the box that could have found the other object is wrong."""
    truth, hard = np.array([[0, 0, 10, 10], [0, 2, 10, 12.0]]), np.zeros(2, bool)
    boxes = np.array([[0, 0, 10, 10], [0, 0.5, 10, 10.5]])
    assert match(boxes, np.array([0.9, 0.8]), truth, hard).tolist() == [1, -1]


def test_no_detections_and_no_objects() -> None:
    none = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    one = Objects(np.array([[0, 0, 5, 5.0]]), np.array([0]), np.array([False]))
    values = detection_aps([none], [one], 2)
    assert values[0] == 0 and np.isnan(values[1])
    exact = Detections(one.boxes, one.labels, np.ones(1))
    assert detection_aps([exact], [one], 2)[0] == detection_aps([exact], [one], 2, rule="all-point")[0] == 1
    with pytest.raises(DeepClusterError, match="no rule"):
        detection_aps([exact], [one], 2, rule="sklearn")  # type: ignore[arg-type]
